"""Tiny pipelines of diffusers with random weights, of the real classes, whose encoder is a LLM.

Each has a text model of four blocks (Flux2-Klein: six), a width of 32, and draws 32 x 32 pixels in
two steps. The tokenizer is byte level with whole English words. The same call gives the same
weights. `folder_of` saves one, so that it is loaded as a user loads it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from errata.testing.tiny_models import randomise, tokenizer

#: takes `enable_thinking`, as Qwen's do
CHAT = (
    "{% for m in messages %}<|vision_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
    "<|vision_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|vision_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


class TinyPipeline(NamedTuple):
    """cls: in diffusers. make: the pipeline. settings: of a drawing, beside size and steps.

    reads: the highest text block whose output reaches the picture.
    """

    cls: str
    make: Callable[[], Any]
    settings: Mapping[str, Any]
    reads: int


def seeded(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same weights each time: `randomise` leaves biases in norms as they were made."""

    @functools.wraps(make)
    def made() -> Any:
        torch.manual_seed(0)
        return make()

    return made


def _tokenizer(side: str = "right") -> Any:
    tok = tokenizer()
    tok.chat_template = CHAT
    tok.padding_side = side
    tok.model_max_length = 512
    return tok


def _gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(**_sizes(), query_pre_attn_scalar=8, sliding_window=16)
    return randomise(Gemma2Model(config))


def _qwen3(layers: int = 4, *, causal: bool = False) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(**_sizes(layers), tie_word_embeddings=True)
    return randomise((Qwen3ForCausalLM if causal else Qwen3Model)(config))


def _qwen25() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text: dict[str, Any] = {k: v for k, v in _sizes().items() if k != "head_dim"}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = dict(
        depth=1, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=7,
        spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=32, window_size=28,
        fullatt_block_indexes=[0],
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=6,
        video_token_id=7,
        vision_start_token_id=4,
        vision_end_token_id=5,
    )
    return randomise(Qwen2_5_VLForConditionalGeneration(config))


def _glm() -> Any:
    from transformers import GlmConfig, GlmModel

    return randomise(GlmModel(GlmConfig(**_sizes(), tie_word_embeddings=True)))


def _sizes(layers: int = 4) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=64,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def _kl(channels: int = 4, blocks: int = 2) -> Any:
    from diffusers import AutoencoderKL

    return randomise(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=(8,) * blocks,
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=2,
            sample_size=32,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.0,
            shift_factor=0.0,
        )
    )


def _matching(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


@seeded
def sana() -> Any:
    import diffusers

    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.4,
    )  # fmt: skip
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=32, mlp_ratio=2.0, sample_size=8, patch_size=1,
    )  # fmt: skip
    return diffusers.SanaPipeline(
        tokenizer=_tokenizer(),
        text_encoder=_gemma2(),
        vae=randomise(vae),
        transformer=randomise(transformer),
        scheduler=_matching(shift=7.0),
    )


@seeded
def lumina2() -> Any:
    import diffusers

    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
        axes_dim_rope=(4, 2, 2), axes_lens=(400, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=randomise(transformer),
        scheduler=_matching(use_dynamic_shifting=True),
        vae=_kl(),
        text_encoder=_gemma2(),
        tokenizer=_tokenizer(),
    )


@seeded
def qwen_image() -> Any:
    import diffusers

    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=_matching(use_dynamic_shifting=True),
        vae=randomise(vae),
        text_encoder=_qwen25(),
        tokenizer=_tokenizer(),
        transformer=randomise(transformer),
    )


@seeded
def z_image() -> Any:
    import diffusers

    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        scheduler=_matching(),
        vae=_kl(16),
        text_encoder=_qwen3(),
        tokenizer=_tokenizer(),
        transformer=randomise(transformer),
    )


@seeded
def ovis_image() -> Any:
    import diffusers

    transformer = diffusers.OvisImageTransformer2DModel(
        patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.OvisImagePipeline(
        scheduler=_matching(use_dynamic_shifting=True),
        vae=_kl(4),
        text_encoder=_qwen3(),
        tokenizer=_tokenizer(),
        transformer=randomise(transformer),
    )


@seeded
def flux2_klein() -> Any:
    import diffusers

    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=96, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        sample_size=32, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return diffusers.Flux2KleinPipeline(
        scheduler=_matching(use_dynamic_shifting=True),
        vae=randomise(vae),
        text_encoder=_qwen3(6, causal=True),
        tokenizer=_tokenizer(),
        transformer=randomise(transformer),
    )


@seeded
def cogview4() -> Any:
    import diffusers

    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, text_embed_dim=32, time_embed_dim=16, condition_dim=8,
        pos_embed_max_size=32, sample_size=16, rope_axes_dim=(4, 4),
    )  # fmt: skip
    return diffusers.CogView4Pipeline(
        tokenizer=_tokenizer("left"),
        text_encoder=_glm(),
        vae=_kl(),
        transformer=randomise(transformer),
        scheduler=_matching(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True),
    )


