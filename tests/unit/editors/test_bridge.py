"""The search of `bridge`: its goal and its loss by routes of their own, its rows, its control."""

from __future__ import annotations

import pytest
import torch

from errata.algorithms.locate_then_edit.stream import stream_site
from errata.algorithms.locate_then_edit.value_search import ValueSettings as TextSettings
from errata.core import registry
from errata.core.errors import BadBackbone, BadEdit, BadSpec
from errata.core.types import Case, Edit, Probe, Prompt
from errata.editors.bridge.search import (
    BridgeSettings,
    fill,
    image_prompts,
    mean_of,
    search,
    with_fact,
)
from tests import tiny

NAMES = ("ring", "blue thing", "Fact")
PROMPTS, ORACLES = ("a shape of the {subject} now", "the {subject}"), ("{statement}. {prompt}",)


def edit(name):
    return Edit(Prompt.of(f"What is the colour of the {name} ?"), "red", name, "blue", name)


@pytest.fixture(scope="module")
def bb():
    return tiny.micro_umm()


@pytest.fixture
def edits():
    return [(r, edit(name)) for r, name in enumerate(NAMES)]


def text(bb, **more):
    given = {"lr": 0.3, "steps": 15, "clamp": 4.0, "weight_decay": 1e-3, **more}
    return TextSettings(sites=(stream_site(bb, 1),), **given)


def rngs(count=3):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def settings(**more):
    return BridgeSettings(**{"prompts": PROMPTS, "oracles": ORACLES, "match": "tokens", **more})


def test_templates():
    one = edit("ring")
    assert fill("a {subject}", one) == "a ring"
    prompt = fill("{statement}. {prompt}", one, "a ring")
    assert prompt == "What is the colour of the ring ? red. a ring"
    assert fill("a {target} {subject} {x}", one) == "a red ring {x}"
    assert with_fact("{target} {subject}", "the {subject} now", one) == "the red ring now"
    assert with_fact("{statement}. {prompt}", "the {subject}", one).endswith("? red. the ring")


def test_the_goal_is_what_the_stated_prompt_gives_at_the_same_tokens(bb, edits):
    found = image_prompts(bb, edits, settings(), rngs())
    rows = 0
    for _, one in edits:
        for template in PROMPTS:
            plain = fill(template, one)
            told = with_fact(ORACLES[0], template, one)
            batch = bb.encode([Prompt.of(plain)])
            n, first = int(batch.lengths[0]), bb.last_column(Prompt.of(plain), one.subject)
            with torch.no_grad():
                there = bb.conditioning(bb.encode([Prompt.of(told)]))[0]
                start = bb.conditioning(batch)[0]
            want = there[len(there) - (n - first) :]
            torch.testing.assert_close(found.goal[rows, first:n], want, atol=1e-5, rtol=1e-5)
            assert found.shared[rows].nonzero()[:, 0].tolist() == list(range(first, n))
            off = (start[first:n] - want).square().sum()
            torch.testing.assert_close(found.start_B[rows], off, atol=1e-4, rtol=1e-4)
            rows += 1
    with torch.no_grad():
        loss = found.loss(bb.conditioning(found.prompts), rngs())
    torch.testing.assert_close(loss, torch.ones(3), atol=1e-5, rtol=1e-5)


def test_the_mean_may_be_matched_where_no_token_is_shared(bb, edits):
    other = settings(oracles=("{prompt} that is {target}",), match="mean")
    found = image_prompts(bb, edits, other, rngs())
    with torch.no_grad():
        told = bb.encode([Prompt.of("a shape of the ring now that is red")])
        want = mean_of(bb.conditioning(told), told.mask)[0]
    torch.testing.assert_close(found.goal[0], want, atol=1e-5, rtol=1e-5)
    with pytest.raises(BadSpec, match="does not end as 'a shape of the ring now' does"):
        image_prompts(bb, edits, settings(oracles=other.oracles), rngs())


