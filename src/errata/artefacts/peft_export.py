"""Writes patches as a LoRA adapter in PEFT's format, for peft, transformers and vLLM.

A change dW = B A of a linear module is a LoRA with alpha = r. The folder is what
`PeftModel.from_pretrained`, `model.load_adapter` and `vllm serve --lora-modules` read:
`adapter_config.json`, `adapter_model.safetensors`, and a card. Tensors are named by the module's
path in the loaded model, without an adapter's name: transformers loads nothing, and says nothing,
for keys with `.default.` in them. peft itself is not needed.

vLLM reads neither `rank_pattern` nor `alpha_pattern` and scales all modules by alpha / r, so that
there all modules are padded with zeros to one rank, one of those that `--max-lora-rank` takes.
Checked with peft 0.21 and transformers 5.23; vLLM by its documentation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from errata.artefacts.changes import (
    ASK_AGAIN,
    LARGE_LOSS,
    WeightChange,
    check_model,
    weight_changes,
)
from errata.artefacts.linear import LinearModule, linear_at, linear_modules
from errata.artefacts.lora import LoraFactors, factors
from errata.backbones import outline
from errata.backbones._weights import KeyMap
from errata.core.errors import BadOutput, BadPatch, BadSpec
from errata.core.files import FilePath, check_folder, json_bytes, visible, write_folder
from errata.core.formats.counts import counted
from errata.core.formats.validation import path_of
from errata.core.locks import SHORT, locked
from errata.core.model.backbone import Backbone
from errata.core.model.outline import ModelOutline
from errata.core.patch import Header, Patch, check_fingerprint, common_header, parts_of
from errata.core.types import brief

#: what vLLM's --max-lora-rank takes
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: the rank that vLLM allows without --max-lora-rank
VLLM_DEFAULT = 16
DTYPES = ("float32", "bfloat16", "float16")
_SHOWN = 50


@dataclass(frozen=True)
class ExportedModule:
    """One module of an adapter. loss: relative Frobenius error of its change."""

    site: str
    path: str
    rank: int
    loss: float


@dataclass(frozen=True)
class ExportedAdapter:
    """What was written. rank: of the adapter as a whole; remarks: what its user must know."""

    folder: Path
    base: str
    rank: int
    loss: float
    modules: tuple[ExportedModule, ...]
    remarks: tuple[str, ...]


def export_peft(
    patch: Patch | Sequence[Patch],
    folder: FilePath,
    *,
    backbone: Backbone | str | None = None,
    rank: int | None = None,
    vllm: bool = False,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ExportedAdapter:
    """Writes a patch, or several as their sum, as a LoRA adapter.

    backbone: the model; default the one that the patch names, of which only configuration and
    processor are read. Another name is checked by its weights, where they
    are on this machine. rank: largest rank of a module, else exact. vllm: one rank for
    all modules. Raises BadPatch for patches that are no low-rank change of linear modules,
    FingerprintMismatch, BadSpec, BadBackbone, BadOutput, DiskFull.
    """
    folder = path_of(folder, "the folder of an adapter")
    patches = patches_of(patch)
    _check_settings(rank, dtype)
    check_out(folder)
    changes = weight_changes(patches, "a LoRA adapter")
    header = common_header([p for one in patches for p in parts_of(one)])
    bb = _model(backbone, header, revision, trust_remote_code)
    modules = linear_modules(bb)
    places = {site: _place(modules, site, change, bb) for site, change in changes.items()}
    _check_experts(bb, places)
    number: torch.dtype = getattr(torch, dtype)
    made = {site: factors(changes[site], rank, number) for site in changes}
    remarks = [*_remarks(made, places, rank, vllm), *_renamed(bb, places)]
    made, top = _ranks(made, vllm)
    base = backbone if isinstance(backbone, str) else bb.name
    adapter = ExportedAdapter(
        folder,
        base,
        top,
        _total_loss(made.values()),
        tuple(ExportedModule(s, places[s].path, f.rank, f.loss) for s, f in made.items()),
        tuple(remarks),
    )
    contents = {
        "adapter_model.safetensors": _tensors(made, places),
        "adapter_config.json": json_bytes(_config(adapter, places, header, vllm)),
        "README.md": _card(adapter, header, patches, vllm).encode(),
    }
    with locked(folder, wait=SHORT):
        write_folder(folder, contents)
    return adapter


def patches_of(patch: Any) -> list[Patch]:
    """One patch or several, as a list. Raises BadPatch for anything else."""
    one = isinstance(patch, Patch) or not isinstance(patch, (list, tuple))
    patches = [patch] if one else list(patch)
    for p in patches:
        if not isinstance(p, Patch):
            raise BadPatch(f"a patch is given as {brief(p)}. Use errata.load_patch(FOLDER).")
    if not patches:
        raise BadPatch("there is no patch. Give one, or a list of them.")
    return patches


def editors_of(patches: Sequence[Patch]) -> str:
    """The names of the editors that made them, for a card."""
    names = dict.fromkeys(p.header.editor or "unknown" for q in patches for p in parts_of(q))
    return ", ".join(f"`{name}`" for name in names)


def check_out(folder: Path) -> None:
    """Raises BadOutput for a folder whose files an adapter must not be mixed with."""
    check_folder(folder, BadOutput)
    names = visible(folder)
    for name, kind in (("patch.json", "a patch of errata"), ("config.json", "a model")):
        if name in names:
            raise BadOutput(f"{folder} holds {kind}. Choose another --out for the adapter.")
    if names and "adapter_config.json" not in names:
        raise BadOutput(
            f"{folder} is not empty and holds no adapter. Choose another --out, or empty it "
            "yourself."
        )


def _check_settings(rank: int | None, dtype: str) -> None:
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise BadSpec(f"a rank of {rank!r} is given. It is a whole number from 1 on.")
    if dtype not in DTYPES:
        raise BadSpec(f"unknown dtype '{dtype}'. Known: {', '.join(DTYPES)}.")


def _model(
    backbone: Backbone | str | None, header: Header, revision: str | None, trust_remote_code: bool
) -> ModelOutline:
    if isinstance(backbone, Backbone):
        check_fingerprint(header, backbone, "the patch")
        return backbone.outlined()
    name = backbone or header.backbone
    if not name:
        raise BadPatch("the patch does not say which model it was made for. Give --backbone.")
    if revision is None and name == header.backbone:
        revision = header.revision or None
    found = outline(name, revision=revision, trust_remote_code=trust_remote_code)
    if name != header.backbone:  # its weights are read: another model may fit by its shapes
        check_model(found, header)
    return found


def _place(
    modules: Mapping[str, LinearModule], site: str, change: WeightChange, bb: ModelOutline
) -> LinearModule:
    """The module of a site, if a LoRA there does what the patch does. Raises BadPatch."""
    module = linear_at(modules, site, bb.name)
    if change.has_bias:
        raise BadPatch(
            f"the patch changes a bias (at {site}), which a LoRA adapter does not hold. Merge it "
            "into the model instead: errata patch merge."
        )
    if change.shape != (module.out, module.into):
        raise BadPatch(
            f"the patch changes a weight of {change.shape[0]} x {change.shape[1]} at {site}, which "
            f"in {bb.name} is {module.out} x {module.into}. Name its own model with --backbone."
        )
    if module.shared:
        raise BadPatch(
            f"the patch acts at {site}, whose weight is also {module.shared[0]}: whoever merges "
            "such an adapter changes both. Apply this patch with errata: --patch DIR."
        )
    return module


def _check_experts(bb: ModelOutline, places: Mapping[str, LinearModule]) -> None:
    """Raises BadPatch for a feed-forward module of a model with joined experts.

    peft takes its name for that of the experts' weights before they were joined, and puts the
    adapter there (peft 0.21, `utils/transformers_weight_conversion.py`).
    """
    joined = any(
        p.dim() == 3 and name.rpartition(".")[-1] in ("gate_up_proj", "down_proj")
        for name, p in bb.model.named_parameters()
    )
    inside = next((site for site in places if ".mlp." in site), None)
    if joined and inside is not None:
        raise BadPatch(
            f"the patch acts at {inside}, and {bb.name} has experts: peft would put such an "
            "adapter on the experts. Merge it into the model instead (errata patch merge), or edit "
            "the attention alone (lora)."
        )


def _ranks(made: Mapping[str, LoraFactors], vllm: bool) -> tuple[dict[str, LoraFactors], int]:
    """(factors as they are written, rank of the adapter). Raises BadSpec."""
    top = max(f.rank for f in made.values())
    if not vllm:
        return dict(made), top
    fitting = next((r for r in VLLM_RANKS if r >= top), None)
    if fitting is None:
        raise BadSpec(
            f"the patch has rank {top}, and vLLM takes at most {VLLM_RANKS[-1]}. Give a --rank of "
            f"{VLLM_RANKS[-1]} or less (its loss is measured), or merge the patch into the model."
        )
    return {s: f.padded(fitting) for s, f in made.items()}, fitting


def _total_loss(made: Any) -> float:
    squares = [(f.error**2, f.size**2) for f in made]
    size = sum(s for _, s in squares)
    return float((sum(e for e, _ in squares) / size) ** 0.5) if size else 0.0


def _remarks(
    made: Mapping[str, LoraFactors],
    places: Mapping[str, LinearModule],
    rank: int | None,
    vllm: bool,
) -> list[str]:
    top = max(f.rank for f in made.values())
    lines = []
    if rank is not None and top < rank:
        lines.append(f"no module needs rank {rank}: the largest is {top}.")
    large = [
        s for s, f in made.items() if f.a.numel() + f.b.numel() > places[s].into * places[s].out
    ]
    if large:
        lines.append(
            f"the change of {places[large[0]].path} has (almost) full rank, so that its adapter is "
            "larger than the weight. Give --rank for a smaller one, or merge the patch."
        )
    if _total_loss(made.values()) > LARGE_LOSS:
        lines.append(ASK_AGAIN)
    if vllm:
        need = next((r for r in VLLM_RANKS if r >= top), 0)
        if need > VLLM_DEFAULT:
            lines.append(f"vLLM needs the option --max-lora-rank {need}.")
        other = sorted(s for s, p in places.items() if p.stream != "text" or s == "head")
        if other:
            lines.append(
                f"many models take no adapter at {other[0]} in vLLM, only in their text blocks."
            )
        lines.append("vLLM runs adapters in the model's dtype, so that small changes are rounded.")
    return lines


def _renamed(bb: ModelOutline, places: Mapping[str, LinearModule]) -> list[str]:
    """transformers applies the rules for checkpoints of old to an adapter's keys as well."""
    key_map = KeyMap(bb.model)
    other = [
        p.path for p in places.values() if key_map(f"{p.path}.weight")[0] != f"{p.path}.weight"
    ]
    if not other:
        return []
    return [
        f"load_adapter of transformers looks for {other[0]} under another name. Load the adapter "
        "with PeftModel.from_pretrained."
    ]


