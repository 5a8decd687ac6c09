"""Encoders whose output for a picture depends on the other pictures of a batch.

A processor pads the pictures of a batch to one size. Most towers mask the padding. An encoder that
quantises a picture with convolutions has no mask: each prompt's pictures are then encoded alone.

Shapes: N pictures of a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: names of an encoder that turns a picture into entries of a codebook
_QUANTISERS = ("vqmodel", "vq_model", "vqgan")


@contextmanager
def row_by_row(model: nn.Module, rows: Sequence[int]) -> Iterator[None]:
    """Inside, a model that quantises padded pictures encodes those of each row apart.

    rows: the row of each picture. Pictures of one row are padded to one size, as the processor
    does.
    """
    owner: Any = next((m for m in model.modules() if _reads_padding(m)), None)
    if owner is None or len(set(rows)) < 2:
        yield
        return
    original = owner.get_image_features

    def encode(pixel_values: Tensor, image_sizes: Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs = []
        for row in dict.fromkeys(rows):
            at = torch.tensor([i for i, r in enumerate(rows) if r == row])
            sizes = image_sizes[at.to(image_sizes.device)]
            height, width = sizes.amax(0).tolist()
            pixels = pixel_values[at.to(pixel_values.device), ..., :height, :width]
            outputs.append(original(pixels, sizes, *args, **kwargs))
        out = outputs[0]
        out.pooler_output = tuple(part for o in outputs for part in o.pooler_output)
        return out

    owner.get_image_features = encode
    try:
        yield
    finally:
        del owner.get_image_features


def _reads_padding(module: Any) -> bool:
    features = getattr(type(module), "get_image_features", None)
    return (
        features is not None
        and any(isinstance(getattr(module, name, None), nn.Module) for name in _QUANTISERS)
        and "image_sizes" in inspect.signature(features).parameters
    )


def read_both_ways(tower: nn.Module | None) -> None:
    """Makes the attention of a tower that masks padding bidirectional without padding, too.

    Phi-4-multimodal's tower in transformers 5.23 marks its attention as causal, which the kernels
    take for true where no mask is given: the same picture was read in two ways.
    """
    if tower is None:
        return
    if not any("mask" in name for name in inspect.signature(type(tower).forward).parameters):
        return
    for module in tower.modules():
        if getattr(module, "is_causal", False):
            vars(module)["is_causal"] = False
