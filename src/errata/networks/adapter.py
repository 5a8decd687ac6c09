"""The networks of the adapter shape: cross-attention to an edit, and its influence per image token.

Shapes: B rows, N chosen columns, K edits, S columns of an edit, d width of the hidden states, m
width of the network, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from errata.networks.trained import trained

if TYPE_CHECKING:
    from errata.core.state import State

Tokens = Literal["visual", "text", "all"]


class CrossAttention(nn.Module):
    """x [B, N, d], E [B, S, d] -> what is added to x [B, N, d]; zero before training.

    marks: number of learnt embeddings added to the target tokens of E by their position in the
    target; further tokens get the last one, prompt tokens none.
    """

    def __init__(self, width: int, mid: int, heads: int, marks: int) -> None:
        super().__init__()
        assert mid % heads == 0, (mid, heads)
        self.heads, self.marks = heads, marks
        if marks:
            self.mark = nn.Parameter(torch.randn(marks, width))
        self.norm_x, self.norm_e = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter, self.query = nn.Linear(width, mid), nn.Linear(mid, mid)
        self.key, self.value = nn.Linear(width, mid), nn.Linear(width, mid)
        self.leave = nn.Linear(mid, width)
        for linear in (self.enter, self.query, self.key, self.value):
            # scores of order 1 from the start: an even mean over E hides its few target tokens
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def memory(self, e_KSd: Tensor, ends_K: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [K, S, m] of edits whose last prompt tokens are at `ends_K`."""
        normed = self.norm_e(e_KSd)
        if self.marks:
            position_KS = torch.arange(e_KSd.shape[1], device=e_KSd.device) - ends_K[:, None]
            mark_KSd = self.mark[(position_KS - 1).clamp(0, self.marks - 1)]
            normed = normed + mark_KSd * (position_KS > 0)[..., None]
        return self.key(normed), self.value(normed)

    def forward(self, x_BNd: Tensor, k_BSm: Tensor, v_BSm: Tensor, real_BS: Tensor) -> Tensor:
        q = self._split(self.query(self.enter(self.norm_x(x_BNd))))
        mixed = scaled_dot_product_attention(
            q, self._split(k_BSm), self._split(v_BSm), attn_mask=real_BS[:, None, None]
        )
        out: Tensor = self.leave(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Influence(nn.Module):
    """How relevant each image token is for the prompt of an edit: logits [B, N]."""

    def __init__(self, width: int, mid: int, heads: int) -> None:
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.heads = heads
        for side in ("token", "prompt"):
            self.add_module(f"{side}_norm", nn.LayerNorm(width))
            self.add_module(f"{side}_up", nn.Linear(width, mid))
            self.add_module(f"{side}_down", nn.Linear(mid, width))

    def forward(self, x_BNd: Tensor, prompt_Bd: Tensor) -> Tensor:
        token, prompt = self._side("token", x_BNd), self._side("prompt", prompt_Bd[:, None])
        # the mean over heads of products scaled by sqrt(d / h) is one product, scaled
        scale = 1 / (math.sqrt(x_BNd.shape[-1] / self.heads) * self.heads)
        return (token * prompt).sum(-1) * scale

    def _side(self, side: str, x: Tensor) -> Tensor:
        normed = getattr(self, f"{side}_norm")(x)
        hidden = torch.relu(getattr(self, f"{side}_up")(normed))
        out: Tensor = normed + getattr(self, f"{side}_down")(hidden)
        return out


@dataclass(frozen=True, slots=True)
class AdapterSite:
    """One adapter: its site, the tokens that it changes, whether with an influence per token."""

    site: str
    tokens: Tokens
    influence: bool = False


class AdapterNetwork(nn.Module):
    """The trained part: one cross-attention per adapter, and an influence mapper for some.

    state: digest of the state that the network is from; "" while it is trained.
    """

    def __init__(
        self, places: Sequence[AdapterSite], *, width: int, mid: int, heads: int, marks: int = 0
    ) -> None:
        super().__init__()
        self.places, self.state = tuple(places), ""
        self.sizes = {"width": width, "mid": mid, "heads": heads, "marks": marks}
        self.attention = nn.ModuleList(CrossAttention(**self.sizes) for _ in places)
        self.influence = nn.ModuleDict(
            {str(i): Influence(width, mid, heads) for i, p in enumerate(places) if p.influence}
        )

    @classmethod
    def of(cls, state: State) -> AdapterNetwork:
        """The network of a state, made once and shared by all its patches."""
        s = state.meta["network"]
        net = trained(state, lambda: cls([AdapterSite(**p) for p in s["places"]], **s["sizes"]))
        net.state = state.digest()
        return net

    @property
    def settings(self) -> dict[str, Any]:
        return {"places": [asdict(p) for p in self.places], "sizes": self.sizes}

    def at(self, site: str) -> list[int]:
        """Indices of the adapters at a site: two may share one, each with its own tokens."""
        return [i for i, p in enumerate(self.places) if p.site == site]

    def mapper(self, index: int) -> Influence | None:
        """The influence mapper of an adapter, if it has one."""
        mapper = self.influence[str(index)] if str(index) in self.influence else None
        assert mapper is None or isinstance(mapper, Influence)
        return mapper
