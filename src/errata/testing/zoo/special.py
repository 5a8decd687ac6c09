"""Models that take an image in a way of their own; some of them are refused."""

from __future__ import annotations

from typing import Any, cast

from errata.testing.tiny_models import randomise, tokenizer
from errata.testing.zoo._parts import text_config, tower, vocabulary


def chameleon() -> tuple[Any, Any]:
    """A VQ model turns an image into tokens of the vocabulary, which are never answered."""
    from transformers import (
        ChameleonConfig,
        ChameleonForConditionalGeneration,
        ChameleonImageProcessor,
        ChameleonProcessor,
    )

    marks = ["<racm3:break>", "<eoss>", "<reserved08706>"]
    names = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(d)] for d in f"{i:03d}") + "Z" for i in range(16)]
    tok = vocabulary(*marks, *names)
    tok.sep_token = "<reserved08706>"
    config = ChameleonConfig(
        **text_config(len(tok)),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=8,
            resolution=16,
            base_channels=32,
            channel_multiplier=[1, 1, 1],
            num_res_blocks=1,
        ),
        vocabulary_map=tok.get_vocab(),
    )
    images = ChameleonImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    processor: Any = ChameleonProcessor
    model = randomise(ChameleonForConditionalGeneration(config))
    return model, processor(images, tok, image_seq_length=16)


def phi4_multimodal() -> tuple[Any, Any]:
    """Query, key and value in one projection, gate and up projection too; loaded as a causal LM.

    Its processor counts tokens for towers of 32 x 32 patches.
    """
    from transformers import (
        Phi4MultimodalConfig,
        Phi4MultimodalFeatureExtractor,
        Phi4MultimodalForCausalLM,
        Phi4MultimodalImageProcessor,
        Phi4MultimodalProcessor,
    )

    tok = vocabulary(image_token="<|image|>", audio_token="<|audio|>")
    config = Phi4MultimodalConfig(
        **text_config(len(tok), max_position_embeddings=2048),
        original_max_position_embeddings=2048,
        vision_config=dict(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            feature_layer=-1,
            image_size=64,
            crop_size=64,
            patch_size=2,
            image_token_id=tok.convert_tokens_to_ids("<|image|>"),
        ),
        audio_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_blocks=1,
            num_attention_heads=2,
            ext_pw_out_channel=16,
            depthwise_separable_out_channel=16,
            nemo_conv_channels=16,
            audio_token_id=tok.convert_tokens_to_ids("<|audio|>"),
        ),
    )
    images = Phi4MultimodalImageProcessor(
        size={"height": 64, "width": 64}, patch_size=2, dynamic_hd=1
    )
    processor: Any = Phi4MultimodalProcessor
    model = randomise(Phi4MultimodalForCausalLM(config))
    return model, processor(images, Phi4MultimodalFeatureExtractor(), tok)


def fuyu() -> tuple[Any, Any]:
    """Image patches come first; its processor refuses a text that holds their token."""
    from transformers import FuyuConfig, FuyuForCausalLM, FuyuImageProcessor, FuyuProcessor

    tok = vocabulary("|SPEAKER|", "|NEWLINE|")
    text = text_config(len(tok), num_key_value_heads=4)
    config = FuyuConfig(
        text_config={"model_type": "persimmon", **text},
        patch_size=14,
        image_size=28,
        image_token_id=tok.convert_tokens_to_ids("|SPEAKER|"),
    )
    sizes: dict[str, Any] = {
        "size": {"height": 28, "width": 28},
        "patch_size": {"height": 14, "width": 14},
    }
    images, processor = FuyuImageProcessor(**sizes), cast(Any, FuyuProcessor)
    return randomise(FuyuForCausalLM(config)), processor(images, tok)


def git() -> tuple[Any, Any]:
    """The states of an image stand in front of the text, without tokens."""
    from transformers import GitConfig, GitForCausalLM, GitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tok = tokenizer()
    config = GitConfig(
        vision_config=tower(),
        **text_config(len(tok)),
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor: Any = GitProcessor
    return randomise(GitForCausalLM(config)), processor(images, tok)


MODELS = {
    "chameleon": ("ChameleonForConditionalGeneration", chameleon),
    "phi4_multimodal": (
        "Phi4MultimodalForCausalLM",
        phi4_multimodal,
        "",
        {"unike": "no separate attention"},
    ),
    "fuyu": ("FuyuForCausalLM", fuyu, "how this family marks images"),
    "git": ("GitForCausalLM", git, "no list of transformer blocks"),
}
