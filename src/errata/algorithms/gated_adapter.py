"""Base of DualEdit and VisEdit: trained adapters behind a gate.

In training and in editing, an adapter reads an edit in the same way: as the hidden states that the
unedited model has at the adapter's site for prompt and target. An edit is one such forward; nothing
is searched.

Shapes: R cases of a training batch, K edits, S columns of an edit, d width of the hidden states, P
probes.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.core import registry
from errata.core.editor import EditRequest, EditResult
from errata.core.errors import BadBackbone, BadSpec, Notice
from errata.core.gate import Gate, TokenColumns, gate_class
from errata.core.hooks.hook import Hook, flat, flat_on_row
from errata.core.kinds import family
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.model.recorder import outputs_at
from errata.core.patch import Patch
from errata.core.state import State
from errata.core.types import Case, Edit, Prompt
from errata.networks.adapter import AdapterNetwork, AdapterSite
from errata.networks.edit_bank import EditBank
from errata.patches.adapter import Adapter
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from errata.training.batches import TrainBatch
from errata.training.loop import Trainee
from errata.training.optimise import encode_edits, generator
from errata.training.trained_editor import TrainedEditor

CHUNK = 64
IN_SCOPE = family("edit", "generality")
OUT_OF_SCOPE = family("far_locality", "near_locality")


def site_behind(backbone: Backbone, layer: int) -> str:
    """The hidden states behind text block `layer`, as the input of the next block.

    They equal the block's output, but training can then start one block later.
    """
    block = backbone.layer(layer)
    return f"text.{block}.block" if block == backbone.depth - 1 else f"text.{block + 1}.in"


class AdapterTrainee(Trainee):
    """The network while it is trained: each case of a batch is a row with its own edit."""

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
        self.gate, self.floor = gate_class("none")(lowest), backbone.block_of(lowest)
        self.weights = editor.loss_weights()
        self.loss_mean: Literal["rows", "tokens"] = c.loss_mean

    def patch(self, batch: TrainBatch) -> Adapter:
        """The edits of a training batch, each applied to the rows of its own case."""
        sites = [p.site for p in self.module.places]
        edits = batch.edits
        encoded = edits if isinstance(edits, Batch) else edits.batch
        outputs = outputs_at(self.backbone, edits, [*dict.fromkeys(sites), self.gate.site])
        bank = EditBank.of(sites, self.gate, encoded, outputs, eos=True)
        return Adapter(self.module, bank, self.gate, rows=len(batch.cases))

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        with self.backbone.applied(self.patch(batch)):
            return batch.losses(batch.logits(), self.loss_mean)


class AdapterEditor(TrainedEditor):
    """Subclasses say where their adapters are (`places`)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainedEditor.Config):
        """mid: width of the cross-attention. heads: its attention heads. marks: learnt embeddings
        on the first target tokens of an edit (0 as published; target tokens then differ by content
        alone). reliability_weight, generality_weight, locality_weight: weight of that loss, each a
        mean over its rows. loss_mean: each loss is the mean over its rows of their means over
        tokens (`rows`), or the mean over all tokens (`tokens`), as in the code of VisEdit and
        DualEdit. gate: what decides when the adapter acts, see `errata list gates`.
        gate_layer: the block behind which the gate's keys are read; null = the site of the lowest
        adapter. Behind a higher block the prompt's last token has attended to the image; each
        prompt then first runs up to there without the edit. threshold: least similarity at which
        the gate opens; null = tuned on training cases. gate_cases: number of these cases.
        tuning_kinds: kinds of probes that the gate shall be shut on when it is tuned. Gate,
        gate_layer and threshold can be changed without training again.
        """

        renamed: ClassVar[Mapping[str, str]] = {
            "rel_weight": "reliability_weight",
            "gen_weight": "generality_weight",
            "loc_weight": "locality_weight",
        }
        since: ClassVar[tuple[str, ...]] = ("tuning_kinds",)
        mid: int = 1024
        heads: int = 8
        marks: int = 0
        reliability_weight: float = 1.0
        generality_weight: float = 2.0
        locality_weight: float = 2.0
        loss_mean: Literal["rows", "tokens"] = "rows"
        gate: str = "prompt"
        gate_layer: int | None = None
        threshold: float | None = None
        gate_cases: int = 256
        tuning_kinds: tuple[str, ...] = OUT_OF_SCOPE

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        self.gate_class = gate_class(self.config.gate)

    def idle(self) -> Mapping[str, str]:
        idle = dict(super().idle())
        if gate_class(self.config.gate).always_open:
            idle["threshold"] = f"gate={self.config.gate}"
        return idle

    def check_model(self, backbone: Backbone) -> None:
        super().check_model(backbone)
        if backbone.images_beside:
            raise BadBackbone(
                f"editor '{self.name}' changes image tokens, and prompts of {backbone.name} have "
                "none: its blocks read images by cross-attention. Choose another --editor."
            )

    def unfit(self, backbone: Backbone, edits: Sequence[Edit]) -> str | None:
        if backbone.images_beside:
            return "changes image tokens, which prompts of this model do not have"
        return super().unfit(backbone, edits)

    @abstractmethod
    def places(self, backbone: Backbone) -> list[AdapterSite]:
        """The adapters, at least one."""

    def gate_site(self, backbone: Backbone) -> str:
        """Where gate keys are read: the site of the lowest adapter unless a layer is set."""
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
        kinds = (*IN_SCOPE, *self.config.tuning_kinds)
        some = [
            case.with_probes(tuple(p for p in case.probes if p.kind in kinds))
            for case in (cases[i] for i in order[: self.config.gate_cases])
        ]
        sites = [site_behind(backbone, i) for i in range(backbone.depth)]
        return {
            "network": trainee.module.settings,
            "thresholds": {
                gate.name: {
                    site: gate.tune(*both)
                    for site, both in similarities(backbone, some, gate, sites).items()
                }
                for gate in registry.usable("gates").values()
                if not gate.always_open
            },
        }

    def gate(self, backbone: Backbone, state: State) -> Gate:
        """The gate as set, with the state's threshold where none is set."""
        cls, site, threshold = self.gate_class, self.gate_site(backbone), self.config.threshold
        if cls.always_open:
            return cls(site)
        if threshold is None:
            threshold = state.meta["thresholds"].get(cls.name, {}).get(site)
        if threshold is None:
            raise BadSpec(
                f"this state of '{self.name}' has no threshold for the gate '{cls.name}': its "
                "training cases had no questions to tune one on, or the gate is newer than the "
                "state. Set one: --set threshold=0.8, choose --set gate=none, or prepare again."
            )
        return cls(site, float(threshold))

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        if self.gate_class.warning:
            warnings.warn(self.gate_class.warning, Notice, stacklevel=2)
        for _, edit in request.edits:
            self.check(edit)
        results = []
        for bank, state in zip(self._banks(backbone, request), request.prepared, strict=True):
            patch = Adapter(AdapterNetwork.of(state), bank, self.gate(backbone, state))
            results.append(EditResult(backbone.place(patch), state))
        return results

    def _banks(self, backbone: Backbone, request: EditRequest) -> list[EditBank]:
        """One bank per group, read from the model without adapters."""
        sites, flat = [p.site for p in self.places(backbone)], request.edits
        gate = self.gate(backbone, request.prepared[0])
        recorded = [*dict.fromkeys(sites), gate.site]
        parts: list[list[EditBank]] = [[] for _ in request.groups]
        with _adapters_off(backbone):
            for start in range(0, len(flat), CHUNK):
                some = flat[start : start + CHUNK]
                batch, _ = encode_edits(backbone, [[e] for _, e in some], eos=self.config.eos)
                rows = torch.tensor([r for r, _ in some], device=batch.ids.device)
                if backbone.hooks.stack:  # an earlier patch of their row may rewrite prompts
                    batch = backbone.encode(
                        [e.prompt for _, e in some], [e.target for _, e in some],
                        eos=self.config.eos, rows=rows.tolist(),
                    )  # fmt: skip
                outputs = outputs_at(backbone, batch, recorded, rows)
                bank = EditBank.of(sites, gate, batch, outputs, eos=self.config.eos)
                for b, (r, _) in enumerate(some):
                    parts[r].append(bank.single(b))
        return [EditBank.union(banks) for banks in parts]


