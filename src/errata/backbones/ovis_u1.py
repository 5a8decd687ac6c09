"""Ovis-U1: Qwen3 (`llm`) in front of a transformer of its own (`visual_generator`), by its authors.

The classes are in the hub repository, so they run only with --trust-remote-code. A prompt is drawn
behind a blank white picture and the sentence "Describe the image by detailing ..."; the condition
is that of all tokens, the last two hidden states side by side; guidance has the condition of
"Generate an image.". One seed is drawn at a time, as its authors' call takes one. Where it is read
is measured (`_drawing`). Tested on a stand-in with the published class and attribute names, not on
the published weights; the remote code was written for transformers 4.51.

Drawing settings: steps, guidance, size. Source: Wang et al. 2025; AIDC-AI/Ovis-U1 at dccf5eb
(Apache-2.0).

Shapes: T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from errata.backbones import _folders
from errata.backbones._drawing.installed import AuthorsModel
from errata.backbones._drawing.model import PipelineModel
from errata.core.errors import BadBackbone

WITHOUT = "<image>\nGenerate an image."
WITH = (
    "<image>\nDescribe the image by detailing the color, shape, size, texture, quantity, text, and "
    "spatial relationships of the objects:"
)
#: as its authors draw
STEPS, GUIDANCE, SIZE = 50, 5.0, 1024


class OvisU1(AuthorsModel):
    """A model with `llm`, `generate_condition`, `generate_img` and `visual_generator.backbone`."""

    kind = "Ovis-U1"
    settings = ("steps", "guidance", "size")

    def __init__(
        self,
        model: Any,
        *,
        name: str = "",
        revision: str = "",
        style: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, name, drawing)
        self.revision = revision
        self.steps = int(self.drawing.get("steps", STEPS))
        self.guidance = self.drawing.get("guidance", GUIDANCE)
        self.size = int(self.drawing.get("size", SIZE))
        self.encoder, self.generator = model.llm, model.visual_generator.backbone
        tokenizer = model.get_text_tokenizer()
        self.ovis = model
        whole = PipelineModel({"model": model}, model.llm, model.config)
        self.be_language_model(whole, model.llm, tokenizer, style)
        self.identify(tokenizer, None)

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        named = " ".join(
            [str(config.get("model_type")), *map(str, config.get("architectures") or ())]
        )
        return "ovis" in named.lower() and "visual_generator_config" in config

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
        gguf_file: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> OvisU1:
        """A folder or hub id. Raises BadBackbone with the library's reason."""
        from transformers import AutoModelForCausalLM

        if not trust_remote_code:
            raise BadBackbone(
                f"'{name}' runs code of its authors that comes with it. Load it with "
                "--trust-remote-code if you trust it."
            )
        with _folders.load_errors(name, cls.kind, "its code, configuration or weights"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                name, revision=revision, dtype=dtype, device_map=device_map, trust_remote_code=True
            )
        return cls.around(
            model, name=name, device=device, revision=revision or "", style=style, drawing=drawing
        )

    @classmethod
    def wrap(
        cls,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        style: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> OvisU1:
        """Around a model in memory, which has its own tokenizers."""
        return cls(model, name=name, style=style, drawing=drawing)

    def call(
        self, texts: Sequence[str], seeds: Sequence[int], *, steps: int, pixels: bool
    ) -> Sequence[Any]:
        (text,), (seed,) = texts, seeds
        model = self.ovis
        options = {
            "max_new_tokens": 1, "do_sample": False, "use_cache": True, "height": self.size,
            "width": self.size, "num_steps": steps, "seed": seed, "img_cfg": 0,
            "txt_cfg": self.guidance,
        }  # fmt: skip
        blank = Pillow.new("RGB", (self.size, self.size), (255, 255, 255))
        without, _ = self._condition(WITHOUT, blank, options)
        cond, seen = self._condition(WITH + text, blank, options)
        cond["vae_pixel_values"] = seen
        made = model.generate_img(cond=cond, no_both_cond=without, no_txt_cond=None, **options)
        return [np.asarray(p.convert("RGB")).astype(np.float64) / 255 for p in made]

    def _condition(self, text: str, blank: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """(condition, latents' pixels of the blank picture), by the model's own functions."""
        model = self.ovis
        words, tower = model.get_text_tokenizer(), model.get_visual_tokenizer()
        fitted, seen, ids = model.visual_generator.process_image_aspectratio(
            blank, (self.size, self.size)
        )
        ids[..., 0] = 1.0
        height, width = tower.smart_resize(
            fitted.height, fitted.width, max_pixels=tower.image_processor.min_pixels
        )
        _, tokens, pixels, grid = model.preprocess_inputs(
            text, [fitted.resize((width, height))], generation_preface=None, return_labels=False,
            propagate_exception=False, multimodal_type="single_image",
            fix_sample_overall_length_navit=False,
        )  # fmt: skip
        device = self.device_of("embed")
        tokens = tokens[None].to(device)
        cond = model.generate_condition(
            tokens,
            pixel_values=None if pixels is None else pixels.to(device, self.dtype),
            attention_mask=torch.ne(tokens, words.pad_token_id),
            grid_thws=None if grid is None else grid.to(device),
            **options,
        )
        return cond, seen[None].to(device)
