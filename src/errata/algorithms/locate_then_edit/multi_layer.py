"""MEMIT and its relatives: one value per edit, its residual spread over several blocks.

The residual is that of the hidden states behind the top block, which all blocks add to. Where the
down projection of a block does not write them directly (`stream`: a norm behind the FFN), a change
of them is no change of its output. There the value is searched at the output of the top layer's
down projection, and that layer is written alone. In Gemma 3 270M, spreading the residual all the
same leaves most of the value unwritten, or breaks the model.

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
    with_keys,
)
from errata.algorithms.locate_then_edit.layer_stats import FFN, site_of
from errata.algorithms.locate_then_edit.stream import stream_scale
from errata.algorithms.locate_then_edit.value_search import ValueResult, ValueSettings, search
from errata.algorithms.locate_then_edit.written import note_left, notice
from errata.core.editor import EditRequest, EditResult
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit
from errata.linalg import covariance, solve


class MultiLayerUpdate(LocateThenEdit):
    """One value per edit, at the top layer; every layer writes a part of the residual.

    Layers are written in ascending order, each on top of those below.
    """

    def layers(self, backbone: Backbone) -> list[int]:
        """The top layer alone, or those below it too that write the hidden states directly."""
        chosen = super().layers(backbone)
        if stream_scale(backbone, chosen[-1]) is None:
            return chosen[-1:]
        return [i for i in chosen if stream_scale(backbone, i) is not None]

    def remarks(self, backbone: Backbone, states: Sequence[State]) -> list[str]:
        """What the user should know of all edits, for the notes; warns of what was not asked for.

        A layer that is named and left out is such a thing, one of the default range is not.
        """
        layers = self.layers(backbone)
        left_out = [i for i in super().layers(backbone) if i not in layers]
        if not left_out:
            return []
        line = (
            f"in {backbone.name} a norm, or another function, stands behind the FFN of layers "
            f"{_named(left_out)}, so that they cannot write their part of the value: written is "
            f"layer {_named(layers)} alone."
        )
        return [notice(self.name, line) if self.config.layers else line]

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        edits, groups = request.edits, request.groups
        owner = torch.tensor([r for r, _ in edits])
        own = [(owner == r).nonzero()[:, 0] for r in range(len(groups))]
        layers, templates = self.layers(backbone), self.templates(backbone, request.seed)
        remarks = self.remarks(backbone, request.prepared)
        values = self.search_values(backbone, edits, templates, seed=request.seed)
        written = self.written(backbone, layers[-1])
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
                if value != site_of(layers[-1], part):  # a residual of the hidden states
                    residual_Eh = residual_Eh / (stream_scale(backbone, layer) or 1.0)
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
                start = values.start[_searched(values, value)].cpu()
                note_left(logs, goals[part], start, now_Eh.cpu(), part)
        after: list[State | None] = list(request.states)
        if self.config.memory != "none":
            for part, of_layer in kept.items():
                after = [
                    with_keys(state, {i: of_layer[i][own[r]] for i in layers}, part)
                    for r, state in enumerate(after)
                ]
        of_group = [[logs[e] for e in rows.tolist()] for rows in own]
        return self.results(backbone, groups, parts, after, of_group, remarks)

    def written(self, backbone: Backbone, top: int) -> dict[str, str]:
        """Part of a block that is written -> the site, in the top layer, whose output it brings to
        the value; in the order in which a block runs them.
        """
        return {FFN: self.value_site(backbone, top)}

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
        site = self.value_site(backbone, layer)
        if site != site_of(layer):
            site = stream_site(backbone, layer)
        return self.search_settings([site])

    def value_site(self, backbone: Backbone, layer: int) -> str:
        """The site whose output the update brings to the value: the block, or, where that is not
        written directly, its down projection.
        """
        direct = stream_scale(backbone, layer) is not None
        return f"text.{layer}.block" if direct else site_of(layer)

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

    def remedy(self) -> str:
        return (
            f"Lower mom2_weight (now {self.config.mom2_weight:g}), so that lambda_over_key in the "
            "notes of the patch is below 1, or choose other --set layers=..."
        )

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


def _named(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
