"""T-Patcher: a few new neurons in the last FFN, trained on one edit, kept silent elsewhere.

Source: Huang et al., ICLR 2023, and its code at 93ff458: keys start at q / |q|^2 of the positions
to be mended (so that each new neuron fires with exactly 1 there), an activation loss keeps them
firing, a memory loss over stored FFN inputs keeps them silent on everything else.

Losses (preset `paper` = the original's weights): l_e + act * l_a + memory * l_m with
l_a = mean of the 5 largest exp(-u_i) at the neurons' own positions,
l_m = mean of the top-k exp(u - gamma) + mean of the top-k exp(u - u_i + beta), u on memory states.

Differences: values start at zero, not N(0, 1) * 10, which wrecks a model before the first step (an
all-zero start, as in LiveEdit's port, has no gradient at all); the number of neurons is fixed,
neuron j belongs to target position j modulo the target's length; for a gated FFN K_up starts at
zero with bias 1, so that the gate's key alone decides; several layers are allowed; the edit loss
stays on the edit (LiveEdit's port overwrites it with a Wikipedia paragraph from the second step
on). The memory comes from training prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.core.backbone import Backbone
from errata.core.editor import State
from errata.core.patch import Patch
from errata.core.types import Case, Edit
from errata.finding.gradient import GradientEditor, generator
from errata.finding.memory import locality_prompts, site_inputs
from errata.finding.search import Settings, encode_edits, per_group
from errata.finding.watch import Watch
from errata.patches.neurons import Neurons


class TPatcher(GradientEditor):
    """New FFN neurons with activation and memory losses."""

    name = "tpatcher"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {
            "layers": (-2,),
            "neurons": 10,
            "lr": 3e-3,
            "steps": 200,
            "act_weight": 1.0,
            "memory_weight": 10.0,
            "value_scale": 10.0,
        },
        "paper": {
            "layers": (-1,),
            "neurons": 5,
            "act_weight": 1.0,
            "memory_weight": 10.0,
            "lr": 1e-2,
            "clip": 5.0,
        },
        "vlm_port": {
            "layers": (-1,),
            "neurons": 1,
            "act_weight": 1e-4,
            "memory_weight": 1e-4,
            "lr": 1e-2,
            "steps": 25,
            "eos": False,
        },
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(GradientEditor.Config):
        """layers: text blocks. neurons: per layer and edit.

        act_weight, memory_weight: of l_a and l_m. gamma, beta, top: of l_m. memory: stored states
        per layer. value_scale: step size of values relative to keys (the original's amplifier 10
        acts like it).
        """

        lr: float = 1e-2
        steps: int = 100
        clip: float = 5.0
        layers: tuple[int, ...] = (-1,)
        neurons: int = 5
        act_weight: float = 1.0
        memory_weight: float = 10.0
        gamma: float = -3.0
        beta: float = 3.0
        top: int = 1000
        memory: int = 4000
        prompts: int = 600
        value_scale: float = 10.0

    def settings(self) -> Settings:
        return replace(super().settings(), lr_scale={"value": self.config.value_scale})

    def sites(self, backbone: Backbone) -> list[str]:
        return [f"text.{backbone.layer(i)}.mlp" for i in self.config.layers]

    def prepare(self, backbone: Backbone, cases: Sequence[Case], *, seed: int = 0) -> State | None:
        """FFN inputs on training prompts; cheap, made when first needed."""
        c = self.config
        if not c.memory_weight or not cases:
            return None
        rng = generator(seed, self.name)
        prompts = locality_prompts(cases, c.prompts, rng)
        states = site_inputs(backbone, prompts, self.sites(backbone), c.memory, rng)
        return State(self.name, {"prompts": len(prompts)}, states)

    def start(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None],
        seed: int,
    ) -> Patch:
        c, sites = self.config, self.sites(backbone)
        queries = self._queries(backbone, groups, sites)
        parts: dict[str, dict[str, Tensor]] = {}
        for site in sites:
            q_Ren = queries[site]
            rows, e, n = q_Ren.shape
            key = (
                (q_Ren / q_Ren.square().sum(-1, keepdim=True).clamp(min=1e-6))
                .transpose(1, 2)
                .contiguous()
            )
            part = {
                "key": key,
                "key_bias": torch.zeros(rows, e),
                "value": torch.zeros(rows, e, backbone.width),
            }
            if backbone.gated(site):
                part |= {"up": torch.zeros(rows, n, e), "up_bias": torch.ones(rows, e)}
            parts[site] = part
        assert c.neurons > 0
        return Neurons(parts, act=backbone.activation(sites[0]), rows=len(groups))

    def _queries(
        self, backbone: Backbone, groups: Sequence[Sequence[Edit]], sites: Sequence[str]
    ) -> dict[str, Tensor]:
        """[R, e, n] FFN inputs where target tokens are predicted; a group's edits take turns."""
        batch, rows = encode_edits(backbone, groups, eos=self.config.eos)
        watch = Watch(sites)
        with torch.no_grad(), backbone.applied(watch):
            backbone.logits(batch, rows=rows)
        places: list[list[tuple[int, int]]] = [[] for _ in groups]
        for turn in range(max(len(t) for t in batch.targets)):
            for b, (r, target) in enumerate(zip(rows.tolist(), batch.targets, strict=True)):
                if turn < len(target):
                    places[r].append((b, int(batch.lengths[b]) - 1 + turn))
        e = self.config.neurons * max(len(g) for g in groups)
        chosen = torch.tensor([[p[j % len(p)] for j in range(e)] for p in places])
        return {s: watch.x[s].float().cpu()[chosen[..., 0], chosen[..., 1]] for s in sites}

    def losses(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None],
        patch: Patch,
    ) -> tuple[Callable[[], Tensor] | None, Patch | None]:
        c, sites = self.config, self.sites(backbone)
        assert isinstance(patch, Neurons)
        if not c.act_weight and not c.memory_weight:
            return None, None
        batch, rows = encode_edits(backbone, groups, eos=c.eos)
        memory = (
            {s: _memories(states, s, backbone.device_of(s)) for s in sites}
            if c.memory_weight
            else {}
        )
        watch = Watch(sites)

        def penalty() -> Tensor:
            total = torch.zeros(len(groups), device=rows.device)
            for site in sites:
                u_BMe, real_BM = self._at_targets(
                    patch, site, watch.x[site], batch.lengths, batch.targets, rows
                )
                own_B = torch.where(real_BM[..., None], u_BMe, u_BMe.new_full((), -1e4)).amax(
                    1
                )  # best place per neuron
                fire_B = torch.exp(-own_B).topk(min(5, own_B.shape[-1]), dim=-1).values.mean(-1)
                total = total + c.act_weight * per_group(fire_B, rows, len(groups))
                kept = memory.get(site)
                if kept is not None:
                    total = total + c.memory_weight * self._memory_loss(
                        patch, site, kept, own_B, rows
                    )
            return total

        return penalty, watch

    def _at_targets(
        self,
        patch: Neurons,
        site: str,
        x: Tensor,
        lengths: Tensor,
        targets: Sequence[Sequence[int]],
        rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """[B, M, e] key pre-activations where targets are predicted, [B, M] which are real."""
        longest = max(len(t) for t in targets)
        steps = torch.arange(longest, device=x.device)
        columns = (lengths.to(x.device)[:, None] - 1 + steps).clamp(max=x.shape[1] - 1)
        real = steps < torch.tensor([len(t) for t in targets], device=x.device)[:, None]
        picked = x[torch.arange(x.shape[0], device=x.device)[:, None], columns]
        return patch.preactivations(site, picked, rows), real

    def _memory_loss(
        self, patch: Neurons, site: str, memory: Tensor, own_B: Tensor, rows: Tensor
    ) -> Tensor:
        """[R] the two top-k terms over memory states [S, n]."""
        c, count = self.config, patch.rows or 1
        part = patch.part(site)
        u_RSe = memory @ part["key"] + part["key_bias"][:, None]
        own_Re = torch.stack([own_B[rows == r].amax(0) for r in range(count)])
        top = min(c.top, u_RSe.shape[1] * u_RSe.shape[2])
        silent = (
            torch.exp((u_RSe - c.gamma).clamp(max=20)).flatten(1).topk(top, dim=1).values.mean(1)
        )
        apart = (
            torch.exp((u_RSe - own_Re[:, None] + c.beta).clamp(max=20))
            .flatten(1)
            .topk(top, dim=1)
            .values.mean(1)
        )
        return silent + apart


def _memories(states: Sequence[State | None], site: str, device: torch.device) -> Tensor | None:
    """The memory [S, n]; rows share one, which `prepare` made."""
    for state in states:
        if state is not None and site in state.tensors:
            return state.tensors[site].to(device).float()
    return None
