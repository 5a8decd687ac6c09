"""What a model does to the output of its head, found by running its own forward once.

Some models cap their logits, others multiply or divide them by a number of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from errata.backbones._forward import Finish, capped, unchanged
from errata.core.errors import BadBackbone

#: dtype -> largest error, relative to the largest logit, of a rule that is taken for the model's
_EXACT = {torch.float32: 1e-5, torch.float64: 1e-5}
#: dtype -> largest relative difference of two forwards that compute the same
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}


def spread(raw: Tensor) -> Tensor:
    """The logits plus random numbers: those of a new model are too small for a cap to be seen."""
    rng = torch.Generator().manual_seed(0)
    return raw + 20 * torch.randn(raw.shape, generator=rng).to(raw)


def rule(raw: Tensor, own: Tensor, config: Any, name: str) -> Finish:
    """What makes `own` of `raw`, the output of the head. Raises BadBackbone if none is known."""
    error, best = min(((gap(f(raw), own), f) for f in _rules(config)), key=lambda r: r[0])
    if error > _EXACT.get(raw.dtype, 1e-2):
        raise BadBackbone(
            f"{name} changes its logits behind the output head in a way that errata does not know, "
            "so all probabilities would be wrong. Use a model of another family; "
            "docs/add-a-backbone.md says how a family is added."
        )
    return best


def check_same(ours: Tensor, own: Tensor, name: str) -> None:
    """Raises BadBackbone if errata's forward gives other logits than the model's own."""
    difference = gap(ours, own)
    if difference > _CLOSE.get(own.dtype, 0.2):
        raise BadBackbone(
            f"{name}: its own forward does more than its text model and output head, which errata "
            f"runs: the logits differ by {difference:.0%}. Use a model of another family; "
            "docs/add-a-backbone.md says how a family is added."
        )


def gap(ours: Tensor, own: Tensor) -> float:
    """The largest difference, relative to the largest of `own`; infinite for other shapes."""
    if ours.shape != own.shape:
        return float("inf")
    ours, own = ours.float().cpu(), own.float().cpu()
    error = (ours - own).abs().max() / own.abs().max().clamp(min=1e-9)
    return float(error.nan_to_num(nan=float("inf")))


def _rules(config: Any) -> Iterator[Finish]:
    """Nothing, and each number of the configuration as a cap, a factor and a divisor."""
    yield unchanged
    numbers = {
        float(v)
        for v in config.to_dict().values()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < 1e5 and v != 1
    }
    for number in sorted(numbers):
        yield capped(number)
        yield _times(number)
        yield _over(number)


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits * factor


def _over(divisor: float) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits / divisor
