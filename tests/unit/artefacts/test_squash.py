"""Several patches as one: the same answers as the stack, with the edits and origins of all."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import errata
from errata.cli import main
from errata.core.errors import BadPatch, BadSpec, FingerprintMismatch, Notice
from errata.core.patch import Header
from errata.core.types import Prompt
from errata.patches.stack import Stack
from tests import tiny
from tests.leaving import apart, asked, delta
from tests.unit.artefacts.test_peft_export import context, neurons

DOWN, UP, QUERY = "text.1.mlp.down", "text.2.mlp.up", "text.3.attn.q"


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


def test_one_patch_answers_as_the_stack(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    """Different sites, low rank and dense, with and without a bias; saved and loaded."""
    patches = [
        delta(backbone, [DOWN, QUERY], rank=2, seed=1),
        delta(backbone, [DOWN, UP], rank=None, seed=2, bias=True),
        Stack([delta(backbone, [UP], rank=3, seed=3), delta(backbone, [QUERY], seed=4)]),
    ]
    one = errata.squash_patches(patches)
    errata.save_patch(one, tmp_path / "one")
    loaded = errata.load_patch(tmp_path / "one", backbone)
    assert apart(asked(backbone, loaded), asked(backbone, *patches)) <= 1e-5
    assert [e.prompt.text for e in loaded.edits] == [f"Which colour {i}?" for i in (1, 2, 3, 4)]
    assert loaded.origins == patches[0].origins | patches[1].origins | {
        o for p in patches[2].members() or () for o in p.origins
    }
    assert [s["edits"] for s in loaded.header.notes["squashed"]] == [1, 1, 1, 1]
    assert loaded.header.editor == "hand"
    assert loaded.header.fingerprint == backbone.fingerprint()
    assert set(one.part(QUERY)) == {"A", "B"}  # ranks 2 + 3
    assert one.part(QUERY)["A"].shape[0] == 5
    assert set(one.part(UP)) == {"dense", "bias"}


def test_ranks_that_add_up_to_more_than_the_matrix_become_dense(backbone: tiny.HfVlm) -> None:
    patches = [delta(backbone, [QUERY], rank=6, seed=s) for s in range(1, 6)]
    one = errata.squash_patches(patches)
    assert set(one.part(QUERY)) == {"dense"}
    assert apart(asked(backbone, one), asked(backbone, *patches)) <= 1e-5
    joined = errata.squash_patches([one, delta(backbone, [QUERY], seed=7)])
    assert (
        apart(asked(backbone, joined), asked(backbone, *patches, delta(backbone, [QUERY], seed=7)))
        <= 1e-5
    )


def test_of_two_patches_for_one_question_the_later_one_acts(backbone: tiny.HfVlm) -> None:
    first = delta(backbone, [DOWN], seed=1, question="Which?", answer="red")
    other = delta(backbone, [UP], seed=2)
    later = delta(backbone, [DOWN], seed=3, question="Which?", answer="blue")
    one = errata.squash_patches([first, other, later])
    wanted = asked(backbone, first, other, later)
    assert apart(wanted, asked(backbone, other, later)) == 0.0  # the stack leaves `first` out
    assert apart(asked(backbone, one), wanted) <= 1e-5
    assert [e.target for e in one.edits] == ["red", "blue"]
    assert one.origins == other.origins | later.origins


def test_a_patch_on_top_of_another_needs_it(backbone: tiny.HfVlm) -> None:
    """Found on top: both act, the question has the later answer, and nothing is below any more."""
    first = delta(backbone, [DOWN], seed=1, question="Which?", answer="red")
    later = delta(backbone, [DOWN], seed=3, question="Which?", answer="blue")
    notes = {**later.header.notes, "on_top_of": sorted(first.origins)}
    later = later.with_header(replace(later.header, notes=notes), later.edits)
    one = errata.squash_patches([first, later])
    assert apart(asked(backbone, one), asked(backbone, first, later)) <= 1e-5
    assert [e.target for e in one.edits] == ["blue"]
    assert one.on_top_of == frozenset()


def test_edits_that_cannot_be_told_apart_are_named(backbone: tiny.HfVlm) -> None:
    first = delta(backbone, [DOWN], seed=1, question="Which?", answer="red")
    both = first.with_header(first.header, [*first.edits, *delta(backbone, [DOWN], seed=8).edits])
    later = delta(backbone, [UP], seed=3, question="Which?", answer="blue")
    with pytest.warns(Notice, match="two patches answer 'Which\\?' with 'red' and 'blue'"):
        one = errata.squash_patches([both, later])
    assert [(e.prompt.text, e.target) for e in one.edits] == [
        ("Which colour 8?", "red"),
        ("Which?", "blue"),
    ]


def test_a_squashed_patch_stacks_and_is_left_out_like_others(backbone: tiny.HfVlm) -> None:
    one = errata.squash_patches([delta(backbone, [DOWN], seed=s) for s in (1, 2)])
    above = delta(backbone, [UP], seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apart(asked(backbone, one, above), asked(backbone, one)) > 0.01


def test_one_patch_alone_stays_what_it_is(backbone: tiny.HfVlm) -> None:
    patch = delta(backbone, [DOWN])
    one = errata.squash_patches([patch])
    assert one.header == patch.header and one.edits == patch.edits
    assert torch.equal(one.part(DOWN)["A"], patch.part(DOWN)["A"])


def test_what_is_not_additive_is_refused(backbone: tiny.HfVlm) -> None:
    patch = delta(backbone, [DOWN])
    for other in (neurons(backbone), context(backbone)):
        with pytest.raises(BadPatch, match="cannot become a part of one joint patch"):
            errata.squash_patches([patch, other])
    with pytest.raises(BadPatch, match="there is no patch"):
        errata.squash_patches([])
    head = Header("hand", backbone="other", fingerprint="1" * 64)
    with pytest.raises(FingerprintMismatch, match="two models"):
        errata.squash_patches([patch, delta(backbone, [UP]).with_header(head, [])])
    chat = replace(patch.header, notes={"style": "chat"})
    with pytest.raises(BadSpec, match="in the styles chat and raw"):
        errata.squash_patches([patch, delta(backbone, [UP]).with_header(chat, [])])


def test_pictures_that_travel_go_on_travelling(
    backbone: tiny.HfVlm, tmp_path: Path, pictures: list[str]
) -> None:
    for seed in (1, 2):
        patch = delta(backbone, [DOWN], seed=seed)
        edit = replace(patch.edits[0], prompt=Prompt.of(f"Which {seed}?", pictures[seed]))
        errata.save_patch(
            patch.with_header(patch.header, [edit]), tmp_path / str(seed), with_images=seed == 1
        )
    with pytest.raises(SystemExit) as end:
        main(["patch", "squash", *(str(tmp_path / s) for s in "12"), "--out", f"{tmp_path}/one"])
    assert end.value.code == 0
    shutil.rmtree(tmp_path / "1")
    shown = [i for e in errata.load_patch(tmp_path / "one").edits for i in e.prompt.images]
    assert len(shown) == 2
    assert all(Path(i.uri).parent == tmp_path / "one" / "images" for i in shown)
