"""LTE: one alignment for many edits, at work out of scope too; edits shown with their images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.core.patch import parts_of, united
from errata.core.state import State
from errata.core.types import Case, Edit, Image, Probe, Prompt
from errata.editors.lte import Lte
from errata.io.images import embedded, hashed
from errata.io.patch_folder import load, save
from errata.patches.alignment import Alignment
from errata.patches.context import Context, ContextSettings, Fact, compose, vectors_of
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from errata.training.optimise import generator
from tests import tiny

SITE = "text.1.mlp.down"


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def cases(pictures: list[str]) -> list[Case]:
    out = []
    for n in range(4):
        edit = Edit(
            hashed(Prompt.of("What is the thing?", pictures[n])), "red", old="green", id=str(n)
        )
        probes = (
            Probe(
                "g",
                hashed(Prompt.of("The thing is" + n * " x", pictures[n])),
                "t_generality",
                reference="red",
            ),
            Probe(
                "l", hashed(Prompt.of("New Fact?", pictures[n - 1])), "m_locality", reference="x"
            ),
        )
        out.append(Case(str(n), edit, probes))
    return out


EDITOR = Lte(steps=4, batch_size=2, held_out=0, rank=2, warmup=0, lr=1e-2, encoder="backbone")


@pytest.fixture(scope="module")
def state(backbone: tiny.HfVlm, cases: list[Case]) -> State:
    made = EDITOR.prepare(backbone, cases)
    assert made is not None
    return made


def alignment(identity: str, seed: int = 0) -> Alignment:
    rng = generator(seed, "alignment")
    part = {"A": torch.randn(2, 64, generator=rng), "B": torch.randn(32, 2, generator=rng)}
    return Alignment({SITE: part}, identity=identity).requires_grad_(False)


def test_equal_alignments_are_one_and_different_ones_add_up(
    backbone: tiny.HfVlm, ragged: list[Prompt]
) -> None:
    """Three times the same change is that change; plain deltas with the same tensors add up."""
    batch = backbone.encode(ragged)
    own, again, other = alignment("a"), alignment("a"), alignment("b", seed=1)
    plain = [Delta({SITE: dict(p.part(SITE))}).requires_grad_(False) for p in (own, other)]

    def said(*patches: object) -> torch.Tensor:
        with backbone.applied(*patches):  # type: ignore[arg-type]
            return backbone.logits(batch)

    assert len(united([own, again, own, other])) == 2
    assert torch.equal(said(own, again, own), said(own))
    assert torch.equal(said(Stack([own, again])), said(own))
    assert not torch.allclose(said(plain[0], plain[0]), said(own), atol=1e-2)
    torch.testing.assert_close(said(own, other, again), said(*plain), atol=1e-4, rtol=1e-4)
    nameless = alignment("")
    assert len(united([nameless, alignment("")])) == 2


def test_equal_alignments_in_rows_are_held_once(backbone: tiny.HfVlm) -> None:
    rows = Rows([Stack([alignment("a")]), Stack([alignment("a")])])
    assert rows.layers is not None and rows.layers[0].rows is None  # type: ignore[attr-defined]
    mixed = Rows([Stack([alignment("a")]), Stack([alignment("b", seed=1)])])
    assert mixed.layers is None  # each on its own rows


def test_the_alignment_acts_out_of_scope_and_once_for_all_edits(
    backbone: tiny.HfVlm, cases: list[Case], state: State
) -> None:
    """A question that no edit is shown to differs from the base's answer by the delta alone."""
    one = EDITOR.edit(backbone, [cases[0].edit], state).patch
    two = EDITOR.edit(backbone, [c.edit for c in cases[1:]], state).patch
    both = stacked(one, two)
    far = Prompt.of("Tell me all about Prompt 7")
    assert both.rewrite(far, backbone) == far
    batch = backbone.encode([far])
    base = backbone.logits(batch)
    delta, context = parts_of(one)
    assert isinstance(delta, Alignment) and isinstance(context, Context)
    with backbone.applied(delta):
        aligned = backbone.logits(batch)
    assert not torch.equal(aligned, base)
    assert [type(p) for p in parts_of(both)] == [Alignment, Context]
    for patch in (one, both):
        with backbone.applied(patch):
            assert torch.equal(backbone.logits(backbone.encode([far], rows=[0])), aligned)
    assert both.edits == tuple(c.edit for c in cases)


