"""Models whose processor puts the image in front: BLIP-2, InstructBLIP, Kosmos-2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers as hf

from errata.testing.tiny_models import randomise
from errata.testing.zoo._parts import square, tower, vocabulary

_QFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "encoder_hidden_size": 24,
}


def _opt(size: int) -> dict[str, Any]:
    return hf.OPTConfig(
        vocab_size=size,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ).to_dict()


def _t5(size: int) -> dict[str, Any]:
    return hf.T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0
    ).to_dict()


def _blip2(text: Callable[[int], dict[str, Any]]) -> tuple[Any, Any]:
    tok = vocabulary()
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**tower()).to_dict(),
        qformer_config=hf.Blip2QFormerConfig(vocab_size=len(tok), **_QFORMER).to_dict(),
        text_config=text(len(tok)),
        num_query_tokens=4,
        image_token_index=3,
    )
    processor = hf.Blip2Processor(hf.BlipImageProcessor(size=square(28)), tok, num_query_tokens=4)
    return randomise(hf.Blip2ForConditionalGeneration(config)), processor


def blip2() -> tuple[Any, Any]:
    return _blip2(_opt)


def blip2_t5() -> tuple[Any, Any]:
    return _blip2(_t5)


def instructblip() -> tuple[Any, Any]:
    tok, question = vocabulary(), vocabulary()
    config = hf.InstructBlipConfig(
        vision_config=hf.InstructBlipVisionConfig(**tower()).to_dict(),
        qformer_config=hf.InstructBlipQFormerConfig(vocab_size=len(tok), **_QFORMER).to_dict(),
        text_config=_opt(len(tok)),
        num_query_tokens=4,
        image_token_index=3,
    )
    processor = hf.InstructBlipProcessor(
        hf.BlipImageProcessor(size=square(28)), tok, question, num_query_tokens=4
    )
    return randomise(hf.InstructBlipForConditionalGeneration(config)), processor


def florence2() -> tuple[Any, Any]:
    tok = vocabulary(image_token="<image>")
    tok.image_token_id = 3
    vision = {
        "embed_dim": [8, 16],
        "depths": [1, 1],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 2,
        "projection_dim": 32,
    }
    config = hf.Florence2Config(
        vision_config=vision,
        text_config=hf.BartConfig(
            vocab_size=len(tok),
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
        ).to_dict(),
        image_token_id=3,
    )
    images = hf.CLIPImageProcessor(size=square(28), do_center_crop=False)
    images.image_seq_length = 17
    processor = hf.Florence2Processor(images, tok)
    return randomise(hf.Florence2ForConditionalGeneration(config)), processor


def kosmos2() -> tuple[Any, Any]:
    tok = vocabulary()
    tok.unk_token = "<|video_pad|>"
    images = hf.CLIPImageProcessor(size=square(28), crop_size=square(28))
    processor = hf.Kosmos2Processor(images, tok, num_patch_index_tokens=4)
    config = hf.Kosmos2Config(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "max_position_embeddings": 512,
            "embed_dim": 32,
            "layers": 4,
            "ffn_dim": 64,
            "attention_heads": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config=tower(),
        latent_query_num=64,
    )
    return randomise(hf.Kosmos2ForConditionalGeneration(config)), processor


#: name -> (class, function that makes model and processor, words with which it is refused)
MODELS: Mapping[str, tuple[Any, ...]] = {
    "blip2": ("Blip2ForConditionalGeneration", blip2),
    "blip2_t5": ("Blip2ForConditionalGeneration", blip2_t5, "encoder-decoder"),
    "instructblip": ("InstructBlipForConditionalGeneration", instructblip),
    "kosmos2": ("Kosmos2ForConditionalGeneration", kosmos2),
    "florence2": ("Florence2ForConditionalGeneration", florence2, "encoder-decoder"),
}
