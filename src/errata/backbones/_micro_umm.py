"""The classes of micro-umm: a Llama, a projector, and a diffusion transformer that draws.

The image generator is a flow-matching model: x_t = t * picture + (1 - t) * noise, t from 0 to 1.
The network predicts the picture, from which the velocity follows. Every block attends to the
projected states of all prompt tokens through cross attention; the time enters through modulated
norms (adaLN-zero, Peebles and Xie 2023). Guidance is classifier free, with a learned null token.

Shapes: B prompts, R pictures being drawn, T prompt tokens, d width of the text model, c width of
the generator, N image tokens, P values of a patch, S side of a picture in pixels.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)


class MicroUmmConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """`text_config` is a LlamaConfig; the rest describes the generator and its sampler."""

    model_type = "micro_umm"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": LlamaConfig}

    text_config: Any = None
    side: int = 30
    patch: int = 5
    width: int = 128
    depth: int = 5
    heads: int = 4
    steps: int = 12
    guidance: float = 1.5

    def __post_init__(self, **kwargs: Any) -> None:
        config = self.text_config
        if not isinstance(config, LlamaConfig):
            self.text_config = LlamaConfig(**(config or {}))
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]


class Projector(nn.Module):
    """[B, T, d] states of the text model -> [B, T, c] conditioning of the generator."""

    def __init__(self, d: int, c: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(d)
        self.up = nn.Linear(d, 2 * c)
        self.down = nn.Linear(2 * c, c)
        self.norm_out = nn.LayerNorm(c)

    def forward(self, x_BTd: Tensor) -> Tensor:
        y: Tensor = self.norm_out(self.down(F.gelu(self.up(self.norm_in(x_BTd)))))
        return y


class DrawAttention(nn.Module):
    """Multi-head attention of x over y; `mask` [R, T] says which columns of y are real."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x_RNc: Tensor, y_RTc: Tensor, mask_RT: Tensor | None = None) -> Tensor:
        def split(z: Tensor) -> Tensor:
            return z.reshape(*z.shape[:2], self.heads, -1).transpose(1, 2)

        mask = mask_RT[:, None, None, :].bool() if mask_RT is not None else None
        out = F.scaled_dot_product_attention(
            split(self.q(x_RNc)), split(self.k(y_RTc)), split(self.v(y_RTc)), attn_mask=mask
        )
        mixed: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return mixed


class DrawBlock(nn.Module):
    """Self attention, cross attention to the prompt, MLP; the time gives shift, scale and gate."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(c, elementwise_affine=False)
        self.attn = DrawAttention(c, heads)
        self.norm2 = nn.LayerNorm(c)
        self.look = DrawAttention(c, heads)
        self.norm3 = nn.LayerNorm(c, elementwise_affine=False)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.modulation = nn.Linear(c, 6 * c)

    def forward(self, x_RNc: Tensor, time_Rc: Tensor, cond_RTc: Tensor, mask_RT: Tensor) -> Tensor:
        parts = self.modulation(F.silu(time_Rc))[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = self.norm1(x_RNc) * (1 + scale1) + shift1
        x_RNc = x_RNc + gate1 * self.attn(h, h)
        x_RNc = x_RNc + self.look(self.norm2(x_RNc), cond_RTc, mask_RT)
        h = self.norm3(x_RNc) * (1 + scale2) + shift2
        y: Tensor = x_RNc + gate2 * self.down(F.gelu(self.up(h)))
        return y


class Generator(nn.Module):
    """The velocity of pictures in patches, [R, N, P] -> [R, N, P]."""

    def __init__(self, config: MicroUmmConfig) -> None:
        super().__init__()
        c, tokens = config.width, (config.side // config.patch) ** 2
        values = 3 * config.patch**2
        self.into = nn.Linear(values, c)
        self.place = nn.Parameter(torch.randn(1, tokens, c) * 0.02)
        self.clock = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c))
        self.null = nn.Parameter(torch.randn(1, 1, c) * 0.5)
        self.blocks = nn.ModuleList(DrawBlock(c, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(c, elementwise_affine=False)
        self.modulation = nn.Linear(c, 2 * c)
        self.out = nn.Linear(c, values)
        for module in (self, *self.blocks):
            nn.init.zeros_(module.modulation.weight)
            nn.init.zeros_(module.modulation.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _time(self, t_R: Tensor) -> Tensor:
        c = self.place.shape[-1]
        rates = torch.exp(torch.arange(c // 2, device=t_R.device) * (-math.log(1000.0) / (c // 2)))
        angles = 100.0 * t_R[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.place.dtype)
        time: Tensor = self.clock(waves)
        return time

    def picture(self, x_RNP: Tensor, t_R: Tensor, cond_RTc: Tensor, mask_RT: Tensor) -> Tensor:
        """The predicted picture at t = 1; values from -1 to 1."""
        time = self._time(t_R)
        h = self.into(x_RNP) + self.place
        for block in self.blocks:
            h = block(h, time, cond_RTc, mask_RT)
        shift, scale = self.modulation(F.silu(time))[:, None].chunk(2, dim=-1)
        picture: Tensor = self.out(self.norm(h) * (1 + scale) + shift)
        return picture

    def forward(self, x_RNP: Tensor, t_R: Tensor, cond_RTc: Tensor, mask_RT: Tensor) -> Tensor:
        picture = self.picture(x_RNP, t_R, cond_RTc, mask_RT)
        return (picture - x_RNP) / (1 - t_R)[:, None, None]


class MicroUmm(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Text through `language_model`, pictures through `projector` and `generator`."""

    config_class = MicroUmmConfig
    base_model_prefix = ""
    _tied_weights_keys = {  # noqa: RUF012
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }
    _supports_sdpa = True

    def __init__(self, config: MicroUmmConfig) -> None:
        super().__init__(config)
        self.language_model = LlamaForCausalLM(config.text_config)
        self.projector = Projector(config.text_config.hidden_size, config.width)
        self.generator = Generator(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Keeps the initial values that each module's own class gives it."""

    def get_decoder(self) -> nn.Module:
        decoder: nn.Module = self.language_model.model
        return decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.language_model.lm_head
        return head

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """The text model's own forward."""
        return self.language_model(input_ids=input_ids, **kwargs)


def to_patches(pictures_RSS3: Tensor, patch: int) -> Tensor:
    """[R, S, S, 3] -> [R, N, P], patches row by row."""
    r, side, _, _ = pictures_RSS3.shape
    n = side // patch
    x = pictures_RSS3.reshape(r, n, patch, n, patch, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(r, n * n, patch * patch * 3)


def from_patches(x_RNP: Tensor, patch: int) -> Tensor:
    """The inverse of `to_patches`."""
    r, tokens, _ = x_RNP.shape
    n = math.isqrt(tokens)
    x = x_RNP.reshape(r, n, n, patch, patch, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(r, n * patch, n * patch, 3)
