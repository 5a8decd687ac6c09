"""Which prompt is answered in calls of the model that errata does not make, over every family.

The forwards of one answer may be cut in many ways; the decision is that of the whole prompt, or the
call is refused. (`holds_generate` of `errata.contract.editors` asks the same of every editor.)
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from errata.core.errors import BadPatch
from errata.core.types import Prompt
from errata.patches.delta import Delta
from tests import tiny
from tests.contract.test_patches import Gate

OPTIONS: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=sorted({**tiny.FAMILIES, **tiny.WINDOWED}))
def backbone(request: pytest.FixtureRequest) -> tiny.HfVlm:
    return tiny.shared(request.param)


@pytest.fixture(scope="module")
def llava() -> tiny.HfVlm:
    return tiny.shared("llava")


def opening(bb: tiny.HfVlm, site: str, inside: Prompt, outside: Prompt) -> Gate:
    """A gate that opens for `inside` and not for `outside`; a large change at `site`."""
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        width = bb.width
        gate = Gate(site, torch.randn(width, generator=rng))
        opened = []
        for prompt in (inside, outside):
            with bb.applied(gate), bb.ask(bb.encode([prompt])) as q:
                opened.append(bool(next(iter(q.ctx.memo.values()))))  # type: ignore[attr-defined]
        if opened == [True, False]:
            return gate
    raise AssertionError("no gate tells the prompts apart")


@pytest.fixture
def asked(pictures: list[str]) -> list[Prompt]:
    return [
        Prompt.of("What is the colour of the thing, please?", pictures[0]),
        Prompt.of("Which shape?", pictures[1]),
    ]


def left_padded(bb: tiny.HfVlm, prompts: list[Prompt]) -> dict[str, Tensor]:
    batch = bb.encode(prompts)
    inputs, wide = dict(batch.inputs), batch.ids.shape[1]
    for name in [n for n, v in inputs.items() if v.shape[:2] == batch.ids.shape]:
        moved = torch.zeros_like(inputs[name])
        for i, n in enumerate(batch.lengths.tolist()):
            moved[i, wide - n :] = inputs[name][i, :n]
        inputs[name] = moved
    return inputs


def test_batches_and_beams_answer_as_single_prompts(
    backbone: tiny.HfVlm, asked: list[Prompt]
) -> None:
    model: Any = backbone.model
    with backbone.applied(opening(backbone, "text.1.block", *asked)):
        for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
            single: list[list[int]] = []
            for prompt in asked:
                inputs = backbone.encode([prompt]).inputs
                out = model.generate(**inputs, **OPTIONS, **options)
                single += out[:, inputs["input_ids"].shape[1] :].tolist()
            inputs = left_padded(backbone, asked)
            out = model.generate(**inputs, **OPTIONS, **options)
            assert out[:, inputs["input_ids"].shape[1] :].tolist() == single, options


def test_drafts_of_another_model_change_nothing(backbone: tiny.HfVlm, asked: list[Prompt]) -> None:
    model: Any = backbone.model
    if not hasattr(type(model), "_assisted_decoding") or model.config.model_type == "blip-2":
        pytest.skip("its own generate passes embeddings on, which drafts do not take")
    torch.manual_seed(0)
    draft = type(model)(model.config).eval()
    with backbone.applied(opening(backbone, "text.1.block", *asked)):
        for prompt in asked:
            inputs = backbone.encode([prompt]).inputs
            plain = model.generate(**inputs, **OPTIONS).tolist()
            drafted = model.generate(**inputs, **OPTIONS, assistant_model=draft).tolist()
            assert drafted == plain


def by_hand(bb: tiny.HfVlm, prompts: list[Prompt]) -> list[list[int]]:
    """Greedy answers of interleaved loops over the model's forward, one cache each."""
    model: Any = bb.model
    caches, ids, answers = [], [], []
    for prompt in prompts:
        out = model(**bb.encode([prompt]).inputs, use_cache=True)
        caches.append(out.past_key_values)
        ids.append(out.logits[:, -1:].argmax(-1))
        answers.append([int(ids[-1])])
    for _ in range(3):
        for i, cache in enumerate(caches):
            out = model(input_ids=ids[i], past_key_values=cache, use_cache=True)
            ids[i] = out.logits[:, -1:].argmax(-1)
            answers[i].append(int(ids[i]))
    return answers


def test_interleaved_loops_keep_their_decisions(llava: tiny.HfVlm, asked: list[Prompt]) -> None:
    with torch.no_grad(), llava.applied(opening(llava, "text.1.block", *asked)):
        both = by_hand(llava, asked)
        assert both == [by_hand(llava, [p])[0] for p in asked]
        for prompt, answer in zip(asked, both, strict=True):
            assert llava.generate(llava.encode([prompt]), [4])[0].ids == tuple(answer)


