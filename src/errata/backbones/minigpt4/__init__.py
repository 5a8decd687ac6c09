"""MiniGPT-4: BLIP-2's tower and Q-Former in front of Vicuna, the image inside the prompt.

`errata convert minigpt4` makes a folder of `Blip2ForConditionalGeneration` from the published
files; its config has a part `minigpt4`, by which it is recognised. What differs from BLIP-2:

- The image stands inside the text: `###Human: <Img>` 32 image embeddings `</Img> QUESTION`
  `###Assistant: `, with BOS in front of all. The pieces of text are tokenised apart. This is the
  chat template of the folder, so style `chat`, the default; without an image the same without
  `<Img>`. Style `raw`: BOS, image, line break, text, as in VisEdit (26419f2). Style `easyedit`:
  `###Human: <Img>` image `</Img> Question: ... Short answer:`, as in EasyEdit (14cea82), with BOS.
- An answer ends at `###`, and a target with an end ends with it.
- The norm behind the vision tower has an epsilon of its own (1e-5), and pictures are scaled by
  Pillow: torchvision rounds otherwise.

Source: Zhu et al., ICLR 2024; Vision-CAIR/MiniGPT-4 at d94738a (BSD-3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.backbones import _tokens
from errata.backbones._identity import core
from errata.backbones.hf_vlm import HfVlm
from errata.core.errors import BadBackbone, BadEdit
from errata.core.types import Prompt
from errata.io.images import load_image

#: the part of the config that says how the model differs from BLIP-2
PART = "minigpt4"
#: settings of the image processor
_PIXELS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)


class MiniGpt4(HfVlm):
    """`Blip2ForConditionalGeneration` with a Llama text model and the image inside the prompt."""

    bundled: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        """As `HfVlm`; epsilon and scaling are set in the given model and processor."""
        differs = getattr(model.config, PART)
        eps, end = differs.get("ln_vision_eps"), differs.get("end")
        if not isinstance(eps, float) or eps <= 0 or not isinstance(end, str):
            raise BadBackbone(
                f"the part {PART} of config.json has no ln_vision_eps (a number above 0) or no "
                "end (a text). Convert the model again: errata convert minigpt4."
            )
        root: Any = core(model)
        root.vision_model.post_layernorm.eps = eps
        processor.image_processor = _with_pillow(processor.image_processor)
        self.end_text = end
        super().__init__(model, processor, **options)
        bos = self.tokenizer.bos_token_id
        self.bos_id = int(self.text_config.bos_token_id if bos is None else bos)
        vocabulary = self.tokenizer.get_vocab()
        self._may_end = {i for token, i in vocabulary.items() if end and end[-1] in token}

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return super().accepts(config) and isinstance(config.get(PART), Mapping)

    @property
    def special(self) -> bool:
        """BOS is put in front here, whatever the style and the settings of the tokenizer."""
        return False

    # -- prompts to tensors -------------------------------------------------------------------

    def _markup(self) -> str:
        human = f"###Human: <Img>{self.image_token}</Img> "
        return human if self.style == "easyedit" else f"{self.image_token}\n"

    def _for_processor(self, prompt: Prompt) -> str:
        if any(turn.role == "system" for turn in prompt.history):
            raise BadEdit(f"{self.name} knows turns of a user and its own, and none of a system.")
        return super()._for_processor(prompt)

    def _pieces(self, text: str, images: int) -> list[str]:
        """The text around the images. Raises BadBackbone if the text has another number of them."""
        pieces = text.split(self.image_token)
        if len(pieces) != images + 1:
            raise BadBackbone(
                f"{self.name}: its chat template leaves images of the prompt out. Load the model "
                "with --style raw or easyedit."
            )
        return pieces

    def _piece_ids(self, pieces: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of each piece, tokenised apart; BOS in front of the first."""
        first, *rest = [self._ids(p, False) if p else () for p in pieces]
        return [(self.bos_id, *first), *rest]

    def _prompt_ids(self, text: str, images: Sequence[_tokens.EncodedImage]) -> tuple[int, ...]:
        first, *rest = self._piece_ids(self._pieces(text, len(images)))
        ids = list(first)
        for image, piece in zip(images, rest, strict=True):
            ids += (*image.ids, *piece)
        return tuple(ids)

    def _column(self, text: str, end: int, images: Sequence[_tokens.EncodedImage]) -> int:
        pieces = self._pieces(text, len(images))
        column = start = 0
        for n, (piece, ids) in enumerate(zip(pieces, self._piece_ids(pieces), strict=True)):
            if start < end <= start + len(piece):
                return column + (n == 0) + self._token(piece, end - start)
            column += len(ids) + (len(images[n].ids) if n < len(images) else 0)
            start += len(piece) + len(self.image_token)
        raise AssertionError(f"character {end - 1} of {text!r} is part of an image")

    def processed(self, prompt: Prompt) -> dict[str, Tensor]:
        """As the published code: each piece by the tokenizer, image tokens in between, pixels."""
        images = [load_image(i) for i in prompt.images]
        ids = [self.bos_id]
        for n, piece in enumerate(self._pieces(self.formatted(prompt), len(images))):
            ids += [self.image_id] * int(self.processor.num_query_tokens) if n else []
            ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
        out = {"input_ids": torch.tensor([ids])}
        out["attention_mask"] = torch.ones_like(out["input_ids"])
        if images:
            pixels = self.processor.image_processor(images=images, return_tensors="pt")
            out["pixel_values"] = pixels["pixel_values"]
        return out

    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """In the chat template apart from the prompt, as published; else as `HfVlm`."""
        if self.style != "chat" or not text.strip():
            return super().answer_ids(text, prompt)
        _tokens.check_text(text, self.image_markers, f"the answer '{text[:60]}'")
        return self._ids(text.strip(), False)

    # -- where an answer ends -----------------------------------------------------------------

    def before_end(self, ids: Sequence[int]) -> list[int] | None:
        if ids[-1] not in self._may_end:
            return None
        before, end, _ = self._said(ids).partition(self.end_text)
        if not end:
            return None
        sizes = range(len(ids), -1, -1)
        kept = next(n for n in sizes if before.startswith(self._said(ids[:n]).rstrip()))
        return list(ids[:kept])

    def _said(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def end_of(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """The text `###` behind an answer, as the tokenizer writes it there."""
        if not self.end_text:
            return super().end_of(text, prompt)
        answer = self.answer_ids(text, prompt)
        for space in ("", " "):
            joint = self._ids(space + text.strip() + self.end_text, False)
            if joint[: len(answer)] == answer:
                return joint[len(answer) :]
        return self._ids(self.end_text, False)


def _with_pillow(images: Any) -> Any:
    """The same image processor on Pillow."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    if isinstance(images, BlipImageProcessorPil):
        return images
    return BlipImageProcessorPil(**{k: v for k, v in images.to_dict().items() if k in _PIXELS})
