"""Triplets (question, true answer, the model's own wrong answer) and their hidden states.

Source: UniKE App. C. The wrong answer is the greedy answer of the model, so that questions that it
answers rightly give no triplet. Cases with a counterfactual target are not used, since it is false.

Shapes: n triplets, d width; states per block are those that enter it, before its norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.model.recorder import EarlyExitRecorder, run_until_enough
from errata.core.state import PrepareContext
from errata.core.text import same_answer
from errata.core.types import Case, Prompt

CHUNK = 32
EXTRA_TOKENS = 8


@dataclass(frozen=True)
class Triplet:
    """subject: what the question is about. kind: the attribute asked for. finished: the wrong
    answer ended by itself.
    """

    prompt: Prompt
    true: str
    wrong: str
    subject: str
    kind: str
    finished: bool


@dataclass(frozen=True)
class TripletStates:
    """[n, d] per block: at the last token of the question, of question + true, + wrong answer."""

    sem: dict[int, Tensor]
    pos: dict[int, Tensor]
    neg: dict[int, Tensor]


def usable(cases: Sequence[Case]) -> list[Case]:
    """Cases whose target is true."""
    return [c for c in cases if c.origin != "counterfactual" and c.edit.target.strip()]


def collect(
    backbone: Backbone, cases: Sequence[Case], work: PrepareContext | None = None
) -> tuple[list[Triplet], dict[str, int]]:
    """Triplets of the questions that the model gets wrong, and counts by kind."""
    triplets: list[Triplet] = []
    right = 0
    chunks = [cases[start : start + CHUNK] for start in range(0, len(cases), CHUNK)]
    for _, (wrong, known) in (work or PrepareContext()).mapped(backbone, _answered, chunks):
        triplets += wrong
        right += known
    counts = Counter(f"asked {t.kind or 'anything'}" for t in triplets)
    counts["answer not finished"] = sum(not t.finished for t in triplets)
    counts["answered rightly, not used"] = right
    counts["empty answer, not used"] = len(cases) - right - len(triplets)
    return triplets, dict(sorted(counts.items()))


def _answered(backbone: Backbone, cases: Sequence[Case]) -> tuple[list[Triplet], int]:
    """Triplets of the questions that are answered wrongly, and how many are answered rightly."""
    triplets: list[Triplet] = []
    right = 0
    batch = backbone.encode([c.edit.prompt for c in cases], [c.edit.target for c in cases])
    caps = [len(t) + EXTRA_TOKENS for t in batch.targets]
    prompts = backbone.encode([c.edit.prompt for c in cases])
    for case, answer in zip(cases, backbone.generate(prompts, caps), strict=True):
        wrong = backbone.decode(answer.ids)
        if same_answer(wrong, case.edit.target):
            right += 1
        elif wrong:
            subject = repr(case.scope) if case.scope else repr(case.edit.prompt)
            triplets.append(
                Triplet(
                    case.edit.prompt, case.edit.target.strip(), wrong, subject,
                    case.asked, answer.stopped,
                )
            )  # fmt: skip
    return triplets, right


def ends(
    backbone: Backbone, what: Batch | PrefixState, layers: Sequence[int], *, every: bool = False
) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
    """Per block, states at the last token of each prompt, and of each prompt with its target.

    [n, d] each; with `every`, an entry for every token of the targets. Last, [B] the number of
    entries of each row.
    """
    sites = {i: f"text.{i}.in" for i in layers}
    batch = what if isinstance(what, Batch) else what.batch
    watch = EarlyExitRecorder(sites.values())
    run_until_enough(backbone, what, watch)
    places = [
        (b, start - 1, start - 1 + k)
        for b, (start, answer) in enumerate(zip(batch.lengths.tolist(), batch.targets, strict=True))
        for k in (range(1, len(answer) + 1) if every else (len(answer),))
    ]
    row, last, at = torch.tensor(places).T
    x = {i: watch.x[site] for i, site in sites.items()}
    counts = torch.bincount(row, minlength=batch.size)
    return {i: v[row, last] for i, v in x.items()}, {i: v[row, at] for i, v in x.items()}, counts


def _halved(x: Tensor) -> Tensor:
    """float16, or bfloat16 if a value is too large for it."""
    small = x.half()
    return small if bool(small.isfinite().all()) else x.bfloat16()


def states_of(
    backbone: Backbone,
    triplets: Sequence[tuple[Prompt, str, str]],
    layers: Sequence[int],
    work: PrepareContext | None = None,
) -> TripletStates:
    """States of (prompt, true, wrong) at each block, on the CPU in half precision."""
    states: list[dict[int, list[Tensor]]] = [{i: [] for i in layers} for _ in range(3)]
    chunks = [triplets[start : start + CHUNK] for start in range(0, len(triplets), CHUNK)]
    task = partial(_states, layers=tuple(layers))
    for _, found in (work or PrepareContext()).mapped(backbone, task, chunks):
        for into, part_states in zip(states, found, strict=True):
            for i in layers:
                into[i].append(part_states[i])
    return TripletStates(*({i: torch.cat(v) for i, v in part.items()} for part in states))


def _states(
    backbone: Backbone, triplets: Sequence[tuple[Prompt, str, str]], *, layers: Sequence[int]
) -> list[dict[int, Tensor]]:
    """Of `TripletStates`: sem, pos and neg."""
    prompts = [t[0] for t in triplets]
    sem, pos, _ = ends(backbone, backbone.encode(prompts, [t[1] for t in triplets]), layers)
    _, neg, _ = ends(backbone, backbone.encode(prompts, [t[2] for t in triplets]), layers)
    return [{i: _halved(part[i].cpu()) for i in layers} for part in (sem, pos, neg)]
