"""Models with a placeholder of their own in the prompt, and ordinary text blocks."""

from __future__ import annotations

from typing import Any

from errata.testing.tiny_models import randomise, tokenizer
from errata.testing.zoo._parts import text_config, tower, vocabulary


def ovis2() -> tuple[Any, Any]:
    """An image is a weighted sum of rows of a visual embedding table."""
    from transformers import (
        Ovis2Config,
        Ovis2ForConditionalGeneration,
        Ovis2ImageProcessor,
        Ovis2Processor,
    )

    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tok = vocabulary("<IMG_ATOM>", *marks)
    config = Ovis2Config(
        text_config={"model_type": "qwen2", **text_config(len(tok))},
        vision_config=tower(patch=7, hidden_stride=2, vocab_size=32),
        image_token_id=tok.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tok.convert_tokens_to_ids(list(marks)),
        vocab_size=len(tok),
        hidden_size=32,
        tie_word_embeddings=False,
    )
    images = Ovis2ImageProcessor(size={"height": 28, "width": 28}, max_patches=4)
    processor: Any = Ovis2Processor
    model = randomise(Ovis2ForConditionalGeneration(config))
    return model, processor(images, tok, image_seq_length=4)


def janus() -> tuple[Any, Any]:
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusImageProcessor,
        JanusProcessor,
    )

    tok = vocabulary(
        image_token="<image>", boi_token="<begin_of_image>", eoi_token="<end_of_image>"
    )
    config = JanusConfig(
        text_config={"model_type": "llama", **text_config(len(tok))},
        vision_config=dict(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=32,
            depth=2,
            num_image_tokens=4,
        ),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        image_token_id=3,
        tie_word_embeddings=False,
    )
    images = JanusImageProcessor(size={"height": 28, "width": 28}, min_size=4)
    processor: Any = JanusProcessor
    model = randomise(JanusForConditionalGeneration(config))
    return model, processor(images, tok, num_image_tokens=4)


def _siglip() -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }


def deepseek_vl() -> tuple[Any, Any]:
    from transformers import (
        DeepseekVLConfig,
        DeepseekVLForConditionalGeneration,
        DeepseekVLImageProcessor,
        DeepseekVLProcessor,
    )

    tok = vocabulary(image_token="<image>")
    config = DeepseekVLConfig(
        text_config={"model_type": "llama", **text_config(len(tok))},
        vision_config=_siglip(),
        image_token_id=3,
        tie_word_embeddings=False,
    )
    images = DeepseekVLImageProcessor(size={"height": 28, "width": 28}, min_size=4)
    processor: Any = DeepseekVLProcessor
    model = randomise(DeepseekVLForConditionalGeneration(config))
    return model, processor(images, tok, num_image_tokens=4)


def emu3() -> tuple[Any, Any]:
    """A VQ model turns an image into tokens of the vocabulary."""
    from transformers import (
        Emu3Config,
        Emu3ForConditionalGeneration,
        Emu3ImageProcessor,
        Emu3Processor,
    )

    visual = [f"<|visual token {i:06d}|>" for i in range(16)]
    tok = vocabulary(
        *visual,
        "<|extra_200|>",
        image_token="<image>",
        boi_token="<|image start|>",
        eoi_token="<|image end|>",
        image_wrapper_token="<|image token|>",
        eof_token="<|extra_201|>",
    )
    config = Emu3Config(
        text_config=text_config(len(tok)),
        vq_config=dict(
            codebook_size=16,
            embed_dim=4,
            latent_channels=4,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1],
            num_res_blocks=1,
            hidden_size=32,
            attn_resolutions=[],
        ),
        vocabulary_map=tok.get_vocab(),
    )
    images = Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=32 * 32)
    processor: Any = Emu3Processor
    return randomise(Emu3ForConditionalGeneration(config)), processor(images, tok)


def _glm(model: Any, config: Any, processor: Any, video: Any, **changes: Any) -> tuple[Any, Any]:
    """changes: to the text configuration."""
    from transformers import Glm4vImageProcessor

    tok = vocabulary(
        "<|begin_of_video|>",
        "<|end_of_video|>",
        "<|begin_of_image|>",
        "<|end_of_image|>",
        image_token="<|image|>",
        video_token="<|video|>",
    )
    ids = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    made = config(
        text_config=text_config(
            len(tok),
            head_dim=8,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [2, 1, 1],
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
            },
            **changes,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            image_size=28,
            patch_size=7,
            out_hidden_size=32,
        ),
        **{k: tok.convert_tokens_to_ids(v) for k, v in ids.items()},
    )
    sizes: dict[str, Any] = {
        "patch_size": 7,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56 * 2},
    }
    return randomise(model(made)), processor(Glm4vImageProcessor(**sizes), tok, video(**sizes))


