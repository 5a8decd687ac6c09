"""MEMIT and its relatives: one value per edit, its residual spread over several blocks.

The residual is that of the hidden states behind the top block, which all blocks add to. Where the
down projection of a block does not write them directly (`stream`: a norm behind the FFN), a change
of them is no change of its output. There a value is searched for each layer, at the output of its
own down projection, on top of what the layers below have written; of its residual a layer writes
the same part. In Gemma 3 270M the one residual of the hidden states is left unwritten, or breaks
the model; a value at the top layer alone holds, but takes a change of its weight six times as large
as that of three layers with values of their own.

Shapes: E edits of all groups, n of one, d inputs and h outputs of a down projection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from errata.algorithms.locate_then_edit.stream import stream_of, stream_scale, stream_site
from errata.algorithms.locate_then_edit.value_search import ValueResult, ValueSettings, search
from errata.algorithms.locate_then_edit.written import note_left
from errata.core.editor import EditRequest, EditResult
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit
from errata.linalg import covariance, solve


class MultiLayerUpdate(LocateThenEdit):
    """One value per edit, at the top layer; every layer writes a part of the residual.

    Layers are written in ascending order, each on top of those below. See `stages` for the layers
    that cannot share a value.
    """

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        edits, layers = request.edits, self.layers(backbone)
        templates = self.templates(backbone, request.seed)
        remarks = self.remarks(backbone, request.prepared)
        reader = KeyReader(backbone, edits, templates, self.config.token, layers[0])
        parts: list[Parts] = [{} for _ in request.groups]
        logs: list[dict[str, Any]] = [{} for _ in edits]
        kept: dict[str, dict[int, Tensor]] = {}
        for stage in self.stages(backbone):
            with live_updates(backbone, parts):
                values = self.search_values(
                    backbone, edits, templates, stage[-1], seed=request.seed
                )
            self._note_search(logs, values, edits)
            written = self.written(backbone, stage[-1])
            searched = {p: searched_site(backbone, values, site) for p, site in written.items()}
            goals = {p: values.value[site].cpu() for p, site in searched.items()}
            self._write(backbone, request, stage, goals, reader, parts, logs)
            with live_updates(backbone, parts):
                for part, site in written.items():
                    keys, now_Eh = reader.read(stage, site, top=stage[-1], part=part)
                    kept.setdefault(part, {}).update(
                        {i: bare_and_mean(keys[i]).cpu() for i in stage}
                    )
                    start = values.start[searched[part]].cpu()
                    note_left(logs, goals[part], start, now_Eh.cpu(), part)
        own = _rows_of(request)
        after: list[State | None] = list(request.states)
        if self.config.memory != "none":
            for part, of_layer in kept.items():
                after = [
                    with_keys(state, {i: k[own[r]] for i, k in of_layer.items()}, part)
                    for r, state in enumerate(after)
                ]
        of_group = [[logs[e] for e in rows.tolist()] for rows in own]
        return self.results(backbone, request.groups, parts, after, of_group, remarks)

    def _write(
        self,
        backbone: Backbone,
        request: EditRequest,
        stage: Sequence[int],
        goals: Mapping[str, Tensor],
        reader: KeyReader,
        parts: Sequence[Parts],
        logs: Sequence[dict[str, Any]],
    ) -> None:
        """Adds the updates of these layers to `parts`; goals: the values of each part."""
        layers, top, own = self.layers(backbone), stage[-1], _rows_of(request)
        for layer in stage:
            divisor = self.residual_divisor(layers.index(layer), len(layers))
            for part, value in self.written(backbone, top).items():
                with live_updates(backbone, parts):
                    keys, now_Eh = reader.read([layer], value, top=top, part=part)
                keys_Ed = bare_and_mean(keys[layer]).cpu()
                residual_Eh = (goals[part] - now_Eh.cpu()) / divisor
                if value != site_of(top, part):  # a residual of the hidden states
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

    def _note_search(
        self, logs: Sequence[dict[str, Any]], values: ValueResult, edits: Sequence[tuple[int, Edit]]
    ) -> None:
        """Adds the log of a search to those of the stages before it: the last one counts, but the
        updates are added up.
        """
        for line, new, (_, edit) in zip(logs, values.log, edits, strict=True):
            counts = {k: line.get(k, 0) + new[k] for k in ("steps", "clamped")}
            line.update({**new, **counts, "token": lookup_token(edit, self)})

    def stages(self, backbone: Backbone) -> list[list[int]]:
        """The layers, in lists that share a value, which is searched at the last of a list.

        All share one where every layer adds the output of its down projection to the hidden
        states; else each has its own.
        """
        layers = self.layers(backbone)
        return [layers] if _is_direct(backbone, layers) else [[i] for i in layers]

    def remarks(self, backbone: Backbone, states: Sequence[State]) -> list[str]:
        """What the user should know of all edits, for the notes; warns of it too."""
        return []

    def written(self, backbone: Backbone, top: int) -> dict[str, str]:
        """Part of a block that is written -> the site, in the top layer of a stage, whose output it
        brings to the value; in the order in which a block runs them.
        """
        return {FFN: self.value_site(backbone, top)}

    def search_values(
        self,
        backbone: Backbone,
        edits: Sequence[tuple[int, Edit]],
        templates: Sequence[str],
        layer: int,
        *,
        seed: int,
    ) -> ValueResult:
        """The values of all edits at a layer; the one of the first site is written."""
        return search(backbone, edits, templates, self.value_settings(backbone, layer))

    def value_settings(self, backbone: Backbone, layer: int) -> ValueSettings:
        """Settings of the value search; the value of the first site is written."""
        site = self.value_site(backbone, layer)
        if site != site_of(layer):
            site = stream_site(backbone, layer)
        return self.search_settings([site])

    def value_site(self, backbone: Backbone, layer: int) -> str:
        """The site whose output the update brings to the value: the block, or, where layers do not
        share a value, the down projection.
        """
        shared = _is_direct(backbone, [layer, *self.layers(backbone)])
        return f"text.{layer}.block" if shared else site_of(layer)

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
        """mom2_weight: weight (lambda) of the second moment against the keys of edits; `auto` is
        the number of a key's features. ridge: added to the second moment, relative to tr(C)/d.
        """

        mom2_weight: float | Literal["auto"] = "auto"
        ridge: float = 0.05

    def remedy(self) -> str:
        weight = self.config.mom2_weight
        now = weight if isinstance(weight, str) else f"{weight:g}"
        return (
            f"Lower mom2_weight (now {now}), so that lambda_over_key in the "
            "notes of the patch is below 1, or choose other --set layers=..."
        )

    def key_factor(
        self, state: State, layer: int, keys_nd: Tensor, part: str = FFN
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """A^T = (lambda C + K_p K_p^T + K K^T)^-1 K; K_p are the keys of earlier edits."""
        moment = layer_stats.moment(state, layer, part)
        weight = layer_stats.weight_of(moment, self.config.mom2_weight)
        cost = weight * covariance.scale(moment)
        notes = [{"lambda_over_key": cost / float(k.double().square().sum())} for k in keys_nd]
        keys = torch.cat([*self.past_keys(state, layer, part), keys_nd])
        smoothed = solve.smoothed(self.factor(state, layer, weight, part), keys)
        return solve.update(keys, smoothed, len(keys_nd)), notes


def searched_site(backbone: Backbone, values: ValueResult, site: str) -> str:
    """The site of the value that the output of `site` is brought to: itself, or the hidden states
    that it is added to.
    """
    return site if site in values.value else stream_of(backbone, site)


def _is_direct(backbone: Backbone, layers: Sequence[int]) -> bool:
    """Whether all these layers add the output of their down projection to the hidden states."""
    return all(stream_scale(backbone, i) is not None for i in layers)


def _rows_of(request: EditRequest) -> list[Tensor]:
    """Per group the indices of its edits among all."""
    owner = torch.tensor([r for r, _ in request.edits])
    return [(owner == r).nonzero()[:, 0] for r in range(len(request))]