@contextmanager
def _adapters_off(backbone: Backbone) -> Iterator[None]:
    """Only adapters are switched off: edits are read from the hidden states that they receive."""
    others = [_without_adapters(hook) for hook in backbone.hooks.stack]
    with backbone.only(*(hook for hook in others if hook.sites or hook.rewrites)):
        yield


def _without_adapters(hook: Hook) -> Hook:
    if isinstance(hook, Rows):
        return Rows([Stack(_others(flat_on_row([hook], r))) for r in range(hook.rows)])
    others = _others(flat([hook]))
    return Stack(others) if isinstance(hook, Patch) else hook


def _others(hooks: Sequence[Hook]) -> list[Patch]:
    return [h for h in hooks if isinstance(h, Patch) and not isinstance(h, Adapter)]


def similarities(
    backbone: Backbone, cases: Sequence[Case], gate: type[Gate], sites: Sequence[str]
) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Site -> similarities [P] of the cases' probes to their edits, by kind: (in, out of scope)."""
    gates = [gate(site) for site in sites]
    edits = [(c.edit.prompt, c.edit.target) for c in cases]
    parts = [keys for keys, _ in _keys(backbone, edits, gates)]
    edit_keys = {s: torch.cat([part[s] for part in parts]) for s in sites}
    probes = [(i, p) for i, c in enumerate(cases) for p in c.probes if p.reference.strip()]
    probes = [(i, p) for i, p in probes if p.kind in (*IN_SCOPE, *OUT_OF_SCOPE)]
    near: dict[str, list[Tensor]] = {s: [] for s in sites}
    questions = [(p.prompt, p.reference) for _, p in probes]
    for keys, part in _keys(backbone, questions, gates):
        case_of = [i for i, _ in probes[part]]
        for g in gates:
            near[g.site].append(g.similarity(keys[g.site], edit_keys[g.site][case_of]))
    index: dict[str, list[int]] = {}
    for n, (_, p) in enumerate(probes):
        index.setdefault(p.kind, []).append(n)
    out = {}
    for s in sites:
        values = torch.cat(near[s]) if near[s] else torch.empty(0)
        by_kind = {kind: values[at] for kind, at in index.items()}
        out[s] = (
            {k: v for k, v in by_kind.items() if k in IN_SCOPE},
            {k: v for k, v in by_kind.items() if k in OUT_OF_SCOPE},
        )
    return out


def _keys(
    backbone: Backbone, questions: Sequence[tuple[Prompt, str]], gates: Sequence[Gate]
) -> Iterator[tuple[dict[str, Tensor], slice]]:
    """Per part of (prompt, answer) pairs: site -> gate keys [p, d], and which part it is.

    The model is given the answers only if the gates read them.
    """
    with_answers = any(g.reads_answer for g in gates)
    for start in range(0, len(questions), CHUNK):
        part = slice(start, start + CHUNK)
        prompts, answers = [p for p, _ in questions[part]], [a for _, a in questions[part]]
        batch = backbone.encode(prompts, answers if with_answers else None)
        outputs = outputs_at(backbone, batch, [g.site for g in gates])
        columns = TokenColumns.of(batch)
        yield (
            {
                g.site: g.key(states.float(), columns.to(states.device)).cpu()
                for g in gates
                for states in (outputs[g.site],)
            },
            part,
        )
