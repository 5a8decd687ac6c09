"""The frame of editors whose edit is what a trained network makes of the edit's own sequence.

Training and editing read the same thing: the states that the unedited model has at the adapters'
sites when prompt and target of the edit are put to it. To edit is one such forward, no search.

Shapes: R cases of a batch, K edits, S columns of an edit, d stream width, P probes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.core.backbone import Backbone
from errata.core.batch import Batch
from errata.core.editor import EditRequest, EditResult
from errata.core.errors import BadSpec
from errata.core.hooks.hook import Hook, flat
from errata.core.patch import Patch, flat_on_row
from errata.core.recorder import outputs_at
from errata.core.state import State
from errata.core.types import Case, Edit, Prompt
from errata.patches.adapter import Adapter, AdapterNetwork, AdapterSite, EditBank, Gate
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from errata.training.batches import TrainBatch
from errata.training.loop import TrainedEditor, Trainee
from errata.training.optimise import encode_edits, generator

CHUNK = 64
IN_SCOPE = ("reliability", "t_generality", "m_generality")
OUT_OF_SCOPE = ("t_locality", "m_locality", "near_locality")


def site_behind(backbone: Backbone, layer: int) -> str:
    """The stream behind text block `layer`, seen where the next block begins.

    Equal to the block's output, and a search or a training then enters one block later.
    """
    found = backbone.layer(layer)
    return f"text.{found}.block" if found == backbone.depth - 1 else f"text.{found + 1}.in"


def banked(
    places: Sequence[AdapterSite],
    gate: Gate,
    batch: Batch,
    seen: Mapping[str, Tensor],
    *,
    eos: bool = True,
) -> EditBank:
    """The edits of a batch as a bank, edit b belonging to row b.

    `eos`: the targets end with the end token, which the leaking gate's questions do not have.
    """
    rows = torch.arange(batch.size, device=batch.ids.device)
    real_BT = batch.mask.bool()
    lengths = real_BT.sum(1)
    states = tuple(seen[p.site].float() * real_BT[..., None] for p in places)
    at = lengths - 1 - int(eos) if gate.kind == "leaky" else batch.lengths - 1
    keys = seen[gate.site].float()[rows, at]
    return EditBank(states, keys, lengths, batch.lengths - 1, rows)


class AdapterTrainee(Trainee):
    """A network under training: edits and questions of a batch, one row of edits per case."""

    module: AdapterNetwork

    def __init__(self, backbone: Backbone, editor: AdapterEditor, seed: int) -> None:
        super().__init__(backbone, editor.config)
        c, places = editor.config, editor.places(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator(seed, editor.name))))
            self.module = AdapterNetwork(
                places, width=backbone.width, mid=c.mid, heads=c.heads, marks=c.marks
            )
        for i, place in enumerate(places):
            self.module.attention[i].to(backbone.device_of(place.site))
            if place.influence:
                self.module.influence[str(i)].to(backbone.device_of(place.site))
        lowest = min((p.site for p in places), key=backbone.block_of)
        self.gate, self.floor = Gate("none", lowest), backbone.block_of(lowest)
        self.weights = editor.loss_weights()

    def patch(self, batch: TrainBatch) -> Adapter:
        """The edits of a batch, live on the rows of their own cases."""
        sites = [*{p.site: None for p in self.module.places}, self.gate.site]
        edits = batch.edits
        encoded = edits if isinstance(edits, Batch) else edits.batch
        bank = banked(
            self.module.places, self.gate, encoded, outputs_at(self.backbone, edits, sites)
        )
        return Adapter(self.module, bank, self.gate, rows=len(batch.cases))

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        with self.backbone.applied(self.patch(batch)):
            return batch.losses(batch.logits())


class AdapterEditor(TrainedEditor):
    """Subclasses say where their adapters are."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainedEditor.Config):
        """mid, heads: of the cross-attention. marks: that many target tokens of an edit carry a
        learnt mark (0: none, as published; the network then has to tell them by their content).

        reliability_weight, generality_weight, locality_weight: of the losses, each a mean over its
        rows. gate: prompt, leaky or none, see `errata.patches.adapter.Gate`. gate_layer: the block
        behind which keys are compared, null for the lowest adapter's; a higher one has read the
        image, and questions are then rehearsed up to there, unedited. Both can be changed without
        training again. threshold: of the gate; null = the one tuned on training cases. gate_cases:
        how many.
        """

        renamed: ClassVar[Mapping[str, str]] = {
            "rel_weight": "reliability_weight",
            "gen_weight": "generality_weight",
            "loc_weight": "locality_weight",
        }
        mid: int = 1024
        heads: int = 8
        marks: int = 0
        reliability_weight: float = 1.0
        generality_weight: float = 2.0
        locality_weight: float = 2.0
        gate: Literal["prompt", "none", "leaky"] = "prompt"
        gate_layer: int | None = None
        threshold: float | None = None
        gate_cases: int = 256

    @abstractmethod
    def places(self, backbone: Backbone) -> list[AdapterSite]:
        """The adapters, at least one."""

    def gate_site(self, backbone: Backbone) -> str:
        """Where gate keys are compared: the lowest adapter's site unless one is set."""
        if self.config.gate_layer is not None:
            return site_behind(backbone, self.config.gate_layer)
        return min((p.site for p in self.places(backbone)), key=backbone.block_of)

    def loss_weights(self) -> dict[str, float]:
        c = self.config
        return {
            "reliability": c.reliability_weight,
            "generality": c.generality_weight,
            "locality": c.locality_weight,
        }

    def check(self, edit: Edit) -> None:
        """Raises BadEdit for an edit that this editor cannot make."""
        return

    def trainee(self, backbone: Backbone, cases: Sequence[Case], seed: int) -> Trainee:
        return AdapterTrainee(backbone, self, seed)

    def extra(self, backbone: Backbone, trainee: Trainee, cases: Sequence[Case]) -> dict[str, Any]:
        assert isinstance(trainee, AdapterTrainee)
        order = torch.randperm(len(cases), generator=generator(0, "gate")).tolist()
        some = [cases[i] for i in order[: self.config.gate_cases]]
        sites = [site_behind(backbone, i) for i in range(backbone.depth)]
        return {
            "network": trainee.module.settings,
            "thresholds": {
                kind: {
                    s: tuned(*near) for s, near in similarities(backbone, some, kind, sites).items()
                }
                for kind in ("prompt", "leaky")
            },
        }

    def gate(self, backbone: Backbone, state: State) -> Gate:
        """The gate as set, with the state's threshold where none is set."""
        c, site = self.config, self.gate_site(backbone)
        if c.gate == "none":
            return Gate("none", site)
        tau = state.meta["thresholds"][c.gate][site] if c.threshold is None else c.threshold
        if tau is None:
            raise BadSpec(
                f"the training cases of this state of '{self.name}' did not hold what its gate's "
                "threshold is tuned on. Set one: --set threshold=0.8, or --set gate=none."
            )
        return Gate(c.gate, site, float(tau))

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        for _, edit in request.edits:
            self.check(edit)
        results = []
        for bank, state in zip(self._banks(backbone, request), request.prepared, strict=True):
            patch = Adapter(AdapterNetwork.of(state), bank, self.gate(backbone, state))
            results.append(EditResult(backbone.place(patch), state))
        return results

    def _banks(self, backbone: Backbone, request: EditRequest) -> list[EditBank]:
        """One bank per group, read from the model as it is below any adapter."""
        places, flat = self.places(backbone), request.edits
        gate = self.gate(backbone, request.prepared[0])
        sites = [*{p.site: None for p in places}, gate.site]
        parts: list[list[EditBank]] = [[] for _ in request.groups]
        with _adapters_off(backbone):
            for start in range(0, len(flat), CHUNK):
                some = flat[start : start + CHUNK]
                batch, _ = encode_edits(backbone, [[e] for _, e in some], eos=self.config.eos)
                rows = torch.tensor([r for r, _ in some], device=batch.ids.device)
                if backbone.hooks.stack:  # prompts may be rewritten by what is live on their row
                    batch = backbone.encode(
                        [e.prompt for _, e in some], [e.target for _, e in some],
                        eos=self.config.eos, rows=rows.tolist(),
                    )  # fmt: skip
                seen = outputs_at(backbone, batch, sites, rows)
                whole = banked(places, gate, batch, seen, eos=self.config.eos)
                for b, (r, _) in enumerate(some):
                    parts[r].append(_single(whole, b))
        return [EditBank.union(bs, [b.owner for b in bs]) for bs in parts]


