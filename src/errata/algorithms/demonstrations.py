"""Demonstrations for in-context editing, made from training cases.

Source: EasyEdit's multimodal IKE (14cea82): copy, update and retain, one line each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.types import Case, Edit
from errata.networks.embedder import embed, nearest


def corpus(
    backbone: Backbone, cases: Sequence[Case], count: int, encoder: str, rng: torch.Generator
) -> tuple[list[str], Tensor]:
    """Lines of `count` cases (or fewer), and their unit vectors [lines, d]."""
    order = torch.randperm(len(cases), generator=rng)[:count].tolist()
    lines = [line for i in order for line in demonstrations(cases[i])]
    return lines, embed(lines, encoder, backbone) if lines else torch.empty(0, 0)


def similar(
    backbone: Backbone, edit: Edit, lines: Sequence[str], vectors: Tensor, encoder: str, count: int
) -> tuple[str, ...]:
    """The `count` lines most similar to the copy line of the edit, the most similar first."""
    vector = embed([copy_line(edit)], encoder, backbone)[0]
    return tuple(lines[i] for i in nearest(vectors.float(), vector, count))


def copy_line(edit: Edit) -> str:
    """The demonstration that asks for the new fact in its own words."""
    fact = f"{edit.prompt.text} {edit.target.strip()}"
    return f"New Fact: {fact}\nPrompt: {fact}\n\n"


def demonstrations(case: Case) -> list[str]:
    """Copy, update and retain: the three lines that a training case gives."""
    x, y = case.edit.prompt.text, case.edit.target.strip()
    lines = [copy_line(case.edit)]
    for kind in ("t_generality", "t_locality"):
        probe = next((p for p in case.probes if p.kind == kind), None)
        if probe is not None:
            answer = y if kind == "t_generality" else probe.reference.strip()
            lines.append(f"New Fact: {x} {y}\nPrompt: {probe.prompt.text} {answer}\n\n")
    return lines
