"""Nearest neighbours among unit vectors, and the sentence encoders that make them."""

from __future__ import annotations

import torch
from torch import Tensor

from errata.networks.embedder import ENCODERS, choose, embed, embed_with_images

__all__ = ["ENCODERS", "choose", "embed", "embed_with_images", "nearest"]


def nearest(vectors: Tensor, query: Tensor, k: int) -> list[int]:
    """Indices of the k rows of `vectors` [n, d] with the largest cosine to `query` [d], sorted."""
    scores = vectors @ query.to(vectors.device)
    order: list[int] = torch.argsort(scores, descending=True, stable=True)[:k].tolist()
    return order
