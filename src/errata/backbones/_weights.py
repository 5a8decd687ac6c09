"""The weight files of a model: their folder, what they hold under which names, and digests of them.

A model's own names of its weights may differ from those in its files: transformers renames keys
while it loads (`KeyMap`). `StreamedDigest` reads the identity of a model from its files, one tensor
at a time; `former_fingerprint` is that of errata 0.1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from errata.backbones._identity import (
    ModelIdentity,
    core,
    tensor_digest,
    tied_names,
    weights_digest,
)
from errata.backbones._language import gguf, packaged
from errata.backbones._vision import assembled
from errata.core.errors import BadBackbone, DiskFull, UserError
from errata.core.files import read_json, write_json
from errata.core.hooks.context import Site
from errata.core.model.outline import ModelOutline
from errata.core.types import digest as digest_of
from errata.io import packaged_models
from errata.io.states import home
from errata.io.weight_files import DTYPES, tensors_in

#: bytes of weight files from which their digest is kept in ERRATA_HOME
LARGE = 1 << 28

_VOLATILE = (
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "transformers_version",
    "_attn_implementation_autoset",
)


def bundled(name: str) -> str:
    """The folder of a model that is loaded by its name alone.

    Raises BadBackbone when one that ships with errata is not there, MissingExtra when the package
    of another one is not installed.
    """
    if name in packaged_models.MODELS:
        return os.fspath(packaged.folder(name))
    if assembled.is_in_parts(name):
        return os.fspath(assembled.folder(name))
    folder = assembled.assets(name)
    if not folder.is_dir():
        raise BadBackbone(
            f"the bundled model '{name}' is not in this installation. Install errata again."
        )
    return os.fspath(folder)


def _is_made(name: str) -> bool:
    """Whether the folder of a model that is loaded by its name is there already."""
    if name in packaged_models.MODELS:
        return packaged_models.place(name).is_dir()
    return not assembled.is_in_parts(name) or assembled.place(name).is_dir()


def short_name(path: str, offered: Iterable[str]) -> str:
    """What a model that was loaded from `path` is called: a bundled one by its name."""
    for name in offered:
        is_folder = path and Path(path).is_dir() and _is_made(name)
        if is_folder and Path(path).samefile(bundled(name)):
            return name
    return path


def folder(
    name: str, revision: str | None, commit: str | None, file: str = "config.json"
) -> Path | None:
    """The folder with the files that `from_pretrained(name)` read: itself, or a hub snapshot.

    `commit`: the one that transformers resolved `revision` to. `file`: one that it read. None: not
    found on this machine.
    """
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, file, revision=commit or revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


class Stored:
    """The weights as a folder stores them, for a model whose weights in memory are narrower.

    A model that was loaded in another dtype is the model of its files. Those are loaded once more,
    and the digest is kept in ERRATA_HOME under the size and time of each file, also for large
    models, which would take seconds to be hashed at each start. trusted: the model was loaded from
    these files; otherwise that is checked.
    """

    def __init__(
        self, model: torch.nn.Module, source: Path | None, *, trusted: bool, gguf_file: str = ""
    ) -> None:
        """gguf_file: the file of `source` that holds the weights."""
        self.model, self.source, self.trusted, self.gguf_file = model, source, trusted, gguf_file
        self.files = []
        if source is not None:
            self.files = [source / gguf_file] if gguf_file else weight_files(source)
        self.state = _state_of(self.files)

    def __call__(self, as_loaded: bool) -> str | None:
        """The digest of the stored weights; None: that of the weights in memory counts."""
        if not self.files or _state_of(self.files) != self.state or _quantised(self.model):
            return None
        known = self._known() if as_loaded and self.trusted else None
        if known is not None:
            return known
        if not self._narrower():
            digest = weights_digest(self.model)
            if as_loaded and self.trusted:
                self._keep(digest)
            return digest
        if not (as_loaded and self.trusted):
            memory = weights_digest(self.model)
            if self._loaded(_dtype(self.model)) != memory:
                return memory
        digest = self._known() or self._loaded("auto")
        self._keep(digest)
        return digest

    def _loaded(self, dtype: Any) -> str:
        """The digest of the files, loaded in a dtype on the CPU."""
        kind: Any = type(core(self.model))
        more = gguf.options(self.gguf_file) if self.gguf_file else {}
        return weights_digest(kind.from_pretrained(self.source, dtype=dtype, **more))

    def _narrower(self) -> bool:
        """Whether the dtype in memory cannot hold what is stored."""
        assert self.source is not None
        now = _dtype(self.model)
        if self.gguf_file:  # its blocks are dequantised into float32
            return now in (torch.float16, torch.bfloat16)
        stored = _stored_dtype(self.source, self.files)
        return now in (torch.float16, torch.bfloat16) and stored not in (None, now)

    @property
    def _record(self) -> Path:
        names = sorted(core(self.model).state_dict(keep_vars=True))
        key = digest_of([self.state, type(core(self.model)).__name__, names])
        return home() / "weights" / f"{key[:32]}.json"

    def _known(self) -> str | None:
        if not self._is_large():
            return None
        try:
            value = read_json(self._record)["weights"]
        except (UserError, ValueError, LookupError, TypeError):
            return None
        return value if isinstance(value, str) else None

    def _keep(self, digest: str) -> None:
        if self._is_large():
            with suppress(OSError, DiskFull):  # the cache cannot be written: do without it
                write_json(self._record, {"files": self.state, "weights": digest})

    def _is_large(self) -> bool:
        return sum(int(size) for _, size, *_ in self.state) > LARGE


# -- without loading ------------------------------------------------------------------------------


def on_meta(
    auto_class: Any, path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The model of a folder or hub id on the meta device: modules and shapes without values.

    auto_class: of transformers, such as AutoModelForCausalLM.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(
        path, revision=revision, trust_remote_code=trust_remote_code
    )
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    return model.eval()


def outline_of(
    name: str, path: str, revision: str | None, model: Any, sites: Iterable[Site], processor: Any
) -> ModelOutline:
    """The outline of a model on the meta device. processor: or tokenizer."""
    source = folder(path, revision, getattr(model.config, "_commit_hash", None))
    by_name = {site.name: site for site in sites}
    identity = FileIdentity(name, model, processor, source)
    return ModelOutline(name, model, by_name, source, identity, revision or "")


class FileIdentity:
    """Which model the files of a folder are (`core.patch.Identified`), without loading them."""

    def __init__(self, name: str, model: Any, processor: Any, source: Path | None) -> None:
        self.name, self.model, self.source = name, model, source
        digest = StreamedDigest(model, source)
        tokenizer = getattr(processor, "tokenizer", processor)
        self.identity = ModelIdentity(model, processor, tokenizer, lambda _: digest())

    def fingerprint(self) -> str:
        """Raises BadBackbone where the files alone do not say it."""
        return self.identity.fingerprint()

    def as_loaded(self) -> bool:
        return True

    def identified_by(self, fingerprint: str) -> bool:
        """Also by a fingerprint of errata 0.1."""
        return fingerprint == self.fingerprint() or fingerprint == former_fingerprint(
            self.model.config.to_dict(), self.model, self.source
        )


class KeyMap:
    """From a key of a weight file to the name that the loaded model has for it.

    model: of transformers, also on the meta device. The rules are those of its `from_pretrained`.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.state = core(model).state_dict(keep_vars=True)
        self.prefix = str(getattr(core(model), "base_model_prefix", ""))
        transforms: Any = get_model_conversion_mapping(core(model))  # type: ignore[arg-type]
        self.renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self.converters = [t for t in transforms if isinstance(t, WeightConverter)]

    def __call__(self, key: str) -> tuple[str, bool]:
        """(name, plain): not plain if the tensor is split, joined or turned while it is loaded.

        The name of a key that the model does not take is in no state dict.
        """
        name, converter = self._renamed(key, self.renamings, self.converters)
        if name not in self.state and key in self.state:
            name, converter = self._renamed(key, [], [])
        return name, converter is None

    def _renamed(self, key: str, renamings: Any, converters: Any) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        renamed: Any = rename_source_key(key, renamings, converters, self.prefix, self.state)
        return str(renamed[0]), renamed[1]