def prefix(bb: tiny.HfVlm, prompt: Prompt, columns: int) -> Any:
    """A KV cache of the prompt's first columns."""
    inputs = bb.encode([prompt]).inputs
    cache = DynamicCache(config=bb.text.config)  # type: ignore[arg-type]
    cut = {k: v[:, :columns] if v.dim() == 2 else v for k, v in inputs.items()}
    bb.model(**cut, past_key_values=cache, use_cache=True)
    return cache


def first_logits(bb: tiny.HfVlm, prompt: Prompt, cache: Any = None, **drop: Any) -> Tensor:
    model: Any = bb.model
    inputs = {k: v for k, v in bb.encode([prompt]).inputs.items() if k not in drop}
    more = {} if cache is None else {"past_key_values": copy.deepcopy(cache)}
    options = {**OPTIONS, "max_new_tokens": 1}
    out = model.generate(
        **inputs, **more, **options, output_logits=True, return_dict_in_generate=True
    )
    logits: Tensor = out.logits[0]
    return logits


TEXTS = (Prompt.of("What is the colour of the thing?"), Prompt.of("What is the colour, please?"))


@torch.no_grad()
def test_a_cached_prefix_does_not_change_the_decision(llava: tiny.HfVlm) -> None:
    """The patch acts above the cache: a prefix of the unedited model is right for it."""
    gate = opening(llava, "final_norm", *TEXTS)
    cache = prefix(llava, TEXTS[0], 4)
    for first in TEXTS:
        for prompt in TEXTS:
            with llava.applied(gate):
                wanted = first_logits(llava, prompt)
                first_logits(llava, first)
                found = first_logits(llava, prompt, cache)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pictures_that_are_only_in_the_cache_are_asked_for(
    llava: tiny.HfVlm, asked: list[Prompt]
) -> None:
    columns = int(llava.encode(asked[:1]).vision[0].nonzero().max()) + 2
    cache = prefix(llava, asked[0], columns)
    with llava.applied(opening(llava, "final_norm", *asked)):
        with pytest.raises(BadPatch, match="the pictures of this prompt"):
            first_logits(llava, asked[0], cache, pixel_values=None)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["deciding", "constant"])
def test_a_cache_that_does_not_show_the_patch_is_refused(llava: tiny.HfVlm, kind: str) -> None:
    prompt = TEXTS[0]
    into, out = llava.weight("text.1.mlp.down")
    change = Delta({"text.1.mlp.down": {"dense": torch.randn(out, into)}}).requires_grad_(False)
    patch = opening(llava, "text.1.block", *TEXTS) if kind == "deciding" else change
    plain = prefix(llava, prompt, 4)
    with llava.applied(patch):
        edited = prefix(llava, prompt, 4)
        with pytest.raises(BadPatch, match="filled without this patch"):
            first_logits(llava, prompt, plain)
    with pytest.raises(BadPatch, match="with other patches live"):
        first_logits(llava, prompt, edited)
    with llava.applied(patch):
        if kind == "constant":
            wanted = first_logits(llava, prompt)
            torch.testing.assert_close(
                first_logits(llava, prompt, edited), wanted, atol=1e-4, rtol=1e-4
            )
        else:
            with pytest.raises(BadPatch, match="for another prompt"):
                first_logits(llava, prompt, edited)


@torch.no_grad()
@pytest.mark.parametrize(
    ("feed", "words"),
    [
        (lambda out: {"input_ids": torch.tensor([[5, 6]])}, "adds 2 tokens"),
        (lambda out: {"input_ids": torch.tensor([[5], [5]])}, "this call has 2"),
    ],
)
def test_a_loop_that_may_go_on_with_the_prompt_is_refused(
    llava: tiny.HfVlm, feed: Callable[[Any], dict[str, Any]], words: str
) -> None:
    model: Any = llava.model
    with llava.applied(opening(llava, "text.1.block", *TEXTS)):
        out = model(**llava.encode([TEXTS[0]]).inputs, use_cache=True)
        cache = out.past_key_values
        inputs = feed(out)
        if inputs["input_ids"].shape[0] > 1:
            cache.batch_repeat_interleave(2)
        with pytest.raises(BadPatch, match=words):
            model(**inputs, past_key_values=cache, use_cache=True)


@torch.no_grad()
def test_generate_without_a_mask_knows_the_prompt_of_a_single_row(llava: tiny.HfVlm) -> None:
    model: Any = llava.model
    with llava.applied(opening(llava, "text.1.block", *TEXTS)):
        for prompt in TEXTS:
            inputs = llava.encode([prompt]).inputs
            masked = model.generate(**inputs, **OPTIONS)
            assert model.generate(input_ids=inputs["input_ids"], **OPTIONS).equal(masked)


