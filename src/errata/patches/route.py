"""Route: a scope test that switches to another patch or to a small model (SERAC, WISE).

The memory holds one key per edit. At prefill a network reads the prompt, image and text alike, from
the hidden states that enter one block, and makes a query. The nearest key is the edit that the
question may be about; similarity = exp(-|query - key|^2) (as in SERAC, Mitchell et al. 2022) is
compared with a threshold. This is decided once per question, before there is an answer. The patch
acts nowhere below that block, so it does not change the hidden states that it decides from.

`branch` is a row patch with one row per key: row i holds edit i. It may be deltas or neurons above
the block of the decision, or a small model at the head (`counterfactual`).

- hard switch: the branch's value if similarity > threshold, else the base's value, bit for bit.
- soft switch, for a branch at the head only: log((1 - s) p_base + s p_branch) in place of the
  logits, with s the similarity; there is no threshold. It mixes next-token distributions, not whole
  answers, and the result are log-probabilities. Where s underflows to 0, the logits are the base's,
  bit for bit. A model that caps its logits after its head caps these too.

Shapes: B rows, T columns, K keys, e their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from errata.core import patch as core
from errata.core.hooks.context import HookContext
from errata.core.patch import Patch, inherit
from errata.networks.reader import Reader, prompt_columns
from errata.networks.trained import trained

if TYPE_CHECKING:
    from errata.core.state import State

Switch = Literal["hard", "soft"]
R = TypeVar("R", bound="Route")


@dataclass(frozen=True, slots=True)
class ScopeSettings:
    """site: the stream `text.{i}.in` that the scope is decided from. state: hash of the state with
    the trained scope (meta `scope`, tensors `scope.*`); only routes of one state can be merged.
    """

    site: str
    switch: Switch = "hard"
    threshold: float = 0.5
    state: str = ""


class Scope(nn.Module):
    """Embeds prompts: a question lies near the edits whose scope it is in.

    Edits and questions share a reader but have separate projections, because being in scope is
    not symmetric (what follows from a name is in the scope of the name, not the reverse).
    """

    def __init__(
        self,
        into: int,
        width: int,
        *,
        slots: int = 8,
        blocks: int = 2,
        heads: int = 4,
        key: int = 64,
    ) -> None:
        super().__init__()
        self.settings = {
            "into": into, "width": width, "slots": slots, "blocks": blocks, "heads": heads,
            "key": key,
        }  # fmt: skip
        self.reader = Reader(into, width, slots=slots, blocks=blocks, heads=heads)
        self.norm = nn.LayerNorm(slots * width)
        self.of_query = nn.Linear(slots * width, key)
        self.of_edit = nn.Linear(slots * width, key)

    @classmethod
    def of(cls, state: State) -> Scope:
        """The trained network of a state."""
        return trained(state, lambda: cls(**state.meta["scope"]), "scope.")

    def start(self) -> None:
        """Before training an edit lies at its own prompt, other prompts about 2^0.5 away."""
        with torch.no_grad():
            self.of_query.weight.mul_(self.of_query.out_features**-0.5)
        self.of_edit.load_state_dict(self.of_query.state_dict())

    def forward(self, stream: Tensor, mask: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(as a question [B, e], as an edit [B, e]); arguments as `Reader`'s."""
        vector = self.norm(self.reader(stream.float(), mask, last.float()).flatten(1))
        return self.of_query(vector), self.of_edit(vector)


