"""Prompts as text and token ids: styles, image tokens, end tokens, line breaks, refused texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from errata.core.errors import BadBackbone, BadEdit, BadImage, BadSpec, one_line
from errata.core.types import Image, Prompt, Turn
from errata.io.images import hash_image, load_image, split_uri

#: how a prompt is written: as it is, as in EasyEdit, or with the model's chat template
Style = Literal["raw", "easyedit", "chat"]
#: words in the names of inputs that tell a model which part of its pixels is padding
_TELLS = ("size", "mask", "grid", "num_", "ratio")
#: words in the names of inputs that count the patches [tiles, patches, .] of all images
_INDICES = ("pooling",)
#: a processor's outputs for the text; all its other outputs belong to the image
_TYPES = ("token_type_ids", "mm_token_type_ids")
_OF_TEXT = ("input_ids", "attention_mask", "labels", *_TYPES)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image as inputs of the model.

    ids: replace the image's placeholder in a prompt; `count` of them are image tokens. tensors:
    keywords of the model's forward for one image. types: keywords that mark image tokens. patterns:
    keywords that mark others of `ids` too, with their values there. asked: keywords for another
    part of the model that reads the prompt.
    """

    ids: tuple[int, ...]
    count: int
    tensors: Mapping[str, Tensor]
    types: tuple[str, ...]
    patterns: Mapping[str, Tensor] = field(default_factory=dict)
    asked: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many entries the vision tower sees: tiles, or positions of a flattened image."""
        pixels = self.tensors.get("pixel_values")
        if pixels is None or pixels.dim() < 4:
            return self.count
        return int(pixels.shape[0] * (pixels.shape[1] if pixels.dim() > 4 else 1))


def image_key(image: Image) -> str:
    """Equal for equal images; a file that was written again gets another key."""
    if image.uri.startswith("data:"):
        return f"data|{image.sha256 or hash_image(image)}"
    key = f"{image.uri}|{image.sha256 or ''}"
    if split_uri(image.uri)[0] is None:
        try:
            info = os.stat(image.uri)
        except (OSError, ValueError):
            return key  # opening the image raises the error
        key += f"|{info.st_mtime_ns}|{info.st_size}|{info.st_ino}"
    return key


def encode_image(
    image: Image,
    process: Callable[[Any], Mapping[str, Tensor]],
    *,
    name: str,
    markup: str,
    markup_ids: Sequence[int],
    placeholder: int,
    is_image: Callable[[Mapping[str, Tensor]], Tensor],
    needs: Callable[[str], bool | None],
) -> EncodedImage:
    """`image` as inputs of the model, from the family's own processor.

    process: calls it with `markup` and a picture. markup_ids: the ids of the markup without an
    image; empty if the image tokens do not stand in its place. is_image: which tokens of an output
    are image tokens. needs: whether the model reads a keyword; None: only a part of it does. Raises
    BadImage, or BadBackbone if errata cannot use the processor at all.
    """
    output = _processed(image, process, name, markup)
    row, shown = output["input_ids"][0].tolist(), is_image(output)
    marked = shown
    for key in _TYPES:  # some families mark the tokens around an image, too
        if key in output and needs(key):
            marked = marked | output[key][0].bool()
    start, end = _place(row, marked, markup_ids, placeholder)
    count = int(shown[start:end].sum())
    if not count:
        raise BadBackbone(
            f"{name}: its processor does not put image tokens where {markup!r} stands. errata does "
            "not know how this family marks images; see docs/add-a-backbone.md."
        )
    parts = [k.removesuffix("input_ids") for k in output if k.endswith("_input_ids")]
    asked = tuple(k for k in output if k.startswith(tuple(parts)) and k not in _OF_TEXT)
    types, patterns = _types(output, shown, needs, (start, end), name)
    tensors = {k: v for k, v in output.items() if k not in (*_OF_TEXT, *types, *asked)}
    return EncodedImage(tuple(row[start:end]), count, tensors, types, patterns, asked)


def _place(
    ids: Sequence[int], is_image: Tensor, markup_ids: Sequence[int], placeholder: int
) -> tuple[int, int]:
    """(start, end) of what stands in place of the placeholder; of the image tokens without one."""
    if not markup_ids:
        places = is_image.nonzero().flatten().tolist()
        return (places[0], places[-1] + 1) if places else (0, 0)
    if placeholder not in markup_ids:
        return 0, 0
    before = list(markup_ids).index(placeholder)
    end = len(ids) - (len(markup_ids) - before - 1)
    same = list(ids[:before]) == list(markup_ids[:before])
    same = same and list(ids[end:]) == list(markup_ids[before + 1 :])
    return (before, end) if same else (0, 0)


def _processed(
    image: Image, process: Callable[[Any], Mapping[str, Tensor]], name: str, markup: str
) -> Mapping[str, Tensor]:
    picture = load_image(image)
    try:
        return process(picture)
    except Exception as e:  # whatever a third party's processor raises, on this picture or on any
        reason = one_line(e)
        try:
            process(Pillow.fromarray(np.full((64, 64, 3), 127, dtype=np.uint8)))
        except Exception:
            raise BadBackbone(
                f"{name}: its processor takes no image marked {markup!r} ({reason}). errata does "
                "not know how this family marks images; see docs/add-a-backbone.md."
            ) from e
        raise BadImage(
            f"cannot use image {image.shown[:200]!r}: the processor of {name} refuses it "
            f"({reason}). Give a picture of another size or shape."
        ) from e


def joined(encoded: Sequence[EncodedImage], name: str) -> dict[str, Tensor]:
    """The tensors of several images as those of one batch, images one after the other.

    Pictures that a processor cuts into other numbers of tiles, or scales to other sizes, are padded
    with zeros, as the processors themselves do in a batch; `image_sizes` or a mask tells the model
    which are padded. Raises BadImage for pictures that do not fit together.
    """
    out: dict[str, Tensor] = {}
    for key in encoded[0].tensors if encoded else ():
        parts = [e.tensors[key] for e in encoded if key in e.tensors]
        if len(parts) != len(encoded) or len({p.dim() for p in parts}) > 1:
            raise BadImage(
                f"the processor of {name} gives these pictures different inputs ({key}), so they "
                "cannot be asked together. Ask about them one at a time."
            )
        sizes_differ = len({tuple(p.shape[1:]) for p in parts}) > 1
        if sizes_differ and not any(word in k for k in encoded[0].tensors for word in _TELLS):
            raise BadImage(
                f"the processor of {name} scales these pictures to other sizes and does not say "
                "which, so they cannot be asked together. Ask about them one at a time."
            )
        if any(word in key for word in _INDICES):
            parts = _shifted(parts, [e.tensors["pixel_values"] for e in encoded])
        largest = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
        out[key] = torch.cat([_padded(p, largest) for p in parts])
    return out


def _shifted(parts: Sequence[Tensor], pixels: Sequence[Tensor]) -> list[Tensor]:
    """Indices of patches among those of all images; negative ones stand for none."""
    shifted, before = [], 0
    for part, patches in zip(parts, pixels, strict=True):
        shifted.append(torch.where(part >= 0, part + before, part))
        before += int(patches.shape[:2].numel())
    return shifted


def _padded(tensor: Tensor, largest: Sequence[int]) -> Tensor:
    """The tensor with zeros after the end of every dimension but the first."""
    if list(tensor.shape[1:]) == list(largest):
        return tensor
    out = tensor.new_zeros((tensor.shape[0], *largest))
    out[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def _types(
    output: Mapping[str, Tensor],
    is_image: Tensor,
    needs: Callable[[str], bool | None],
    place: tuple[int, int],
    name: str,
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """(keywords of `output` that are 1 at image tokens and 0 elsewhere; keywords with other values
    at `place`, and these).
    """
    types, patterns = [], {}
    (start, end), shape = place, output["input_ids"].shape
    for key in output:
        known = key in _TYPES
        if not known and (key in _OF_TEXT or output[key].shape != shape):
            continue
        needed, values = needs(key), output[key][0]
        same = torch.equal(values.bool(), is_image)
        if needed is False or (not same and not known):
            continue
        if needed is None and not bool(values.any()):
            continue  # the tokenizer numbers the sentences of a text
        if same:
            types.append(key)
        elif bool(values[:start].any()) or bool(values[end:].any()) or not bool(values.any()):
            raise BadBackbone(
                f"{name}: its {key} do not mark image tokens, so it reads prompts in a way "
                "that errata does not know. Use a model of another family."
            )
        else:
            patterns[key] = values[start:end]
    if "image_grid_thw" in output and "mm_token_type_ids" not in (*types, *patterns):
        types.append("mm_token_type_ids")
    return tuple(types), patterns


def types(
    images: Sequence[tuple[int, str, EncodedImage]], ids: Tensor, vision: Tensor
) -> dict[str, Tensor]:
    """Keywords of the forward that mark tokens of images, [B, T]; `images` as (row, key, image)."""
    out: dict[str, Tensor] = {}
    for key in images[0][2].types if images else ():
        out[key] = vision.to(torch.int if key == "mm_token_type_ids" else torch.long)
    for key, like in images[0][2].patterns.items() if images else ():
        out[key] = torch.zeros_like(ids, dtype=like.dtype)
        for row, start, image in places(images, ids):
            part = image.patterns.get(key, torch.zeros(len(image.ids), dtype=like.dtype))
            out[key][row, start : start + len(image.ids)] = part.to(ids.device)
    return out


def places(
    images: Sequence[tuple[int, str, EncodedImage]], ids: Tensor
) -> Iterator[tuple[int, int, EncodedImage]]:
    """(row, first column, image) of each image, where its ids stand in padded ids [B, T]."""
    after: dict[int, int] = {}
    for row, _, image in images:
        line, size = ids[row].tolist(), len(image.ids)
        starts = range(after.get(row, 0), len(line) - size + 1)
        start = next(c for c in starts if tuple(line[c : c + size]) == image.ids)
        after[row] = start + size
        yield row, start, image


def image_markers(tokenizer: Any, config: Any, placeholder: str) -> tuple[str, ...]:
    """Tokens that a model reads as an image or video, or as the start or end of one."""
    parts = ("image", "video", "vision_start", "vision_end", "boi", "eoi")
    ids = [getattr(config, f"{p}_token_{end}", None) for p in parts for end in ("id", "index")]
    tokens = {tokenizer.convert_ids_to_tokens(int(i)) for i in ids if isinstance(i, int)}
    return tuple(sorted(t for t in {*tokens, placeholder} if t))


def check_text(text: str, markers: Sequence[str], where: str) -> None:
    """Raises BadEdit for a text that holds an image marker or is not valid Unicode."""
    for marker in markers:
        if marker in text:
            raise BadEdit(
                f"{where} holds the text {marker!r}, which this model reads as an image marker. "
                "Write it in another way."
            )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadEdit(f"{where} holds half of a surrogate pair. Correct its Unicode.") from None


def chat_template(processor: Any) -> str | None:
    """The chat template of a processor or of its tokenizer; of several, the default one."""
    for owner in (processor, getattr(processor, "tokenizer", None)):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, Mapping):
            template = template.get("default")
        if isinstance(template, str) and template:
            return template
    return None


@contextmanager
def template_errors(name: str) -> Iterator[None]:
    """Whatever a model's own chat template raises becomes BadBackbone."""
    try:
        yield
    except Exception as e:  # a template is a program of a third party
        reason = one_line(e)
        raise BadBackbone(
            f"{name}: its chat template cannot be used ({reason}). Load the model with --style raw "
            "or easyedit."
        ) from e


