"""Writes patches into a model's weights: an ordinary checkpoint that transformers loads.

W + dW is computed in float64 and rounded once, to the checkpoint's own dtype; the loss of that
rounding is measured. Files are read and written a piece at a time, so that no shard is held in
memory, and the new folder takes its place only when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.artefacts.changes import WeightChange, check_model, weight_changes
from errata.artefacts.linear import LinearModule, linear_at, linear_modules
from errata.artefacts.peft_export import editors_of, patches_of
from errata.backbones import outline
from errata.backbones._weights import KeyMap, Stored
from errata.core.errors import BadBackbone, BadOutput, BadPatch, DiskFull
from errata.core.files import (
    FilePath,
    check_folder,
    json_bytes,
    new_folder,
    read_json,
    versions,
    visible,
    writing,
)
from errata.core.formats.counts import counted
from errata.core.formats.validation import path_of
from errata.core.model.outline import ModelOutline
from errata.core.patch import Patch, common_header, parts_of
from errata.io.weight_files import DTYPES, StoredTensor, as_bytes, tensors_in, write_shard

PURPOSE = "a part of the model's weights"
INDEX = "model.safetensors.index.json"
#: what was merged, and the files that were written: only such a folder is ever replaced
RECORD = "errata_merge.json"
#: endings of weight files, in whatever format; they are not copied
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot"),
    *(".index.json",),
)
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class MergedTensor:
    """One weight that was changed. loss: |rounded - (W + dW)|_F / |dW|_F."""

    key: str
    site: str
    dtype: str
    error: float
    size: float

    @property
    def loss(self) -> float:
        return self.error / self.size if self.size else 0.0


@dataclass(frozen=True)
class Merged:
    """What was written."""

    folder: Path
    tensors: tuple[MergedTensor, ...]

    @property
    def loss(self) -> float:
        """Of all weights together."""
        size = sum(t.size**2 for t in self.tensors)
        return float((sum(t.error**2 for t in self.tensors) / size) ** 0.5) if size else 0.0

    @property
    def worst(self) -> MergedTensor:
        return max(self.tensors, key=lambda t: t.loss)


@dataclass(frozen=True)
class Shard:
    """One weight file. name: of the safetensors file that is written for it."""

    name: str
    path: Path

    def tensors(self) -> list[StoredTensor]:
        return tensors_in(self.path)


@dataclass(frozen=True)
class _Target:
    """What is added to the tensor of one key. rows: for a weight; bias: for a vector."""

    site: str
    change: WeightChange
    shape: tuple[int, ...]
    transposed: bool = False
    bias: bool = False


def merge(
    backbone: str | os.PathLike[str],
    patch: Patch | Sequence[Patch],
    folder: FilePath,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> Merged:
    """Writes the model with the patches in its weights to `folder`; several act as a stack.

    backbone: a bundled name, a folder or a hub id whose files are on this machine. Its weights are
    not loaded. force: a model that is in `folder` is replaced. Raises BadPatch for patches that
    are no change of weights, BadBackbone for a checkpoint whose weights cannot be changed one by
    one, FingerprintMismatch, BadOutput, DiskFull.
    """
    folder = path_of(folder, "the folder of a model")
    patches = patches_of(patch)
    changes = weight_changes(patches, PURPOSE)
    check_out(folder, force=force)
    bb = outline(backbone, revision=revision, trust_remote_code=trust_remote_code)
    source = _source(bb)
    _check_apart(source, folder)
    targets = _targets(bb, changes)
    shards = shards_of(bb)
    by_key = _keys(bb, shards, targets)
    check_model(bb, common_header([p for one in patches for p in parts_of(one)]))
    done: list[MergedTensor] = []
    with new_folder(folder) as stage:
        _check_space(shards, stage)
        where, size = _write_shards(shards, stage, by_key, done)
        if [s.name for s in shards] != ["model.safetensors"]:
            _write(
                stage / INDEX, json_bytes({"metadata": {"total_size": size}, "weight_map": where})
            )
        _copy_rest(source, stage)
        merged = Merged(folder, tuple(done))
        _write(stage / "README.md", _card(bb, patches, merged).encode())
        shutil.copyfile(source / "config.json", stage / "config.json")
        _write(stage / RECORD, json_bytes(_record(bb, patches, merged, stage)))
        check_out(folder, force=force)  # another command may have written it meanwhile
    return merged


# -- checks before anything is written ------------------------------------------------------------


def check_out(folder: Path, *, force: bool = False) -> None:
    """Raises BadOutput unless a model can be written to `folder`."""
    check_folder(folder, BadOutput)
    names = visible(folder)
    if names and RECORD not in names:
        raise BadOutput(
            f"{folder} is not empty, and errata patch merge has not written it. Choose another "
            "--out, or empty it yourself."
        )
    if names and not force:
        raise BadOutput(
            f"{folder} holds a merged model. Give --force to replace it, or choose another --out."
        )
    record = read_json(folder / RECORD, BadOutput) if names else {}
    written = record.get("files", ()) if isinstance(record, dict) else ()
    other = sorted(set(names) - set(written))
    if other:
        raise BadOutput(
            f"{folder} also holds {other[0]}, which errata has not written. Move it away, or "
            "choose another --out."
        )


def _source(bb: ModelOutline) -> Path:
    """The folder of the model's files. Raises BadBackbone."""
    source = bb.source
    if source is None and bb.name.lower().endswith(".gguf"):
        raise BadBackbone(
            f"{bb.name} is a GGUF file, and its blocks cannot be changed exactly. Save the "
            "model (bb = errata.load(FILE); bb.model.save_pretrained(DIR); "
            "bb.tokenizer.save_pretrained(DIR)) and merge into DIR: its patches fit."
        )
    if source is None:
        raise BadBackbone(
            f"the files of {bb.name} are not on this machine. Download them first (hf download "
            f"{bb.name}), or give a folder."
        )
    config = read_json(source / "config.json", BadBackbone)
    if isinstance(config, dict) and config.get("quantization_config"):
        raise BadBackbone(
            f"{bb.name} is quantised, and a change cannot be added to such weights exactly. Merge "
            "the patch into the model that it was made from, and quantise the result."
        )
    return source


