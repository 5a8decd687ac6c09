"""The files that MiniGPT-4 is published in, opened without reading their tensors into memory.

Shapes: as in `names`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errata.backbones import _folders, _weights
from errata.backbones.minigpt4 import names
from errata.core.errors import BadBackbone
from errata.core.files import check_regular, exists

#: under one of these keys a training stores the weights of the model
_INSIDE = ("model", "module", "state_dict")


@dataclass(frozen=True)
class Source:
    """One tensor of a file: read when it is written.

    key: its name there. where: the file, for messages. read: called for its value.
    """

    key: str
    where: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def value(self) -> Tensor:
        """The tensor. Raises BadBackbone if it holds NaN or infinite numbers."""
        tensor = self.read()
        if not is_finite(tensor):
            raise BadBackbone(
                f"{self.where} holds NaN or infinite numbers in {self.key}. Download it again."
            )
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; extremes show it, in a fraction of the time."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def published(path: Path, option: str) -> dict[str, Source]:
    """The tensors of a `.pth` file by their names in MiniGPT-4.

    option: what the file was given as, a key of `names.FILES`. Raises BadBackbone for a file that
    is damaged, holds more than tensors and plain values, or is another one than the option names.
    """
    tensors = _torch_file(path)
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise BadBackbone(
                f"{path}: {key} is no tensor, but {type(tensor).__name__}. Give --{option} "
                f"{names.FILES[option][1]}."
            )
    full = names.full_names(tensors)
    found = {o: what for o, (sign, what) in names.FILES.items() if sign in full.values()}
    if option not in found:
        other = next(iter(found.items()), None)
        is_what = f"is {other[1]}: give it as --{other[0]}" if other else "is none of the files"
        raise BadBackbone(f"{path} {is_what}. As --{option} errata needs {names.FILES[option][1]}.")
    return {full[key]: _source(key, path, tensor) for key, tensor in tensors.items()}


def _source(key: str, path: Path, tensor: Tensor) -> Source:
    return Source(key, path, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _torch_file(path: Path) -> dict[str, Any]:
    """What a file of `torch.save` holds, by name; the tensors stay on the disk."""
    check_regular(path, BadBackbone)
    if not exists(path) or path.is_dir():
        what = "is a folder" if exists(path) else "does not exist"
        raise BadBackbone(f"{path} {what}. Give the name of a file.")
    with _reading(path):
        value: Any = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    for key in _INSIDE:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise BadBackbone(f"{path} holds no named tensors ({type(value).__name__}).")
    return dict(value)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise BadBackbone(f"{path} cannot be read ({e.strerror or type(e).__name__}).") from None
    except MemoryError:
        raise BadBackbone(f"there is not enough memory to read {path}.") from None
    except SafetensorError as e:
        raise BadBackbone(f"{path} is damaged ({_folders.reason(e)}). Download it again.") from e
    except Exception as e:  # pickle raises whatever a damaged or foreign file leads it to
        raise BadBackbone(
            f"{path} cannot be read as a file of tensors: it is damaged, or holds objects, which "
            "could run code when they are read. Download it again."
        ) from e


# -- the folder of Vicuna --------------------------------------------------------------------------


def text_model(folder: Path) -> tuple[Any, dict[str, Source]]:
    """(the configuration, the tensors by name) of a Llama folder. Raises BadBackbone."""
    from transformers import AutoConfig

    if not folder.is_dir():
        raise BadBackbone(f"{folder} is no folder. Give --vicuna the folder of the text model.")
    _folders.check(folder)
    kind = _folders.read_object(folder / "config.json").get("model_type")
    if kind != "llama":
        raise BadBackbone(
            f"{folder} holds a model of type '{kind}', not a Llama such as Vicuna or Llama 2. "
            "Give --vicuna the folder that the checkpoint was trained with."
        )
    _folders.check_weights(folder)
    with _folders.load_errors(str(folder), "text model", "its configuration"):
        config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise BadBackbone(f"{folder} is quantised. Give --vicuna the weights as they were trained.")
    shards, tensors = _TorchShards(), {}
    for path in _weights.weight_files(folder):
        tensors.update(_safetensors(path) if path.suffix == ".safetensors" else shards.all(path))
    return config, tensors


def _safetensors(path: Path) -> dict[str, Source]:
    out = {}
    with _reading(path), safe_open(path, framework="pt") as f:
        for key in f.keys():
            part = f.get_slice(key)
            shape = tuple(part.get_shape())
            # an empty slice tells the dtype by torch's name
            dtype = part[:0].dtype if shape else f.get_tensor(key).dtype
            out[key] = Source(key, path, shape, dtype, _reader(path, key))
    return out


def _reader(path: Path, key: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with _reading(path), safe_open(path, framework="pt") as f:
            tensor: Tensor = f.get_tensor(key)
            return tensor

    return read


class _TorchShards:
    """`.bin` files of one model, of which one is open at a time."""

    def __init__(self) -> None:
        self.path, self.tensors = Path(), dict[str, Any]()

    def all(self, path: Path) -> dict[str, Source]:
        self._open(path)
        return {
            key: Source(key, path, tuple(t.shape), t.dtype, partial(self._read, path, key))
            for key, t in self.tensors.items()
        }

    def _open(self, path: Path) -> None:
        if path != self.path:
            self.tensors = {}  # the former file is let go before the next is read
            self.path, self.tensors = path, _torch_file(path)

    def _read(self, path: Path, key: str) -> Tensor:
        self._open(path)
        tensor: Tensor = self.tensors[key]
        return tensor