def _single(bank: EditBank, b: int) -> EditBank:
    """Edit b alone, without padding, so that it does not depend on what it was found with."""
    length = int(bank.lengths[b])
    states = tuple(s[b : b + 1, :length].clone() for s in bank.states)
    one = slice(b, b + 1)
    return EditBank(
        states, bank.keys[one].clone(), bank.lengths[one].clone(), bank.ends[one].clone(),
        torch.zeros_like(bank.owner[one]),
    )  # fmt: skip


@contextmanager
def _adapters_off(backbone: Backbone) -> Iterator[None]:
    """What is live stays live, but for adapters: an edit is read from the stream they see."""
    bare = [_bare(hook) for hook in backbone.hooks.stack]
    with backbone.only(*(hook for hook in bare if hook.sites or hook.rewrites)):
        yield


def _bare(hook: Hook) -> Hook:
    if isinstance(hook, Rows):
        return Rows([Stack(_others(flat_on_row([hook], r))) for r in range(hook.rows)])
    others = _others(flat([hook]))
    return Stack(others) if isinstance(hook, Patch) else hook


def _others(hooks: Sequence[Hook]) -> list[Patch]:
    return [h for h in hooks if isinstance(h, Patch) and not isinstance(h, Adapter)]


def similarities(
    backbone: Backbone,
    cases: Sequence[Case],
    kind: Literal["prompt", "leaky"],
    sites: Sequence[str],
) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Site -> cosines of cases' probes with their edits, by kind: (in scope, out of scope), [P]."""
    leaky = kind == "leaky"
    edits = [(c.edit.prompt, c.edit.target) for c in cases]
    keys = [seen for seen, _ in _gate_states(backbone, edits, sites, leaky)]
    keys_at = {s: torch.cat([k[s] for k in keys]) for s in sites}
    asked = [(i, p) for i, c in enumerate(cases) for p in c.probes if p.reference.strip()]
    asked = [(i, p) for i, p in asked if p.kind in (*IN_SCOPE, *OUT_OF_SCOPE)]
    near: dict[str, list[Tensor]] = {s: [] for s in sites}
    for seen, few in _gate_states(
        backbone, [(p.prompt, p.reference) for _, p in asked], sites, leaky
    ):
        own = [i for i, _ in asked[few]]
        for s in sites:
            near[s].append(torch.cosine_similarity(seen[s], keys_at[s][own], dim=-1))
    index: dict[str, list[int]] = {}
    for n, (_, p) in enumerate(asked):
        index.setdefault(p.kind, []).append(n)
    out = {}
    for s in sites:
        all_near = torch.cat(near[s]) if near[s] else torch.empty(0)
        found = {k: all_near[at] for k, at in index.items()}
        out[s] = (
            {k: v for k, v in found.items() if k in IN_SCOPE},
            {k: v for k, v in found.items() if k in OUT_OF_SCOPE},
        )
    return out


