"""MEND: a small network turns the gradient of one edit into the update that is applied.

Source: Mitchell et al., ICLR 2022, code at eric-mitchell/mend e04fdb9; the multimodal port is
EasyEdit at 14cea82 (preset `paper`: the last three blocks' up and down projections, identity
initialisation of rank 1920, edit learning rates from 1e-4, Adam 1e-6 for the network and 1e-4 for
the rates, gradients of two cases per update, clip 100, 0.1 gen + 1.0 KL; 30 000 steps for BLIP2-OPT
and MiniGPT-4). VLKEB at 10951b7 trains 50 000 on LLaVA-1.5: preset `paper-llava-1.5`.

The gradient of a linear map is sum_t d_t x_t^T over tokens (`algorithms.gradient_factors`). Per
token, input and output gradient are normalised with running statistics of the training, passed
through two low-rank residual layers h + max(0, s * (U V h + b) + t), and split again; the update is
rate * sum_t d'_t x'_t^T. Matrices of one shape share U, V and b; scale s, shift t and rate are a
matrix's own. The result is a low-rank delta whose rank is the number of tokens that the edit's loss
reaches. K edits of a group add up.

Differences:
- the outer loss compares the logits at a position with the next token (EasyEdit's port for HF
  models compares them with the token at that position, which is already visible, so that its editor
  learns to copy);
- locality is a KL at the answer's positions, as in LiveEdit's port, not over the whole prompt;
- the edit itself may be part of the outer loss (`reliability_weight`; 0 in `paper`);
- the best network on held-out cases is kept (EasyEdit keeps the last one; its early stop is never
  called);
- statistics are part of the checkpoint and the state (there they are reset on resume);
- V's initialisation is scaled by its fan-in except in `paper`, whose tiny step size needs N(0, 1);
- edits of one batch keep full strength (LiveEdit's port averages them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from errata.algorithms.gradient_factors import (
    Factors,
    LiveDelta,
    delta_of,
    factors,
    floor_of,
    group_factors,
)
from errata.core.editor import EditRequest, EditResult
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Case
from errata.training.batches import TrainBatch
from errata.training.loop import Trainee
from errata.training.optimise import generator
from errata.training.trained_editor import TrainedEditor

#: BLIP2-OPT and MiniGPT-4 in EasyEdit
_PAPER: Mapping[str, Any] = {
    "layers": (-3, -2, -1),
    "rank": 1920,
    "start": "unit",
    "edit_lr": 1e-4,
    "lr": 1e-6,
    "lr_rate": 1e-4,
    "steps": 30000,
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 100.0,
    "reliability_weight": 0.0,
    "generality_weight": 0.1,
    "locality_weight": 1.0,
    "eval_steps": 1000,
    "save_steps": 500,
    "eos": False,
}


class Mend(TrainedEditor):
    """Transforms the gradient of an edit with a trained network."""

    name = "mend"
    state_settings = ("layers", "parts", "rank", "depth", "eos")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {
            "layers": (4, 5, 6, 7),
            "edit_lr": -1e-3,
            "lr": 1e-3,
            "warmup": 20,
            "schedule": "cosine",
            "steps": 600,
            "batch_size": 8,
            "locality_weight": 0.5,
            "locality_kinds": ("t_locality", "m_locality", "near_locality"),
            "save_steps": 50,
        },
        "paper": _PAPER,
        "paper-llava-1.5": {**_PAPER, "steps": 50_000},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainedEditor.Config):
        """layers: text blocks that are edited, negative from the end. parts: linear sites of a
        block that are edited. rank: rank of the networks that transform gradients. depth: hidden
        layers of these networks. start: how V is drawn, `unit` N(0, 1) or `fan_in` N(0, 1 / width).
        edit_lr: first value of the learnt step sizes of an edit. lr_rate: Adam's step size on these
        step sizes. reliability_weight, generality_weight, locality_weight: weight of that term of
        the outer loss.
        """

        renamed: ClassVar[Mapping[str, str]] = {
            "c_rel": "reliability_weight",
            "c_gen": "generality_weight",
            "c_loc": "locality_weight",
        }
        layers: tuple[int, ...] = (-4, -3, -2)
        parts: tuple[str, ...] = ("mlp.up", "mlp.down")
        rank: int = 128
        depth: int = 2
        start: Literal["unit", "fan_in"] = "fan_in"
        edit_lr: float = -1e-3
        lr_rate: float = 1e-4
        reliability_weight: float = 1.0
        generality_weight: float = 1.0
        locality_weight: float = 1.0

    def sites(self, backbone: Backbone) -> list[str]:
        layers = sorted(backbone.layer(i) for i in self.config.layers)
        return backbone.part_sites(layers, self.config.parts)

    def network(self, backbone: Backbone, seed: int) -> MendNetwork:
        shapes = {site: backbone.weight(site) for site in self.sites(backbone)}
        network = MendNetwork(shapes, self.config, generator(seed, self.name))
        return network.to(backbone.device_of(""))

    def trainee(self, backbone: Backbone, cases: Sequence[Case], seed: int) -> Trainee:
        return MendTrainee(backbone, self, self.network(backbone, seed))

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        networks: dict[int, MendNetwork] = {}
        results = []
        gradients = group_factors(
            backbone, request.groups, self.sites(backbone), eos=self.config.eos
        )
        each = zip(gradients, request.groups, request.prepared, strict=True)
        for gradient, group, state in each:
            if id(state) not in networks:
                networks[id(state)] = self._trained(backbone, state)
            with torch.no_grad():
                update = networks[id(state)](gradient)
            results.append(EditResult(delta_of(update, range(len(group))), state))
        return results

    def _trained(self, backbone: Backbone, state: State) -> MendNetwork:
        network = self.network(backbone, 0)
        network.load_state_dict(dict(state.tensors))
        return network.eval()


class MendNetwork(nn.Module):
    """One transform per shape of matrix, and an edit learning rate per matrix."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], config: Mend.Config, rng: torch.Generator
    ) -> None:
        super().__init__()
        by_shape: dict[str, list[str]] = {}
        for site, (into, out) in shapes.items():
            by_shape.setdefault(f"{into}x{out}", []).append(site)
        self.place = {s: (key, i) for key, sites in by_shape.items() for i, s in enumerate(sites)}
        self.transforms = nn.ModuleDict(
            {key: Transform(shapes[s[0]], len(s), config, rng) for key, s in by_shape.items()}
        )
        self.rates = nn.ParameterDict(
            {
                key: nn.Parameter(torch.full((len(sites),), config.edit_lr))
                for key, sites in by_shape.items()
            }
        )

    def forward(self, gradient: Mapping[str, Factors]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Site -> (A [B, T, n], B [B, T, o], used [B, T]); unused tokens are zero."""
        out = {}
        for site, f in gradient.items():
            key, number = self.place[site]
            transform = self.transforms[key]
            assert isinstance(transform, Transform)
            if self.training:
                transform.count_in(f.x[f.used], f.d[f.used])
            x, d = transform(f.x, f.d, number)
            keep = f.used[..., None]
            zero = x.new_zeros(())
            rate = self.rates[key][number]
            out[site] = (torch.where(keep, x, zero), torch.where(keep, rate * d, zero), f.used)
        return out


class Transform(nn.Module):
    """(x_t, d_t) -> (x'_t, d'_t) for all matrices [o, n] of one shape; untrained, the identity.

    The statistics are over all tokens of the training (Chan et al.'s update of mean and squares).
    """

    def __init__(
        self, shape: tuple[int, int], matrices: int, config: Mend.Config, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.n, width = shape[0], sum(shape)
        rank = min(config.rank, width)
        size = 1.0 if config.start == "unit" else width**-0.5
        drawn = [torch.randn(rank, width, generator=rng) * size for _ in range(config.depth)]
        self.V = nn.ParameterList(drawn)
        self.U = nn.ParameterList([torch.zeros(width, rank) for _ in drawn])
        self.b = nn.ParameterList([torch.zeros(width) for _ in drawn])
        self.s = nn.ParameterList([torch.ones(matrices, width) for _ in drawn])
        self.t = nn.ParameterList([torch.zeros(matrices, width) for _ in drawn])
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    @torch.no_grad()
    def count_in(self, x: Tensor, d: Tensor) -> None:
        """Adds tokens [N, n] and [N, o] to the statistics."""
        z = torch.cat([x, d], dim=-1)
        if not len(z):
            return
        total = self.count + len(z)
        mean = z.mean(0)
        off = mean - self.mean
        self.squares += (z - mean).square().sum(0) + off.square() * (
            self.count * len(z) / total
        ).float()
        self.mean += off * (len(z) / total).float()
        self.count.copy_(total)

    def forward(self, x: Tensor, d: Tensor, matrix: int) -> tuple[Tensor, Tensor]:
        spread = (self.squares / (self.count - 1).clamp(min=1).float()).sqrt()
        spread = torch.where(self.count > 1, spread, torch.ones_like(spread))
        h = (torch.cat([x, d], dim=-1) - self.mean) / (spread + 1e-7)
        for V, U, b, s, t in zip(self.V, self.U, self.b, self.s, self.t, strict=True):
            # clamp, whose slope at 0 is 1: relu has 0 there, and all units start at exactly 0
            h = h + (s[matrix] * (h @ V.T @ U.T + b) + t[matrix]).clamp(min=0)
        return h[..., : self.n], h[..., self.n :]


class MendTrainee(Trainee):
    def __init__(self, backbone: Backbone, editor: Mend, network: MendNetwork) -> None:
        super().__init__(backbone, editor.config)
        c = editor.config
        self.module = self.network = network
        self.sites = editor.sites(backbone)
        self.floor = floor_of(self.sites)
        self.weights = {
            "reliability": c.reliability_weight,
            "generality": c.generality_weight,
            "locality": c.locality_weight,
        }
        self.lr_rate = c.lr_rate

    def optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [
                {"params": list(self.network.transforms.parameters()), "lr": self.config.lr},
                {"params": list(self.network.rates.parameters()), "lr": self.lr_rate},
            ],
            fused=True,
        )

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        gradient = factors(self.backbone, batch.edits, self.sites)
        update = self.network(gradient)
        parts = {s: {"A": a, "B": b.transpose(1, 2)} for s, (a, b, _) in update.items()}
        with self.backbone.applied(LiveDelta(parts, len(batch.cases))):
            return batch.losses(batch.logits())
