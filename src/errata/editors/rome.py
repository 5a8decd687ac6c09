"""ROME: one fact as a rank-one change of one down projection.

Source: Meng et al., NeurIPS 2022, code at kmeng01/rome 0874014. The value v is searched at the
output of the FFN of one layer, at the subject's last token. k is the mean key over 21 context
templates (the bare prompt and 20 others), u = C^-1 k / |C^-1 k| with the second moment C of other
texts' keys (`mom2`; without it u = k / |k|). The change is r u^T with r = (v - W k_1) / (k_1 . u),
where k_1 is the key of the bare prompt; then W k_1 = v exactly. The edits of a group are made one
after the other, each on top of those before.

`same_key` divides by k . u of the averaged key instead (r-ROME, Gupta et al. 2024): with the bare
key the denominator can get tiny, which destroys models in sequences of edits.

Differences:
- the change is a low-rank delta in float32; no weight is written;
- the 20 templates are sampled with a seed, as continuations of five words (as zjunlp/EasyEdit
  14cea82 does), not of the end token, which many tokenizers do not put in front of a text;
- the value is searched at the down projection's output, which is that of the FFN in all models
  known;
- targets end with EOS unless a published preset is chosen; `ridge` is as in `memit`;
- `memory` is ours: the keys of earlier edits are added to C, weighed by `mom2_weight` as in MEMIT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit import layer_stats
from errata.algorithms.locate_then_edit.base import (
    KeyReader,
    LocateThenEdit,
    add_ranks,
    live_updates,
    lookup_token,
    mean_key,
    with_keys,
)
from errata.algorithms.locate_then_edit.layer_stats import FFN, site_of
from errata.algorithms.locate_then_edit.value_search import search
from errata.algorithms.locate_then_edit.written import note_left
from errata.core.editor import EditRequest, EditResult
from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit
from errata.linalg import solve

_MEMIT: Mapping[str, Any] = {"lr": 0.5, "mom2_weight": 15000.0}
_PUBLISHED: Mapping[str, Any] = {
    **_MEMIT, "eos": False, "ridge": 0.0, "weight_decay": 0.5, "steps": 20,
}  # fmt: skip
_WITHOUT: Mapping[str, Any] = {**_MEMIT, "eos": False, "mom2": False, "layers": (5,)}


class Rome(LocateThenEdit):
    """Rank-one change that maps one key to one value."""

    name = "rome"
    template_lengths = (5, 5, 10, 10)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {**_MEMIT, "layers": (5,), "token": "last_prompt"},
        "micro-umm": {**_MEMIT, "layers": (1,)},
        "unike_umm": {
            **_MEMIT,
            "layers": (8,),
            "lr": 0.1,
            "eos": False,
            "decay": "squared",
            "scaled": True,
        },
        "gpt2-medium": {**_PUBLISHED, "layers": (8,), "clamp": 3.0},
        "gpt2-large": {**_PUBLISHED, "layers": (12,)},
        "gpt2-xl": {**_PUBLISHED, "layers": (17,)},
        "gpt-j": {**_PUBLISHED, "layers": (5,)},
        "gpt-neox": {**_PUBLISHED, "layers": (15,)},
        "llama-3": _WITHOUT,
        "easyedit": _WITHOUT,
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(LocateThenEdit.Config):
        """layers: one block, () = at a sixth of the depth (5 of 32). same_key: the update is
        divided by the same averaged key that it is made of (r-ROME), not by the bare prompt's.
        mom2: the direction uses the second moment of keys. mom2_weight: weight of that moment
        against the keys of earlier edits, `auto`: the number of a key's features. ridge: added to
        the second moment, relative to tr(C)/d.
        """

        mom2: bool = True
        ridge: float = 0.05
        same_key: bool = False
        mom2_weight: float | Literal["auto"] = "auto"

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        if len(self.config.layers) > 1:
            raise BadSpec(
                f"editor 'rome' writes one layer, not {list(self.config.layers)}. Give one, or use "
                "memit."
            )

    def idle(self) -> Mapping[str, str]:
        c, idle = self.config, dict(super().idle())
        if c.memory == "none":  # u has norm 1
            idle["mom2_weight"] = "memory=none"
        if not c.mom2:
            unused = ("ridge", "mom2_weight", "texts", "edited", "without")
            idle |= dict.fromkeys(unused, "mom2=false")
        return idle

    def layers(self, backbone: Backbone) -> list[int]:
        return [backbone.layer(i) for i in self.config.layers or (backbone.depth // 6,)]

    @property
    def uses_state(self) -> bool:
        return bool(self.config.mom2)

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        layer, templates = self.layers(backbone)[0], self.templates(backbone, request.seed)
        groups, site, states = request.groups, site_of(layer), list(request.states)
        parts: list[dict[str, dict[str, Tensor]]] = [{} for _ in groups]
        logs: list[list[dict[str, Any]]] = [[] for _ in groups]
        searched: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        made: list[tuple[int, Edit]] = []
        for n in range(max(map(len, groups))):
            edits = [(r, g[n]) for r, g in enumerate(groups) if n < len(g)]
            with live_updates(backbone, parts):
                values = search(backbone, edits, templates, self.search_settings([site]))
                reader = KeyReader(backbone, edits, templates, self.config.token, layer)
                keys, now_Eh = reader.read([layer], site, top=layer)
            keys_Ed, bare_Ed = mean_key(keys[layer]).cpu(), keys[layer][:, 0].cpu()
            change_Eh = values.value[site].cpu() - now_Eh.cpu()
            for e, (r, edit) in enumerate(edits):
                used = keys_Ed[e] if self.config.same_key else bare_Ed[e]
                u = self.direction(states[r], layer, keys_Ed[e])
                line = {**values.log[e], "token": lookup_token(edit, self)}
                part = {"A": u[None], "B": change_Eh[e].double()[:, None] / (used.double() @ u)}
                size: dict[str, Any] = {"cosine": round(float(used.double() @ u / used.norm()), 4)}
                update = self.clipped(backbone, site, part["A"], part["B"], size)
                add_ranks(parts[r], site, update)
                line["layers"] = {str(layer): size}
                logs[r].append(line)
                searched.append((line, values.value[site][e].cpu(), values.start[site][e].cpu()))
                if self.config.memory != "none":
                    states[r] = with_keys(states[r], {layer: keys_Ed[e : e + 1]})
            made += edits
        with live_updates(backbone, parts):  # later edits of a group may have moved earlier ones
            reader = KeyReader(backbone, made, ("",), self.config.token, layer)
            _, now_Eh = reader.read([], site, top=layer)
        lines, value, start = zip(*searched, strict=True)
        note_left(lines, torch.stack(value), torch.stack(start), now_Eh.cpu(), FFN)
        return self.results(backbone, groups, parts, states, logs)

    def remedy(self) -> str:
        if self.config.same_key:
            return "Set same_key=false, or make a patch of each edit."
        return "Make a patch of each edit, or choose another --set layers=..."

    def direction(self, state: State | None, layer: int, key_d: Tensor) -> Tensor:
        """[d] u, float64, of norm 1: C^-1 k, with the keys of earlier edits added to C."""
        keys = torch.cat([*self.past_keys(state, layer), key_d[None]]).double()
        if self.config.mom2:
            assert state is not None, "the editor checks that there is a state"
            moment = layer_stats.moment(state, layer)
            weight = layer_stats.weight_of(moment, self.config.mom2_weight)
            smoothed = solve.smoothed(self.factor(state, layer, weight), keys)
        else:
            smoothed = keys / float(key_d.double().square().sum())
        u: Tensor = solve.update(keys, smoothed, 1)[0]
        return torch.nn.functional.normalize(u, dim=0)
