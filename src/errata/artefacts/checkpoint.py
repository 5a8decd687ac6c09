"""Reads and writes the weight files of a model a piece at a time, so that none is held in memory.

A safetensors file is eight bytes with the length of its header, the header as JSON (key -> dtype,
shape, place), and the numbers. What is not changed is copied byte by byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errata.backbones._weights import load_bin, weight_files
from errata.core.errors import BadBackbone
from errata.core.files import writing

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: bytes that are copied, and numbers that are changed, at once
_COPIED, _CHANGED = 1 << 23, 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a weight file: the bytes [start, stop) of a safetensors file, or a value."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int = 0
    stop: int = 0
    value: Tensor | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    def rows(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first row, rows), some at a time, in the tensor's own dtype."""
        width = max(1, self.size // max(1, self.shape[0]))
        step = max(1, _CHANGED * DTYPES[self.dtype].itemsize // width)
        with self.path.open("rb") as file:
            for first in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - first)
                if self.value is not None:
                    yield first, self.value[first : first + count]
                    continue
                file.seek(self.start + first * width)
                data = bytearray(file.read(count * width))
                yield (
                    first,
                    torch.frombuffer(data, dtype=DTYPES[self.dtype]).view(count, *self.shape[1:]),
                )

    def data(self) -> Iterator[bytes]:
        """The numbers as they are stored, a piece at a time."""
        if self.value is not None:
            for values in torch.split(self.value.detach().reshape(-1), _CHANGED):
                yield as_bytes(values)
            return
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                piece = file.read(min(left, _COPIED))
                if not piece:
                    raise BadBackbone(f"{self.path} is cut off. Download the model again.")
                left -= len(piece)
                yield piece


@dataclass(frozen=True)
class Shard:
    """One weight file. name: of the safetensors file that is written for it."""

    name: str
    path: Path

    def tensors(self) -> list[StoredTensor]:
        """In the order in which they lie in the file. Raises BadBackbone."""
        if self.path.suffix != ".safetensors":
            return _of_bin(self.path)
        try:
            with safe_open(self.path, framework="pt") as f:  # checks the header and the length
                f.keys()
        except (SafetensorError, OSError) as e:
            raise BadBackbone(f"{self.path} is damaged ({e}). Download the model again.") from None
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        start = 8 + length
        return sorted(
            (
                StoredTensor(
                    key,
                    entry["dtype"],
                    tuple(entry["shape"]),
                    self.path,
                    start + entry["data_offsets"][0],
                    start + entry["data_offsets"][1],
                )
                for key, entry in header.items()
                if key != "__metadata__"
            ),
            key=lambda t: (t.start, t.stop),
        )


def shards_of(folder: Path) -> list[Shard]:
    """The weight files that transformers would load. Raises BadBackbone where there are none."""
    paths = weight_files(folder)
    if not paths:
        raise BadBackbone(
            f"{folder} has no weight files (model.safetensors, pytorch_model.bin, or an index of "
            "several). Download the whole model, or save it with save_pretrained."
        )
    return [Shard(_new_name(path.name), path) for path in paths]


def _new_name(name: str) -> str:
    """pytorch_model-00001-of-00002.bin is written as model-00001-of-00002.safetensors."""
    stem, ending = os.path.splitext(name)
    if ending == ".safetensors":
        return name
    return f"{stem.replace('pytorch_model', 'model', 1)}.safetensors"


def _of_bin(path: Path) -> list[StoredTensor]:
    names = {v: k for k, v in DTYPES.items()}
    tensors = []
    for key, value in load_bin(path).items():
        if value.dtype not in names:
            raise BadBackbone(f"{path}: {key} is of {value.dtype}, which is not written here.")
        size = value.numel() * value.element_size()
        kind = names[value.dtype]
        tensors.append(StoredTensor(key, kind, tuple(value.shape), path, 0, size, value))
    return tensors


def as_bytes(values: Tensor) -> bytes:
    return bytes(values.contiguous().reshape(-1).view(torch.uint8).numpy())


def write_shard(
    path: Path,
    tensors: Sequence[StoredTensor],
    changed: Mapping[str, Callable[[StoredTensor], Iterator[bytes]]],
) -> None:
    """Writes a safetensors file, a piece at a time, and syncs it.

    changed: key -> what makes the new numbers of a tensor, in its dtype and order. Raises DiskFull.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for t in tensors:
        header[t.key] = {
            "dtype": t.dtype,
            "shape": list(t.shape),
            "data_offsets": [at, at + t.size],
        }
        at += t.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers start at a multiple of eight
    with writing(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for t in tensors:
            for piece in changed[t.key](t) if t.key in changed else t.data():
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        written = file.tell()
    assert written == 8 + len(text) + at, path
