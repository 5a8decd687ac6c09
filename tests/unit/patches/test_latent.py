"""The latent shape: decisions from the prompt, joining, rows, files, and what raw calls do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from errata.core.errors import MissingMask
from errata.core.model.live_patches import live_hooks
from errata.core.model.recorder import Recorder
from errata.core.patch import Header, Patch, parts_of, united
from errata.core.types import Edit, Prompt
from errata.patches.delta import Delta
from errata.patches.latent import BlockMemory, Latent, LatentSettings, SharedMemory
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from tests import tiny
from tests.latents import LAYERS, encoder, knowledge, latent

ANSWERS = ["green ring", "blue thing of red", "x", "ring"]
OPTIONS: list[dict[str, Any]] = [
    {"alpha": "query"},
    {"alpha": "token"},
    {"alpha": 0.6},
    {"alpha": "query", "attention": "cosine"},
    {"alpha": "token", "cutoff": 0.35, "top": 8},
]


@pytest.fixture(scope="module")
def bb() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def known(bb: tiny.HfVlm) -> SharedMemory:
    return knowledge(bb)


@pytest.fixture(scope="module")
def asked(pictures: list[str]) -> list[Prompt]:
    texts = ["What is the colour of the thing?", "Which shape?", "Is it red or blue?", "New thing"]
    return [Prompt.of(f"{t} {i}", p) for t in texts for i, p in enumerate((*pictures, None, None))]


def logits(
    bb: tiny.HfVlm, prompts: list[Prompt], *patches: Patch, rows: list[int] | None = None
) -> Tensor:
    with torch.no_grad(), bb.applied(*patches):
        return bb.logits(
            bb.encode(prompts, rows=rows), rows=None if rows is None else torch.tensor(rows)
        )


def low(bb: tiny.HfVlm, seed: int = 0) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    part = {"A": torch.randn(2, 32, generator=rng), "B": torch.randn(32, 2, generator=rng) * 0.3}
    return Delta({"text.2.attn.q": part}).requires_grad_(False)


# -- decisions --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_forward_equals_token_by_token(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt], options: dict[str, Any]
) -> None:
    patch = latent(bb, known, **options)
    answers = [ANSWERS[i % 4] for i in range(len(asked))]
    with torch.no_grad(), bb.applied(patch):
        batch = bb.encode(asked, answers)
        once = bb.logits(batch)
        longest = max(map(len, batch.targets))
        ids = torch.tensor([[*t, *[0] * (longest - len(t))] for t in batch.targets])
        with bb.ask(bb.encode(asked)) as q:
            steps = [q.logits[:, :1]] + [q.feed(ids[:, j : j + 1]) for j in range(longest)]
            used = q.ctx.memo[(id(patch), "text.1.in")]["used"]  # type: ignore[attr-defined]
    fed = torch.cat(steps, 1)
    for b, target in enumerate(batch.targets):
        torch.testing.assert_close(
            once[b, : 1 + len(target)], fed[b, : 1 + len(target)], atol=1e-4, rtol=1e-4
        )
    if "cutoff" in options:
        assert 0 < used.float().mean() < 1


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4]], ids=str)
def test_greedy_with_a_cache_is_the_whole_sequence_again_at_each_step(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt], options: dict[str, Any]
) -> None:
    """By hand: the model's own forward over prompt + answer so far, with the prompt's length."""
    patch = latent(bb, known, **options)
    some = asked[::9]
    with torch.no_grad(), bb.applied(patch):
        said = bb.generate(bb.encode(some), [4] * len(some))
        for prompt, answer in zip(some, said, strict=True):
            start = bb.encode([prompt])
            ids: list[int] = []
            while len(ids) < 4:
                fed = torch.tensor([ids], dtype=torch.long)
                with bb.ask(start) as q:
                    rows = q.feed(fed)[0, -1] if ids else q.logits[0, 0]
                token = int(rows.argmax())
                if token in bb.stop_ids:
                    break
                ids.append(token)
            assert tuple(ids) == answer.ids
    assert len({a.ids for a in said}) > 1


def test_rows_that_end_early_keep_their_own_decisions(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt]
) -> None:
    caps = [2, 6, 1, 6, 3, 6]
    patches = [latent(bb, known, seed=i, alpha="query") for i in range(6)]
    with bb.applied(Rows(patches)):
        together = bb.generate(bb.encode(asked[:6], ["green"] * 6), caps)
    for prompt, one, said, cap in zip(asked[:6], patches, together, caps, strict=True):
        with bb.applied(one):
            assert bb.generate(bb.encode([prompt]), [cap])[0] == said


def test_no_answer_token_reaches_a_decision(bb: tiny.HfVlm, known: SharedMemory) -> None:
    """Retrieval and alpha are bit for bit those of the prompt alone, whatever the answer."""
    prompt = Prompt.of("What is the colour of the thing?")
    seen = []
    for options in ({"alpha": "query"}, {"alpha": "token"}):
        patch = latent(bb, known, **options)
        for answer in ("", "green", "blue thing of red ring and more"):
            with torch.no_grad(), bb.applied(patch):
                with bb.ask(bb.encode([prompt], [answer])) as q:
                    memo = q.ctx.memo  # type: ignore[attr-defined]
            seen.append([memo[(id(patch), f"text.{i}.in")]["cos"] for i in LAYERS])
            seen[-1] += [memo[(id(patch), f"text.{i}.attn.o")] for i in LAYERS]
        for other in seen[1:]:
            for a, b in zip(seen[0], other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        seen.clear()


def test_without_a_mask_it_raises(bb: tiny.HfVlm, known: SharedMemory) -> None:
    batch = bb.encode([Prompt.of("Which?")])
    inputs = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
    with torch.no_grad(), bb.applied(latent(bb, known)):
        bb.model(**batch.inputs)
        with pytest.raises(MissingMask, match="Latent decides from the prompt"):
            bb.model(**inputs)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_raw_calls_decide_at_their_prompt(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt], options: dict[str, Any]
) -> None:
    stops = sorted(bb.stop_ids)
    with torch.no_grad(), bb.applied(latent(bb, known, **options)):
        for prompt in asked[::9]:
            one = bb.encode([prompt])
            raw = bb.model(**one.inputs).logits[0, -1]
            torch.testing.assert_close(raw, bb.logits(one)[0, 0], atol=1e-5, rtol=1e-5)
            ids = bb.model.generate(
                **one.inputs, max_new_tokens=5, do_sample=False, eos_token_id=stops
            )
            said = bb.generate(one, [5])[0].ids
            assert tuple(ids[0, one.ids.shape[1] :].tolist()[: len(said)]) == said


def test_a_left_padded_raw_batch_reads_the_last_prompt_token(
    bb: tiny.HfVlm, known: SharedMemory
) -> None:
    prompts = [Prompt.of("What is the colour of the thing?"), Prompt.of("Which?")]
    right = bb.encode(prompts)
    n = right.lengths.tolist()
    width = max(n)
    ids = torch.stack([right.ids[b, : n[b]].new_zeros(width) for b in range(2)])
    mask = torch.zeros_like(ids)
    for b in range(2):
        ids[b, width - n[b] :], mask[b, width - n[b] :] = right.ids[b, : n[b]], 1
    with torch.no_grad(), bb.applied(latent(bb, known, alpha="query")):
        seen = bb.model(input_ids=ids, attention_mask=mask).logits[:, -1]
        torch.testing.assert_close(seen, bb.logits(right)[:, 0], atol=1e-4, rtol=1e-4)


def test_a_compiled_model_sees_it_switched_on_later() -> None:
    bb = tiny.llava(layers=1)
    known = knowledge(bb, layers=(0,))
    torch._dynamo.reset()
    batch = bb.encode([Prompt.of("What colour?"), Prompt.of("Which shape is it?")])
    compiled = torch.compile(bb.text, backend="eager", dynamic=None)

    def run(text: Any, *patches: Patch) -> Tensor:
        with bb.applied(*patches), bb.hooks.question(bb.context_of(batch, None)) as ctx:
            ctx.shape = tuple(batch.ids.shape)  # type: ignore[assignment]
            out = text(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        return out.last_hidden_state  # type: ignore[no-any-return]

    pool = [latent(bb, known, entries=1, seed=s) for s in range(2)]
    with torch.no_grad():
        base = run(compiled)
        for n in (0, 2, 0):
            seen, eager = run(compiled, *pool[:n]), run(bb.text, *pool[:n])
            torch.testing.assert_close(seen, eager, atol=1e-5, rtol=1e-5)
            assert (n == 0) == torch.allclose(seen, base, atol=1e-6)


# -- joining ----------------------------------------------------------------------------------


def whole(bb: tiny.HfVlm, known: SharedMemory, patches: list[Latent], **options: Any) -> Latent:
    """One patch that was built with the own entries of all."""
    own = {
        i: (
            torch.cat([p.own(i)[0] for p in patches]),
            torch.cat([p.own(i)[1] for p in patches]),
        )
        for i in LAYERS
    }
    heads = {i: bb.heads(i) for i in LAYERS}
    return Latent(known, heads, own, LatentSettings(**{"top": 4, "alpha": 0.5, **options}))


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"alpha": "query"}], ids=str)
def test_live_patches_are_one_memory(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt], options: dict[str, Any]
) -> None:
    patches = [latent(bb, known, entries=e, seed=e, **options) for e in (1, 3, 2)]
    wanted = logits(bb, asked[:8], whole(bb, known, patches, **options))
    ways: list[tuple[Patch, ...]] = [
        tuple(patches),
        tuple(reversed(patches)),
        (Stack(patches),),
        (stacked(patches[0], patches[1]), patches[2]),
        (Stack([patches[0], stacked(low(bb), patches[1])]), patches[2]),
    ]
    for live in ways[:4]:
        torch.testing.assert_close(logits(bb, asked[:8], *live), wanted, atol=1e-5, rtol=1e-5)
    one = united([p for w in ways[4] for p in parts_of(w)])
    assert sorted(type(p).__name__ for p in one) == ["Delta", "Latent"]
    apart = [logits(bb, asked[:8], p) for p in patches]
    assert not any(torch.allclose(a, wanted, atol=1e-3) for a in apart)


def test_undoing_one_of_three_gives_exactly_the_others(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt]
) -> None:
    patches = [latent(bb, known, entries=e, seed=e) for e in (1, 3, 2)]
    for gone in range(3):
        kept = [p for i, p in enumerate(patches) if i != gone]
        wanted = logits(bb, asked[:6], *kept)
        with bb.applied(*patches):
            pass
        assert torch.equal(logits(bb, asked[:6], *kept), wanted)
        torch.testing.assert_close(
            wanted, logits(bb, asked[:6], whole(bb, known, kept)), atol=1e-5, rtol=1e-5
        )


def test_the_order_and_headers_of_a_join(bb: tiny.HfVlm, known: SharedMemory) -> None:
    one, two = latent(bb, known, entries=1, seed=1), latent(bb, known, entries=2, seed=2)
    first, second = Edit(Prompt.of("What?"), "red"), Edit(Prompt.of("Which?"), "blue")
    one.with_header(Header(editor="unike", fingerprint="f"), [first])
    two.with_header(Header(editor="unike", fingerprint="f"), [second])
    both = stacked(one, two)
    assert isinstance(both, Latent) and both.edits == (first, second)
    assert both.header.fingerprint == "f"
    for i in LAYERS:
        assert torch.equal(both.own(i)[0], torch.cat([one.own(i)[0], two.own(i)[0]]))
        assert torch.equal(both.own(i)[1], torch.cat([one.own(i)[1], two.own(i)[1]]))
    assert len(one.own(1)[0]) == 1 and len(two.own(1)[0]) == 2
    stack = Stack([one, two, low(bb).with_header(Header(fingerprint="f"), [first, second])])
    assert stack.edits == (first, second)


def test_what_does_not_join(bb: tiny.HfVlm, known: SharedMemory) -> None:
    one = latent(bb, known)
    fewer = latent(bb, SharedMemory(known.digest, {i: known.blocks[i] for i in (1, 2)}))
    far = latent(bb, known).with_header(Header(fingerprint="b"), [])
    near = latent(bb, known).with_header(Header(fingerprint="a"), [])
    for other in (
        latent(bb, known, top=5),
        latent(bb, known, alpha="query"),
        latent(bb, knowledge(bb, seed=7)),
        fewer,
    ):
        assert parts_of(stacked(one, other)) == [one, other]
        assert united([one, other]) == [one, other]
    assert united([near, far]) == [near, far]
    assert (
        united([one, latent(bb, SharedMemory(known.digest, known.blocks), seed=5)])[0].edits == ()
    )
    assert len(united([one, latent(bb, SharedMemory(known.digest, known.blocks), seed=5)])) == 1


# -- rows -------------------------------------------------------------------------------------


def alone(bb: tiny.HfVlm, prompts: list[Prompt], stacks: list[list[Patch]]) -> Tensor:
    return torch.cat([logits(bb, [p], *s) for p, s in zip(prompts, stacks, strict=True)])


@pytest.mark.parametrize("options", [{"alpha": "query"}, {"alpha": 0.5, "top": 9}], ids=str)
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 0)], ids=str)
def test_rows_of_different_numbers_of_entries(
    bb: tiny.HfVlm,
    known: SharedMemory,
    asked: list[Prompt],
    options: dict[str, Any],
    sizes: tuple[int, ...],
) -> None:
    """Rows, rows + rows, rows + single: each row is its own patches alone; K exceeds own rows."""
    few = knowledge(bb, entries=5, seed=3) if options.get("top") == 9 else known
    one = [latent(bb, few, entries=e, seed=10 + i, **options) for i, e in enumerate(sizes)]
    two = [latent(bb, few, entries=e, seed=20 + i, **options) for i, e in enumerate((1, 2, 2))]
    every = latent(bb, few, entries=2, seed=30, **options)
    prompts = [asked[i] for i in (0, 9, 15)]
    cases: list[tuple[list[Patch], list[list[Patch]]]] = [
        ([Rows(one)], [[p] for p in one]),
        ([Rows(one), Rows(two)], [[p, q] for p, q in zip(one, two, strict=True)]),
        ([Rows(one), every], [[p, every] for p in one]),
        ([every, Rows(two), Rows(one)], [[every, q, p] for p, q in zip(one, two, strict=True)]),
    ]
    for live, apart in cases:
        parts = united([h for hook in live for h in hook.acting()])
        assert len(parts) == 1 and isinstance(parts[0], Latent)
        together = logits(bb, prompts, *live)
        torch.testing.assert_close(together, alone(bb, prompts, apart), atol=1e-4, rtol=1e-4)
    rows = [2, 0, 0, 1, 2]
    more = [asked[i] for i in (1, 8, 16, 23, 2)]
    together = logits(bb, more, Rows(one), Rows(two), rows=rows)
    wanted = alone(bb, more, [[one[r], two[r]] for r in rows])
    torch.testing.assert_close(together, wanted, atol=1e-4, rtol=1e-4)


def test_of_equally_near_entries_rows_and_singles_take_the_same(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt]
) -> None:
    """`own_rows=every` gives all entries of an edit one h_sem: where K cuts, order decides."""

    def tied(count: int, seed: int) -> Latent:
        rng = torch.Generator().manual_seed(seed)
        own = {
            i: (
                torch.randn(1, 32, generator=rng).repeat(count, 1),
                torch.randn(count, 32, generator=rng),
            )
            for i in LAYERS
        }
        heads = {i: bb.heads(i) for i in LAYERS}
        return Latent(known, heads, own, LatentSettings(top=3, alpha=0.5))

    prompts = asked[:4]
    for seed in range(8):
        patches = [tied(n, 10 * seed + n) for n in (4, 9, 7, 20)]
        together = logits(bb, prompts, Rows(patches))
        apart = alone(bb, prompts, [[p] for p in patches])
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_rows_of_different_shapes_equal_one_by_one(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt]
) -> None:
    one, two = latent(bb, known, alpha="query"), latent(bb, known, seed=2, alpha="query")
    stacks: list[Patch] = [one, Stack([two, low(bb)]), low(bb, 1)]
    patch = Rows(stacks)
    assert patch.layers is None
    rows = [2, 0, 1, 1, 0]
    prompts = [asked[i] for i in (1, 8, 16, 23, 2)]
    together = logits(bb, prompts, patch, rows=rows)
    apart = alone(bb, prompts, [[stacks[r]] for r in rows])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    with bb.applied(patch):
        said = bb.generate(bb.encode(prompts, rows=rows), [5] * 5, rows=torch.tensor(rows))
    for prompt, r, s in zip(prompts, rows, said, strict=True):
        with bb.applied(stacks[r]):
            assert bb.generate(bb.encode([prompt]), [5])[0] == s


@pytest.mark.parametrize("empty", [False, True])
def test_a_search_on_rows_of_different_shapes_mixes_once(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt], empty: bool
) -> None:
    """What a new edit is searched on must be what it is asked on: one memory with both entries."""
    one, two = latent(bb, known), latent(bb, known, seed=2)
    before: list[Patch] = [one, Stack([]) if empty else Stack([two, low(bb)]), low(bb, 1)]
    new = [latent(bb, known, entries=1, seed=5 + i) for i in range(3)]
    prompts = asked[:3]
    together = logits(bb, prompts, Rows(before), Rows(new))
    apart = alone(bb, prompts, [[b, n] for b, n in zip(before, new, strict=True)])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_one_patch_on_two_rows_beside_another_shape(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt]
) -> None:
    one = latent(bb, known)
    stacks: list[Patch] = [one, one, low(bb)]
    apart = alone(bb, asked[:3], [[s] for s in stacks])
    torch.testing.assert_close(logits(bb, asked[:3], Rows(stacks)), apart, atol=1e-4, rtol=1e-4)


# -- edges ------------------------------------------------------------------------------------


def test_no_retrieval_is_the_base(bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt]) -> None:
    assert torch.equal(logits(bb, asked[:4], latent(bb, known, top=0)), logits(bb, asked[:4]))


def test_an_empty_memory_is_the_base(bb: tiny.HfVlm, asked: list[Prompt]) -> None:
    none = torch.empty(0, 32)
    enc = encoder(32, torch.Generator().manual_seed(0))
    shared = SharedMemory("none", {1: BlockMemory(none, none, enc, torch.zeros(32))})
    patch = Latent(shared, {1: bb.heads(1)}, {1: (none, none)}, LatentSettings())
    assert torch.equal(logits(bb, asked[:4], patch), logits(bb, asked[:4]))


def test_a_memory_of_own_entries_only(bb: tiny.HfVlm, asked: list[Prompt]) -> None:
    none = torch.empty(0, 32)
    enc = encoder(32, torch.Generator().manual_seed(0))
    shared = SharedMemory(
        "none", {i: BlockMemory(none, none, enc, torch.zeros(32)) for i in LAYERS}
    )
    patch = latent(bb, shared, entries=2)
    assert not torch.allclose(logits(bb, asked[:4], patch), logits(bb, asked[:4]), atol=1e-2)


def test_entering_above_keeps_logits(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt]
) -> None:
    patch = latent(bb, known, alpha="query")
    batch = bb.encode(asked[:5], ["green ring"] * 5)
    with torch.no_grad(), bb.applied(patch):
        for layer in range(bb.depth):
            assert torch.equal(bb.logits(bb.enter(batch, layer)), bb.logits(batch))


@pytest.mark.parametrize(
    "layer",
    [
        0,
        1,
        3,
    ],
)
def test_entering_for_generation_keeps_decisions(
    bb: tiny.HfVlm, known: SharedMemory, asked: list[Prompt], layer: int
) -> None:
    batch = bb.encode(asked[::4])
    with bb.applied(latent(bb, known, alpha="query"), latent(bb, known, seed=2, alpha="query")):
        with bb.ask(batch) as q:
            wanted = q.greedy([6] * batch.size)
        with bb.ask(bb.enter(batch, layer, for_generation=True)) as q:
            assert q.greedy([6] * batch.size) == wanted


def test_a_gradient_reaches_the_query_but_no_decision(bb: tiny.HfVlm, known: SharedMemory) -> None:
    """Neurons below are trained through h_know's query; memory, encoder and alpha take none."""
    patch = latent(bb, known, alpha="query")
    batch = bb.encode([Prompt.of("What colour?")])
    shift = Delta({"text.0.mlp.down": {"dense": torch.zeros(32, 64)}})
    with bb.applied(shift, patch):
        ctx_logits = bb.logits(batch)
    grads = torch.autograd.grad(ctx_logits.sum(), list(shift.parameters()))
    assert float(grads[0].abs().max()) > 0
    assert not any(t.requires_grad for t in patch.buffers())
    for entries in known.blocks.values():
        for t in (entries.sem, entries.pos, entries.centre, *entries.encoder.values()):
            assert not t.requires_grad and t.grad is None


def test_bfloat16_stays_and_is_near(asked: list[Prompt]) -> None:
    fine, coarse = tiny.llava(), tiny.llava()
    coarse.model.to(torch.bfloat16)
    patch = latent(fine, knowledge(fine), alpha=0.5)
    watch = Recorder(["text.2.attn"])
    a, b = logits(fine, asked[:4], patch), logits(coarse, asked[:4], patch, watch)
    assert watch.y["text.2.attn"].dtype == torch.bfloat16
    assert float((a - b).abs().mean() / a.std()) < 0.1


def test_equal_shapes_are_not_fused_into_two_mixings(bb: tiny.HfVlm, known: SharedMemory) -> None:
    live = live_hooks([latent(bb, known), low(bb), latent(bb, known, seed=4), low(bb, 2)])
    assert sorted(type(p).__name__ for p in live) == ["Delta", "Latent"]
