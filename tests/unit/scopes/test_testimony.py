"""Scope `testimony`: the choice of questions, the cut of a memory, the threshold."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.core.errors import BadSpec
from errata.core.model.scope import CHUNK
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Edit, Image, Probe, Prompt
from errata.scopes._cases import Labelled
from errata.scopes._hashes import picture
from errata.scopes.testimony import TestimonyScope
from errata.scopes.testimony._choice import greedy, spread
from errata.scopes.testimony._fit import _in_memory, _tuned, agreement
from errata.scopes.testimony._witness import Panel, Witness
from tests import tiny

SENSES = {"colour?": 0, "hue?": 0, "shape?": 1, "form?": 1, "town?": 2}


class Answers:
    """Answers by the sense of a question alone; stands for a witness with two fixed pictures."""

    panel = Panel((), (Image("a"), Image("b")))

    def of(self, prompts: list[Prompt]) -> Tensor:
        rows = torch.zeros(len(prompts), 3, 4)
        for n, p in enumerate(prompts):
            rows[n, :, SENSES[p.text]] = 1.0
        return rows

    relations = Witness.relations


def test_workers_say_what_one_process_says() -> None:
    """What they get and give back is pickled."""
    bb, asked = tiny.llava(), list[int]()

    class Workers:
        def map(self, task: Any, chunks: Any) -> Iterator[Any]:
            for chunk in chunks:
                there, part = pickle.loads(pickle.dumps((task, chunk)))
                asked.append(len(part))
                yield chunk, pickle.loads(pickle.dumps(there(bb, part)))

    prompts = [Prompt.of(f"what is number {n}?") for n in range(CHUNK + 1)]
    panel = Panel((), ())
    one = Witness(bb, panel).of(prompts)
    two = Witness(bb, panel, PrepareContext(workers=Workers())).of(prompts)
    assert torch.equal(one, two) and asked == [CHUNK, 1, CHUNK, 1]


def test_the_pool_has_one_question_of_each_sense() -> None:
    witness: Any = Answers()
    chosen = spread(witness, list(SENSES), 5)
    assert sorted(SENSES[q] for q in chosen) == [0, 1, 2]
    assert len(spread(witness, list(SENSES), 2)) == 2


def test_testimonies_are_of_the_pictures_alone(pictures: list[str]) -> None:
    asked = ("colour?", "shape?")
    witness = Witness(tiny.shared("llava"), Panel(asked, (Image(pictures[0]),)))
    prompts = [Prompt.of("town?", pictures[1]), Prompt.of("hue?", pictures[1]), Prompt.of("town?")]
    said = witness.testimonies(prompts)
    assert set(witness.known) == {
        (q, (picture(prompts[0].images[0]),)) for q in ("colour?", "shape?")
    }
    assert torch.equal(said, witness.of(prompts)[:, :2])
    assert torch.equal(said[0], said[1]) and not bool((said[0] * said[2]).any())


def test_a_question_that_tells_nothing_is_not_chosen() -> None:
    telling = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.9, 0.8, 0.1, 0.2])
    agreed = torch.stack([torch.full((8,), 0.5), telling], dim=1)
    same = telling > 0.5
    chosen, areas = greedy(agreed, same, torch.arange(8) < 4, 2)
    assert chosen == [1] and areas == [[1.0, 1.0]]


def test_one_disagreement_outweighs_all_agreements() -> None:
    same, other = torch.eye(4)[[0, 0, 0]], torch.eye(4)[[0, 0, 1]]
    agreed = agreement(torch.stack([same, other]), same[None])
    assert agreed[0].sum() == 0 and float(agreed[1].sum()) == pytest.approx(math.log(1e-3))


def test_the_threshold_is_the_one_with_most_whole_cases() -> None:
    score = torch.tensor([3.0, 1.0, 2.9, 1.2, 2.0, -9.0])
    inside, of_case = torch.tensor([True, False] * 3), torch.tensor([0, 0, 1, 1, 2, 2])
    threshold, whole = _tuned(score, torch.ones(6, dtype=torch.bool), inside, of_case)
    assert whole == 1.0 and 1.2 < threshold <= 2.0
    lost = torch.tensor([True, True, False, True, True, True])  # another edit is nearer
    assert _tuned(score, lost, inside, of_case)[1] == pytest.approx(2 / 3, abs=1e-4)


def test_in_a_memory_edits_that_rightly_answer_too_are_left_out() -> None:
    asked = Prompt.of("colour?")
    cases = [
        Case(str(n), Edit(asked, "red", id=str(n)),
             (Probe("r", asked, "reliability", reference="red", depends_on=("ring/colour",)),),
             states=(state,))
        for n, state in enumerate(("ring/colour", "ring/colour", "dot/colour"))
    ]  # fmt: skip
    labelled = Labelled.of(cases)
    score = torch.tensor([[1.0, 3.0, 2.0], [3.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    best, own = _in_memory(labelled, score)
    assert best.tolist() == [2.0, 1.0, 5.0] and own.tolist() == [False, True, True]


def learnt(**settings: Any) -> TestimonyScope:
    weights = {"each": [1.0, 1.0], "bias": 1.0, "threshold": 0.5, "rise": 0.75}
    return TestimonyScope(State("scope testimony", {"weights": weights}), **settings)


def test_the_cut_grows_with_the_memory_and_is_of_each_lane() -> None:
    scope = learnt()
    assert [scope.penalty(k) for k in (1, 10, 100)] == [0.0, 0.75, 1.5]
    assert learnt(rise=0.0).penalty(10) == 0.0
    keys = torch.nn.functional.one_hot(torch.arange(200) % 3, 4).float().repeat(1, 2)
    asked = keys[:2]
    alone = scope.nearest(asked, keys[:100])[1]
    own = torch.zeros(2, 200, dtype=torch.bool)
    own[:, :100] = True
    torch.testing.assert_close(scope.nearest(asked, keys, own)[1], alone)
    assert bool((scope.nearest(asked, keys)[1] < alone).all())


def test_a_rise_below_zero_is_refused() -> None:
    with pytest.raises(BadSpec, match="from 0 on"):
        learnt(rise=-1.0)
