"""The forward machinery that every backbone with a decoder-only text model shares.

A forward is split in three: what lies below the text model (vision tower, bridge, embedding), the
text model's *own* forward, and the head at the positions asked for. The text model can be entered
at any block: blocks below are bypassed and the stream is substituted, its own code does the rest.

Rows are right padded; a continuation is appended behind all columns of the batch (`_tail`).

Shapes: B rows, T columns, M target tokens, m new tokens, V vocabulary, d stream width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from errata.backbones._overrides import StopForward, attention_as, forward_as, stop_at
from errata.backbones._pruning import attending, last_block_at, packable, packed_trunk
from errata.backbones._scoring import DecoderQuestion
from errata.core.backbone import Backbone, Batch, PrefixState, Question
from errata.core.errors import BadBackbone
from errata.core.hooks.dedup import DedupBatch
from errata.core.hooks.manager import HookContext

#: layer types whose memory is keys and values per column; a window or chunk counts columns
_KNOWN_LAYERS = ("full_attention", "sliding_attention", "chunked_attention", "dummy", "moe", "mlp")


def _map(value: Any, n: int, index: Tensor) -> Any:
    """Every tensor with n leading rows, indexed; model outputs, tuples and lists are walked."""
    if isinstance(value, Tensor):
        return value[index.to(value.device)] if value.dim() and value.shape[0] == n else value
    if isinstance(value, (tuple, list)):
        return type(value)(_map(v, n, index) for v in value)
    if isinstance(value, Mapping):
        return type(value)(**{k: _map(v, n, index) for k, v in value.items()})
    return value


def _copied(value: Any) -> Any:
    """The same tensors in a container of their own: models write into what their tower returns."""
    return _map(value, -1, torch.empty(0))


class DecoderBackbone(Backbone):
    """Implements asking, entering and resuming over `text`, `blocks`, `head` and `tower`.

    Subclasses set these attributes, the sites, `ends` and `stops` (ids that end a free text and an
    answer) and `encode`.
    """

    text: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    tower: nn.Module | None
    ends: frozenset[int]
    stops: frozenset[int]
    softcap: float | None = None
    #: the bridge is part of the tower's own forward (Qwen's merger): the tower cannot be skipped
    bridge_in_tower: bool = False

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.blocks.parameters() if p.is_floating_point())

    def device_of(self, site: str) -> torch.device:
        module = self.hooks.sites[site].first if site in self.hooks.sites else self.blocks[0]
        for tensor in module.parameters():
            if tensor.device.type != "meta":
                return tensor.device
        hook = getattr(module, "_hf_hook", None)
        return torch.device(getattr(hook, "execution_device", None) or "cpu")

    def entry(self, patch: Any) -> int | None:
        if (
            patch is not None
            and self.bridge_in_tower
            and any(s.startswith("bridge") for s in patch.sites)
        ):
            return None
        return super().entry(patch)

    # -- below the text model -----------------------------------------------------------------

    @contextmanager
    def _tower_once(self, batch: Batch, saved: list[Any]) -> Iterator[None]:
        """The vision tower sees each different image once; `saved` keeps or gives its output."""
        tower = self.tower
        inside = ("vision", "bridge") if self.bridge_in_tower else ("vision",)
        if tower is None or any(s.startswith(inside) for p in self.hooks.stack for s in p.sites):
            yield
            return
        original = tower.forward
        first: dict[str, int] = {}
        inverse = torch.tensor(
            [first.setdefault(k, len(first)) for k in batch.image_keys], dtype=torch.long
        )
        seen: dict[str, int] = {}
        unique = torch.tensor(
            [i for i, k in enumerate(batch.image_keys) if seen.setdefault(k, i) == i]
        )

        def forward(*args: Any, **kwargs: Any) -> Any:
            if saved:
                return _copied(saved[0])
            name = "" if args else next(iter(kwargs))
            pixels = args[0] if args else kwargs[name]
            with torch.no_grad():
                if len(unique) == len(inverse) or pixels.shape[0] != len(inverse):
                    out = original(*args, **kwargs)
                else:
                    few = pixels[unique.to(pixels.device)]
                    out = (
                        original(few, *args[1:], **kwargs)
                        if args
                        else original(**{**kwargs, name: few})
                    )
                    out = _map(out, len(unique), inverse)
            saved.append(_copied(out))
            return out

        with forward_as(tower, forward):
            yield

    def _below(self, batch: Batch, ctx: HookContext, saved: list[Any]) -> dict[str, Any]:
        """The keywords that the text model's own forward is called with."""
        ctx.shape = (batch.size, batch.ids.shape[1])
        if not batch.image_keys:
            return {"input_ids": batch.ids, "attention_mask": batch.mask}
        with self.hooks.question(ctx), self._tower_once(batch, saved), stop_at(self.text):
            try:
                self.model(**batch.inputs, use_cache=False)
            except StopForward as stop:
                args, kwargs = stop.value
                assert not args, "the text model is expected to be called with keywords"
                drop = (
                    "past_key_values",
                    "use_cache",
                    "cache_position",
                    "labels",
                    "output_hidden_states",
                )
                return {k: v for k, v in kwargs.items() if k not in drop and v is not None}
        raise AssertionError("the text model was never reached")

    # -- the text model -----------------------------------------------------------------------

    def _through(
        self,
        trunk: Mapping[str, Any],
        ctx: HookContext,
        *,
        cache: Any = None,
        enter: tuple[int, Tensor] | None = None,
        columns: Tensor | None = None,
        dedup: DedupBatch | None = None,
    ) -> Tensor:
        """[B, T, d] last stream of the text model, from its input or from block `enter[0]` on.

        With `columns` [B, n] it is right in these alone. `packed`: equal columns are run once.
        """
        with ExitStack() as stack:
            stack.enter_context(self.hooks.question(ctx))
            if dedup is not None:
                assert enter is not None and cache is None
                trunk, enter = packed_trunk(dedup, trunk), (enter[0], dedup.pack(enter[1]))
                stack.enter_context(self.hooks.deduplicated(dedup))
                stack.enter_context(attending(self, dedup))
            if columns is not None:
                places = (dedup or DedupBatch.nothing(ctx.shape, columns.device)).at(columns)
                stack.enter_context(last_block_at(self, places))
            if enter is not None and enter[0] > 0:
                layer, stream = enter
                for block in self.blocks[:layer]:
                    stack.enter_context(
                        forward_as(block, lambda hidden_states, *a, **k: hidden_states)
                    )

                def substitute(_: nn.Module, args: Any, kwargs: Any) -> Any:
                    if args:
                        return (stream, *args[1:]), kwargs
                    return args, {**kwargs, "hidden_states": stream}

                handle = self.blocks[layer].register_forward_pre_hook(
                    substitute, with_kwargs=True, prepend=True
                )
                stack.callback(handle.remove)
            out = self.text(**trunk, past_key_values=cache, use_cache=cache is not None)
        last: Tensor = out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]
        return last if dedup is None else dedup.unpack(last)

    @torch.no_grad()
    def _rehearse(
        self,
        trunk: Mapping[str, Any],
        ctx: HookContext,
        enter: tuple[int, Tensor] | None = None,
        *,
        below: int | None = None,
    ) -> None:
        """Lets patches that decide above where they act decide, in a forward that ends there.

        `below`: only those that act below this block.
        """
        waiting = {
            id(p): self.block_of(p.ahead) + (not p.ahead.endswith(".in"))
            for p in self.hooks.rehearsal()
            if (id(p), p.ahead) not in ctx.memo
            and (below is None or min(map(self.block_of, p.sites)) < below)
        }
        if not waiting:
            return
        before, shape, top = dict(ctx.memo), ctx.shape, max(waiting.values())
        end = stop_at(self.blocks[top], seen=True) if top < self.depth else nullcontext()
        ctx.rehearsing = True
        try:
            with end:
                self._through(trunk, ctx, enter=enter)
        except StopForward:
            pass
        finally:
            ctx.rehearsing, ctx.shape = False, shape
        made = {k: v for k, v in ctx.memo.items() if k[0] in waiting}
        ctx.memo.clear()
        ctx.memo.update({**before, **made})

    def _head(self, stream: Tensor, ctx: HookContext) -> Tensor:
        with self.hooks.question(ctx):
            logits: Tensor = self.head(stream)
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    def _ctx(self, batch: Batch, rows: Tensor | None) -> HookContext:
        return HookContext(
            self.hooks,
            lengths=batch.lengths,
            mask=batch.mask,
            vision=batch.vision,
            rows=rows,
            image_rows=batch.image_rows,
            image_sizes=batch.image_sizes,
        )

    def _start(
        self, what: Batch | PrefixState, ctx: HookContext, cache: Any, columns: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Stream behind the last block for a batch or a state, and the trunk keywords."""
        if isinstance(what, Batch):
            trunk = self._below(what, ctx, [])
            self._rehearse(trunk, ctx)
            return self._through(trunk, ctx, cache=cache, columns=columns), trunk
        batch = what.batch
        self._check_resumable(what)
        assert _same_rows(ctx.rows, what.rows, batch.size), (
            "a state is asked with the rows that it was entered with"
        )
        if what.layer < 0:
            trunk = self._below(batch, ctx, what.tower)
            self._rehearse(trunk, ctx)
            return self._through(trunk, ctx, cache=cache, columns=columns), trunk
        ctx.shape = (batch.size, batch.ids.shape[1])
        trunk = dict(what.trunk)
        ctx.memo.update(what.memo)
        assert what.stream is not None
        enter = (what.layer, what.stream)
        self._rehearse(trunk, ctx, enter)
        dedup = packable(self, what) if cache is None and what.layer > 0 else None
        stream = self._through(trunk, ctx, cache=cache, enter=enter, columns=columns, dedup=dedup)
        if cache is not None and what.layer > 0:
            assert what.cache is not None, (
                "enter(..., for_generation=True) is needed to continue from a state"
            )
            for i, (keys, values) in enumerate(what.cache):
                cache.update(keys, values, i)
        return stream, trunk

    def _check_resumable(self, state: PrefixState) -> None:
        """What was live below must still be live; later patches act at `state.layer` or above."""
        live = self.hooks.stack
        assert live[: len(state.stack)] == state.stack, (
            "the patches that were live when the state was entered are gone"
        )
        for patch in live[len(state.stack) :]:
            entry = self.entry(patch)
            if entry is None or entry < state.layer:
                raise AssertionError(
                    f"{type(patch).__name__} acts below block {state.layer}, "
                    "where this state was entered"
                )

    def enter(
        self,
        what: Batch | PrefixState,
        layer: int,
        *,
        rows: Tensor | None = None,
        for_generation: bool = False,
    ) -> PrefixState:
        if isinstance(what, PrefixState):
            assert not for_generation, "a state is gone on from for scoring only"
            return self._enter_from(what, layer)
        batch, ctx = what, self._ctx(what, rows)
        saved: list[Any] = []
        stack = self.hooks.stack
        with torch.no_grad():
            trunk = self._below(batch, ctx, saved)
            if layer < 0:
                return PrefixState(batch, -1, tower=saved, rows=rows, stack=stack)
            if layer == 0:
                return PrefixState(
                    batch, 0, trunk=trunk, stream=torch.empty(0), cache=(), rows=rows, stack=stack
                )
            cache = self._new_cache() if for_generation else None
            self._rehearse(trunk, ctx, below=layer)
            stream = self._up_to(layer, trunk, ctx, cache=cache)
        lower = None
        if cache is not None:
            lower = tuple((cache.layers[i].keys, cache.layers[i].values) for i in range(layer))
        return PrefixState(
            batch, layer, trunk=trunk, stream=stream, cache=lower, rows=rows, stack=stack,
            memo=dict(ctx.memo),
        )  # fmt: skip

    def _up_to(
        self, layer: int, trunk: Mapping[str, Any], ctx: HookContext, **options: Any
    ) -> Tensor:
        """The stream that enters block `layer`."""
        with stop_at(self.blocks[layer]):
            try:
                self._through(trunk, ctx, **options)
            except StopForward as stop:
                args, kwargs = stop.value
                stream: Tensor = args[0] if args else kwargs["hidden_states"]
                return stream
        raise AssertionError(f"block {layer} was never reached")

    @torch.no_grad()
    def _enter_from(self, state: PrefixState, layer: int) -> PrefixState:
        """The state that enters a higher block, with what is live by now."""
        if not 0 <= state.layer < layer:
            return self.enter(state.batch, layer, rows=state.rows)
        self._check_resumable(state)
        ctx = self._ctx(state.batch, state.rows)
        ctx.shape = (state.batch.size, state.batch.ids.shape[1])
        ctx.memo.update(state.memo)
        assert state.stream is not None
        enter = (state.layer, state.stream)
        self._rehearse(state.trunk, ctx, enter, below=layer)
        stream = self._up_to(layer, state.trunk, ctx, enter=enter)
        return replace(
            state, layer=layer, stream=stream, cache=None, stack=self.hooks.stack,
            memo=dict(ctx.memo),
        )  # fmt: skip

    @property
    def windowed(self) -> bool:
        """Whether a block looks back over a limited number of columns only."""
        return "sliding_attention" in self._layer_types()

    @property
    def chunk(self) -> int:
        """How many columns a continuation may have: blocks with chunks do not look past them."""
        config: Any = getattr(self.text, "config", None)
        chunked = "chunked_attention" in self._layer_types()
        return int(config.attention_chunk_size) if chunked else 10**9

    def _layer_types(self) -> set[str]:
        config: Any = getattr(self.text, "config", None)
        given = getattr(config, "layer_types", None)
        if given is not None:
            return set(given)
        if getattr(config, "sliding_window", None) is not None:
            return {"sliding_attention"}
        chunked = getattr(config, "attention_chunk_size", None) is not None
        return {"chunked_attention" if chunked else "full_attention"}

    def _new_cache(self) -> Any:
        """All keys and values, of blocks with a window too: a tail shifts a row's columns."""
        foreign = sorted(self._layer_types() - set(_KNOWN_LAYERS))
        if foreign:
            raise BadBackbone(
                f"{self.name} has blocks of type {', '.join(foreign)}, whose memory errata cannot "
                "continue from. Use a model with full or sliding-window attention only."
            )
        return DynamicCache(config=None if self.windowed else getattr(self.text, "config", None))

    # -- asking -------------------------------------------------------------------------------

    def _asked(self, stream: Tensor, batch: Batch, ctx: HookContext) -> Tensor:
        """[B, 1 + M, V] logits at the last prompt token and at the target tokens."""
        columns = self._columns(batch).to(stream.device)
        rows = torch.arange(stream.shape[0], device=stream.device)[:, None]
        return self._head(stream[rows, columns], ctx)

    @staticmethod
    def _columns(batch: Batch) -> Tensor:
        """[B, 1 + M] the last prompt token and the target tokens, or what stands in their place."""
        extra = max((len(t) for t in batch.targets), default=0)
        columns = batch.lengths[:, None] - 1 + torch.arange(1 + extra, device=batch.lengths.device)
        return columns.clamp(max=batch.ids.shape[1] - 1)

    def logits(self, what: Batch | PrefixState, *, rows: Tensor | None = None) -> Tensor:
        batch = what if isinstance(what, Batch) else what.batch
        rows = what.rows if rows is None and isinstance(what, PrefixState) else rows
        ctx = self._ctx(batch, rows)
        stream, _ = self._start(what, ctx, None, self._columns(batch))
        return self._asked(stream, batch, ctx)

    @torch.no_grad()
    def attention(self, batch: Batch, columns: Tensor) -> Tensor:
        seen: dict[int, Tensor] = {}
        rows = torch.arange(batch.size)[:, None]

        def keep(i: int, out: Any) -> None:
            weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
            if not isinstance(weights, Tensor) or weights.dim() != 4:
                raise BadBackbone(
                    f"{self.name}: block {i} does not show what it attends to. Choose a model "
                    "whose attention has the `eager` implementation of transformers."
                )
            chosen = weights.transpose(1, 2)[rows.to(weights.device), columns.to(weights.device)]
            seen[i] = chosen.transpose(1, 2).float().cpu()

        with ExitStack() as stack:
            stack.enter_context(attention_as(self.text, "eager"))
            for i in range(self.depth):
                module = self.site(f"text.{i}.attn").first
                handle = module.register_forward_hook(lambda _, x, out, i=i: keep(i, out))
                stack.callback(handle.remove)
            self._start(batch, self._ctx(batch, None), None)
        return torch.stack([seen[i] for i in range(self.depth)])

    @contextmanager
    def ask(self, what: Batch | PrefixState, *, rows: Tensor | None = None) -> Iterator[Question]:
        batch = what if isinstance(what, Batch) else what.batch
        rows = what.rows if rows is None and isinstance(what, PrefixState) else rows
        ctx = self._ctx(batch, rows)
        cache = self._new_cache()
        with torch.no_grad():
            stream, trunk = self._start(what, ctx, cache)
            ctx.prefilled = True
            yield DecoderQuestion(self, batch, ctx, cache, trunk, stream)

    def _positions(
        self, trunk: Mapping[str, Any], lengths: Tensor, offset: Tensor, m: int
    ) -> Tensor:
        """Position ids of m new tokens per row, after `offset` [B] tokens behind the prompt."""
        steps = offset[:, None] + torch.arange(m, device=offset.device)
        given = trunk.get("position_ids")
        if isinstance(given, Tensor) and given.dim() == 3:  # axes of a multimodal rotary embedding
            given = given.expand(-1, lengths.shape[0], -1)
            last = given[:, torch.arange(lengths.shape[0], device=given.device), lengths - 1]
            return last[:, :, None] + 1 + steps
        # Clamped for rows that are padding by now: learnt positions end with the context.
        return (lengths[:, None] + steps).clamp(max=self.context - 1)


def _same_rows(a: Tensor | None, b: Tensor | None, size: int) -> bool:
    """Whether both name the same rows; None names row b for batch row b."""
    everyone = torch.arange(size)
    return torch.equal(*((everyone if r is None else r.cpu().long()) for r in (a, b)))
