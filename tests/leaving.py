"""Helpers for patches that leave errata: random changes of weights, and adapters on real models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import errata
from errata.core.model.backbone import Backbone
from errata.core.patch import Header
from errata.core.types import Edit, Prompt
from errata.patches.delta import Delta

ASKED = (Prompt.of("What is the colour of the thing?"), Prompt.of("Which shape?"))


def delta(
    backbone: Backbone,
    sites: Sequence[str],
    *,
    rank: int | None = 3,
    bias: bool = False,
    seed: int = 0,
    answer: str = "red",
    question: str = "",
) -> Delta:
    """A random change that moves the logits; without a rank dense."""
    rng = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, Tensor]] = {}
    for site in sites:
        into, out = backbone.weight(site)
        if rank is None:
            parts[site] = {"dense": torch.randn(out, into, generator=rng) * 0.2 / into**0.5}
        else:
            a = torch.randn(rank, into, generator=rng) / into**0.5
            parts[site] = {"A": a, "B": torch.randn(out, rank, generator=rng) * 0.3}
        if bias:
            parts[site]["bias"] = torch.randn(out, generator=rng) * 0.3
    head = Header(
        "hand",
        {"seed": seed},
        backbone=backbone.name,
        fingerprint=backbone.fingerprint(),
        dtype="float32",
        created=f"2026-01-0{1 + seed % 9}T00:00:00Z",
        notes={"style": backbone.style},
    )
    edit = Edit(Prompt.of(question or f"Which colour {seed}?"), answer, id=answer)
    return Delta(parts).with_header(head, [edit]).requires_grad_(False)


def asked(backbone: Backbone, *patches: Any, prompts: Sequence[Prompt] = ASKED) -> Tensor:
    """Logits of the prompts with these patches applied."""
    with torch.no_grad(), backbone.applied(*patches):
        return backbone.logits(backbone.encode(prompts)).float()


def with_peft(backbone: Any, folder: Path) -> tuple[Any, Backbone]:
    """(PeftModel, the same as a backbone) with the adapter in a folder."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder)).eval()
    return model, _wrapped(model, backbone)


def with_load_adapter(backbone: Any, folder: Path) -> tuple[Any, Backbone]:
    """(model, the same as a backbone) with the adapter loaded by transformers alone."""
    model = copy.deepcopy(backbone.model)
    model.load_adapter(str(folder))
    model.eval()
    return model, _wrapped(model, backbone)


def _wrapped(model: Any, backbone: Any) -> Backbone:
    processor = getattr(backbone, "processor", backbone.tokenizer)
    return errata.wrap(model, processor, name="adapted", style=backbone.style or None)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())
