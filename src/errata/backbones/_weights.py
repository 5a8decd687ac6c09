"""The weight files of a model: their folder, load errors, and the fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from errata.core.errors import BadBackbone

_VOLATILE = (
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "transformers_version",
    "_attn_implementation_autoset",
)


def bundled(name: str) -> str:
    """The folder of a model that ships with errata. Raises BadBackbone when it is not there."""
    folder = files("errata") / "assets" / name
    if not folder.is_dir():
        raise BadBackbone(
            f"the bundled model '{name}' is not in this installation. Install errata again."
        )
    return os.fspath(Path(str(folder)))


@contextmanager
def load_errors(name: str, kind: str, offered: Iterable[str]) -> Iterator[None]:
    """An error of transformers inside becomes BadBackbone: `name` cannot be loaded as a `kind`."""
    try:
        yield
    except (OSError, ValueError, ImportError) as e:
        reason = str(e).strip().splitlines()[0]
        raise BadBackbone(
            f"cannot load '{name}' as a {kind}: {reason} Give a bundled name "
            f"({', '.join(offered)}), a folder with config.json, or a hub id (offline: download "
            "it first)."
        ) from None


def folder(name: str, revision: str | None, commit: str | None) -> Path | None:
    """The folder with the files that `from_pretrained(name)` read: itself, or a hub snapshot.

    `commit`: the one that transformers resolved `revision` to. None: not found on this machine.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=commit or revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def fingerprint(config: Mapping[str, Any], model: torch.nn.Module, source: Path | None) -> str:
    """sha256 over the config and the tensors, of the weight files if there are any.

    Files have their own dtype, so the load dtype does not matter; without files it does.
    """
    h = hashlib.sha256(json.dumps(_stable(config), sort_keys=True, default=str).encode())
    stored = _files(source) if source is not None else []
    for path in stored:
        if path.suffix == ".safetensors":
            _hash_tensors(h, path)
        else:
            _hash_bytes(h, path)
    if not stored:
        _hash_memory(h, model)
    return h.hexdigest()


def _files(source: Path) -> list[Path]:
    """The weight files that transformers would load, in order of name."""
    for single, ending in (("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin")):
        index = source / f"{single}.index.json"
        if (source / single).is_file():
            return [source / single]
        if index.is_file():
            shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
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