class StreamedDigest:
    """The digest of a model's weights from its files, as `Stored` gives it, a tensor at a time."""

    def __init__(self, model: Any, source: Path | None) -> None:
        self.model, self.source = model, source

    def __call__(self) -> str:
        """Raises BadBackbone where the files alone do not say what the loaded weights are."""
        stored = Stored(self.model, self.source, trusted=True)
        if not stored.files:
            raise BadBackbone("the weight files of the model are not on this machine.")
        known = stored._known()
        if known is None:
            known = self._streamed(stored.files)
            stored._keep(known)
        return known

    def _streamed(self, paths: Iterable[Path]) -> str:
        key_map = KeyMap(self.model)
        assert self.source is not None
        paths, digests = list(paths), dict[str, str]()
        dtype = _stored_dtype(self.source, paths)
        for stored in (t for path in paths for t in tensors_in(path)):
            key, (name, plain) = stored.key, key_map(stored.key)
            if not plain:
                raise BadBackbone(f"{key} is stored in another form than the model has it in.")
            if name not in key_map.state:
                continue
            kind = DTYPES.get(stored.dtype)
            if dtype is not None and kind is not None and kind.is_floating_point:
                if dtype.itemsize < kind.itemsize:
                    raise BadBackbone(f"{key} is stored in {kind}, and loaded in {dtype}.")
            digests[name] = tensor_digest(stored.read())  # one tensor at a time is held
        for names in tied_names(self.model):
            known = next((digests[n] for n in names if n in digests), None)
            if known is None:
                raise BadBackbone(f"{names[0]} is in no weight file.")
            digests |= {n: digests.get(n, known) for n in names}
        return digest_of(digests)


