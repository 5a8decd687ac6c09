"""A prefilled batch and its continuations, for every backbone with a decoder-only text model.

A continuation is appended after all columns of the batch, and the columns between a row's prompt
and its continuation are masked, so that hooks need `HookContext.lengths` only. A sliding window
counts columns, so in models that have one each row's columns are shifted to the right, up to its
continuation: the masked columns then lie before the prompt.

Shapes: B rows, T columns, M target tokens, m new tokens, V vocabulary, d stream width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.backbones._forward import DecoderForward
from errata.backbones._suffix import columns_at, copied
from errata.backbones._text_blocks.recurrent import Recomputed
from errata.core.errors import BadBackbone, TooLong
from errata.core.hooks.context import HookContext
from errata.core.model.batch import Batch, Generated, GrowingAnswer, Question
from errata.core.text import lines_of
from errata.core.types import Scored

DECIMALS = 5  # of recorded log-probabilities


class _Continuation:
    """Tokens after the prompts of some rows of a question, with a separate KV cache."""

    def __init__(self, q: DecoderQuestion, index: Tensor, kept: Tensor) -> None:
        """`index`: which rows. `kept` [len(index)]: how many target tokens stay in the cache."""
        self.q = q
        self.index = index
        batch = q.batch
        all_rows = index.shape[0] == batch.size
        self.cache = copied(q.cache)
        if not all_rows:
            self.cache.batch_select_indices(index)
        self.ctx = q.ctx if all_rows else q.ctx.select(index)
        self.lengths = batch.lengths[index]
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        self.mask = batch.mask[index] * (columns < (self.lengths + kept)[:, None])
        if q.bb.windowed:
            self._shift(self.lengths + kept)
        self.offset = kept.clone()
        self.trunk = dict(q.trunk)
        self._positions_of(index, batch.size)

    def _positions_of(self, index: Tensor, size: int) -> None:
        """Keeps the position ids of some of `size` rows."""
        ids = self.trunk.get("position_ids")
        if isinstance(ids, Tensor) and ids.dim() == 3 and ids.shape[1] == size:
            self.trunk["position_ids"] = ids[:, index]
        elif isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[0] == size:
            self.trunk["position_ids"] = ids[index]

    def keep(self, at: Tensor) -> None:
        """Goes on with some of its rows only."""
        self._positions_of(at, len(self.index))
        self.cache.batch_select_indices(at)
        self.ctx = self.ctx.select(at)
        self.index, self.lengths = self.index[at], self.lengths[at]
        self.mask, self.offset = self.mask[at], self.offset[at]

    def _shift(self, kept: Tensor) -> None:
        """Row b's first kept[b] columns become its last; the columns before them are masked."""
        longest = int(kept.max())
        source = torch.arange(longest, device=kept.device) - (longest - kept)[:, None]
        self.mask = (source >= 0).to(self.mask.dtype)
        for layer in self.cache.layers:
            if not layer.is_initialized:  # a block that reads another block's keys
                continue
            layer.keys = columns_at(layer.keys, source)
            layer.values = columns_at(layer.values, source)

    def feed(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Appends ids [b, m] (columns where `real` is 0 are padding): logits [b, m, V]."""
        bb, ctx = self.q.bb, self.ctx
        self.mask = torch.cat([self.mask, torch.ones_like(ids) if real is None else real], dim=1)
        if self.mask.shape[1] > bb.chunk:
            raise BadBackbone(
                f"{bb.name} attends in chunks of {bb.chunk} tokens, and this batch has "
                f"{self.mask.shape[1]}. Use shorter prompts or answers."
            )
        ctx.shape, ctx.mask = (ids.shape[0], ids.shape[1]), self.mask
        positions = bb.next_positions(self.trunk, self.lengths, self.offset, ids.shape[1])
        trunk = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions}
        stream = bb.run_text(trunk, ctx, cache=self.cache)
        self.offset = self.offset + ids.shape[1]
        return bb.logits_of(stream, ctx)


class DecoderQuestion(Question):
    """A prefilled batch of a backbone with a decoder-only text model."""

    def __init__(
        self,
        bb: DecoderForward,
        batch: Batch,
        ctx: HookContext,
        cache: Any,
        trunk: dict[str, Any],
        stream: Tensor,
    ) -> None:
        """cache: of the prefill; None for a model that cannot go on from one."""
        self.bb, self.batch, self.ctx = bb, batch, ctx
        self.cache, self.trunk, self.stream = cache, trunk, stream
        self._logits: Tensor | None = None
        self._fed: _Continuation | Recomputed | None = None

    def _continuation(self, index: Tensor, kept: Tensor) -> _Continuation | Recomputed:
        if self.cache is None:
            return Recomputed(self.bb, self.batch, self.ctx, index, kept)
        return _Continuation(self, index, kept)

    @property
    def logits(self) -> Tensor:
        if self._logits is None:
            self._logits = self.bb.answer_logits(self.stream, self.batch, self.ctx)
        return self._logits

    def scores(self) -> list[Scored]:
        return _scored(self.logits, self.batch.targets)

    def feed(self, ids: Tensor) -> Tensor:
        if self._fed is None:
            all_rows = torch.arange(self.batch.size, device=self.batch.ids.device)
            self._fed = self._continuation(all_rows, torch.zeros_like(all_rows))
        needed = int((self.batch.lengths + self._fed.offset).max()) + ids.shape[1]
        assert needed <= self.bb.context, f"{needed} tokens are fed, beyond {self.bb.context}"
        return self._fed.feed(ids)

    def score(self, ids: Sequence[Sequence[int]]) -> list[Scored]:
        first = self.logits[:, :1]
        longest = max((len(i) for i in ids), default=0) - 1
        for prompt, n, i in zip(self.batch.prompts, self.batch.lengths.tolist(), ids, strict=True):
            if n + len(i) > self.bb.context:
                raise TooLong(
                    f"prompt '{prompt.text[:60]}' and the answer to score need {n + len(i)} "
                    f"tokens, {self.bb.name} takes {self.bb.context}. Shorten one of them."
                )
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
        continuation = self._continuation(index, torch.zeros_like(index))
        more = torch.zeros(self.batch.size, longest, first.shape[-1], device=first.device)
        more[index.to(first.device)] = continuation.feed(fed, real)
        return _scored(torch.cat([first, more], dim=1), ids)

    def greedy(
        self,
        caps: Sequence[int],
        free: Sequence[bool] | None = None,
        lines: Sequence[int] | None = None,
    ) -> list[Generated]:
        """The targets serve as a guess: answer tokens that equal them need no further forward.

        An answer also ends where the model's context ends, with `stopped` False.
        """
        room = (self.bb.context - self.batch.lengths).tolist()
        caps = [min(cap, left) for cap, left in zip(caps, room, strict=True)]
        free, lines = free or [False] * len(caps), lines or [1] * len(caps)
        answers = [
            _Answer(self.bb, cap, 0 if f else n, self.bb.before_end)
            for cap, f, n in zip(caps, free, lines, strict=True)
        ]
        best = self.logits.argmax(-1).tolist()
        for b, answer in enumerate(answers):
            answer.follow(best[b], self.batch.targets[b] if self.batch.targets else ())
        rows = [b for b, answer in enumerate(answers) if answer.stopped is None]
        if rows:
            self._continue(rows, answers)
        return [Generated(tuple(a.ids), bool(a.stopped)) for a in answers]

    def _continue(self, rows: list[int], answers: Sequence[_Answer]) -> None:
        device = self.batch.ids.device
        kept = torch.tensor([len(answers[b].ids) - 1 for b in rows], device=device)
        continuation = self._continuation(torch.tensor(rows, device=device), kept)
        while live := [n for n, b in enumerate(rows) if answers[b].stopped is None]:
            if 2 * len(live) <= len(rows):  # halves, so that a compiled model sees few shapes
                continuation.keep(torch.tensor(live, device=device))
                rows = [rows[n] for n in live]
            fed = torch.tensor([[answers[b].ids[-1]] for b in rows], device=device)
            best = continuation.feed(fed)[:, -1].argmax(-1).tolist()
            for b, token in zip(rows, best, strict=True):
                if answers[b].stopped is None:
                    answers[b].add(token)

    def top(self, k: int) -> list[tuple[tuple[int, ...], ...]]:
        ids = self.bb.logits_of(self.stream, self.ctx).topk(k, dim=-1).indices
        mask = self.batch.mask.bool()
        return [tuple(tuple(p) for p in ids[b][mask[b]].tolist()) for b in range(self.batch.size)]


class _Answer(GrowingAnswer):
    """The ids of one answer so far. `stopped` is None while it goes on, False at its cap."""

    def __init__(
        self,
        bb: DecoderForward,
        cap: int,
        lines: int,
        before_end: Callable[[Sequence[int]], list[int] | None] = lambda _: None,
    ) -> None:
        """lines: after how many lines it ends, blank ones not counted; 0: only at an end token.

        before_end: as `DecoderForward.before_end`.
        """
        self.bb, self.cap, self.lines, self.before_end = bb, cap, lines, before_end
        self.ids: list[int] = []
        self.stopped: bool | None = None

    def follow(self, best: Sequence[int], guess: Sequence[int]) -> None:
        """Adds the tokens of `best` as long as they equal `guess`, and the next one."""
        for j, token in enumerate(best[: len(guess) + 1]):
            self.add(token)
            if self.stopped is not None or j >= len(guess) or token != guess[j]:
                return

    def add(self, token: int) -> None:
        """Adds the token, or ends the answer."""
        ended = self.before_end([*self.ids, token])
        if ended is not None:
            self.ids, self.stopped = ended, True
            return
        end = "" if token in self.bb.end_ids else self._last_line(token)
        if end == "":
            self.stopped = True
        elif len(self.ids) >= self.cap:
            self.stopped = False
        else:
            self.ids.append(token)
            self.stopped = None if end is None else True

    def _last_line(self, token: int) -> str | None:
        """What the token says in front of a line break that ends the answer, None if none does."""
        if not self.lines or token not in self.bb.stop_ids:
            return None
        if token not in self.bb.line_breaks:  # a stop token of a backbone of its own
            return ""
        said = self.bb.decode([*self.ids, token])
        return self.bb.line_breaks[token] if said and lines_of(said) >= self.lines else None


def growing(bb: DecoderForward, cap: int, lines: int) -> GrowingAnswer:
    """An empty answer, which ends as those of `DecoderQuestion.greedy`."""
    return _Answer(bb, cap, lines, bb.before_end)


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
