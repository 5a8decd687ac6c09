"""Editor `witness`: two corrections behind one scope."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import errata
from errata.core.errors import BadSpec, UnknownName
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.editors.witness import WitnessEditor
from errata.io.states import store
from errata.patches.route import Route
from errata.patches.two_ways import TwoWays
from tests import tiny


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def pictured(backbone: Backbone, edits: list[Edit]) -> list[Edit]:
    return [backbone.hashed(e) for e in edits if e.prompt.images][:2]


def state_for(backbone: Backbone, edit: Edit, follows: float = 1.0) -> State:
    """Every relation is one, and it follows from itself: all questions about the thing do."""
    image = edit.prompt.images[0]
    meta = {
        "questions": ["Which shape?"],
        "pictures": [[image.uri, image.sha256]],
        "weights": {"each": [40.0, 40.0, 40.0, 40.0], "bias": 0.1, "threshold": 0.0, "rise": 0.0},
    }
    relations = torch.ones(1, 1, 129) / 129**0.5
    tensors = {"relations": relations, "follows": torch.full((1, 1), follows)}
    state = State("scope testimony", meta, tensors, fingerprint=backbone.fingerprint())
    store(state)
    return state


def logits(backbone: Backbone, patch: object, prompt: Prompt) -> Tensor:
    with backbone.applied(patch):  # type: ignore[arg-type]
        return backbone.logits(backbone.encode([prompt]))


SMALL = {"direct": "ft_l", "follows": "ft_v"}


def test_the_fact_and_what_follows_are_corrected_in_two_ways(
    backbone: Backbone, pictured: list[Edit], tmp_path: Path
) -> None:
    edit = pictured[0]
    patch = WitnessEditor(**SMALL).edit(backbone, [edit], state_for(backbone, edit)).patch
    assert isinstance(patch, Route) and isinstance(patch.corrections[0], TwoWays)
    other = edit.prompt.with_text("What follows from it?")
    for way, prompt in (("direct", edit.prompt), ("follows", other)):
        alone = getattr(patch.corrections[0], way)
        torch.testing.assert_close(
            logits(backbone, patch, prompt), logits(backbone, alone, prompt), atol=1e-5, rtol=1e-5
        )
        assert not torch.equal(logits(backbone, patch, prompt), logits(backbone, None, prompt))
    elsewhere = Prompt.of(edit.prompt.text)  # of a random model, pictures hardly differ
    assert torch.equal(logits(backbone, patch, elsewhere), logits(backbone, None, elsewhere))
    errata.save_patch(patch, tmp_path / "p")
    again = errata.load_patch(tmp_path / "p", backbone)
    for prompt in (edit.prompt, other, elsewhere):
        assert torch.equal(logits(backbone, again, prompt), logits(backbone, patch, prompt))


def test_an_edit_without_a_picture_has_one_way(backbone: Backbone, pictured: list[Edit]) -> None:
    text = Edit(Prompt.of("The ring is"), "blue", id="t")
    state = state_for(backbone, pictured[0])
    results = WitnessEditor(**SMALL).edit_rows(backbone, [text, pictured[0]], [state, state])
    ways = [isinstance(r.patch.corrections[0], TwoWays) for r in results]  # type: ignore[attr-defined]
    assert ways == [False, True]


def test_where_nothing_is_known_to_follow_there_is_one_way(
    backbone: Backbone, pictured: list[Edit]
) -> None:
    full = state_for(backbone, pictured[0])
    old = State(full.editor, full.meta, fingerprint=full.fingerprint)
    patch = WitnessEditor().edit(backbone, [pictured[0]], old).patch
    assert isinstance(patch, Route) and not patch.scope.config.consequences
    with pytest.raises(BadSpec, match="does not know which questions follow"):
        WitnessEditor(follows="ft_v").edit(backbone, [pictured[0]], old)


@pytest.mark.parametrize("setting", ["direct", "follows"])
def test_parts_that_cannot_be(setting: str) -> None:
    with pytest.raises(UnknownName, match="ft_z"):
        WitnessEditor(**{setting: "ft_z"})
    for name in ("serac", "witness"):
        with pytest.raises(BadSpec, match="works from a state of its own"):
            WitnessEditor(**{setting: name})
