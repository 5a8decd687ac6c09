"""The forward machinery that every backbone with a decoder-only text model shares.

A forward is split in three: what lies below the text model (vision tower, bridge, embedding), the
text model's *own* forward, and the head at the positions asked for. The text model can be entered
at any block: blocks below are bypassed and the stream is substituted, its own code does the rest.

Rows are right padded. A continuation is appended behind all columns of the batch, and the columns
between a row's prompt and its continuation are masked: only `Ctx.lengths` is ever needed.

Shapes: B rows, T columns, M target tokens, m new tokens, V vocabulary, d stream width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from errata.core.backbone import Backbone, Batch, Entered, Generated, Question
from errata.core.ports import Ctx
from errata.core.types import Scored

DECIMALS = 5  # of recorded log-probabilities


class _StopForward(Exception):
    """Ends a forward once what is needed has been seen."""

    def __init__(self, value: Any) -> None:
        self.value = value


@contextmanager
def _forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` runs `forward` instead of its own, which may itself be an instance attribute."""
    had = "forward" in module.__dict__
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before  # type: ignore[assignment]
        else:
            del module.forward


@contextmanager
def _stop_at(module: nn.Module) -> Iterator[None]:
    """The forward stops when `module` is about to run; the exception carries its arguments."""

    def stop(_: nn.Module, args: Any, kwargs: Any) -> None:
        raise _StopForward((args, kwargs))

    handle = module.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


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


class TrunkBackbone(Backbone):
    """Implements asking, entering and resuming over `text`, `blocks`, `head` and `tower`.

    Subclasses set these attributes, the sites, `stops` (ids that end an answer) and `encode`.
    """

    text: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    tower: nn.Module | None
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
        module = self.wires.sites[site].first if site in self.wires.sites else self.blocks[0]
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
        if tower is None or any(s.startswith(inside) for p in self.wires.stack for s in p.sites):
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

        with _forward_as(tower, forward):
            yield

    def _below(self, batch: Batch, ctx: Ctx, saved: list[Any]) -> dict[str, Any]:
        """The keywords that the text model's own forward is called with."""
        ctx.shape = (batch.size, batch.ids.shape[1])
        if not batch.image_keys:
            return {"input_ids": batch.ids, "attention_mask": batch.mask}
        with self.wires.question(ctx), self._tower_once(batch, saved), _stop_at(self.text):
            try:
                self.model(**batch.inputs, use_cache=False)
            except _StopForward as stop:
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
        ctx: Ctx,
        *,
        cache: Any = None,
        enter: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """[B, T, d] last stream of the text model, from its input or from block `enter[0]` on."""
        with ExitStack() as stack:
            stack.enter_context(self.wires.question(ctx))
            if enter is not None and enter[0] > 0:
                layer, stream = enter
                for block in self.blocks[:layer]:
                    stack.enter_context(
                        _forward_as(block, lambda hidden_states, *a, **k: hidden_states)
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
        return out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]  # type: ignore[no-any-return]

    def _head(self, stream: Tensor, ctx: Ctx) -> Tensor:
        with self.wires.question(ctx):
            logits: Tensor = self.head(stream)
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    def _ctx(self, batch: Batch, rows: Tensor | None) -> Ctx:
        return Ctx(
            self.wires,
            lengths=batch.lengths,
            mask=batch.mask,
            vision=batch.vision,
            rows=rows,
            image_rows=batch.image_rows,
            image_sizes=batch.image_sizes,
        )

    def _start(self, what: Batch | Entered, ctx: Ctx, cache: Any) -> tuple[Tensor, dict[str, Any]]:
        """Stream behind the last block for a batch or a state, and the trunk keywords."""
        if isinstance(what, Batch):
            trunk = self._below(what, ctx, [])
            return self._through(trunk, ctx, cache=cache), trunk
        batch = what.batch
        self._check_resumable(what)
        if what.layer < 0:
            trunk = self._below(batch, ctx, what.tower)
            return self._through(trunk, ctx, cache=cache), trunk
        ctx.shape = (batch.size, batch.ids.shape[1])
        trunk = dict(what.trunk)
        assert what.stream is not None
        stream = self._through(trunk, ctx, cache=cache, enter=(what.layer, what.stream))
        if cache is not None and what.layer > 0:
            assert what.cache is not None, (
                "enter(..., for_generation=True) is needed to continue from a state"
            )
            for i, (keys, values) in enumerate(what.cache):
                cache.update(keys, values, i)
        return stream, trunk

    def _check_resumable(self, state: Entered) -> None:
        """What was live below must still be live; later patches act at `state.layer` or above."""
        live = self.wires.stack
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
        self, batch: Batch, layer: int, *, rows: Tensor | None = None, for_generation: bool = False
    ) -> Entered:
        ctx = self._ctx(batch, rows)
        saved: list[Any] = []
        stack = self.wires.stack
        with torch.no_grad():
            trunk = self._below(batch, ctx, saved)
            if layer < 0:
                return Entered(batch, -1, tower=saved, rows=rows, stack=stack)
            if layer == 0:
                return Entered(
                    batch, 0, trunk=trunk, stream=torch.empty(0), cache=(), rows=rows, stack=stack
                )
            cache = self._new_cache() if for_generation else None
            with _stop_at(self.blocks[layer]):
                try:
                    self._through(trunk, ctx, cache=cache)
                except _StopForward as stop:
                    args, kwargs = stop.value
                    stream = args[0] if args else kwargs["hidden_states"]
        lower = None
        if cache is not None:
            lower = tuple((cache.layers[i].keys, cache.layers[i].values) for i in range(layer))
        return Entered(
            batch, layer, trunk=trunk, stream=stream, cache=lower, rows=rows, stack=stack
        )

    def _new_cache(self) -> Any:
        return DynamicCache(config=getattr(self.text, "config", None))

    # -- asking -------------------------------------------------------------------------------

    def _asked(self, stream: Tensor, batch: Batch, ctx: Ctx) -> Tensor:
        """[B, 1 + M, V] logits at the last prompt token and at the target tokens."""
        extra = max((len(t) for t in batch.targets), default=0)
        columns = batch.lengths[:, None] - 1 + torch.arange(1 + extra, device=batch.lengths.device)
        columns = columns.clamp(max=stream.shape[1] - 1).to(stream.device)
        rows = torch.arange(stream.shape[0], device=stream.device)[:, None]
        return self._head(stream[rows, columns], ctx)

    def logits(self, what: Batch | Entered, *, rows: Tensor | None = None) -> Tensor:
        batch = what if isinstance(what, Batch) else what.batch
        rows = what.rows if rows is None and isinstance(what, Entered) else rows
        ctx = self._ctx(batch, rows)
        stream, _ = self._start(what, ctx, None)
        return self._asked(stream, batch, ctx)

    @contextmanager
    def ask(self, what: Batch | Entered, *, rows: Tensor | None = None) -> Iterator[Question]:
        batch = what if isinstance(what, Batch) else what.batch
        rows = what.rows if rows is None and isinstance(what, Entered) else rows
        ctx = self._ctx(batch, rows)
        cache = self._new_cache()
        with torch.no_grad():
            stream, trunk = self._start(what, ctx, cache)
            ctx.prefilled = True
            yield _TrunkQuestion(self, batch, ctx, cache, trunk, stream)

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
        return lengths[:, None] + steps


