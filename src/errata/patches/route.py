"""Route: a memory of edits behind a scope. A question is answered by one of them, or by none.

The memory holds a key and a correction per edit. Once per question, before there is an answer, the
scope (`errata.core.model.scope`) compares the question with all keys: the nearest edit is the one
that the question may belong to, and its score says whether it does. A scope that reads a block of
the model decides from hidden states that no correction of the memory has changed: where one acts
below that block, the prompt first runs up to there without it.

A correction is any patch that acts at sites. Of a memory of thousands only the chosen ones are
live, one per row of the batch.

- hard switch: the correction's value if the scope opens, else the base's value, bit for bit.
- soft switch, for corrections at the head alone: log((1 - s) p_base + s p_correction) in place of
  the logits, with the score s in [0, 1]; there is no threshold. It mixes next-token distributions,
  not whole answers, and the result are log-probabilities. Where s underflows to 0, the logits are
  the base's, bit for bit. A model that caps its logits after its head caps these too.

A correction may differ between questions that ask for the edited fact and questions that follow
from it (`errata.patches.two_ways`); the scope says which a question is.

An edit with the key of an earlier one replaces it. Taking edits out leaves the others as they were.

Shapes: B rows, T columns, K edits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from errata.core import patch as core
from errata.core.errors import BadPatch
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import by_columns
from errata.core.model.recorder import PromptStates
from errata.core.model.scope import BlockScope, PromptScope, Scope, scope_of, unpack_scope
from errata.core.patch import Patch, inherit
from errata.networks.reader import prompt_columns
from errata.patches._corrections import pack_alike, singles, together, unpack_alike
from errata.patches.two_ways import in_way

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.types import Prompt

Switch = Literal["hard", "soft"]
R = TypeVar("R", bound="Route")
QUESTION = "question"  # where the decision of a scope that reads the prompt itself is kept


@dataclass(frozen=True)
class Chosen:
    """The corrections that a batch of questions needs, as a row patch.

    parts: what runs in its place. sites: where it acts.
    """

    patch: Patch
    parts: tuple[Patch, ...]
    sites: frozenset[str]

    @classmethod
    def of(cls, corrections: Sequence[Patch]) -> Chosen:
        one = together(corrections)
        parts = tuple(p for p in one.acting() if isinstance(p, Patch))
        return cls(one, parts, frozenset(s for p in parts for s in p.sites))


#: [B] the nearest edit, [B] its score, [B] whether it acts, [B] its row in the chosen ones, these
Decision = tuple[Tensor, Tensor, Tensor, Tensor, Chosen | None]


class Route(Patch):
    """A memory: one key and one correction per edit.

    keys [K, e]; owner [K]: the batch row (ctx.rows) that may use each edit, None = every row.
    """

    decides = True
    one_when_live = True
    keys: Tensor
    owner: Tensor | None

    def __init__(
        self,
        scope: Scope,
        keys: Tensor,
        corrections: Sequence[Patch],
        *,
        switch: Switch = "hard",
        owner: Tensor | None = None,
    ) -> None:
        assert len(keys) == len(corrections) > 0, "one key per correction"
        different = {(p.sites, p.observes) for p in corrections}
        changed = {s for sites, observes in different for s in sites - observes}
        read = {scope.site} - {""}
        super().__init__(read.union(*(sites for sites, _ in different)))
        self.observes = frozenset(self.sites - changed)
        # else the last block runs otherwise than in the unedited model, and bits differ
        self.by_column = by_columns(corrections)
        assert switch == "hard" or changed == {"head"}, (
            "a soft switch mixes next-token distributions, so its corrections act at the head alone"
        )
        self.scope, self.corrections, self.switch = scope, tuple(corrections), switch
        self.register_buffer("keys", keys.detach())
        self.register_buffer("owner", owner)
        if read and min(map(_height, self.sites)) < _height(scope.site):
            self.ahead = scope.site

    @property
    def reads_prompts(self) -> bool:
        return isinstance(self.scope, PromptScope)

    # -- deciding -----------------------------------------------------------------------------

    def read(self, prompts: Sequence[Prompt], model: Backbone, ctx: HookContext) -> None:
        if isinstance(self.scope, PromptScope):
            scope = self.scope
            ctx.decide(
                self, QUESTION, lambda: self._decide_from_prompts(scope, prompts, model, ctx)
            )

    @torch.no_grad()
    def _decide_from_prompts(
        self, scope: PromptScope, prompts: Sequence[Prompt], model: Backbone, ctx: HookContext
    ) -> Decision:
        with model.unedited():
            query = scope.query(model, [p.alone for p in prompts])
        rows = ctx.rows if ctx.rows is not None else torch.arange(len(prompts))
        return self._decided(query, rows)

    def decision(self, x: Tensor, ctx: HookContext) -> Decision:
        """The decision for a batch; x, the input of the scope's block, is read at prefill only."""
        site = self.scope.site or QUESTION
        if isinstance(self.scope, PromptScope) and (id(self), site) not in ctx.memo:
            raise BadPatch(
                f"the scope '{self.scope.name}' reads the prompt itself, and this call of the "
                "model does not pass it on. Ask through backbone.ask or errata.ask."
            )
        decided: Decision = ctx.decide(self, site, lambda: self._decide_at_block(x, ctx))
        return decided

    def _decide_at_block(self, x: Tensor, ctx: HookContext) -> Decision:
        assert isinstance(self.scope, BlockScope)
        last = ctx.last_prompt(x, self)
        mask = prompt_columns(ctx, x.shape[1]).to(x.device)
        query = self.scope.query(PromptStates(x.float(), mask, last.float()))
        return self._decided(query, ctx.rows_of(self.scope.site, x))

    def _decided(self, query: Tensor, rows: Tensor) -> Decision:
        """The nearest edits, and the corrections of those that act."""
        own = None
        if self.owner is not None:
            own = self.owner == rows.to(self.owner.device)[:, None]
        entry_B, score_B = self.scope.nearest(query.to(self.keys.device), self.keys, own)
        if self.switch == "soft":
            score_B = score_B.clamp(min=0.0)  # -inf: a row without an edit
            acts_B = torch.ones_like(entry_B, dtype=torch.bool)
        else:
            acts_B = self.scope.opens(score_B) & score_B.isfinite()
        way_B = self.scope.way(query.to(self.keys.device), self.keys[entry_B])
        wanted = list(zip(entry_B.tolist(), way_B.tolist(), strict=True))
        used = sorted({w for w, acts in zip(wanted, acts_B.tolist(), strict=True) if acts})
        place = {w: n for n, w in enumerate(used)}
        place_B = torch.tensor([place.get(w, 0) for w in wanted], device=entry_B.device)
        chosen = Chosen.of([in_way(self.corrections[i], n) for i, n in used]) if used else None
        return entry_B, score_B, acts_B, place_B, chosen

    # -- acting -------------------------------------------------------------------------------

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        if site == self.scope.site:
            self.decision(x, ctx)
        return self._acted(site, x, x, ctx, lambda p, a, b, c: p.before(site, b, c))

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        return self._acted(site, x, y, ctx, lambda p, a, b, c: p.at(site, a, b, c))

    def _acted(
        self,
        site: str,
        x: Tensor,
        y: Tensor,
        ctx: HookContext,
        run: Callable[[Patch, Tensor, Tensor, HookContext], Tensor],
    ) -> Tensor:
        """y with the chosen correction of each row; y itself where no row has one."""
        if ctx.dry_run:
            return y
        _, score_B, acts_B, place_B, chosen = self.decision(x, ctx)
        if chosen is None or site not in chosen.sites:
            return y
        inner, new = replace(ctx, rows=place_B), y
        for part in chosen.parts:
            if site in part.sites:
                new = run(part, x, new, inner)
        if new is y or site in self.observes:
            return y
        if self.switch == "soft":
            return mixed(y, new, score_B)
        acts = replace(ctx, rows=acts_B).rows_of(site, y)
        return torch.where(acts[:, None, None], new, y)

    # -- combining and storing ------------------------------------------------------------------

    def keep(self, index: Sequence[int]) -> Self | None:
        if len(self.edits) != len(self.keys) or self.owner is not None or not len(index):
            return None
        part = type(self)(
            self.scope, self.keys[list(index)], [self.corrections[i] for i in index],
            switch=self.switch,
        )  # fmt: skip
        return part.requires_grad_(False).with_header(self.header, [self.edits[i] for i in index])

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """One memory, without the edits that a later patch has the keys of."""
        one = _joined(patches, None)
        if one is None:
            return None
        one = inherit(one, patches)
        left: list[int] = []
        start = 0
        for at, patch in enumerate(patches):
            gone = torch.zeros(len(patch.keys), dtype=torch.bool, device=patch.keys.device)
            for other in patches[at + 1 :]:
                gone |= patch.scope.replaced(patch.keys, other.keys)
            left += [start + i for i in (~gone).nonzero()[:, 0].tolist()]
            start += len(patch.keys)
        return one if len(left) == start else one.keep(left) or one

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        """One memory in which every edit belongs to one row."""
        sizes = torch.tensor([len(p.keys) for p in patches])
        owner = torch.arange(len(patches)).repeat_interleave(sizes)
        one = _joined(patches, owner.to(patches[0].keys.device))
        if one is None:
            return None
        one.rows = len(patches)
        return one.requires_grad_(False)

    def site_of(self, tensor: str) -> str:
        return self.scope.site

    def to_devices(self, device_of: Callable[[str], torch.device]) -> None:
        super().to_devices(device_of)
        self.scope.to(device_of(self.scope.site))
        for correction in self.corrections:
            correction.to_devices(device_of)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.owner is None, "a route with rows is made when it is used, and is never saved"
        groups, tensors = pack_alike(self.corrections)
        settings = {"scope": self.scope.pack(), "switch": self.switch, "corrections": groups}
        return settings, {f"{self.scope.site or QUESTION}/keys": self.keys, **tensors}

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Raises MissingState where the state of the scope is not on this machine."""
        from errata.io import states

        if "layout" in settings:
            return cls._of_0_2(settings, tensors)
        scope = unpack_scope(settings["scope"], states.find)
        keys = tensors[f"{scope.site or QUESTION}/keys"]
        corrections = unpack_alike(settings["corrections"], tensors)
        return cls(scope, keys, corrections, switch=settings["switch"])

    @classmethod
    def _of_0_2(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """A route as errata wrote it when SERAC's was the only scope: with a row patch."""
        from errata.io import states

        layout = settings["layout"]
        scope = scope_of(
            "trained", states.find(str(layout["state"])),
            layer=int(layout["site"].split(".")[1]), threshold=layout["threshold"],
        )  # fmt: skip
        inner = {k.removeprefix("branch/"): v for k, v in tensors.items() if k[:7] == "branch/"}
        branch = core.unpack(settings["branch"], inner)
        keys = tensors[f"{layout['site']}/keys"]
        return cls(scope, keys, singles(branch), switch=layout["switch"])


