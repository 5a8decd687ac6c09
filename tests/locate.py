"""Locate-then-edit editors on tiny models: what they search, and what of it arrives."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from errata import editor
from errata.algorithms.locate_then_edit import corpus, multi_layer
from errata.algorithms.locate_then_edit.layer_stats import StatsSettings, collect, site_of
from errata.algorithms.locate_then_edit.value_search import ColumnRecorder, ColumnShift, search
from errata.core.editor import EditResult
from errata.core.errors import Notice
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.patches.delta import Delta

#: the layer at which all of them search
TOP = 2
#: editor -> settings with which nearly all of a value can be written
WHOLE: dict[str, dict[str, Any]] = {
    "rome": {"layers": (TOP,), "ridge": 0.5},
    "memit": {"layers": (1, TOP), "ridge": 0.5, "mom2_weight": 1e-3},
    "pmet": {"layers": (1, TOP), "ridge": 0.5, "mom2_weight": 1e-3},
    "alphaedit": {
        "layers": (1, TOP), "L2": 1e-3, "threshold": "relative", "nullspace_threshold": 0.9,
    },
}  # fmt: skip
#: editor -> settings with which hardly anything of it is written
LITTLE: dict[str, dict[str, Any]] = {
    "rome": {"max_upd_ratio": 1e-4},
    "memit": {"mom2_weight": 1e6},
    "pmet": {"mom2_weight": 1e6},
    "alphaedit": {"L2": 1e6},
}
EDITS = [
    Edit(Prompt.of("The colour of the ring is"), "green", "the ring", id="ring"),
    Edit(Prompt.of("Which shape has the New Fact?"), "blue thing", "New Fact", id="fact"),
]


def made(name: str, **more: Any) -> Any:
    """The editor, with a short search and `WHOLE`."""
    short = {"steps": 4, "lr": 0.3, "context_templates": "none", "kl_factor": 0.0}
    return editor(name, **{**short, **WHOLE[name], **more})


def statistics(bb: Backbone, *, attention: bool = False) -> State:
    """The moments of a model's keys, over a hundred short lines."""
    lines = [f"The {a} of the {b} is {c}" for a in "abcd" for b in "uvwxyz" for c in ("red", "it")]
    documents = [corpus.Document(Prompt.of(line)) for line in lines]
    source = corpus.Corpus("lines", "lines", len(lines), lambda: iter(documents))
    return collect(bb, source, StatsSettings(attention=attention))


def edit_and_listen(
    made: Any, bb: Backbone, edits: Sequence[Edit], state: State
) -> tuple[EditResult, str]:
    """The result, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = made.edit(bb, edits, state)
    return result, "\n".join(str(w.message) for w in said if issubclass(w.category, Notice))


def share_missing(bb: Backbone, made: Any, edit: Edit, result: EditResult, site: str = "") -> float:
    """How far the patch leaves a site's output from what it is with the searched value in place.

    At the subject of the bare prompt, relative to the change that the value makes there. site: ""
    = where the value was searched. A value of the top layer alone is searched, and put in place,
    behind the layers below.
    """
    one, below = [(0, edit)], Delta({})
    if isinstance(made, multi_layer.MultiLayerUpdate):
        if len(made.stages(bb)) > 1:
            lower = {s: dict(result.patch.part(s)) for s in result.patch.sites - {site_of(TOP)}}
            below = Delta(lower).requires_grad_(False)
        with bb.applied(below):
            values = made.search_values(bb, one, ("",), TOP, seed=0)
    else:
        values = search(bb, one, ("",), made.search_settings([site_of(TOP)]))
    searched, placed = next(iter(values.value)), [next(iter(values.value))]
    if isinstance(made, multi_layer.MultiLayerUpdate):
        written = next(iter(made.written(bb, TOP).values()))
        searched = multi_layer.searched_site(bb, values, written)
        placed = list(made.value_settings(bb, TOP).sites)
    if searched in placed:  # the others, if any, are dropped
        placed = [searched]
    columns = torch.tensor([bb.last_column(edit.prompt, str(edit.subject))])
    value = ColumnShift(placed, columns, torch.tensor([0]))
    value.delta = {s: values.value[s] - values.start[s] for s in placed}

    def output(*hooks: Hook) -> torch.Tensor:
        look = ColumnRecorder([site or searched], columns)
        with torch.no_grad(), bb.applied(*hooks, look):
            bb.logits(bb.encode([edit.prompt]))
        return look.y[site or searched][0]

    before, after, wanted = output(below), output(result.patch), output(below, value)
    return float((wanted - after).norm() / (wanted - before).norm())
