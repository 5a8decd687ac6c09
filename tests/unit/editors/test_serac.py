"""SERAC: what is in scope, and a small model whose answer is more than the stored one."""

from __future__ import annotations

import itertools

import pytest
import torch

from errata.core.types import Case, Edit, Probe, Prompt
from errata.editors.serac import Serac, _labels
from errata.patches.route import Route
from errata.training.batches import CachedExample, TrainBatch, TrainExample
from tests import tiny

IMPLIED = {"red": "ring", "green": "blue thing"}


def case(n: int, target: str, pictures: list[str], look: str = "") -> Case:
    """A picture's thing is told to be `target`; what follows is another word."""
    picture = pictures[n]
    edit = Edit(Prompt.of("What is the thing?", picture), target, id=f"{n}-{target}")
    follows = Prompt.of("Which shape?", picture)
    probes = (
        Probe("g", Prompt.of("The thing is", picture), "t_generality", reference=target),
        Probe("p", follows, "portability", reference=IMPLIED[target]),
        Probe("l", Prompt.of("What is the thing?", pictures[n - 1]), "near_locality"),
        Probe("m", Prompt.of("New Fact?", picture), "m_locality", reference="x"),
    )
    scope = (("look", look or str(n)),)
    return Case(edit.id, edit, probes, scope=scope)


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


def test_what_is_known_of_the_scopes_in_a_batch(backbone: tiny.HfVlm, pictures: list[str]) -> None:
    """Cases a and b are about one thing, c is not. Rows: a's edit and locality, b's edit, c's."""
    cases = (
        case(0, "red", pictures, "x"),
        case(1, "green", pictures, "x"),
        case(2, "red", pictures),
    )
    roles = (("reliability", 0), ("locality", 0), ("reliability", 1), ("reliability", 2))
    empty = torch.zeros(0)
    pieces = tuple(
        CachedExample(TrainExample(role, cases[c].edit.prompt, "x"), empty, ())  # type: ignore[arg-type]
        for role, c in roles
    )
    of_case = torch.tensor([c for _, c in roles])
    turn = TrainBatch(backbone, cases, pieces, of_case, 2, True, torch.Generator())
    inside, outside = _labels(turn)
    assert inside.int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert outside.int().tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]]


def test_the_key_of_an_edit_does_not_depend_on_its_answer(
    backbone: tiny.HfVlm, pictures: list[str]
) -> None:
    editor = Serac(steps=1, batch_size=2, held_out=0, width=16, slots=2)
    cases = [case(i, "red", pictures) for i in range(4)]
    state = editor.prepare(backbone, cases)
    patches = [
        editor.edit(backbone, [Edit(cases[0].edit.prompt, target)], state).patch
        for target in ("red", "a thing of blue")
    ]
    one, other = patches
    assert isinstance(one, Route) and isinstance(other, Route)
    torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
    assert one.corrections[0].memory.shape != other.corrections[0].memory.shape  # type: ignore[attr-defined]


def test_an_answer_in_scope_is_not_a_copy(backbone: tiny.HfVlm, pictures: list[str]) -> None:
    """One question, two edits of one picture: it is answered by what follows from each of them.

    The stored answers are `red` and `green`; neither is said to the question about the shape, and
    both questions are in scope. What the edit does not bear on is answered as before.
    """
    cases = [case(n, t, pictures) for n, t in itertools.product(range(4), IMPLIED)]
    editor = Serac(
        steps=160, batch_size=8, lr=5e-3, warmup=0, held_out=0, width=32, slots=4,
        generality_examples=2, locality_examples=2,
        threshold=0.5,
    )  # fmt: skip
    state = editor.prepare(backbone, cases)
    right = copied = 0
    for one in cases:
        asked = [p.prompt for p in one.probes]
        with backbone.applied(editor.edit(backbone, [one.edit], state).patch):
            batch = backbone.encode(asked)
            with backbone.ask(batch) as q:
                said = [backbone.decode(g.ids) for g in q.greedy([8] * 4)]
        plain = [backbone.decode(g.ids) for g in backbone.generate(backbone.encode(asked), [8] * 4)]
        assert said[0] == one.edit.target
        right += said[1] == IMPLIED[one.edit.target]
        copied += said[1] == one.edit.target
        assert said[3] == plain[3], "out of scope the base answers"
    assert right == len(cases) and copied == 0
