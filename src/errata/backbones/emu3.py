"""Emu3: one text model and one head; its pictures are tokens of its vocabulary.

The prompt is followed by the size of the picture and the token that begins it; from then on
`generate` may only write picture tokens, a line break behind each row, and the end. The VQ model
turns them into pixels. So what is said and what is drawn share the whole text model and its head.
Guidance runs the text model on a second prompt, the negative one, in calls of its own. Every text
block reaches a picture.

Drawing settings: guidance, negative, size, temperature, top_k, top_p, do_sample.
Source: Wang et al. 2024; the class of transformers, and the way to draw of its documentation.

Shapes: T tokens of a prompt; a picture has H rows of W tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image as Pillow
from torch import Tensor

from errata.backbones._drawing.by_tokens import Stream, TokenGenerator
from errata.backbones._identity import core
from errata.core.formats.validation import whole_number
from errata.core.model.generation import Stage
from errata.core.types import Prompt

#: as its authors draw
GUIDANCE, SIZE = 3.0, 720
_BREAK = "<|extra_200|>"


class Emu3(TokenGenerator):
    """`Emu3ForConditionalGeneration`: answers about pictures, and draws them by tokens."""

    settings = (*TokenGenerator.settings, "negative", "size")

    @classmethod
    def check_settings(cls, drawing: Mapping[str, Any], name: str) -> None:
        super().check_settings(drawing, name)
        whole_number("size", drawing.get("size", SIZE), least=8)

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "emu3"

    def path(self) -> tuple[Stage, ...]:
        """Hidden states of the prompt, and the logits of each picture token."""
        return Stage("tap", "final_norm"), Stage("logits", "head")

    def drawn_inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        return self._inputs(self.formatted(prompt))[0]

    def _inputs(self, text: str) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """(ids and mask [1, T] of a text with the beginning of a picture, (H, W))."""
        size = int(self.drawing.get("size", SIZE))
        made = self.processor(
            text=[text], return_for_image_generation=True, ratio="1:1", image_area=size * size,
            return_tensors="pt",
        )  # fmt: skip
        height, width = (int(n) for n in made["image_sizes"][0])
        device = self.device_of("embed")
        ids = {k: made[k].to(device) for k in ("input_ids", "attention_mask")}
        return ids, (height, width)

    def picture(self, prompt: Prompt, row: int) -> Any:
        root: Any = core(self.model)
        inputs, (height, width) = self._inputs(self.formatted(prompt))
        length, tokens = inputs["input_ids"].shape[1], height * (width + 1) + 3
        options = {"guidance_scale": GUIDANCE, **self.sampling}
        streams = [Stream(inputs["attention_mask"], (True,))]
        if options["guidance_scale"] == 1:
            del options["guidance_scale"]
        else:
            without, _ = self._inputs(str(self.drawing.get("negative", "")))
            options["negative_prompt_ids"] = without["input_ids"]
            options["negative_prompt_attention_mask"] = without["attention_mask"]
            streams.append(Stream(without["attention_mask"], (False,)))
        with self.live(prompt, row, streams, tokens):
            written = root.generate(
                **inputs, max_new_tokens=tokens,
                prefix_allowed_tokens_fn=self._allowed(length, height, width), **options,
            )  # fmt: skip
        pixels = root.decode_image_tokens(
            image_tokens=written[:, length:], height=height, width=width
        )
        images = self.processor.image_processor
        mean, std = (np.array(v) for v in (images.image_mean, images.image_std))
        picture = (pixels[0].float().cpu().numpy().transpose(1, 2, 0) * std + mean).clip(0, 1) * 255
        return Pillow.fromarray(picture.round().astype(np.uint8))

    def _allowed(self, length: int, height: int, width: int) -> Callable[[int, Tensor], list[int]]:
        """The tokens that may come next: H rows of W tokens and a line break, then the end."""
        words, root = self.tokenizer, core(self.model)
        line_break = words.convert_tokens_to_ids(_BREAK)
        mapping: Any = root.vocabulary_mapping
        visual = list(mapping.image_tokens)
        ends = [[words.eof_token_id], [words.eoi_token_id], [words.eos_token_id]]

        def allowed(_: int, written: Tensor) -> list[int]:
            n = written.shape[0] - length
            if n >= height * (width + 1):
                return ends[min(n - height * (width + 1), 2)]
            return [line_break] if (n + 1) % (width + 1) == 0 else visual

        return allowed