class _Tail:
    """A continuation that grows: some rows of a question behind their prompts."""

    def __init__(self, q: _TrunkQuestion, index: Tensor, kept: Tensor) -> None:
        """`index`: which rows. `kept` [len(index)]: how many target tokens stay in the cache."""
        self.q = q
        self.index = index
        batch = q.batch
        everything = index.shape[0] == batch.size
        self.cache = copy.copy(q.cache)
        self.cache.layers = [copy.copy(layer) for layer in q.cache.layers]
        if not everything:
            self.cache.batch_select_indices(index)
        self.ctx = q.ctx if everything else q.ctx.select(index)
        self.lengths = batch.lengths[index]
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        self.mask = batch.mask[index] * (columns < (self.lengths + kept)[:, None])
        self.offset = kept.clone()
        self.trunk = dict(q.trunk)
        given = self.trunk.get("position_ids")
        if isinstance(given, Tensor) and given.dim() == 3 and given.shape[1] == batch.size:
            self.trunk["position_ids"] = given[:, index]

    def feed(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Appends ids [b, m] (columns where `real` is 0 are padding): logits [b, m, V]."""
        bb, ctx = self.q.bb, self.ctx
        self.mask = torch.cat([self.mask, torch.ones_like(ids) if real is None else real], dim=1)
        ctx.shape, ctx.mask = (ids.shape[0], ids.shape[1]), self.mask
        positions = bb._positions(self.trunk, self.lengths, self.offset, ids.shape[1])
        trunk = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions}
        stream = bb._through(trunk, ctx, cache=self.cache)
        self.offset = self.offset + ids.shape[1]
        return bb._head(stream, ctx)


class _TrunkQuestion(Question):
    def __init__(
        self,
        bb: TrunkBackbone,
        batch: Batch,
        ctx: Ctx,
        cache: Any,
        trunk: dict[str, Any],
        stream: Tensor,
    ) -> None:
        self.bb, self.batch, self.ctx = bb, batch, ctx
        self.cache, self.trunk, self.stream = cache, trunk, stream
        self._logits: Tensor | None = None
        self._tail: _Tail | None = None

    @property
    def logits(self) -> Tensor:
        if self._logits is None:
            self._logits = self.bb._asked(self.stream, self.batch, self.ctx)
        return self._logits

    def scores(self) -> list[Scored]:
        return _scored(self.logits, self.batch.targets)

    def feed(self, ids: Tensor) -> Tensor:
        if self._tail is None:
            everything = torch.arange(self.batch.size, device=self.batch.ids.device)
            self._tail = _Tail(self, everything, torch.zeros_like(everything))
        return self._tail.feed(ids)

    def score(self, ids: Sequence[Sequence[int]]) -> list[Scored]:
        first = self.logits[:, :1]
        longest = max((len(i) for i in ids), default=0) - 1
        rows = [b for b, i in enumerate(ids) if len(i) > 1]
        if not rows:
            return _scored(first, ids)
        device = self.batch.ids.device
        index = torch.tensor(rows, device=device)
        fed = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        real = torch.zeros_like(fed)
        for n, b in enumerate(rows):
            fed[n, : len(ids[b]) - 1] = torch.tensor(list(ids[b][:-1]), device=device)
            real[n, : len(ids[b]) - 1] = 1
        tail = _Tail(self, index, torch.zeros_like(index))
        more = torch.zeros(self.batch.size, longest, first.shape[-1], device=first.device)
        more[index.to(first.device)] = tail.feed(fed, real)
        return _scored(torch.cat([first, more], dim=1), ids)

    def greedy(self, caps: Sequence[int]) -> list[Generated]:
        """The targets serve as a guess: as far as the model would say them, nothing runs again."""
        best = self.logits.argmax(-1).tolist()
        said: list[list[int]] = []
        done: list[bool | None] = []
        for b in range(self.batch.size):
            ids, end = _follow(
                best[b], self.batch.targets[b] if self.batch.targets else (), caps[b], self.bb.stops
            )
            said.append(ids)
            done.append(end)
        rows = [b for b, end in enumerate(done) if end is None]
        if rows:
            self._go_on(rows, said, done, caps)
        return [Generated(tuple(i), bool(end)) for i, end in zip(said, done, strict=True)]

    def _go_on(
        self, rows: list[int], said: list[list[int]], done: list[bool | None], caps: Sequence[int]
    ) -> None:
        device = self.batch.ids.device
        kept = torch.tensor([len(said[b]) - 1 for b in rows], device=device)
        tail = _Tail(self, torch.tensor(rows, device=device), kept)
        while any(done[b] is None for b in rows):
            fed = torch.tensor([[said[b][-1]] for b in rows], device=device)
            best = tail.feed(fed)[:, -1].argmax(-1).tolist()
            for b, token in zip(rows, best, strict=True):
                if done[b] is not None:
                    continue
                if token in self.bb.stops:
                    done[b] = True
                elif len(said[b]) >= caps[b]:
                    done[b] = False
                else:
                    said[b].append(token)

    def top(self, k: int) -> list[tuple[tuple[int, ...], ...]]:
        ids = self.bb._head(self.stream, self.ctx).topk(k, dim=-1).indices
        mask = self.batch.mask.bool()
        return [tuple(tuple(p) for p in ids[b][mask[b]].tolist()) for b in range(self.batch.size)]


def _follow(
    best: list[int], guess: Sequence[int], cap: int, stops: frozenset[int]
) -> tuple[list[int], bool | None]:
    """(ids, stopped) as far as `best` follows `guess`; stopped is None when decoding must go on."""
    ids: list[int] = []
    for j, token in enumerate(best[: len(guess) + 1]):
        if token in stops:
            return ids, True
        if len(ids) >= cap:
            return ids, False
        ids.append(token)
        if j >= len(guess) or token != guess[j]:
            break
    return ids, None


def _scored(logits: Tensor, targets: Sequence[Sequence[int]]) -> list[Scored]:
    """Scores of each row's target from logits [B, >= M, V]."""
    logp = torch.log_softmax(logits, dim=-1)
    best = logits.argmax(-1)
    out = []
    for b, ids in enumerate(targets):
        n = len(ids)
        picked = logp[b, :n].gather(
            -1, torch.tensor(list(ids), dtype=torch.long, device=logp.device)[:, None]
        )
        logprobs = tuple(round(float(v), DECIMALS) for v in picked[:, 0])
        out.append(Scored(tuple(ids), logprobs, tuple(best[b, :n].tolist())))
    return out