def change(bb: tiny.HfVlm) -> Delta:
    """A patch that decides nothing, and that the KV cache shows."""
    into, out = bb.weight("text.1.mlp.down")
    rng = torch.Generator().manual_seed(0)
    dense = torch.randn(out, into, generator=rng)
    return Delta({"text.1.mlp.down": {"dense": dense}}).requires_grad_(False)


def by_hand_moved(cache: Any) -> None:
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)


@torch.no_grad()
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize(
    ("move", "refused"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), True),
        (lambda cache: cache.batch_select_indices(torch.tensor([1, 0])), True),
        (by_hand_moved, True),
        (lambda cache: cache.reorder_cache(torch.tensor([0, 1])), False),
        (lambda cache: None, False),
    ],
)
def test_rows_of_a_cache_that_were_moved_are_refused(
    llava: tiny.HfVlm, asked: list[Prompt], kind: Any, move: Callable[[Any], Any], refused: bool
) -> None:
    """The decisions of the rows were not moved. A copy with rows in their order goes on."""
    model: Any = llava.model
    more = {"max_cache_len": 64} if kind is StaticCache else {}
    with llava.applied(opening(llava, "text.1.block", *asked)):
        inputs = left_padded(llava, asked)
        out = model(**inputs, past_key_values=kind(config=llava.text.config, **more))
        cache = copy.deepcopy(out.past_key_values)
        try:
            move(cache)
        except AttributeError:
            pytest.skip("a cache of a fixed size selects no rows")
        step = {"input_ids": torch.tensor([[5], [5]]), "past_key_values": cache}
        step["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        if refused:
            with pytest.raises(BadPatch, match="another order"):
                model(**step)
        else:
            want = model(**{**step, "past_key_values": out.past_key_values}).logits
            torch.testing.assert_close(model(**step).logits, want)


@torch.no_grad()
def test_a_cache_that_was_saved_with_a_patch_live_is_refused(llava: tiny.HfVlm) -> None:
    with llava.applied(change(llava)):
        edited = pickle.loads(pickle.dumps(prefix(llava, TEXTS[0], 4)))
    plain = pickle.loads(pickle.dumps(prefix(llava, TEXTS[0], 4)))
    for patch in (None, change(llava)):
        with llava.applied(patch), pytest.raises(BadPatch, match="saved and loaded"):
            first_logits(llava, TEXTS[0], edited)
    torch.testing.assert_close(first_logits(llava, TEXTS[0], plain), first_logits(llava, TEXTS[0]))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["deciding", "constant"])
def test_a_cache_that_was_emptied_begins_again(llava: tiny.HfVlm, kind: str) -> None:
    model: Any = llava.model
    patch = opening(llava, "text.1.block", *TEXTS) if kind == "deciding" else change(llava)
    inputs = llava.encode([TEXTS[0]]).inputs
    for first, then in ((patch, None), (None, patch), (patch, patch)):
        cache = StaticCache(config=llava.text.config, max_cache_len=64)  # type: ignore[arg-type]
        with llava.applied(first):
            model.generate(**inputs, **OPTIONS, past_key_values=cache)
        cache.reset()
        with llava.applied(then):
            wanted = model.generate(**inputs, **OPTIONS)
            assert model.generate(**inputs, **OPTIONS, past_key_values=cache).equal(wanted)


@torch.no_grad()
def test_arguments_by_position_are_seen_as_by_name(
    backbone: tiny.HfVlm, asked: list[Prompt]
) -> None:
    """The mask of the model, and the KV cache of the text model inside it."""
    model: Any = backbone.model
    names = [*inspect.signature(type(model).forward).parameters][1:]
    inputs = backbone.encode(asked).inputs
    last = max(names.index(n) for n in inputs)
    with backbone.applied(opening(backbone, "text.1.block", *asked)):
        wanted = model(**inputs).logits
        torch.testing.assert_close(
            model(*(inputs.get(n) for n in names[: last + 1])).logits, wanted
        )
    ids = torch.tensor([[5, 6, 7, 8]])
    text: Any = backbone.text
    embeds = backbone.layout.embed(ids)
    named = [*inspect.signature(type(text).forward).parameters][1:]
    name = next((n for n in ("past_key_values", "cache") if n in named), None)
    if name is None or "inputs_embeds" not in named:
        pytest.skip("the text model takes no cache")
    filled = {"inputs_embeds": embeds, name: DynamicCache(config=text.config)}
    text(**filled, use_cache=True)
    last = max(map(named.index, filled))
    with backbone.applied(change(backbone)), pytest.raises(BadPatch, match="without this patch"):
        text(*(filled.get(n) for n in named[: last + 1]))
