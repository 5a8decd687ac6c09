"""Prompts as whole numbers: equal for equal words or pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.core.model.scope import PromptScope
from errata.core.types import Image, Prompt
from errata.io.images import hash_image

NONE = 0  # the number of a prompt that lacks what is compared; equal to nothing


def number(*parts: str) -> int:
    """A whole number of 63 bits, above 0: the hash of some texts."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        h.update(len(data).to_bytes(8, "big") + data)
    return (int.from_bytes(h.digest()[:8], "big") >> 1) or 1


def picture(image: Image) -> str:
    """What tells a picture from others: the sha256 of its file, or of its spec."""
    return image.sha256 or hash_image(image)


def whole(prompt: Prompt) -> int:
    """Of words and pictures, in order."""
    parts = ("text " + s if isinstance(s, str) else "image " + picture(s) for s in prompt.segments)
    return number(*parts)


def padded(keys: Sequence[Tensor]) -> Tensor:
    """Keys [k, e] of several memories as those of one, filled up with `NONE`."""
    most = max(k.shape[1] for k in keys)
    pad = torch.nn.functional.pad
    return torch.cat([pad(k, (0, most - k.shape[1]), value=NONE) for k in keys])


class EqualScope(PromptScope):
    """Opens where a number of the question is one of the numbers of an edit; see `_number`."""

    def _number(self, prompt: Prompt) -> int:
        """What is compared, of one prompt; `NONE` if it has none."""
        raise NotImplementedError

    def query(self, backbone: object, prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor([[self._number(p)] for p in prompts], dtype=torch.long)

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        equal_BK = (query[:, None] == keys[None]).any(-1)
        return (equal_BK & (query != NONE)).float()

    def opens(self, score: Tensor) -> Tensor:
        return score > 0.5
