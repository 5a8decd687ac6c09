"""Prompts, tokens, dtypes and fingerprints of the transformers backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image as Pil

from errata.backbones import _weights, load
from errata.cli import doctor
from errata.core import registry
from errata.core.errors import BadBackbone, BadEdit, BadImage, BadSpec, TooLong
from errata.core.types import Edit, Image, Prompt
from tests import tiny


def test_prompt_styles(pictures: list[str]) -> None:
    prompt = Prompt.of("Which shape?", pictures[0])
    bb = tiny.shared("llava")
    assert bb.formatted(prompt) == "<image>\nWhich shape?"
    assert tiny.shared("blip2").formatted(prompt) == "<image>Which shape?"
    qwen = "<|vision_start|><|image_pad|><|vision_end|>Which shape?"
    assert tiny.shared("qwen2.5").formatted(prompt) == qwen
    easy = tiny.HfVlm(bb.model, bb.processor, style="easyedit")
    assert easy.formatted(prompt) == "<image>\nQuestion: Which shape? Short answer:"
    with pytest.raises(BadSpec, match="no chat template"):
        tiny.HfVlm(bb.model, bb.processor, style="chat").formatted(prompt)
    processor = tiny.llava_parts()[1]
    processor.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endfor %} ASSISTANT:"
    )
    chat = tiny.HfVlm(bb.model, processor, style="chat")
    assert chat.formatted(prompt) == "<image>Which shape? ASSISTANT:"
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


def draw(path: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    Pil.fromarray(pixels).save(path)
    return str(path)


def test_a_picture_that_was_written_again_is_another(tmp_path: Path) -> None:
    bb, path = tiny.shared("llava"), draw(tmp_path / "a.png", 1)
    prompt = Prompt.of("Which?", path)
    before, first = bb.encode([prompt]), bb.logits(bb.encode([prompt]))
    assert torch.equal(bb.logits(bb.encode([prompt])), first)
    draw(tmp_path / "a.png", 2)
    again = bb.encode([prompt])
    assert again.image_keys != before.image_keys
    assert not torch.equal(bb.logits(again), first)
    with pytest.raises(BadImage, match="sha256"):
        bb.encode([Prompt.of("Which?", Image(path, "0" * 64))])
    Path(path).unlink()
    with pytest.raises(BadImage, match="no such file"):
        bb.encode([prompt])


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.WINDOWED])
def test_a_mark_for_images_in_a_text_is_refused(family: str, pictures: list[str]) -> None:
    bb = tiny.shared(family)
    for mark in {bb.image_token, bb.tokenizer.convert_ids_to_tokens(bb.image_id)}:
        for picture in (None, pictures[0]):
            with pytest.raises(BadEdit, match=f"prompt 'What is .* holds the text .{mark[:3]}"):
                bb.encode([Prompt.of("Fine"), Prompt.of(f"What is {mark} here?", picture)])
        with pytest.raises(BadEdit, match="the answer"):
            bb.encode([Prompt.of("Which?")], [f"a {mark}"])


def test_what_else_cannot_be_encoded() -> None:
    bb = tiny.shared("llava")
    with pytest.raises(AssertionError, match="no prompts"):
        bb.encode([])
    with pytest.raises(BadEdit, match="surrogate"):
        bb.encode([Prompt.of("half \ud800 of it")])
    chat = tiny.HfVlm(bb.model, tiny.llava_parts()[1], style="chat")
    chat.processor.chat_template = (
        "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    )
    chat.__dict__["_template_writes_bos"] = True  # so that nothing stands in front
    with pytest.raises(BadEdit, match="prompt 1 of 2 is empty"):
        chat.encode([Prompt.of("Which?"), Prompt.of("")])


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.WINDOWED])
def test_doctor_compares_with_the_familys_own_processor(family: str, pictures: list[str]) -> None:
    own = doctor.examine(tiny.shared(family), pictures[0])["own forward"]
    assert own["same tokens"] and own["equal"]


def test_image_tokens_see_each_other_where_the_processor_says_so(pictures: list[str]) -> None:
    bb = tiny.shared("gemma3")
    batch = bb.encode([Prompt.of("Which?", pictures[0]), Prompt.of("Which?")])
    assert torch.equal(batch.inputs["token_type_ids"], batch.vision.long())
    causal = {k: v for k, v in batch.inputs.items() if k != "token_type_ids"}
    with torch.no_grad():
        own = bb.model(**causal).logits[0, int(batch.lengths[0]) - 1]
    assert not torch.allclose(bb.logits(batch)[0, 0], own, atol=1e-3)
    shown = bb.decode(batch.ids[0].tolist())
    assert shown.endswith("Which?")
    start, end = 4, 5
    assert [i for i in batch.ids[0].tolist() if i in (3, start, end)] == [start, 3, 3, 3, 3, end]


def test_a_processor_that_refuses_the_markup_is_one_line(pictures: list[str]) -> None:
    prompt = Prompt.of("Which?", pictures[0])

    class Refuses:
        image_token, chat_template, tokenizer = "<image>", None, tiny.tokenizer()

        def __call__(self, text: Any, images: list[Any], **_: Any) -> Any:
            raise ValueError("Prompt contained 0 image tokens but received 1 images.")

    class IgnoresIt(Refuses):
        def __call__(self, text: Any, images: list[Any], **_: Any) -> Any:
            return {"input_ids": torch.tensor([[1, 9, 9]])}

    class SmallOnly(Refuses):
        def __call__(self, text: Any, images: list[Any], **_: Any) -> Any:
            if images[0].size != (64, 64):
                raise ValueError("absolute aspect ratio must be smaller than 200")

    class TwoWays(Refuses):
        def __call__(self, text: Any, images: list[Any], **_: Any) -> Any:
            ids = self.tokenizer(text[0].replace("<image>", "<image>" * 4), return_tensors="pt")
            return {**ids, "token_type_ids": torch.zeros_like(ids["input_ids"])}

    def wrapped(processor: Any) -> tiny.HfVlm:
        return tiny.HfVlm(tiny.shared("llava").model, processor, name="other")

    with pytest.raises(BadBackbone, match=r"other: its processor takes no image marked '<image>"):
        wrapped(Refuses()).encode([prompt])
    with pytest.raises(BadBackbone, match="does not put image tokens where"):
        wrapped(IgnoresIt()).encode([prompt])
    with pytest.raises(BadImage, match="the processor of other refuses it"):
        wrapped(SmallOnly()).encode([prompt])
    gemma = tiny.HfVlm(tiny.shared("gemma3").model, TwoWays(), name="other")
    with pytest.raises(BadBackbone, match="token_type_ids do not mark image tokens"):
        gemma.encode([prompt])


@pytest.mark.parametrize("family", tiny.WINDOWED)
def test_a_window_counts_a_rows_own_tokens(family: str, pictures: list[str]) -> None:
    """Neither other rows' lengths nor a reference between prompt and answer take up its room."""
    bb = tiny.shared(family)
    assert bb.windowed and not tiny.shared("llava").windowed
    short = [Prompt.of("What is it?"), Prompt.of("Which?", pictures[0])]
    far = Prompt.of("Is the thing red or blue or green, please tell me at once?" * 2)
    alone = [bb.generate(bb.encode([p]), [8])[0] for p in (*short, far)]
    references = ["zzzzzzzzzzzzzzzzzzzzzzzzzzzz", "~", "##########"]
    batch = bb.encode([*short, far], references)
    assert bb.generate(batch, [8] * 3) == alone
    with bb.ask(batch) as q:
        together = q.score([g.ids for g in alone])
    for prompt, said, scored in zip((*short, far), alone, together, strict=True):
        assert scored.argmax == said.ids
        with bb.ask(bb.encode([prompt])) as q:
            np.testing.assert_allclose(q.score([said.ids])[0].logprobs, scored.logprobs, atol=1e-4)


def test_a_hub_model_is_hashed_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of the hub's cache, with the weights in bfloat16."""
    commit = "0" * 40
    home = tmp_path / "models--some--one"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    model, processor = tiny.llava_parts()
    model.to(torch.bfloat16).save_pretrained(snapshot)
    processor.save_pretrained(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert _weights.folder("some/one", None, None) == snapshot
    assert _weights.folder("some/one", "main", commit) == snapshot
    assert _weights.folder("some/other", None, None) is None
    full, half = (tiny.HfVlm.load("some/one", dtype=d) for d in ("float32", "bfloat16"))
    assert full.dtype == torch.float32 and half.dtype == torch.bfloat16
    before = full.fingerprint()
    assert half.fingerprint() == before
    alone = tiny.HfVlm(half.model, half.processor)  # nothing stored: what is in memory
    assert alone.fingerprint() == before
    files = _weights.former_fingerprint(full.model.config.to_dict(), full.model, snapshot)
    (snapshot / "consolidated.safetensors").write_bytes(b"another copy that nobody loads")
    again = _weights.former_fingerprint(full.model.config.to_dict(), full.model, snapshot)
    assert again == files == full.former_fingerprint()
