"""What an editor is asked for, and what it says of its search."""

from __future__ import annotations

import pytest
import torch

from errata.core import registry
from errata.core.editor import EditLog, EditRequest
from errata.core.errors import BadEdit
from errata.core.state import State
from errata.core.types import Edit, Prompt
from tests import tiny

EDITS = [Edit(Prompt.of(f"shape {i} is"), "blue", id=str(i)) for i in range(3)]


def test_a_request_pairs_groups_with_their_states_and_numbers_the_edits():
    states = [State("a"), State("b")]
    request = EditRequest.of([EDITS[:2], EDITS[2:]], states, seed=3)
    assert list(request) == [((EDITS[0], EDITS[1]), states[0]), ((EDITS[2],), states[1])]
    assert request.edits == [(0, EDITS[0]), (0, EDITS[1]), (1, EDITS[2])]
    assert len(request) == 2 and request.prepared == states
    last = request.take([1])
    assert last.groups == ((EDITS[2],),) and last.states == (states[1],) and last.seed == 3


def test_a_request_is_checked_when_it_is_made():
    assert EditRequest.of([EDITS]).states == (None,)
    with pytest.raises(AssertionError, match="was given none"):
        EditRequest.of([EDITS]).prepared  # noqa: B018
    with pytest.raises(AssertionError):
        EditRequest.of([EDITS], [None, None])
    with pytest.raises(BadEdit, match="empty target"):
        EditRequest.of([[Edit(Prompt.of("x is"), " ", id="x")]])


def test_the_log_of_a_search_is_typed_and_not_part_of_the_patch():
    editor = registry.load("editors", "ft_l")(lr=1e-3, steps=2, stop_loss=0.0)
    result = editor.edit(tiny.shared("llava"), EDITS[:1])
    assert result.log.search == {"steps": 2, "loss": result.log.loss, "reached": False}
    assert set(result.patch.header.notes) == {"style"}
    assert EditLog().search == {}


def test_a_state_that_grows_names_its_origin_and_keeps_what_was_made_of_it():
    first = State("a", tensors={"x": torch.ones(2)})
    first.views["made"] = "once"
    second = first.grown({"y": torch.zeros(1)})
    third = second.grown({"x": torch.zeros(2)})
    assert set(second.tensors) == {"x", "y"} and second.views == {"made": "once"}
    assert second.origin == third.origin == first.digest() != second.digest()