def shards_of(bb: ModelOutline) -> list[Shard]:
    """The weight files that transformers would load. Raises BadBackbone where there are none."""
    paths = Stored(bb.model, bb.source, trusted=True).files
    if not paths:
        raise BadBackbone(
            f"{bb.source} has no weight files (model.safetensors, pytorch_model.bin, or an index "
            "of several). Download the whole model, or save it with save_pretrained."
        )
    return [Shard(_new_name(path.name), path) for path in paths]


def _new_name(name: str) -> str:
    """pytorch_model-00001-of-00002.bin is written as model-00001-of-00002.safetensors."""
    stem, ending = os.path.splitext(name)
    if ending == ".safetensors":
        return name
    return f"{stem.replace('pytorch_model', 'model', 1)}.safetensors"


def _check_apart(source: Path, folder: Path) -> None:
    a, b = source.resolve(), folder.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise BadOutput(
            f"{folder} is the folder of the model itself, or lies in it or around it. Choose "
            "another --out: the model is kept as it is."
        )


def _targets(bb: ModelOutline, changes: Mapping[str, WeightChange]) -> dict[str, _Target]:
    """Name of a weight in the loaded model -> what is added to it. Raises BadPatch."""
    modules = linear_modules(bb)
    targets: dict[str, _Target] = {}
    for site, change in changes.items():
        module = linear_at(modules, site, bb.name)
        _check_module(module, change, bb)
        shape = (module.into, module.out) if module.transposed else (module.out, module.into)
        for path in module.paths:
            targets[f"{path}.weight"] = _Target(site, change, shape, module.transposed)
            if change.has_bias:
                targets[f"{path}.bias"] = _Target(site, change, (module.out,), bias=True)
    return targets


def _check_module(module: LinearModule, change: WeightChange, bb: ModelOutline) -> None:
    if change.shape != (module.out, module.into):
        raise BadPatch(
            f"the patch changes a weight of {change.shape[0]} x {change.shape[1]} at "
            f"{module.site}, which in {bb.name} is {module.out} x {module.into}. Name its own "
            "model."
        )
    if module.shared:
        raise BadPatch(
            f"the patch acts at {module.site}, whose weight is also {module.shared[0]}: merging "
            "would change both. Apply the patch with errata: --patch DIR."
        )
    if change.has_bias and not module.has_bias:
        raise BadPatch(
            f"the patch adds a bias at {module.site}, and that module of {bb.name} has none. Apply "
            "the patch with errata: --patch DIR."
        )


def _keys(
    bb: ModelOutline, shards: Sequence[Shard], targets: Mapping[str, _Target]
) -> dict[str, _Target]:
    """Key in the weight files -> what is added to its tensor. Raises BadBackbone.

    A weight that stands in several modules is stored once or more often.
    """
    key_map = KeyMap(bb.model)
    by_key: dict[str, _Target] = {}
    found: set[str] = set()
    for shard in shards:
        for t in shard.tensors():
            name, plain = key_map(t.key)
            if name not in targets:
                continue
            if not plain or name in found:
                raise BadBackbone(_not_one(bb, name, t.key))
            _check_stored(t, targets[name], bb)
            found.add(name)
            by_key[t.key] = targets[name]
    known = {id(key_map.state[name]) for name in found}
    for name in targets:
        if id(key_map.state[name]) not in known:
            raise BadBackbone(_not_one(bb, name, ""))
    return by_key


def _not_one(bb: ModelOutline, name: str, key: str) -> str:
    how = f"comes from {key} and others, which are joined or split" if key else "is stored in parts"
    return (
        f"{name} of {bb.name} has no weight of its own in the files: it {how} while the model is "
        "loaded. Save the model once with save_pretrained and merge into that folder, or apply the "
        "patch with errata: --patch DIR."
    )