def _state_of(paths: Iterable[Path]) -> list[list[Any]]:
    """Path, size, times and number of each file: other ones after it was written again."""
    out: list[list[Any]] = []
    for path in paths:
        try:
            info = path.stat()
        except OSError:
            return []
        times = (info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        out.append([os.fspath(path.resolve()), info.st_size, *times])
    return out


def _quantised(model: Any) -> bool:
    return bool(getattr(core(model), "is_quantized", False))


def _dtype(model: torch.nn.Module) -> torch.dtype:
    """Of the largest weight: some models keep small parts in float32 (BLIP-2's Q-Former)."""
    floats = [p for p in core(model).parameters() if p.is_floating_point()]
    return max(floats, key=lambda p: p.numel()).dtype if floats else torch.float32


def _stored_dtype(source: Path, paths: Iterable[Path]) -> torch.dtype | None:
    """The dtype that `dtype="auto"` loads: of the config, else of the first tensor."""
    try:
        config = read_json(source / "config.json")
        name = str(config.get("dtype") or config.get("torch_dtype") or "")
    except (UserError, ValueError, AttributeError):
        name = ""
    dtype: Any = getattr(torch, name, None) if name else None
    if isinstance(dtype, torch.dtype):
        return dtype
    for path in paths:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as f:
                kinds = {str(f.get_slice(key).get_dtype()) for key in f.keys()}
            named = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
            return next((named[k] for k in sorted(kinds) if k in named), None)
    return None


# -- the fingerprint of errata 0.1 ----------------------------------------------------------------


def former_fingerprint(
    config: Mapping[str, Any], model: torch.nn.Module, source: Path | None
) -> str:
    """sha256 over the config and the tensors, of the weight files if there are any.

    What patches, states and runs of errata 0.1 hold: stored names and dtypes count, the tokenizer
    does not. docs/adr/0007-model-identity.md
    """
    h = hashlib.sha256(json.dumps(_stable(config), sort_keys=True, default=str).encode())
    stored = weight_files(source) if source is not None else []
    for path in stored:
        if path.suffix == ".safetensors":
            _hash_tensors(h, path)
        else:
            _hash_bytes(h, path)
    if not stored:
        _hash_memory(h, model)
    return h.hexdigest()


def weight_files(source: Path) -> list[Path]:
    """The weight files that transformers would load, in order of name."""
    for single, ending in (("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin")):
        index = source / f"{single}.index.json"
        if (source / single).is_file():
            return [source / single]
        if index.is_file():
            shards = read_json(index)["weight_map"].values()
            paths = [source / name for name in sorted(set(shards))]
        else:
            paths = sorted(source.glob(f"*.{ending}")) if ending == "safetensors" else []
        if paths and all(path.is_file() for path in paths):
            return paths
    return []


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _stable(v) for k, v in value.items() if k not in _VOLATILE}
    return value


def _hash_tensors(h: Any, path: Path) -> None:
    with safe_open(path, framework="pt") as f:
        for key in sorted(f.keys()):
            _hash_tensor(h, key, f.get_tensor(key))


def _hash_bytes(h: Any, path: Path) -> None:
    h.update(path.name.encode())
    with path.open("rb") as f:
        while chunk := f.read(1 << 26):
            h.update(chunk)


def _hash_memory(h: Any, model: torch.nn.Module) -> None:
    pointers: set[int] = set()
    for key, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() and tensor.data_ptr() in pointers:
            continue
        pointers.add(tensor.data_ptr())
        _hash_tensor(h, key, tensor)


def _hash_tensor(h: Any, key: str, tensor: Tensor) -> None:
    h.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().flatten()
    for chunk in torch.split(flat.view(torch.uint8), 1 << 26):
        h.update(chunk.numpy().tobytes())
