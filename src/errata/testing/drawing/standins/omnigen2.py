"""Stand-in of OmniGen2: Qwen2.5-VL in front of blocks of Lumina 2.

Shapes: B rows, T text tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor

from errata.testing.drawing.pipelines import _kl, _matching, _qwen25, _tokenizer, seeded
from errata.testing.tiny_models import qwen_processor, randomise

#: part -> the file with its class, which the hub repository has in the folder of the part
_FILES = {
    "transformer": "transformer_omnigen2",
    "scheduler": "scheduling_flow_match_euler_discrete",
}


class OmniGen2Transformer2DModel(diffusers.Lumina2Transformer2DModel):
    def forward(  # type: ignore[override]
        self, hidden_states: Any, timestep: Any, text_hidden_states: Any, freqs_cis: Any,
        text_attention_mask: Any, ref_image_hidden_states: Any = None,
    ) -> Any:  # fmt: skip
        assert ref_image_hidden_states is None or not any(ref_image_hidden_states)
        return super().forward(  # type: ignore[misc]
            hidden_states, timestep, text_hidden_states, text_attention_mask, return_dict=False
        )[0]


class OmniGen2Pipeline(diffusers.DiffusionPipeline):
    def __init__(
        self, transformer: Any, vae: Any, scheduler: Any, mllm: Any, processor: Any
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, mllm=mllm,
            processor=processor,
        )  # fmt: skip

    def _embed(self, texts: list[str], times: int) -> tuple[Tensor, Tensor]:
        system = {"role": "system", "content": "You are a helpful assistant that draws."}
        talks = [[system, {"role": "user", "content": text}] for text in texts]
        tokenizer = self.processor.tokenizer
        written = tokenizer.apply_chat_template(talks, tokenize=False)
        made = tokenizer(written, padding="longest", truncation=True, return_tensors="pt")
        states = self.mllm(
            made.input_ids, attention_mask=made.attention_mask, output_hidden_states=True
        ).hidden_states[-1]
        mask = made.attention_mask
        return states.repeat_interleave(times, 0), mask.repeat_interleave(times, 0)

    @torch.no_grad()
    def __call__(
        self, prompt: Any = None, negative_prompt: str = "", num_images_per_prompt: int = 1,
        height: int = 32, width: int = 32, num_inference_steps: int = 28,
        text_guidance_scale: float = 4.0, generator: Any = None, output_type: str = "pil",
    ) -> Any:  # fmt: skip
        texts = [prompt] if isinstance(prompt, str) else prompt
        own, others = self._embed(texts, num_images_per_prompt), None
        if text_guidance_scale > 1:
            others = self._embed([negative_prompt] * len(texts), num_images_per_prompt)
        channels = self.transformer.config.in_channels
        shape = (1, channels, height // 2, width // 2)
        x = torch.cat([torch.randn(shape, generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            time = t.expand(x.shape[0]).to(x.dtype)
            v = self.transformer(x, time, own[0], None, own[1], ref_image_hidden_states=None)
            if others is not None:
                w = self.transformer(x, time, others[0], None, others[1])
                v = w + text_guidance_scale * (v - w)
            x = self.scheduler.step(v, t, x, return_dict=False)[0]
        image = self.vae.decode(x, return_dict=False)[0].permute(0, 2, 3, 1)
        return SimpleNamespace(images=(image / 2 + 0.5).clamp(0, 1).numpy())


@seeded
def pipeline() -> Any:
    """The pipeline."""
    processor = qwen_processor(7)
    processor.tokenizer = _tokenizer()
    blocks = OmniGen2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
        axes_dim_rope=(4, 2, 2), axes_lens=(400, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return OmniGen2Pipeline(randomise(blocks), _kl(), _matching(), _qwen25(), processor)


def save(folder: Path) -> None:
    """A folder in the layout of the hub repository: it names its own classes by their files."""
    pipeline().save_pretrained(folder)
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    for part, file in _FILES.items():
        cls = parts[part][1]
        parts[part] = [file, cls]
        source = "diffusers" if part == "scheduler" else __name__
        (folder / part / f"{file}.py").write_text(f"from {source} import {cls}\n")
    index.write_text(json.dumps(parts))


def backbone() -> Any:
    from errata.backbones.omnigen2 import OmniGen2

    return OmniGen2(pipeline(), name="tiny-omnigen2", drawing={"steps": 2, "size": 32})
