"""`analyze alpha`: what a live memory decided, read back, counted and ranked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.analyses.alpha import AlphaAnalysis, AlphaRecord, AlphaSummary, observed
from errata.core import registry
from errata.core.analysis import Subject
from errata.core.errors import BadSpec
from errata.core.kinds import label
from errata.core.types import Case, Probe, Prompt
from errata.editors.unike.triplets import ends
from errata.patches.latent import BlockMemory, Latent, LatentSettings, SharedMemory
from tests import tiny

LAYERS = (2, 3)


def knowledge(bb, count=6):
    rng = torch.Generator().manual_seed(0)
    d = bb.width
    encoder = {"mean": torch.zeros(d), "std": torch.ones(d), "w0": torch.eye(d)}
    encoder["b0"] = torch.zeros(d)
    blocks = {}
    for i in LAYERS:
        sem, pos = (torch.randn(count, d, generator=rng) for _ in range(2))
        blocks[i] = BlockMemory(sem, pos, encoder, torch.zeros(d))
    return SharedMemory("none", blocks)


def latent(bb, prompts, **options):
    """A memory whose own entries are the states of `prompts` themselves."""
    sem, pos, _ = ends(bb, bb.encode(prompts, ["red"] * len(prompts)), list(LAYERS))
    own = {i: (sem[i], pos[i]) for i in LAYERS}
    heads = {i: bb.heads(i) for i in LAYERS}
    return Latent(
        knowledge(bb), heads, own, LatentSettings(**{"top": 4, "attention": "cosine", **options})
    )


def decided(bb, patch, prompts):
    with torch.no_grad(), bb.applied(patch), bb.ask(bb.encode(prompts)) as question:
        (one,) = bb.hooks.running
        return one.decided(question.ctx)


def test_what_was_decided_is_what_the_definition_says(ragged):
    """In the first block, which nothing has touched: the own entry is the question itself."""
    bb = tiny.shared("llava")
    prompts = ragged[:2]
    summary = decided(bb, latent(bb, prompts[:1], alpha=0.3), prompts)
    assert set(summary) == set(LAYERS)
    first = summary[LAYERS[0]]
    torch.testing.assert_close(first["alpha"], torch.full((2,), 0.3))
    torch.testing.assert_close(first["cosine"][0, 0], torch.tensor(1.0))
    assert first["own"].shape == (2, 4) and bool(first["own"][0, 0])
    assert int(first["own"][0].sum()) == 1, "it has one entry of its own"
    wanted = torch.softmax(first["cosine"] / 0.1, dim=1)
    torch.testing.assert_close(first["weight"], wanted)


def test_a_patch_that_decides_nothing_tells_nothing(ragged, edits):
    bb = tiny.shared("llava")
    patch = registry.load("editors", "ft_l")(steps=1).edit(bb, edits[:1]).patch
    assert decided(bb, patch, ragged[:2]) == {}


class Memory:
    """Stands for an editor: one memory per edit, with the edit's own state in it."""

    name = "memory"

    def __init__(self):
        self.passed = {}

    def edit_rows(self, bb, edits, states, *, seed):
        from errata.core.editor import EditResult

        return [EditResult(latent(bb, [e.prompt])) for e in edits]


@pytest.fixture
def cases(edits):
    return tuple(
        Case(
            f"c{i}",
            e,
            (
                Probe("r", e.prompt, "reliability", reference=e.target),
                Probe("n", e.prompt.with_text("Is it big?"), "near_locality", "near1", "yes"),
                Probe("l", Prompt.of(f"Who wrote Fact {i}?"), "t_locality", "far", "ring"),
            ),
        )
        for i, e in enumerate(edits)
    )


def subject(cases, rows=4, editor=None):
    return Subject(tiny.shared("llava"), cases, "made:up@dev", editor or Memory(), rows=rows)