def _gate_states(
    backbone: Backbone, asked: Sequence[tuple[Prompt, str]], sites: Sequence[str], leaky: bool
) -> Iterator[tuple[dict[str, Tensor], slice]]:
    """Per part of what is asked: site -> [p, d] what the gate compares, and which part it is.

    The answers are used by gate `leaky` alone.
    """
    for start in range(0, len(asked), CHUNK):
        few = slice(start, start + CHUNK)
        told = [answer for _, answer in asked[few]] if leaky else None
        batch = backbone.encode([prompt for prompt, _ in asked[few]], told)
        streams = outputs_at(backbone, batch, sites)
        at = batch.mask.sum(1) - 1 if leaky else batch.lengths - 1
        rows = torch.arange(batch.size, device=at.device)
        yield {s: streams[s].float()[rows, at].cpu() for s in sites}, few


def tuned(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> float | None:
    """The threshold with the best balanced accuracy, every kind counting as one.

    Half way between the two cosines that it parts; None without examples of both sorts.
    """
    if not inside or not outside:
        return None
    values = torch.unique(torch.cat([*inside.values(), *outside.values()]))
    cuts = torch.cat([values[:1] - 1e-3, (values[1:] + values[:-1]) / 2, values[-1:] + 1e-3])

    def share(kinds: Mapping[str, Tensor], above: bool) -> Tensor:
        parts = []
        for v in kinds.values():
            below = torch.searchsorted(v.sort().values, cuts) / len(v)
            parts.append(1 - below if above else below)
        return torch.stack(parts).mean(0)

    best = (share(inside, True) + share(outside, False)).argmax()
    return round(float(cuts[best]), 6)
