"""Ports under what users do: compiling, raw calls, missing masks; and decisions in rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from errata.core.errors import BadPatch, BadSpec, MissingMask
from errata.core.hooks.context import HookContext
from errata.core.model.live_patches import live_hooks
from errata.core.patch import Patch, parts_of
from errata.core.types import Edit, Prompt
from errata.networks.embedder import embed
from errata.patches.context import Context, ContextSettings, Fact
from errata.patches.delta import Delta
from errata.patches.neurons import Neurons
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from tests import tiny


class Gate(Patch):
    """Adds a constant where the last prompt token's state points one way: minimal and deciding."""

    decides = True

    def __init__(self, site: str, direction: Tensor, leaky: bool = False) -> None:
        super().__init__((site,))
        self.register_buffer("direction", direction)
        self.leaky = leaky

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        def decide() -> Tensor:
            state = y[:, -1] if self.leaky else ctx.last_prompt(y, self)
            return state @ self.direction > 0

        open_B = ctx.decide(self, site, decide)
        return torch.where(open_B[:, None, None], y + 3 * self.direction, y)

    def pack(self) -> NoReturn:
        raise AssertionError

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> NoReturn:
        raise AssertionError


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


def gate(backbone: tiny.HfVlm, seed: int = 0, leaky: bool = False) -> Gate:
    rng = torch.Generator().manual_seed(seed)
    return Gate("text.1.block", torch.randn(backbone.width, generator=rng), leaky)


def prompts(pictures: list[str]) -> list[Prompt]:
    texts = [
        "What is the colour of the thing?",
        "Which shape?",
        "Is it red or blue?",
        "New thing",
        "Tell me the shape",
    ]
    return [Prompt.of(f"{t} {i}", p) for t in texts for i, p in enumerate((*pictures, None, None))]


def by_token(
    backbone: tiny.HfVlm, patch: Patch, asked: list[Prompt], targets: list[str]
) -> tuple[list[float], list[float]]:
    """Mean log-probability of each target: in one forward, and fed token by token."""
    with backbone.applied(patch):
        batch = backbone.encode(asked, targets)
        with backbone.ask(batch) as q:
            once = [sum(s.logprobs) / len(s.ids) for s in q.scores()]
        longest = max(map(len, batch.targets))
        ids = torch.tensor([[*t, *[0] * (longest - len(t))] for t in batch.targets])
        with backbone.ask(backbone.encode(asked)) as q:
            steps = [q.logits[:, :1]] + [q.feed(ids[:, j : j + 1]) for j in range(longest - 1)]
        logp = torch.cat(steps, 1).log_softmax(-1)
    fed = [
        float(logp[b, torch.arange(len(t)), torch.tensor(t)].mean())
        for b, t in enumerate(batch.targets)
    ]
    return once, fed


def open_rows(backbone: tiny.HfVlm, patch: Gate, asked: list[Prompt]) -> float:
    with backbone.applied(patch), backbone.ask(backbone.encode(asked)) as q:
        (decision,) = q.ctx.memo.values()  # type: ignore[attr-defined]
    return float(decision.float().mean())


def test_the_decision_test_tells_a_leaking_gate(
    backbone: tiny.HfVlm, pictures: list[str], record_property: Any
) -> None:
    asked = prompts(pictures)
    targets = [["green ring", "blue thing of red", "x"][i % 3] for i in range(len(asked))]
    assert len(asked) >= 40
    fraction = open_rows(backbone, gate(backbone), asked)
    record_property("fraction_open", fraction)
    assert 0 < fraction < 1
    once, fed = by_token(backbone, gate(backbone), asked, targets)
    assert once == pytest.approx(fed, abs=1e-4)
    once, fed = by_token(backbone, gate(backbone, leaky=True), asked, targets)
    assert max(abs(a - b) for a, b in zip(once, fed, strict=True)) > 0.1


def test_decisions_follow_their_rows(backbone: tiny.HfVlm, pictures: list[str]) -> None:
    """Different gates on different rows, generated together and alone; some rows end early."""
    asked = prompts(pictures)[:8]
    gates = [gate(backbone, seed=i % 3) for i in range(8)]
    with backbone.applied(Rows(gates)):
        together = backbone.generate(
            backbone.encode(asked, ["green"] * 8), [3, 6, 1, 6, 2, 6, 5, 6]
        )
    for prompt, one, said, cap in zip(
        asked, gates, together, [3, 6, 1, 6, 2, 6, 5, 6], strict=True
    ):
        with backbone.applied(one):
            assert backbone.generate(backbone.encode([prompt]), [cap])[0] == said


