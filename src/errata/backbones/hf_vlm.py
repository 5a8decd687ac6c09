"""Any vision-language model of transformers (`AutoModelForImageTextToText`): LLaVA, Qwen-VL, ...

One file for all of them: sites are found by structure (`_sites`), the forward is shared
(`_decoder`), and text and images are encoded by the family's own processor.
`micro-vlm`, the bundled model, is an ordinary LLaVA checkpoint in a folder of the package.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from errata.backbones import _folders, _sites, _tokens, _weights
from errata.backbones._forward import capped
from errata.backbones._identity import core
from errata.backbones._text import TextBackbone
from errata.backbones._text_blocks import cross
from errata.backbones._text_blocks.suppressed import suppressed_ids
from errata.backbones._vision import families, writing
from errata.backbones._vision.padding import read_both_ways
from errata.core.errors import BadBackbone, BadImage, UserError, one_line
from errata.core.hooks.manager import HookManager
from errata.core.model.batch import Batch
from errata.core.model.outline import ModelOutline
from errata.core.types import Image, Prompt
from errata.io.images import load_image

#: settings of processors without which they cannot count image tokens
_COUNTS = ("patch_size", "num_query_tokens", "num_image_tokens", "image_seq_length")
#: entries of each cache: images and prompts
_KEPT = 512

K, V = TypeVar("K"), TypeVar("V")


class HfVlm(TextBackbone):
    """A vision-language model on the ordinary transformers classes."""

    bundled: ClassVar[Mapping[str, str]] = {"micro-vlm": "microworld"}
    capabilities = frozenset({"text", "image", "generate", "resume"})
    _adds_special: bool = True

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        revision: str = "",
        style: _tokens.Style = "raw",
        source: Path | None = None,
        trusted: bool = True,
    ) -> None:
        """source: folder of the weight files; trusted: the model was loaded from there."""
        super().__init__()
        self.model = model
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.name = name or type(model).__name__
        self.revision = revision
        self.style = style
        self.layout = _sites.resolve(model)
        self.site_paths, self.missing_sites = self.layout.paths, self.layout.missing
        self.missing_because = self.layout.reasons
        self.text, self.blocks, self.head = self.layout.text, self.layout.blocks, self.layout.head
        self.tower, self.bridge_in_tower = self.layout.tower, self.layout.bridge_in_tower
        read_both_ways(self.tower)
        self.hooks = HookManager.of(model, lambda _: self.layout.sites)
        self.text_config = model.config.get_text_config()
        self.images_beside = cross.reads_pictures(self.text)
        self.finish = capped(getattr(self.text_config, "final_logit_softcapping", None))
        self.suppressed = suppressed_ids(model, self.text, self.width)
        image_id = families.image_token(model.config)
        self.position_key, around = "", ()
        if image_id is None:
            self.position_key, around = writing.position_mask(processor)
        if image_id is None and not self.position_key:
            raise BadBackbone(
                f"{self.name}: its config names no image token (image_token_id). "
                "Is it a vision model?"
            )
        self.image_id = -1 if image_id is None else int(image_id)
        self.image_token = "" if image_id is None else self._placeholder()
        self.placeholder_id = (
            int(self.tokenizer.convert_tokens_to_ids(self.image_token)) if self.image_token else -1
        )
        self.markup = self._markup()
        self.image_markers = (
            *_tokens.image_markers(self.tokenizer, model.config, self.image_token),
            *self.tokenizer.convert_ids_to_tokens(list(around)),
        )
        self.end_ids = _tokens.end_ids(self.tokenizer, model)
        self.line_breaks = _tokens.line_breaks(self.tokenizer)
        self.stop_ids = self.end_ids | self.line_breaks.keys()
        self._encoded: OrderedDict[str, _tokens.EncodedImage] = OrderedDict()
        self._texts: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._written: OrderedDict[str, writing.Written] = OrderedDict()
        self._asked: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self.identify(processor, source, trusted=trusted)

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )

        kind = config.get("model_type")
        return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or (
            kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "vision_config" in config
        )

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        style: str | None = None,
        trust_remote_code: bool = False,
    ) -> HfVlm:
        """A bundled name, a folder or a hub id. Raises BadBackbone with the library's reason."""
        from transformers import AutoProcessor

        make_processor: Any = AutoProcessor.from_pretrained
        path = _weights.bundled(name) if name in cls.bundled else name
        if name in cls.bundled and dtype == "auto":
            dtype = "float32"
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        kind = "vision-language model"
        _folders.check_weights(Path(path))
        with _folders.load_errors(name, kind, "its configuration or weights"):
            loaded: Any = families.auto_class(path, options).from_pretrained(
                path, dtype=dtype, device_map=device_map, output_loading_info=True, **options
            )
            model, info = loaded
            _folders.missing_weights(name, info["missing_keys"])
        with _folders.load_errors(name, kind, "its processor or tokenizer"):
            processor = make_processor(path, **options)
        model.requires_grad_(False)
        if device is not None:
            model = model.to(device)
        commit = getattr(model.config, "_commit_hash", None)
        source = _weights.folder(path, revision, commit)
        chosen = _tokens.style_of(processor, style, name)
        with _folders.load_errors(name, kind, "its parts do not fit together and"):
            backbone = cls(
                model, processor, name=name, revision=revision or "", style=chosen, source=source
            )
            backbone.check_prompts()
        return backbone

    @classmethod
    def outline(
        cls, name: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> ModelOutline:
        """Configuration and processor of a model whose weights are not loaded."""
        from transformers import AutoProcessor

        make_processor: Any = AutoProcessor.from_pretrained
        path = _weights.bundled(name) if name in cls.bundled else name
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        with _folders.load_errors(name, "vision-language model", "its configuration or processor"):
            model = _weights.on_meta(_auto_class(path, options), path, **options)
            processor = make_processor(path, **options)
            sites = _sites.resolve(model).sites
        return _weights.outline_of(name, path, revision, model, sites, processor)

    @classmethod
    def wrap(cls, model: Any, processor: Any, *, name: str = "", style: str | None = None) -> HfVlm:
        """Around a model in memory; see `errata.wrap`."""
        path = str(getattr(model.config, "_name_or_path", "") or "")
        name = name or _weights.short_name(path, cls.bundled) or type(model).__name__
        if not hasattr(processor, "image_processor"):
            raise BadBackbone(
                f"{name} takes images, but a {type(processor).__name__} does not. Give the model's "
                "processor: AutoProcessor.from_pretrained(...)."
            )
        source = _weights.folder(path, None, getattr(model.config, "_commit_hash", None))
        chosen = _tokens.style_of(processor, style, name)
        backbone = cls(model, processor, name=name, style=chosen, source=source, trusted=False)
        backbone.check_prompts()
        return backbone

    def check_prompts(self) -> None:
        """Raises BadBackbone if the processor or the chat template writes no usable prompts."""
        unset = [k for k in _COUNTS if k in vars(self.processor) and not vars(self.processor)[k]]
        if unset:
            raise BadBackbone(
                f"the processor of {self.name} has no {unset[0]}, so it cannot tell how many "
                "tokens an image has: the folder has no processor_config.json, or an old one. Copy "
                "it from the model's hub page, or set the value and save the processor "
                "(processor.save_pretrained)."
            )
        if self.style == "chat":
            text, image = "Which colour has it", Image("picture")
            written = self._for_processor(Prompt((image, text)))
            placed = self.image_token and not self._image_before_bos
            images = written.count(self.image_token) if placed else 1
            if text not in written or images != 1:
                raise BadBackbone(
                    f"the chat template of {self.name} writes no image, or changes the text of a "
                    "question. Load the model with --style raw or easyedit."
                )

        with contextlib.suppress(BadImage):  # of a size that this processor refuses
            self._image(Image.of(writing.grey()))

    @property
    def special(self) -> bool:
        """A chat template writes the special tokens itself."""
        return self.style != "chat"

    def forget(self) -> None:
        """Clears the caches of encoded images and tokenised texts."""
        super().forget()
        for kept in (self._encoded, self._texts, self._written, self._asked):
            kept.clear()

    # -- prompts to tensors -------------------------------------------------------------------

    def formatted(self, prompt: Prompt) -> str:
        """The text for the tokenizer: with one placeholder per image where the processor puts image
        tokens there and does nothing else, else as the processor writes it.
        """
        text = self._for_processor(prompt)
        if not prompt.images or self.in_place:
            return text
        keys = [self._image(i)[0] for i in prompt.images]  # raises for an image that is not usable
        written = _kept(self._texts, (text, *keys), lambda: self._write(text, prompt.images))
        return written

    def _for_processor(self, prompt: Prompt) -> str:
        """The text that the family's processor is given."""
        if self.style == "chat":
            content = [
                {"type": "image"} if isinstance(s, Image) else {"type": "text", "text": s}
                for s in prompt.segments
            ]
            return _tokens.in_chat(self.processor, content, self.name)
        parts = []
        for segment in prompt.segments:
            if isinstance(segment, Image):
                parts.append(self.markup)
            else:
                parts.append(_tokens.in_easyedit(segment) if self.style == "easyedit" else segment)
        return "".join(parts)

    def _write(self, text: str, images: Sequence[Image]) -> str:
        """What the processor gives its tokenizer. Raises BadBackbone."""
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

        Found on probe prompts, with the image before, between and behind words.
        """
        if self.position_key:
            return False
        if self._image_before_bos:
            return True
        grey = Image.of(writing.grey())
        probes: list[tuple[str | Image, ...]] = [(grey, "Which"), ("The", grey, "is")]
        try:
            _, image = self._image(grey, in_place=True)
            for segments in [*probes, (grey, grey, "Which")] if self.several else probes:
                prompt = Prompt(segments)
                own = self.processed(prompt)["input_ids"][0].tolist()
                text, images = self._for_processor(prompt), [image] * len(prompt.images)
                if own != list(self._spliced(text, images)):
                    return False
        except BadBackbone:
            return False
        except Exception:  # whatever a third party's processor raises; images raise it again
            return True
        return True

    @cached_property
    def several(self) -> bool:
        """Whether the processor takes a prompt with several images."""
        grey = Image.of(writing.grey())
        try:
            one, two = (
                int(self._is_image(self.processed(Prompt((*[grey] * n, "Which")))).sum())
                for n in (1, 2)
            )
        except Exception:  # whatever a third party's processor raises
            return False
        return two == 2 * one

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
        if len(images) > 1 and not self.several:
            raise BadImage(
                f"{self.name} takes one image in a prompt, and {len(images)} were given. Ask about "
                "them one at a time."
            )
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


def _kept(cache: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value of a cache, made if it has none; the cache keeps the last ones."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > _KEPT:
            cache.popitem(last=False)
    value = cache[key]
    cache.move_to_end(key)
    return value
