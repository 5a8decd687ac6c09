"""`analyze spaces`: what a probe reads, and that it reads it without having seen the subject."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from errata.analyses import spaces
from errata.analyses.spaces import (
    AnswerPair,
    BlockSpaces,
    SpacesAnalysis,
    folds,
    known_pairs,
    principal,
)
from errata.core.analysis import Subject
from errata.core.errors import BadData, BadSpec, MissingExtra, MissingState
from errata.core.state import State
from errata.core.types import Case, Edit, Prompt
from tests import tiny

N, D = 40, 12


def pairs(true=lambda i: f"t{i}", wrong=lambda i: f"w{i}", count=N):
    """Two questions per subject."""
    return [
        AnswerPair(Prompt.of(f"q{i}"), true(i), wrong(i), f"s{i // 2}", "home")
        for i in range(count)
    ]


def noise(seed, count=N):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def accuracy(marks):
    return sum(marks[0] + marks[1]) / (2 * len(marks[0]))


def test_a_direction_of_truth_is_found():
    truth = torch.zeros(D)
    truth[3] = 4.0
    assert accuracy(folds(noise(1) + truth, noise(2) - truth, pairs(), 0)) == 1.0


def test_what_is_true_of_one_subject_only_does_not_help():
    """Every subject has a direction of its own: a line that saw the subject would be right."""
    own = torch.eye(N // 2).repeat_interleave(2, dim=0) * 5
    marks = folds(own, -own, pairs(), 0)
    labels = torch.cat([torch.ones(N), -torch.ones(N)])
    line = spaces.ridge_probe(torch.cat([own, -own]), labels)
    assert bool((spaces.decisions(own, line) > 0).all()), "seen subjects are told right"
    assert accuracy(marks) <= 0.5


def test_answers_alone_count_the_other_subjects_only():
    same = folds(noise(1), noise(2), pairs(lambda i: "yes", lambda i: "no"), 0)
    assert same[2] == same[3] == [1.0] * N
    unique = folds(noise(1), noise(2), pairs(), 0)
    assert unique[2] == unique[3] == [0.5] * N, "an answer that nobody else has tells nothing"


def state_with(identity=True, layers=(1,)):
    """Encoders that change nothing but the sign of nothing: one linear layer, the identity."""
    tensors = {}
    for i in layers:
        for name in ("enc_sem", "enc_tru"):
            tensors |= {
                f"text.{i}/{name}/mean": torch.zeros(D),
                f"text.{i}/{name}/std": torch.ones(D),
                f"text.{i}/{name}/w0": torch.eye(D),
                f"text.{i}/{name}/b0": torch.zeros(D),
            }
    return State("unike", {"blocks": {"1": {"answers alone": 0.6}}}, tensors)


def view(pos, neg, known_pos, known_neg, own=None):
    states = ((pos, neg), (known_pos, known_neg))
    known = pairs(count=len(known_pos))
    return BlockSpaces(state_with(), 1, own or pairs(), known, states, 0, 10)


def test_the_line_of_corrections_says_what_it_found_on_known_facts():
    side = torch.zeros(D)
    side[0] = 6.0
    truth = view(noise(1) + side, noise(2) - side, noise(3, 20) + side, noise(4, 20) - side)
    surprise = view(noise(1) + side, noise(2) - side, noise(3, 20) - side, noise(4, 20) + side)
    for seen, wanted in ((truth, 1.0), (surprise, 0.0)):
        assert seen.of("truthfulness").probe.value == 1.0
        assert seen.on_known("truthfulness").value == wanted
        assert seen.on_known("states").value == wanted


def test_numbers_are_over_subjects_and_come_with_those_of_prepare():
    own = pairs(lambda i: "yes" if i % 2 else "no", lambda i: "no" if i % 2 else "yes")
    seen = view(noise(1), noise(2), noise(3, 20), noise(4, 20), own)
    score = seen.of("semantic")
    assert (score.n, score.subjects, score.probe.units) == (N, N // 2, N // 2)
    assert score.balanced.value == pytest.approx(score.probe.value), "answers are balanced already"
    facts = seen.facts()
    assert facts["when prepared"] == {"answers alone": 0.6}
    assert facts["spaces"]["states"]["known facts"] == 20
    assert all(f"n = {N}" in seen.notes(s)[0] for s in spaces.SPACES)


def test_a_picture_holds_both_kinds_and_known_facts_beside_them():
    seen = view(noise(1), noise(2), noise(3, 20), noise(4, 20))
    panels = seen.panels("pca")
    assert [len(d.points) for p in panels for d in p.dots] == [10] * 8
    assert panels[-1].title.endswith("known")
    assert len(view(noise(1), noise(2), noise(3, 0), noise(4, 0)).panels("pca")) == 3


def test_principal_axes_are_those_of_the_fitted_points():
    """Points in a plane: their distances survive; what lies off the plane is projected."""
    flat = noise(5)[:, :2] * torch.tensor([3.0, 1.0])
    lifted = torch.cat([flat, torch.zeros(N, D - 2)], dim=1)
    off = lifted.clone()
    off[:, 5] = 100.0
    got = principal(lifted, lifted)
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    apart, wanted = torch.cdist(got, got, **exact), torch.cdist(flat, flat, **exact)
    torch.testing.assert_close(apart, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(principal(lifted, off), got, atol=1e-4, rtol=1e-4)


def test_tsne_keeps_groups_apart_and_repeats():
    pytest.importorskip("sklearn")
    apart = torch.cat([noise(1), noise(2) + 30])
    first, again = (spaces.neighbours(apart, 3) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2 * N, 2)
    nearest = torch.cdist(first, first).fill_diagonal_(1e9).argmin(1)
    assert bool(((nearest < N) == (torch.arange(2 * N) < N)).all())


# -- what is asked ----------------------------------------------------------------------------


class Says:
    """Stands for a backbone that answers every question by a fixed text."""

    def __init__(self, answers):
        self.answers = answers

    def encode(self, prompts, targets):
        return SimpleNamespace(prompts=prompts, targets=[t.split() for t in targets])

    def generate(self, batch, caps):
        assert caps == [len(t) + spaces.EXTRA_TOKENS for t in batch.targets]
        return [SimpleNamespace(ids=self.answers[p.text]) for p in batch.prompts]

    def decode(self, ids):
        return ids


def test_only_facts_that_the_model_says_are_known():
    says = Says({f"q{i}": "Red" if i % 2 == 0 else "blue" for i in range(100)})
    cases = [Case(f"c{i}", Edit(Prompt.of(f"q{i}"), " green", old="red."), ()) for i in range(80)]
    cases += [Case("x", Edit(Prompt.of("q90"), "green", old="red"), (), origin="correction")]
    cases += [Case("y", Edit(Prompt.of("q92"), "green"), ())]
    found = known_pairs(says, cases, 1000)
    assert [p.prompt.text for p in found] == [f"q{i}" for i in range(0, 80, 2)]
    assert {(p.true, p.wrong) for p in found} == {("red.", "green")}
    few = known_pairs(says, cases, 4)
    assert [p.prompt.text for p in few] == ["q0", "q20", "q40", "q60"], "evenly spaced"
    assert known_pairs(says, cases[-2:], 4) == []


# -- errors -----------------------------------------------------------------------------------


def subject(state, benchmark="microworld:vqa@dev/disjoint", cases=()):
    return Subject(tiny.shared("llava"), cases, benchmark, None, state)


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        (lambda: SpacesAnalysis().look(subject(None)), MissingState, "--state DIR"),
        (lambda: SpacesAnalysis().look(subject(State("tpatcher"))), BadSpec, "holds no semantic"),
        (
            lambda: SpacesAnalysis().look(subject(state_with(), "microworld:vqa@train/disjoint")),
            BadSpec,
            "@dev or @eval",
        ),
        (
            lambda: SpacesAnalysis(layers=(2,)).look(subject(state_with())),
            BadSpec,
            "for blocks 1, not",
        ),
        (
            lambda: SpacesAnalysis(picture="pca").look(subject(state_with())),
            BadData,
            "only 0 subjects",
        ),
        (lambda: SpacesAnalysis(picture="umap"), BadSpec, "picture='umap'"),
        (lambda: SpacesAnalysis(layer=3), BadSpec, "Did you mean 'layers'"),
    ],
)
def test_bad_input_is_one_clear_line(what, error, words):
    with pytest.raises(error, match=words) as caught:
        what()
    assert "\n" not in str(caught.value)


def test_tsne_without_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "sklearn" else find(n, *a)
    )
    with pytest.raises(MissingExtra, match=r"errata\[viz\]"):
        SpacesAnalysis(picture="tsne").look(subject(state_with()))
    assert SpacesAnalysis()._methods() == ["pca"]
