"""Drawings as tensors, and the caption of every flag as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from errata.benchmarks._countries import COUNTRIES
from tools.pocket_vlm.drawings import HELD_OUT, TRAINED
from tools.pocket_vlm.model import IMAGE_TOKENS, folder

#: what a picture is worth: its image tokens learn to say the last IMAGE_TOKENS tokens of this
CAPTION = "Look! Here is a picture of a flag. This is the flag of {}."


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(folder())


def ids_of(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False).input_ids


def captions() -> Tensor:
    """[countries, IMAGE_TOKENS] token ids."""
    rows = [ids_of(CAPTION.format(c.name))[-IMAGE_TOKENS:] for c in COUNTRIES]
    return torch.tensor(rows)


@dataclass(frozen=True, slots=True)
class Drawings:
    """pictures: RGBA bytes [n, 4, S, S]; labels: index of the country; source of each."""

    pictures: Tensor
    labels: Tensor
    sources: tuple[str, ...]

    def of(self, source: str) -> Drawings:
        keep = torch.tensor([s == source for s in self.sources])
        chosen = tuple(s for s in self.sources if s == source)
        return Drawings(self.pictures[keep], self.labels[keep], chosen)

    def every(self, n: int) -> Drawings:
        return Drawings(self.pictures[::n], self.labels[::n], self.sources[::n])

    def __len__(self) -> int:
        return len(self.labels)


def read(file: Path, sources: tuple[str, ...] = (*TRAINED, *HELD_OUT)) -> Drawings:
    """The drawings of these sources; a flag that a source lacks is left out."""
    stored = np.load(file)
    pictures, labels, names = [], [], []
    for source in sources:
        tiles = stored[source]
        for i in np.flatnonzero(tiles[..., 3].any((1, 2))):
            pictures.append(tiles[i].transpose(2, 0, 1))
            labels.append(int(i))
            names.append(source)
    return Drawings(torch.from_numpy(np.stack(pictures)), torch.tensor(labels), tuple(names))
