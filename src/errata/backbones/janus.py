"""Janus: one trunk that says and draws, split at the heads.

A picture is written token by token: the text model reads the prompt and the begin-of-image token,
its last hidden state goes through `generation_head` (not the language model head), and the tokens
become pixels in a VQ decoder. `model.generate(generation_mode="image")` does all of it; guidance
runs the same text model on a second row with an empty prompt. Every text block reaches a picture.

Drawing settings: guidance, temperature, top_k, top_p, do_sample.
Source: Chen et al. 2025 (Janus-Pro); the class of transformers.

Shapes: T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image as Pillow
from torch import Tensor

from errata.backbones._drawing.by_tokens import Stream, TokenGenerator
from errata.backbones._identity import core
from errata.core.errors import BadBackbone
from errata.core.hooks.context import Site
from errata.core.hooks.manager import HookManager
from errata.core.model.generation import Stage
from errata.core.types import Prompt

GUIDANCE = 5.0  # where neither the model nor the user names one; the library's own


class Janus(TokenGenerator):
    """`JanusForConditionalGeneration`: answers about pictures, and draws them by tokens."""

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        super().__init__(model, processor, **options)
        head = core(model).get_submodule("model.generation_head")
        self.layout.sites.append(Site("draw.logits", head, head, "draw"))
        self.layout.paths["draw.logits"] = "model.generation_head"
        self.hooks = HookManager.of(model, lambda _: self.layout.sites)

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "janus"

    def block_of(self, site: str) -> int:
        return self.depth - 1 if site.startswith("draw.") else super().block_of(site)

    def path(self) -> tuple[Stage, ...]:
        """Hidden states of the prompt, and the logits of each picture token."""
        return Stage("tap", "final_norm"), Stage("logits", "draw.logits")

    def drawn_inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        made = self.processor(
            text=self.formatted(prompt), generation_mode="image", return_tensors="pt"
        )
        device = self.device_of("embed")
        return {k: made[k].to(device) for k in ("input_ids", "attention_mask")}

    def picture(self, prompt: Prompt, row: int) -> Any:
        root: Any = core(self.model)
        begin = (getattr(root.generation_config, "generation_kwargs", None) or {}).get(
            "boi_token_id"
        )
        if begin is None:
            raise BadBackbone(
                f"the generation_config.json of {self.name} names no boi_token_id in its "
                "generation_kwargs, the token that begins a picture. Copy the file from the "
                "model's hub page."
            )
        guidance = root.generation_config.guidance_scale or GUIDANCE
        inputs = self.drawn_inputs(prompt)
        last = int(root.get_submodule("model.vision_model").config.num_image_tokens)
        both = Stream(inputs["attention_mask"].repeat(2, 1), (True, False))  # without the prompt
        with self.live(prompt, row, [both], last):
            tokens = type(root).generate(
                root, **inputs, generation_mode="image", num_return_sequences=1,
                **{"guidance_scale": guidance, **self.sampling},
            )  # fmt: skip
            pixels = root.decode_image_tokens(tokens)
        images = self.processor.image_processor
        mean, std = (np.array(v) for v in (images.image_mean, images.image_std))
        picture = (pixels[0].float().cpu().numpy() * std + mean).clip(0, 1) * 255
        return Pillow.fromarray(picture.round().astype(np.uint8))