def test_every_question_is_seen_at_every_block_and_rows_change_nothing(cases):
    together, alone = (list(observed(subject(cases, rows))) for rows in (4, 1))
    assert len(together) == len(cases) * 3 * len(LAYERS)

    def key(s):
        return s.case, s.kind, s.block

    for a, b in zip(sorted(together, key=key), sorted(alone, key=key), strict=True):
        assert key(a) == key(b) and a.own_found == b.own_found
        assert a.alpha == pytest.approx(b.alpha, abs=1e-4)
        assert a.own_weight == pytest.approx(b.own_weight, abs=1e-4)
    edits = [s for s in together if s.kind == "reliability" and s.block == LAYERS[0]]
    assert all(s.cosine == pytest.approx(1.0, abs=1e-5) and s.own_found for s in edits)
    assert {s.text_only for s in together if s.kind == "t_locality"} == {True}


def test_findings_have_a_picture_and_the_numbers_behind_it(cases):
    found = AlphaAnalysis().look(subject(cases))
    assert [f.name for f in found.figures] == [
        *("alpha", "alpha-cosine", "alpha-own", "alpha-own-weight"),
    ]
    every, summary = found.tables
    assert len(every.rows) == len(cases) * 3 * len(LAYERS)
    of_edit = [dict(zip(summary.columns, r, strict=True)) for r in summary.rows]
    (first,) = [r for r in of_edit if r["kind"] == "reliability" and r["block"] == LAYERS[0]]
    assert (first["questions"], first["cases"], first["own_found"]) == (4, 4, 1.0)
    assert found.said[-1].startswith("only 4 cases")
    assert set(found.facts["rank"]["2"]) == {"near", "far"}


def test_one_block(cases):
    found = AlphaAnalysis(layers=(-1,)).look(subject(cases))
    assert [p.title for p in found.figures[0].panels] == ["block 3"]


def test_an_editor_without_a_memory_is_refused(cases):
    from errata import editor

    with pytest.raises(BadSpec, match="mixes no memory into attention"):
        AlphaAnalysis().look(subject(cases[:1], editor=editor("ft_l", steps=1)))
    with pytest.raises(BadSpec, match="at block"):
        AlphaAnalysis(layers=(0,)).look(subject(cases[:1]))
    with pytest.raises(BadSpec, match="--editor"):
        AlphaAnalysis().look(replace(subject(cases[:1]), editor=None))


def record(case, kind, alpha, group="", **more):
    base = AlphaRecord(case, kind, group, False, 5, alpha, True, 0.1, 0.9, 4)
    return replace(base, **more)


def test_the_rank_is_a_share_of_pairs_within_a_case():
    summary = AlphaSummary(
        [
            record("a", "reliability", 0.5),
            record("a", "t_generality", 0.8, "seen"),
            record("a", "near_locality", 0.2, "near1"),
            record("a", "near_locality", 0.7, "near2"),
            record("b", "reliability", 0.9),
            record("b", "near_locality", 0.9, "near1"),
            record("c", "near_locality", 0.1, "near1"),  # nothing of its edit: not ranked
            record("a", "portability", 0.0),  # follows from the edit, is not the edited fact
        ]
    )
    value, n = summary.rank(5, ("near_locality",))
    assert n == 2
    assert value.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert summary.rank(5, ("t_locality",)) is None


def test_means_are_over_questions_and_intervals_over_cases():
    summary = AlphaSummary([record("a", "reliability", 0.2), record("b", "reliability", 0.6)])
    mean = summary.mean_of(summary.rows("the edit", 5), lambda s: s.alpha)
    assert mean.value == pytest.approx(0.4)
    assert mean.low < 0.2 and mean.high > 0.6, "two cases: wider than both"


def test_text_only_questions_are_also_shown_together_but_counted_once():
    rows = [
        record("a", "reliability", 0.5),
        record("a", "t_locality", 0.9, "far", text_only=True),
        record("b", "reliability", 0.5),
        record("b", "t_locality", 0.1, "far", text_only=True),
    ]
    summary = AlphaSummary(rows)
    assert len(summary.rows("every text-only one", 5)) == 2
    value, n = summary.rank(5, ("t_locality",))
    assert (value.value, n) == (0.5, 2)


@pytest.mark.parametrize(
    ("kind", "group", "wanted"),
    [
        ("reliability", "", "the edit"),
        ("t_generality", "unseen", "rephrase: unseen"),
        ("near_locality", "near1", "near1"),
        ("near_locality", "same_image", "near: same image"),
        ("m_locality", "far", "far, image"),
        ("retention", "", "retention"),
    ],
)
def test_labels(kind, group, wanted):
    assert label(kind, group) == wanted
