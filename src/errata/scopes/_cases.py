"""Training questions for a scope: which belong to the edit of their case, and which do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.kinds import family
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import outputs_at
from errata.core.model.scope import CHUNK
from errata.core.types import Case, Probe, Prompt

INSIDE = family("edit", "generality")
OUTSIDE = family("far_locality", "near_locality")


def some_of(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """`count` cases, drawn."""
    rng = torch.Generator().manual_seed(seed)
    return [cases[i] for i in torch.randperm(len(cases), generator=rng)[:count].tolist()]


@dataclass(frozen=True)
class Labelled:
    """Probes of some cases: probe n is about the edit of case of_case[n]; kind: its name."""

    cases: tuple[Case, ...]
    probes: tuple[Probe, ...]
    of_case: Tensor

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Labelled:
        pairs = [
            (i, p) for i, c in enumerate(cases) for p in c.probes if p.kind in (*INSIDE, *OUTSIDE)
        ]
        return cls(
            tuple(cases), tuple(p for _, p in pairs),
            torch.tensor([i for i, _ in pairs], dtype=torch.long),
        )  # fmt: skip

    @property
    def edits(self) -> list[Prompt]:
        return [c.edit.prompt for c in self.cases]

    @property
    def asked(self) -> list[Prompt]:
        return [p.prompt for p in self.probes]

    def by_kind(self, values: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values [P] of the probes by kind: (of those in scope, of those out of it)."""
        index: dict[str, list[int]] = {}
        for n, p in enumerate(self.probes):
            index.setdefault(p.kind, []).append(n)
        parts = {kind: values[at] for kind, at in index.items()}
        return (
            {k: v for k, v in parts.items() if k in INSIDE},
            {k: v for k, v in parts.items() if k in OUTSIDE},
        )


def balanced(
    inside: Mapping[str, Tensor], outside: Mapping[str, Tensor], threshold: float
) -> float:
    """Mean accuracy in scope and out of it, each kind with the same weight."""
    hit = torch.stack([(v >= threshold).float().mean() for v in inside.values()]).mean()
    kept = torch.stack([(v < threshold).float().mean() for v in outside.values()]).mean()
    return round(float(hit + kept) / 2, 4)


def last_states(
    backbone: Backbone, prompts: Sequence[Prompt], sites: Sequence[str]
) -> dict[str, Tensor]:
    """Site -> [n, d] the hidden state there at each prompt's last token."""
    parts: dict[str, list[Tensor]] = {s: [] for s in sites}
    for start in range(0, len(prompts), CHUNK):
        batch = backbone.encode(prompts[start : start + CHUNK])
        outputs = outputs_at(backbone, batch, sites)
        rows, last = torch.arange(batch.size), batch.lengths - 1
        for s in sites:
            at = outputs[s]
            parts[s].append(at[rows.to(at.device), last.to(at.device)].float().cpu())
    return {s: torch.cat(p) for s, p in parts.items()}
