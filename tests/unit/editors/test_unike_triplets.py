"""Which questions make triplets, whose states they hold, and the lines of demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errata.algorithms.demonstrations import corpus, demonstrations, similar
from errata.core.model.batch import Generated
from errata.core.model.recorder import Recorder
from errata.core.types import Case, Edit, Probe, Prompt
from errata.editors.unike.spaces import known_facts, output_lengths, split
from errata.editors.unike.triplets import Triplet, collect, ends, states_of, usable
from errata.networks.embedder import embed
from tests import tiny


def case(number: int, target: str, *, origin: str = "correction", **more: Any) -> Case:
    old = more.pop("old", None)
    edit = Edit(Prompt.of(f"What is {number}?"), target, old=old, id=str(number))
    return Case(f"c{number}", edit, more.pop("probes", ()), origin=origin, **more)


class Scripted:
    """Answers by a script: prompt number -> (text, finished). Counts what was asked for."""

    def __init__(self, script: dict[int, tuple[str, bool]]) -> None:
        self.script, self.caps = script, list[int]()

    def encode(self, prompts: Sequence[Prompt], targets: Sequence[str] | None = None) -> Any:
        numbers = [int(p.text.split()[-1][:-1]) for p in prompts]
        return SimpleNamespace(
            numbers=numbers,
            targets=tuple(tuple(t.encode()) for t in targets or [""] * len(numbers)),
        )

    def generate(self, batch: Any, caps: Sequence[int]) -> list[Generated]:
        assert not any(batch.targets), "the model is asked, not told"
        self.caps += caps
        return [
            Generated(tuple(self.script[n][0].encode()), self.script[n][1]) for n in batch.numbers
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode().strip()


def test_what_is_collected_and_counted() -> None:
    script = {
        0: ("red", True),
        1: ("Blue.", True),
        2: ("", True),
        3: ("gre", False),
        4: ("  ", True),
        5: ("ring", True),
    }
    targets = {0: "green", 1: " blue ", 2: "x", 3: "green", 4: "y", 5: "disc"}
    cases = [
        case(n, t, asked="colour" if n < 5 else "", scope={"name": f"s{n % 2}"})
        for n, t in targets.items()
    ]
    backbone = Scripted(script)
    found, counts = collect(backbone, cases)  # type: ignore[arg-type]
    assert [(t.true, t.wrong, t.kind, t.finished) for t in found] == [
        ("green", "red", "colour", True),
        ("green", "gre", "colour", False),
        ("disc", "ring", "", True),
    ]
    assert counts == {
        "answer not finished": 1,
        "answered rightly, not used": 1,
        "asked anything": 1,
        "asked colour": 2,
        "empty answer, not used": 2,
    }
    assert backbone.caps == [len(t.encode()) + 8 for t in targets.values()]
    assert found[1].subject == found[2].subject != found[0].subject


def test_chunks_do_not_change_what_is_found() -> None:
    """70 cases are more than two batches."""
    backbone = Scripted({n: ("wrong" if n % 3 else "right", True) for n in range(70)})
    found, counts = collect(backbone, [case(n, "right") for n in range(70)])  # type: ignore[arg-type]
    assert [t.prompt.text for t in found] == [f"What is {n}?" for n in range(70) if n % 3]
    assert counts["answered rightly, not used"] == 24 and counts["asked anything"] == 46
    assert len({t.subject for t in found}) == 46


def test_only_true_targets_are_usable() -> None:
    cases = [
        case(0, "a"),
        case(1, "b", origin="counterfactual"),
        case(2, "c", origin=""),
        case(3, "  "),
    ]
    assert [c.id for c in usable(cases)] == ["c0", "c2"]


def test_known_facts_are_what_the_model_said_before() -> None:
    cases = [
        case(0, "false ", origin="counterfactual", old="true"),
        case(1, "b", origin="counterfactual"),
        case(2, "c", old="d"),
    ]
    found = known_facts(cases, torch.Generator().manual_seed(0))
    assert found == [(cases[0].edit.prompt, "true", "false")]


def triplet(subject: str) -> Triplet:
    return Triplet(Prompt.of(subject), "a", "b", subject, "", True)


def test_a_split_never_parts_a_subject() -> None:
    triplets = [triplet(f"s{i % 10}") for i in range(40)]
    train, held = split(triplets, torch.Generator().manual_seed(3))
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(40))
    assert {i % 10 for i in train.tolist()}.isdisjoint({i % 10 for i in held.tolist()})
    assert len(held) == 8  # two of ten subjects, four triplets each
    again = split(triplets, torch.Generator().manual_seed(3))
    assert torch.equal(again[1], held)


def test_one_subject_is_both_sides() -> None:
    train, held = split([triplet("s")] * 4, torch.Generator().manual_seed(0))
    assert train.tolist() == held.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("family", sorted({**tiny.FAMILIES, **tiny.WINDOWED}))
def test_ends_are_the_streams_at_the_last_tokens(family: str, ragged: list[Prompt]) -> None:
    """Against each question alone, and the stream of the text 'question answer' itself."""
    bb = tiny.shared(family)
    answers = ["green", "blue thing of red", "ring", "x", "red ring of green"]
    sem, pos, counts = ends(bb, bb.encode(ragged, answers), [1, 3])
    assert counts.tolist() == [1] * 5
    for b, (prompt, answer) in enumerate(zip(ragged, answers, strict=True)):
        for what, states in ((prompt, sem), (prompt.with_text(f"{prompt.text} {answer}"), pos)):
            batch, watch = bb.encode([what]), Recorder(["text.1.in", "text.3.in"])
            with torch.no_grad(), bb.applied(watch):
                bb.logits(batch)
            for i in (1, 3):
                alone = watch.x[f"text.{i}.in"][0, int(batch.lengths[0]) - 1]
                torch.testing.assert_close(states[i][b], alone, atol=1e-4, rtol=1e-4)


def test_every_token_of_an_answer(ragged: list[Prompt]) -> None:
    bb = tiny.shared("llava")
    answers = ["green ring", "x", "red", "blue thing", "ring"]
    batch = bb.encode(ragged, answers)
    lengths = [len(t) for t in batch.targets]
    assert max(lengths) > min(lengths)
    sem, pos, counts = ends(bb, bb.encode(ragged, answers), [2], every=True)
    assert counts.tolist() == lengths and len(sem[2]) == len(pos[2]) == sum(lengths)
    once_sem, once_pos, _ = ends(bb, bb.encode(ragged, answers), [2])
    last = counts.cumsum(0) - 1
    assert torch.equal(pos[2][last], once_pos[2])
    assert torch.equal(sem[2][last], once_sem[2])
    watch = Recorder(["text.2.in"])
    with torch.no_grad(), bb.applied(watch):
        bb.logits(batch)
    start = int(batch.lengths[0])
    assert torch.equal(pos[2][: lengths[0]], watch.x["text.2.in"][0, start : start + lengths[0]])


def test_states_in_chunks_are_those_of_each(pictures: list[str]) -> None:
    bb = tiny.shared("llava")
    rows = [
        (Prompt.of(f"What is {i}?", pictures[i % 6] if i % 2 else None), "green", "red ring")
        for i in range(35)
    ]
    states = states_of(bb, rows, [0, 2])
    for part in (states.sem, states.pos, states.neg):
        assert {i: tuple(t.shape) for i, t in part.items()} == {0: (35, 32), 2: (35, 32)}
        assert part[2].dtype == torch.float16
    for b in (0, 31, 32, 34):
        one = states_of(bb, rows[b : b + 1], [2])
        for mine, alone in ((states.sem, one.sem), (states.pos, one.pos), (states.neg, one.neg)):
            torch.testing.assert_close(mine[2][b], alone[2][0], atol=2e-3, rtol=2e-3)
    assert not torch.allclose(states.pos[2], states.neg[2], atol=0.1)


def test_lengths_are_of_ffn_outputs_at_real_tokens(ragged: list[Prompt]) -> None:
    """Each question alone has no padding: the mean over all their tokens is what is wanted."""
    for family in ("llava", "blip2"):  # a module of its own, and two linears in the block
        bb = tiny.shared(family)
        triplets = [Triplet(p, "a", "b", "s", "", True) for p in ragged]
        total, count = 0.0, 0
        for p in ragged:
            watch = Recorder(["text.2.mlp"])
            with torch.no_grad(), bb.applied(watch):
                bb.logits(bb.encode([p]))
            y = watch.y["text.2.mlp"][0]
            total, count = total + float(y.norm(dim=1).sum()), count + len(y)
        found = output_lengths(bb, triplets, [2])[2].item()
        assert found == pytest.approx(total / count, rel=1e-4)


def test_demonstrations_by_hand() -> None:
    question = Prompt.of("Q?")
    probes = (
        Probe("a", Prompt.of("R?"), "t_generality", reference="A"),
        Probe("b", Prompt.of("R2?"), "t_generality", reference="A"),
        Probe("c", Prompt.of("L?"), "t_locality", reference=" B "),
        Probe("d", Prompt.of("M?"), "m_locality", reference="C"),
    )
    lines = demonstrations(Case("c", Edit(question, " A "), probes))
    assert lines == [
        "New Fact: Q? A\nPrompt: Q? A\n\n",
        "New Fact: Q? A\nPrompt: R? A\n\n",
        "New Fact: Q? A\nPrompt: L? B\n\n",
    ]
    assert demonstrations(Case("c", Edit(question, "A"), ())) == lines[:1]


def test_a_corpus_and_what_is_near() -> None:
    bb = tiny.shared("llava")
    cases = [case(i, f"answer {i}") for i in range(12)]
    lines, vectors = corpus(bb, cases, 5, "backbone", torch.Generator().manual_seed(0))
    assert len(lines) == len(vectors) == 5 and len(set(lines)) == 5
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5), atol=1e-3, rtol=0)
    assert len(corpus(bb, cases, 50, "backbone", torch.Generator())[0]) == 12
    none, empty = corpus(bb, [], 5, "backbone", torch.Generator())
    assert none == [] and empty.shape == (0, 0)
    edit = cases[3].edit
    lines, vectors = corpus(bb, cases, 12, "backbone", torch.Generator())
    near = similar(bb, edit, lines, vectors.half(), "backbone", 4)
    assert len(near) == 4 and near[0] == demonstrations(cases[3])[0]
    scores = embed(lines, "backbone", bb) @ embed([near[0]], "backbone", bb)[0]
    order = [lines[i] for i in scores.argsort(descending=True).tolist()]
    assert list(near) == order[:4]
