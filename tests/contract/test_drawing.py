"""What must hold for every model that draws, on tiny models of the real classes and stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errata.backbones import load, wrap
from errata.core.errors import BadBackbone, BadEdit, BadSpec, MissingExtra, UserError
from errata.core.types import Prompt
from errata.editors.bridge.drawn import PromptShift
from errata.patches.delta import Delta
from errata.testing import class_checks
from errata.testing.drawing import checks, emu3, janus, standins
from errata.testing.drawing.pipelines import PIPELINES, folder_of, hidream
from errata.testing.drawing.pipelines import wrapped as pipeline

pytest.importorskip("diffusers")

MODELS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: pipeline(name) for name in PIPELINES},
    "janus": janus.wrapped,
    "emu3": emu3.wrapped,
    **{name: lambda name=name: standins.wrapped(name) for name in standins.STANDINS},
}
#: each editor on some classes of pipelines; together they are on all
EDITED = {
    "memit": ("sana", "z_image", "ovis_u1"),
    "pmet": ("lumina2", "blip3o", "emu3"),
    "alphaedit": ("qwen_image", "omnigen2"),
    "rome": ("ovis_image", "cogview4", "janus"),
    "ft_l": ("flux2_klein", "longcat", "hunyuan_image"),
    "bridge": ("z_image", "cogview4", "omnigen2"),
}
#: those whose call hands text states to the generator with gradients
SEARCHED = [n for n in (*PIPELINES, "omnigen2") if n != "longcat"]


def reads(name: str) -> int:
    """The highest block that the code of a model reads, known from its source."""
    return PIPELINES[name].reads if name in PIPELINES else MODELS[name]().depth - 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda f: f.__name__)
def test_every_model(check, name: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(MODELS[name](), tmp_path)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("check", checks.REACH, ids=lambda f: f.__name__)
def test_what_an_edit_reaches(check, name: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(MODELS[name](), tmp_path, reads(name))


@pytest.mark.parametrize(("editor", "name"), [(e, n) for e, names in EDITED.items() for n in names])
def test_editors(editor: str, name: str, tmp_path: Path) -> None:
    """Edited, saved, loaded, undone; those blocks reach the picture, so the edit does."""
    bb = MODELS[name]()
    layers = {"layers": (0,)} if editor in ("rome", "ft_l") else {"layers": (0, 1)}
    class_checks.try_editor(editor, bb, tmp_path, **layers)
    from errata.io.patch_folder import load as load_patch

    # a token is the same until its logits turn over
    seeds = range({"janus": 16, "emu3": 4}.get(name, 1))
    fresh = bb.draw(checks.prompts()[:1], seeds)
    with bb.applied(load_patch(tmp_path / editor, bb)):
        assert not checks.equal(bb.draw(checks.prompts()[:1], seeds), fresh)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "blip3o"])
def test_a_subject_is_found_in_what_is_handed_over(name: str) -> None:
    _, subject = MODELS[name]().conditioning_columns(checks.prompts(), checks.SUBJECTS)
    assert subject.sum(1).tolist() == [3, 3]  # "r", "ed", " ring" and the like


@pytest.mark.parametrize("name", [*PIPELINES, *standins.STANDINS])
def test_which_models_draw_several_prompts_in_one_call(name: str) -> None:
    bb = MODELS[name]()
    assert bb.batches == (name not in ("longcat", "ovis_u1", "blip3o"))
    calls = []
    drawn = bb.call
    bb.call = lambda texts, *a, **k: calls.append(len(texts)) or drawn(texts, *a, **k)
    try:
        bb.draw([*checks.alike(), *checks.alike(), *checks.prompts()[:1]], [0])
    finally:
        del bb.call
    assert sorted(calls) == ([1, 4] if bb.batches else [1] * 5)


def test_a_call_that_mixes_prompts_is_not_used() -> None:
    """Measured, not assumed: a pipeline that hands out its pictures in another order."""
    bb = wrap(PIPELINES["sana"].make(), drawing={"size": 32, **PIPELINES["sana"].settings})
    drawn = bb.call
    bb.call = lambda texts, *a, **k: drawn(texts, *a, **k)[::-1]
    assert not bb.batches


@pytest.mark.parametrize("name", SEARCHED)
def test_the_loss_of_a_generator_is_that_of_its_own_prediction(name: str) -> None:
    """0 for the goal itself, else the distance of two predictions; a step down its gradient
    comes nearer, at the token of the subject and through the real call.
    """
    bb = MODELS[name]()
    plain, told = Prompt.of("a photo of the ring"), Prompt.of("a photo of the red ring")
    loss = bb.generator_loss(plain, told, row=0, seeds=(0, 1))
    points = range(loss.points)
    with torch.no_grad():
        same = bb.generator_loss(told, told, row=0, seeds=(0, 1)).distances(points)
        start = loss.distances(points)
    assert same.tolist() == [0.0] * len(points) and bool((start > 0).all())
    delta = torch.zeros(bb.width, requires_grad=True)
    site, column = "text.0.block", loss.column("ring")
    there = loss.distances(points, PromptShift(site, column, delta))
    assert torch.equal(there.detach(), start)
    (gradient,) = torch.autograd.grad(there.sum(), [delta])
    assert bool(gradient.isfinite().all()) and bool(gradient.any())
    with pytest.raises(BadEdit, match="is not in the prompt"):
        loss.column("pyramid")
    if name == "sana":  # distances of 1e-4, a gradient of 400: the step is below float32's rounding
        return
    step = -1e-3 * float(start.sum()) / float(gradient.norm()) ** 2 * gradient
    with torch.no_grad():
        nearer = loss.distances(points, PromptShift(site, column, step))
    gained = float((start - nearer).sum() / start.sum())
    assert 0 < gained < 2e-3, gained  # 1e-3 to first order


def test_a_loss_that_cannot_be_formed_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("longcat", "janus", "emu3", "ovis_u1", "blip3o"):
        with pytest.raises(BadBackbone, match=r"without gradients|does not offer") as e:
            class_checks.try_editor("bridge", MODELS[name](), tmp_path, layers=(0, 1))
        assert "\n" not in str(e.value) and MODELS[name]().name in str(e.value)
    with pytest.raises(BadSpec, match="set it to picture") as spec:
        class_checks.try_editor("bridge", MODELS["sana"](), tmp_path, layers=(0,), match="mean")
    assert "\n" not in str(spec.value)


def test_janus_says_and_draws_through_two_heads_on_one_trunk() -> None:
    bb = janus.wrapped()
    fresh = bb.draw(checks.prompts(), [0])
    said = bb.logits(bb.encode(checks.prompts()))
    for site, drawn in (("head", False), ("draw.logits", True)):
        n = bb.site(site).first
        o, i = (n.weight if hasattr(n, "weight") else n.vision_head.weight).shape
        inner = n.proj_out.weight.shape[1] if hasattr(n, "proj_out") else i
        dense = torch.randn(o, inner, generator=torch.Generator().manual_seed(0))
        with bb.applied(Delta({site: {"dense": dense}}).requires_grad_(False)):
            assert checks.equal(bb.draw(checks.prompts(), [0]), fresh) != drawn, site
            same = torch.equal(bb.logits(bb.encode(checks.prompts())), said)
            assert same == drawn, site


def test_emu3_says_and_draws_through_one_head() -> None:
    """And guidance is by a negative prompt, in calls of their own that a path does not see."""
    bb = emu3.wrapped()
    fresh = bb.draw(checks.prompts(), [0])
    said = bb.logits(bb.encode(checks.prompts()))
    dense = torch.randn(bb.site("head").first.weight.shape, generator=torch.Generator())
    with bb.applied(Delta({"head": {"dense": dense}}).requires_grad_(False)):
        assert not checks.equal(bb.draw(checks.prompts(), [0]), fresh)
        assert not torch.equal(bb.logits(bb.encode(checks.prompts())), said)
    without = {"guidance": 1.0, "negative": "a blue thing"}
    for changed in without:
        settings = {**emu3.DRAWING, changed: without[changed]}
        other = wrap(bb.model, bb.processor, drawing=settings).draw(checks.prompts(), [0])
        assert not checks.equal(other, fresh), changed


def test_a_saved_pipeline_is_the_same_model_in_every_dtype() -> None:
    given, kept = {"size": 32, "steps": 2, "max_sequence_length": 64}, pipeline("sana")
    loaded = [
        load(folder_of("sana"), dtype=dtype, drawing={"complex_human_instruction": None, **given})
        for dtype in ("auto", "bfloat16")
    ]
    assert [b.fingerprint() for b in loaded] == [kept.fingerprint()] * 2
    assert [str(b.dtype) for b in loaded] == ["torch.float32", "torch.bfloat16"]
    assert checks.equal(loaded[0].draw(checks.prompts(), [0]), kept.draw(checks.prompts(), [0]))


def test_a_multi_tap_pipeline_is_read_at_its_highest_tap() -> None:
    facts = pipeline("flux2_klein").facts()
    assert facts["blocks that reach the picture"] == "0 to 3 of 6"
    assert facts["class"] == "Flux2KleinPipeline"
    assert "the tied embedding" in pipeline("sana").facts()["text model"]


def test_code_that_is_not_installed_is_named_with_the_way_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model_index.json").write_text(
        '{"_class_name": "OmniGen2Pipeline", "_diffusers_version": "0.42.1"}'
    )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"model_type": "blip3o_qwen"}')
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text(
        '{"model_type": "ovis_u1", "visual_generator_config": {}}'
    )
    for folder in "abc":
        with pytest.raises(BadBackbone, match="--trust-remote-code") as e:
            load(tmp_path / folder)
        assert "\n" not in str(e.value)
    for folder, url in (("a", "VectorSpaceLab/OmniGen2"), ("b", "JiuhaiChen/BLIP3o")):
        with pytest.raises(MissingExtra, match=url) as missing:
            load(tmp_path / folder, trust_remote_code=True)
        assert "\n" not in str(missing.value)


def test_a_pipeline_without_a_language_model_is_refused() -> None:
    parts = pipeline("hunyuan_image").pipeline.components
    lacking = {k: v for k, v in parts.items() if k != "text_encoder"}
    with pytest.raises(BadBackbone, match="T5EncoderModel: none is a decoder-only language") as e:
        wrap(SimpleNamespace(components=lacking, config={"_class_name": "Two"}))
    assert "\n" not in str(e.value)


def test_a_pipeline_whose_generator_reads_the_words_itself_is_refused(tmp_path: Path) -> None:
    """OmniGen: text and image in one stream; by its index alone, before its weights are read."""
    parts = {
        "_class_name": "OmniGenPipeline", "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "LlamaTokenizerFast"],
        "transformer": ["diffusers", "OmniGenTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(BadBackbone, match=r"\(OmniGenPipeline\) has no text encoder") as e:
        load(tmp_path)
    assert "\n" not in str(e.value)


def test_a_pipeline_that_hands_over_blocks_apart_is_refused() -> None:
    """HiDream: block k of Llama goes to block k of the generator, past what would be the tap."""
    for guidance in (5.0, 0.0):
        settings = {"size": 32, "steps": 2, "max_sequence_length": 64, "guidance": guidance}
        with pytest.raises(BadBackbone, match=r"caption_projection\.0 does not see block 3") as e:
            wrap(hidream(), drawing=settings)
        assert "\n" not in str(e.value)


def test_a_model_that_does_not_repeat_itself_is_refused() -> None:
    made = PIPELINES["sana"].make()
    made.text_encoder.norm.register_forward_hook(lambda m, x, y: y + torch.rand(()))
    with pytest.raises(BadBackbone, match="other values each time"):
        wrap(made, drawing={"size": 32, "steps": 2, **PIPELINES["sana"].settings})


def test_settings_that_a_drawing_does_not_take_are_refused() -> None:
    for name, setting in (
        ("sana", {"max_length": 3}), ("sana", {"steps": 0}), ("sana", {"together": 0}),
    ):  # fmt: skip
        with pytest.raises(UserError, match=next(iter(setting))):
            wrap(PIPELINES[name].make(), drawing=setting)
    for parts in (janus.parts, emu3.parts):
        with pytest.raises(UserError, match="draws by tokens"):
            wrap(*parts(), drawing={"steps": 2})


def test_a_prompt_that_patches_rewrite_is_drawn_as_rewritten() -> None:
    from errata.core.registry import load as plugin

    bb = pipeline("sana")
    editor = plugin("editors", "ike")(demonstrations=0)
    from errata.core.types import Edit

    prompt = Prompt.of(checks.PROMPTS[0])
    patch = editor.edit(bb, [Edit(prompt, "green", "ring", id="a")], None).patch
    with bb.applied(patch):
        drawn = bb.draw([prompt], [0])
        written = bb.rewritten(prompt)
    assert written.text != prompt.text
    assert checks.equal(drawn, bb.draw([written], [0]))
