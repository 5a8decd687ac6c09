"""LTE: a model that is aligned once to follow edits in its context; an edit is a retrieved prompt.

Source: Jiang et al., ACL 2024, and its code (four kinds of examples per fact: in scope and out of
scope, with and without the edit in front; LoRA r 8, alpha 16, step 3e-4, or the full model, 2e-5;
facts retrieved by the cosine of the edit's prompt, always shown). VLM port: LiveEdit lte_vl (the
edit's image is shown with it, so that two images are in context; L = NLL in scope with the edit +
1/2 [KL(base || without) + KL(base || with)] out of scope; step 5e-6; shown above cosine 0.3).

Differences:
- the alignment is a delta, part of the patch, and acts out of scope too: locality is measured
  against the unedited model and includes what the alignment costs (LiveEdit's evaluator takes its
  "before" answers from the aligned model, which hides it);
- K edits share one delta (`patches.alignment`) and add their facts to one memory, of which the
  nearest `facts` are shown (EasyEdit and LiveEdit: 1);
- text alone cannot tell two edits with one prompt apart (every caption edit is `a photo of`), so
  retrieval is by text and image unless `by_image` is off; the cosine above which an edit is shown
  is a setting, or chosen on training cases so that `recall` of in-scope questions get their edit;
- one edit is shown in training, with its image, as at inference (the original shows up to three, in
  text); no dropout; the delta is low rank or dense at chosen linear sites, not the whole model;
- training and inference use one template (those of the original differ in a word).

Presets: `paper` (LoRA as published, MiniLM instead of mpnet, which errata does not include),
`vlm_port`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.core.editor import EditRequest, EditResult
from errata.core.kinds import TARGET_KINDS
from errata.core.model.backbone import Backbone
from errata.core.types import Case, Edit
from errata.networks.embedder import choose
from errata.patches.alignment import Alignment
from errata.patches.context import Context, ContextSettings, Fact, compose, vectors_of
from errata.patches.stack import Stack
from errata.training.batches import TrainBatch, TrainExample
from errata.training.loop import Trainee
from errata.training.optimise import generator
from errata.training.trained_editor import TrainedEditor

THRESHOLD_CASES = 200  # training cases that the cosine is chosen on


class LteTrainee(Trainee):
    """Trains the delta on questions with and without the edit in front."""

    module: Alignment

    def __init__(self, backbone: Backbone, config: Any, module: Alignment, floor: int) -> None:
        super().__init__(backbone, config)
        self.module, self.floor = module, floor
        self.weights = {"reliability": 1.0, "generality": 1.0, "locality": config.locality_weight}

    def rows(self, case: Case, rng: torch.Generator) -> list[TrainExample]:
        """In scope with the edit; out of scope with and without it; the edit's prompt without
        it.
        """
        fact = [_fact(case.edit)]
        out: list[TrainExample] = []
        for row in super().rows(case, rng):
            shown = replace(row, prompt=compose(row.prompt, fact, (), "update"))
            if row.role == "locality":
                out += [replace(shown, before=row.prompt), replace(row, before=row.prompt)]
            else:
                out.append(shown)
        if case.edit.old:
            ask, old = case.edit.prompt, case.edit.old
            out.append(TrainExample("locality", ask, old, "alone", ask))
        return out

    def optimiser(self) -> torch.optim.Optimizer:
        """LoRA's factor alpha / r is part of B, as a factor of its step size."""
        c: Any = self.config
        scale = c.alpha / c.rank if c.rank else 1.0
        groups = [
            {"params": [p], "lr": c.lr * (scale if name.endswith(".B") else 1.0)}
            for name, p in self.module.named_parameters()
        ]
        return torch.optim.Adam(groups, lr=c.lr, fused=True)

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        with self.backbone.applied(self.module):
            return batch.losses(batch.logits())


def _fact(edit: Edit) -> Fact:
    return Fact(edit.prompt.text, edit.target.strip(), images=edit.prompt.images)


