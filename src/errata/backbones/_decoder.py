"""Base of all backbones with a decoder-only text model: ask, enter, resume, attention.

A forward has three parts: the part below the text model (vision tower, bridge, embedding), the text
model's own forward (`_forward`), and the head at the requested columns. Rows are right padded; a
continuation is appended after all columns of the batch (`_scoring`). `trunk` are the keywords of
the text model's own forward.

Shapes: B rows, T columns, M target tokens, m new tokens, V vocabulary, d stream width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from errata.backbones import _prefixes, _suffix
from errata.backbones._folders import forward_errors
from errata.backbones._forward import DecoderForward
from errata.backbones._identity import core
from errata.backbones._overrides import StopForward, attention_as, forward_as, stop_at
from errata.backbones._pruning import NotPacked, deduplicated, packs
from errata.backbones._scoring import DecoderQuestion, growing
from errata.backbones._text_blocks import cross
from errata.backbones._text_blocks.growing_cache import growing_cache
from errata.backbones._text_blocks.recurrent import is_cacheable
from errata.backbones._text_blocks.running import RunningRows
from errata.backbones._vision.padding import row_by_row
from errata.core.errors import BadBackbone
from errata.core.hooks import cache_names
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.batch import (
    Batch,
    DecodeBatch,
    GrowingAnswer,
    PrefixRow,
    PrefixState,
    Question,
    SuffixState,
)

#: layer types whose cache holds keys and values per column; windows and chunks count columns
_KNOWN_LAYERS = ("full_attention", "sliding_attention", "chunked_attention", "dummy", "moe", "mlp")

#: seconds to wait for another thread's call of the model
PATIENCE = 60


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
    """The same tensors in a new container: models change the container that the tower returns."""
    return _map(value, -1, torch.empty(0))


class DecoderBackbone(DecoderForward):
    """Implements `ask`, `enter` and `resume` over `text`, `blocks`, `head` and `tower`.

    Subclasses set these attributes, the sites, `end_ids` and `stop_ids`, and implement `encode`.
    packable: no attempt to run columns packed has failed yet.
    """

    packable = True

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
        """The vision tower runs once per distinct image; `saved` holds its output."""
        tower = self.tower
        inside = ("vision", "bridge") if self.bridge_in_tower else ("vision",)
        if tower is None or any(s.startswith(inside) for p in self.hooks.stack for s in p.sites):
            yield
            return
        original = tower.forward
        number: dict[str, int] = {}
        inverse = torch.tensor(
            [number.setdefault(k, len(number)) for k in batch.image_keys], dtype=torch.long
        )
        first: dict[str, int] = {}
        unique = torch.tensor(
            [i for i, k in enumerate(batch.image_keys) if first.setdefault(k, i) == i]
        )

        def forward(*args: Any, **kwargs: Any) -> Any:
            if saved:
                return _copied(saved[0])
            name = "" if args else next(iter(kwargs))
            pixels = args[0] if args else kwargs[name]
            # sizes, masks or positions of the pictures: a tower that joins pictures cannot leave
            # one out, and what comes after it reads all of them again
            sizes = any(
                isinstance(v, (Tensor, list, tuple)) and v is not pixels
                for v in (*args, *kwargs.values())
            )
            with torch.no_grad():
                if sizes or len(unique) == len(inverse) or pixels.shape[0] != len(inverse):
                    out = original(*args, **kwargs)
                else:
                    distinct = pixels[unique.to(pixels.device)]
                    out = (
                        original(distinct, *args[1:], **kwargs)
                        if args
                        else original(**{**kwargs, name: distinct})
                    )
                    out = _map(out, len(unique), inverse)
            saved.append(_copied(out))
            return out

        with forward_as(tower, forward):
            yield

    def _below(self, batch: Batch, ctx: HookContext, saved: list[Any]) -> dict[str, Any]:
        """Runs the part below the text model; returns the keywords of the text model's forward."""
        ctx.shape = (batch.size, batch.ids.shape[1])
        if batch.inputs.keys() <= {"input_ids", "attention_mask"}:
            return self._trunk(batch, {"input_ids": batch.ids, "attention_mask": batch.mask})
        with (
            self.hooks.forward(),
            self.hooks.question(ctx),
            self._tower_once(batch, saved),
            row_by_row(core(self.model), batch.image_rows.tolist()),
            stop_at(self.text),
        ):
            try:
                with forward_errors(self.name):
                    self.model(**batch.inputs, use_cache=False)
            except StopForward as stop:
                args, kwargs = stop.value
                assert not args, "the text model is expected to be called with keywords"
                drop = (
                    *cache_names.NAMES,
                    "use_cache",
                    "cache_position",
                    "labels",
                    "output_hidden_states",
                )
                kept = {k: v for k, v in kwargs.items() if k not in drop and v is not None}
                return self._trunk(batch, kept)
        raise AssertionError("the text model was never reached")

    def _trunk(self, batch: Batch, keywords: dict[str, Any]) -> dict[str, Any]:
        if not cross.reads_pictures(self.text):
            return keywords
        counts = [len(p.images) for p in batch.prompts]
        return cross.evened(keywords, counts, self.width, self.dtype)

    # -- the text model -----------------------------------------------------------------------

    @torch.no_grad()
    def _dry_run(
        self,
        trunk: Mapping[str, Any],
        ctx: HookContext,
        enter: tuple[int, Tensor] | None = None,
        *,
        below: int | None = None,
    ) -> None:
        """Dry run: hooks whose gate site lies above their edit site record their decision.

        Nothing is changed, and the forward ends at the highest gate site. `below`: only hooks that
        act below this block.
        """
        waiting = {
            id(h): self.block_of(h.ahead) + (not h.ahead.endswith(".in"))
            for h in self.hooks.deciding_ahead()
            if (id(h), h.ahead) not in ctx.memo
            and (below is None or min(map(self.block_of, h.sites)) < below)
        }
        if not waiting:
            return
        before, shape, top = dict(ctx.memo), ctx.shape, max(waiting.values())
        end = (
            stop_at(self.blocks[top], after_hook_point=True) if top < self.depth else nullcontext()
        )
        ctx.dry_run = True
        try:
            with end:
                self.run_text(trunk, ctx, enter=enter)
        except StopForward:
            pass
        finally:
            ctx.dry_run, ctx.shape = False, shape
        decisions = {k: v for k, v in ctx.memo.items() if k[0] in waiting}
        ctx.memo.clear()
        ctx.memo.update({**before, **decisions})

    def context_of(self, batch: Batch, rows: Tensor | None) -> HookContext:
        ctx = self.hooks.context(
            lengths=batch.lengths,
            mask=batch.mask,
            vision=batch.vision,
            rows=rows,
            image_rows=batch.image_rows,
            image_sizes=batch.image_sizes,
        )
        for hook in self.hooks.running:
            if hook.reads_prompts:
                hook.read(batch.prompts, self, ctx)
        return ctx

    def _start(
        self, what: Batch | PrefixState, ctx: HookContext, cache: Any, columns: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """(hidden states after the last block, keywords of the text model) of a batch or state."""
        if isinstance(what, Batch):
            trunk = self._below(what, ctx, [])
            self._dry_run(trunk, ctx)
            return self.run_text(trunk, ctx, cache=cache, columns=columns), trunk
        batch = what.batch
        self._check_resumable(what)
        assert _prefixes.same_rows(ctx.rows, what.rows, batch.size), (
            "a state must be asked with the rows that it was entered with"
        )
        if what.layer < 0:
            trunk = self._below(batch, ctx, what.tower)
            self._dry_run(trunk, ctx)
            return self.run_text(trunk, ctx, cache=cache, columns=columns), trunk
        ctx.shape, ctx.kept = (batch.size, batch.ids.shape[1]), what.kept
        trunk = dict(what.trunk)
        ctx.memo.update(what.memo)
        assert what.stream is not None
        enter = (what.layer, what.stream)
        self._dry_run(trunk, ctx, enter)
        dedup = None
        if cache is None and what.layer > 0:
            dedup = deduplicated(what, self.text, self.hooks, self.layer_types())
        stream = self.run_text(trunk, ctx, cache=cache, enter=enter, columns=columns, dedup=dedup)
        if cache is not None and what.layer > 0:
            assert what.cache is not None
            for i, (keys, values) in enumerate(what.cache):
                cache.update(keys, values, i)
        return stream, trunk

    def whole_stream(
        self, batch: Batch, ctx: HookContext, columns: Tensor, tower: list[Any]
    ) -> Tensor:
        """Hidden states after the last block, valid at `columns`; `tower` holds the pictures."""
        answered = (
            torch.arange(batch.ids.shape[1], device=batch.ids.device) >= (batch.lengths[:, None])
        ) & batch.mask.bool()
        # a token of an image that is answered is a word: below it would be given pixels
        ids = batch.ids.masked_fill(answered, 0)
        plain = replace(batch, inputs={**batch.inputs, "input_ids": ids})
        trunk = self._below(plain, ctx, tower)
        if "inputs_embeds" in trunk:
            with self.hooks.forward(), self.hooks.question(ctx):
                words = self.site("embed").first(batch.ids).to(trunk["inputs_embeds"].device)
            at = answered[..., None].to(words.device)
            trunk["inputs_embeds"] = torch.where(at, words, trunk["inputs_embeds"])
        else:
            trunk["input_ids"] = batch.ids
        self._dry_run(trunk, ctx)
        return self.run_text(trunk, ctx, columns=columns)

    def _check_resumable(self, state: PrefixState) -> None:
        """Hooks that were live must still be so; later ones must act at `state.layer` or above."""
        live = self.hooks.stack
        assert live[: len(state.stack)] == state.stack, (
            "the patches that were live when the state was entered are no longer live"
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
            assert not for_generation, "a state can be continued for scoring only"
            return self._enter_from(what, layer)
        batch, ctx = what, self.context_of(what, rows)
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
            self._dry_run(trunk, ctx, below=layer)
            stream = self._up_to(layer, trunk, ctx, cache=cache)
        lower: tuple[tuple[Tensor, Tensor], ...] | None = () if for_generation else None
        if cache is not None:
            lower = tuple((cache.layers[i].keys, cache.layers[i].values) for i in range(layer))
        return PrefixState(
            batch, layer, trunk=trunk, stream=stream, cache=lower, rows=rows, stack=stack,
            memo=dict(ctx.memo),
        )  # fmt: skip

    def _up_to(
        self, layer: int, trunk: Mapping[str, Any], ctx: HookContext, **options: Any
    ) -> Tensor:
        """The hidden states that enter block `layer`."""
        with stop_at(self.blocks[layer]):
            try:
                self.run_text(trunk, ctx, **options)
            except StopForward as stop:
                args, kwargs = stop.value
                stream: Tensor = args[0] if args else kwargs["hidden_states"]
                return stream
        raise AssertionError(f"block {layer} was never reached")

    @torch.no_grad()
    def _enter_from(self, state: PrefixState, layer: int) -> PrefixState:
        """Continues a state up to a higher block, with the hooks that are live now."""
        if not 0 <= state.layer < layer:
            return self.enter(state.batch, layer, rows=state.rows)
        self._check_resumable(state)
        ctx = self.context_of(state.batch, state.rows)
        ctx.shape = (state.batch.size, state.batch.ids.shape[1])
        ctx.memo.update(state.memo)
        assert state.stream is not None
        enter = (state.layer, state.stream)
        self._dry_run(state.trunk, ctx, enter, below=layer)
        stream = self._up_to(layer, state.trunk, ctx, enter=enter)
        return replace(
            state, layer=layer, stream=stream, cache=None, stack=self.hooks.stack,
            memo=dict(ctx.memo), kept={},
        )  # fmt: skip

    def _new_cache(self) -> Any:
        """Keeps all columns, also with a sliding window: a continuation shifts a row's columns.

        None for a model whose continuations cannot be read from a cache.
        """
        if self.layer_types() - set(_KNOWN_LAYERS) or not is_cacheable(self.text, self.blocks):
            return None
        return growing_cache(None if self.windowed else getattr(self.text, "config", None))

    def split(self, state: PrefixState) -> list[PrefixRow] | None:
        return _prefixes.split(state)

    def concat(self, rows: Sequence[PrefixRow], owners: Tensor) -> PrefixState:
        return _prefixes.concat(rows, owners, shared=not self.image_reads_prompt)

    # -- asking -------------------------------------------------------------------------------

    def logits(
        self, what: Batch | PrefixState | SuffixState, *, rows: Tensor | None = None
    ) -> Tensor:
        batch = what if isinstance(what, Batch) else what.batch
        rows = what.rows if rows is None and not isinstance(what, Batch) else rows
        ctx = self.context_of(batch, rows)
        columns = self.answer_columns(batch)
        if isinstance(what, SuffixState):
            columns = _suffix.counted_from(what, columns)
            return self.logits_at(self._run_suffix(what, ctx, columns), columns, ctx)
        stream, _ = self._start(what, ctx, None, columns)
        return self.logits_at(stream, columns, ctx)

    def suffix(self, state: PrefixState, first: Tensor) -> SuffixState | None:
        cache = None if "chunked_attention" in self.layer_types() else self._new_cache()
        if cache is None or not _suffix.keeps_columns(state, self.hooks.running):
            return None
        ctx = self.context_of(state.batch, state.rows)
        with torch.no_grad():
            ctx.shape = (state.batch.size, state.batch.ids.shape[1])
            ctx.memo.update(state.memo)
            assert state.stream is not None
            self.run_text(dict(state.trunk), ctx, cache=cache, enter=(state.layer, state.stream))
        return _suffix.suffix_of(state, cache, first, self.depth)

    def _run_suffix(self, state: SuffixState, ctx: HookContext, columns: Tensor) -> Tensor:
        """[B, S, d] the last hidden states of the columns that run, valid at `columns`."""
        assert _prefixes.same_rows(ctx.rows, state.rows, state.batch.size), (
            "a state must be asked with the rows that it was entered with"
        )
        ctx.shape, ctx.prefilled = (state.stream.shape[0], state.stream.shape[1]), True
        ctx.mask = state.trunk["attention_mask"]
        ctx.memo.update(state.memo)
        enter = (state.layer, state.stream)
        others = self.hooks.direct.others()
        if self.packable and packs(self.text, self.layer_types()) and not others:
            dedup, earlier, trunk = _suffix.packed(state)
            try:
                return self.run_text(
                    trunk, ctx, enter=enter, columns=columns, dedup=dedup, earlier=earlier
                )
            except NotPacked:
                self.packable = False
        cache = _suffix.copied(state.finished)
        return self.run_text(dict(state.trunk), ctx, cache=cache, enter=enter, columns=columns)

    @torch.no_grad()
    def attention(self, batch: Batch, columns: Tensor) -> Tensor:
        by_block: dict[int, Tensor] = {}
        rows = torch.arange(batch.size)[:, None]

        def record(i: int, out: Any) -> None:
            weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
            if not isinstance(weights, Tensor) or weights.dim() != 4:
                raise BadBackbone(
                    f"{self.name}: block {i} does not return its attention weights. Choose a model "
                    "whose attention has the `eager` implementation of transformers."
                )
            picked = weights.transpose(1, 2)[rows.to(weights.device), columns.to(weights.device)]
            by_block[i] = picked.transpose(1, 2).float().cpu()

        with ExitStack() as stack:
            stack.enter_context(self.hooks.forward())
            self._wait_for_others()
            stack.enter_context(attention_as(self.text, "eager"))
            for i in range(self.depth):
                module = self.site(f"text.{i}.attn").first
                handle = module.register_forward_hook(lambda _, x, out, i=i: record(i, out))
                stack.callback(handle.remove)
            self._start(batch, self.context_of(batch, None), None)
        return torch.stack([by_block[i] for i in range(self.depth)])

    def _wait_for_others(self) -> None:
        """Until no other thread is inside a direct call of the model, whose attention is shared."""
        deadline = time.monotonic() + PATIENCE
        while self.hooks.direct.others():
            if time.monotonic() > deadline:
                raise BadBackbone(
                    f"{self.name} is busy in another thread for more than {PATIENCE} s. Read its "
                    "attention while no other thread uses the model."
                )
            time.sleep(0.001)

    @contextmanager
    def ask(
        self,
        what: Batch | PrefixState,
        *,
        rows: Tensor | None = None,
        answers_only: bool = False,
    ) -> Iterator[Question]:
        batch = what if isinstance(what, Batch) else what.batch
        rows = what.rows if rows is None and isinstance(what, PrefixState) else rows
        ctx = self.context_of(batch, rows)
        cache = self._new_cache()
        assert isinstance(what, Batch) or what.layer <= 0 or what.cache is not None, (
            "enter(..., for_generation=True) is needed to continue from a state"
        )
        with torch.no_grad():
            start = self._answered if answers_only and cache is not None else self._start
            stream, trunk = start(what, ctx, cache)
            ctx.prefilled = True
            yield DecoderQuestion(self, batch, ctx, cache, trunk, stream)

    def growing(self, cap: int, lines: int = 1) -> GrowingAnswer:
        return growing(self, cap, lines)

    def decode_batch(self, *hooks: Hook) -> DecodeBatch | None:
        if self._new_cache() is None or "chunked_attention" in self.layer_types():
            return None
        return RunningRows(self, hooks)

    def _answered(
        self, batch: Batch | PrefixState, ctx: HookContext, cache: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """As `_start`, valid at the answer's columns; what rows have in common runs once."""
        if not isinstance(batch, Batch):
            return self._start(batch, ctx, cache)
        columns, live = self.answer_columns(batch), self.hooks.running
        shared = _prefixes.shared_prefix(batch, ctx.rows, live) if self.shares_pictures else None
        if shared is None:
            return self._start(batch, ctx, cache, columns)
        trunk = self._below(batch, ctx, [])
        if not _suffix.by_columns(trunk, batch) or "inputs_embeds" not in trunk:
            return self.run_text(trunk, ctx, cache=cache, columns=columns), trunk
        return _prefixes.run_shared(self.run_text, shared, batch, trunk, ctx, cache, columns), trunk
