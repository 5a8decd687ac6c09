"""VisEdit: an adapter on the image tokens of one layer, weighted by an influence mapper.

Source: Chen et al., AAAI 2025 (VisEdit), and its code at 26419f2 (where it is called VEAD). Behind
one block the image tokens attend to the hidden states that the edit (prompt and target) has there;
the result is weighted per token by an influence mapper, which compares the token with the edit's
last prompt token. Both are trained once, with l = NLL(rel) + NLL(T-gen) + NLL(M-gen) + KL(M-loc) +
0.1 (rank + up + down), and frozen. An edit is one forward of its prompt and target. Preset `paper`:
LLaVA-1.5, layer 18, attention modules 19 to 30, width 1024, 8 heads, Adam 1e-4, batches of 4;
`paper-blip2-opt` (19; 20 to 30) and `paper-minigpt4` (17; 18 to 30) are its other models.

The mapper's targets: Gaussian noise (sigma 0.7) on one image token at the input of an attention
module; the influence is 1 - cosine of its clean and noisy output at the last prompt token, the mean
over modules, normalised over the sampled tokens. rank: cross-entropy of the mapper's softmax to it;
up and down: the mapper is high on images of the edit and low on images of locality questions.

Differences:
- the code means to measure the noise on the image whose tokens are ranked, which may be the
  rephrased one, but indexes one number instead of a slice, so the target is always that of the
  edit's own image. Here it is measured on the question that is ranked.
- targets do not change in training, so each is measured once, in a forward of its own.
- the last linear map of the cross-attention starts at zero; `marks` distinguishes the edit's target
  tokens from its prompt (0 in `paper`), see `errata.algorithms.gated_adapter`.
- a patch can hold several edits; the gate chooses one. The code holds one. Gate `none` (as
  published) lets every question with an image pass, `prompt` is DualEdit's gate without its leak.
- losses are means over examples of means over tokens; the code's are means over all tokens of a
  role: `loss_mean=tokens`.
- text-only questions have no image tokens: their locality is 100 by construction, and an edit
  without an image is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from errata.algorithms.attribution import noise_influence
from errata.algorithms.gated_adapter import AdapterEditor, AdapterTrainee, site_behind
from errata.core.errors import BadEdit
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import outputs_at
from errata.core.types import Case, Edit, Prompt, digest
from errata.networks.adapter import AdapterSite
from errata.training.batches import TrainBatch
from errata.training.loop import Trainee
from errata.training.optimise import generator

#: without the blocks, which differ between models
_PAPER: Mapping[str, Any] = {
    "mid": 1024,
    "heads": 8,
    "lr": 1e-4,
    "batch_size": 4,
    "steps": 50_000,
    "eval_steps": 1000,
    "save_steps": 1000,
    "patience": 50,
    "max_grad_norm": 0.0,
    "locality_examples": 1,
    "locality_weight": 1.0,
    "locality_kinds": ("m_locality",),
    "eos": False,
}


class VisEdit(AdapterEditor):
    """Cross-attention adapter on image tokens, weighed by their influence."""

    name = "visedit"
    modalities = frozenset({"image"})
    state_settings = ("layer", "mid", "heads", "marks", "eos", "tuning_kinds")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {**_PAPER, "layer": 18, "noise_layers": tuple(range(19, 31))},
        "paper-blip2-opt": {**_PAPER, "layer": 19, "noise_layers": tuple(range(20, 31))},
        "paper-minigpt4": {**_PAPER, "layer": 17, "noise_layers": tuple(range(18, 31))},
        "micro-vlm": {
            "layer": 1,
            "gate_layer": 5,
            "noise_layers": (2, 3, 4),
            "mid": 256,
            "heads": 8,
            "marks": 8,
            "lr": 3e-3,
            "warmup": 30,
            "schedule": "cosine",
            "batch_size": 16,
            "steps": 1000,
            "eval_steps": 50,
            "patience": 20,
            "held_out": 48,
            "locality_examples": 1,
            "locality_pool": 3,
            "locality_kinds": ("m_locality",),
            "locality_weight": 1.0,
            "tokens": 8,
            "mapped": 4,
        },
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(AdapterEditor.Config):
        """layer: block behind which image tokens are changed, negative from the end.
        influence_weight: weight of the three losses of the mapper of influential tokens.
        noise_layers: attention modules whose noisy output is measured, () = all above `layer`.
        sigma: size of that noise. draws: noisy passes per case. tokens: image tokens sampled per
        case. mapped: cases of a step that the mapper learns from, 0 = all.
        """

        layer: int = 18
        gate: str = "none"
        influence_weight: float = 0.1
        noise_layers: tuple[int, ...] = ()
        sigma: float = 0.7
        draws: int = 1
        tokens: int = 24
        mapped: int = 0

    def idle(self) -> Mapping[str, str]:
        idle = dict(super().idle())
        if not self.config.influence_weight:
            of_mapper = ("noise_layers", "sigma", "draws", "tokens", "mapped")
            idle |= dict.fromkeys(of_mapper, "influence_weight=0")
        return idle

    def places(self, backbone: Backbone) -> list[AdapterSite]:
        return [AdapterSite(site_behind(backbone, self.config.layer), "visual", influence=True)]

    def loss_weights(self) -> dict[str, float]:
        w = self.config.influence_weight
        return {**super().loss_weights(), "rank": w, "up": w, "down": w}

    def check(self, edit: Edit) -> None:
        if not edit.prompt.images:
            raise BadEdit(
                f"edit '{edit.id or edit.prompt.text[:60]}' has no image; visedit changes image "
                "tokens only. Give --image FILE, or use dualedit."
            )

    def trainee(self, backbone: Backbone, cases: Sequence[Case], seed: int) -> Trainee:
        return VisEditTrainee(backbone, self, seed)


@dataclass(frozen=True, eq=False)
class _InfluenceTarget:
    """columns [N] of image tokens, and their influence [N], which sums to 1."""

    columns: Tensor
    influence: Tensor


class VisEditTrainee(AdapterTrainee):
    """Adds the influence mapper's losses."""

    def __init__(self, backbone: Backbone, editor: VisEdit, seed: int) -> None:
        super().__init__(backbone, editor, seed)
        self.seed = seed
        self.layers = [backbone.layer(i) for i in self.config.noise_layers]  # type: ignore[attr-defined]
        self.layers = self.layers or list(
            range(backbone.layer(editor.config.layer) + 1, backbone.depth)
        )
        self.targets: dict[Prompt, _InfluenceTarget] = {}

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        patch = self.patch(batch)
        with self.backbone.applied(patch):
            named = dict(batch.losses(batch.logits(), self.loss_mean))
        if self.weights["rank"]:
            rows = torch.arange(len(batch.cases), device=patch.ends.device)
            prompts_Rd = patch.bank.states[0][rows, patch.ends]
            named.update(self._mapped(batch, prompts_Rd))
        return named

    def _mapped(self, batch: TrainBatch, prompts_Rd: Tensor) -> dict[str, Tensor]:
        """The mapper's three losses, each a mean over the cases that have it."""
        site = self.module.places[0].site
        mapper = self.module.mapper(0)
        assert mapper is not None
        states_BTd = outputs_at(self.backbone, batch.state, [site])[site].float()
        losses: dict[str, list[Tensor]] = {"rank": [], "up": [], "down": []}
        some = self.config.mapped or len(batch.cases)  # type: ignore[attr-defined]
        for case in range(min(some, len(batch.cases))):
            opens = self._rows(batch, case, inside=True)
            closes = self._rows(batch, case, inside=False)
            if opens:
                row = opens[int(torch.randint(len(opens), (), generator=batch.rng))]
                target = self._target(batch, row)
                logits = mapper(states_BTd[row, target.columns][None], prompts_Rd[case][None])[0]
                losses["rank"].append(-(target.influence * logits.log_softmax(0)).sum())
                losses["up"].append(-logsigmoid(logits).mean())
            if closes:
                row = closes[int(torch.randint(len(closes), (), generator=batch.rng))]
                columns = self._columns(batch, row, batch.rng)
                logits = mapper(states_BTd[row, columns][None], prompts_Rd[case][None])[0]
                losses["down"].append(-logsigmoid(-logits).mean())
        return {k: torch.stack(v).mean() for k, v in losses.items() if v}

    def _rows(self, batch: TrainBatch, case: int, *, inside: bool) -> list[int]:
        """Rows of a case with an image: inside, of the edit's question; else, of locality."""
        edit_text = batch.cases[case].edit.prompt.text
        rows = []
        for row in (batch.of_case == case).nonzero()[:, 0].tolist():
            cached = batch.examples[row]
            if not bool(cached.vision.any()):
                continue
            example = cached.example
            if inside and example.role != "locality" and example.prompt.text == edit_text:
                rows.append(row)
            elif not inside and example.kind == "m_locality":
                rows.append(row)
        return rows

    def _columns(self, batch: TrainBatch, row: int, rng: torch.Generator) -> Tensor:
        """Columns of sampled image tokens of a row."""
        columns = batch.examples[row].vision.nonzero()[:, 0]
        sampled = torch.randperm(len(columns), generator=rng)[: self.config.tokens]  # type: ignore[attr-defined]
        return columns[sampled.sort().values.to(columns.device)]

    def _target(self, batch: TrainBatch, row: int) -> _InfluenceTarget:
        """The influence of noise for a row; it depends on the row's prompt alone."""
        prompt, c = batch.examples[row].example.prompt, self.config
        if prompt not in self.targets:
            assert isinstance(c, VisEdit.Config)
            rng = generator(self.seed, "noise", digest(prompt))
            columns = self._columns(batch, row, rng)
            by_layer = noise_influence(
                self.backbone, batch.part([row]), columns[:, None].unbind(),
                layers=self.layers, sigma=c.sigma, draws=c.draws, rng=rng,
            )  # fmt: skip
            mean_N = torch.stack(list(by_layer.values())).mean(0).clamp(min=1e-12)
            self.targets[prompt] = _InfluenceTarget(
                columns, (mean_N / mean_N.sum()).to(columns.device)
            )
        return self.targets[prompt]
