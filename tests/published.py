"""MiniGPT-4 as it is published, scaled down: three `.pth` files and the folder of a Llama.

The names are the published ones, and the forward below is written from them, in plain torch: it
knows nothing of transformers' names for tower, Q-Former and projection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from errata.backbones.minigpt4.convert import Published
from errata.testing.tiny_models import WORDS, randomise

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Widths:
    """Sizes of a published model; the defaults are the scaled-down ones."""

    tower: int = 24
    tower_ffn: int = 40
    tower_blocks: int = 3
    tower_heads: int = 3
    patch: int = 7
    side: int = 28
    qformer: int = 16
    qformer_ffn: int = 20
    qformer_layers: int = 3
    qformer_heads: int = 2
    queries: int = 5
    text: int = 32


SMALL = Widths()
REAL = Widths(1408, 6144, 39, 16, 14, 224, 768, 3072, 12, 12, 32, 4096)


def tower_shapes(w: Widths) -> dict[str, tuple[int, ...]]:
    """As in `eva_vit_g.pth`, without the part `visual_encoder.` that they have in MiniGPT-4."""
    d, grid = w.tower, w.side // w.patch
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, grid * grid + 1, d),
        "patch_embed.proj.weight": (d, 3, w.patch, w.patch),
        "patch_embed.proj.bias": (d,),
    }
    for i in range(w.tower_blocks):
        b = f"blocks.{i}"
        shapes |= {f"{b}.{n}.{e}": (d,) for n in ("norm1", "norm2") for e in ("weight", "bias")}
        shapes |= {f"{b}.attn.q_bias": (d,), f"{b}.attn.v_bias": (d,)}
        shapes |= {f"{b}.attn.qkv.weight": (3 * d, d)}
        shapes |= {f"{b}.attn.proj.weight": (d, d), f"{b}.attn.proj.bias": (d,)}
        shapes |= {f"{b}.mlp.fc1.weight": (w.tower_ffn, d), f"{b}.mlp.fc1.bias": (w.tower_ffn,)}
        shapes |= {f"{b}.mlp.fc2.weight": (d, w.tower_ffn), f"{b}.mlp.fc2.bias": (d,)}
    return shapes


def qformer_shapes(w: Widths, *, with_text: bool = True) -> dict[str, tuple[int, ...]]:
    """with_text: also what MiniGPT-4 leaves out."""
    q, f = w.qformer, w.qformer_ffn
    shapes: dict[str, tuple[int, ...]] = {
        "ln_vision.weight": (w.tower,),
        "ln_vision.bias": (w.tower,),
        "query_tokens": (1, w.queries, q),
        "Qformer.bert.embeddings.LayerNorm.weight": (q,),
        "Qformer.bert.embeddings.LayerNorm.bias": (q,),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    for j in range(w.qformer_layers):
        b = f"Qformer.bert.encoder.layer.{j}"
        for kind in ("attention", "crossattention")[: 2 - j % 2]:
            wide = q if kind == "attention" else w.tower
            linear(f"{b}.{kind}.self.query", q, q)
            linear(f"{b}.{kind}.self.key", q, wide)
            linear(f"{b}.{kind}.self.value", q, wide)
            linear(f"{b}.{kind}.output.dense", q, q)
            shapes |= {f"{b}.{kind}.output.LayerNorm.{e}": (q,) for e in ("weight", "bias")}
        for end in ("_query", "")[: 1 + with_text]:
            linear(f"{b}.intermediate{end}.dense", f, q)
            linear(f"{b}.output{end}.dense", q, f)
            shapes |= {f"{b}.output{end}.LayerNorm.{e}": (q,) for e in ("weight", "bias")}
    if with_text:
        linear("t5_proj", 12, q)
        shapes["Qformer.bert.embeddings.word_embeddings.weight"] = (11, q)
        shapes["Qformer.bert.embeddings.position_embeddings.weight"] = (9, q)
        shapes["Qformer.cls.predictions.bias"] = (11,)
    return shapes


def checkpoint_shapes(w: Widths) -> dict[str, tuple[int, ...]]:
    return {"llama_proj.weight": (w.text, w.qformer), "llama_proj.bias": (w.text,)}


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int, scale: float = 1.0) -> Named:
    """Norms near one, vectors small, matrices so that they keep about the size of their input."""
    rng, out = torch.Generator().manual_seed(seed), Named()
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            is_norm = "norm" in name.lower() or "ln_" in name
            out[name] = noise * 0.1 + (1.0 if is_norm and name.endswith("weight") else 0.0)
        else:
            out[name] = noise * scale / shape[-1] ** 0.5
    return out


def llama_tokenizer() -> Any:
    """BPE with byte fallback and a space in front of a text, as Llama's; it knows `###`."""
    from transformers import LlamaTokenizer

    letters = [chr(c) for c in range(33, 127)]
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>"])}
    vocab |= {f"<0x{b:02X}>": len(vocab) + b for b in range(256)}
    for token in ["▁", *letters]:
        vocab.setdefault(token, len(vocab))
    merges = [("#", "#"), ("▁", "##"), ("▁##", "#")]
    for word in (*WORDS, *("▁" + word for word in WORDS), "Human", "Assistant"):
        part = word[0]
        for letter in word[1:]:
            merges.append((part, letter))
            part += letter
    merges = list(dict.fromkeys(merges))
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return LlamaTokenizer(vocab=vocab, merges=merges)  # type: ignore[no-untyped-call]


