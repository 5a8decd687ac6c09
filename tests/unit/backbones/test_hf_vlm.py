"""Prompts, tokens, dtypes and fingerprints of the transformers backbone."""

from __future__ import annotations

import pytest
import torch

from errata.backbones import load
from errata.core import registry
from errata.core.errors import BadSpec, TooLong
from errata.core.types import Edit, Prompt
from tests import tiny


def test_prompt_styles(pictures: list[str]) -> None:
    prompt = Prompt.of("Which shape?", pictures[0])
    bb = tiny.shared("llava")
    assert bb.shown(prompt) == "<image>\nWhich shape?"
    assert tiny.shared("blip2").shown(prompt) == "<image>Which shape?"
    qwen = "<|vision_start|><|image_pad|><|vision_end|>Which shape?"
    assert tiny.shared("qwen2.5").shown(prompt) == qwen
    easy = tiny.HfVlm(bb.model, bb.processor, style="easyedit")
    assert easy.shown(prompt) == "<image>\nQuestion: Which shape? Short answer:"
    with pytest.raises(BadSpec, match="no chat template"):
        tiny.HfVlm(bb.model, bb.processor, style="chat").shown(prompt)
    processor = tiny.llava_parts()[1]
    processor.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endfor %} ASSISTANT:"
    )
    chat = tiny.HfVlm(bb.model, processor, style="chat")
    assert chat.shown(prompt) == "<image>Which shape? ASSISTANT:"
    assert chat.encode([prompt]).vision.sum() == 4


def test_one_space_and_a_stripped_target(pictures: list[str]) -> None:
    bb, prompt = tiny.shared("llava"), Prompt.of("Which shape?", pictures[0])
    plain = bb.encode([prompt], ["ring"])
    for target in (" ring", "ring ", "\tring\n"):
        assert bb.encode([prompt], [target]).targets == plain.targets
    assert bb.decode(plain.targets[0]) == "ring"
    whole = bb.tokenizer("Which shape? ring")["input_ids"]
    assert tuple(whole[-len(plain.targets[0]) :]) == plain.targets[0]
    after_space = bb.encode([Prompt.of("Which shape? ", pictures[0])], ["ring"])
    text = bb.tokenizer.decode([i for i in after_space.ids[0].tolist() if i != 3])
    assert text.endswith("Which shape? ring")


def test_lengths_count_image_tokens_and_bos(pictures: list[str]) -> None:
    bb = tiny.shared("llava")
    text = len(bb.tokenizer("Which?")["input_ids"])
    newline = len(bb.tokenizer("<image>\nWhich?")["input_ids"])
    batch = bb.encode([Prompt.of("Which?"), Prompt.of("Which?", pictures[0])], ["ring", ""])
    assert batch.lengths.tolist() == [text, newline - 1 + 4]
    assert batch.targets[1] == ()
    eos = bb.encode([Prompt.of("Which?")], ["ring"], eos=True).targets[0]
    assert eos[-1] == bb.tokenizer.eos_token_id


def test_blip2_puts_its_image_before_bos(pictures: list[str]) -> None:
    ids = tiny.shared("blip2").encode([Prompt.of("Which?", pictures[0])]).ids[0].tolist()
    assert ids[:5] == [3, 3, 3, 3, 1]


def test_too_long_names_the_prompt() -> None:
    with pytest.raises(TooLong, match=r"prompt 'red red.*takes 512"):
        tiny.shared("llava").encode([Prompt.of("red " * 400)])


def test_the_load_dtype_does_not_change_the_fingerprint() -> None:
    full, half = load("micro-vlm"), load("micro-vlm", dtype="bfloat16")
    assert full.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert full.fingerprint() == half.fingerprint()


def test_bfloat16_models_are_edited_in_float32(edits: list[Edit]) -> None:
    """Patches stay float32; the edit is found, takes, and is undone bit for bit."""
    model, processor = tiny.llava_parts()
    bb = tiny.HfVlm(model.to(torch.bfloat16), processor)
    editor = registry.load("editors", "ft_l")(lr=3e-2, steps=60)
    batch = bb.encode([edits[0].prompt])
    clean = bb.logits(batch)
    patch = editor.edit(bb, edits[:1]).patch
    assert all(p.dtype == torch.float32 for p in patch.parameters())
    with bb.applied(patch):
        said = bb.generate(batch, [8])[0]
    assert bb.decode(said.ids) == "green"
    assert torch.equal(bb.logits(batch), clean)


def test_equal_images_go_through_the_tower_once(pictures: list[str]) -> None:
    bb = tiny.llava()
    original = bb.tower.forward  # type: ignore[union-attr]
    sizes: list[int] = []

    def counted(*args: object, **kwargs: object) -> object:
        pixels = args[0] if args else kwargs["pixel_values"]
        sizes.append(pixels.shape[0])  # type: ignore[attr-defined]
        return original(*args, **kwargs)

    bb.tower.forward = counted  # type: ignore[union-attr,method-assign]
    prompts = [Prompt.of(f"Which {i}?", pictures[i % 2]) for i in range(6)]
    together = bb.logits(bb.encode(prompts))
    assert sizes == [2]
    for b, prompt in enumerate(prompts):
        torch.testing.assert_close(
            together[b], bb.logits(bb.encode([prompt]))[0], atol=1e-4, rtol=1e-4
        )
