"""MEMIT and its relatives: one value per edit, its residual spread over several blocks.

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
from errata.algorithms.locate_then_edit.base import (
    KeyReader,
    LocateThenEdit,
    Parts,
    bare_and_mean,
    live_updates,
    lookup_token,
    result_of,
    with_keys,
)
from errata.algorithms.locate_then_edit.layer_stats import FFN, site_of
from errata.algorithms.locate_then_edit.value_search import ValueResult, ValueSettings, search
from errata.core.editor import EditRequest, EditResult
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit
from errata.linalg import covariance, solve


class MultiLayerUpdate(LocateThenEdit):
    """One value per edit, at the top layer; every layer writes a part of the residual.

    Layers are written in ascending order, each on top of those below.
    """

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        edits, groups = request.edits, request.groups
        owner = torch.tensor([r for r, _ in edits])
        own = [(owner == r).nonzero()[:, 0] for r in range(len(groups))]
        layers, templates = self.layers(backbone), self.templates(backbone, request.seed)
        values = self.search_values(backbone, edits, templates, seed=request.seed)
        written = self.written(layers[-1])
        goals = {p: values.value[_searched(values, site)].cpu() for p, site in written.items()}
        reader = KeyReader(backbone, edits, templates, self.config.token, layers[0])
        parts: list[Parts] = [{} for _ in groups]
        logs = [
            {**line, "token": lookup_token(e, self)}
            for line, (_, e) in zip(values.log, edits, strict=True)
        ]
        for i, layer in enumerate(layers):
            for part, value in written.items():
                with live_updates(backbone, parts):
                    keys, now_Eh = reader.read([layer], value, top=layers[-1], part=part)
                keys_Ed = bare_and_mean(keys[layer]).cpu()
                residual_Eh = (goals[part] - now_Eh.cpu()) / self.residual_divisor(i, len(layers))
                for r, state in enumerate(request.prepared):
                    factor, notes = self.key_factor(state, layer, keys_Ed[own[r]], part)
                    size: dict[str, Any] = {}
                    site = site_of(layer, part)
                    parts[r][site] = self.clipped(
                        backbone, site, factor, residual_Eh[own[r]].T, size
                    )
                    name = str(layer) if part == FFN else f"{layer}.{part}"
                    for e, line in zip(own[r].tolist(), notes, strict=True):
                        logs[e].setdefault("layers", {})[name] = {**line, **size}
        kept: dict[str, dict[int, Tensor]] = {}
        with live_updates(backbone, parts):
            for part, value in written.items():
                keys, now_Eh = reader.read(layers, value, top=layers[-1], part=part)
                kept[part] = {i: bare_and_mean(keys[i]).cpu() for i in layers}
                left = (goals[part] - now_Eh.cpu()).norm(dim=1)
                start = values.start[_searched(values, value)].cpu()
                whole = (goals[part] - start).norm(dim=1).clamp(min=1e-12)
                for line, share in zip(logs, (left / whole).tolist(), strict=True):
                    line["left" if part == FFN else f"left.{part}"] = round(share, 4)
        results = []
        for r, (group, before) in enumerate(request):
            after = before
            if self.config.memory != "none":
                for part, of_layer in kept.items():
                    after = with_keys(after, {i: of_layer[i][own[r]] for i in layers}, part)
            results.append(result_of(parts[r], after, group, [logs[e] for e in own[r].tolist()]))
        return results

    def written(self, top: int) -> dict[str, str]:
        """Part of a block that is written -> the site, in the top layer, whose output it brings to
        the value; in the order in which a block runs them.
        """
        return {FFN: self.value_site(top)}

    def search_values(
        self,
        backbone: Backbone,
        edits: Sequence[tuple[int, Edit]],
        templates: Sequence[str],
        *,
        seed: int,
    ) -> ValueResult:
        """The values of all edits; the one of the first site is written."""
        return search(
            backbone, edits, templates, self.value_settings(backbone, self.layers(backbone)[-1])
        )

    def value_settings(self, backbone: Backbone, layer: int) -> ValueSettings:
        """Settings of the value search; the value of the first site is written."""
        return self.search_settings([stream_site(backbone, layer)])

    def value_site(self, layer: int) -> str:
        """The site whose output the update brings to the value."""
        return f"text.{layer}.block"

    def residual_divisor(self, i: int, layers: int) -> float:
        """What the residual is divided by at the i-th of the layers."""
        return float(layers - i)

    @abstractmethod
    def key_factor(
        self, state: State, layer: int, keys_nd: Tensor, part: str = FFN
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """The update of a layer is dW = residuals^T A, with residuals [n, h].

        Returns (A [n, d], notes of each edit). keys [n, d]: of the group's edits. part: of the
        block, see `written`.
        """


class CovarianceUpdate(MultiLayerUpdate):
    """MEMIT's solve: the keys of other texts, as their second moment, resist the update."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiLayerUpdate.Config):
        """mom2_weight: weight (lambda) of the second moment against the keys of edits. ridge: added
        to the second moment, relative to tr(C)/d.
        """

        mom2_weight: float = 15000.0
        ridge: float = 0.05

    def key_factor(
        self, state: State, layer: int, keys_nd: Tensor, part: str = FFN
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """A^T = (lambda C + K_p K_p^T + K K^T)^-1 K; K_p are the keys of earlier edits."""
        weight = self.config.mom2_weight
        cost = weight * covariance.scale(layer_stats.moment(state, layer, part))
        notes = [{"lambda_over_key": cost / float(k.double().square().sum())} for k in keys_nd]
        keys = torch.cat([*self.past_keys(state, layer, part), keys_nd])
        smoothed = solve.smoothed(self.factor(state, layer, weight, part), keys)
        return solve.update(keys, smoothed, len(keys_nd)), notes


def stream_site(backbone: Backbone, layer: int) -> str:
    """The site at which the output of a block is changed with the fewest blocks to run again."""
    return f"text.{layer + 1}.in" if layer + 1 < backbone.depth else f"text.{layer}.block"


def _searched(values: ValueResult, site: str) -> str:
    """The site at which the value of `site` was searched: itself, or else the first one."""
    return site if site in values.value else next(iter(values.value))