def test_a_deciding_patch_without_a_mask_raises(backbone: tiny.HfVlm, pictures: list[str]) -> None:
    batch = backbone.encode([Prompt.of("Which?", pictures[0])])
    inputs = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
    with torch.no_grad(), backbone.applied(gate(backbone)):
        backbone.model(**batch.inputs)
        with pytest.raises(MissingMask):
            backbone.model(**inputs)


def test_a_raw_generate_decides_once_at_its_prompt(
    backbone: tiny.HfVlm, pictures: list[str]
) -> None:
    asked = prompts(pictures)[:6]
    for prompt in asked:
        one = backbone.encode([prompt])
        with torch.no_grad(), backbone.applied(gate(backbone)):
            ids = backbone.model.generate(
                **one.inputs,
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=sorted(backbone.stop_ids),
            )
            said = backbone.generate(one, [5])[0].ids
        assert tuple(ids[0, one.ids.shape[1] :].tolist()[: len(said)]) == said


def test_a_compiled_model_sees_patches_switched_on_later() -> None:
    """0 to 20 patches in at most 6 graphs, because same shapes are fused."""
    backbone = tiny.llava(layers=2)
    graphs = 0

    def count(module: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    torch._dynamo.reset()
    ids = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(backbone.text, backend=count, dynamic=None)
    pool = [neurons(backbone, seed) for seed in range(20)]
    with torch.no_grad():
        base = compiled(input_ids=ids, use_cache=False).last_hidden_state
        for n in (0, 1, 2, 3, 5, 8, 13, 20, 0, 1):
            with backbone.applied(*pool[:n]):
                seen = compiled(input_ids=ids, use_cache=False).last_hidden_state
                eager = backbone.text(input_ids=ids, use_cache=False).last_hidden_state
            torch.testing.assert_close(seen, eager, atol=1e-5, rtol=1e-5)
            assert (n == 0) == torch.allclose(seen, base, atol=1e-6)
    assert graphs <= 6, graphs


def neurons(backbone: tiny.HfVlm, seed: int, gated: bool = True) -> Neurons:
    rng = torch.Generator().manual_seed(seed)
    d = backbone.width
    part = {
        "key": torch.randn(d, 2, generator=rng),
        "key_bias": torch.randn(2, generator=rng),
        "value": torch.randn(2, d, generator=rng) * 0.2,
    }
    if gated:
        part |= {"up": torch.randn(d, 2, generator=rng), "up_bias": torch.randn(2, generator=rng)}
    return Neurons({"text.1.mlp": part}).requires_grad_(False)


def test_fusing_changes_nothing(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    batch = backbone.encode(ragged)
    low = [
        Delta({"text.2.attn.q": {"A": torch.randn(2, 32), "B": torch.randn(32, 2)}}).requires_grad_(
            False
        )
        for _ in range(3)
    ]
    parts: list[Patch] = [*low, *(neurons(backbone, i) for i in range(3))]
    assert len(live_hooks(parts)) == 2
    with backbone.applied(*parts):
        together = backbone.logits(batch)
    with backbone.hooks.block(parts, lambda hooks: hooks, alone=True):
        apart = backbone.logits(batch)
    torch.testing.assert_close(together, apart, atol=2e-4, rtol=2e-4)


def test_an_unknown_site_is_named(backbone: tiny.HfVlm) -> None:
    patch = Delta({"text.9.mlp.down": {"dense": torch.zeros(1, 1)}})
    with pytest.raises(BadSpec, match=r"no site 'text\.9\.mlp\.down'"), backbone.applied(patch):
        pass


def test_a_stack_of_nothing_is_the_identity(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    batch = backbone.encode(ragged)
    clean = backbone.logits(batch)
    with backbone.applied(Stack([])):
        assert torch.equal(backbone.logits(batch), clean)


def test_context_scope_is_decided_from_the_prompt(
    backbone: tiny.HfVlm, record_property: Any
) -> None:
    """Retrieved scope: open on the fact's question, closed elsewhere, neither always.

    The answer plays no part.
    """
    facts = [
        Fact("What is the colour of the thing?", "green"),
        Fact("Which shape is the ring?", "blue"),
    ]
    asked = [f.question for f in facts] + [
        "Is it red?",
        "New Fact",
        "Tell me all about Prompt 7",
    ] * 14
    vectors = embed([f.question for f in facts], "backbone", backbone)
    patch = Context(facts, ContextSettings(scope="retrieved", threshold=0.9), vectors)
    shown = [patch.rewrite(Prompt.of(t), backbone).text for t in asked]
    opened = [s != t for s, t in zip(shown, asked, strict=True)]
    record_property("fraction_open", sum(opened) / len(opened))
    assert opened[:2] == [True, True] and 0 < sum(opened) < len(opened)
    question = "What is the colour of the thing?"
    assert shown[0] == f"New Fact: {question} green\nPrompt: {question}"


def test_context_joins_into_one_memory(backbone: tiny.HfVlm) -> None:
    def one(question: str, answer: str) -> Context:
        vectors = embed([question], "backbone", backbone)
        return Context([Fact(question, answer)], ContextSettings(facts=1), vectors).with_header(  # type: ignore[return-value]
            Context([], ContextSettings(), vectors).header, [Edit(Prompt.of(question), answer)]
        )

    both = stacked(one("What colour?", "red"), one("Which shape of the ring is it?", "blue"))
    assert isinstance(both, Context) and len(both.edits) == 2
    assert both.rewrite(Prompt.of("What colour?"), backbone).text.startswith(
        "New Fact: What colour? red\n"
    )
    assert "blue" in both.rewrite(Prompt.of("Which shape of the ring is it?"), backbone).text


def test_of_equal_questions_the_latest_fact_is_nearest(backbone: tiny.HfVlm) -> None:
    facts = [Fact("What colour?", c) for c in ("red", "green", "blue")]
    vectors = embed([f.question for f in facts], "backbone", backbone)
    shown = Context(facts, ContextSettings(facts=2), vectors).rewrite(
        Prompt.of("What colour?"), backbone
    )
    assert shown.text == (
        "New Fact: What colour? green\nNew Fact: What colour? blue\nPrompt: What colour?"
    )


def test_too_long_a_context_drops_the_least_similar_demonstrations(backbone: tiny.HfVlm) -> None:
    demos = tuple(f"New Fact: number {i} x\nPrompt: number {i} x\n\n" for i in range(40))
    vectors = embed(["What colour?"], "backbone", backbone)
    patch = Context([Fact("What colour?", "red", demos)], ContextSettings(), vectors)
    shown = patch.rewrite(Prompt.of("What colour?"), backbone).text
    kept = [i for i in range(40) if demos[i] in shown]
    assert kept == list(range(len(kept))) and 0 < len(kept) < 40
    assert patch.dropped == 40 - len(kept)
    assert shown.index(demos[0]) > shown.index(demos[len(kept) - 1])


def fact(backbone: tiny.HfVlm, question: str, answer: str, demos: int = 0) -> Context:
    shown = tuple(f"New Fact: number {i} x\nPrompt: number {i} x\n\n" for i in range(demos))
    vectors = embed([question], "backbone", backbone)
    return Context([Fact(question, answer, shown)], ContextSettings(facts=2), vectors)


def test_facts_that_live_together_are_joined(backbone: tiny.HfVlm) -> None:
    """Whether applied together, one on top of the other, or as rows: facts are never nested."""
    one, two = fact(backbone, "What colour?", "red"), fact(backbone, "Which shape is it?", "blue")
    low = Delta({"text.2.attn.q": {"A": torch.randn(2, 32), "B": torch.randn(32, 2)}})
    low.requires_grad_(False)
    asked = Prompt.of("What colour?")
    wanted = stacked(one, two).rewrite(asked, backbone).text
    assert wanted.count("Prompt:") == 1 and "red" in wanted and "blue" in wanted
    stack = Stack([one, low, two])
    assert [type(p) for p in parts_of(stack)] == [Context, Delta]
    cases: list[list[list[Patch]]] = [
        [[one, low, two]],
        [[one], [low, two]],
        [[stack]],
        [[Stack([one, low])], [two]],
        [[stacked(one, low, two)]],
        [[Rows([low, Stack([one, low])])], [two]],
        [[Rows([low, one])], [Rows([low, two])]],
    ]
    for live in cases:
        with backbone.applied(*live[0]):
            alone = backbone.rewritten(asked, 1)
            for more in live[1:]:
                with backbone.applied(*more):
                    assert backbone.rewritten(asked, 1).text == wanted
            if len(live) == 1:
                assert alone.text == wanted
            assert backbone.rewritten(asked, 1) == alone
    assert backbone.rewritten(asked, 1) == asked


def test_facts_of_different_layouts_stay_apart(backbone: tiny.HfVlm) -> None:
    one = fact(backbone, "What colour?", "red")
    two = Context([Fact("Which?", "blue")], ContextSettings(facts=3), one.vectors)
    both = stacked(one, two)
    assert parts_of(both) == [one, two] == parts_of(Stack([both]))
    with backbone.applied(one, two):
        assert backbone.rewritten(Prompt.of("What?")).text.count("Prompt:") == 2


def test_dropped_demonstrations_are_counted_over_all_rewrites(backbone: tiny.HfVlm) -> None:
    one, two = (fact(backbone, q, "red", demos=40) for q in ("What colour?", "Which shape?"))
    one.rewrite(Prompt.of("What colour?"), backbone)
    once = one.dropped
    one.rewrite(Prompt.of("What colour?"), backbone)
    assert type(once) is int and one.dropped == 2 * once > 0
    two.rewrite(Prompt.of("Which shape?"), backbone)
    both = stacked(one, two)
    assert isinstance(both, Context) and both.dropped == one.dropped + two.dropped
    with backbone.applied(Rows([Stack([]), both])):
        backbone.encode([Prompt.of("What colour?")], rows=[1])
    assert type(both.dropped) is int and both.dropped > one.dropped + two.dropped


def test_a_raw_call_under_a_rewriting_patch_raises(backbone: tiny.HfVlm) -> None:
    batch = backbone.encode([Prompt.of("What colour?")])
    patch = fact(backbone, "What colour?", "red")
    with torch.no_grad():
        for live in (patch, Stack([patch]), Rows([patch])):
            with backbone.applied(live):
                with pytest.raises(BadPatch, match=r"rewrites the prompt.*errata\.ask"):
                    backbone.model(**batch.inputs)
                with pytest.raises(BadPatch, match="rewrites the prompt"):
                    backbone.model.generate(**batch.inputs, max_new_tokens=2)
                with backbone.ask(backbone.encode([Prompt.of("What colour?")], rows=[0])) as q:
                    q.greedy([2])
        backbone.model(**batch.inputs)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_of_different_shapes_at_vision_sites(family: str, pictures: list[str]) -> None:
    backbone = tiny.shared(family)
    rng = torch.Generator().manual_seed(3)

    def low(site: str) -> Delta:
        n, o = backbone.weight(site)
        part = {
            "A": torch.randn(2, n, generator=rng) * 0.3,
            "B": torch.randn(o, 2, generator=rng) * 0.3,
        }
        return Delta({site: part}).requires_grad_(False)

    sites = [s for s in backbone.hooks.sites if s.startswith("bridge.")][:1] or ["bridge"]
    seen = [low(sites[0]), low("text.2.mlp.down"), stacked(low(sites[0]), low("text.1.mlp.down"))]
    patch = Rows(seen)
    assert patch.layers is None
    asked = [
        Prompt.of("Which thing?"),
        Prompt.of("What is the colour of the ring?", pictures[1]),
        Prompt.of("What?", pictures[0]),
        Prompt.of("Which?", pictures[0]),
        Prompt.of("Which shape?", pictures[2]),
    ]
    rows = [1, 0, 0, 1, 2]
    with backbone.applied(patch):
        together = backbone.logits(backbone.encode(asked, rows=rows), rows=torch.tensor(rows))
    for i, (prompt, row) in enumerate(zip(asked, rows, strict=True)):
        with backbone.applied(seen[row]):
            alone = backbone.logits(backbone.encode([prompt]))
        torch.testing.assert_close(together[i], alone[0], atol=1e-3, rtol=1e-3)
        plain = backbone.logits(backbone.encode([prompt]))
        seen_here = row == 1 or bool(prompt.images)
        assert torch.allclose(plain, alone, atol=1e-3) != seen_here


def test_a_patch_that_stands_in_two_rows_decides_in_each(backbone):
    """Alone in one row, in a stack in another: the second may not find the first one's decision."""
    one, other = gate(backbone, 1), gate(backbone, 2)
    prompts = [Prompt.of("Which shape?"), Prompt.of("What colour is the thing?")]
    patches = [one, stacked(other, one)]
    for questions in (prompts, prompts[::-1]):
        batch = backbone.encode(questions)
        with torch.no_grad(), backbone.applied(Rows(patches)):
            together = backbone.logits(batch)
        for b, patch in enumerate(patches):
            with torch.no_grad(), backbone.applied(patch):
                torch.testing.assert_close(together[b], backbone.logits(batch)[b])
