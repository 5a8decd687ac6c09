"""BLIP3o: Qwen2.5-VL whose learnt queries condition a transformer that makes image features.

The package `blip3o` (branch `main` of its repository, which needs a fork of diffusers) is in no
package index: its user installs it, and errata imports it. A prompt is followed by `latent_queries`
in the text model; only the last hidden states of these queries are handed to `dit`, so an edit
reaches a picture by attention alone. The decoder of the sub-folder `diffusion-decoder` turns the
features into pixels. Guidance is against a zero condition. One seed is drawn at a time, from the
library's own random state. Where the text model is read is measured (`_drawing`). Tested on a
stand-in with the published class and attribute names, not on the published weights; the code was
written for transformers 4.51.

Drawing settings: guidance. Source: Chen et al. 2025; JiuhaiChen/BLIP3o, branch main.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errata.backbones import _folders, _sites
from errata.backbones._drawing.installed import (
    AuthorsModel,
    diffusers_for,
    installed,
    open_around,
)

HOW = (
    "Install it: git clone -b main https://github.com/JiuhaiChen/BLIP3o, then pip install -e "
    "BLIP3o in an environment with the fork of diffusers that its README names."
)
CAPTION = "Please generate image based on the following caption: "
GUIDANCE = 3.0


class Blip3o(AuthorsModel):
    """A model with `model.dit` and `model.latent_queries`, and its pipeline of the decoder."""

    kind = "BLIP3o"
    settings = ("guidance",)  # its steps and size are its authors'

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pipeline: Any,
        written: Any,
        *,
        name: str = "",
        style: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> None:
        """pipeline: draws; written: makes what it is given from a text (the chat template)."""
        super().__init__(model, name, drawing)
        self.pipeline, self.written = pipeline, written
        self.encoder = _sites.resolve(model).text
        self.generator = model.model.dit
        self.steps = 1  # its call takes no number of steps, so it is measured whole
        self.be_language_model(model, model, tokenizer, style)
        self.identify(tokenizer, None)

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return str(config.get("model_type")).startswith("blip3o")

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
    ) -> Blip3o:
        """A folder. Raises MissingExtra, BadBackbone with the library's reason."""

        def code(module: str) -> Any:
            return installed(f"blip3o.{module}", model=cls.kind, how=HOW, trusted=trust_remote_code)

        diffusers = diffusers_for(name)
        builder, names, templates = map(code, ("model.builder", "mm_utils", "conversation"))
        with _folders.load_errors(name, cls.kind, "its code, configuration or weights"):
            known = names.get_model_name_from_path(name)
            tokenizer, model, _ = builder.load_pretrained_model(name, None, known)
            kind = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
            if device is not None or kind:
                model.to(**({"device": device} if device else {}), **kind)
            decoder = Path(name) / "diffusion-decoder"
            stored = "bf16" if any(decoder.glob("*/*.bf16.*")) else None
            options = {
                "custom_pipeline": "pipeline_llava_gen", "use_safetensors": True,
                "variant": stored, "trust_remote_code": True, **kind,
            }  # fmt: skip
            own = {"multimodal_encoder": model, "tokenizer": tokenizer, "safety_checker": None}
            pipeline = open_around(diffusers.DiffusionPipeline, str(decoder), own, options)
            if device is not None:
                pipeline.vae.to(device)
                pipeline.unet.to(device)

        def written(text: str) -> str:
            talk = templates.conv_templates["qwen"].copy()
            talk.append_message(talk.roles[0], CAPTION + text)
            talk.append_message(talk.roles[1], None)
            return str(talk.get_prompt())

        return cls.around(
            model, tokenizer, pipeline, written, name=name, style=style, drawing=drawing
        )

    def call(
        self, texts: Sequence[str], seeds: Sequence[int], *, steps: int, pixels: bool
    ) -> Sequence[Any]:
        (text,), (seed,) = texts, seeds
        devices = [d for d in {self.device_of("embed")} if d.type == "cuda"]
        guidance = self.drawing.get("guidance", GUIDANCE)
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            made = self.pipeline([self.written(text)], guidance_scale=guidance)
        picture = made.image.convert("RGB")
        return [np.asarray(picture).astype(np.float64) / 255]
