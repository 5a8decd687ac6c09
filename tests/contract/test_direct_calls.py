"""Which prompt is answered in calls of the model that errata does not make, over every family.

The forwards of one answer may be cut in many ways; the decision is that of the whole prompt, or the
call is refused. (`holds_generate` of `errata.contract.editors` asks the same of every editor.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

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
