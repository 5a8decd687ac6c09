"""Latent: an external key-value memory mixed into the attention outputs of some blocks (UniKE).

Source: Pan et al., NeurIPS 2024, Sec. 3.2-3.3 and App. A. What the paper leaves open is decided as
`errata.editors.unike` says.

In a block, once per question and from the prompt alone: the hidden state that enters it, at the
last prompt token (h_pre), retrieves the K entries (h_sem, h_pos) of the memory with the largest
cosine of h_sem and h_pre; and alpha = clamp(cos(Enc^Sem(sum_i w_i h_pos,i), h_pre), 0, 1), w the
mean over heads of the attention weights that h_pre gives them. Both stay fixed for the whole
answer. Then, for every token,

    h = (1 - alpha) h_input + alpha h_know,   h_know = Attn(q, k(LN(h_pos)), v(LN(h_pos)))

with the block's own projections, norm, heads and scale, and no rotary embedding, as stored states
have no position. The mixture happens in front of the output projection, which equals mixing behind
it. Cosines are of states minus `centre`, the mean of the memory's h_sem (zero where not centred).

The memory of a model is shared state, named by its hash and held by reference. A patch has own
entries beside it (the memory of an edit). Live patches with the same shared memory are merged into
one memory, so that the shared memory is mixed in once.

Shapes: B rows, T columns, d width, K retrieved, N shared entries, e own entries, H query heads, G
key heads, f features per head; own entries are [R, e, d] in a row patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor

from errata.core.hooks.context import HookContext
from errata.core.model.batch import Heads
from errata.core.patch import Patch, inherit
from errata.networks.spaces import Weights, encode, unit

if TYPE_CHECKING:
    from errata.core.state import State

#: entries that are converted to float32 at a time
CHUNK = 1024


@dataclass(frozen=True)
class LatentSettings:
    """How the memory is used.

    top: K. alpha: `query` (one per question and block), `token` (one per prompt token; answer
    tokens keep that of the last prompt token), or a number. attention: `projected` (the block's own
    q and k decide the weights) or `cosine` (softmax over cos(h_pre, h_sem) / temperature, for all
    tokens). cutoff: entries less similar than this are not used; if none is left, alpha is 0.
    """

    top: int = 40
    alpha: Literal["query", "token"] | float = "query"
    attention: Literal["projected", "cosine"] = "projected"
    temperature: float = 0.1
    cutoff: float = -1.0


@dataclass(frozen=True)
class BlockMemory:
    """The shared memory of one block: sem, pos [N, d], the semantic encoder, the mean of sem."""

    sem: Tensor
    pos: Tensor
    encoder: Weights
    centre: Tensor

    @cached_property
    def norms(self) -> Tensor:
        """[N] lengths of sem - centre."""
        parts = [
            (c.float() - self.centre.float()).norm(dim=1) for c in torch.split(self.sem, CHUNK)
        ]
        return torch.cat(parts) if parts else self.sem.new_zeros(0).float()

    def cosines(self, query_Bd: Tensor) -> Tensor:
        """[B, N] cosines to unit vectors in centred space; no float32 copy of all entries."""
        if not len(self.sem):
            return query_Bd.new_zeros(query_Bd.shape[0], 0)
        shift_B1 = query_Bd @ self.centre.float()[:, None]
        dots = torch.cat([query_Bd @ c.float().T for c in torch.split(self.sem, CHUNK)], dim=1)
        return (dots - shift_B1) / self.norms.clamp(min=1e-12)

    def to(self, device: torch.device) -> BlockMemory:
        if self.sem.device == device:
            return self
        moved = {k: v.to(device) for k, v in self.encoder.items()}
        return BlockMemory(self.sem.to(device), self.pos.to(device), moved, self.centre.to(device))


def _in_heads(x: Tensor, size: int) -> Tensor:
    """[..., n] -> [..., n / size, size]."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def _normed_heads(ctx: HookContext, norm: str, x: Tensor, size: int) -> Tensor:
    """`x` in heads, behind the model's norm of queries or keys, if it has one at that site."""
    if norm not in ctx.sites:
        return _in_heads(x, size)
    if any(p.shape == x.shape[-1:] for p in ctx.sites[norm].first.parameters()):
        return _in_heads(ctx.call(norm, x), size)  # over all heads together
    return ctx.call(norm, _in_heads(x, size))


