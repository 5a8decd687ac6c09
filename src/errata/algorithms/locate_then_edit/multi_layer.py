"""The frame of MEMIT and its kin: one value per edit, its residual spread over several blocks.

Shapes: E edits of all groups, n of one, d inputs and h outputs of a down projection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit import layer_stats
from errata.algorithms.locate_then_edit.layer_stats import site_of
from errata.algorithms.locate_then_edit.rank_one import (
    KeyReader,
    Parts,
    RankOneUpdate,
    carried,
    found_of,
    half_bare,
    where,
    written,
)
from errata.algorithms.locate_then_edit.value_search import FoundValues, ValueSettings, search
from errata.core.editor import EditRequest, EditResult
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit
from errata.linalg import covariance, solve


class MultiLayerUpdate(RankOneUpdate):
    """MEMIT's frame: one value per edit at the top layer, its residual spread over all layers."""

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        edits, groups = request.edits, request.groups
        owner = torch.tensor([r for r, _ in edits])
        layers, beginnings = self.layers(backbone), self.beginnings(backbone, request.seed)
        values = self.searched(backbone, edits, beginnings, seed=request.seed)
        name = next(iter(values.found))
        site = self.target(layers[-1])
        goal_Eh = values.found[name].cpu()
        look = KeyReader(backbone, edits, beginnings, self.config.token, layers[0])
        parts: list[Parts] = [{} for _ in groups]
        account = [
            {**line, "token": where(e, self)}
            for line, (_, e) in zip(values.log, edits, strict=True)
        ]
        kept: dict[int, Tensor] = {}
        for i, layer in enumerate(layers):
            with written(backbone, parts):
                keys, now_Eh = look.see([layer], site, top=layers[-1])
            kept[layer] = half_bare(keys[layer]).cpu()
            residual_Eh = (goal_Eh - now_Eh.cpu()) / self.share(i, len(layers))
            for r, state in enumerate(request.prepared):
                own = (owner == r).nonzero()[:, 0]
                made, lines = self.write(state, layer, kept[layer][own])
                size: dict[str, Any] = {}
                parts[r][site_of(layer)] = self.limited(
                    backbone, layer, made, residual_Eh[own].T, size
                )
                for e, line in zip(own.tolist(), lines, strict=True):
                    account[e].setdefault("layers", {})[str(layer)] = {**line, **size}
        with written(backbone, parts):
            keys, now_Eh = look.see(layers, site, top=layers[-1])
        left = (goal_Eh - now_Eh.cpu()).norm(dim=1)
        for e, (line, start) in enumerate(zip(account, values.start[name], strict=True)):
            whole = float((goal_Eh[e] - start.cpu()).norm())
            line["left"] = round(float(left[e]) / max(whole, 1e-12), 4)
        if self.config.memory == "recomputed":
            kept = {i: half_bare(keys[i]).cpu() for i in layers}
        results = []
        for r, (group, before) in enumerate(request):
            own = (owner == r).nonzero()[:, 0]
            after = before
            if self.config.memory != "none":
                after = carried(before, {i: kept[i][own] for i in layers})
            results.append(found_of(parts[r], after, group, [account[e] for e in own.tolist()]))
        return results

    def searched(
        self,
        backbone: Backbone,
        edits: Sequence[tuple[int, Edit]],
        beginnings: Sequence[str],
        *,
        seed: int,
    ) -> FoundValues:
        """The values of all edits; the first site's is the one that is written."""
        return search(backbone, edits, beginnings, self.values(backbone, self.layers(backbone)[-1]))

    def values(self, backbone: Backbone, layer: int) -> ValueSettings:
        """The value search. Its first site is the one whose value is written."""
        return self.search_settings([stream_site(backbone, layer)])

    def target(self, layer: int) -> str:
        """The site whose output is brought to the value."""
        return f"text.{layer}.block"

    def share(self, i: int, layers: int) -> float:
        """What the residual is divided by at the i-th of the layers."""
        return float(layers - i)

    @abstractmethod
    def write(
        self, state: State, layer: int, keys_nd: Tensor
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """([n, d] what makes residuals into the change of W, what to note of each edit)."""


class KeyCovariance(MultiLayerUpdate):
    """MEMIT's solve: what is written is weighed against the moment of other texts' keys."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiLayerUpdate.Config):
        """mom2_weight: lambda, what the moment weighs against the keys."""

        mom2_weight: float = 15000.0

    def write(
        self, state: State, layer: int, keys_nd: Tensor
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """(lambda C + K_p K_p^T + K K^T)^-1 K, transposed; K_p are the keys remembered."""
        weight = self.config.mom2_weight
        price = weight * covariance.scale(layer_stats.moment(state, layer))
        lines = [{"lambda_over_key": price / float(k.double().square().sum())} for k in keys_nd]
        keys = torch.cat([*self.remembered(state, layer), keys_nd])
        smoothed = solve.smoothed(self.factor(state, layer, weight), keys)
        return solve.update(keys, smoothed, len(keys_nd)), lines


def stream_site(backbone: Backbone, layer: int) -> str:
    """Where the output of a block can be changed with the least to run again: above it."""
    return f"text.{layer + 1}.in" if layer + 1 < backbone.depth else f"text.{layer}.block"
