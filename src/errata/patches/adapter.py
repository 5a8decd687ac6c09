"""Adapter: a trained network that mixes the hidden states of an edit into chosen tokens.

At its sites, h <- h + g * f(h, E): f is cross-attention from the hidden states to E, what the
unedited model has at the same site for the edit's prompt and target; g is 1, or an influence in
[0, 1] per image token. Only tokens of the prompt are changed: image tokens (`visual`), the text
behind the image and before the last prompt token (`text`), or both (`all`). They are all part of
the prefill, so decoding with a KV cache equals decoding without.

The network is trained once, for all edits. It lives in a state, which the patch names by its
digest; patches with the same network share one copy and can be merged into one bank of edits. The
gate (`errata.core.gate`) chooses one edit for a prompt and opens or stays closed: once, at its
site, from hidden states that no adapter has changed.

Shapes: B rows, T columns, K edits in the bank, S columns of an edit, N chosen columns, d width of
the hidden states, m width of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from errata.core.errors import MissingMask
from errata.core.gate import Gate, TokenColumns, unpack_gate
from errata.core.hooks.context import HookContext
from errata.core.patch import Patch, inherit
from errata.networks.adapter import AdapterNetwork, CrossAttention, Tokens
from errata.networks.edit_bank import EditBank

#: what is saved of a bank beside the hidden states, and the buffers that hold it
PER_EDIT = ("keys", "lengths", "ends", "owner")


class Adapter(Patch):
    """A bank of edits, and the trained network that reads them, shared with other patches."""

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
        # with an open gate and one edit in a row nothing depends on where the prompt ends
        self.causal = gate.always_open and bank.one_per_row
        for i, states in enumerate(bank.states):
            self.register_buffer(f"states_{i}", states)
        for name in PER_EDIT:
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
            ctx.decide(self, site, lambda: self._decision(y, ctx))
        for i in () if ctx.dry_run else self.network.at(site):
            y = self._adapted(i, y, ctx)
        return y

    def _adapted(self, i: int, y: Tensor, ctx: HookContext) -> Tensor:
        """y with the tokens of adapter i changed, where the gate is open."""
        chosen_B, open_B = ctx.memo[id(self), self.gate.site]
        wanted_BT = _wanted(self.network.places[i].tokens, self._columns(y, ctx))[:, ctx.offset :]
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

    def _decision(self, y: Tensor, ctx: HookContext) -> tuple[Tensor, Tensor]:
        """[B] the edit that each row is routed to, [B] whether the gate is open."""
        query_Bd = self.gate.key(y, self._columns(y, ctx)).float()
        own_BK = None
        if self.rows is not None:
            own_BK = self.bank.owned_by(ctx.rows_of(self.gate.site, y))
        return self.gate.decide(query_Bd, self.keys, own_BK)

    def _columns(self, y: Tensor, ctx: HookContext) -> TokenColumns:
        if ctx.vision is None or ctx.lengths is None or ctx.mask is None:
            raise MissingMask(
                f"{type(self).__name__} acts on image tokens or on the prompt's text, but the "
                "model was called without saying which columns these are. Ask through "
                "backbone.ask, backbone.generate or errata.ask."
            )
        width, device = ctx.offset + y.shape[1], y.device
        return TokenColumns(
            ctx.lengths.to(device),
            ctx.mask.to(device)[:, :width].bool(),
            ctx.vision.to(device)[:, :width].bool(),
        )

    def _changes(
        self, i: int, x_BNd: Tensor, chosen_B: Tensor, columns_BN: Tensor, ctx: HookContext
    ) -> Tensor:
        """`_change`, computed once for rows with identical columns."""
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
        """Equal for patches whose edits can be in one bank."""
        return (self.network.state or id(self.network), self.gate)

    def keep(self, index: Sequence[int]) -> Self | None:
        if len(self.edits) != len(self.keys) or self.rows is not None:
            return None
        part = type(self)(self.network, self.bank.take(index), self.gate).requires_grad_(False)
        return part.with_header(self.header, [self.edits[i] for i in index])

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """One bank with all edits. Networks are compared by content, not by identity."""
        first = patches[0]
        if any(p.rows is not None or p.form() != first.form() for p in patches):
            return None
        union = EditBank.union([p.bank for p in patches])
        return inherit(cls(first.network, union, first.gate).requires_grad_(False), patches)

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        first = patches[0]
        if any(p.rows is not None or p.form() != first.form() for p in patches):
            return None
        union = EditBank.rows([p.bank for p in patches])
        return cls(first.network, union, first.gate, rows=len(patches)).requires_grad_(False)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.network.state, "a network that is in no state is never saved"
        bank = self.bank
        tensors = {
            f"{p.site}/states": s for p, s in zip(self.network.places, bank.states, strict=True)
        }
        for name in PER_EDIT:
            tensors[f"{self.gate.site}/{name}"] = getattr(bank, name)
        return {"rows": self.rows, "gate": self.gate.pack(), "state": self.network.state}, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Raises MissingState where the trained network is not on this machine."""
        from errata.io import states

        network = AdapterNetwork.of(states.find(str(settings["state"])))
        gate = unpack_gate(settings["gate"])
        bank = EditBank(
            tuple(tensors[f"{p.site}/states"] for p in network.places),
            *(tensors[f"{gate.site}/{name}"] for name in PER_EDIT),
        )
        return cls(network, bank, gate, rows=settings["rows"])

    def site_of(self, tensor: str) -> str:
        owner, *path = tensor.split(".")
        if owner == "network":
            return self.network.places[int(path[1])].site
        if owner.startswith("states_"):
            return self.network.places[int(owner.removeprefix("states_"))].site
        return self.gate.site


def _wanted(tokens: Tokens, columns: TokenColumns) -> Tensor:
    """[B, T] the columns that an adapter changes."""
    vision_BT = columns.vision
    if tokens == "visual":
        return vision_BT
    at = torch.arange(vision_BT.shape[1], device=vision_BT.device)
    # text begins behind the image (behind the begin token where there is none)
    image_end_B = (vision_BT * at).amax(1)
    text_BT = (at > image_end_B[:, None]) & (at < columns.lengths[:, None] - 1)
    return text_BT if tokens == "text" else text_BT | vision_BT
