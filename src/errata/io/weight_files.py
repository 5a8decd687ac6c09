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
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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
_COPIED, _CHANGED = 1 << 22, 1 << 18


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

    def read(self) -> Tensor:
        """The whole tensor. Files are read, not mapped, so that no more is held in memory."""
        if self.value is not None:
            return self.value
        with self.path.open("rb") as file:
            file.seek(self.start)
            return self._numbers(file, self.shape)

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
                yield first, self._numbers(file, (count, *self.shape[1:]))

    def _numbers(self, file: BinaryIO, shape: tuple[int, ...]) -> Tensor:
        """The next numbers of a file, read into the memory of the tensor itself."""
        if self.dtype not in DTYPES:
            raise BadBackbone(f"{self.path}: {self.key} is stored as {self.dtype}, unknown here.")
        numbers = torch.empty(shape, dtype=DTYPES[self.dtype])
        memory = numbers.view(-1).view(torch.uint8).numpy()
        if file.readinto(memory) != memory.size:  # type: ignore[attr-defined]
            raise BadBackbone(f"{self.path} is cut off. Download the model again.")
        return numbers

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


def tensors_in(path: Path) -> list[StoredTensor]:
    """The tensors of a weight file, in the order in which they lie in it. Raises BadBackbone."""
    if path.suffix != ".safetensors":
        return _of_bin(path)
    try:
        with safe_open(path, framework="pt") as f:  # checks the header and the length
            f.keys()
    except (SafetensorError, OSError) as e:
        raise BadBackbone(f"{path} is damaged ({e}). Download the model again.") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    start = 8 + length
    tensors = [
        StoredTensor(
            key,
            entry["dtype"],
            tuple(entry["shape"]),
            path,
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for key, entry in header.items()
        if key != "__metadata__"
    ]
    return sorted(tensors, key=lambda t: (t.start, t.stop))


def load_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` file, mapped from the disk; nothing else in it is read.

    Raises BadBackbone for a file that holds anything but tensors.
    """
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of torch before 1.6 cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a damaged or hostile pickle leads to
        raise BadBackbone(
            f"{path} cannot be read as a file of tensors alone ({type(e).__name__}). Download it "
            "again, or save the model with save_pretrained, which writes safetensors."
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise BadBackbone(
            f"{path} holds other things than tensors. Save the model with save_pretrained."
        )
    return {str(k): v for k, v in loaded.items()}


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