class SharedMemory:
    """The shared memory of several blocks, by reference; `digest` names the state it lives in."""

    def __init__(self, digest: str, blocks: Mapping[int, BlockMemory]) -> None:
        self.digest, self.blocks = digest, dict(blocks)

    @classmethod
    def of(cls, state: State) -> Self:
        """From tensors `text.{i}/{sem,pos,centre}` and `text.{i}/enc_sem/*` of a state; once."""
        if "knowledge" in state.views:
            return cast(Self, state.views["knowledge"])
        layers = sorted({int(k.split("/")[0][5:]) for k in state.tensors if k.endswith("/sem")})
        blocks = {}
        for i in layers:
            block, encoder = state.under(f"text.{i}/"), state.under(f"text.{i}/enc_sem/")
            blocks[i] = BlockMemory(block["sem"], block["pos"], encoder, block["centre"])
        shared = cls(state.origin or state.digest(), blocks)
        state.views["knowledge"] = shared
        return shared


class Latent(Patch):
    """Memory mixed into attention at blocks `heads`, with own entries per block.

    `own`: block -> (sem, pos), each [e, d], or [R, e, d] with `rows`; `real` [R, e] is False
    for padding, in a row patch whose rows have different numbers of entries.
    """

    decides = True
    by_column = True  # it decides from the last prompt token, whose column is always run
    one_when_live = True
    real: Tensor | None

    def __init__(
        self,
        knowledge: SharedMemory,
        heads: Mapping[int, Heads],
        own: Mapping[int, tuple[Tensor, Tensor]],
        options: LatentSettings,
        *,
        rows: int | None = None,
        real: Tensor | None = None,
    ) -> None:
        super().__init__([f"text.{i}.{s}" for i in heads for s in ("in", "attn.q", "attn.o")])
        self.knowledge, self.heads, self.options, self.rows = knowledge, dict(heads), options, rows
        self.register_buffer("real", real)
        for i, (sem, pos) in own.items():
            self.register_buffer(f"sem_{i}", sem.detach().float())
            self.register_buffer(f"pos_{i}", pos.detach().float())
        self.blocks: dict[int, BlockMemory] = {i: knowledge.blocks[i] for i in heads}

    def own(self, layer: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"sem_{layer}"), getattr(self, f"pos_{layer}")

    # -- acting -------------------------------------------------------------------------------

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        layer = int(site.split(".")[1])
        if site.endswith(".in"):
            ctx.scratch[id(self), site] = x
            ctx.decide(self, site, lambda: self._retrieved(layer, x, ctx))
        elif site.endswith(".attn.q"):
            ctx.scratch[id(self), site] = y
        return y

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        if not site.endswith(".attn.o"):
            return x
        layer = int(site.split(".")[1])
        retrieved = ctx.memo[id(self), f"text.{layer}.in"]
        h_BTd = ctx.scratch.pop((id(self), f"text.{layer}.in"))
        q_BTn = ctx.scratch.pop((id(self), f"text.{layer}.attn.q"))
        keys, values = ctx.decide(
            self, f"text.{layer}.attn", lambda: self._projected(layer, retrieved, ctx)
        )
        w_BHTK = self._weights(layer, q_BTn, keys, retrieved, ctx)
        ctx.decide(
            self, f"text.{layer}.attn.w", lambda: ctx.last_prompt(w_BHTK.detach().mean(1), self)
        )
        know = torch.einsum("bhtk,bkhf->bthf", w_BHTK, self._per_query_head(layer, values))
        alpha_BT = self._alpha(layer, site, h_BTd, w_BHTK, retrieved, ctx)
        alpha = alpha_BT.to(x.device)[..., None]
        return ((1 - alpha) * x.float() + alpha * know.flatten(2)).to(x.dtype)

    @torch.no_grad()
    def _retrieved(self, layer: int, x: Tensor, ctx: HookContext) -> dict[str, Tensor]:
        """The K nearest entries of each question, decided once, from the prompt alone."""
        shared = self.blocks[layer]
        h_Bd = ctx.last_prompt(x, self).float()
        query = unit(h_Bd - shared.centre.float())
        cos_BN = shared.cosines(query)
        sem, pos = self.own(layer)
        rows = ctx.rows_of(f"text.{layer}.in", x) if self.rows is not None else None
        if rows is not None:
            sem, pos = sem[rows], pos[rows]
        elif sem.dim() == 2:
            sem, pos = (t.expand(len(h_Bd), *t.shape) for t in (sem, pos))
        cos_Be = torch.einsum("bed,bd->be", unit(sem - shared.centre.float()), query)
        if self.real is not None:
            assert rows is not None
            cos_Be = cos_Be.masked_fill(~self.real[rows], -2.0)
        cos = torch.cat([cos_Be, cos_BN], dim=1)
        # stable, so that row patches and single patches choose the same of equally near entries
        ranked, order = cos.sort(dim=1, descending=True, stable=True)
        best, index = ranked[:, : self.options.top], order[:, : self.options.top]
        e = cos_Be.shape[1]
        is_own_BK = index < e
        picked = h_Bd.new_zeros(*index.shape, h_Bd.shape[1])
        if len(shared.pos):
            picked = shared.pos[(index - e).clamp(min=0)].float()
        if e:
            own_pos = pos.gather(1, index.clamp(max=e - 1)[..., None].expand(-1, -1, pos.shape[2]))
            picked = torch.where(is_own_BK[..., None], own_pos, picked)
        used = best >= max(self.options.cutoff, -1.5)
        return {"h": h_Bd, "pos": picked, "cos": best, "own": is_own_BK, "used": used}

    @torch.no_grad()
    def _projected(
        self, layer: int, retrieved: Mapping[str, Tensor], ctx: HookContext
    ) -> tuple[Tensor, Tensor]:
        """([B, K, G, f] keys, values) of the retrieved entries, by the block's own modules."""
        at, size = f"text.{layer}.attn", self.heads[layer].size
        dtype = self._query_dtype(layer, ctx)
        normed = retrieved["pos"].to(dtype)
        if f"{at}.norm" in ctx.sites:
            normed = ctx.call(f"{at}.norm", normed)
        keys = _normed_heads(ctx, f"{at}.k_norm", ctx.call(f"{at}.k", normed), size)
        values = _in_heads(ctx.call(f"{at}.v", normed), size)
        return keys.float(), values.float()

    def _query_dtype(self, layer: int, ctx: HookContext) -> torch.dtype:
        weight = ctx.sites[f"text.{layer}.attn.k"].first.weight
        assert isinstance(weight, Tensor)
        return weight.dtype if weight.dtype.is_floating_point else torch.float32

    def _per_query_head(self, layer: int, grouped: Tensor) -> Tensor:
        """[B, K, G, f] -> [B, K, H, f]: query heads share key heads in groups."""
        heads = self.heads[layer]
        return grouped.repeat_interleave(heads.queries // heads.keys, dim=2)

    def _weights(
        self,
        layer: int,
        q_BTn: Tensor,
        keys: Tensor,
        retrieved: Mapping[str, Tensor],
        ctx: HookContext,
    ) -> Tensor:
        """[B, H, T, K] attention weights of every token over the retrieved entries."""
        heads = self.heads[layer]
        b, t, _ = q_BTn.shape
        if self.options.attention == "cosine":
            score = (retrieved["cos"] / self.options.temperature)[:, None, None]
            score = score.expand(b, heads.queries, t, -1)
        else:
            q = _normed_heads(ctx, f"text.{layer}.attn.q_norm", q_BTn, heads.size)
            keys = self._per_query_head(layer, keys)
            score = torch.einsum("bthf,bkhf->bhtk", q.float(), keys) * heads.scale
        unused = ~retrieved["used"][:, None, None]
        return score.masked_fill(unused, -1e30).softmax(-1)

    @torch.no_grad()
    def _alpha(
        self,
        layer: int,
        site: str,
        h_BTd: Tensor,
        w_BHTK: Tensor,
        retrieved: Mapping[str, Tensor],
        ctx: HookContext,
    ) -> Tensor:
        """[B, T] weight of the memory in each token's attention output; without gradients."""
        shared, alpha = self.blocks[layer], self.options.alpha
        any_B = retrieved["used"].any(1).float()

        def similarity(w: Tensor, h: Tensor) -> Tensor:
            know = encode(torch.einsum("btk,bkd->btd", w, retrieved["pos"]), shared.encoder)
            cosine = (unit(know) * unit(h.float() - shared.centre.float())).sum(-1)
            return cosine.clamp(0, 1) * any_B[:, None]

        def of_question() -> Tensor:
            if not isinstance(alpha, str):
                return any_B * alpha
            last: Tensor = ctx.memo[id(self), f"text.{layer}.attn.w"]
            return similarity(last[:, None], retrieved["h"][:, None])[:, 0]

        fixed_B: Tensor = ctx.decide(self, site, of_question)
        fixed_BT = fixed_B[:, None].expand(-1, h_BTd.shape[1])
        if alpha != "token" or ctx.prefilled:
            return fixed_BT
        assert ctx.lengths is not None
        columns = torch.arange(h_BTd.shape[1], device=h_BTd.device) + ctx.offset
        of_prompt = columns < ctx.lengths[:, None]
        return torch.where(of_prompt, similarity(w_BHTK.mean(1), h_BTd), fixed_BT)

    def decided(self, ctx: HookContext) -> dict[int, dict[str, Tensor]]:
        """Per block: `alpha` [B]; of the retrieved entries, nearest first, [B, K]: `cosine`,
        `weight` (their share of the last prompt token's attention to the memory, mean over heads),
        `own` (an entry of the patch, not of the shared memory) and `used`.
        """
        decisions = {}
        for i in self.heads:
            retrieved = ctx.memo.get((id(self), f"text.{i}.in"))
            alpha = ctx.memo.get((id(self), f"text.{i}.attn.o"))
            if retrieved is not None and alpha is not None:
                decisions[i] = {
                    "alpha": alpha,
                    "cosine": retrieved["cos"],
                    "weight": ctx.memo[id(self), f"text.{i}.attn.w"],
                    "own": retrieved["own"],
                    "used": retrieved["used"],
                }
        return decisions

    # -- as data ------------------------------------------------------------------------------

    def to_devices(self, device_of: Callable[[str], torch.device]) -> None:
        super().to_devices(device_of)
        self.blocks = {
            i: self.knowledge.blocks[i].to(device_of(f"text.{i}.in")) for i in self.heads
        }
        self.knowledge.blocks.update(self.blocks)

    def site_of(self, tensor: str) -> str:
        layer = tensor.rsplit("_", 1)[-1]
        return f"text.{layer}.in" if layer.isdigit() else ""

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """One memory with the own entries of all patches."""
        first = patches[0]
        forms = [(p.knowledge.digest, p.options, p.heads) for p in patches]
        rows = {p.rows for p in patches} - {None}
        if any(f != forms[0] for f in forms) or len(rows) > 1:
            return None
        count = rows.pop() if rows else None
        entries = [p._with_rows(count) for p in patches]
        own = {
            i: (
                torch.cat([e[i][0] for e in entries], -2),
                torch.cat([e[i][1] for e in entries], -2),
            )
            for i in first.heads
        }
        real = None
        if count is not None and any(p.real is not None for p in patches):
            real = torch.cat([p._real_of(count) for p in patches], dim=1)
        one = cls(first.knowledge, first.heads, own, first.options, rows=count, real=real)
        one.blocks = first.blocks
        return inherit(one, patches)

    def _with_rows(self, rows: int | None) -> dict[int, tuple[Tensor, Tensor]]:
        """Own entries; with a row dimension unless `rows` is None."""
        own = {i: self.own(i) for i in self.heads}
        if rows is None or self.rows is not None:
            return own
        return {
            i: (s.expand(rows, *s.shape), p.expand(rows, *p.shape)) for i, (s, p) in own.items()
        }

    def _real_of(self, rows: int) -> Tensor:
        if self.real is not None:
            return self.real
        sem = self._with_rows(rows)[next(iter(self.heads))][0]
        return torch.ones(sem.shape[:2], dtype=torch.bool, device=sem.device)

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        first = patches[0]
        forms = {(p.knowledge.digest, p.options, tuple(p.heads.items()), p.rows) for p in patches}
        if len(forms) != 1 or first.rows is not None:
            return None
        pad = torch.nn.utils.rnn.pad_sequence
        own = {
            i: (
                pad([p.own(i)[0] for p in patches], batch_first=True),
                pad([p.own(i)[1] for p in patches], batch_first=True),
            )
            for i in first.heads
        }
        counts = torch.tensor([len(p.own(next(iter(p.heads)))[0]) for p in patches])
        real = None
        if len(set(counts.tolist())) > 1:
            real = torch.arange(int(counts.max())) < counts[:, None]
            real = real.to(first.own(next(iter(first.heads)))[0].device)
        batched = cls(
            first.knowledge, first.heads, own, first.options, rows=len(patches), real=real
        )
        batched.blocks = first.blocks
        return batched

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        for i in self.heads:
            sem, pos = self.own(i)
            tensors |= {f"text.{i}.in/sem": sem, f"text.{i}.in/pos": pos}
        if self.real is not None:
            tensors["real"] = self.real
        settings = {
            "state": self.knowledge.digest,
            "heads": {str(i): asdict(h) for i, h in self.heads.items()},
            "options": asdict(self.options),
            "rows": self.rows,
        }
        return settings, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Raises MissingState where the shared memory is not on this machine."""
        from errata.io import states

        heads = {int(i): Heads(**h) for i, h in settings["heads"].items()}
        own = {i: (tensors[f"text.{i}.in/sem"], tensors[f"text.{i}.in/pos"]) for i in heads}
        knowledge = SharedMemory.of(states.find(str(settings["state"])))
        options = LatentSettings(**settings["options"])
        real = tensors.get("real")
        return cls(knowledge, heads, own, options, rows=settings["rows"], real=real)
