"""Stand-in of BLIP3o: a language model with learnt queries, and a transformer that reads them.

Shapes: B rows, T text tokens, N image tokens.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from errata.testing.drawing.pipelines import _kl, _matching, _sizes, _tokenizer, seeded
from errata.testing.drawing.standins.streams import SIDE, WIDTH, StreamBlock, picture_of
from errata.testing.tiny_models import randomise

#: in the folder of the decoder: the file with its pipeline, and the ending of its weights
_FILE, _VARIANT = "pipeline_llava_gen", "bf16"


class NextDit(nn.Module):
    """BLIP3o's transformer over image features; `z_latents` are the states of the queries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cap_embedder = nn.Linear(width, WIDTH)
        self.x_embedder = nn.Linear(3, WIDTH)
        self.time_in = nn.Linear(1, WIDTH)
        self.layers = nn.ModuleList(StreamBlock(False) for _ in range(2))
        self.norm_out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, timestep: Tensor, z_latents: Tensor) -> Tensor:
        text, img, time = self.cap_embedder(z_latents), self.x_embedder(x), self.time_in(timestep)
        for block in self.layers:
            img, text = block(img, text, time)
        out: Tensor = self.norm_out(img)
        return out


class Blip3oConfig(Qwen3Config):
    model_type = "blip3o_qwen"


class blip3oQwenForCausalLM(Qwen3ForCausalLM):
    """A language model with `model.dit` and `model.latent_queries`."""

    config_class = Blip3oConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        body: Any = self.model
        body.dit = NextDit(config.hidden_size)
        body.latent_queries = nn.Parameter(torch.zeros(1, 4, config.hidden_size))


class EmuVisualGenerationPipeline(diffusers.DiffusionPipeline):
    """Stands for the decoder's pipeline: features are pixels here, its UNet is not used."""

    def __init__(
        self, tokenizer: Any, multimodal_encoder: Any, scheduler: Any, unet: Any, vae: Any,
        safety_checker: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, multimodal_encoder=multimodal_encoder, scheduler=scheduler,
            unet=unet, vae=vae, safety_checker=safety_checker,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(self, texts: list[str], guidance_scale: float) -> Any:
        body: Any = self.multimodal_encoder.model
        ids = torch.tensor(self.tokenizer(texts)["input_ids"])
        embeds = torch.cat([body.embed_tokens(ids), body.latent_queries], dim=1)
        states = body(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            output_hidden_states=True,
        ).hidden_states[-1][:, -body.latent_queries.shape[1] :]
        cond = torch.cat([torch.zeros_like(states), states])
        x = torch.randn(1, SIDE * SIDE, 3)
        for k in range(3):
            time = torch.full((2, 1), k / 3)
            other, own = body.dit(x=torch.cat([x, x]), timestep=time, z_latents=cond).chunk(2)
            x = x + (other + guidance_scale * (own - other)) / 3
        return SimpleNamespace(image=picture_of(x))


class Conversation:
    """Two roles and their turns, as `blip3o.conversation` has them."""

    roles = ("user", "assistant")

    def __init__(self) -> None:
        self.turns: list[str] = []

    def copy(self) -> Conversation:
        return Conversation()

    def append_message(self, role: str, text: str | None) -> None:
        self.turns.append(f"{role}: {text or ''}".rstrip())

    def get_prompt(self) -> str:
        return " ".join(self.turns)


conv_templates = {"qwen": Conversation()}


def get_model_name_from_path(path: str) -> str:
    return path.strip("/").rpartition("/")[2]


def load_pretrained_model(path: str, base: Any, name: str) -> tuple[Any, Any, int]:
    """(tokenizer, model, context length)."""
    model = blip3oQwenForCausalLM.from_pretrained(path)
    return AutoTokenizer.from_pretrained(path), model, model.config.max_position_embeddings


@seeded
def parts() -> tuple[Any, Any, Any]:
    """(model, tokenizer, pipeline)."""
    config, tokenizer = Blip3oConfig(**_sizes(), tie_word_embeddings=True), _tokenizer()
    model = randomise(blip3oQwenForCausalLM(config))
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), cross_attention_dim=8, norm_num_groups=2,
        layers_per_block=1,
    )  # fmt: skip
    made = EmuVisualGenerationPipeline(tokenizer, model, _matching(), randomise(unet), _kl())
    return model, tokenizer, made


def save(folder: Path) -> None:
    """A folder in the layout of the hub repository: the model, and its decoder in a folder."""
    model, tokenizer, made = parts()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    decoder = folder / "diffusion-decoder"
    made.save_pretrained(decoder, variant=_VARIANT)
    for part in ("multimodal_encoder", "tokenizer"):  # they are given, not stored twice
        shutil.rmtree(decoder / part)
    (decoder / f"{_FILE}.py").write_text(f"from {__name__} import {type(made).__name__}\n")


def backbone() -> Any:
    from errata.backbones.blip3o import Blip3o

    model, tokenizer, pipeline = parts()
    return Blip3o(model, tokenizer, pipeline, lambda text: f"user: {text}", name="tiny-blip3o")