def style_of(processor: Any, style: str | None, name: str) -> Style:
    """A given style, or the model's own: its chat template if it has one, else raw.

    Raises BadSpec for `chat` where there is no template.
    """
    has_template = chat_template(processor) is not None
    if style == "chat" and not has_template:
        raise BadSpec(f"{name} has no chat template. Use --style raw or easyedit.")
    return cast("Style", style or ("chat" if has_template else "raw"))


def in_easyedit(text: str) -> str:
    """The text of a question as EasyEdit writes it."""
    return f"Question: {text} Short answer:"


def in_chat(processor: Any, prompt: Prompt, name: str, *, parts: bool) -> str:
    """A chat up to where its answer begins, by the model's own template.

    parts: a message is a list of texts and images, not one text. Raises BadSpec, BadBackbone, and
    BadEdit for a chat that the template refuses or leaves out a part of.
    """
    style_of(processor, "chat", name)
    turns = (*prompt.history, Turn("user", prompt.segments))
    talk = [{"role": t.role, "content": _content(t) if parts else t.text} for t in turns]
    try:
        with template_errors(name):
            written = str(
                processor.apply_chat_template(
                    talk,
                    chat_template=chat_template(processor),
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )
    except BadBackbone as e:
        if not prompt.history:
            raise
        reason = one_line(e.__cause__ or e)
        raise BadEdit(
            f"the chat template of {name} refuses these turns ({reason}). Ask with other ones, or "
            "with the question alone."
        ) from e
    _check_written(prompt.history, written, name)
    return written


def _content(turn: Turn) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": s} if isinstance(s, str) else {"type": "image"}
        for s in turn.segments
    ]