def _height(site: str) -> float:
    """How late in a forward a site is: the number of its text block; below the blocks, above."""
    if site.startswith("text."):
        return int(site.split(".")[1])
    return torch.inf if site in ("final_norm", "head") else -1


def mixed(base_BTV: Tensor, other_BTV: Tensor, share_B: Tensor) -> Tensor:
    """log((1 - s) softmax(base) + s softmax(other)); rows with s = 0 are `base` bit for bit."""
    s = share_B.to(base_BTV.device)[:, None, None]
    one = torch.log1p(-s) + base_BTV.float().log_softmax(-1)
    two = torch.log(s) + other_BTV.float().log_softmax(-1)
    return torch.where(s > 0, torch.logaddexp(one, two).to(base_BTV.dtype), base_BTV)


def _joined(patches: Sequence[R], owner: Tensor | None) -> R | None:
    """One memory of all edits; None if scopes or switches differ, or one has rows."""
    first = patches[0]
    alike = len({(p.scope.form, p.switch) for p in patches}) == 1
    if not alike or any(p.owner is not None for p in patches):
        return None
    keys = first.scope.join([p.keys for p in patches])
    corrections = [c for p in patches for c in p.corrections]
    return type(first)(first.scope, keys, corrections, switch=first.switch, owner=owner)
