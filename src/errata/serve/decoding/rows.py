"""One answer that grows, and the batches that answers grow in.

A question with a patch joins a `SharedRows`: one forward for all of them. A question to the
unedited model, and any question where rows cannot be joined, has a `LoneRow`: the same calls of the
model, with the same shapes, as when it is asked alone, so the same bits (docs/adr/0010).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from errata.core.errors import TooLong
from errata.core.model.batch import DecodeBatch, GrowingAnswer, Question
from errata.core.patch import Patch
from errata.evaluation.answers import answer_lines
from errata.patches.rows import Rows
from errata.serve.decoding.jobs import AskJob, Begun, Event, Finished, Spoken, Words
from errata.serve.decoding.sampling import Sampler, likeliest
from errata.serve.decoding.text import AnswerText

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone


class Row:
    """A question that is being answered."""

    def __init__(self, bb: Backbone, job: AskJob, prompt_tokens: int, lines: int) -> None:
        self.job, self.prompt_tokens = job, prompt_tokens
        room = bb.context - prompt_tokens
        self.answer: GrowingAnswer = bb.growing(min(job.tokens, room), lines)
        self.bb, self.sampler = bb, Sampler(job.sampling)
        self.text = AnswerText(bb.decode, job.stops)
        self.over = False

    @property
    def last(self) -> int:
        return self.answer.ids[-1]

    def take(self, logits_V: Tensor, best: int) -> list[Event]:
        """The next token, from its logits; best: the likeliest one."""
        token = best if self.sampler.greedy else self.sampler.draw(logits_V)
        before = len(self.answer.ids)
        self.answer.add(token)
        ids, stopped = self.answer.ids, self.answer.stopped
        events: list[Event] = []
        piece = self.text.grow(ids, last=stopped is not None)
        if len(ids) > before:
            words, top = self._words(logits_V, token, ids[:-1])
            events.append(Spoken(token, piece, words, top))
            piece = ""
        if stopped is not None or self.text.ended:
            self.over = True
            reason = "stop" if stopped or self.text.ended else "length"
            events.append(Finished(self.text.text, piece, reason, len(ids)))
        return events

    def _words(
        self, logits_V: Tensor, token: int, ids: Sequence[int]
    ) -> tuple[Words | None, tuple[Words, ...]]:
        """The token behind `ids`, and the likeliest ones, as text that each would add."""
        if self.job.top is None:
            return None, ()
        logprob, top = likeliest(logits_V, token, self.job.top)
        before = self.bb.decode(ids)

        def added(one: int) -> str:
            return self.bb.decode([*ids, one]).removeprefix(before)

        return Words(added(token), logprob), tuple(Words(added(t), p) for t, p in top)


def _rows(
    bb: Backbone, jobs: Sequence[AskJob], lengths: Sequence[int], owners: Sequence[int],
    most: int | None,
) -> list[Row]:  # fmt: skip
    for job, n in zip(jobs, lengths, strict=True):
        if most is not None and n > most:
            raise TooLong(
                f"the prompt has {n} tokens, this server takes {most}. Shorten the prompt."
            )
        if n >= bb.context:
            raise TooLong(
                f"the prompt has {n} tokens of the {bb.context} that {bb.name} takes, which leaves "
                f"no room for an answer to '{job.prompt.text[:60]}'. Shorten the prompt."
            )
    return [
        Row(bb, job, n, answer_lines(bb, job.prompt, owner))
        for job, n, owner in zip(jobs, lengths, owners, strict=True)
    ]


def _taken(rows: Sequence[Row], logits_BV: Tensor) -> list[tuple[Row, list[Event]]]:
    best = logits_BV.argmax(-1).tolist()
    return [(row, row.take(logits_BV[b], best[b])) for b, row in enumerate(rows)]


class LoneRow:
    """A question that is answered in forwards of its own."""

    def __init__(self, bb: Backbone, job: AskJob, most: int | None) -> None:
        """Reads the prompt. Raises UserError."""
        patches = () if job.patch is None else (job.patch,)
        self.block = bb.merged_once(*patches)
        with self.block(), torch.no_grad():
            batch = bb.encode([job.prompt], rows=[0])
            (self.row,) = _rows(bb, [job], batch.lengths.tolist(), [0], most)
            with bb.ask(batch, rows=torch.zeros(1, dtype=torch.long)) as question:
                self.question: Question = question
                first = question.logits[:, -1]
        ((_, events),) = _taken([self.row], first)
        self.begun: list[Event] = [Begun(self.row.prompt_tokens), *events]

    def step(self) -> list[tuple[Row, list[Event]]]:
        with self.block(), torch.no_grad():
            last = torch.tensor([[self.row.last]], device=self.question.batch.ids.device)
            logits = self.question.feed(last)[:, -1]
        return _taken([self.row], logits)


class SharedRows:
    """Questions with different patches, one row each: patch `patches[i]` is row i of a `Rows`.

    closed: no further row joins it.
    """

    def __init__(self, bb: Backbone, patches: Sequence[Patch], batch: DecodeBatch) -> None:
        self.bb, self.patches, self.batch = bb, list(patches), batch
        self.rows: list[Row] = []
        self.closed = False

    @classmethod
    def of(cls, bb: Backbone, patches: Sequence[Patch]) -> SharedRows | None:
        """None for a model whose rows cannot be joined."""
        batch = bb.decode_batch(bb.place(Rows(patches)))
        return None if batch is None else cls(bb, patches, batch)

    def serves(self, patch: Patch | None) -> bool:
        return any(p is patch for p in self.patches)

    def join(self, jobs: Sequence[AskJob], most: int | None) -> list[tuple[Row, list[Event]]]:
        """Reads the prompts in one batch; the rows that do not end at once join. Raises UserError,
        and then none has joined.
        """
        owners = [next(i for i, p in enumerate(self.patches) if p is j.patch) for j in jobs]
        with self.batch.asking(), torch.no_grad():
            batch = self.bb.encode([j.prompt for j in jobs], rows=owners)
            rows = _rows(self.bb, jobs, batch.lengths.tolist(), owners, most)
            with self.bb.ask(batch, rows=torch.tensor(owners)) as question:
                first = question.logits[:, 0]
                self.batch.join(question)
        self.rows += rows
        events = [(r, [Begun(r.prompt_tokens), *e]) for r, e in _taken(rows, first)]
        self.sweep()
        return events

    def step(self) -> list[tuple[Row, list[Event]]]:
        ids = torch.tensor([row.last for row in self.rows])
        events = _taken(self.rows, self.batch.feed(ids))
        self.sweep()
        return events

    def sweep(self) -> None:
        """Lets rows leave that are answered or that nobody waits for."""
        left = [i for i, r in enumerate(self.rows) if not (r.over or r.job.cancelled)]
        if len(left) < len(self.rows):
            self.batch.keep(left)
            self.rows = [self.rows[i] for i in left]
