"""Site inputs of unrelated training prompts, used as negatives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from errata.core.kinds import family
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import Recorder
from errata.core.state import PrepareContext
from errata.core.types import Case, Prompt

CHUNK = 32

#: Kinds of probes whose prompts the neurons are kept silent on; the edits' own are `reliability`.
MEMORY_KINDS = family("edit", "far_locality", "near_locality")


def site_inputs(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    sites: Sequence[str],
    count: int,
    rng: torch.Generator,
    work: PrepareContext | None = None,
) -> dict[str, Tensor]:
    """Inputs [count, n] of each site: half at last prompt tokens, half anywhere (or fewer).

    The last prompt token, where the answer begins, gets as much weight as all others together.
    """
    last: dict[str, list[Tensor]] = {s: [] for s in sites}
    other: dict[str, list[Tensor]] = {s: [] for s in sites}
    chunks = [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]
    task = partial(_inputs, sites=tuple(sites))
    for _, found in (work or PrepareContext()).mapped(backbone, task, chunks):
        for site, (at_last, elsewhere) in found.items():
            last[site].append(at_last)
            other[site].append(elsewhere)
    out = {}
    n_last = sum(len(v) for v in last[sites[0]]) if sites else 0
    pick_last = torch.randperm(n_last, generator=rng)[: count // 2]
    n_other = sum(len(v) for v in other[sites[0]]) if sites else 0
    pick_other = torch.randperm(n_other, generator=rng)[: count - len(pick_last)]
    for site in sites:
        out[site] = torch.cat(
            [torch.cat(last[site])[pick_last], torch.cat(other[site])[pick_other]]
        )
    return out


def _inputs(
    backbone: Backbone, prompts: Sequence[Prompt], *, sites: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per site, the inputs at the last token of each prompt, and at all others."""
    batch = backbone.encode(prompts)
    watch = Recorder(sites)
    with torch.no_grad(), backbone.applied(watch):
        backbone.logits(batch)
    real = batch.mask.bool().clone()
    rows = torch.arange(batch.size, device=real.device)
    real[rows, batch.lengths - 1] = False
    found = {}
    for site in sites:
        x = watch.x[site].float().cpu()
        found[site] = x[rows.cpu(), (batch.lengths - 1).cpu()], x[real.cpu()]
    return found


def locality_prompts(
    cases: Sequence[Case],
    count: int,
    rng: torch.Generator,
    kinds: Sequence[str] = MEMORY_KINDS,
) -> list[Prompt]:
    """`count` different prompts of training cases, drawn from the probes of some kinds."""
    pool: dict[Prompt, None] = {}
    for case in cases:
        if "reliability" in kinds:
            pool.setdefault(case.edit.prompt)
        for probe in case.probes:
            if probe.kind in kinds and not probe.kind_info.main:
                pool.setdefault(probe.prompt)
    prompts = list(pool)
    return [prompts[i] for i in torch.randperm(len(prompts), generator=rng)[:count].tolist()]
