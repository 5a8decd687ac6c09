"""Say: the answer is a stored one, whatever was asked.

At each answer token the next-token distribution is the stored token's. The final norm's output
there is replaced by a fixed vector, one per place in the answer, by which the head knows which
token is next: the head itself is given no columns. Behind the answer its last token is repeated,
which ends it where that is the end token.

It is no edit that anybody wants without a scope in front of it: it is the bound of what a
correction can do for the edited question, and for nothing else.

Shapes: B rows, T columns, m requested columns, V vocabulary, n tokens of an answer, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from errata.core.errors import BadPatch, MissingMask
from errata.core.hooks.context import HookContext
from errata.core.patch import Patch

NORM, HEAD = "final_norm", "head"
SURE = 60.0  # logit of the stored token; the others have its negative
MOST = 512  # longest answer


class Say(Patch):
    """Row k says answer k. ids [K, n]: padded with the last token of each answer."""

    ids: Tensor
    decides = True
    by_column = True  # the final norm runs at all columns, however few of them the last block has

    def __init__(self, ids: Tensor, *, rows: int | None = None) -> None:
        super().__init__((NORM, HEAD))
        assert ids.dim() == 2 and 0 < ids.shape[1] <= MOST, ids.shape
        self.rows = rows
        self.register_buffer("ids", ids.long())

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if site == NORM:
            place_BT = self._places(y, ctx)
            marks = _marks(self.ids.shape[1], y)
            marked = marks[place_BT.clamp(min=0)]
            return torch.where((place_BT >= 0)[..., None], marked, y)
        said_Bm, place_Bm = self._said(x, ctx)
        logits = torch.full_like(y, -SURE).scatter(-1, said_Bm[..., None], SURE)
        return torch.where((place_Bm >= 0)[..., None], logits, y)

    def _places(self, y: Tensor, ctx: HookContext) -> Tensor:
        """[B, T] which token of the answer each column predicts; -1 in front of the answer."""
        if ctx.mask is None or ctx.lengths is None:
            raise MissingMask(
                "this patch says an answer, but the model was called without an attention_mask. "
                "Pass attention_mask, or ask through backbone.ask / backbone.generate."
            )
        mask = ctx.mask.to(y.device)
        if ctx.offset:  # of a direct call, whose mask may be wider than what has run
            mask = mask[:, : ctx.offset + y.shape[1]]
        count = mask.long().cumsum(1)
        end = (ctx.lengths.to(y.device) - 1).clamp(max=mask.shape[1] - 1)[:, None]
        prompt_B = ctx.decide(self, NORM, lambda: count.gather(1, end)[:, 0])
        place: Tensor = (count - prompt_B.to(y.device)[:, None]).clamp(max=self.ids.shape[1] - 1)
        return place.masked_fill(mask == 0, -1)[:, -y.shape[1] :]

    def _said(self, x: Tensor, ctx: HookContext) -> tuple[Tensor, Tensor]:
        """([B, m] the token that comes next, [B, m] its place in the answer, -1 for none)."""
        marks = _marks(self.ids.shape[1], x)
        equal = (x[:, :, :8][:, :, None] - marks[:, :8]).abs().amax(-1) < 1e-3
        place = torch.where(equal.any(-1), equal.int().argmax(-1), -1)
        ids = self.ids.to(x.device)
        rows = ids[:1].expand(len(x), -1) if self.rows is None else ids[ctx.rows_of(HEAD, x)]
        return rows.gather(1, place.clamp(min=0)), place

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        longest = max(p.ids.shape[1] for p in patches)
        return cls(torch.cat([_padded(p.ids, longest) for p in patches]), rows=sum(
            len(p.ids) for p in patches
        )).requires_grad_(False)  # fmt: skip

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"rows": self.rows}, {f"{HEAD}/ids": self.ids}

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors[f"{HEAD}/ids"], rows=settings["rows"])

    def site_of(self, tensor: str) -> str:
        return HEAD


def _marks(count: int, like: Tensor) -> Tensor:
    """[n, d] one vector per place of an answer, which no norm puts out."""
    if like.shape[-1] < 8:
        raise BadPatch("a model of fewer than 8 features cannot say a stored answer.")
    marks = torch.zeros(count, like.shape[-1], device=like.device, dtype=like.dtype)
    marks[:, :2] = torch.tensor([4096.0, -4096.0])
    places = torch.arange(count, device=like.device)
    for digit in range(6):  # base 4, so that every dtype holds the digits exactly
        marks[:, 2 + digit] = (places // 4**digit % 4).to(like.dtype)
    return marks


def _padded(ids: Tensor, width: int) -> Tensor:
    return torch.cat([ids, ids[:, -1:].expand(-1, width - ids.shape[1])], dim=1)
