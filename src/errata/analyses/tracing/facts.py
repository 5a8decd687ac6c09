"""Facts for causal tracing: which ones the model knows, and which token is what.

Shapes: B prompts, T columns, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.analysis import Subject
from errata.core.model.recorder import Recorder
from errata.core.types import Case, Prompt

#: What enters block 0: the embeddings of the tokens, with positions where they are added.
EMBEDDED = "text.0.in"

LAST_SUBJECT, LAST = "last subject token", "last token"
GROUPS = (
    "first subject token",
    "middle subject tokens",
    LAST_SUBJECT,
    "first token after",
    "further tokens",
    LAST,
)


@dataclass(frozen=True)
class KnownFact:
    """A prompt and the first token of its answer.

    first, last: columns of the subject. columns: those of the text from the subject on, in order;
    the last of them is the last prompt token.
    """

    case: str
    prompt: Prompt
    answer: int
    first: int
    last: int
    columns: tuple[int, ...]

    def group(self, column: int) -> str:
        """The group of one of `columns`; every column is in exactly one.

        A subject of one token is a last subject token. The last prompt token is that, also where
        the subject ends the prompt or one token follows it: its state becomes the answer.
        """
        if column == self.columns[-1]:
            return LAST
        if column <= self.last:
            middle = GROUPS[0] if column == self.first else GROUPS[1]
            return LAST_SUBJECT if column == self.last else middle
        after = self.columns[self.columns.index(self.last) + 1]
        return GROUPS[3] if column == after else GROUPS[4]


@dataclass(frozen=True)
class FoundFacts:
    """asked: how many were asked to find them. std: of the subjects' embeddings, all numbers."""

    facts: tuple[KnownFact, ...]
    asked: int
    std: float


@torch.no_grad()
def known_facts(subject: Subject, most: int) -> FoundFacts:
    """The first `most` facts of the cases that the model knows: with a subject and an old answer.

    Known is a fact where every token of the old answer is the likeliest one, whatever follows.
    """
    named = [c for c in subject.cases if c.edit.old and c.edit.subject]
    cases = [c for c in named if str(c.edit.subject).strip() in c.edit.prompt.text]
    found: list[KnownFact] = []
    embedded: list[Tensor] = []
    asked = 0
    while asked < len(cases) and len(found) < most:
        part = cases[asked : asked + subject.rows]
        asked += len(part)
        for fact, states in _known(subject, part)[: most - len(found)]:
            found.append(fact)
            embedded.append(states)
        subject.progress("looking for known facts", len(found), most)
    std = float(torch.cat(embedded).std(correction=0)) if embedded else 0.0
    return FoundFacts(tuple(found), asked, std)


def _known(subject: Subject, cases: Sequence[Case]) -> list[tuple[KnownFact, Tensor]]:
    """The known facts among some cases, with the embeddings [., d] of their subjects' tokens."""
    bb = subject.backbone
    batch = bb.encode([c.edit.prompt for c in cases], [str(c.edit.old) for c in cases])
    recorder = Recorder((EMBEDDED,))
    with bb.applied(recorder):
        likeliest = bb.logits(batch).argmax(-1).tolist()
    out = []
    for b, (case, ids) in enumerate(zip(cases, batch.targets, strict=True)):
        if not ids or tuple(likeliest[b][: len(ids)]) != ids:
            continue
        span = str(case.edit.subject)
        first, last = (f(case.edit.prompt, span) for f in (bb.first_column, bb.last_column))
        text = ~batch.vision[b, : int(batch.lengths[b])].bool()
        columns = tuple(c for c in text.nonzero()[:, 0].tolist() if c >= first)
        states = recorder.y[EMBEDDED][b, first : last + 1].float().cpu()
        out.append((KnownFact(case.id, case.edit.prompt, ids[0], first, last, columns), states))
    return out
