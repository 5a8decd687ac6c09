"""Gradient searches whose step fits the model (`lr=auto`, the default)."""

from __future__ import annotations

import pytest
import torch

import errata
from errata.algorithms import gradient
from errata.core.errors import BadEdit, BadSpec
from errata.core.types import Edit, Prompt
from errata.editors import choose
from errata.evaluation.verify import verify_edits
from errata.patches.rows import Rows
from tests import tiny

WITHOUT_STATE = {"ft_l": {}, "tpatcher": {"memory_weight": 0.0}}


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("name", ["ft_l", "lora"])
def test_an_edit_at_default_settings_hits_on_every_family(name, family, edits):
    bb = tiny.shared(family)
    asked = [edits[0], *([Edit(Prompt.of("What is it?"), "red", id="t")] if name == "ft_l" else [])]
    found = errata.editor(name).edit_rows(bb, asked)
    assert [c for c in verify_edits(bb, asked, [f.patch for f in found]) if not c.kept] == []
    for one in found:
        assert one.log.reached
        assert one.patch.header.notes["step_size"] in gradient.RATES


@pytest.mark.parametrize("name", sorted(WITHOUT_STATE))
def test_the_same_edit_hits_whatever_the_scale_of_the_weights(name):
    """The down projections are made ten times larger or smaller."""
    edit = Edit(Prompt.of("What is it?"), "red", id="t")
    for scale in (0.1, 10.0):
        bb = tiny.llava(layers=2)
        with torch.no_grad():
            for i in range(bb.depth):
                bb.site(f"text.{i}.mlp.down").first.weight.mul_(scale)
        found = errata.editor(name, **WITHOUT_STATE[name]).edit(bb, [edit])
        assert verify_edits(bb, [edit], [found.patch])[0].kept, scale


def test_the_smallest_step_that_answers_is_taken(edits):
    bb, notes = tiny.shared("blip2"), []
    for rates in (gradient.RATES, gradient.RATES[3:]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gradient, "RATES", rates)
            log = errata.editor("ft_l").edit(bb, edits[:1]).log
        notes.append(log.notes["step_size"])
    assert notes == [gradient.RATES[2], gradient.RATES[3]]


def test_groups_are_raised_one_by_one(edits):
    """An edit among others, alone, and on row patches: the same step and the same patch."""
    bb, editor = tiny.shared("blip2"), errata.editor("ft_l")
    edits = edits[1:]
    together = editor.edit_rows(bb, edits)
    assert len({f.log.notes["step_size"] for f in together}) > 1, "the edits need unlike steps"
    empty = [errata.editor("ft_l", lr=1e-9, steps=1).edit(bb, [e]).patch for e in edits]
    with bb.applied(Rows(empty)):
        on_rows = editor.edit_rows(bb, edits)
    for edit, one, other in zip(edits, together, on_rows, strict=True):
        alone = editor.edit(bb, [edit])
        for result in (alone, other):
            assert result.log.notes["step_size"] == one.log.notes["step_size"]
            assert result.log.steps == one.log.steps


def test_a_given_step_is_searched_once_and_not_raised(edits):
    found = errata.editor("ft_l", lr=1e-6, steps=2).edit(tiny.shared("llava"), edits[:1])
    assert (found.log.steps, found.log.reached) == (2, False)
    assert "step_size" not in found.patch.header.notes


@pytest.mark.parametrize("family", [*sorted(tiny.FAMILIES), "micro_umm"])
def test_an_editor_is_chosen_that_needs_no_state(family, edits):
    bb = tiny.shared(family)
    text = [Edit(Prompt.of("What is it?"), "red")]
    for asked in (text, edits) if family != "micro_umm" else (text,):
        editor, why = choose(bb, asked)
        assert not editor.uses_state
        assert {e.modality for e in asked} <= editor.modalities
        assert bb.name in why


def test_an_editor_that_does_not_fit_is_not_chosen(edits, monkeypatch):
    bb = tiny.llava(layers=2)
    assert choose(bb, edits)[0].name == "ft_l"
    for site in [s for s in bb.hooks.sites if s.endswith("mlp.down")]:
        del bb.hooks.sites[site]
    assert choose(bb, edits)[0].name == "lora"
    for site in [s for s in bb.hooks.sites if s.endswith("attn.q")]:
        del bb.hooks.sites[site]
    with pytest.raises(BadEdit, match=r"lora changes text\.0\.attn\.q, which this model"):
        choose(bb, edits)


@pytest.mark.parametrize("given", [{"layers": ()}, {"parts": ()}])
def test_a_search_without_sites_is_refused(given, edits):
    with pytest.raises(BadSpec, match="no site is trained with these settings"):
        errata.editor("ft_l", **given).edit(tiny.shared("llava"), edits[0])
