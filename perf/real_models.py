"""Models of published shapes with random weights, and a `unike` state for them, built in seconds.

Shapes: d width, f FFN width, N stored entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import errata
from errata.backbones.hf_vlm import HfVlm
from errata.core.state import State

EDITED = 4
ENCODER = 1024
TRUTH = 512


@dataclass(frozen=True)
class Shape:
    """A text model and the vision model in front of it. `images`: tokens of one image."""

    family: str
    width: int
    ffn: int
    heads: int
    depth: int
    vocabulary: int
    images: int

    @property
    def gated(self) -> bool:
        return self.family != "opt"


SHAPES = {
    "llava-1.5-7b": Shape("llava", 4096, 11008, 32, 32, 32064, 576),
    "blip2-opt-2.7b": Shape("opt", 2560, 10240, 32, 32, 50304, 32),
    "minigpt4-7b": Shape("llama-qformer", 4096, 11008, 32, 32, 32000, 32),
}


class Pool:
    """Cheap random numbers: slices of one pool, each from another offset."""

    def __init__(self, seed: int = 0, size: int = (1 << 22) - 3) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.numbers = torch.randn(size, generator=self.rng)

    def fill(self, tensor: Tensor, scale: float) -> Tensor:
        flat, at = tensor.detach().view(-1), 0
        source = (self.numbers * scale).to(tensor.dtype).to(tensor.device)
        offset = int(torch.randint(len(source), (1,), generator=self.rng))
        while at < len(flat):
            part = source[offset : offset + len(flat) - at]
            flat[at : at + len(part)] = part
            at, offset = at + len(part), 0
        return tensor


def random_model(name: str, depth: int, vision: int | None, dtype: str, device: str) -> HfVlm:
    """A model of the shape, `depth` text blocks high, with the bundled model's tokenizer."""
    from transformers.initialization import no_init_weights

    made, processor = _parts(SHAPES[name], depth, vision)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with no_init_weights():
            model = made()
    finally:
        torch.set_default_dtype(before)
    pool = Pool()
    for path, p in model.named_parameters():
        if p.dim() > 1:
            pool.fill(p.data, 1.0 / p.shape[-1] ** 0.5 if "embed" not in path else 0.5)
        else:
            p.data.fill_(1.0 if "norm" in path and path.endswith("weight") else 0.0)
    return HfVlm(model.to(device), processor, name=f"random-{name}-{depth}")


def _text(shape: Shape, depth: int, tok: Any) -> dict[str, Any]:
    from transformers import LlamaConfig, OPTConfig

    common: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": depth,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": 2048,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    if not shape.gated:
        config: Any = OPTConfig(**common, ffn_dim=shape.ffn, word_embed_proj_dim=shape.width)
    else:
        config = LlamaConfig(**common, intermediate_size=shape.ffn)
    return config.to_dict()  # type: ignore[no-any-return]


def _parts(shape: Shape, depth: int, vision: int | None) -> tuple[Callable[[], Any], Any]:
    """A function that makes the model, and its processor."""
    import transformers as hf
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    micro: Any = errata.load("micro-vlm")
    tok = micro.tokenizer
    text = _text(shape, depth, tok)
    if shape.family == "llava":
        config: Any = hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=vision or 24,
                num_attention_heads=16,
                image_size=336,
                patch_size=14,
                projection_dim=768,
            ),
            text_config=hf.LlamaConfig(**text),
            image_token_index=micro.image_id,
            image_seq_length=shape.images,
        )
        images = CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        )
        processor: Any = hf.LlavaProcessor(
            images, tok, patch_size=14, vision_feature_select_strategy="default",
            image_token=micro.image_token, num_additional_image_tokens=1,
        )  # fmt: skip
        return lambda: hf.LlavaForConditionalGeneration(config), processor
    processor = hf.Blip2Processor(
        BlipImageProcessorPil(size={"height": 224, "width": 224}), tok, num_query_tokens=32
    )
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(num_hidden_layers=vision or 39).to_dict(),
        qformer_config=hf.Blip2QFormerConfig().to_dict(),
        text_config=text,
        num_query_tokens=shape.images,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    return lambda: hf.Blip2ForConditionalGeneration(config), processor


def random_state(width: int, layers: Sequence[int], entries: int) -> State:
    """A state of the form that `prepare` stores, with random numbers in half precision."""
    pool, d = Pool(1), width
    w, t = min(ENCODER, 2 * d), min(TRUTH, 2 * d)
    tensors: dict[str, Tensor] = {}

    def put(name: str, *size: int, scale: float = 1.0) -> None:
        tensors[name] = pool.fill(torch.empty(*size, dtype=torch.float16), scale)

    for i in layers:
        for part in ("sem", "pos", "neg"):
            put(f"text.{i}/{part}", entries, d)
        put(f"text.{i}/centre", d, scale=0.1)
        for space, out in (("enc_sem", d), ("enc_tru", t)):
            sizes = [d, w, w, out]
            for j, (into, to) in enumerate(pairwise(sizes)):
                put(f"text.{i}/{space}/w{j}", to, into, scale=into**-0.5)
                put(f"text.{i}/{space}/b{j}", to, scale=0.0)
            put(f"text.{i}/{space}/mean", d, scale=0.0)
            tensors[f"text.{i}/{space}/std"] = torch.ones(d).half()
        put(f"text.{i}/decoder/semantic", d, d)
        put(f"text.{i}/decoder/truthfulness", d, t)
        for space in ("semantic", "truthfulness"):
            put(f"text.{i}/zeta/{space}", d, scale=d**-0.5)
        tensors[f"text.{i}/zeta/length"] = torch.tensor(1.0).half()
    return State("unike", {"random": True, "entries": entries}, tensors)
