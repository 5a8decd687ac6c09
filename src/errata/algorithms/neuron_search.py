"""The search for extra FFN neurons, with T-Patcher's activation and memory losses.

Source: Huang et al., ICLR 2023 (Sec. 3.3) and its code at 93ff458. Used by `tpatcher` and `unike`,
whose files say what differs.

Each neuron has a position, a token that predicts the target. Keys start at q / |q|^2 of these
positions, so that each new neuron fires with exactly 1 there; values start at zero. Losses:
l_e + act_weight * l_a + memory_weight * l_m with
l_a = mean of the 5 largest exp(-u_i) at the neurons' positions,
l_m = mean of the top-k exp(u - gamma) + mean of the top-k exp(u - u_i + beta), u on memory states.

Shapes: R rows (groups of edits), e neurons per site, n inputs of the FFN, S memory states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.algorithms.gradient import GradientEditor
from errata.algorithms.neuron_keys import MEMORY_KINDS, locality_prompts, site_inputs
from errata.core.editor import EditRequest
from errata.core.errors import BadSpec
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.model.recorder import Recorder
from errata.core.patch import Patch
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Edit
from errata.patches._parts import PartsPatch
from errata.patches.neurons import Neurons
from errata.training.optimise import SearchSettings, encode_edits, generator


class NeuronEditor(GradientEditor):
    """New FFN neurons, trained on one edit; with `memory_weight` they are kept silent elsewhere."""

    in_chunks = True

    @dataclass(frozen=True, kw_only=True)
    class Config(GradientEditor.Config):
        """layers: text blocks that get neurons, negative from the end. neurons: new neurons per
        block and edit. act_weight: weight of the loss that makes neurons fire on their edit (l_a).
        memory_weight: weight of the loss that keeps them silent elsewhere (l_m). memory_gamma,
        memory_beta: that constant of l_m. memory_top: k of l_m, the strongest activations that
        count. memory: stored inputs of each block that l_m is taken on. prompts: training prompts
        that these inputs come from. memory_kinds: kinds of probes that the prompts are drawn from;
        `reliability` are the edits' own. value_scale: step size of values relative to that of keys.
        """

        since: ClassVar[tuple[str, ...]] = ("memory_kinds",)
        steps: int = 100
        max_grad_norm: float = 5.0
        layers: tuple[int, ...] = (-1,)
        neurons: int = 5
        act_weight: float = 1.0
        memory_weight: float = 10.0
        memory_gamma: float = -3.0
        memory_beta: float = 3.0
        memory_top: int = 1000
        memory: int = 4000
        prompts: int = 600
        memory_kinds: tuple[str, ...] = MEMORY_KINDS
        value_scale: float = 10.0

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        c = self.config
        if not c.memory_weight >= 0:
            raise BadSpec(f"editor '{self.name}': memory_weight={c.memory_weight}. Give 0 or more.")
        if not c.layers or c.neurons < 1:
            raise BadSpec(
                f"editor '{self.name}': layers={list(c.layers)}, neurons={c.neurons} leave nothing "
                "to add. Give at least one text block and one neuron."
            )

    def idle(self) -> Mapping[str, str]:
        idle = dict(super().idle())
        if not self.config.memory_weight:
            of_memory = ("memory_gamma", "memory_beta", "memory_top")
            idle |= dict.fromkeys(of_memory, "memory_weight=0")
            if not self.uses_state:
                idle |= dict.fromkeys(("memory", "prompts", "memory_kinds"), "memory_weight=0")
        return idle

    def settings(self) -> SearchSettings:
        return replace(super().settings(), lr_scale={"value": self.config.value_scale})

    def weight_size(self, backbone: Backbone, site: str, name: str) -> float:
        """Values stand beside the FFN's down projection, all else beside its up projection."""
        block = site.removesuffix(".mlp")
        part = "mlp.down" if name == "value" else "mlp.up"
        return backbone.weight_rms(backbone.site_of_part(block, part))

    def sites(self, backbone: Backbone) -> list[str]:
        return [f"text.{backbone.layer(i)}.mlp" for i in self.config.layers]

    @property
    def uses_state(self) -> bool:
        return bool(self.config.memory_weight > 0)

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        """FFN inputs on training prompts: the memory that l_m keeps the neurons silent on."""
        c = self.config
        rng = generator(seed, self.name)
        prompts = locality_prompts(cases, c.prompts, rng, c.memory_kinds)
        if not prompts:
            return None
        states = site_inputs(backbone, prompts, self.sites(backbone), c.memory, rng, work)
        return State(self.name, {"prompts": len(prompts)}, states)

    def start(self, backbone: Backbone, request: EditRequest) -> PartsPatch:
        sites = self.sites(backbone)
        queries = self._queries(backbone, request.groups)
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
        shared = self.shared(backbone, sites, request)
        for site, direction in shared.items():
            parts[site]["shared"] = direction.float().repeat(len(request), 1)
        patch = Neurons(parts, act=backbone.activation(sites[0]), rows=len(request))
        for site in shared:
            patch.part(site)["shared"].requires_grad_(False)
        return patch

    def shared(
        self, backbone: Backbone, sites: Sequence[str], request: EditRequest
    ) -> dict[str, Tensor]:
        """Site -> [d], a fixed vector that is added to the values of all its new neurons."""
        return {}

    def _places(self, batch: Batch, rows: Tensor, groups: Sequence[Sequence[Edit]]) -> Tensor:
        """[R, e, 2] the position (batch row, column) of each neuron, where it is to fire.

        Positions are tokens that predict the target; the edits of a group take turns.
        """
        places: list[list[tuple[int, int]]] = [[] for _ in groups]
        for n in range(max(len(t) for t in batch.targets)):
            for b, (r, target) in enumerate(zip(rows.tolist(), batch.targets, strict=True)):
                if n < len(target):
                    places[r].append((b, int(batch.lengths[b]) - 1 + n))
        e = self.config.neurons * len(groups[0])
        return torch.tensor([[p[j % len(p)] for j in range(e)] for p in places])

    def _queries(self, backbone: Backbone, groups: Sequence[Sequence[Edit]]) -> dict[str, Tensor]:
        """Site -> [R, e, n] FFN inputs at the neurons' positions."""
        batch, rows = encode_edits(backbone, groups, eos=self.config.eos)
        watch = FiringRecorder(self.sites(backbone), self._places(batch, rows, groups))
        with torch.no_grad(), backbone.applied(watch):
            backbone.logits(batch, rows=rows)
        return watch.queries()

    def losses(
        self, backbone: Backbone, request: EditRequest, patch: Patch
    ) -> tuple[Callable[[], Tensor] | None, Hook | None]:
        c, sites = self.config, self.sites(backbone)
        assert isinstance(patch, Neurons)
        if not c.act_weight and not c.memory_weight:
            return None, None
        batch, rows = encode_edits(backbone, request.groups, eos=c.eos)
        memory = {
            s: _memory(request.prepared, s, backbone.device_of(s)) for s in sites if c.memory_weight
        }
        watch = FiringRecorder(sites, self._places(batch, rows, request.groups))

        def penalty() -> Tensor:
            total = torch.zeros(len(request))
            for site in sites:
                part, q_Ren = patch.part(site), watch.at_places(site)
                own_Re = torch.einsum("ren,rne->re", q_Ren, part["key"]) + part["key_bias"]
                fire_R = torch.exp(-own_Re).topk(min(5, own_Re.shape[1]), dim=1).values.mean(1)
                total = total + c.act_weight * fire_R.to(total.device)
                if site in memory:
                    kept_R = self._memory_loss(part, memory[site], own_Re)
                    total = total + c.memory_weight * kept_R.to(total.device)
            return total

        return penalty, watch

    def _memory_loss(
        self, part: Mapping[str, Tensor], memory: NeuronMemory, own_Re: Tensor
    ) -> Tensor:
        """[R] l_m: the two top-k terms over the memory states of each row."""
        c = self.config
        u_RSe = memory.states @ part["key"] + part["key_bias"][:, None]
        if memory.count_R is not None:
            real = torch.arange(u_RSe.shape[1], device=u_RSe.device) < memory.count_R[:, None]
            u_RSe = torch.where(real[..., None], u_RSe, u_RSe.new_full((), -1e4))
        top = min(c.memory_top, u_RSe.shape[1] * u_RSe.shape[2])
        size: Tensor | int = top
        if memory.count_R is not None:
            size = (memory.count_R * u_RSe.shape[2]).clamp(max=c.memory_top)

        def worst(margin_RSe: Tensor) -> Tensor:
            return margin_RSe.clamp(max=20).exp().flatten(1).topk(top, dim=1).values.sum(1) / size

        return worst(u_RSe - c.memory_gamma) + worst(u_RSe - own_Re[:, None] + c.memory_beta)

    def next_states(
        self, backbone: Backbone, request: EditRequest, patch: Patch, watch: Hook | None
    ) -> list[State | None]:
        """Adds each edit's FFN inputs to its row's memory, so that later neurons are silent on
        them.
        """
        if not self.config.memory_weight:
            return list(request.states)
        assert isinstance(watch, FiringRecorder)
        queries = watch.queries()
        grown: list[State | None] = []
        for r, state in enumerate(request.prepared):
            tensors = {}
            for site, q_Ren in queries.items():
                past = state.tensors.get(f"past/{site}")
                new = torch.unique(q_Ren[r], dim=0)
                tensors[f"past/{site}"] = new if past is None else torch.cat([past, new])
            grown.append(state.grown(tensors))
        return grown


