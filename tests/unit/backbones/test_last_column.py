"""Where the last token of a subject is in an encoded row (locate-then-edit editors look it up)."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors

from errata.backbones.hf_vlm import HfVlm
from errata.core.errors import BadBackbone, BadEdit
from errata.core.types import Prompt
from tests import tiny

TEXTS = [
    ("The colour of the ring is", "the ring"),
    ("A fact. The colour of the ring is", "the ring"),  # a prefix that ends with a space
    ("(the ring) is", "the ring"),  # one that does not
    ("Area 51 is a thing", "Area 51"),  # digits at its end
    ("What about Yahoo! then", "Yahoo!"),  # punctuation at its end
    ("Mr. Ring's shape", "Mr. Ring"),
    ("Ring", "Ring"),  # at position 0 and at the end
    ("Rings and a Ring are here", "Ring"),  # the whole word, not the beginning of another
    ("The Ring is a Ring, says Bo", "Ring"),  # the last mention
    ("It is café", "café"),  # two bytes in the last letter
    ("ring of green\nand so on", "ring of green"),
]


def _without_bos(backbone: HfVlm) -> HfVlm:
    backbone.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    return backbone


def _said(backbone: HfVlm, prompt: Prompt, subject: str) -> str:
    """The text up to and with the column found, special and image tokens left out."""
    batch = backbone.encode([prompt, Prompt.of("a much longer prompt to pad for, by far longer")])
    column = backbone.last_column(prompt, subject)
    assert column < int(batch.lengths[0])
    ids = [int(i) for i in batch.ids[0, : column + 1]]
    return str(backbone.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("text", "subject"), TEXTS)
def test_the_token_is_the_subjects_last_piece(text, subject, bos):
    backbone = tiny.llava() if bos else _without_bos(tiny.llava())
    prompt = Prompt.of(text)
    assert (int(backbone.encode([prompt]).ids[0, 0]) == 1) == bos
    said = _said(backbone, prompt, subject)
    assert said.endswith(subject)
    assert text.startswith(said)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("text", "subject"), TEXTS)
def test_the_first_token_is_the_subjects_first_piece(text, subject, bos):
    backbone = tiny.llava() if bos else _without_bos(tiny.llava())
    prompt = Prompt.of(text)
    first, last = (f(prompt, subject) for f in (backbone.first_column, backbone.last_column))
    ids = backbone.encode([prompt]).ids[0].tolist()
    assert str(backbone.tokenizer.decode(ids[first : last + 1])).strip() == subject
    assert subject not in str(backbone.tokenizer.decode(ids[first + 1 : last + 1]))


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_the_first_token_is_found_behind_image_tokens(family, pictures):
    backbone = tiny.shared(family)
    shown = Prompt.of("The colour of the ring is", pictures[0])
    first, last = (f(shown, "the ring") for f in (backbone.first_column, backbone.last_column))
    ids = backbone.encode([shown]).ids[0, first : last + 1]
    assert str(backbone.tokenizer.decode(ids)).strip() == "the ring"


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_image_tokens_in_front_are_counted(family, pictures):
    backbone = tiny.shared(family)
    shown = Prompt.of("The colour of the ring is", pictures[0])
    plain = Prompt.of("The colour of the ring is")
    batch = backbone.encode([shown])
    column = backbone.last_column(shown, "the ring")
    behind = int(batch.lengths[0]) - column
    assert behind == int(backbone.encode([plain]).lengths[0]) - backbone.last_column(
        plain, "the ring"
    )
    last = int(batch.vision[0].nonzero().max())
    assert column > last
    text = backbone.tokenizer.decode(batch.ids[0, last + 1 : column + 1], skip_special_tokens=True)
    assert str(text).endswith("the ring")


def test_text_between_two_images(pictures):
    from errata.core.types import Image

    backbone = tiny.shared("llava")
    prompt = Prompt((Image(pictures[0]), "a ring", Image(pictures[1]), " or this?"))
    column = backbone.last_column(prompt, "ring")
    batch = backbone.encode([prompt])
    assert 0 < int(batch.vision[0, :column].sum()) < int(batch.vision[0].sum())
    assert backbone.tokenizer.decode(batch.ids[0, column]).endswith("ring")


@pytest.mark.parametrize("style", ["easyedit", "chat"])
def test_what_a_style_wraps_around_is_not_searched(style, pictures):
    model, processor = tiny.llava_parts()
    processor.chat_template = (
        "{% for m in messages %}USER the ring: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] | trim }}{% endif %}"
        "{% endfor %} ASSISTANT the ring:{% endfor %}"
    )
    backbone = HfVlm(model, processor, name="tiny-llava", style=style)
    prompt = Prompt.of("the ring has which shape? ", pictures[0])
    column = backbone.last_column(prompt, "the ring")
    ids = backbone.encode([prompt]).ids[0]
    behind = str(backbone.tokenizer.decode(ids[column + 1 :], skip_special_tokens=True))
    assert behind.startswith(" has which shape?")
    if style == "easyedit":
        with pytest.raises(BadEdit, match="Question"):
            backbone.last_column(prompt, "Question")


def test_the_bundled_model_splits_names():
    import errata

    backbone = errata.load("micro-vlm")
    prompt = Prompt.of("What is the home of the object?")
    ids = backbone.encode([prompt]).ids[0]
    column = backbone.last_column(prompt, "the object")
    assert backbone.decode(ids[: column + 1].tolist()) == "What is the home of the object"


@pytest.mark.parametrize("subject", ["the square", "", "  "])
def test_a_subject_that_is_not_there(subject):
    with pytest.raises(BadEdit, match="not in the prompt"):
        tiny.shared("llava").last_column(Prompt.of("The colour of the ring"), subject)


def test_a_tokenizer_without_offsets(monkeypatch):
    backbone = tiny.llava()

    class Slow:
        is_fast = False

    monkeypatch.setattr(backbone, "tokenizer", Slow())
    with pytest.raises(BadBackbone, match="token=last_prompt"):
        backbone.last_column(Prompt.of("The colour of the ring"), "ring")


@pytest.mark.parametrize("family", sorted({**tiny.FAMILIES, **tiny.WINDOWED}))
def test_going_on_from_a_state_equals_entering_at_once(family, ragged):
    backbone = tiny.shared(family)
    batch = backbone.encode(ragged)
    low = backbone.enter(batch, 1)
    direct, further = backbone.enter(batch, 3), backbone.enter(low, 3)
    real = batch.mask.bool()
    assert torch.allclose(direct.stream[real], further.stream[real], atol=1e-6)
    assert torch.allclose(backbone.logits(direct), backbone.logits(further), atol=1e-5)
    at_bottom = backbone.enter(backbone.enter(batch, 0), 2)
    assert torch.allclose(at_bottom.stream[real], backbone.enter(batch, 2).stream[real], atol=1e-6)