def save_llama(folder: Path, *, width: int = 32, dtype: torch.dtype = torch.float32) -> None:
    """In several safetensors files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tok = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = randomise(LlamaForCausalLM(config), seed=5).to(dtype)
    model.save_pretrained(folder, max_shard_size="40KB")
    tok.save_pretrained(folder)


def save_published(folder: Path, w: Widths = SMALL) -> Published:
    """All files. The tower's numbers are small, so that the epsilon behind it counts."""
    vicuna = folder / "vicuna"
    save_llama(vicuna, width=w.text)
    tower = random_tensors(tower_shapes(w), 1, 0.05)
    tower = {k: v * 0.05 if k.endswith("bias") else v for k, v in tower.items()}
    qformer = random_tensors(qformer_shapes(w), 2)
    qformer["Qformer.bert.embeddings.position_ids"] = torch.arange(9)[None]
    checkpoint = random_tensors(checkpoint_shapes(w), 3)
    state = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    more = {"optimizer": state, "config": {"model": {"arch": "minigpt4"}}, "scaler": {}, "epoch": 4}
    torch.save(tower, folder / "vit.pth")
    torch.save({"model": qformer}, folder / "qformer.pth")
    torch.save({"model": checkpoint, **more}, folder / "checkpoint.pth")
    return Published(folder / "vit.pth", folder / "qformer.pth", folder / "checkpoint.pth", vicuna)


# -- the published forward -------------------------------------------------------------------------


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[n, d], [m, d], [m, d] -> [n, d]."""
    size = q.shape[-1] // heads
    parts = []
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        weights = torch.softmax(q[:, at] @ k[:, at].T / size**0.5, dim=-1)
        parts.append(weights @ v[:, at])
    return torch.cat(parts, dim=-1)


def _norm(x: Tensor, named: Named, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], named[f"{name}.weight"], named[f"{name}.bias"], eps)


def _linear(x: Tensor, named: Named, name: str) -> Tensor:
    return x @ named[f"{name}.weight"].T + named[f"{name}.bias"]


def tower_output(pixels: Tensor, t: Named, w: Widths) -> Tensor:
    """[3, side, side] -> [patches + 1, d]."""
    grid = w.side // w.patch
    cut = pixels.reshape(3, grid, w.patch, grid, w.patch).permute(1, 3, 0, 2, 4)
    kernel = t["patch_embed.proj.weight"].reshape(w.tower, -1)
    x = cut.reshape(grid * grid, -1) @ kernel.T + t["patch_embed.proj.bias"]
    x = torch.cat([t["cls_token"][0], x]) + t["pos_embed"][0]
    for i in range(w.tower_blocks):
        b = f"blocks.{i}"
        y = _norm(x, t, f"{b}.norm1", 1e-6)
        q, k, v = (y @ t[f"{b}.attn.qkv.weight"].T).chunk(3, dim=-1)
        q, v = q + t[f"{b}.attn.q_bias"], v + t[f"{b}.attn.v_bias"]
        x = x + _linear(_attend(q, k, v, w.tower_heads), t, f"{b}.attn.proj")
        y = F.gelu(_linear(_norm(x, t, f"{b}.norm2", 1e-6), t, f"{b}.mlp.fc1"))
        x = x + _linear(y, t, f"{b}.mlp.fc2")
    return x


def qformer_output(image: Tensor, n: Named, w: Widths) -> Tensor:
    """[patches + 1, d] -> [queries, q]: BERT's layers, each with its norm behind it."""
    x = _norm(n["query_tokens"][0], n, "Qformer.bert.embeddings.LayerNorm", 1e-12)
    for j in range(w.qformer_layers):
        b = f"Qformer.bert.encoder.layer.{j}"
        for kind in ("attention", "crossattention")[: 2 - j % 2]:
            seen = x if kind == "attention" else image
            name = f"{b}.{kind}.self"
            q = _linear(x, n, f"{name}.query")
            k, v = _linear(seen, n, f"{name}.key"), _linear(seen, n, f"{name}.value")
            y = _linear(_attend(q, k, v, w.qformer_heads), n, f"{b}.{kind}.output.dense")
            x = _norm(x + y, n, f"{b}.{kind}.output.LayerNorm", 1e-12)
        y = F.gelu(_linear(x, n, f"{b}.intermediate_query.dense"))
        y = _linear(y, n, f"{b}.output_query.dense")
        x = _norm(x + y, n, f"{b}.output_query.LayerNorm", 1e-12)
    return x


