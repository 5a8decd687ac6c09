"""Distances between two drawings, stage by stage: the numbers of `analyze drift`.

At a text stage there are two groups of tokens, those of the edited subject and the others; prompts
of different wording are compared by the groups' mean vectors. At an image stage all tokens are one
group, and the states of one seed are compared as they are.

Source of the quantities: the UniKE study (per-token cosine and relative Frobenius drift); the
distance between prompts and the direction of the oracle prompt are ours.

Shapes: B prompts, T columns, K pictures of a prompt (1 in text), n numbers of a state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.analyses.drift.trace import PICTURE, DrawingTrace

SUBJECT, OTHER, ALL = "subject", "other", "all"

#: (stage, step, group): step is an index of the recorded steps, -1 where there are none
Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class StageShift:
    """How far the states of a prompt moved at one place.

    cosine: mean over tokens of 1 - cos; relative: ||change|| / ||state||, both over all tokens;
    both None between prompts of different wording. size: length of the change, in text of the mean
    vectors. towards: cosine with the change that the oracle prompt makes; None without one.
    """

    cosine: float | None
    relative: float | None
    size: float
    towards: float | None = None


def prompt_distances(p: DrawingTrace, subject: Tensor) -> Iterator[tuple[Place, list[float]]]:
    """Place -> the distances between every two prompts of one drawing."""
    for place, states in _vectors(p, subject):
        pairs = ((i, j) for i in range(len(states)) for j in range(i))
        yield place, [float((states[i] - states[j]).norm(dim=-1).mean()) for i, j in pairs]


def shifts_between(
    base: DrawingTrace,
    base_subject: Tensor,
    other: DrawingTrace,
    subject: Tensor,
    oracle: tuple[DrawingTrace, Tensor] | None,
    *,
    aligned: bool,
) -> dict[Place, list[StageShift]]:
    """Place -> the shift of each prompt from `base` to `other`.

    aligned: both have the same prompts, so that token t of one is token t of the other. The
    direction of the oracle starts at `base` too.
    """
    start = dict(_vectors(base, base_subject))
    end = dict(_vectors(other, subject))
    goal = dict(_vectors(*oracle)) if oracle is not None else {}
    tokens = dict(_aligned(base, other, base_subject)) if aligned else {}
    out: dict[Place, list[StageShift]] = {}
    for place, from_BKn in start.items():
        change_BKn = end[place] - from_BKn
        size_B = change_BKn.norm(dim=-1).mean(1)
        towards: list[float | None] = [None] * len(size_B)
        if place in goal:
            towards = [*map(_or_none, _cosine(change_BKn, goal[place] - from_BKn))]
        for b, size in enumerate(size_B.tolist()):
            cosine, relative = tokens[place][b] if place in tokens else (None, None)
            out.setdefault(place, []).append(StageShift(cosine, relative, size, towards[b]))
    return out


def _or_none(value: float) -> float | None:
    return value if value == value else None  # NaN: no change, so no direction


def _cosine(a_BKn: Tensor, b_BKn: Tensor) -> list[float]:
    """[B] mean over K of the cosine; NaN where one of the two is 0."""
    scale = a_BKn.norm(dim=-1) * b_BKn.norm(dim=-1)
    return list(((a_BKn * b_BKn).sum(-1) / scale).mean(1).tolist())


def _groups(p: DrawingTrace, subject: Tensor) -> tuple[tuple[str, Tensor], ...]:
    return (SUBJECT, subject), (OTHER, p.mask & ~subject), (ALL, p.mask)


def _vectors(p: DrawingTrace, subject: Tensor) -> Iterator[tuple[Place, Tensor]]:
    """Place -> the vectors [B, K, n] that are compared between prompts."""
    for name, states_BTd in p.text.items():
        for group, where_BT in _groups(p, subject):
            where = where_BT[..., None].float()
            mean_Bd = (states_BTd.nan_to_num() * where).sum(1) / where.sum(1).clamp_min(1)
            yield (name, -1, group), mean_Bd[:, None]
    for name, steps in p.steps.items():
        for m, states in enumerate(steps):
            yield (name, m, ALL), states.flatten(2)
    yield (PICTURE, -1, ALL), p.pixels.flatten(2)


def _aligned(
    base: DrawingTrace, other: DrawingTrace, subject: Tensor
) -> Iterator[tuple[Place, list[tuple[float, float]]]]:
    """Place -> (cosine distance, relative change) per prompt."""
    assert base.mask.equal(other.mask), "an aligned comparison needs the same prompts"
    for name, a_BTd in base.text.items():
        for group, where_BT in _groups(base, subject):
            yield (name, -1, group), _distances(a_BTd[:, None], other.text[name][:, None], where_BT)
    for name, steps in base.steps.items():
        for m, a in enumerate(steps):
            yield (name, m, ALL), _distances(a, other.steps[name][m], None)
    a, b = (p.pixels.flatten(2)[:, :, None] for p in (base, other))  # a picture is one vector
    yield (PICTURE, -1, ALL), _distances(a, b, None)


def _distances(a: Tensor, b: Tensor, where_BT: Tensor | None) -> list[tuple[float, float]]:
    """(cosine distance, relative change) per prompt, of a and b [B, K, T, n].

    With unit vectors u and v, 1 - cos = ||u - v||^2 / 2, so equal states have distance 0 exactly.
    """
    where = torch.ones(a.shape[0], a.shape[2]) if where_BT is None else where_BT.float()
    where = where[:, None]
    a, b = a.nan_to_num(), b.nan_to_num()
    turn = ((_unit(a) - _unit(b)).square().sum(-1) / 2 * where).sum(-1) / where.sum(-1).clamp_min(1)
    change = ((b - a).square().sum(-1) * where).sum(-1).sqrt()
    size = (a.square().sum(-1) * where).sum(-1).sqrt().clamp_min(1e-30)
    return list(zip(turn.mean(1).tolist(), (change / size).mean(1).tolist(), strict=True))


def _unit(x: Tensor) -> Tensor:
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp_min(1e-30)


@dataclass(frozen=True, slots=True)
class FourWay:
    """How edit and rationale each change the mean vector of a stage, relative to its length.

    From four drawings: unedited or edited model, image prompt alone or after the rationale. edit:
    of the prompt alone; reason: of adding the rationale; later: the edit after the rationale; both:
    edit and rationale. Cosines are None where one of the two changes is 0.
    """

    edit: float
    reason: float
    later: float
    both: float
    edit_reason: float | None
    edit_later: float | None


def four_way(fresh: Tensor, edited: Tensor, reasoned: Tensor, both: Tensor) -> list[FourWay]:
    """From the mean vectors [B, d] of the four drawings; one result per prompt."""
    scale = fresh.norm(dim=-1).clamp_min(1e-30)
    steps = [edited - fresh, reasoned - fresh, both - reasoned, both - fresh]
    lengths = [(s.norm(dim=-1) / scale).tolist() for s in steps]
    edit_BKn, reason_BKn, later_BKn = (s[:, None] for s in steps[:3])
    cosines = _cosine(edit_BKn, reason_BKn), _cosine(edit_BKn, later_BKn)
    rows = zip(*lengths, *cosines, strict=True)
    return [FourWay(*row[:4], *map(_or_none, row[4:])) for row in rows]


def mean_states(p: DrawingTrace, stage: str) -> Tensor:
    """[B, d] mean over all tokens of a text stage."""
    where = p.mask[..., None].float()
    return (p.text[stage].nan_to_num() * where).sum(1) / where.sum(1)
