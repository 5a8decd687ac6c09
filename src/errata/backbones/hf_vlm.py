"""Any vision-language model of transformers (`AutoModelForImageTextToText`): LLaVA, Qwen-VL, ...

One file for all of them: sites are found by structure (`_sites`), the forward is shared
(`_decoder`), and text and images are encoded by the family's own processor.
`micro-vlm`, a bundled model, is an ordinary LLaVA checkpoint in a folder of the package; of
`pocket-vlm` the package has tower and projector (`_vision.assembled`).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from errata.backbones import _folders, _sites, _tokens, _weights
from errata.backbones._forward import capped
from errata.backbones._text_blocks import cross
from errata.backbones._text_blocks.suppressed import suppressed_ids
from errata.backbones._vision import families, writing
from errata.backbones._vision.padding import read_both_ways
from errata.backbones._vision.prompts import PictureBackbone
from errata.core.errors import BadBackbone, BadImage
from errata.core.hooks.manager import HookManager
from errata.core.model.outline import ModelOutline
from errata.core.types import Image, Prompt

#: settings of processors without which they cannot count image tokens
_COUNTS = ("patch_size", "num_query_tokens", "num_image_tokens", "image_seq_length")


class HfVlm(PictureBackbone):
    """A vision-language model on the ordinary transformers classes."""

    bundled: ClassVar[Mapping[str, str]] = {
        "micro-vlm": "microworld",
        "pocket-vlm": "pocket",
    }
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
        self.images_beside = cross.reads_pictures(self.text)
        self.finish = capped(getattr(self.text_config, "final_logit_softcapping", None))
        self.suppressed = suppressed_ids(model, self.text, self.width)
        image_id = families.image_token(model.config)
        self.position_key, around = "", tuple[int, ...]()
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
        self._encoded, self._texts = OrderedDict(), OrderedDict()
        self._written, self._asked = OrderedDict(), OrderedDict()
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
            model = _weights.on_meta(families.auto_class(path, options), path, **options)
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