def pixels_of(path: str, side: int) -> Tensor:
    """[3, side, side]: bicubic scaling of the picture, CLIP's mean and deviation."""
    with Pillow.open(path) as picture:
        scaled = picture.convert("RGB").resize((side, side), Pillow.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(scaled, dtype=np.float32) / 255).permute(2, 0, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return (x - mean) / deviation


def _doubled(named: Named) -> Named:
    return {k: v.double() for k, v in named.items()}


class Reference:
    """The published model: parts from their own files, spliced by hand, in double precision."""

    def __init__(self, parts: Published, w: Widths = SMALL, eps: float = 1e-5) -> None:
        from transformers import AutoTokenizer, LlamaForCausalLM

        self.w, self.eps = w, eps
        self.tower = _doubled(torch.load(parts.vit, weights_only=True))
        self.qformer = _doubled(torch.load(parts.qformer, weights_only=True)["model"])
        self.checkpoint = _doubled(torch.load(parts.checkpoint, weights_only=True)["model"])
        self.llama: Any = LlamaForCausalLM.from_pretrained(parts.vicuna).eval().double()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(parts.vicuna)

    def image(self, path: str) -> Tensor:
        """[queries, h]."""
        x = tower_output(pixels_of(path, self.w.side).double(), self.tower, self.w)
        x = _norm(x, self.qformer, "ln_vision", self.eps)
        x = qformer_output(x, self.qformer, self.w)
        return _linear(x, self.checkpoint, "llama_proj")

    @torch.no_grad()
    def embedded(self, prompt: str, images: Iterable[str], answer: str = "") -> Tensor:
        """[T, h] of a prompt with `<ImageHere>`; each piece tokenised apart, BOS in front."""
        table, images = self.llama.get_input_embeddings(), list(images)
        out = []
        for n, piece in enumerate(prompt.split("<ImageHere>")):
            if n:
                out.append(self.image(images[n - 1]))
            ids = self.tokenizer(piece, add_special_tokens=False).input_ids
            ids = ids if n else [1, *ids]
            out.append(table(torch.tensor(ids, dtype=torch.long)))
        if answer:
            ids = self.tokenizer(answer, add_special_tokens=False).input_ids
            out.append(table(torch.tensor(ids)))
        return torch.cat(out)

    @torch.no_grad()
    def logits(self, prompt: str, images: Iterable[str], answer: str = "") -> Tensor:
        """[1 + M, V] at the prompt's last token and at the answer's tokens."""
        x = self.embedded(prompt, images, answer)
        m = len(self.embedded(prompt, images))
        logits: Tensor = self.llama(inputs_embeds=x[None]).logits[0, m - 1 :]
        return logits

    @torch.no_grad()
    def says(self, prompt: str, images: Iterable[str], most: int) -> list[int]:
        """Greedy tokens, up to the end token."""
        x, ids = self.embedded(prompt, images), list[int]()
        while len(ids) < most:
            best = int(self.llama(inputs_embeds=x[None]).logits[0, -1].argmax())
            if best == 2:
                break
            ids.append(best)
            x = torch.cat([x, self.llama.get_input_embeddings()(torch.tensor([best]))])
        return ids
