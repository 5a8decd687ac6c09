"""Scope `knn`: cosine of the last prompt tokens of question and edit, with one threshold.

Nothing is trained. On training cases the block and its threshold are chosen: those with the best
balanced accuracy, each kind of question with the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch.nn.functional import normalize

from errata.core.errors import BadSpec
from errata.core.gate import Gate
from errata.core.model.backbone import Backbone
from errata.core.model.scope import state_label
from errata.core.state import State
from errata.core.types import Case
from errata.scopes._cases import Labelled, balanced, last_states, some_of
from errata.scopes._cosine import CosineScope


class KnnScope(CosineScope):
    """The nearest edit by the last prompt token, if it is near enough."""

    name = "knn"
    reach = "questions that look alike inside the model (tuned first, once)"
    keeps_state = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CosineScope.Config):
        """layer: the block whose input is read, negative from the end; null = the best one on the
        training cases. threshold: least cosine of a question that belongs to an edit; null = the
        best one on the training cases. cases: number of these cases.
        """

        cases: int = 150

    def settings_of_state(self) -> dict[str, Any]:
        return {"cases": self.config.cases}

    def learn(self, backbone: Backbone, cases: Sequence[Case], *, seed: int) -> State | None:
        asked = Labelled.of(some_of(cases, self.config.cases, seed))
        sites = [f"text.{i}.in" for i in range(1, backbone.depth)]
        edits = last_states(backbone, asked.edits, sites)
        probes = last_states(backbone, asked.asked, sites)
        thresholds, accuracy = {}, {}
        for site in sites:
            cosine = normalize(probes[site], dim=-1) * normalize(edits[site], dim=-1)[asked.of_case]
            inside, outside = asked.by_kind(cosine.sum(-1))
            threshold = Gate.tune(inside, outside)
            if threshold is not None:
                thresholds[site] = threshold
                accuracy[site] = balanced(inside, outside, threshold)
        meta = {"thresholds": thresholds, "accuracy": accuracy}
        return State(state_label(self.name), meta) if thresholds else None

    def for_model(self, backbone: Backbone) -> Self:
        layer, threshold = self.config.layer, self.config.threshold
        if layer is None:
            best = self.prepared(backbone).meta["accuracy"]
            layer = int(max(best, key=best.get).split(".")[1])
        layer = backbone.layer(layer)
        if threshold is None:
            thresholds = self.prepared(backbone).meta["thresholds"]
            threshold = thresholds.get(f"text.{layer}.in")
        if threshold is None:
            raise BadSpec(
                f"the state of the scope 'knn' has no threshold for block {layer}. Set one: "
                "--scope-set threshold=0.9, or choose another layer."
            )
        return self.read_at(backbone, layer, float(threshold))