def _tensors(made: Mapping[str, LoraFactors], places: Mapping[str, LinearModule]) -> bytes:
    tensors = {}
    for site, f in made.items():
        key = f"base_model.model.{places[site].path}"
        tensors[f"{key}.lora_A.weight"] = f.a
        tensors[f"{key}.lora_B.weight"] = f.b
    return to_safetensors(tensors, metadata={"format": "pt"})


def _config(
    adapter: ExportedAdapter, places: Mapping[str, LinearModule], header: Header, vllm: bool
) -> dict[str, Any]:
    pattern = {m.path: m.rank for m in adapter.modules if m.rank != adapter.rank}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base,
        "revision": header.revision or None,
        "task_type": None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "target_modules": [m.path for m in adapter.modules],
        "bias": "none",
        "fan_in_fan_out": any(places[m.site].transposed for m in adapter.modules),
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    return config if vllm else {**config, "rank_pattern": pattern, "alpha_pattern": pattern}


def _card(adapter: ExportedAdapter, header: Header, patches: Sequence[Patch], vllm: bool) -> str:
    edits = [e for p in patches for e in p.edits]
    facts = "\n".join(f"- {e.prompt.text!r} -> {e.target!r}" for e in edits[:_SHOWN])
    more = f"\n- and {len(edits) - _SHOWN} more" if len(edits) > _SHOWN else ""
    rows = "\n".join(f"| `{m.path}` | {m.rank} | {m.loss:.2e} |" for m in adapter.modules)
    named = adapter.base if not os.path.isdir(adapter.base) else ""
    base = f"base_model: {named}\n" if "/" in named else ""
    notes = "".join(f"- {line}\n" for line in adapter.remarks)
    start = (
        f"vllm serve {adapter.base} --enable-lora --max-lora-rank {adapter.rank} "
        "--lora-modules errata=."
    )
    use = (
        f"```\n{start}\n```\n"
        if vllm
        else '```python\nmodel = PeftModel.from_pretrained(model, ".")  # peft\n'
        'model.load_adapter(".")  # or transformers alone\n```\n'
    )
    return (
        f"---\n{base}library_name: peft\ntags:\n- lora\n- knowledge-editing\n---\n\n"
        f"# An errata patch as a LoRA adapter\n\nEditor {editors_of(patches)} on `{adapter.base}` "
        f"(fingerprint `{header.fingerprint[:12]}`), {counted(len(edits), 'edit')}. Its loss is "
        f"{adapter.loss:.2e} (relative Frobenius error of the change; 0: an exact copy).\n\n"
        f"{notes}{'' if not notes else chr(10)}## Facts\n\n{facts or 'None are known.'}{more}\n\n"
        f"## Use\n\n{use}\n## Modules\n\n| module | rank | loss |\n|---|---|---|\n{rows}\n"
    )
