"""Every property of a backbone, over every family of classes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from errata.backbones import _forward
from errata.contract.editors import weights
from errata.core.errors import TooLong
from errata.core.model.backbone import Backbone
from errata.core.types import Prompt
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from errata.training.optimise import target_loss
from tests import tiny

ALL = {**tiny.FAMILIES, **tiny.WINDOWED, **tiny.DRAWING}
FAMILIES = sorted(ALL)
TARGETS = ["green", "blue ring", "", "ring", "red"]


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> tiny.HfVlm:
    return tiny.shared(request.param)


@pytest.fixture
def ragged(ragged: list[Prompt], backbone: Backbone) -> list[Prompt]:
    """Without the images for a model that takes none."""
    return ragged if "image" in backbone.capabilities else [Prompt.of(p.text) for p in ragged]


@pytest.fixture
def shown(pictures: list[str], backbone: Backbone) -> Prompt:
    """A prompt with an image, for a model that takes one."""
    return Prompt.of("Which?", pictures[0] if "image" in backbone.capabilities else None)


def random_delta(backbone: Backbone, layer: int, seed: int, scale: float = 0.3) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    site = f"text.{layer}.mlp.down"
    into, out = backbone.weight(site)
    return Delta({site: {"dense": torch.randn(out, into, generator=rng) * scale}}).requires_grad_(
        False
    )


def test_all_text_sites_are_found(backbone: tiny.HfVlm) -> None:
    assert backbone.layout.missing == []
    for i in range(backbone.depth):
        for part in (
            "in",
            "block",
            "attn",
            "attn.q",
            "attn.k",
            "attn.v",
            "attn.o",
            "mlp",
            "mlp.up",
            "mlp.down",
        ):
            backbone.site(f"text.{i}.{part}")
    for site in ("embed", "final_norm", "head", "bridge"):
        backbone.site(site)
    if "image" in backbone.capabilities:
        backbone.site("vision.0.block")


def test_the_assembled_forward_is_the_models_own(
    backbone: tiny.HfVlm, ragged: list[Prompt]
) -> None:
    batch = backbone.encode(ragged, TARGETS)
    ours = backbone.logits(batch)
    for b, (prompt, target) in enumerate(zip(ragged, TARGETS, strict=True)):
        one = backbone.encode([prompt], [target])
        n, m = int(one.lengths[0]), len(one.targets[0])
        with torch.no_grad():
            if one.image_keys:
                own = backbone.model(**one.inputs).logits[0]
            else:  # BLIP-2's forward demands an image; its language model does not
                lm = getattr(backbone.model, "language_model", backbone.model)
                own = lm(input_ids=one.ids, attention_mask=one.mask).logits[0]
        torch.testing.assert_close(
            ours[b, : m + 1], own[n - 1 : n + m].float(), atol=1e-4, rtol=1e-4
        )


def test_batched_generation_equals_one_by_one_and_the_models_own(
    backbone: tiny.HfVlm, ragged: list[Prompt]
) -> None:
    together = backbone.generate(backbone.encode(ragged), [7] * len(ragged))
    for prompt, said in zip(ragged, together, strict=True):
        one = backbone.encode([prompt])
        assert backbone.generate(one, [7])[0] == said
        if one.image_keys:
            ids = backbone.model.generate(
                **one.inputs,
                max_new_tokens=7,
                do_sample=False,
                eos_token_id=sorted(backbone.stop_ids),
            )
            own = ids[0].tolist()[-7:] if ids.shape[1] >= 7 else ids[0].tolist()
            assert (
                tuple(own[: len(said.ids)]) == said.ids or tuple(own[-len(said.ids) :]) == said.ids
            )


def test_cached_decoding_equals_recomputing(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    said = backbone.generate(backbone.encode(ragged), [5] * len(ragged))
    ids = [backbone.encode([p]) for p in ragged]
    for batch, one in zip(ids, said, strict=True):
        tokens: list[int] = []
        for _ in range(len(one.ids)):
            with backbone.ask(batch) as q:
                tokens.append(int(q.score([(*tokens, 0)])[0].argmax[-1]))
        assert tuple(tokens) == one.ids


def test_a_guess_does_not_change_the_answer(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    plain = backbone.generate(backbone.encode(ragged), [6] * len(ragged))
    guesses = [backbone.decode(g.ids) for g in plain]
    for targets in (TARGETS, guesses):
        assert backbone.generate(backbone.encode(ragged, targets), [6] * len(ragged)) == plain


def test_the_last_block_at_the_answer_alone_gives_the_same_gradients(
    backbone: tiny.HfVlm, ragged: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets of several lengths: the longest row's short one repeats that row's last column."""
    batch = backbone.encode(ragged, ["red" if not t else t for t in TARGETS])
    found = []
    for narrow in (True, False):
        if not narrow:
            monkeypatch.setattr(_forward, "last_block_at", lambda *_: nullcontext(()))
        low = [random_delta(backbone, layer, 3).requires_grad_(True) for layer in (1, 3)]
        with torch.enable_grad(), backbone.applied(*low):
            logits = backbone.logits(batch)
            loss = target_loss(logits, batch)[0].sum()
        grads = torch.autograd.grad(loss, [p for patch in low for p in patch.parameters()])
        found.append((logits.detach(), *grads))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_equal_columns_run_once_give_the_same_logits_and_gradients(
    backbone: tiny.HfVlm, ragged: list[Prompt]
) -> None:
    """Two pictures, each asked two or three questions, of two row patches; a text without one."""
    if "image" not in backbone.capabilities:
        pytest.skip("it takes no images, whose columns are what questions share")
    first, second = [p for p in ragged if p.images][:2]
    other = second.with_text("What is the colour of the ring?")
    prompts = [first, first.with_text("Which shape?"), second, first.with_text("red?"), other]
    prompts.append(Prompt.of("What is red?"))
    rows, twins = torch.tensor([0, 0, 1, 0, 1, 1]), {1: 0, 3: 0, 4: 2}
    batch = backbone.encode(prompts, ["green", "red", "blue ring", "ring", "red", "a"])
    state = backbone.enter(batch, 1, rows=rows)
    same = torch.arange(batch.ids.numel()).view(batch.ids.shape)
    for b, twin in twins.items():
        end = int(batch.vision[b].nonzero()[-1]) + 1
        assert torch.equal(batch.ids[b, :end], batch.ids[twin, :end])
        same[b, :end] = same[twin, :end]
    rng, low = torch.Generator().manual_seed(1), []
    for site in ("text.1.in", "text.3.in"):
        dense = torch.randn(2, backbone.width, backbone.width, generator=rng) * 0.1
        low.append(Delta({site: {"dense": dense}}, rows=2))
    parameters = [p for patch in low for p in patch.parameters()]
    found, widths = [], []
    mlp = backbone.site("text.2.mlp").first
    hook = mlp.register_forward_hook(lambda _, x, y: widths.append(x[0].shape[:-1].numel()))
    for given in (same, None):
        with torch.enable_grad(), backbone.applied(*low):
            logits = backbone.logits(replace(state, same=given))
            loss = target_loss(logits, batch)[0].sum()
        asked = [logits[b, : 1 + len(t)].detach() for b, t in enumerate(batch.targets)]
        found.append((*asked, *torch.autograd.grad(loss, parameters)))
    hook.remove()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert widths[1] == batch.ids.numel()
    if backbone.name == "tiny-llava":
        own = torch.arange(same.numel()).view(same.shape)
        assert widths[0] == int(((same == own) & batch.mask.bool()).sum()) < widths[1]