def _check_written(history: Sequence[Turn], written: str, name: str) -> None:
    """Raises BadEdit if the template leaves out what a system or a user said.

    Of an assistant's turn some templates leave out the reasoning, which is their right.
    """
    for place, turn in enumerate(history):
        said = [s.strip() for s in turn.segments if isinstance(s, str)]
        if turn.role != "assistant" and not all(s in written for s in said):
            raise BadEdit(
                f"the chat template of {name} leaves out or changes what the {turn.role} says in "
                f"turn {place}. Ask without that turn."
            )


def check_turns(processor: Any, style: str, name: str) -> None:
    """Raises BadEdit unless prompts are written by the model's own chat template."""
    if style == "chat":
        return
    if chat_template(processor) is None:
        raise BadEdit(
            f"{name} has no chat template, so it is asked one question, without a system's or "
            "earlier turns. Ask the question alone."
        )
    raise BadEdit(
        f"{name} is asked in the style '{style}', which writes one question. For a chat load it in "
        "the style of its chat template: --style chat."
    )


def end_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Ids of the end-of-sequence tokens."""
    ends = [tokenizer.eos_token_id, getattr(model.config, "eos_token_id", None)]
    generation = getattr(model, "generation_config", None)
    ends.append(getattr(generation, "eos_token_id", None))
    return frozenset(
        int(e)
        for group in ends
        if group is not None
        for e in (group if isinstance(group, list) else [group])
    )


def line_breaks(tokenizer: Any) -> dict[int, str]:
    """The tokens that contain a line break: id -> the text in front of it, without white space.

    A byte-level tokenizer writes a line break as the letter that is Ċ in others.
    """
    marks = ("\n", "Ċ", "<0x0A>")
    breaks = {}
    for token, i in tokenizer.get_vocab().items():
        if any(mark in token for mark in marks):
            text = str(tokenizer.convert_tokens_to_string([token]))
            if "\n" in text:
                breaks[i] = text.partition("\n")[0].strip()
    return breaks