def glm4v() -> tuple[Any, Any]:
    """A norm stands behind the FFN of each block."""
    from transformers import (
        Glm4vConfig,
        Glm4vForConditionalGeneration,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    return _glm(Glm4vForConditionalGeneration, Glm4vConfig, Glm4vProcessor, Glm4vVideoProcessor)


def glm4v_moe() -> tuple[Any, Any]:
    """All blocks but the first have experts, and one that all tokens share."""
    from transformers import (
        Glm4vMoeConfig,
        Glm4vMoeForConditionalGeneration,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    return _glm(
        Glm4vMoeForConditionalGeneration,
        Glm4vMoeConfig,
        Glm4vProcessor,
        Glm4vVideoProcessor,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )


def glm_ocr() -> tuple[Any, Any]:
    from transformers import (
        Glm46VProcessor,
        Glm46VVideoProcessor,
        GlmOcrConfig,
        GlmOcrForConditionalGeneration,
    )

    return _glm(GlmOcrForConditionalGeneration, GlmOcrConfig, Glm46VProcessor, Glm46VVideoProcessor)


def exaone4_5() -> tuple[Any, Any]:
    """A norm stands behind the attention and the FFN of each block."""
    from transformers import (
        Exaone4_5_Config,
        Exaone4_5_ForConditionalGeneration,
        Exaone4_5_Processor,
        Qwen2VLImageProcessor,
        Qwen3VLVideoProcessor,
    )

    tok = tokenizer()
    config = Exaone4_5_Config(
        text_config={
            "model_type": "exaone4",
            **text_config(len(tok), head_dim=8, layer_types=["full_attention"] * 4),
        },
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            num_key_value_heads=2,
            patch_size=7,
            out_hidden_size=32,
            window_size=28,
            fullatt_block_indexes=[1],
        ),
        image_token_id=6,
        video_token_id=7,
    )
    sizes: dict[str, Any] = {
        "patch_size": 7,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
    }
    processor: Any = Exaone4_5_Processor
    video = Qwen3VLVideoProcessor(**sizes)
    model = randomise(Exaone4_5_ForConditionalGeneration(config))
    return model, processor(Qwen2VLImageProcessor(**sizes), tok, video)


def glm46v() -> tuple[Any, Any]:
    from transformers import (
        Glm4vTextConfig,
        Glm4vVisionConfig,
        Glm46VConfig,
        Glm46VForConditionalGeneration,
        Glm46VProcessor,
        Glm46VVideoProcessor,
    )

    def config(text_config: Any, vision_config: Any, **ids: Any) -> Any:
        return Glm46VConfig(
            text_config=Glm4vTextConfig(**text_config),
            vision_config=Glm4vVisionConfig(**vision_config),
            **ids,
        )

    return _glm(Glm46VForConditionalGeneration, config, Glm46VProcessor, Glm46VVideoProcessor)


def molmo2() -> tuple[Any, Any]:
    from transformers import (
        Molmo2Config,
        Molmo2ForConditionalGeneration,
        Molmo2ImageProcessor,
        Molmo2Processor,
        Molmo2VideoProcessor,
    )

    marks = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>"]
    marks += ["<frame_start>", "<frame_end>", "<im_low>"]
    tok = vocabulary(*marks, image_token="<|image|>", video_token="<|video|>")
    ids = dict(zip(marks, tok.convert_tokens_to_ids(marks), strict=True))
    text = text_config(len(tok), head_dim=8, additional_vocab_size=8)
    config = Molmo2Config(
        text_config=text,
        vision_config=dict(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=12,
            image_size=[28, 28],
            patch_size=7,
        ),
        adapter_config=dict(
            hidden_size=24,
            intermediate_size=48,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=12,
            text_hidden_size=32,
            vision_feature_layer=[1, 0],
        ),
        image_start_token_id=ids["<im_start>"],
        low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_patch_id=ids["<im_patch>"],
        frame_start_token_id=ids["<frame_start>"],
        frame_end_token_id=ids["<frame_end>"],
    )
    images = Molmo2ImageProcessor(
        size={"height": 28, "width": 28}, patch_size=7, max_crops=4, overlap_margins=[1, 1]
    )
    processor: Any = Molmo2Processor
    video = Molmo2VideoProcessor(size={"height": 28, "width": 28}, patch_size=7)
    return randomise(Molmo2ForConditionalGeneration(config)), processor(images, video, tok)


MODELS = {
    "ovis2": ("Ovis2ForConditionalGeneration", ovis2),
    "janus": ("JanusForConditionalGeneration", janus),
    "deepseek_vl": ("DeepseekVLForConditionalGeneration", deepseek_vl),
    "emu3": ("Emu3ForConditionalGeneration", emu3),
    "glm4v": ("Glm4vForConditionalGeneration", glm4v),
    "glm46v": ("Glm46VForConditionalGeneration", glm46v),
    "glm4v_moe": ("Glm4vMoeForConditionalGeneration", glm4v_moe),
    "glm_ocr": ("GlmOcrForConditionalGeneration", glm_ocr),
    "exaone4_5": ("Exaone4_5_ForConditionalGeneration", exaone4_5),
    "molmo2": ("Molmo2ForConditionalGeneration", molmo2),
}
