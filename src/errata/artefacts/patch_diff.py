"""What two patches have in common: sites, the size of their changes, facts, settings.

Where both add to the weights of a site, the changes themselves are compared, as linear maps of
[x, 1]: |dW_a - dW_b| and their cosine, from the factors of low-rank changes, so that no larger
matrix than those of the patches is formed. Of other patches the tensors are compared, where they
have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from errata.artefacts.changes import WeightChange
from errata.core.errors import BadPatch
from errata.core.patch import Patch, pack, parts_of, same_prompt, shape_of
from errata.core.text import normalise
from errata.core.types import Edit, Prompt, brief
from errata.patches.delta import Delta


@dataclass(frozen=True, slots=True)
class PatchSide:
    """One of the two patches. numbers: how many it holds."""

    shape: str
    editor: str
    backbone: str
    fingerprint: str
    edits: int
    numbers: int


@dataclass(frozen=True, slots=True)
class PartAt:
    """What a patch has at a site.

    adds: whether it adds a matrix to the weights; `norm` is then the Frobenius norm of that matrix
    with its bias, else of all tensors. rank: of a low-rank change; None for a dense one and others.
    tensors: name -> shape.
    """

    shapes: tuple[str, ...]
    adds: bool
    norm: float
    rank: int | None
    tensors: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class SiteDiff:
    """A site ("": what belongs to no site) of the first, the second or both patches.

    difference: the norm of the difference, as a part of the larger of the two norms: 0 for equal
    changes, 2 for opposite ones. note: why there is none at a common site.
    """

    site: str
    a: PartAt | None
    b: PartAt | None
    difference: float | None = None
    cosine: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class FactPair:
    """Two edits that are about one thing. relation: `same question` or `same subject`."""

    relation: str
    question_a: str
    question_b: str
    target_a: str
    target_b: str
    same_target: bool


@dataclass(frozen=True, slots=True)
class PatchDiff:
    """The comparison of two patches. same_model: None if one of them names no model.

    identical: whether they hold the same numbers and settings. settings: those that differ, as
    (first, second); a setting that one of them lacks is None there.
    """

    a: PatchSide
    b: PatchSide
    same_model: bool | None
    identical: bool
    sites: tuple[SiteDiff, ...]
    facts: tuple[FactPair, ...]
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def common(self) -> tuple[SiteDiff, ...]:
        """The sites that both patches have."""
        return tuple(s for s in self.sites if s.a is not None and s.b is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def diff_patches(a: Patch, b: Patch) -> PatchDiff:
    """Compares two patches; no model is needed. Raises BadPatch for what is none."""
    for given in (a, b):
        if not isinstance(given, Patch):
            raise BadPatch(
                f"diff_patches takes two patches, not {brief(given)}. errata.load_patch reads one."
            )
    left, right = _by_site(a), _by_site(b)
    prints = {p.header.fingerprint for p in (a, b)}
    return PatchDiff(
        _side(a),
        _side(b),
        None if "" in prints else len(prints) == 1,
        _identical(a, b),
        tuple(_site(s, left.get(s), right.get(s)) for s in sorted({*left, *right})),
        _facts(a.edits, b.edits),
        _settings(a, b),
    )


def _side(patch: Patch) -> PatchSide:
    h = patch.header
    numbers = sum(t.numel() for t in pack(patch)[1].values())
    return PatchSide(
        shape_of(patch), h.editor, h.backbone, h.fingerprint, len(patch.edits), numbers
    )


def _identical(a: Patch, b: Patch) -> bool:
    (settings, tensors), (others, more) = pack(a), pack(b)
    if _without_origin(settings) != _without_origin(others) or set(tensors) != set(more):
        return False
    return all(torch.equal(tensors[k], more[k]) for k in tensors)


def _without_origin(settings: Any) -> Any:
    """The settings of a combination without the headers and edits of its parts."""
    if isinstance(settings, Mapping):
        return {k: _without_origin(v) for k, v in settings.items() if k not in ("header", "edits")}
    if isinstance(settings, (list, tuple)):
        return [_without_origin(v) for v in settings]
    return settings


# -- sites ----------------------------------------------------------------------------------------


def _negative(change: WeightChange) -> WeightChange:
    dense, bias = (None if t is None else -t for t in (change.dense, change.bias))
    return WeightChange(change.a, -change.b, dense, bias)


def _factors(change: WeightChange) -> tuple[Tensor, Tensor]:
    """B [o, r] and A [r, n + 1] of all but the dense part, for the input [x, 1], in float64."""
    a, b = change.a.double(), change.b.double()
    a = torch.cat([a, a.new_zeros(len(a), 1)], 1)
    if change.bias is not None:
        one = a.new_zeros(1, a.shape[1])
        one[0, -1] = 1
        a, b = torch.cat([a, one]), torch.cat([b, change.bias.double()[:, None]], 1)
    return b, a


def _dense(change: WeightChange) -> Tensor | None:
    """The dense part [o, n + 1], for the input [x, 1], in float64."""
    if change.dense is None:
        return None
    return torch.cat([change.dense.double(), torch.zeros(len(change.dense), 1)], 1)


def _size(change: WeightChange) -> float:
    """The Frobenius norm. Of factors by their QR decompositions: |B A| = |R_b R_a^T|."""
    b, a = _factors(change)
    dense = _dense(change)
    if dense is not None:
        return float((dense + b @ a).norm())
    if b.shape[1] >= min(change.shape):
        return float((b @ a).norm())
    return float((torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T).norm())


def _inner(x: WeightChange, y: WeightChange) -> float:
    """The inner product of two changes: the trace of dW_x^T dW_y."""
    (b, a), (d, c) = _factors(x), _factors(y)
    full, other = _dense(x), _dense(y)
    total = ((b.T @ d) * (a @ c.T)).sum()
    if full is not None:
        total += ((d.T @ full) * c).sum()
    if other is not None:
        total += ((b.T @ other) * a).sum()
    if full is not None and other is not None:
        total += (full * other).sum()
    return float(total)


@dataclass
class _At:
    """What a patch has at one site. change: None unless all of it is added to the weights."""

    shapes: list[str]
    tensors: dict[str, Tensor]
    change: WeightChange | None


def _by_site(patch: Patch) -> dict[str, _At]:
    found: dict[str, _At] = {}
    for part in parts_of(patch):
        tensors = pack(part)[1]
        adds = isinstance(part, Delta) and part.rows is None
        for site, own in _grouped(tensors, part).items():
            at = found.setdefault(site, _At([], {}, None))
            first = not at.shapes
            prefix = "" if first else f"{len(at.shapes)}/"
            at.shapes.append(shape_of(part))
            at.tensors.update({f"{prefix}{k}": v for k, v in own.items()})
            own_change = WeightChange.of(own) if adds else None
            if first:
                at.change = own_change
            elif at.change is not None:
                at.change = None if own_change is None else at.change + own_change
    return found


def _grouped(tensors: Mapping[str, Tensor], patch: Patch) -> dict[str, dict[str, Tensor]]:
    """The packed tensors by site; "" holds those of no site. A site without tensors is there."""
    found: dict[str, dict[str, Tensor]] = {site: {} for site in patch.sites}
    for key, tensor in tensors.items():
        within = [s for s in patch.sites if f"/{key}".rfind(f"/{s}/") >= 0]
        site = max(within, key=len, default="")
        name = key.replace(f"{site}/", "", 1) if site else key
        found.setdefault(site, {})[name] = tensor
    return found


def _part(at: _At | None) -> PartAt | None:
    if at is None:
        return None
    if at.change is not None:
        norm = _size(at.change)
        rank = len(at.change.a) if at.change.dense is None else None
    else:
        norm, rank = _norm(list(at.tensors.values())), None
    shapes = {k: tuple(v.shape) for k, v in sorted(at.tensors.items())}
    return PartAt(tuple(dict.fromkeys(at.shapes)), at.change is not None, norm, rank, shapes)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(sum(float(t.detach().double().norm()) ** 2 for t in tensors) ** 0.5)


def _site(site: str, a: _At | None, b: _At | None) -> SiteDiff:
    left, right = _part(a), _part(b)
    if a is None or b is None or left is None or right is None:
        return SiteDiff(site, left, right)
    larger = max(left.norm, right.norm)
    if a.change is not None and b.change is not None:
        if a.change.shape != b.change.shape:
            wrong = f"matrices of {_by(a.change.shape)} and {_by(b.change.shape)}"
            return SiteDiff(site, left, right, note=wrong)
        off, inner = _size(a.change + _negative(b.change)), _inner(a.change, b.change)
    elif left.tensors == right.tensors and left.shapes == right.shapes:
        pairs = [(a.tensors[k].detach().double(), b.tensors[k].detach().double())
                 for k in left.tensors]  # fmt: skip
        off, inner = _norm([x - y for x, y in pairs]), sum(float((x * y).sum()) for x, y in pairs)
    else:
        alike = left.shapes == right.shapes
        why = "tensors of other sizes" if alike else "other shapes of patches"
        return SiteDiff(site, left, right, note=f"not comparable: {why}")
    cosine = inner / (left.norm * right.norm) if left.norm and right.norm else None
    return SiteDiff(
        site, left, right, off / larger if larger else 0.0,
        None if cosine is None else max(-1.0, min(1.0, cosine)),
    )  # fmt: skip


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# -- facts and settings ---------------------------------------------------------------------------


def _facts(a: Sequence[Edit], b: Sequence[Edit]) -> tuple[FactPair, ...]:
    """Pairs of edits that ask one question, or that name one subject."""
    by_text: dict[str, list[Edit]] = {}
    by_subject: dict[str, list[Edit]] = {}
    for edit in b:
        by_text.setdefault(edit.prompt.text, []).append(edit)
        if edit.subject:
            by_subject.setdefault(normalise(edit.subject), []).append(edit)
    pairs = []
    for edit in a:
        same = [e for e in by_text.get(edit.prompt.text, ()) if same_prompt(edit.prompt, e.prompt)]
        pairs += [_pair("same question", edit, e) for e in same]
        if edit.subject:
            others = by_subject.get(normalise(edit.subject), ())
            seen = [e for e in others if e not in same and _same_pictures(edit, e)]
            pairs += [_pair("same subject", edit, e) for e in seen]
    return tuple(pairs)


def _same_pictures(a: Edit, b: Edit) -> bool:
    """Words such as "the ring" name the same thing only in the same picture."""
    return same_prompt(Prompt(a.prompt.images), Prompt(b.prompt.images))


def _pair(relation: str, a: Edit, b: Edit) -> FactPair:
    same = normalise(a.target) == normalise(b.target)
    return FactPair(relation, a.prompt.text, b.prompt.text, a.target, b.target, same)


def _settings(a: Patch, b: Patch) -> dict[str, tuple[Any, Any]]:
    left, right = _all_settings(a), _all_settings(b)
    keys = sorted({*left, *right})
    return {k: (left.get(k), right.get(k)) for k in keys if left.get(k) != right.get(k)}


def _all_settings(patch: Patch) -> dict[str, Any]:
    """Where a patch comes from, the editor's settings, and those of its shape."""
    h = patch.header
    own = {k: v for k, v in pack(patch)[0].items() if k not in ("parts", "facts")}
    return {
        **{k: getattr(h, k) for k in ("editor", "backbone", "revision", "dtype", "seed", "state")},
        "style": h.style,
        **{f"versions.{k}": v for k, v in h.versions.items()},
        **_flat("editor", h.config or h.arguments),
        **_flat("patch", own),
    }


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    return {
        k: v for name, inner in value.items() for k, v in _flat(f"{prefix}.{name}", inner).items()
    }
