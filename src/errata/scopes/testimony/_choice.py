"""Which questions are asked about pictures: chosen on training cases, one by one.

Training cases ask the same in many wordings. So the pool is spread first: each further question is
the one that the model answers least like those in the pool, on a few fixed pictures. A pool that is
drawn at random misses what few cases ask about.

Shapes: n pairs of pictures, P questions of the pool, N wordings.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.state import PrepareContext
from errata.core.types import Case, Image, Prompt
from errata.io.images import embedded
from errata.scopes._hashes import picture
from errata.scopes.testimony._witness import LEAST, Panel, Witness

ALIKE = 0.99  # questions whose answers agree by this ask the same
BLANK = " "


@dataclass(frozen=True)
class PicturePair:
    """Two pictures: of one thing, or of things that are near."""

    edit: Image
    other: Image
    same: bool
    case: int


def choose(
    backbone: Backbone,
    cases: Sequence[Case],
    most: int,
    pictures: int,
    pool: int,
    seed: int,
    work: PrepareContext,
) -> tuple[Panel | None, dict[str, Any]]:
    """The panel, and how the areas grew; None where no case asks about pictures."""
    rng = random.Random(f"testimony|{seed}")
    pairs, texts = pairs_of(cases), questions_of(cases)
    fixed = [c.edit.prompt.images[0] for c in cases if len(c.edit.prompt.images) == 1]
    unique = list({picture(i): i for i in fixed}.values())
    shown = tuple(embedded(i) for i in rng.sample(unique, min(pictures, len(unique))))
    if not shown or not texts:
        return None, {}
    questions = spread(Witness(backbone, Panel((), shown), work), texts, pool)
    same = torch.tensor([p.same for p in pairs], dtype=torch.bool)
    if not bool(same.any()) or bool(same.all()):
        return Panel(tuple(questions[:1]), shown), {}
    agreed = agreements(backbone, pairs, questions, work)
    chosen, areas = greedy(agreed, same, torch.tensor([p.case % 2 == 0 for p in pairs]), most)
    curve = {"auc": areas, "pairs": [int(same.sum()), int((~same).sum())], "pool": len(questions)}
    return Panel(tuple(questions[i] for i in chosen), shown), curve


def pairs_of(cases: Sequence[Case]) -> list[PicturePair]:
    """Of each case: its picture with other pictures of the thing, and with those of near things."""
    pairs = []
    for n, case in enumerate(cases):
        own = case.edit.prompt.images
        if len(own) != 1:
            continue
        for probe in case.probes:
            images = probe.prompt.images
            if len(images) != 1 or picture(images[0]) == picture(own[0]):
                continue
            if probe.kind == "m_generality":
                pairs.append(PicturePair(own[0], images[0], True, n))
            elif probe.kind == "near_locality" and probe.prompt.text == case.edit.prompt.text:
                pairs.append(PicturePair(own[0], images[0], False, n))
    return pairs


def questions_of(cases: Sequence[Case]) -> list[str]:
    """Questions that the cases ask about pictures, each wording once."""
    prompts = [p for c in cases for p in (c.edit.prompt, *(q.prompt for q in c.probes))]
    return sorted({p.text for p in prompts if len(p.images) == 1 and p.segments[-1] == p.text})


def spread(witness: Witness, texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of the N texts, each as far from the earlier ones as it can be.

    How near two are: the agreement of their answers, mean over the fixed pictures. It ends where
    all others are nearly a question that is in.
    """
    said = witness.relations(witness.of([Prompt.of(x) for x in texts]))
    answers = said.flatten(1) / said.shape[1] ** 0.5
    chosen, nearest = [0], answers @ answers[0]
    while len(chosen) < count and float(nearest.min()) < ALIKE:
        chosen.append(int(nearest.argmin()))
        nearest = nearest.maximum(answers @ answers[chosen[-1]])
    return [texts[i] for i in chosen]


def agreements(
    backbone: Backbone,
    pairs: Sequence[PicturePair],
    questions: Sequence[str],
    work: PrepareContext,
) -> Tensor:
    """[n, P] log of how far the answers to a question about both pictures of a pair agree."""
    witness = Witness(backbone, Panel(tuple(questions), ()), work)
    images = {picture(i): i for p in pairs for i in (p.edit, p.other)}
    rows = {key: n for n, key in enumerate(images)}
    said = witness.of([Prompt.of(BLANK, i) for i in images.values()])[:, : len(questions)]
    a = said[[rows[picture(p.edit)] for p in pairs]]
    b = said[[rows[picture(p.other)] for p in pairs]]
    return (a * b).sum(-1).clamp(LEAST, 1.0).log()


def greedy(
    agreed: Tensor, same: Tensor, choosing: Tensor, most: int
) -> tuple[list[int], list[list[float]]]:
    """(questions in the order of their choice, areas after each: [choosing, held out]).

    They end where the area on the pairs that are held out from the choice is largest.
    """
    chosen: list[int] = []
    areas: list[list[float]] = []
    total = torch.zeros(len(agreed))
    while len(chosen) < min(most, agreed.shape[1]):
        left = [i for i in range(agreed.shape[1]) if i not in chosen]
        area = {i: auc((total + agreed[:, i])[choosing], same[choosing]) for i in left}
        best = max(left, key=lambda i: area[i])
        chosen.append(best)
        total = total + agreed[:, best]
        held_out = auc(total[~choosing], same[~choosing])
        areas.append([round(area[best], 4), round(held_out, 4)])
    count = 1 + max(range(len(areas)), key=lambda n: areas[n][1])
    return chosen[:count], areas[:count]


def auc(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve: how often a positive pair scores above a negative one."""
    high, low = scores[positive], scores[~positive].sort().values
    if not len(high) or not len(low):
        return 0.5
    below = torch.searchsorted(low, high, right=False) + torch.searchsorted(low, high, right=True)
    return float(below.float().mean()) / 2 / len(low)