class Lte(TrainedEditor):
    """An alignment delta, and a memory of edits that are shown in front of similar questions."""

    name = "lte"
    state_settings = ("rank", "layers", "parts", "encoder", "by_image", "recall", "eos")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {"encoder": "backbone", "steps": 400, "lr": 2e-3},
        "paper": {
            "rank": 8, "alpha": 16.0, "lr": 3e-4, "batch_size": 8,
            "gradient_accumulation_steps": 16, "schedule": "cosine", "scope": "always",
            "by_image": False, "encoder": "minilm",
            "parts": ("attn.q", "attn.k", "attn.v", "attn.o"), "layers": (), "eos": True,
        },
        "vlm_port": {
            "rank": 0, "lr": 5e-6, "batch_size": 1, "threshold": 0.3, "by_image": False,
            "encoder": "minilm", "layers": (), "eos": False,
        },
    }  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainedEditor.Config):
        """rank: rank of the trained delta, 0 = dense. alpha: the delta is scaled by alpha / rank.
        layers: text blocks that are trained, () = all. parts: linear sites of a block that are
        trained. locality_weight: weight of the KL on questions out of scope.

        scope: show the nearest edits `always`, or only above the threshold. threshold: least cosine
        of a shown edit; null = chosen on training cases by `recall`. recall: share of in-scope
        questions that must get their edit. facts: most edits shown at once. encoder: what compares
        questions, minilm, backbone, or auto (minilm if installed). by_image: images are compared
        too.
        """

        renamed: ClassVar[Mapping[str, str]] = {"loc_weight": "locality_weight"}
        steps: int = 600
        batch_size: int = 4
        lr: float = 1e-3
        warmup: int = 30
        schedule: Literal["constant", "cosine"] = "cosine"
        generality_examples: int = 2
        locality_examples: int = 4
        generality_pool: int = 2
        locality_pool: int = 2
        held_out: int = 32
        generality_kinds: tuple[str, ...] = ("t_generality", "m_generality", "portability")
        locality_kinds: tuple[str, ...] = ("near_locality", "t_locality", "m_locality")
        rank: int = 16
        alpha: float = 16.0
        layers: tuple[int, ...] = ()
        parts: tuple[str, ...] = (
            "attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down",
        )  # fmt: skip
        locality_weight: float = 1.0
        scope: Literal["always", "retrieved"] = "retrieved"
        threshold: float | None = None
        recall: float = 0.98
        facts: int = 1
        encoder: Literal["auto", "minilm", "backbone"] = "auto"
        by_image: bool = True

    def idle(self) -> Mapping[str, str]:
        c, idle = self.config, dict(super().idle())
        if not c.rank:
            idle["alpha"] = "rank=0"
        if c.scope == "always":
            idle["threshold"] = "scope=always"
        return idle

    def _layers(self, backbone: Backbone) -> list[int]:
        layers = [backbone.layer(i) for i in self.config.layers]
        return layers or list(range(backbone.depth))

    def _delta(self, backbone: Backbone, seed: int, identity: str = "") -> Alignment:
        """The delta before training: it adds nothing."""
        rank, parts = self.config.rank, {}
        layers = [backbone.layer(i) for i in self.config.layers]
        sites = backbone.part_sites(layers, self.config.parts)
        for site in sites:
            into, out = backbone.weight(site)
            if not rank:
                parts[site] = {"dense": torch.zeros(out, into)}
                continue
            drawn = torch.randn(rank, into, generator=generator(seed, self.name, site))
            parts[site] = {"A": drawn / into**0.5, "B": torch.zeros(out, rank)}
        return backbone.place(Alignment(parts, identity=identity))

    def trainee(self, backbone: Backbone, cases: Sequence[Case], seed: int) -> Trainee:
        floor = min(self._layers(backbone))
        return LteTrainee(backbone, self.config, self._delta(backbone, seed), floor)

    def _layout(self, encoder: str, threshold: float) -> ContextSettings:
        c = self.config
        return ContextSettings(
            scope=c.scope, threshold=threshold, facts=c.facts, encoder=encoder, style="update",
            by_image=c.by_image,
        )  # fmt: skip

    def extra(self, backbone: Backbone, trainee: Trainee, cases: Sequence[Case]) -> dict[str, Any]:
        """The cosine that `recall` of the in-scope questions of training cases exceed."""
        c, encoder = self.config, choose(self.config.encoder)
        layout = self._layout(encoder, 0.0)
        rng = generator(0, self.name, "threshold")
        order = torch.randperm(len(cases), generator=rng)[:THRESHOLD_CASES].tolist()
        inside: list[float] = []
        outside: list[float] = []
        for case in (cases[i] for i in order):
            probes = [p for p in case.probes if p.kind in (*c.generality_kinds, *c.locality_kinds)]
            prompts = [case.edit.prompt, *(p.prompt for p in probes)]
            vectors = vectors_of(prompts, layout, backbone)
            for probe, near in zip(probes, (vectors[1:] @ vectors[0]).tolist(), strict=True):
                (inside if probe.kind in TARGET_KINDS else outside).append(near)
        if not inside:
            return {"encoder": encoder, "threshold": 0.0}
        threshold = float(torch.tensor(inside).quantile(1 - c.recall))
        shown = sum(n >= threshold for n in outside) / max(1, len(outside))
        return {
            "encoder": encoder,
            "threshold": round(threshold, 4),
            "shown_out_of_scope": round(shown, 4),
        }

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        deltas: dict[str, Alignment] = {}
        results = []
        for group, state in zip(request.groups, request.prepared, strict=True):
            digest = state.digest()
            if digest not in deltas:
                deltas[digest] = self._delta(backbone, request.seed, digest)
                deltas[digest].load_state_dict(dict(state.tensors))
                deltas[digest].requires_grad_(False)
            threshold = self.config.threshold
            encoder = choose(state.meta["encoder"])
            if threshold is None:
                threshold = state.meta["threshold"]
            layout = self._layout(encoder, threshold)
            vectors = vectors_of([e.prompt for e in group], layout, backbone)
            facts = Context([_fact(e) for e in group], layout, vectors)
            header = self._header(backbone, backbone.fingerprint(), state, request.seed)
            delta = deltas[digest].with_header(header, ())
            results.append(EditResult(Stack([delta, facts.with_header(header, group)]), state))
        return results