@pytest.mark.parametrize("layer", range(-1, 4))
def test_resume_equals_forward(backbone: tiny.HfVlm, ragged: list[Prompt], layer: int) -> None:
    batch = backbone.encode(ragged, TARGETS)
    patch = random_delta(backbone, max(layer, 0), seed=layer + 5)
    with backbone.applied(patch):
        full = backbone.logits(batch)
        answers = backbone.generate(batch, [6] * len(ragged))
    state = backbone.enter(batch, layer, for_generation=True)
    torch.testing.assert_close(backbone.resume(state, patch), full, atol=1e-5, rtol=1e-5)
    with backbone.applied(patch), backbone.ask(state) as q:
        assert q.greedy([6] * len(ragged)) == answers
    assert not torch.equal(backbone.logits(batch), full)


def test_resume_refuses_a_patch_below(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    state = backbone.enter(backbone.encode(ragged), 2)
    with pytest.raises(AssertionError, match="below block 2"):
        backbone.resume(state, random_delta(backbone, 1, seed=0))


def test_rows_equal_single_runs(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    patches = [random_delta(backbone, 2, seed=i) for i in range(len(ragged))]
    batch = backbone.encode(ragged, TARGETS)
    with backbone.applied(Rows(patches)):
        logits = backbone.logits(batch)
        said = backbone.generate(batch, [6] * len(ragged))
    for b, patch in enumerate(patches):
        one = backbone.encode([ragged[b]], [TARGETS[b]])
        with backbone.applied(patch):
            alone = backbone.logits(one)
            assert backbone.generate(one, [6])[0] == said[b]
        torch.testing.assert_close(logits[b, : alone.shape[1]], alone[0], atol=1e-4, rtol=1e-4)


def test_rows_may_be_shared_and_in_any_order(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    patches = [random_delta(backbone, 2, seed=i) for i in range(2)]
    batch = backbone.encode(ragged)
    for rows in ([1, 0, 1, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]):
        with backbone.applied(Rows(patches)):
            together = backbone.logits(batch, rows=torch.tensor(rows))
        for b, r in enumerate(rows):
            with backbone.applied(patches[r]):
                alone = backbone.logits(backbone.encode([ragged[b]]))
            torch.testing.assert_close(together[b], alone[0], atol=1e-4, rtol=1e-4)


def test_bridge_rows_equal_single_runs(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    if "image" not in backbone.capabilities:
        pytest.skip("its bridge leads out of the text model, to what draws")
    site = next((s for s in backbone.hooks.sites if s.startswith("bridge.")), None)
    if site is None:
        pytest.skip("its bridge multiplies with a bare parameter, not a linear module")
    into, out = backbone.weight(site)
    rng = torch.Generator().manual_seed(3)
    patches = [
        Delta(
            {
                site: {
                    "dense": torch.randn(out, into, generator=rng),
                    "bias": torch.randn(out, generator=rng),
                }
            }
        )
        for _ in ragged
    ]
    for p in patches:
        p.requires_grad_(False)
    batch = backbone.encode(ragged)
    with backbone.applied(Rows(patches)):
        together = backbone.logits(batch)
    changed = 0
    for b, patch in enumerate(patches):
        one = backbone.encode([ragged[b]])
        with backbone.applied(patch):
            alone = backbone.logits(one)
        torch.testing.assert_close(together[b], alone[0], atol=2e-4, rtol=2e-4)
        changed += not torch.allclose(alone, backbone.logits(one), atol=1e-4)
    assert changed == 3  # the prompts with an image


def test_leaving_gives_the_same_bits_and_weights_never_change(
    backbone: tiny.HfVlm, ragged: list[Prompt]
) -> None:
    before, batch = weights(backbone), backbone.encode(ragged, TARGETS)
    clean = backbone.logits(batch)
    with backbone.applied(random_delta(backbone, 1, seed=1), random_delta(backbone, 3, seed=2)):
        assert not torch.equal(backbone.logits(batch), clean)
    assert torch.equal(backbone.logits(batch), clean)
    assert weights(backbone) == before


def test_an_exception_inside_leaves_the_model_clean(
    backbone: tiny.HfVlm, ragged: list[Prompt]
) -> None:
    clean = backbone.logits(backbone.encode(ragged))
    with pytest.raises(RuntimeError), backbone.applied(random_delta(backbone, 1, seed=1)):
        raise RuntimeError
    assert torch.equal(backbone.logits(backbone.encode(ragged)), clean)


def test_wrapping_twice_does_not_double(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    processor = getattr(backbone, "processor", backbone.tokenizer)
    again = type(backbone)(backbone.model, processor, name=backbone.name)
    assert again.hooks is backbone.hooks
    batch, patch = backbone.encode(ragged), random_delta(backbone, 2, seed=4)
    with backbone.applied(patch):
        once = backbone.logits(batch)
        assert torch.equal(again.logits(batch), once)


def test_a_model_used_before_it_was_wrapped_shows_the_edit(pictures: list[str]) -> None:
    """transformers hooks its outputs on first use; ports come first all the same."""
    batch = tiny.shared("llava").encode([Prompt.of("Which shape?", pictures[0])])
    model, processor = tiny.llava_parts()
    with torch.no_grad():
        model(**batch.inputs, output_hidden_states=True)
    fresh = tiny.HfVlm(model, processor)
    patch = random_delta(fresh, 1, seed=0)
    with torch.no_grad(), fresh.applied(patch):
        states = fresh.model(**batch.inputs, output_hidden_states=True).hidden_states
    with torch.no_grad():
        clean = fresh.model(**batch.inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[1], clean[1])
    assert not torch.allclose(states[2], clean[2])


def test_a_raw_call_of_the_model_shows_the_edit(backbone: tiny.HfVlm, shown: Prompt) -> None:
    batch, patch = backbone.encode([shown]), random_delta(backbone, 2, seed=9)
    with torch.no_grad(), backbone.applied(patch):
        raw = backbone.model(**batch.inputs).logits[0, -1]
        ours = backbone.logits(batch)[0, 0]
    torch.testing.assert_close(raw.float(), ours, atol=1e-4, rtol=1e-4)


def test_a_stack_is_its_parts_in_order(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    parts = [random_delta(backbone, i % 4, seed=i, scale=0.05) for i in range(6)]
    batch = backbone.encode(ragged)
    with backbone.applied(Stack(parts)):
        stacked = backbone.logits(batch)
    with backbone.applied(*parts):
        torch.testing.assert_close(backbone.logits(batch), stacked, atol=1e-5, rtol=1e-5)


def test_fingerprint_is_the_weights(backbone: tiny.HfVlm) -> None:
    family = {b.name: f for f, b in ((f, tiny.shared(f)) for f in FAMILIES)}[backbone.name]
    same = ALL[family]()
    assert same.fingerprint() == backbone.fingerprint()
    with torch.no_grad():
        next(iter(same.model.parameters())).add_(1e-3)
    assert same.fingerprint() != backbone.fingerprint()


def test_a_state_is_asked_with_its_own_rows(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    batch = backbone.encode(ragged[:2])
    for rows, same in ((None, torch.tensor([0, 1])), (torch.tensor([1, 0]), torch.tensor([1, 0]))):
        state = backbone.enter(batch, 2, rows=rows)
        backbone.logits(state, rows=same)
        with pytest.raises(AssertionError, match="rows that it was entered with"):
            backbone.logits(state, rows=torch.tensor([1, 1]))


def test_an_answer_never_leaves_the_context(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    """The longest row's room ends first; the others go on as they would alone."""
    text = ragged[1].text
    room, cap = 3, 9
    pad = backbone.context - room - int(backbone.encode([Prompt.of(text)]).lengths[0])
    full = Prompt.of("~" * pad + text)
    batch = backbone.encode([full, ragged[0]])
    assert int(batch.lengths[0]) == backbone.context - room
    said = backbone.generate(batch, [cap, cap])
    assert len(said[0].ids) <= room
    assert said[0].stopped or len(said[0].ids) == room
    assert said[1] == backbone.generate(backbone.encode([ragged[0]]), [cap])[0]
    with backbone.ask(batch) as q, pytest.raises(TooLong, match="the answer to score"):
        q.score([(10,) * (room + 1), ()])
