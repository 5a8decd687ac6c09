"""Every property of `errata.contract.editors`, over the whole registry, on a random LLaVA.

An editor that cannot take part is skipped by a row of tests/QUARANTINE.md, never silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errata.contract import editors as contract
from errata.contract import named
from errata.core import registry
from errata.core.editor import EditRequest, EditResult
from errata.core.errors import BadBackbone, BadImage, FingerprintMismatch
from errata.core.model.backbone import Backbone
from errata.core.types import Case, Edit, Probe, Prompt
from errata.patches.delta import Delta
from tests import tiny
from tests.fast import FAST

# Random models and few steps: how much of a value is written is tested elsewhere
pytestmark = pytest.mark.filterwarnings("ignore:editor '.*:errata.core.errors.Notice")

PROPERTIES = [f for n, f in vars(contract).items() if n.startswith("holds_")]


@pytest.fixture(scope="module")
def world(
    edits: list[Edit], pictures: list[str], tmp_path_factory: pytest.TempPathFactory
) -> contract.World:
    texts = [
        "What is the colour of the thing?",
        "Which shape?",
        "Is it red?",
        "New thing",
        "The ring",
    ]
    many = [Prompt.of(f"{t} {i}", p) for t in texts for i, p in enumerate((*pictures, None, None))]
    cases = [
        Case(
            f"c{i}",
            e,
            (
                Probe("r", e.prompt, "reliability", reference=e.target),
                Probe("g", e.prompt.with_text("Please: x"), "t_generality", reference=e.target),
                Probe("l", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring"),
                Probe("m", edits[(i + 1) % 4].prompt, "m_locality", reference="red"),
            ),
            origin="correction",
        )
        for i, e in enumerate(edits)
    ]
    prompts = [
        *(e.prompt for e in edits),
        Prompt.of("Which ring?"),
        edits[0].prompt.with_text("It?"),
    ]
    return contract.World(
        tiny.shared("llava"), edits, prompts, many, cases, tmp_path_factory.mktemp("contract")
    )


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> contract.World:
    """A model that takes no pictures and draws, for editors that need one: edits of subjects."""
    names = ("thing", "ring", "blue thing", "New Fact")
    targets = ("green", "ring", "blue thing", "red ring of green")
    asked = ("What is the colour of the {}?", "Which shape is the {}?", "The {} is", "The {}, a")
    edits = [
        Edit(Prompt.of(text.format(name)), target, name, id=f"e{i}")
        for i, (text, name, target) in enumerate(zip(asked, names, targets, strict=True))
    ]
    spared = [f"What is the {part} of Fact {i}?" for i in range(12) for part in ("shape", "colour")]
    cases = [
        Case(e.id, e, tuple(Probe(q, Prompt.of(q), "t_locality", "", "ring") for q in spared))
        for e in edits
    ]
    prompts = [*(e.prompt for e in edits), Prompt.of("Which ring?"), Prompt.of("It?")]
    many = [Prompt.of(f"{e.prompt.text} {i}") for e in edits for i in range(10)]
    folder = tmp_path_factory.mktemp("drawing")
    return contract.World(tiny.shared("micro_umm"), edits, prompts, many, cases, folder)


@pytest.mark.parametrize("editor", registry.names("editors"))
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda f: f.__name__)
def test_every_editor(
    check: Any, editor: str, world: contract.World, drawing: contract.World
) -> None:
    made = registry.load("editors", editor)(**FAST.get(editor, {}))
    check(made, world if made.requires <= world.backbone.capabilities else drawing)


@pytest.mark.parametrize("editor", registry.names("editors"))
@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - {"llava"}))
def test_every_editor_on_every_family(family: str, editor: str, world: contract.World) -> None:
    """The longest and the shortest edit, and a prompt without an image; on llava all of them."""
    own = contract.World(
        **{
            **vars(world),
            "backbone": tiny.shared(family),
            "edits": [world.edits[0], world.edits[3]],
            "prompts": [world.prompts[0], *world.prompts[3:5]],
        }
    )
    made = registry.load("editors", editor)(**FAST.get(editor, {}))
    if lacking := made.requires - own.backbone.capabilities:
        with pytest.raises(BadBackbone, match=f"needs a model that can {min(lacking)}; tiny"):
            made.edit(own.backbone, own.edits[:1])
        return
    if (family, editor) == ("blip2", "lte"):  # its demonstrations have pictures of their own
        with pytest.raises(BadImage, match="takes one image in a prompt"):
            contract.holds_weights(made, own)
        return
    for check in (contract.holds_weights, contract.holds_rows, contract.holds_asking):
        check(registry.load("editors", editor)(**FAST.get(editor, {})), own)


class Careless(contract.Editor):
    """Writes a weight, forgets the group's other edits, and draws without the seed."""

    name = "careless"

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        weight = backbone.site("text.0.mlp.down").first.weight
        with torch.no_grad():
            weight.add_(1e-3)
        dense = torch.randn(tuple(weight.shape))
        return [EditResult(Delta({"text.0.mlp.down": {"dense": dense}}), s) for _, s in request]


def test_the_contract_finds_what_it_is_there_for(world: contract.World) -> None:
    own = contract.World(**{**vars(world), "backbone": tiny.llava()})
    broken = set()
    for words, check in contract.checks(Careless, own):
        try:
            check()
        except (AssertionError, FingerprintMismatch):  # its patch is for the weights of before
            broken.add(words)
    wanted = (contract.holds_weights, contract.holds_reproducible, contract.holds_rows)
    assert {named(f) for f in wanted} <= broken


def test_the_quarantine_has_a_reason_for_every_row() -> None:
    """Rows of tests/QUARANTINE.md are `| editor | property | reason |`; today the leaking gate."""
    text = (Path(__file__).parents[1] / "QUARANTINE.md").read_text(encoding="utf-8")
    rows = [
        r
        for r in text.splitlines()
        if r.startswith("| ") and not r.startswith(("| editor", "| ---"))
    ]
    assert all(len(r.split("|")) == 5 and r.split("|")[3].strip() for r in rows)
    assert [r.split("|")[1].strip() for r in rows] == ["dualedit (gate=leaky)"]
