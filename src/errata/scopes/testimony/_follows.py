"""Which questions follow from an edit: learnt on training cases, as a table of what rests on what.

A relation ("which town?") is known by the answers that the unedited model gives when the question
is put to the fixed pictures. Training cases say which questions about the edited thing got another
answer through the edit (by default those of the kind `portability`), and which did not. So the
table says of two relations whether the second one follows from the first: the country from the
town, but not the colour. It knows relations, not things and not values.

Shapes: n questions, S relations, R fixed pictures, m buckets of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.core.types import Case, Probe, Prompt
from errata.scopes._cases import INSIDE
from errata.scopes._hashes import picture
from errata.scopes.testimony._choice import spread
from errata.scopes.testimony._witness import Witness

#: questions that agree less than this with every known relation follow from nothing
KNOWN = 0.5


def learn_follows(
    witness: Witness, cases: Sequence[Case], pool: int, kinds: Sequence[str]
) -> tuple[dict[str, Tensor], list[list[str]]]:
    """({"relations" [S, R, m + 1], "follows" [S, S]: row = edited, column = asked}, the pairs of
    example questions of which the second follows from the first).

    kinds: of the questions that follow. A relation follows from another one if most training
    questions say so. Empty where the cases have no such question.
    """
    pairs = [(c.edit.prompt, p) for c in cases for p in c.probes if _about(c.edit.prompt, p, kinds)]
    if not any(p.kind in kinds for _, p in pairs):
        return {}, []
    texts = sorted({t for e, p in pairs for t in (e.text, p.prompt.text)})
    chosen = spread(witness, texts, pool)
    relations = relations_of(witness, chosen)
    number = dict(
        zip(texts, nearest(relations_of(witness, texts), relations).tolist(), strict=True)
    )
    votes = torch.zeros(len(chosen), len(chosen))
    for edit, probe in pairs:
        vote = 1.0 if probe.kind in kinds else -1.0
        votes[number[edit.text], number[probe.prompt.text]] += vote
    follows = votes > 0
    example = [[chosen[a], chosen[b]] for a, b in follows.nonzero().tolist()]
    return {"relations": relations, "follows": follows.float()}, example


def _about(edit: Prompt, probe: Probe, kinds: Sequence[str]) -> bool:
    """Whether a probe asks about the edited thing, at the edit's picture or another one of it."""
    if not edit.images or not probe.prompt.images:
        return False
    if probe.kind in INSIDE or probe.kind in kinds:
        return True
    return [picture(i) for i in edit.images] == [picture(i) for i in probe.prompt.images]


def relations_of(witness: Witness, texts: Sequence[str]) -> Tensor:
    """[n, R, m + 1] what the model answers to questions about the fixed pictures."""
    return witness.relations(witness.of([Prompt.of(t) for t in texts]))


def nearest(asked: Tensor, relations: Tensor) -> Tensor:
    """[n] the relation that each question [n, R, m + 1] agrees with most; -1 = with none."""
    agreed = asked.flatten(1) @ relations.flatten(1).T / asked.shape[1]
    best, index = agreed.max(1)
    return torch.where(best >= KNOWN, index, -1)