def test_an_edit_is_shown_with_its_own_image(
    backbone: tiny.HfVlm, cases: list[Case], state: State
) -> None:
    """Two edits with one text: the question meets the one whose image it has."""
    patch = EDITOR.edit(backbone, [c.edit for c in cases], state).patch
    for case in cases:
        image = case.edit.prompt.images[0]
        shown = patch.rewrite(case.edit.prompt, backbone)
        assert shown.segments == (
            "[Updated Information] ",
            image,
            "What is the thing? red\n",
            "[Query] ",
            image,
            "What is the thing?",
        )
    assert int(backbone.encode([shown]).vision.sum()) == 8  # 4 tokens for each of two images


def test_retrieval_by_image(backbone: tiny.HfVlm, pictures: list[str]) -> None:
    """The cosine is the mean of the text's and the image's; one without an image has half of it."""
    asked = [
        Prompt.of("Which shape?", pictures[0]),
        Prompt.of("Which shape?", pictures[1]),
        Prompt.of("Which shape?"),
        Prompt.of("Tell me the colour", pictures[0]),
    ]
    by_image = vectors_of(asked, ContextSettings(by_image=True), backbone)
    by_text = vectors_of(asked, ContextSettings(), backbone)
    near, text = by_image @ by_image.T, by_text @ by_text.T
    torch.testing.assert_close(near.diagonal(), torch.ones(4))
    assert text[0, 1].item() == pytest.approx(1) and near[0, 1] < 0.999
    assert near[0, 2].item() == pytest.approx(0.5, abs=1e-5)
    assert near[0, 3].item() == pytest.approx(0.5 + text[0, 3].item() / 2, abs=1e-5)


def test_what_it_is_trained_on(backbone: tiny.HfVlm, cases: list[Case]) -> None:
    """In scope behind the edit; out of scope behind it and alone, kept as the base says it."""
    trainee = EDITOR.trainee(backbone, cases, 0)
    rows = trainee.rows(cases[0], generator(0, "rows"))
    case, fact = cases[0], [Fact("What is the thing?", "red", (), cases[0].edit.prompt.images)]
    shown = {p.id: compose(p.prompt, fact, (), "update") for p in case.probes}
    first = compose(case.edit.prompt, fact, (), "update")
    assert [(r.role, r.prompt, r.target, r.before) for r in rows] == [
        ("reliability", first, "red", None),
        ("generality", shown["g"], "red", None),
        ("locality", shown["l"], "x", case.probes[1].prompt),
        ("locality", case.probes[1].prompt, "x", case.probes[1].prompt),
        ("locality", case.edit.prompt, "green", case.edit.prompt),
    ]


def test_the_cosine_is_chosen_on_training_cases(
    backbone: tiny.HfVlm, cases: list[Case], state: State
) -> None:
    """With recall 0 only the nearest in-scope question reaches it, with recall 1 all do."""
    trainee = EDITOR.trainee(backbone, cases, 0)
    found = [
        Lte(recall=r, encoder="backbone").extra(backbone, trainee, cases)["threshold"]
        for r in (0.0, 0.5, 1.0)
    ]
    assert found == sorted(found, reverse=True) and found[0] > found[2]
    assert 0 < state.meta["threshold"] < 1


def test_the_edits_images_are_saved_with_their_facts(
    backbone: tiny.HfVlm, cases: list[Case], state: State, tmp_path: Path
) -> None:
    patch = EDITOR.edit(backbone, [c.edit for c in cases[:2]], state).patch
    save(patch, tmp_path)
    loaded = load(tmp_path, backbone)
    delta, context = parts_of(loaded)
    assert isinstance(delta, Alignment) and delta.identity == state.digest()
    assert isinstance(context, Context)
    images = [tuple(map(embedded, c.edit.prompt.images)) for c in cases[:2]]
    assert [f.images for f in context.facts] == images
    assert all(isinstance(i, Image) for f in context.facts for i in f.images)
    assert len(united([loaded, patch])) == 2