class FiringRecorder(Recorder):
    """Reads the FFN inputs at the neurons' positions, places [R, e, 2] of (batch row, column)."""

    def __init__(self, sites: Sequence[str], places: Tensor) -> None:
        super().__init__(sites)
        self.places = places

    def at_places(self, site: str) -> Tensor:
        """[R, e, n], with the graph of the last forward."""
        return self.x[site][self.places[..., 0], self.places[..., 1]].float()

    def queries(self) -> dict[str, Tensor]:
        """Site -> [R, e, n], without a graph, on the CPU."""
        return {s: self.at_places(s).detach().cpu() for s in self.x}


@dataclass(frozen=True)
class NeuronMemory:
    """Memory states: [S, n] for all rows, or [R, S, n], of which the first count_R[r] are real."""

    states: Tensor
    count_R: Tensor | None = None


def _memory(states: Sequence[State], site: str, device: torch.device) -> NeuronMemory:
    """The states of training prompts, and behind them those of each row's past edits."""
    base = states[0].tensors[site]
    if all(s.tensors[site] is base and f"past/{site}" not in s.tensors for s in states):
        return NeuronMemory(base.to(device).float())
    rows = [
        torch.cat([s.tensors[site], s.tensors.get(f"past/{site}", base[:0])]).float()
        for s in states
    ]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if len({len(r) for r in rows}) == 1:
        return NeuronMemory(padded.to(device))
    count_R = torch.tensor([len(r) for r in rows])
    return NeuronMemory(padded.to(device), count_R.to(device))
