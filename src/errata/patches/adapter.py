"""Adapter: a trained network that mixes an edit's own representation into chosen tokens.

At its sites, h <- h + g * f(h, E): f is cross-attention from the stream to E, what the same site
sees when the edit (prompt and target) is put to the unedited model; g is 1, or an influence in
[0, 1] per image token. Only tokens of the prompt are rewritten: image tokens (`visual`), the text
behind the image and before the last prompt token (`text`), or both (`all`). They exist in the
prefill alone, so that decoding with a cache equals decoding without.

The network is trained once, for all edits, and lives in a state that a patch names by its hash:
patches that share it share one copy, and their union is a bank of edits. A question is
routed to the edit with the nearest gate key, once, at the gate's site, in the unedited stream;
with gate `prompt` it passes only when the cosine reaches the threshold.

Shapes: B rows, T columns, K edits in the bank, S columns of an edit, N chosen columns, d stream
width, m network width, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from errata.core.errors import MissingMask
from errata.core.hooks.context import HookContext
from errata.core.patch import Patch, inherit
from errata.patches._trained import trained

if TYPE_CHECKING:
    from errata.core.state import State

Tokens = Literal["visual", "text", "all"]


class CrossAttention(nn.Module):
    """x [B, N, d], E [B, S, d] -> what is added to x [B, N, d]; nothing before any training.

    With `marks`, the first target tokens of E carry a learnt mark of their own each, all later ones
    the last mark, the prompt none.
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
            behind_KS = torch.arange(e_KSd.shape[1], device=e_KSd.device) - ends_K[:, None]
            marked = self.mark[(behind_KS - 1).clamp(0, self.marks - 1)]
            normed = normed + marked * (behind_KS > 0)[..., None]
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
    """How much each image token bears on an edit's question: logits [B, N]."""

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
    """One adapter: its site, the tokens it rewrites, whether it weighs them by influence."""

    site: str
    tokens: Tokens
    influence: bool = False


class AdapterNetwork(nn.Module):
    """The trained part: one cross-attention per place, and an influence mapper where asked for."""

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
        """The network of a state, made once and shared by all patches that work from it."""
        s = state.meta["network"]
        net = trained(state, lambda: cls([AdapterSite(**p) for p in s["places"]], **s["sizes"]))
        net.state = state.digest()
        return net

    @property
    def settings(self) -> dict[str, Any]:
        return {"places": [asdict(p) for p in self.places], "sizes": self.sizes}

    def at(self, site: str) -> list[int]:
        """The places at a site: two adapters may share one, each with its own tokens."""
        return [i for i, p in enumerate(self.places) if p.site == site]

    def mapper(self, index: int) -> Influence | None:
        found = self.influence[str(index)] if str(index) in self.influence else None
        assert found is None or isinstance(found, Influence)
        return found


@dataclass(frozen=True, slots=True)
class Gate:
    """When an edit acts. `site` is where gate keys are compared, in the stream that no adapter has
    touched: below or at the lowest one, or further up, which takes a rehearsal of every question.

    prompt: cosine of the last prompt tokens >= threshold. none: always (keys still choose which
    edit). leaky: as published, the last token of question AND answer, which during scoring belongs
    to the gold answer; it exists to measure what that leak is worth.
    """

    kind: Literal["prompt", "none", "leaky"]
    site: str
    threshold: float = 0.0


@dataclass(frozen=True, eq=False)
class EditBank:
    """Edits: what the unedited model makes of each.

    states: per place [K, S, d], zeros behind lengths [K]. ends: [K] column of the last prompt
    token. keys: [K, d] gate keys. owner: [K] row that the edit belongs to, 0 without rows.
    """

    states: tuple[Tensor, ...]
    keys: Tensor
    lengths: Tensor
    ends: Tensor
    owner: Tensor

    @classmethod
    def union(cls, banks: Sequence[EditBank], owners: Sequence[Tensor]) -> EditBank:
        """All edits of all banks; owners[i] are the rows of those of bank i."""
        longest = max(b.states[0].shape[1] for b in banks)

        def wide(x: Tensor) -> Tensor:
            return nn.functional.pad(x, (0, 0, 0, longest - x.shape[1]))

        places = zip(*(b.states for b in banks), strict=True)
        return cls(
            tuple(torch.cat([wide(x) for x in place]) for place in places),
            torch.cat([b.keys for b in banks]),
            torch.cat([b.lengths for b in banks]),
            torch.cat([b.ends for b in banks]),
            torch.cat(list(owners)),
        )


