"""Small attention networks that read hidden states of the frozen backbone (SERAC's two networks).

Float32 whatever the backbone's dtype. Plain modules: their inputs are arguments, they hold no
reference to a model.

Shapes: B rows, T columns, d the backbone's width, w the network's own, S slots, m columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from errata.core.hooks.context import HookContext


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and FFN: x [B, m, w] reads z [B, S, w] where mask [B, S] is true."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.heads = heads
        self.norm_x, self.norm_z, self.norm_f = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        z = self.norm_z(z)
        q, k, v = (
            self._split(self.q(self.norm_x(x))),
            self._split(self.k(z)),
            self._split(self.v(z)),
        )
        read = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.o(read.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm_f(x))))
        return y

    def _split(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        return x.reshape(b, n, self.heads, w // self.heads).transpose(1, 2)


class Reader(nn.Module):
    """A prompt as S vectors: learned queries, plus the state of the last prompt token, attend to
    all tokens of the prompt, image and text alike.
    """

    def __init__(self, into: int, width: int, *, slots: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(into)
        self.tokens, self.last = nn.Linear(into, width), nn.Linear(into, width)
        self.questions = nn.Parameter(torch.zeros(slots, width))
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(blocks))

    def forward(self, stream: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """stream [B, T, d], mask [B, T] of the prompt's columns, last [B, d] -> [B, S, w]."""
        z = self.tokens(self.norm(stream))
        x: Tensor = self.questions + self.last(self.norm(last))[:, None]
        for block in self.blocks:
            x = block(x, z, mask)
        return x


def initialise(net: nn.Module, rng: torch.Generator) -> None:
    """Weights N(0, 1 / fan in), learned vectors N(0, 1), biases zero; norms stay as they are."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "norm" in name:
                continue
            if name.endswith("bias"):
                p.zero_()
            else:
                scale = p.shape[-1] ** -0.5 if name.endswith("weight") else 1.0
                p.copy_(torch.randn(p.shape, generator=rng) * scale)


def prompt_columns(ctx: HookContext, columns: int) -> Tensor:
    """[B, T] True for the real columns of each row's prompt: never those of an answer."""
    assert ctx.lengths is not None
    prompt = torch.arange(columns, device=ctx.lengths.device) < ctx.lengths[:, None]
    return prompt if ctx.mask is None else prompt & ctx.mask[:, :columns].bool()
