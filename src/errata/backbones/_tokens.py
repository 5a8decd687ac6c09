"""Prompts as token ids: what stands for an image, what ends an answer, what a text may not hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from errata.core.errors import BadBackbone, BadEdit, BadImage
from errata.core.types import Image
from errata.io.images import load_image, split_uri

#: what a processor makes of the text; everything else that it returns belongs to the image
_OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image as the model takes it.

    ids: what replaces the image's placeholder in a prompt; `count` of them are image tokens.
    tensors: keywords of the model, one image's worth. types: keywords that mark image tokens.
    """

    ids: tuple[int, ...]
    count: int
    tensors: Mapping[str, Tensor]
    types: tuple[str, ...]


def image_key(image: Image) -> str:
    """Equal for an image that still is what it was: a file that was written again is another."""
    key = f"{image.uri}|{image.sha256 or ''}"
    if split_uri(image.uri)[0] is None:
        try:
            info = os.stat(image.uri)
        except (OSError, ValueError):
            return key  # opening it says what is wrong
        key += f"|{info.st_mtime_ns}|{info.st_size}|{info.st_ino}"
    return key


def see(
    image: Image,
    process: Callable[[Any], Mapping[str, Tensor]],
    *,
    name: str,
    markup: str,
    plain: Sequence[int],
    placeholder: int,
    image_id: int,
    takes: Callable[[str], bool],
) -> EncodedImage:
    """What `process`, the family's own processor given `markup` and a picture, makes of `image`.

    `plain` are the ids of the markup by itself, `takes` says whether the model has a keyword.
    Raises BadImage, or BadBackbone when no picture at all gives what errata can use.
    """
    made = _processed(image, process, name, markup)
    ids = made["input_ids"][0].tolist()
    marked = made["input_ids"][0] == image_id
    if not plain:  # the image's tokens stand in front of the text
        ids = ids[: ids.index(image_id) + int(marked.sum())] if image_id in ids else []
    elif placeholder in plain:
        before = list(plain).index(placeholder)
        after = len(plain) - before - 1
        end = len(ids) - after
        same = ids[:before] == list(plain[:before]) and ids[end:] == list(plain[before + 1 :])
        ids = ids[before:end] if same else []
    else:
        ids = []
    count = sum(i == image_id for i in ids)
    foreign = [k for k in made if k.endswith("_input_ids")]
    if foreign:
        raise BadBackbone(
            f"{name}: its processor also gives the prompt to another part of the model "
            f"({foreign[0]}), which errata does not do. Use a model of another family."
        )
    if not count:
        raise BadBackbone(
            f"{name}: its processor does not put image tokens where {markup!r} stands. errata does "
            "not know how this family marks images; see docs/add-a-backbone.md."
        )
    types = _types(made, marked, takes, name)
    return EncodedImage(
        tuple(ids), count, {k: v for k, v in made.items() if k not in _OF_TEXT}, types
    )


def _processed(
    image: Image, process: Callable[[Any], Mapping[str, Tensor]], name: str, markup: str
) -> Mapping[str, Tensor]:
    picture = load_image(image)
    try:
        return process(picture)
    except Exception as e:  # whatever a third party's processor raises, on this picture or on any
        reason = " ".join(str(e).split())[:160].rstrip(".") or type(e).__name__
        try:
            process(Pillow.fromarray(np.full((64, 64, 3), 127, dtype=np.uint8)))
        except Exception:
            raise BadBackbone(
                f"{name}: its processor takes no image marked {markup!r} ({reason}). errata does "
                "not know how this family marks images; see docs/add-a-backbone.md."
            ) from e
        raise BadImage(
            f"cannot use image {image.uri[:200]!r}: the processor of {name} refuses it ({reason}). "
            "Give a picture of another size or shape."
        ) from e


def _types(
    made: Mapping[str, Tensor], marked: Tensor, takes: Callable[[str], bool], name: str
) -> tuple[str, ...]:
    """The keywords of `made` that are 1 at image tokens and 0 elsewhere."""
    found = []
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in made and takes(key):
            if not torch.equal(made[key][0].bool(), marked):
                raise BadBackbone(
                    f"{name}: its {key} do not mark image tokens, so it reads prompts in a way "
                    "that errata does not know. Use a model of another family."
                )
            found.append(key)
    if "image_grid_thw" in made and "mm_token_type_ids" not in found:
        found.append("mm_token_type_ids")
    return tuple(found)


def marks(tokenizer: Any, config: Any, placeholder: str) -> tuple[str, ...]:
    """Tokens that a model reads as images or videos, or as where one begins or ends."""
    parts = ("image", "video", "vision_start", "vision_end", "boi", "eoi")
    ids = [getattr(config, f"{p}_token_{end}", None) for p in parts for end in ("id", "index")]
    found = {tokenizer.convert_ids_to_tokens(int(i)) for i in ids if isinstance(i, int)}
    return tuple(sorted(t for t in {*found, placeholder} if t))


def check_text(text: str, marks: Sequence[str], where: str) -> None:
    """Raises BadEdit for a text that would be read as an image, or that is no valid Unicode."""
    for mark in marks:
        if mark in text:
            raise BadEdit(
                f"{where} holds the text {mark!r}, which this model reads as a mark for images. "
                "Write it in another way."
            )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadEdit(f"{where} holds half of a surrogate pair. Mend its Unicode.") from None


def ends(tokenizer: Any, model: Any) -> frozenset[int]:
    """Ids of the end tokens."""
    ends = [tokenizer.eos_token_id, getattr(model.config, "eos_token_id", None)]
    generation = getattr(model, "generation_config", None)
    ends.append(getattr(generation, "eos_token_id", None))
    return frozenset(
        int(e)
        for group in ends
        if group is not None
        for e in (group if isinstance(group, list) else [group])
    )


def breaks(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens with a line break in them."""
    marks = ("\n", "Ċ", "<0x0A>")
    vocab = tokenizer.get_vocab().items()
    return frozenset(i for token, i in vocab if any(m in token for m in marks))