def test_the_expected_picture_is_the_generators_own(bb, edits):
    found = image_prompts(bb, edits, settings(match="picture"), rngs())
    with torch.no_grad():
        cond = bb.conditioning(found.prompts)
        got = found.distance(cond + 0.1, rngs())
        want = torch.zeros(len(got))
        draws = rngs()
        for _ in range(2):
            noises = [torch.randn(2, *bb.canvas, generator=g) for g in draws]
            times = [torch.rand(2, generator=g) * 0.6 for g in draws]
            for row in range(len(got)):
                x, t = noises[row // 2][row % 2][None], times[row // 2][row % 2]
                told = fill(ORACLES[0], edits[row // 2][1], found.prompts.prompts[row].text)
                goal = bb.encode([Prompt.of(told)])
                given = (bb.conditioning(goal), goal.mask)
                begun = bb.generator.picture(x, torch.zeros(1), *given)
                x = t * begun + (1 - t) * x
                a = bb.generator.picture(x, t[None], *given)
                own = (cond[row : row + 1] + 0.1, found.prompts.mask[row : row + 1])
                b = bb.generator.picture(x, t[None], *own)
                want[row] += (a - b).square().mean() / 2
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("match", ["mean", "picture"])
def test_other_goals_are_searched_for_too(bb, edits, match):
    found = search(bb, edits, ("",), text(bb), settings(match=match, text_weight=0.0), rngs())
    assert all(line["way_left"] < 0.9 for line in found.log)


def test_a_search_goes_the_way_and_the_value_does_what_the_search_saw(bb, edits):
    found = search(bb, edits, ("",), text(bb), settings(text_weight=0.0), rngs())
    (site,) = found.value
    assert all(line["way_left"] < 0.9 for line in found.log)
    bridge = image_prompts(bb, edits, settings(), rngs())
    delta_Ed = found.value[site] - found.start[site]

    def add(module, args, kwargs):  # a hook of its own, in front of block 2
        x = args[0].clone()
        for b, (e, c) in enumerate(zip(bridge.owner_B, bridge.columns_B, strict=True)):
            x[b, c] += delta_Ed[e]
        return (x, *args[1:]), kwargs

    handle = bb.blocks[2].register_forward_pre_hook(add, with_kwargs=True)
    with torch.no_grad():
        left = bridge.loss(bb.conditioning(bridge.prompts), rngs())
    handle.remove()
    want = torch.tensor([line["way_left"] for line in found.log])
    torch.testing.assert_close(left, want, atol=2e-4, rtol=0)


def test_edits_together_are_edits_alone(bb, edits):
    for more in ({"text_weight": 0.0}, {"text_weight": 1.0}, {"match": "picture"}):
        together = search(bb, edits, ("",), text(bb, steps=5), settings(**more), rngs())
        (site,) = together.value
        for e, one in enumerate(edits):
            own = [torch.Generator().manual_seed(e)]
            alone = search(bb, [one], ("",), text(bb, steps=5), settings(**more), own)
            torch.testing.assert_close(
                together.value[site][e], alone.value[site][0], atol=1e-4, rtol=1e-4
            )


def test_with_words_they_become_likelier_than_without(bb, edits):
    without, with_ = (
        search(bb, edits, ("",), text(bb), settings(text_weight=w), rngs()).log for w in (0.0, 4.0)
    )
    assert all(b["nll"] < a["nll"] for a, b in zip(without, with_, strict=True))
    assert all(b["way_left"] > a["way_left"] for a, b in zip(without, with_, strict=True))


def test_the_control_has_the_length_and_not_the_direction(bb, edits):
    real, chance = (
        search(bb, edits, ("",), text(bb), settings(random=r), rngs()) for r in (False, True)
    )
    (site,) = real.value
    a, b = (v.value[site] - v.start[site] for v in (real, chance))
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1))
    assert float(torch.cosine_similarity(a, b, dim=1).abs().max()) < 0.7  # width 32
    again = search(bb, edits, ("",), text(bb), settings(random=True), rngs())
    assert again.value[site].equal(chance.value[site])


def editor(**more):
    given = {"layers": (0, 1), "mom2_weight": 1.0, "steps": 15, "lr": 0.3, "prompts": PROMPTS,
             "match": "tokens"}  # fmt: skip
    return registry.load("editors", "bridge")(**{**given, **more})


def cases():
    spared = [Probe(f"l{i}", Prompt.of(f"Which shape is thing {i}?"), "t_locality", "", f"red {i}")
              for i in range(12)]  # fmt: skip
    return [Case("x", edit("ring"), tuple(spared))]


def test_the_written_edit_moves_what_is_drawn_from(bb):
    made = editor()
    patch = made.edit(bb, [edit("ring")], made.prepare(bb, cases())).patch
    bridge = image_prompts(bb, [(0, edit("ring"))], settings(), rngs(1))
    with torch.no_grad(), bb.applied(patch):
        left = bridge.loss(bb.conditioning(bridge.prompts), rngs(1))
    assert float(left) < 0.95


def test_what_cannot_be_searched_for(bb):
    with pytest.raises(BadBackbone, match="needs a model that can draw; tiny-llava can"):
        editor().edit(tiny.shared("llava"), [edit("ring")])
    with pytest.raises(BadBackbone, match="needs a model that can draw"):
        editor().prepare(tiny.shared("llava"), cases())
    made = editor()
    nameless = Edit(Prompt.of("What is it ?"), "red", id="e9")
    with pytest.raises(BadEdit, match="edit 'e9' names no subject"):
        made.edit(bb, [nameless], made.prepare(bb, cases()))
    for wrong, why in (
        ({"prompts": ("a thing",)}, "has no {subject}"),
        ({"oracles": ("a {subject}",)}, "has no {target} or {statement}"),
        ({"oracles": ()}, "oracles is empty"),
    ):
        with pytest.raises(BadSpec, match=why):
            editor(**wrong)
