"""Stand-ins for models whose code no package index has: OmniGen2, Ovis-U1, BLIP3o.

Written here, with random weights and the published names of classes, attributes and functions, so
that errata's files for these models run: path, tap, template, guidance and the drawing call. They
say nothing about the published weights.

Shapes: B rows, T text tokens, N image tokens, w width of the generator.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from errata.testing.drawing.pipelines import _kl, _matching, _qwen25, _sizes, _tokenizer
from errata.testing.tiny_models import qwen_processor, randomise

WIDTH, SIDE = 24, 4  # of the generators of Ovis-U1 and BLIP3o; image tokens of a side


def omnigen2_classes() -> tuple[Any, Any]:
    """(OmniGen2Pipeline, OmniGen2Transformer2DModel)."""
    import diffusers

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

    return OmniGen2Pipeline, OmniGen2Transformer2DModel


def omnigen2() -> Any:
    """The pipeline."""
    pipeline, transformer = omnigen2_classes()
    processor = qwen_processor(7)
    processor.tokenizer = _tokenizer()
    blocks = transformer(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
        axes_dim_rope=(4, 2, 2), axes_lens=(400, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return pipeline(randomise(blocks), _kl(), _matching(), _qwen25(), processor)


class StreamBlock(nn.Module):
    """Attention over text and image; `joint`: one stream [text, image], else two."""

    def __init__(self, joint: bool) -> None:
        super().__init__()
        self.joint = joint
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.feed_forward = nn.Linear(WIDTH, WIDTH)

    def forward(self, img: Tensor, txt: Tensor | None, time_Bw: Tensor) -> Any:
        x = img if txt is None else torch.cat([txt, img], dim=1)
        h = nn.functional.layer_norm(x + time_Bw[:, None], (WIDTH,))
        x = x + self.attn(h, h, h, need_weights=False)[0]
        x = x + self.feed_forward(nn.functional.layer_norm(x, (WIDTH,)).tanh())
        if txt is None:
            return x
        return x[:, txt.shape[1] :], x[:, : txt.shape[1]]


class YakBackbone(nn.Module):
    """Ovis-U1's generator: text refiner, blocks of two streams, blocks of one stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.txt_in = nn.ModuleDict({"input_embedder": nn.Linear(width, WIDTH)})
        self.img_in = nn.Linear(3, WIDTH)
        self.time_in = nn.Linear(1, WIDTH)
        self.double_blocks = nn.ModuleList(StreamBlock(False) for _ in range(2))
        self.single_blocks = nn.ModuleList(StreamBlock(True) for _ in range(2))
        self.final_layer = nn.Linear(WIDTH, 3)

    def forward(self, img: Tensor, txt: Tensor, timesteps: Tensor) -> Tensor:
        text, x, time = (
            self.txt_in["input_embedder"](txt),
            self.img_in(img),
            self.time_in(timesteps),
        )
        for block in self.double_blocks:
            x, text = block(x, text, time)
        joined = torch.cat([text, x], dim=1)
        for block in self.single_blocks:
            joined = block(joined, None, time)
        out: Tensor = self.final_layer(joined[:, text.shape[1] :])
        return out


class YakGenerator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = YakBackbone(width)

    def process_image_aspectratio(self, image: Any, size: tuple[int, int]) -> Any:
        return image, torch.zeros(3, *size), torch.zeros(1, 4, 3)


class BlankTower(nn.Module):
    """Stands for the visual tokenizer: one token for the blank picture."""

    image_processor = SimpleNamespace(min_pixels=49)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))

    def smart_resize(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        return height, width


class OvisStandIn(nn.Module):
    """`llm`, `visual_generator.backbone` and the functions that Ovis-U1's authors draw with."""

    def __init__(self) -> None:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        super().__init__()
        config = Qwen3Config(**_sizes(), tie_word_embeddings=True)
        self.llm, self.config = Qwen3ForCausalLM(config), config
        self.visual_tokenizer = BlankTower(config.hidden_size)
        self.visual_generator = YakGenerator(2 * config.hidden_size)
        self.words = _tokenizer()

    def get_text_tokenizer(self) -> Any:
        return self.words

    def get_visual_tokenizer(self) -> Any:
        return self.visual_tokenizer

    def preprocess_inputs(self, text: str, images: Any, **options: Any) -> Any:
        talk = [{"role": "user", "content": text}]
        written = self.words.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor(self.words(written)["input_ids"])
        return written, ids, torch.zeros(1, 3), torch.tensor([[1, 1, 1]])

    @torch.no_grad()
    def generate_condition(self, ids: Tensor, *, attention_mask: Tensor, **options: Any) -> Any:
        embeds = self.llm.get_input_embeddings()(ids)
        image = ids == self.words.convert_tokens_to_ids("<image>")
        embeds = torch.where(image[..., None], self.visual_tokenizer.token, embeds)
        states = self.llm(
            inputs_embeds=embeds, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        return {"txt": torch.cat([states[-1], states[-2]], dim=-1)}

    @torch.no_grad()
    def generate_img(
        self, *, cond: Any, no_both_cond: Any, no_txt_cond: Any, num_steps: int, seed: int,
        txt_cfg: float, **options: Any,
    ) -> list[Any]:  # fmt: skip
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(1, SIDE * SIDE, 3, generator=rng)
        for k in range(num_steps):
            time = torch.full((1, 1), k / num_steps)
            own = self.visual_generator.backbone(img=x, txt=cond["txt"], timesteps=time)
            other = self.visual_generator.backbone(img=x, txt=no_both_cond["txt"], timesteps=time)
            x = x + (other + txt_cfg * (own - other)) / num_steps
        return [picture_of(x)]


def picture_of(x_1N3: Tensor) -> Any:
    pixels = (x_1N3[0].sigmoid().reshape(SIDE, SIDE, 3) * 255).round().numpy().astype(np.uint8)
    return Pillow.fromarray(pixels)


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


class Blip3oPipeline:
    """Stands for the decoder's pipeline: features are pixels here."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def __call__(self, texts: list[str], guidance_scale: float) -> Any:
        body: Any = self.model.model
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


def blip3o() -> tuple[Any, Any, Any]:
    """(model, tokenizer, pipeline)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config, tokenizer = Qwen3Config(**_sizes(), tie_word_embeddings=True), _tokenizer()
    model = Qwen3ForCausalLM(config)
    body: Any = model.model
    body.dit = NextDit(config.hidden_size)
    body.latent_queries = nn.Parameter(torch.zeros(1, 4, config.hidden_size))
    randomise(model)
    return model, tokenizer, Blip3oPipeline(model, tokenizer)


def _ovis() -> Any:
    from errata.backbones.ovis_u1 import OvisU1

    model = randomise(OvisStandIn())
    return OvisU1(model, name="tiny-ovis-u1", drawing={"steps": 3, "size": 28, "guidance": 2.0})


def _omnigen2() -> Any:
    from errata.backbones.omnigen2 import OmniGen2

    return OmniGen2(omnigen2(), name="tiny-omnigen2", drawing={"steps": 2, "size": 32})


def _blip3o() -> Any:
    from errata.backbones.blip3o import Blip3o

    return Blip3o(*blip3o(), lambda text: f"user: {text}", name="tiny-blip3o")


#: name -> its backbone around the stand-in
STANDINS = {"ovis_u1": _ovis, "omnigen2": _omnigen2, "blip3o": _blip3o}


@functools.cache
def wrapped(name: str) -> Any:
    """One per process."""
    return STANDINS[name]()