class Adapter(Patch):
    """A bank of edits read by one trained network, which many patches share."""

    decides = True
    one_when_live = True
    keys: Tensor
    lengths: Tensor
    ends: Tensor
    owner: Tensor

    def __init__(
        self, network: AdapterNetwork, bank: EditBank, gate: Gate, *, rows: int | None = None
    ):
        super().__init__((*(p.site for p in network.places), gate.site))
        self.network, self.gate, self.rows = network, gate, rows
        blocks = [int(p.site.split(".")[1]) for p in network.places]
        if int(gate.site.split(".")[1]) > min(blocks):
            self.ahead = gate.site
        # a row with one edit and no gate has nothing left to decide
        self.causal = gate.kind == "none" and len(set(bank.owner.tolist())) == len(bank.owner)
        for i, states in enumerate(bank.states):
            self.register_buffer(f"states_{i}", states)
        for name in ("keys", "lengths", "ends", "owner"):
            self.register_buffer(name, getattr(bank, name))

    @property
    def bank(self) -> EditBank:
        states = tuple(getattr(self, f"states_{i}") for i in range(len(self.network.places)))
        return EditBank(states, self.keys, self.lengths, self.ends, self.owner)

    # -- acting -------------------------------------------------------------------------------

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if ctx.prefilled:
            return y
        if site == self.gate.site:
            ctx.decide(self, site, lambda: self._route(y, ctx))
        for i in () if ctx.dry_run else self.network.at(site):
            y = self._rewritten(i, y, ctx)
        return y

    def _rewritten(self, i: int, y: Tensor, ctx: HookContext) -> Tensor:
        """y with what the adapter of place i makes of its tokens."""
        chosen_B, open_B = ctx.memo[id(self), self.gate.site]
        wanted_BT = _wanted(self.network.places[i].tokens, ctx, y, self)
        count = int(wanted_BT.sum(1).max())
        if not count:
            return y
        columns_BN = torch.argsort(wanted_BT.int(), dim=1, descending=True, stable=True)[:, :count]
        index = columns_BN[..., None].expand(-1, -1, y.shape[-1])
        old_BNd = y.gather(1, index)
        change_BNd = self._changes(i, old_BNd.float(), chosen_B, columns_BN, ctx)
        new_BNd = old_BNd + change_BNd.to(y.dtype)
        live_BN = wanted_BT.gather(1, columns_BN) & open_B.to(y.device)[:, None]
        return y.scatter(1, index, torch.where(live_BN[..., None], new_BNd, old_BNd))

    def _route(self, y: Tensor, ctx: HookContext) -> tuple[Tensor, Tensor]:
        """[B] the edit that each row is routed to, [B] whether the gate lets it act."""
        if self.gate.kind == "leaky":
            state_Bd = _last_real(y, ctx, self)
        else:
            state_Bd = ctx.last_prompt(y, self)
        near_BK = cosine_similarity(state_Bd.float()[:, None], self.keys[None], dim=-1)
        if self.rows is not None:
            foreign = self.owner[None] != ctx.rows_of(self.gate.site, y)[:, None]
            near_BK = near_BK.masked_fill(foreign, -torch.inf)
        # of equally near edits the latest: a fact told again is the one in force
        chosen_B = self.owner.shape[0] - 1 - (near_BK * 1e5).round().flip(1).argmax(1)
        nearest_B = near_BK.gather(1, chosen_B[:, None])[:, 0]
        least = -torch.inf if self.gate.kind == "none" else self.gate.threshold
        return chosen_B, (nearest_B >= least) & nearest_B.isfinite()

    def _changes(
        self, i: int, x_BNd: Tensor, chosen_B: Tensor, columns_BN: Tensor, ctx: HookContext
    ) -> Tensor:
        """`_change`, of rows whose columns are known to be equal once."""
        if ctx.dedup is None:
            return self._change(i, x_BNd, chosen_B)
        few, of_row = ctx.dedup.distinct(columns_BN)
        return self._change(i, x_BNd[few], chosen_B.to(few.device)[few])[of_row]

    def _change(self, i: int, x_BNd: Tensor, chosen_B: Tensor) -> Tensor:
        attention = self.network.attention[i]
        assert isinstance(attention, CrossAttention)
        states_KSd: Tensor = getattr(self, f"states_{i}")
        chosen_B, ends_K = chosen_B.to(states_KSd.device), self.ends.to(states_KSd.device)
        if states_KSd.shape[0] <= chosen_B.shape[0]:  # whichever side is fewer is projected
            k_BSm, v_BSm = (t[chosen_B] for t in attention.memory(states_KSd, ends_K))
        else:
            k_BSm, v_BSm = attention.memory(states_KSd[chosen_B], ends_K[chosen_B])
        columns = torch.arange(states_KSd.shape[1], device=states_KSd.device)
        real_BS = columns < self.lengths.to(columns.device)[chosen_B][:, None]
        change: Tensor = attention(x_BNd, k_BSm, v_BSm, real_BS)
        mapper = self.network.mapper(i)
        if mapper is not None:
            prompt_Bd = states_KSd[chosen_B, ends_K[chosen_B]]
            change = change * torch.sigmoid(mapper(x_BNd, prompt_Bd))[..., None]
        return change

    # -- combining and storing ------------------------------------------------------------------

    def form(self) -> tuple[Any, ...]:
        """Equal for patches whose edits can lie in one bank."""
        return (self.network.state or id(self.network), self.gate)

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """One bank with all edits. Networks are compared by content, not by identity."""
        first = patches[0]
        if any(p.rows is not None or p.form() != first.form() for p in patches):
            return None
        union = EditBank.union([p.bank for p in patches], [p.owner for p in patches])
        return inherit(cls(first.network, union, first.gate).requires_grad_(False), patches)

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        first = patches[0]
        if any(p.rows is not None or p.form() != first.form() for p in patches):
            return None
        owners = [torch.full_like(p.owner, r) for r, p in enumerate(patches)]
        union = EditBank.union([p.bank for p in patches], owners)
        return cls(first.network, union, first.gate, rows=len(patches)).requires_grad_(False)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.network.state, "a network that lives in no state is never saved"
        bank = self.bank
        seen = zip(self.network.places, bank.states, strict=True)
        tensors = {f"{p.site}/states": s for p, s in seen}
        for name in ("keys", "lengths", "ends", "owner"):
            tensors[f"{self.gate.site}/{name}"] = getattr(bank, name)
        settings = {
            "rows": self.rows,
            "gate": asdict(self.gate),
            "state": self.network.state,
        }
        return settings, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Raises MissingState where the trained network is not on this machine."""
        from errata.io import states

        network, gate = (
            AdapterNetwork.of(states.find(str(settings["state"]))),
            Gate(**settings["gate"]),
        )
        bank = EditBank(
            tuple(tensors[f"{p.site}/states"] for p in network.places),
            *(tensors[f"{gate.site}/{name}"] for name in ("keys", "lengths", "ends", "owner")),
        )
        return cls(network, bank, gate, rows=settings["rows"])

    def site_of(self, tensor: str) -> str:
        owner, *path = tensor.split(".")
        if owner == "network":
            return self.network.places[int(path[1])].site
        if owner.startswith("states_"):
            return self.network.places[int(owner.removeprefix("states_"))].site
        return self.gate.site


def _wanted(tokens: Tokens, ctx: HookContext, y: Tensor, patch: Patch) -> Tensor:
    """[B, T] the columns that an adapter rewrites."""
    if ctx.vision is None or ctx.lengths is None:
        raise MissingMask(
            f"{type(patch).__name__} acts on image tokens or on the prompt's text, but the model "
            "was called without saying which columns these are. Ask through backbone.ask, "
            "backbone.generate or errata.ask."
        )
    vision_BT = ctx.vision.to(y.device)[:, : y.shape[1]].bool()
    if tokens == "visual":
        return vision_BT
    columns = torch.arange(y.shape[1], device=y.device)
    # text is what lies behind the image (behind the begin token where there is none)
    after_B = (vision_BT * columns).amax(1)
    text_BT = (columns > after_B[:, None]) & (columns < ctx.lengths.to(y.device)[:, None] - 1)
    return text_BT if tokens == "text" else text_BT | vision_BT


def _last_real(y: Tensor, ctx: HookContext, patch: Patch) -> Tensor:
    """[B, d] the state at each row's last real column, the answer's where there is one."""
    if ctx.mask is None:
        raise MissingMask(f"{type(patch).__name__} needs an attention mask to find the last token.")
    columns = torch.arange(y.shape[1], device=y.device)
    last_B = (ctx.mask.to(y.device)[:, : y.shape[1]] * columns).amax(1)
    return y[torch.arange(y.shape[0], device=y.device), last_B]
