"""Groups of tokens of a batch, shared by analyses that compare modalities.

Shapes: B rows, T columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.model.batch import Batch


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """Masks [B, T]; every real column is in exactly one.

    begin: the first text token (BOS if the family has one), which gets much attention for every
    question. visual: image tokens. text: the prompt's other text tokens, without the last. last:
    the last prompt token. answer: the tokens behind the prompt.
    """

    begin: Tensor
    visual: Tensor
    text: Tensor
    last: Tensor
    answer: Tensor

    @classmethod
    def of(cls, batch: Batch) -> TokenGroups:
        real_BT, visual_BT = batch.mask.bool(), batch.vision.bool()
        columns = torch.arange(real_BT.shape[1], device=real_BT.device)
        prompt_BT = real_BT & (columns < batch.lengths[:, None])
        last_BT = prompt_BT & (columns == batch.lengths[:, None] - 1)
        others_BT = prompt_BT & ~visual_BT & ~last_BT
        begin_BT = others_BT & (others_BT.cumsum(1) == 1)
        return cls(
            begin_BT, visual_BT & prompt_BT, others_BT & ~begin_BT, last_BT, real_BT & ~prompt_BT
        )
