"""Several patches for one question: the later one wins, or a word is said."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import errata
from errata.core import registry
from errata.core.model import live_patches
from errata.core.patch import Patch, parts_of, same_prompt, settled
from errata.core.types import Case, Edit, Image, Probe, Prompt
from errata.io.patch_folder import load, save
from errata.io.states import store
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from tests import tiny
from tests.fast import FAST


@pytest.fixture(scope="module")
def made(edits: list[Edit], cases: list[Case]) -> dict[str, Any]:
    """Editor -> (model, edits of one question, a third edit, their patches found apart)."""
    return {}


def of(name: str, made: dict[str, Any], edits: list[Edit], cases: list[Case]) -> Any:
    if name not in made:
        cls = registry.load("editors", name)
        bb = tiny.shared("micro_umm" if cls.requires else "llava")
        one, other, third = (
            replace(edits[0], target="ring", id="a"), replace(edits[0], target="blue", id="b"),
            edits[1],
        )  # fmt: skip
        cases = [replace(c, origin="correction") for c in cases]
        if cls.requires:
            ask = Prompt.of("The colour of the thing is")
            one, other = (replace(e, prompt=ask, subject="thing") for e in (one, other))
            third = replace(one, prompt=Prompt.of("The thing and a ring"), id="c")
            spared = tuple(
                Probe(f"p{i}", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring")
                for i in range(24)
            )
            cases = [Case("c", one, spared)]
        editor = cls(**FAST.get(name, {}))
        state = editor.prepare(bb, cases)
        if state is not None:
            store(state)
        patches = [editor.edit(bb, [e], state).patch for e in (one, other)]
        both = editor.edit(bb, [one, third], state).patch
        made[name] = (bb, editor, state, (one, other, third), patches, both)
    return made[name]


def logits(bb: Any, prompts: list[Prompt], *patches: Any, rows: bool = False) -> torch.Tensor:
    with bb.applied(*patches):
        index = list(range(len(prompts))) if rows else [0] * len(prompts)
        return bb.logits(bb.encode(prompts, rows=index), rows=torch.tensor(index))


@pytest.mark.parametrize("name", registry.names("editors"))
def test_the_later_patch_of_a_question_acts_alone(name, made, edits, cases, tmp_path):
    """Found apart, in either order: applied, stacked, in rows, saved, and merged at once."""
    bb, _, _, (one, _, third), (a, b), _ = of(name, made, edits, cases)
    prompts = [one.prompt, third.prompt]
    for order in ((a, b), (b, a)):
        alone = logits(bb, prompts, order[1])
        stack = stacked(*order)
        save(stack, tmp_path / order[0].edits[0].id)
        for live in (order, (stack,), (load(tmp_path / order[0].edits[0].id, bb),)):
            assert torch.equal(logits(bb, prompts, *live), alone), (name, order[0].edits)
        in_rows = logits(bb, prompts, Rows([stack, stack]), rows=True)
        assert torch.allclose(in_rows, alone, atol=1e-4)
        one_by_one = logits(bb, prompts, *(Rows([p, p]) for p in order), rows=True)
        assert torch.allclose(one_by_one, alone, atol=1e-4)
        # a patch on all rows, and one of a row: the other row keeps the first
        first = logits(bb, [one.prompt], order[0])
        row = Rows([order[1], Stack([])])
        mixed = logits(bb, [one.prompt] * 2, order[0], row, rows=True)
        assert torch.allclose(mixed, torch.cat([alone[:1], first]), atol=1e-4)
        undone = logits(bb, [one.prompt] * 2, Rows([order[0], Stack([])]), order[1], rows=True)
        assert torch.allclose(undone, alone[:1].expand_as(undone), atol=1e-4)


@pytest.mark.parametrize("name", registry.names("editors"))
def test_a_patch_with_other_edits_is_cut_or_the_conflict_is_said(name, made, edits, cases):
    bb, _, _, (one, other, third), (_, b), both = of(name, made, edits, cases)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        together = logits(bb, [one.prompt, third.prompt], both, b)
    lines = [str(w.message) for w in told if "two patches answer" in str(w.message)]
    kept = [p.keep([1]) for p in parts_of(both) if p.edits]
    if all(k is not None for k in kept):
        assert not lines
        assert next(e.id for p in settled([both, b]) for e in p.edits) == third.id
        alone = logits(bb, [one.prompt], b)
        assert torch.equal(together[:1].argmax(-1), alone.argmax(-1))
    else:
        assert len(lines) == len([k for k in kept if k is None])
        assert f"'{one.target}' and '{other.target}'" in lines[0]


@pytest.mark.parametrize("name", registry.names("editors"))
def test_a_patch_names_the_one_it_was_found_on(name, made, edits, cases, tmp_path):
    bb, editor, state, (_, other, _), (a, _), _ = of(name, made, edits, cases)
    with bb.applied(a):
        second = editor.edit(bb, [other], state).patch
    assert second.on_top_of == a.origins and not a.on_top_of
    save(second, tmp_path / "second")
    loaded = load(tmp_path / "second", bb)
    assert (loaded.on_top_of, loaded.origins) == (second.on_top_of, second.origins)
    with pytest.warns(UserWarning, match=f"found on top of patch {next(iter(a.origins))}, which"):
        with bb.applied(loaded):
            pass
    with bb.applied(a, loaded):  # nothing is said, and both stay
        live = {o for p in bb.hooks.stack for o in p.origins}
        assert live == a.origins | loaded.origins
    kept = settled([a, loaded])
    assert parts_of(a)[0] in kept


def test_a_chain_is_kept_whole(edits):
    bb, editor = tiny.shared("llava"), errata.editor("ft_l", lr=1e-2, steps=1)
    chain: list[Any] = []
    for target in ("ring", "blue", "red"):
        with bb.applied(*chain):
            chain.append(editor.edit(bb, [replace(edits[0], target=target)]).patch)
    assert [p.on_top_of for p in chain[1:]] == [p.origins for p in chain[:2]]
    assert settled(chain) == chain
    assert settled([*chain[1:], chain[0]]) == [chain[0]], "made again behind them, found apart"
    assert settled([Stack(chain)]) == chain


def test_edits_of_other_questions_are_left_alone(edits):
    bb, editor = tiny.shared("llava"), errata.editor("ft_l", lr=1e-2, steps=1)
    patches = [editor.edit(bb, [e]).patch for e in edits[:3]]
    assert settled(patches) == patches
    assert settled([patches[0], patches[0]]) == [patches[0]] * 2, "the same edit twice"
    again = errata.editor("ft_l", lr=1e-3, steps=1).edit(bb, edits[:1]).patch
    assert settled([patches[0], again]) == [patches[0], again], "the same answer is no conflict"


def test_when_two_prompts_are_the_same():
    a, copy, b = (Image(u, s) for u, s in (("a", "1"), ("copy", "1"), ("a", "2")))
    prompts = [Prompt((image, "Which?")) for image in (a, copy, b, Image("a"))]
    assert [same_prompt(prompts[0], p) for p in prompts] == [True, True, False, True]
    assert not same_prompt(Prompt.of("Which?"), prompts[0])
    assert not same_prompt(Prompt.of("Which?"), Prompt.of("Which one?"))


def test_one_patch_for_two_answers_is_said(edits):
    bb, editor = tiny.shared("llava"), errata.editor("ft_l", lr=1e-2, steps=1)
    with pytest.warns(UserWarning, match="'ring' and 'blue' by one patch"):
        editor.edit(bb, [replace(edits[0], target=t) for t in ("ring", "blue")])


def test_the_later_fact_replaces_the_earlier_in_one_prompt(edits):
    bb = tiny.shared("llava")
    editor = errata.editor("ike", demonstrations=0, encoder="backbone")
    first = editor.edit(bb, edits[:2])
    with bb.applied(first.patch):
        second = editor.edit(bb, [replace(edits[0], target="ring")], first.state)
    with bb.applied(stacked(first.patch, second.patch)):
        shown = bb.rewritten(edits[0].prompt).text
    assert shown.count("New Fact") == 2
    assert f"{edits[0].prompt.text} ring" in shown and edits[1].prompt.text in shown


@pytest.mark.parametrize("name", registry.names("editors"))
def test_merged_patches_act_as_they_do_one_by_one(name, made, edits, cases, monkeypatch):
    """Patches of three edits of two questions, live together: merged to save work, and not."""
    bb, editor, state, (one, _, third), (a, _), _ = of(name, made, edits, cases)
    prompts = [one.prompt, third.prompt]
    with bb.applied(a):
        b = editor.edit(bb, [replace(third, target="red")], state).patch
    with bb.applied(a, b):
        c = editor.edit(bb, [replace(third, target="green")], state).patch
    merged = logits(bb, prompts, a, b, c)
    monkeypatch.setattr(live_patches, "_merged", lambda hooks, known: (list(hooks), {}))
    with bb.applied(a, b, c):
        live = [p for p in bb.hooks.running if isinstance(p, Patch) and not p.one_when_live]
        assert len(live) in (0, 3), "nothing is merged but what must act as one"
    torch.testing.assert_close(logits(bb, prompts, a, b, c), merged, atol=2e-4, rtol=1e-4)
