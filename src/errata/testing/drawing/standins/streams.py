"""What the stand-ins of Ovis-U1 and BLIP3o share: blocks over text and image, and the picture.

Shapes: B rows, N image tokens, w width of the generator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

WIDTH, SIDE = 24, 4  # of the generators; image tokens of a side


class StreamBlock(nn.Module):
    """Attention over text and image; `joint`: one stream [text, image], else two."""

    def __init__(self, joint: bool) -> None:
        super().__init__()
        self.joint = joint
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.feed_forward = nn.Linear(WIDTH, WIDTH)

    def forward(self, img: Tensor, txt: Tensor | None, time_Bw: Tensor) -> Any:
        x = img if txt is None else torch.cat([txt, img], dim=1)
        h = nn.functional.layer_norm(x + time_Bw[:, None], (WIDTH,))
        x = x + self.attn(h, h, h, need_weights=False)[0]
        x = x + self.feed_forward(nn.functional.layer_norm(x, (WIDTH,)).tanh())
        if txt is None:
            return x
        return x[:, txt.shape[1] :], x[:, : txt.shape[1]]


def picture_of(x_1N3: Tensor) -> Any:
    pixels = (x_1N3[0].sigmoid().reshape(SIDE, SIDE, 3) * 255).round().numpy().astype(np.uint8)
    return Pillow.fromarray(pixels)