class Route(Patch):
    """A memory of keys, and a branch with one row per key.

    keys [K, e]; owner [K]: the batch row (ctx.rows) that may use each key, None = every row.
    """

    decides = True
    one_when_live = True
    keys: Tensor
    owner: Tensor | None

    def __init__(
        self,
        scope: Scope,
        keys: Tensor,
        branch: Patch,
        layout: ScopeSettings,
        owner: Tensor | None = None,
    ) -> None:
        super().__init__((layout.site, *branch.sites))
        assert layout.site.endswith(".in"), f"a route decides on a block's input: {layout.site}"
        self.observes = branch.observes
        assert layout.switch == "hard" or branch.sites - self.observes == {"head"}, (
            "a soft switch mixes next-token distributions, so its branch acts at the head alone"
        )
        self.scope, self.branch, self.layout = scope, branch, layout
        self.register_buffer("keys", keys.detach().float())
        self.register_buffer("owner", owner)

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        if site == self.layout.site:
            self.decision(x, ctx)
        if site in self.observes or site not in self.branch.sites:
            return x
        entry_B, similarity_B = self.decision(x, ctx)
        new = self.branch.before(site, x, replace(ctx, rows=entry_B))
        return x if new is x else torch.where(self._open(similarity_B, x), new, x)

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if site in self.observes:
            self.branch.at(site, x, y, ctx)
            return y
        if site not in self.branch.sites:
            return y
        entry_B, similarity_B = self.decision(x, ctx)
        new = self.branch.at(site, x, y, replace(ctx, rows=entry_B))
        if self.layout.switch == "soft":
            return mixed(y, new, similarity_B)
        return torch.where(self._open(similarity_B, y), new, y)

    def _open(self, similarity_B: Tensor, y: Tensor) -> Tensor:
        return (similarity_B > self.layout.threshold).to(y.device)[:, None, None]

    def decision(self, x: Tensor, ctx: HookContext) -> tuple[Tensor, Tensor]:
        """(entry [B] of the nearest key, similarity [B]); x is read at prefill only."""
        decided: tuple[Tensor, Tensor] = ctx.decide(
            self, self.layout.site, lambda: self._decide(x, ctx)
        )
        return decided

    def _decide(self, x: Tensor, ctx: HookContext) -> tuple[Tensor, Tensor]:
        last = ctx.last_prompt(x, self)
        query_Be, _ = self.scope(x, prompt_columns(ctx, x.shape[1]).to(x.device), last)
        rows = None if self.owner is None else ctx.rows_of(self.layout.site, x)
        return self.nearest(query_Be, rows)

    def nearest(self, query_Be: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(entry [B], similarity [B]) among the keys that row rows[b] may use."""
        gap_BK = (query_Be[:, None] - self.keys).square().sum(-1)
        if self.owner is not None:
            assert rows is not None
            gap_BK = gap_BK.masked_fill(self.owner != rows[:, None], torch.inf)
        # of equally near edits the latest: an edit of the same prompt replaces the earlier one
        rank_BK = (gap_BK.flip(1) * 1e5).round()
        entry_B = self.keys.shape[0] - 1 - rank_BK.argmin(1)
        return entry_B, torch.exp(-gap_BK.gather(1, entry_B[:, None])[:, 0])

    def keep(self, index: Sequence[int]) -> Self | None:
        branch = self.branch.keep(index)
        if branch is None or len(self.edits) != len(self.keys) or self.owner is not None:
            return None
        part = type(self)(self.scope, self.keys[list(index)], branch, self.layout)
        return part.requires_grad_(False).with_header(self.header, [self.edits[i] for i in index])

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """One memory with all keys; the nearest of them all is used."""
        one = _joined(patches, None)
        return None if one is None else inherit(one, patches)

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        """One memory in which every key belongs to one row."""
        sizes = torch.tensor([len(p.keys) for p in patches])
        owner = torch.arange(len(patches)).repeat_interleave(sizes)
        one = _joined(patches, owner.to(patches[0].keys.device))
        if one is None:
            return None
        one.rows = len(patches)
        return one.requires_grad_(False)

    def site_of(self, tensor: str) -> str:
        first, _, rest = tensor.partition(".")
        return self.branch.site_of(rest) if first == "branch" else self.layout.site

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        site = self.layout.site
        assert self.owner is None, "a route with rows is made when it is used, and is never saved"
        settings, inner = core.pack(self.branch)
        tensors = {f"{site}/keys": self.keys, **{f"branch/{k}": v for k, v in inner.items()}}
        return {"layout": asdict(self.layout), "branch": settings}, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Raises MissingState where the trained scope is not on this machine."""
        from errata.io import states

        layout = ScopeSettings(**settings["layout"])
        scope = Scope.of(states.find(layout.state))
        inner = {k.removeprefix("branch/"): v for k, v in tensors.items() if k[:7] == "branch/"}
        branch = core.unpack(settings["branch"], inner)
        return cls(scope, tensors[f"{layout.site}/keys"], branch, layout)


def mixed(base_BTV: Tensor, other_BTV: Tensor, share_B: Tensor) -> Tensor:
    """log((1 - s) softmax(base) + s softmax(other)); rows with s = 0 are `base` bit for bit."""
    s = share_B.to(base_BTV.device)[:, None, None]
    one = torch.log1p(-s) + base_BTV.float().log_softmax(-1)
    two = torch.log(s) + other_BTV.float().log_softmax(-1)
    return torch.where(s > 0, torch.logaddexp(one, two).to(base_BTV.dtype), base_BTV)


def _joined(patches: Sequence[R], owner: Tensor | None) -> R | None:
    """One route with all keys and branches; None if scopes or switches differ or one has rows."""
    first = patches[0]
    alike = len({(p.layout, type(p.branch)) for p in patches}) == 1 and first.layout.state
    if not alike or any(p.owner is not None for p in patches):
        return None
    branch = type(first.branch).batch([p.branch for p in patches])
    assert branch is not None, "branches of one trained scope have one form"
    keys = torch.cat([p.keys for p in patches])
    return type(first)(first.scope, keys, branch, first.layout, owner)
