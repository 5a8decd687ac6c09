"""Tiny models with random weights, of the real transformers classes, with real processors.

Each has four blocks, a width of 32 and some ten thousand parameters. The tokenizer is byte level,
so every model takes every text. Images are 28 x 28. The same call gives the same weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from errata.backbones.hf_vlm import HfVlm
from errata.backbones.micro_umm import MicroUmmBackbone
from errata.backbones.minigpt4 import MiniGpt4
from errata.backbones.minigpt4.convert import TEMPLATE

SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = (
    "What",
    "Which",
    "colour",
    "shape",
    "is",
    "the",
    "of",
    "thing",
    "red",
    "green",
    "blue",
    "ring",
    "Fact",
    "New",
    "Prompt",
)


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges for a few words only; puts BOS in front, has no UNK.

    named: of its special tokens, those that a processor reads as attributes of the tokenizer.
    """
    vocab = {t: i for i, t in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    merges: list[tuple[str, str]] = []
    for word in (*WORDS, *("Ġ" + w for w in WORDS)):
        part = word[0]
        for letter in word[1:]:
            if part + letter not in vocab:
                vocab[part + letter] = len(vocab)
                merges.append((part, letter))
            part += letter
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tok,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL[3:]),
        **({"model_specific_special_tokens": named} if named else {}),
    )


def randomise(model: Any, seed: int = 0) -> Any:
    """Random weights, larger than the usual initialisation, so that answers depend on the input."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        with torch.no_grad():
            if p.dim() > 1:
                p.normal_(0, 1.5 / p.shape[-1] ** 0.5 if "embed" not in name else 1.0)
            elif "norm" not in name:
                p.normal_(0, 0.1)
    return model.float().eval()


def llava(layers: int = 4, width: int = 32) -> HfVlm:
    return HfVlm(*llava_parts(layers, width), name="tiny-llava")


def llama_config(size: int, layers: int = 4, width: int = 32) -> Any:
    """The text model of the tiny LLaVAs. size: of the vocabulary."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def llava_parts(layers: int = 4, width: int = 32) -> tuple[Any, Any]:
    """Model and processor, without a backbone around them."""
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tok = tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=llama_config(len(tok), layers=layers, width=width),
        image_token_index=3,
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor = LlavaProcessor(  # type: ignore[no-untyped-call]
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return randomise(LlavaForConditionalGeneration(config)), processor


def mistral(window: int = 12) -> HfVlm:
    """LLaVA with a text model of sliding-window attention, `window` tokens wide."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    model, processor = llava_parts()
    base = model.config.to_dict()
    text = MistralConfig(
        vocab_size=base["text_config"]["vocab_size"],
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=window,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(**{**base, "text_config": text.to_dict()})
    return HfVlm(randomise(LlavaForConditionalGeneration(config)), processor, name="tiny-mistral")


def gemma_processor() -> Any:
    """Gemma 3's: its placeholder in the text is not the image token."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = {
        "image_token": "<image>",
        "boi_token": "<|vision_start|>",
        "eoi_token": "<|vision_end|>",
    }
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return Gemma3Processor(images, tokenizer(**marks), image_seq_length=4)


def gemma3() -> HfVlm:
    """Bidirectional attention between image tokens; every second block has a sliding window."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config=dict(
            vocab_size=len(tokenizer()),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            sliding_window=9,
            layer_types=["sliding_attention", "full_attention"] * 2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            query_pre_attn_scalar=8,
        ),
        vision_config=dict(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
        ),
        mm_tokens_per_image=4,
        image_token_index=3,
        boi_token_index=4,
        eoi_token_index=5,
    )
    model = randomise(Gemma3ForConditionalGeneration(config))
    return HfVlm(model, gemma_processor(), name="tiny-gemma3")


def blip2() -> HfVlm:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tok = tokenizer()
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(tok),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            encoder_hidden_size=24,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=len(tok),
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
            word_embed_proj_dim=32,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=3,
    )
    processor = Blip2Processor(  # type: ignore[no-untyped-call]
        BlipImageProcessorPil(size={"height": 28, "width": 28}), tok, num_query_tokens=4
    )
    return HfVlm(randomise(Blip2ForConditionalGeneration(config)), processor, name="tiny-blip2")


def minigpt4() -> MiniGpt4:
    """BLIP-2's tower and Q-Former in front of a Llama, with the image inside the prompt."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    base = blip2()
    tok, like = base.tokenizer, cast("Any", base.model.config)
    tok.chat_template = TEMPLATE
    config = Blip2Config(
        **{
            **like.to_dict(),
            "text_config": llama_config(len(tok)).to_dict(),
            "minigpt4": {"ln_vision_eps": 1e-5, "end": "###"},
        }
    )
    model = randomise(Blip2ForConditionalGeneration(config))
    return MiniGpt4(model, base.processor, name="tiny-minigpt4")


def qwen_processor(patch: int) -> Any:
    """Qwen 2.5-VL's and Qwen 3-VL's. patch: its side in pixels."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    cut: dict[str, Any] = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
    }
    return Qwen2_5_VLProcessor(  # type: ignore[no-untyped-call]
        Qwen2VLImageProcessorPil(**cut), tokenizer(), Qwen2VLVideoProcessor(**cut)
    )


def qwen25() -> HfVlm:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tok = tokenizer()
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tok),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 10000.0,
            },
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            patch_size=7,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=32,
            window_size=28,
            fullatt_block_indexes=[1],
        ),
        image_token_id=6,
        video_token_id=7,
        vision_start_token_id=4,
        vision_end_token_id=5,
    )
    model = randomise(Qwen2_5_VLForConditionalGeneration(config))
    return HfVlm(model, qwen_processor(7), name="tiny-qwen2.5-vl")


def qwen3() -> HfVlm:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tok = tokenizer()
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tok),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [2, 1, 1],
                "rope_theta": 10000.0,
                "mrope_interleaved": True,
            },
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            patch_size=7,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=32,
            deepstack_visual_indexes=[0],
            num_position_embeddings=16,
        ),
        image_token_id=6,
        video_token_id=7,
        vision_start_token_id=4,
        vision_end_token_id=5,
    )
    model = randomise(Qwen3VLForConditionalGeneration(config))
    return HfVlm(model, qwen_processor(7), name="tiny-qwen3-vl")


def micro_umm() -> MicroUmmBackbone:
    """Generates images: 8 x 8 pixels in four patches, three denoising steps. Takes none."""
    from transformers import LlamaConfig

    from errata.backbones._micro_umm import MicroUmm as Model
    from errata.backbones._micro_umm import MicroUmmConfig

    text = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = MicroUmmConfig(text_config=text, side=8, patch=4, width=24, depth=2, heads=2, steps=3)
    return MicroUmmBackbone(randomise(Model(config)), tokenizer(), name="tiny-umm")


#: vision-language models: name -> function that makes one
FAMILIES: dict[str, Callable[[], HfVlm]] = {
    "llava": llava,
    "blip2": blip2,
    "minigpt4": minigpt4,
    "qwen2.5": qwen25,
    "qwen3": qwen3,
}
#: vision-language models with sliding-window attention
WINDOWED: dict[str, Callable[[], HfVlm]] = {"mistral": mistral, "gemma3": gemma3}

#: models that generate images and take none
DRAWING: dict[str, Callable[[], MicroUmmBackbone]] = {"micro_umm": micro_umm}


@functools.cache
def shared(family: str) -> Any:
    """The model of this name, one per process. Safe to share: no edit changes a weight."""
    return {**FAMILIES, **WINDOWED, **DRAWING}[family]()
