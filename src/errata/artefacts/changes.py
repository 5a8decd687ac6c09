"""What patches change of a model's weights: dW of every linear site, summed over the patches.

Only patches of the shape `delta` are changes of weights. All others act on hidden states, prompts
or decisions, and have no such form.

Shapes: dW [o, n] = dense [o, n] + B A with A [r, n], B [o, r]; bias [o].
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.core.errors import BadBackbone, BadPatch, FingerprintMismatch, Notice
from errata.core.model.outline import ModelOutline
from errata.core.patch import Header, Patch, check_fingerprint, parts_of, settled, shape_of
from errata.patches.delta import Delta

#: a relative loss from which the edits should be asked again
LARGE_LOSS = 0.1
ASK_AGAIN = (
    "so large a loss can undo an edit: take the adapter in (errata patch import-peft) and ask its "
    "questions (errata ask --patch), or give a larger --rank."
)


@dataclass(frozen=True)
class WeightChange:
    """dW of one site, in float32 on the CPU. Without `dense`, `a` and `b` are the whole change."""

    a: Tensor
    b: Tensor
    dense: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def of(cls, part: Mapping[str, Tensor]) -> WeightChange:
        """The change of one part of a delta; ranks that are all zero are left out."""
        tensors = {k: v.detach().to("cpu", torch.float32) for k, v in part.items()}
        bias = tensors.get("bias")
        if "dense" in tensors:
            out, into = tensors["dense"].shape
            return cls(torch.zeros(0, into), torch.zeros(out, 0), tensors["dense"], bias)
        used = tensors["A"].any(1) & tensors["B"].any(0)
        return cls(tensors["A"][used], tensors["B"][:, used], None, bias)

    def __add__(self, other: WeightChange) -> WeightChange:
        a, b = torch.cat([self.a, other.a]), torch.cat([self.b, other.b], 1)
        dense = [d for d in (self.dense, other.dense) if d is not None]
        bias = [v for v in (self.bias, other.bias) if v is not None]
        return WeightChange(
            a, b, torch.stack(dense).sum(0) if dense else None,
            torch.stack(bias).sum(0) if bias else None,
        )  # fmt: skip

    @property
    def has_bias(self) -> bool:
        return self.bias is not None and bool(self.bias.any())

    @property
    def shape(self) -> tuple[int, int]:
        """(o, n)."""
        return self.b.shape[0], self.a.shape[1]

    def smallest(self) -> WeightChange:
        """The same as one dense part, or as low-rank factors where those hold fewer numbers."""
        out, into = self.shape
        if self.dense is None and self.a.numel() + self.b.numel() <= out * into:
            return self
        full = self.rows(0, out).float()
        return replace(self, a=self.a[:0], b=self.b[:, :0], dense=full)

    def rows(self, start: int, stop: int, *, transposed: bool = False) -> Tensor:
        """[stop - start, .] rows of dW, or of its transpose, in float64."""
        if transposed:
            change = self.a[:, start:stop].double().T @ self.b.double().T
            dense = None if self.dense is None else self.dense[:, start:stop].T
        else:
            change = self.b[start:stop].double() @ self.a.double()
            dense = None if self.dense is None else self.dense[start:stop]
        return change if dense is None else change + dense


def weight_changes(patches: Sequence[Patch], purpose: str) -> dict[str, WeightChange]:
    """Site -> what all of these patches change of its weight, when they are applied together.

    An edit that a later patch contradicts is left out as in a stack (`core.patch.settled`).
    purpose: what only such patches can become, for the message. Raises BadPatch for patches of
    other shapes and for patches that change nothing, FingerprintMismatch for those of two models.
    """
    check_one_model(patches)
    changes: dict[str, WeightChange] = {}
    for patch in deltas(patches, purpose):
        for site in patch.names:
            change = WeightChange.of(patch.part(site))
            changes[site] = changes[site] + change if site in changes else change
    if not changes:
        raise BadPatch(f"there is no change of a weight to make {purpose} of: the patch is empty.")
    _check_finite(changes)
    return {site: changes[site] for site in sorted(changes, key=_in_order)}


def deltas(patches: Iterable[Patch], purpose: str) -> Iterator[Delta]:
    """The patches that act when all are applied, which must be deltas. Raises BadPatch."""
    for patch in settled(patches):
        # of patches that must act as one, equal ones count once, now and in a later stack
        if not isinstance(patch, Delta) or patch.one_when_live or patch.rows is not None:
            raise BadPatch(_refusal(patch, purpose))
        yield patch


def check_one_model(patches: Sequence[Patch]) -> None:
    """Raises FingerprintMismatch for patches that were made for different models."""
    headers = [p.header for patch in patches for p in parts_of(patch) if p.header.fingerprint]
    other = next((h for h in headers if h.fingerprint != headers[0].fingerprint), None)
    if other is not None:
        first = headers[0]
        raise FingerprintMismatch(
            f"the patches were made for two models: {first.backbone} ({first.fingerprint[:12]}) "
            f"and {other.backbone} ({other.fingerprint[:12]}). Give those of one model."
        )


def _in_order(site: str) -> list[tuple[int, str]]:
    """Sorts block 10 behind block 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in site.split(".")]


def _refusal(patch: object, purpose: str) -> str:
    if isinstance(patch, Delta) and patch.rows is not None:
        what = "a patch with a row for every question of a batch (delta with rows)"
    elif isinstance(patch, Patch):
        about = (type(patch).__doc__ or "").strip().split(".")[0]
        of = f" of editor '{patch.header.editor}'" if patch.header.editor else ""
        what = f"the patch{of} has the shape '{shape_of(patch)}' ({' '.join(about.split())})"
    else:
        what = f"a {type(patch).__name__}"
    return (
        f"{what}: it is no change of weights alone, so it cannot become {purpose}. Only patches of "
        "the shape 'delta' can (of editors such as rome, memit, lora, ft_l; see errata patch "
        "show). Apply this one with errata: --patch DIR."
    )


def _check_finite(changes: Mapping[str, WeightChange]) -> None:
    for site, c in changes.items():
        tensors = [t for t in (c.a, c.b, c.dense, c.bias) if t is not None]
        if not all(bool(t.isfinite().all()) for t in tensors):
            raise BadPatch(f"the patch holds NaN or infinite numbers at {site}. Make it again.")


def check_model(bb: ModelOutline, header: Header) -> None:
    """Raises FingerprintMismatch for patches of another model; warns where that is not known."""
    if not header.fingerprint:
        return
    try:
        bb.identity.fingerprint()
    except BadBackbone as e:
        warnings.warn(
            f"whether the patch was made for this very model cannot be told from its files: {e}",
            Notice,
            stacklevel=3,
        )
        return
    check_fingerprint(header, bb.identity, "the patch")
