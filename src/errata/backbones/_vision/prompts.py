"""Prompts with images as tensors, by the family's own processor: `PictureBackbone`."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from errata.backbones import _tokens
from errata.backbones._identity import core
from errata.backbones._text import TextBackbone
from errata.backbones._vision import writing
from errata.core.errors import BadBackbone, BadImage, UserError, one_line
from errata.core.model.batch import Batch
from errata.core.types import Image, Prompt
from errata.io.images import load_image

#: entries of each cache: images and prompts
_KEPT = 512

K = TypeVar("K")
V = TypeVar("V")


class PictureBackbone(TextBackbone):
    """A text model behind a `processor` of images and text.

    image_token: stands for an image in a text for the processor, "" if that needs none; its id is
    placeholder_id. markup: the text of an image. style: how a prompt is written. position_key: the
    processor's output that says where image tokens are, if their id does not.
    """

    processor: Any
    style: _tokens.Style
    image_token: str
    placeholder_id: int
    markup: str
    position_key: str
    _encoded: OrderedDict[str, _tokens.EncodedImage]
    _texts: OrderedDict[tuple[str, ...], str]
    _written: OrderedDict[str, writing.Written]
    _asked: OrderedDict[str, dict[str, Tensor]]
    _adds_special: bool = True

    @property
    def special(self) -> bool:
        """In chat style as in the processor's own `apply_chat_template`: BOS is added to a prompt
        whose template does not write it.
        """
        return self.style != "chat" or not self._template_writes_bos

    @cached_property
    def _template_writes_bos(self) -> bool:
        bos = str(getattr(self.tokenizer, "bos_token", None) or "")
        return bool(bos) and self.formatted(Prompt(("Which",))).startswith(bos)

    def forget(self) -> None:
        """Clears the caches of encoded images and tokenised texts."""
        super().forget()
        for kept in (self._encoded, self._texts, self._written, self._asked):
            kept.clear()

    def check_turns(self) -> None:
        _tokens.check_turns(self.processor, self.style, self.name)

    def formatted(self, prompt: Prompt) -> str:
        """The text for the tokenizer: with one placeholder per image where the processor puts image
        tokens there and does nothing else, else as the processor writes it.
        """
        whole = not prompt.images or self.in_place
        text = self._for_processor(prompt)
        if whole:
            return text
        keys = [self._image(i)[0] for i in prompt.images]  # raises for an image that is not usable
        written = _kept(self._texts, (text, *keys), lambda: self._write(text, prompt.images))
        return written

    def _for_processor(self, prompt: Prompt) -> str:
        """The text that the family's processor is given."""
        if self.style == "chat":
            return _tokens.in_chat(self.processor, prompt, self.name, parts=True)
        self.check_no_turns(prompt)
        parts = []
        for segment in prompt.segments:
            if isinstance(segment, Image):
                parts.append(self.markup)
            else:
                parts.append(_tokens.in_easyedit(segment) if self.style == "easyedit" else segment)
        return "".join(parts)

    def _check_number(self, images: int) -> None:
        if images > 1 and not self.several:
            raise BadImage(
                f"{self.name} takes one image in a prompt, and {images} were given. Ask about them "
                "one at a time."
            )

    def _write(self, text: str, images: Sequence[Image]) -> str:
        """What the processor gives its tokenizer. Raises BadBackbone, BadImage."""
        self._check_number(len(images))
        try:
            pictures = [load_image(i) for i in images]
            written = writing.write(self.processor, text, pictures, **self._options())
        except UserError:
            raise
        except Exception as e:  # whatever a third party's processor raises
            raise BadBackbone(
                f"{self.name}: its processor cannot write the prompt {text[:60]!r} with "
                f"{len(images)} image(s) ({one_line(e)}). Ask with one image, or in other words."
            ) from e
        if written is None:
            raise BadBackbone(
                f"{self.name}: its processor writes a prompt with an image in several pieces, "
                "which errata cannot follow; see docs/add-a-backbone.md."
            )
        self._adds_special = written.special
        return _kept(self._written, written.text, lambda: written).text

    def special_in(self, pictures: bool) -> bool:
        return self._adds_special if pictures and not self.in_place else self.special

    @cached_property
    def in_place(self) -> bool:
        """Whether the processor writes image tokens where placeholders stand, and nothing else.

        Another one also writes what stands between an image and the text.
        """
        found = self._is_in_place()
        if not found:
            self.markup = self.markup.removesuffix("\n")
            self._encoded.clear()
        return found

    def _is_in_place(self) -> bool:
        """Found on probe prompts, with the image before, between and behind words."""
        if self.position_key or self._image_before_bos:
            return not self.position_key
        grey = Image.of(writing.grey())
        probes: list[tuple[str | Image, ...]] = [(grey, "Which"), ("The", grey, "is")]
        encoded = _tried(lambda: self._image(grey, in_place=True)[1])
        if encoded is None:
            return False
        for segments in [*probes, (grey, grey, "Which")] if self.several else probes:
            prompt = Prompt(segments)
            own = _tried(partial(self.processed, prompt))
            if own is None:  # it takes no such prompt
                continue
            text, images = self._for_processor(prompt), [encoded] * len(prompt.images)
            ours = _tried(partial(self._spliced, text, images))
            if ours is None or own["input_ids"][0].tolist() != list(ours):
                return False
        return True

    @cached_property
    def several(self) -> bool:
        """Whether the processor takes a prompt with several images."""
        grey = Image.of(writing.grey())
        asked = [Prompt((*[grey] * n, "Which")) for n in (1, 2)]
        one, two = (_tried(partial(self.processed, p)) for p in asked)
        if one is None or two is None:
            return False
        return int(self._is_image(two).sum()) == 2 * int(self._is_image(one).sum())

    @cached_property
    def target_types(self) -> tuple[str, ...]:  # type: ignore[override]
        """Read off what the processor marks in an answer that it is given."""
        text = self._for_processor(Prompt((Image("picture"), "Which")))
        return tuple(
            key
            for key in ("token_type_ids",)
            if self._needs(key) and writing.marks_targets(self.processor, key, text)
        )

    def _is_image(self, output: Mapping[str, Tensor]) -> Tensor:
        """[T] which tokens of a processor's output are image tokens."""
        if self.position_key:
            return output[self.position_key][0].bool()
        return output["input_ids"][0] == self.image_id

    def _placeholder(self) -> str:
        """The token that the processor replaces by image tokens; mostly the image token itself."""
        image_token = str(self.tokenizer.convert_ids_to_tokens(self.image_id))
        token = str(getattr(self.processor, "image_token", None) or image_token)
        unknown = (None, getattr(self.tokenizer, "unk_token_id", None))
        return image_token if self.tokenizer.convert_tokens_to_ids(token) in unknown else token

    def _markup(self) -> str:
        """The text of an image: one placeholder, wrapped as the family's config says."""
        config = self.model.config
        ends = [getattr(config, f"vision_{e}_token_id", None) for e in ("start", "end")]
        if None not in ends:
            start, end = self.tokenizer.convert_ids_to_tokens(ends)
            return f"{start}{self.image_token}{end}"
        if self._image_before_bos or self.placeholder_id != self.image_id or not self.image_token:
            return self.image_token
        return f"{self.image_token}\n"

    @property
    def _image_before_bos(self) -> bool:
        """BLIP-2's processor puts its query tokens in front of the text's own BOS."""
        return hasattr(self.processor, "num_query_tokens")

    def processed(self, prompt: Prompt) -> dict[str, Tensor]:
        """The output of the family's own processor: keywords of the model's forward."""
        text = self._for_processor(prompt)
        if self._image_before_bos:
            text = text.replace(self.image_token, "")
        images = [load_image(i) for i in prompt.images]
        if images:
            options = {"images": images, **self._options()}
            output = self.processor(text=[text], return_tensors="pt", **options)
        else:
            output = self.tokenizer([text], return_tensors="pt", add_special_tokens=self.special)
        kept = {k: v for k, v in output.items() if images or k in ("input_ids", "attention_mask")}
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in kept.items()}

    def _options(self) -> dict[str, Any]:
        """Options of the processor: it adds special tokens, or none, whatever its default is."""
        added = getattr(self.processor, "text_kwargs", {}).get("add_special_tokens", True)
        return {} if added == self.special else {"add_special_tokens": self.special}

    def _image(
        self, image: Image, in_place: bool | None = None
    ) -> tuple[str, _tokens.EncodedImage]:
        """(the image's key, its encoding by the processor)."""
        key = _tokens.image_key(image)
        return key, _kept(self._encoded, key, lambda: self._encode_image(image, in_place))

    def _encode_image(self, image: Image, in_place: bool | None) -> _tokens.EncodedImage:
        spliced = (self.in_place if in_place is None else in_place) and not self._image_before_bos
        text = "" if self._image_before_bos else self.markup
        return _tokens.encode_image(
            image,
            lambda picture: self.processor(
                text=[text], images=[picture], return_tensors="pt", **self._options()
            ),
            name=self.name,
            markup=self.markup,
            markup_ids=self._ids(text, self.special) if spliced else (),
            placeholder=self.placeholder_id,
            is_image=self._is_image,
            needs=lambda k: False if k in self.target_types else self._needs(k),
        )

    def _needs(self, keyword: str) -> bool | None:
        """Whether the model reads a keyword of the processor; None: only a part of it does.

        Read from the classes of the model and its parts: the forward of a wrapper (PEFT, compiled,
        offloaded) names no keywords.
        """
        root = core(self.model)
        own = inspect.signature(type(root).forward).parameters
        if keyword in own:
            return True
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            return False
        parts = {type(m) for m in root.modules()}
        inside = any(keyword in inspect.signature(part.forward).parameters for part in parts)
        return None if inside else False

    def _prompt_ids(self, text: str, images: Sequence[_tokens.EncodedImage]) -> tuple[int, ...]:
        self._check_number(len(images))
        if images and not self.in_place:
            return self._written[text].ids
        return self._spliced(text, images)

    def _spliced(self, text: str, images: Sequence[_tokens.EncodedImage]) -> tuple[int, ...]:
        """The ids of a text, with those of the images in place of the placeholders."""
        if self._image_before_bos and images:
            front = tuple(i for e in images for i in e.ids)
            return front + self._ids(text.replace(self.image_token, ""), self.special)
        ids: list[int] = []
        left = list(images)
        for token in self._ids(text, self.special):
            ids.extend(left.pop(0).ids if token == self.placeholder_id else (token,))
        if left:
            raise BadBackbone(
                f"{self.name}: its chat template leaves images of the prompt out. Load the model "
                "with --style raw or easyedit."
            )
        return tuple(ids)

    def _column(self, text: str, end: int, images: Sequence[_tokens.EncodedImage]) -> int:
        if images and not self.in_place:
            return self._token(text, end, True)
        if self._image_before_bos and images:
            before = text[:end].count(self.image_token) * len(self.image_token)
            token = self._token(text.replace(self.image_token, ""), end - before)
            return token + sum(len(e.ids) for e in images)
        token = self._token(text, end)
        count = self._ids(text, self.special)[:token].count(self.placeholder_id)
        return token + sum(len(e.ids) for e in images[:count]) - count

    def _image_columns(
        self, ids: Tensor, images: Sequence[tuple[int, str, _tokens.EncodedImage]]
    ) -> Tensor:
        if self.image_id >= 0:
            return super()._image_columns(ids, images)
        vision = torch.zeros_like(ids, dtype=torch.bool)
        for row, start, image in _tokens.places(images, ids):
            vision[row, start : start + len(image.ids)] = True
        return vision

    def _batch(self, rewritten: tuple[Prompt, ...], *parts: Any) -> Batch:
        """Also gives the prompts to another part of the model that reads them."""
        batch, images = super()._batch(rewritten, *parts), parts[-1]
        keys = images[0][2].asked if images else ()
        if not keys:
            return batch
        self.image_reads_prompt = True
        asked = [self._ask_part(rewritten[row], keys) for row, _, _ in images]
        for key in keys:
            lines = [a[key] for a in asked]
            joined = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)
            batch.inputs[key] = joined.to(batch.ids.device)  # type: ignore[index]
        return batch

    def _ask_part(self, prompt: Prompt, keys: Sequence[str]) -> dict[str, Tensor]:
        """These keywords for one prompt, without the dimension of rows."""
        text = self._for_processor(prompt).replace(self.image_token, "")

        def process() -> dict[str, Tensor]:
            options = {"images": [writing.grey()], **self._options()}
            output = self.processor(text=[text], return_tensors="pt", **options)
            return {k: output[k][0] for k in keys}

        return _kept(self._asked, text, process)


def _tried(make: Callable[[], V]) -> V | None:
    """What `make` gives, None if it fails: a third party's processor raises whatever it likes."""
    try:
        return make()
    except Exception:
        return None


def _kept(cache: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value of a cache, made if it has none; the cache keeps the last ones."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > _KEPT:
            cache.popitem(last=False)
    value = cache[key]
    cache.move_to_end(key)
    return value
