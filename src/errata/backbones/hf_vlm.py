"""Any vision-language model of transformers (`AutoModelForImageTextToText`): LLaVA, Qwen-VL, ...

One file for all of them: sites are found by structure (`_sites`), the forward is shared
(`_decoder`), and text and images are encoded by the family's own processor.
`micro-vlm`, the bundled model, is an ordinary LLaVA checkpoint in a folder of the package.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from errata.backbones import _folders, _sites, _tokens, _weights
from errata.backbones._forward import capped
from errata.backbones._identity import core
from errata.backbones._text import TextBackbone
from errata.backbones._text_blocks import cross
from errata.backbones._text_blocks.suppressed import suppressed_ids
from errata.backbones._vision.frame import Frame, frame_of
from errata.backbones._vision.padding import read_both_ways
from errata.core.errors import BadBackbone, BadImage
from errata.core.hooks.manager import HookManager
from errata.core.model.outline import ModelOutline
from errata.core.types import Image, Prompt
from errata.io.images import load_image

#: settings of processors without which they cannot count image tokens
_COUNTS = ("patch_size", "num_query_tokens", "num_image_tokens", "image_seq_length")


class HfVlm(TextBackbone):
    """A vision-language model on the ordinary transformers classes."""

    bundled: ClassVar[Mapping[str, str]] = {"micro-vlm": "microworld"}
    capabilities = frozenset({"text", "image", "generate", "resume"})

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
        self.finish = capped(getattr(self.text_config, "final_logit_softcapping", None))
        self.suppressed = suppressed_ids(model, self.text, self.width)
        image_id = _image_token(model.config)
        if image_id is None:
            raise BadBackbone(
                f"{self.name}: its config names no image token (image_token_id). "
                "Is it a vision model?"
            )
        self.image_id = int(image_id)
        self.image_token = self._placeholder()
        self.placeholder_id = int(self.tokenizer.convert_tokens_to_ids(self.image_token))
        # Llama 3.2's processor puts its BOS behind the first pictures of a text that has none
        bos = getattr(processor, "bos_token", None) if cross.reads_pictures(self.text) else None
        self.opening = str(bos or "")
        self.markup = self._markup()
        self.image_markers = _tokens.image_markers(self.tokenizer, model.config, self.image_token)
        self.end_ids = _tokens.end_ids(self.tokenizer, model)
        self.line_breaks = _tokens.line_breaks(self.tokenizer)
        self.stop_ids = self.end_ids | self.line_breaks.keys()
        self._encoded: OrderedDict[str, _tokens.EncodedImage] = OrderedDict()
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
            loaded: Any = _auto_class(path, options).from_pretrained(
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
            written = self.formatted(Prompt((image, text)))
            images = 1 if self._image_before_bos else written.count(self.image_token)
            if text not in written or images != 1:
                raise BadBackbone(
                    f"the chat template of {self.name} writes no image, or changes the text of a "
                    "question. Load the model with --style raw or easyedit."
                )

        with contextlib.suppress(BadImage):  # of a size that this processor refuses
            self._image(Image.of(np.full((64, 64, 3), 127, dtype=np.uint8)))

    @property
    def special(self) -> bool:
        """A chat template writes the special tokens itself."""
        return self.style != "chat"

    def forget(self) -> None:
        """Clears the caches of encoded images and tokenised texts."""
        super().forget()
        self._encoded.clear()

    # -- prompts to tensors -------------------------------------------------------------------

    def formatted(self, prompt: Prompt) -> str:
        """The text for the tokenizer, with one placeholder per image."""
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
        first = next((i for i, s in enumerate(prompt.segments) if not isinstance(s, Image)), None)
        if prompt.images:
            parts.insert(len(parts) if first is None else first, self.opening)
        return "".join(parts)

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
        if self._image_before_bos or self.placeholder_id != self.image_id or self.opening:
            return self.image_token
        return f"{self.image_token}\n"

    @property
    def _image_before_bos(self) -> bool:
        """BLIP-2's processor puts its query tokens in front of the text's own BOS."""
        return hasattr(self.processor, "num_query_tokens")

    def processed(self, prompt: Prompt) -> dict[str, Tensor]:
        """The output of the family's own processor: keywords of the model's forward."""
        text = self.formatted(prompt)
        if self._image_before_bos:
            text = text.replace(self.image_token, "")
        images = [load_image(i) for i in prompt.images]
        if images:
            options = {"images": images, **self._text_options(self.special)}
            output = self.processor(text=[text], return_tensors="pt", **options)
        elif self.frame:
            options = self._text_options(self.special)
            output = self.processor(text=[text], return_tensors="pt", **options)
        else:
            output = self.tokenizer([text], return_tensors="pt", add_special_tokens=self.special)
        kept = {k: v for k, v in output.items() if images or k in ("input_ids", "attention_mask")}
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in kept.items()}

    @cached_property
    def frame(self) -> Frame:
        """Tokens that the processor puts around every prompt, besides those of its tokenizer."""
        if self.opening:
            return Frame()
        options = self._text_options(self.special)
        return frame_of(
            lambda text: self.processor(text=[text], return_tensors="pt", **options),
            lambda text: self._ids(text, self.special),
            set(self.tokenizer.all_special_ids),
        )

    def _front(self, text: str) -> tuple[int, ...]:
        """The ids in front of a formatted prompt; none if a template has written them."""
        bos = self.tokenizer.bos_token
        written = not self.special and bool(bos) and text.startswith(bos)
        return () if written else self.frame.front

    def _text_options(self, special: bool) -> dict[str, Any]:
        """Options of the processor with which it adds special tokens, or none."""
        added = getattr(self.processor, "text_kwargs", {}).get("add_special_tokens", True)
        return {} if added == special else {"add_special_tokens": special}

    def _image(self, image: Image) -> tuple[str, _tokens.EncodedImage]:
        """(the image's key, its encoding by the processor)."""
        key = _tokens.image_key(image)
        if key not in self._encoded:
            before = self._image_before_bos
            text = "" if before else self.opening + self.markup
            options = self._text_options(self.special)
            self._encoded[key] = _tokens.encode_image(
                image,
                lambda picture: self.frame.without(
                    self.processor(text=[text], images=[picture], return_tensors="pt", **options)
                ),
                name=self.name,
                markup=self.markup,
                markup_ids=() if before else self._ids(text, self.special),
                placeholder=self.placeholder_id,
                image_id=self.image_id,
                needs=self._needs,
            )
            if len(self._encoded) > 512:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return key, self._encoded[key]

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
        return (*self._front(text), *ids, *self.frame.back)

    def _column(self, text: str, end: int, images: Sequence[_tokens.EncodedImage]) -> int:
        if self._image_before_bos and images:
            before = text[:end].count(self.image_token) * len(self.image_token)
            token = self._token(text.replace(self.image_token, ""), end - before)
            return token + sum(len(e.ids) for e in images)
        token = self._token(text, end)
        count = self._ids(text, self.special)[:token].count(self.placeholder_id)
        token += len(self._front(text))
        return token + sum(len(e.ids) for e in images[:count]) - count


def _image_token(config: Any) -> int | None:
    """The id of image tokens: of the model's config, or of its vision tower's."""
    for owner in (config, getattr(config, "vision_config", None)):
        for name in ("image_token_id", "image_token_index"):
            if getattr(owner, name, None):
                return int(getattr(owner, name))
    return None


def _auto_class(path: str, options: Mapping[str, Any]) -> Any:
    """The class of transformers for a model with images; few are registered as text models."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TEXT
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WITH_IMAGES,
    )

    kind = transformers.AutoConfig.from_pretrained(path, **options).model_type
    if kind in TEXT and kind not in WITH_IMAGES:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText
