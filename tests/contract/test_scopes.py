"""Every scope in front of every correction, over the registry, on a random LLaVA.

The corrections are found once per editor; each scope then makes a memory of them. An editor that
cannot be a correction says so in one line, which is tested too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import errata
from errata.algorithms.scoped import scoped
from errata.contract.editors import weights
from errata.core import registry
from errata.core.errors import BadPatch, BadSpec, MissingState
from errata.core.model.backbone import Backbone
from errata.core.model.scope import BlockScope, Scope
from errata.core.patch import Patch
from errata.core.state import State
from errata.core.types import Case, Edit, Prompt
from errata.io.patch_folder import load, save
from errata.io.states import store
from errata.networks.reader import initialise
from errata.networks.scope import ScopeNetwork
from errata.patches.route import Route
from errata.patches.rows import Rows
from errata.patches.stack import stacked
from errata.training.optimise import generator
from tests import tiny
from tests.fast import FAST

pytestmark = pytest.mark.filterwarnings("ignore:editor '.*:errata.core.errors.Notice")

#: how each scope is made ready for a random model; a new one needs a line
READY: dict[str, Callable[[Backbone, Sequence[Case], str], Scope]] = {
    "lookup": lambda *_: errata.scope("lookup"),
    "same_question": lambda *_: errata.scope("same_question"),
    "same_image": lambda *_: errata.scope("same_image"),
    "knn": lambda *_: errata.scope("knn", layer=3, threshold=0.99999),
    "dualedit": lambda *_: errata.scope("dualedit", layer=2, threshold=0.99999),
    "oracle": lambda _, cases, __: errata.scope("oracle").told(cases),
    "trained": lambda *_: errata.scope("trained", state=network(), threshold=0.9999),
    "subject": lambda *_: errata.scope("subject"),
    "testimony": lambda _, __, shown: errata.scope("testimony", state=panel(shown)),
}
#: editors that put edits into the prompt
IN_PROMPTS = ("ike", "lte")


def network() -> State:
    net = ScopeNetwork(32, 16, slots=2, blocks=1, heads=2, key=4)
    initialise(net, generator(0, "scope"))
    net.of_edit.load_state_dict(net.of_query.state_dict())
    tensors = {f"scope.{k}": v for k, v in net.state_dict().items()}
    return State("serac", {"scope": net.settings}, tensors, settings={"layer": 2})


def panel(picture: str) -> State:
    """Two questions and one fixed picture; it opens for nearly equal testimonies alone."""
    weights_ = {"each": [40.0] * 5, "bias": 0.1, "threshold": 0.0, "rise": 0.0}
    return State(
        "scope testimony",
        {
            "questions": ["Which shape?", "What is it, a thing?"],
            "pictures": [[picture, None]],
            "weights": weights_,
        },
    )


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def known(backbone: Backbone, edits: list[Edit]) -> list[Edit]:
    named = zip(edits, ("colour", "shape", "please"), strict=False)
    return [backbone.hashed(replace(e, subject=name)) for e, name in named]


def ready(name: str, backbone: Backbone, cases: list[Case], picture: str) -> Scope:
    scope = READY[name](backbone, cases, picture)
    if scope.state is not None:
        store(scope.state)
    return scope.for_model(backbone)


#: editor -> its corrections of the three edits, or why it makes none
_FOUND: dict[str, list[Patch] | str] = {}


def corrections(name: str, backbone: Backbone, edits: list[Edit], cases: list[Case]) -> list[Patch]:
    if name not in _FOUND:
        editor = registry.load("editors", name)(**FAST.get(name, {}))
        if editor.requires - backbone.capabilities:
            _FOUND[name] = "needs another model"
        else:
            state = editor.prepare(backbone, [replace(c, origin="correction") for c in cases])
            if state is not None:
                store(state)
            made = scoped(editor, errata.scope("lookup")).edit(backbone, edits, state).patch
            assert isinstance(made, Route)
            _FOUND[name] = list(made.corrections)
    found = _FOUND[name]
    if isinstance(found, str):
        pytest.skip(found)
    return found


def memory(scope: Scope, backbone: Backbone, edits: list[Edit], found: list[Patch]) -> Route:
    from errata.core.patch import Header

    route = Route(scope, scope.keys(backbone, edits), found).requires_grad_(False)
    header = Header(editor="x", fingerprint=backbone.fingerprint())
    return backbone.place(route.with_header(header, edits))


def logits(backbone: Backbone, patch: Patch | None, asked: Sequence[Prompt]) -> Tensor:
    rows = [0] * len(asked)
    with backbone.applied(patch):
        return backbone.logits(backbone.encode(asked, rows=rows), rows=torch.tensor(rows))


def decided(
    backbone: Backbone, patch: Route, asked: Sequence[Prompt], targets: list[str] | None = None
) -> list[tuple[bool, int]]:
    """(whether an edit answers, which one) of each prompt, asked together."""
    with backbone.applied(patch), backbone.ask(backbone.encode(asked, targets)) as q:
        (live,) = (h for h in backbone.hooks.running if isinstance(h, Route))
        entry, _, acts, *_ = next(v for k, v in q.ctx.memo.items() if k[0] == id(live))
    pairs = zip(acts.tolist(), entry.tolist(), strict=True)
    return [(a, e if a else -1) for a, e in pairs]


def test_every_scope_is_tried() -> None:
    assert set(registry.names("scopes")) == set(READY)


#: every scope with some corrections, every correction with a scope of each kind
CELLS = [
    pytest.param(s, e, id=f"{s}-{e}")
    for s in sorted(READY)
    for e in registry.names("editors")
    if e not in IN_PROMPTS and (e in ("ft_l", "say", "serac") or s in ("lookup", "knn"))
]


@pytest.mark.parametrize(("scope_name", "editor_name"), CELLS)
def test_a_cell(
    scope_name: str,
    editor_name: str,
    backbone: Backbone,
    known: list[Edit],
    ragged: list[Prompt],
    cases: list[Case],
    pictures: list[str],
    tmp_path: Path,
) -> None:
    scope = ready(scope_name, backbone, cases, pictures[5])
    found = corrections(editor_name, backbone, known, cases)
    low = {s for c in found for s in c.sites if s.startswith(("vision", "bridge"))}
    if low and isinstance(scope, BlockScope):
        editor = scoped(registry.load("editors", editor_name)(**FAST.get(editor_name, {})), scope)
        with pytest.raises(BadSpec, match="Choose a scope that reads the prompt itself"):
            editor.edit(backbone, known[:1])
        return
    route = memory(scope, backbone, known, found)
    asked = [*(e.prompt for e in known), *ragged]
    base, before = logits(backbone, None, asked), weights(backbone)

    # one decision, whoever is beside a question and whatever is said
    first = decided(backbone, route, asked)
    assert [d for d in first[:3]] == [(True, 0), (True, 1), (True, 2)]
    assert not all(a for a, _ in first), "some question is outside"
    words = ["green", "blue ring of", "x", "a red thing"] * 2
    assert decided(backbone, route, asked, words) == first
    assert [decided(backbone, route, [p])[0] for p in asked] == first

    # closed is the base, bit for bit; alone an answer with a cache is the one of a batch
    together = logits(backbone, route, asked)
    for b, (acts, _) in enumerate(first):
        if not acts:
            assert torch.equal(together[b], base[b])
            alone = asked[b : b + 1]
            here, clean = logits(backbone, route, alone), logits(backbone, None, alone)
            assert torch.equal(here, clean)
    with backbone.applied(route):
        said = backbone.generate(backbone.encode(asked), [5] * len(asked))
        for prompt, one in zip(asked[:4], said, strict=False):
            assert backbone.generate(backbone.encode([prompt]), [5])[0] == one

    # saved and loaded
    save(route, tmp_path)
    loaded = load(tmp_path, backbone)
    assert isinstance(loaded, Route) and torch.equal(logits(backbone, loaded, asked), together)

    # an edit that is taken out leaves the others as they were; two memories are one
    part = route.keep([0, 2])
    assert part is not None and part.edits == (known[0], known[2])
    for edit in part.edits:
        one = logits(backbone, route, [edit.prompt])
        assert torch.equal(logits(backbone, part, [edit.prompt]), one)
    alone = [memory(scope, backbone, [e], [c]) for e, c in zip(known, found, strict=True)]
    joined = stacked(stacked(*alone[:2]), alone[2])
    assert isinstance(joined, Route) and joined.edits == tuple(known)
    assert torch.equal(logits(backbone, joined, asked[:1]), logits(backbone, alone[0], asked[:1]))

    # a new edit of the same question takes the place of the old one
    again = memory(scope, backbone, known[:1], [found[1]])
    newer = stacked(joined, again)
    assert isinstance(newer, Route) and len(newer.keys) == 3
    assert torch.equal(logits(backbone, newer, asked[:1]), logits(backbone, again, asked[:1]))

    # undone
    assert torch.equal(logits(backbone, None, asked), base) and weights(backbone) == before


@pytest.mark.parametrize("name", sorted(READY))
def test_lanes_of_a_batch_have_memories_of_their_own(
    name: str, backbone: Backbone, known: list[Edit], cases: list[Case], pictures: list[str]
) -> None:
    scope = ready(name, backbone, cases, pictures[5])
    found = corrections("say", backbone, known, cases)
    lanes = [
        memory(scope, backbone, known[:2], found[:2]),
        memory(scope, backbone, known[2:], found[2:]),
    ]
    prompts, rows = [e.prompt for e in known] * 2, [0, 0, 0, 1, 1, 1]
    with backbone.applied(Rows(lanes)):
        batch = backbone.encode(prompts, rows=rows)
        got = backbone.logits(batch, rows=torch.tensor(rows))
    base = logits(backbone, None, prompts)
    assert [not torch.equal(got[b], base[b]) for b in range(6)] == [1, 1, 0, 0, 0, 1]


def test_say_says_the_target_and_ends(
    backbone: Backbone, known: list[Edit], cases: list[Case]
) -> None:
    """In its scope, with a cache and without, in a batch of different lengths."""
    editor = errata.editor("say", scope="lookup")
    patch = editor.edit(backbone, known).patch
    with backbone.applied(patch):
        said = backbone.generate(backbone.encode([e.prompt for e in known]), [20] * 3)
        for edit, answer in zip(known, said, strict=True):
            assert backbone.decode(answer.ids) == edit.target and answer.stopped
        batch = backbone.encode([e.prompt for e in known], [e.target for e in known], eos=True)
        with backbone.ask(batch) as q:
            assert all(s.ids == s.argmax for s in q.scores())


@pytest.mark.parametrize("editor", IN_PROMPTS)
def test_an_editor_that_writes_into_the_prompt_is_refused(
    editor: str, backbone: Backbone, known: list[Edit], cases: list[Case]
) -> None:
    inner = registry.load("editors", editor)(**FAST.get(editor, {}))
    state = inner.prepare(backbone, cases)
    with pytest.raises(BadSpec, match="puts its edits into the prompt"):
        scoped(inner, errata.scope("lookup")).edit(backbone, known[:1], state)


def test_the_thousandth_edit_is_the_first(backbone: Backbone, known: list[Edit]) -> None:
    """An edit that is made while a memory is live is bit for bit the one that is made alone."""
    editor = errata.editor("ft_l", scope="lookup", steps=4, lr=1e-2)
    alone = editor.edit(backbone, known[2]).patch
    earlier = editor.edit(backbone, known[:2]).patch
    with backbone.applied(earlier):
        later = editor.edit(backbone, known[2]).patch
    assert isinstance(alone, Route) and isinstance(later, Route)
    pairs = zip(alone.corrections[0].parameters(), later.corrections[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and not later.on_top_of


def test_what_is_refused_in_one_line(backbone: Backbone, known: list[Edit]) -> None:
    with pytest.raises(BadSpec, match="Use it in errata bench"):
        errata.editor("ft_l", scope="oracle").edit(backbone, known[0])
    with pytest.raises(MissingState, match="--scope testimony --benchmark"):
        errata.editor("ft_l", scope="testimony").edit(backbone, known[0])
    with pytest.raises(MissingState, match="--editor serac --benchmark"):
        errata.editor("ft_l", scope="trained").edit(backbone, known[0])
    with pytest.raises(BadSpec, match="works from one of 'scope knn'"):
        errata.scope("knn", state=State("scope testimony"))
    with pytest.raises(BadSpec, match="has no setting 'treshold'"):
        errata.scope("knn", treshold=1)


def test_a_direct_call_does_not_pass_the_prompt_on(backbone: Backbone, known: list[Edit]) -> None:
    patch = errata.editor("say", scope="lookup").edit(backbone, known[0]).patch
    batch: Any = backbone.encode([known[0].prompt])
    with backbone.applied(patch), pytest.raises(BadPatch, match="Ask through"):
        backbone.model(**batch.inputs)


def test_a_language_model_has_scopes_too(edits: list[Edit]) -> None:
    """Text edits of a model without pictures, behind the scopes that need no picture."""
    lm = tiny.shared("micro_umm")
    told = [
        Edit(Prompt.of(f"What is Fact {i}?"), t, f"Fact {i}", id=str(i))
        for i, t in enumerate(("ring", "x"))
    ]
    cases = [Case(e.id, e, ()) for e in told]
    asked = [*(e.prompt for e in told), Prompt.of("Which shape?")]
    for name in ("lookup", "same_question", "subject", "knn", "dualedit", "oracle"):
        scope = READY[name](lm, cases, "")
        patch = errata.editor("say", scope=scope).edit(lm, told).patch
        assert isinstance(patch, Route)
        assert decided(lm, patch, asked) == [(True, 0), (True, 1), (False, -1)], name
        with lm.applied(patch):
            said = lm.generate(lm.encode(asked), [8] * 3)
        assert [lm.decode(g.ids) for g in said[:2]] == ["ring", "x"]


def test_knn_learns_its_block_and_threshold(backbone: Backbone, cases: list[Case]) -> None:
    state = errata.scope("knn", cases=4).prepare(backbone, cases)
    assert state is not None and set(state.meta["accuracy"]) <= {
        "text.1.in",
        "text.2.in",
        "text.3.in",
    }
    scope = errata.scope("knn", state=state).for_model(backbone)
    best = max(state.meta["accuracy"], key=state.meta["accuracy"].get)
    assert scope.site == best and scope.config.threshold == state.meta["thresholds"][best]