@seeded
def longcat() -> Any:
    import diffusers

    from errata.testing.tiny_models import qwen_processor

    transformer = diffusers.LongCatImageTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    pipeline = diffusers.LongCatImagePipeline(
        scheduler=_matching(use_dynamic_shifting=True),
        vae=_kl(16),
        text_encoder=_qwen25(),
        tokenizer=_tokenizer(),
        text_processor=qwen_processor(7),
        transformer=randomise(transformer),
    )
    pipeline.tokenizer_max_length = 64
    return pipeline


@seeded
def hunyuan_image() -> Any:
    import diffusers
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    glyphs = T5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=32,
        text_embed_2_dim=16, rope_axes_dim=(8, 8),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32),
        layers_per_block=1, spatial_compression_ratio=2, sample_size=32,
        downsample_match_channel=False, upsample_match_channel=False, scaling_factor=1.0,
    )  # fmt: skip
    pipeline = diffusers.HunyuanImagePipeline(
        scheduler=_matching(),
        vae=randomise(vae),
        text_encoder=_qwen25(),
        tokenizer=_tokenizer(),
        text_encoder_2=randomise(T5EncoderModel(glyphs)),
        tokenizer_2=ByT5Tokenizer(),
        transformer=randomise(transformer),
    )
    pipeline.tokenizer_max_length = 256
    return pipeline


@seeded
def hidream() -> Any:
    """One that is refused: each block of its generator reads another block of its text model."""
    import diffusers
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5EncoderModel,
    )

    words = len(tokenizer())
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPTextConfig(
        vocab_size=words, projection_dim=16, max_position_embeddings=256, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, **small,
    )  # fmt: skip
    t5 = T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, caption_channels=[16, 32], text_emb_dim=32,
        num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(8, 4, 4),
        max_resolution=(32, 32), llama_layers=[0, 2],
    )  # fmt: skip
    return diffusers.HiDreamImagePipeline(
        scheduler=_matching(shift=3.0),
        vae=_kl(),
        text_encoder=randomise(CLIPTextModelWithProjection(clip)),
        tokenizer=_tokenizer(),
        text_encoder_2=randomise(CLIPTextModelWithProjection(clip)),
        tokenizer_2=_tokenizer(),
        text_encoder_3=randomise(T5EncoderModel(t5)),
        tokenizer_3=_tokenizer(),
        text_encoder_4=randomise(LlamaForCausalLM(LlamaConfig(**_sizes()))),
        tokenizer_4=_tokenizer(),
        transformer=randomise(transformer),
    )


PIPELINES: dict[str, TinyPipeline] = {
    "sana": TinyPipeline(
        "SanaPipeline", sana, {"complex_human_instruction": None, "max_sequence_length": 64}, 3
    ),
    "lumina2": TinyPipeline("Lumina2Pipeline", lumina2, {"max_sequence_length": 200}, 2),
    "qwen_image": TinyPipeline("QwenImagePipeline", qwen_image, {"guidance": 1.0}, 3),
    "z_image": TinyPipeline("ZImagePipeline", z_image, {"guidance": 0.0}, 2),
    "ovis_image": TinyPipeline("OvisImagePipeline", ovis_image, {}, 3),
    "flux2_klein": TinyPipeline(
        "Flux2KleinPipeline", flux2_klein,
        {"text_encoder_out_layers": (1, 2, 4), "max_sequence_length": 200}, 3,
    ),
    "cogview4": TinyPipeline("CogView4Pipeline", cogview4, {}, 2),
    "longcat": TinyPipeline(
        "LongCatImagePipeline", longcat, {"enable_prompt_rewrite": False}, 3
    ),
    "hunyuan_image": TinyPipeline("HunyuanImagePipeline", hunyuan_image, {}, 1),
}  # fmt: skip


@functools.cache
def wrapped(name: str) -> Any:
    """The backbone of a tiny pipeline in memory; one per process."""
    from errata.backbones import wrap

    model = PIPELINES[name]
    drawing = {"size": 32, "steps": 2, **model.settings}
    return wrap(model.make(), name=f"tiny-{name}", drawing=drawing)


@functools.cache
def folder_of(name: str) -> Path:
    """The folder of a saved pipeline; one per process."""
    folder = Path(tempfile.mkdtemp(prefix=f"errata-pipeline-{name}-"))
    PIPELINES[name].make().save_pretrained(folder)
    return folder