def _check_stored(t: StoredTensor, target: _Target, bb: ModelOutline) -> None:
    if t.dtype not in ("F64", "F32", "F16", "BF16"):
        raise BadBackbone(
            f"{t.key} of {bb.name} is stored as {t.dtype}, which a change cannot be added to. "
            "Merge into the model with 16 or 32 bit weights."
        )
    if t.shape != target.shape:
        raise BadBackbone(
            f"{t.key} of {bb.name} is stored as {list(t.shape)}, not {list(target.shape)}, so a "
            "change cannot be added to it. Save the model once with save_pretrained."
        )


def _check_space(shards: Sequence[Shard], stage: Path) -> None:
    size = sum(s.path.stat().st_size for s in shards)
    free = shutil.disk_usage(stage).free
    if free < size:
        raise DiskFull(
            f"the model has {size / 1e9:.1f} GB, and {stage.parent} has room for {free / 1e9:.1f}. "
            "Free some space or choose another --out."
        )


# -- writing --------------------------------------------------------------------------------------


def _write_shards(
    shards: Sequence[Shard], stage: Path, by_key: Mapping[str, _Target], done: list[MergedTensor]
) -> tuple[dict[str, str], int]:
    """(key -> file, bytes of all tensors)."""
    where: dict[str, str] = {}
    size = 0
    for shard in shards:
        tensors = shard.tensors()
        changed = {
            t.key: lambda t, target=by_key[t.key]: _changed(t, target, done)
            for t in tensors
            if t.key in by_key
        }
        write_shard(stage / shard.name, tensors, changed)
        where |= {t.key: shard.name for t in tensors}
        size += sum(t.size for t in tensors)
    return where, size


def _changed(t: StoredTensor, target: _Target, done: list[MergedTensor]) -> Iterator[bytes]:
    """The new numbers of a tensor, rows at a time. Raises BadPatch."""
    error = size = 0.0
    for first, rows in t.rows():
        stop = first + rows.shape[0]
        if target.bias:
            assert target.change.bias is not None
            change = target.change.bias[first:stop].double()
        else:
            change = target.change.rows(first, stop, transposed=target.transposed)
        exact = rows.double() + change
        rounded = exact.to(DTYPES[t.dtype])
        if not bool(rounded.isfinite().all()):
            raise BadPatch(
                f"{t.key} becomes too large for {t.dtype}, or was not finite. Merge into a model "
                "in float32 or bfloat16."
            )
        error += float((rounded.double() - exact).square().sum())
        size += float(change.square().sum())
        yield as_bytes(rounded)
    done.append(MergedTensor(t.key, target.site, t.dtype, error**0.5, size**0.5))


def _record(bb: ModelOutline, patches: Sequence[Patch], merged: Merged, stage: Path) -> Any:
    """What was merged into which model, as JSON, and the names in the folder."""
    header = common_header([p for one in patches for p in parts_of(one)])
    return {
        "backbone": bb.name,
        "revision": bb.revision,
        "fingerprint": header.fingerprint,
        "origins": [sorted(p.origins) for p in patches],
        "versions": versions(),
        "loss": merged.loss,
        "tensors": {t.key: {"site": t.site, "loss": t.loss} for t in merged.tensors},
        "files": sorted([*os.listdir(stage), RECORD]),
    }


def _copy_rest(source: Path, stage: Path) -> None:
    """Copies configuration, tokenizer, processor and code; not weights nor the card."""
    with writing(stage):
        for file in sorted(source.iterdir()):
            hidden = file.name.startswith(".")
            if hidden or file.name in ("README.md", "config.json", RECORD):
                continue
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, stage / file.name)
            elif file.is_dir() and file.name == _TEMPLATES:
                shutil.copytree(file, stage / file.name)


def _write(path: Path, data: bytes) -> None:
    with writing(path):
        path.write_bytes(data)


def _card(bb: ModelOutline, patches: Sequence[Patch], merged: Merged) -> str:
    edits = [e for p in patches for e in p.edits]
    facts = "\n".join(f"- {e.prompt.text!r} -> {e.target!r}" for e in edits[:50])
    more = f"\n- and {len(edits) - 50} more" if len(edits) > 50 else ""
    base = f"base_model: {bb.name}\n" if "/" in bb.name and not os.path.isdir(bb.name) else ""
    rows = "\n".join(f"| `{t.key}` | {t.dtype} | {t.loss:.2e} |" for t in merged.tensors)
    return (
        f"---\n{base}tags:\n- knowledge-editing\n---\n\n# {bb.name}, edited\n\n"
        f"The weights of `{bb.name}` with patches of errata in them (editor "
        f"{editors_of(patches)}), {counted(len(edits), 'edit')}. Rounding to the stored dtype "
        f"loses {merged.loss:.2e} of the change (relative Frobenius error).\n\n"
        f"## Facts\n\n{facts or 'None are known.'}{more}\n\n## Changed weights\n\n"
        f"| key | dtype | loss |\n|---|---|---|\n{rows}\n"
    )
