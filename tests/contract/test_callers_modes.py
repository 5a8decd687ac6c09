"""A model in training is wrapped, asked and edited: its modes stay, and errata's forwards are
those of evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import errata
from errata.core import registry
from errata.core.errors import BadBackbone
from errata.core.model.backbone import Backbone
from errata.core.types import Edit, Prompt
from errata.evaluation.answers import ask_prompts
from tests import tiny

ALL = {**tiny.FAMILIES, **tiny.DRAWING}


def modes(model: Any) -> list[bool]:
    return [
        *(m.training for m in model.modules()),
        *(p.requires_grad for p in model.parameters()),
        *(p.grad is not None for p in model.parameters()),
    ]


def in_training(backbone: Backbone) -> Backbone:
    """The same wrapped model in training mode, with half of its weights trainable."""
    backbone.model.train()
    for i, parameter in enumerate(backbone.model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    return backbone


@pytest.mark.parametrize("family", sorted(ALL))
def test_asking_and_editing_leave_the_modes_and_run_in_evaluation_mode(
    family: str, pictures: list[str]
) -> None:
    bb = in_training(ALL[family]())
    before, ran = modes(bb.model), []
    block = bb.site("text.1.block").first
    block.register_forward_pre_hook(lambda module, args: ran.append(module.training))
    prompt = Prompt.of("What is the thing?", pictures[0] if "image" in bb.capabilities else None)
    results: list[Callable[[], Any]] = [
        lambda: ask_prompts(bb, [prompt]),
        lambda: bb.logits(bb.encode([prompt])),
        lambda: bb.embed([prompt]),
        lambda: bb.generate(bb.encode([prompt]), [2]),
        lambda: registry.load("editors", "lora")(steps=2).edit(bb, [Edit(prompt, "green")]),
    ]
    for run in results:
        run()
        assert modes(bb.model) == before
    assert ran and not any(ran)
    bb.model.eval().requires_grad_(False)
    plain = bb.logits(bb.encode([prompt]))
    in_training(bb)
    assert torch.equal(bb.logits(bb.encode([prompt])), plain)


def test_wrapping_leaves_the_modes() -> None:
    model, processor = tiny.llava_parts()
    model.train()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = modes(model)
    tiny.HfVlm(model, processor, name="in-training")
    assert modes(model) == before


def test_gradient_checkpointing_still_sees_the_live_patch(pictures: list[str]) -> None:
    """A trainer's own forward and backward, with a patch live."""
    bb = tiny.llava(layers=2)
    batch = bb.encode([Prompt.of("Which?", pictures[0])])
    patch = (
        registry.load("editors", "lora")(steps=2).edit(bb, [Edit(batch.prompts[0], "green")]).patch
    )
    grads = []
    for checkpointing in (False, True):
        model: Any = bb.model
        model.train().requires_grad_(True)
        if checkpointing:
            new = "activation_checkpointing_enable"  # the name since transformers 5.23
            (getattr(model, new, None) or model.gradient_checkpointing_enable)()
        with bb.applied(patch):
            model(**batch.inputs, use_cache=False).logits.square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert grads[0]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_patch_under_autocast_keeps_its_own_arithmetic(pictures: list[str]) -> None:
    bb = tiny.shared("llava")
    batch = bb.encode([Prompt.of("Which?", pictures[0])])
    patch = (
        registry.load("editors", "ft_l")(steps=2, lr=1e-2)
        .edit(bb, [Edit(batch.prompts[0], "green")])
        .patch
    )
    with torch.no_grad(), bb.applied(patch):
        plain = bb.model(**batch.inputs).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = bb.model(**batch.inputs).logits
    torch.testing.assert_close(cast.float(), plain, atol=0.5, rtol=0.1)


@pytest.mark.parametrize("name", registry.names("analyses"))
def test_every_analysis_runs_in_ordinary_modes(name: str) -> None:
    """What each shows in them is tested with the analysis."""
    look = registry.load("analyses", name).look
    assert look.__wrapped__.__name__ == "look"


def test_a_model_that_is_loaded_in_inference_mode_can_be_edited() -> None:
    prompt = Prompt.of("What is the ring?")
    with torch.inference_mode():
        bb = errata.load("micro-vlm")
        patch = errata.editor("ft_l", steps=1).edit(bb, [Edit(prompt, "green")]).patch
    with bb.applied(patch):
        assert bb.logits(bb.encode([prompt])).isfinite().all()


def test_a_model_that_was_made_in_inference_mode_is_named() -> None:
    with torch.inference_mode():
        bb = tiny.llava(layers=2)
        with pytest.raises(BadBackbone, match="inference_mode"):
            errata.editor("ft_l", steps=1).edit(bb, [Edit(Prompt.of("Which?"), "green")])
        assert ask_prompts(bb, [Prompt.of("Which?")])
