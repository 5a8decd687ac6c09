"""Modules that are replaced after a model was wrapped, and compiled models."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.core.errors import BadBackbone
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.types import Prompt
from errata.evaluation.answers import ask_prompts
from errata.patches.delta import Delta
from tests import tiny
from tests.contract.test_live import backbone, batch, delta

__all__ = ["backbone", "batch"]


@contextmanager
def replaced(model: Any, path: str) -> Iterator[None]:
    """Inside, the module at `path` is another one with the same weights."""
    parent, _, name = path.rpartition(".")
    owner, old = model.get_submodule(parent), model.get_submodule(path)
    setattr(owner, name, copy.deepcopy(old))
    try:
        yield
    finally:
        setattr(owner, name, old)


@pytest.mark.parametrize("site", ["head", "embed", "text.1.mlp.down", "text.0.block", "bridge"])
def test_a_module_that_was_replaced_is_named(backbone: Backbone, batch: Batch, site: str) -> None:
    path = backbone.site_paths.get(site) or next(
        n for n, m in backbone.model.named_modules() if m is backbone.site(site).first
    )
    patch = delta(backbone, 1)
    with replaced(backbone.model, path):
        for ask in (
            lambda: backbone.logits(batch),
            lambda: backbone.applied(patch).__enter__(),
            lambda: ask_prompts(backbone, [Prompt.of("Which?")]),
        ):
            with pytest.raises(BadBackbone, match=r"was replaced after the model was wrapped"):
                ask()
    assert backbone.hooks.stack == ()


def test_a_module_replaced_under_a_live_patch_is_named_in_the_models_own_forward(
    pictures: list[str],
) -> None:
    bb = tiny.shared("llava")
    batch = bb.encode([Prompt.of("Which?", pictures[0])])
    with bb.applied(delta(bb, 1)), replaced(bb.model, "lm_head"):
        with pytest.raises(BadBackbone, match="'lm_head'"):
            bb.model(**batch.inputs)
        with pytest.raises(BadBackbone, match="'lm_head'"):
            bb.model.generate(**batch.inputs, max_new_tokens=2)


def test_a_model_that_is_wrapped_again_shows_patches_on_its_new_modules(
    pictures: list[str],
) -> None:
    bb = tiny.llava(layers=2)
    batch = bb.encode([Prompt.of("Which?", pictures[0])])
    bb.model.resize_token_embeddings(bb.model.lm_head.weight.shape[0] + 4, mean_resizing=False)
    again = tiny.HfVlm(bb.model, bb.processor, name=bb.name)
    shape = bb.model.lm_head.weight.shape
    patch = Delta({"head": {"dense": torch.randn(shape)}}).requires_grad_(False)
    with torch.no_grad():
        plain = bb.model(**batch.inputs).logits[:, -1]
        with again.applied(patch):
            edited, own = bb.model(**batch.inputs).logits[:, -1], again.logits(batch)[:, 0]
    assert not torch.allclose(plain, edited, atol=1e-2)
    torch.testing.assert_close(edited, own)


def test_a_model_that_is_wrapped_again_keeps_what_is_live(pictures: list[str]) -> None:
    bb = tiny.llava(layers=2)
    batch = bb.encode([Prompt.of("Which?", pictures[0])])
    with torch.no_grad(), bb.applied(delta(bb, 1)):
        edited = bb.model(**batch.inputs).logits
        bb.model.lm_head = copy.deepcopy(bb.model.lm_head)
        tiny.HfVlm(bb.model, bb.processor, name=bb.name)
        assert torch.equal(bb.model(**batch.inputs).logits, edited)
    with torch.no_grad():
        assert not torch.equal(bb.model(**batch.inputs).logits, edited)
    assert all(p.used == 0 for p in bb.hooks.points.values())


def test_a_model_that_was_compiled_before_it_was_wrapped_shows_patches() -> None:
    model, processor = tiny.llava_parts()
    compiled = torch.compile(model.model.language_model, backend="eager")
    ids = torch.randint(10, 200, (1, 9))
    with torch.no_grad():
        plain = compiled(input_ids=ids, use_cache=False).last_hidden_state
        bb = tiny.HfVlm(model, processor, name="compiled")
        with bb.applied(delta(bb, 1)):
            edited = compiled(input_ids=ids, use_cache=False).last_hidden_state
    assert not torch.allclose(plain, edited, atol=1e-2)


def test_a_compiled_model_shows_each_thread_its_own() -> None:
    bb = tiny.llava(layers=2)
    compiled = torch.compile(bb.text, backend="eager")
    ids = torch.randint(10, 200, (1, 9))

    def run(patch: Delta | None) -> Tensor:
        with torch.no_grad(), bb.applied(patch):
            return compiled(input_ids=ids, use_cache=False).last_hidden_state

    patches = [None, delta(bb, 1), delta(bb, 2)]
    wanted = [run(p) for p in patches]
    go = threading.Event()

    def ask_later(patch: Delta | None) -> Any:
        go.wait(60)
        return run(patch)

    results: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, p=p: results.update({i: ask_later(p)}))  # type: ignore[misc]
        for i, p in enumerate(patches)
    ]
    for t in threads:
        t.start()
    with bb.applied(delta(bb, 9)):  # of this thread alone
        go.set()
        for t in threads:
            t.join(120)
    for i, want in enumerate(wanted):
        torch.testing.assert_close(results[i], want)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_quantised_after_it_was_wrapped_answers_and_refuses_patches() -> None:
    """torch puts the hooks of a module on the one that takes its place, without their options."""
    bb = tiny.llava(layers=2)
    ids = torch.randint(10, 200, (1, 9))
    plain = bb.model(input_ids=ids).logits
    torch.ao.quantization.quantize_dynamic(bb.model, {torch.nn.Linear}, inplace=True)
    with torch.no_grad():
        assert (bb.model(input_ids=ids).logits - plain).abs().max() < 5
        with bb.hooks.block([delta(bb, 1)], list), pytest.raises(BadBackbone, match="replaced"):
            bb.model(input_ids=ids)


@pytest.mark.parametrize("part", ["", "self_attn", "mlp"])
def test_a_model_of_compiled_blocks_is_wrapped(part: str) -> None:
    model, processor = tiny.llava_parts(layers=2)
    layers = model.model.language_model.layers
    for i, layer in enumerate(layers):
        if part:
            setattr(layer, part, torch.compile(getattr(layer, part), backend="eager"))
        else:
            layers[i] = torch.compile(layer, backend="eager")
    bb = tiny.HfVlm(model, processor, name="compiled blocks")
    ids = torch.randint(10, 200, (1, 9))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with bb.applied(delta(bb, 1)):
            edited = model(input_ids=ids).logits
    assert not torch.allclose(plain, edited, atol=1e-2)
