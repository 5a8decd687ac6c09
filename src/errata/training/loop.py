"""The training loop of all trained editors.

An editor gives a `Trainee`: a module in float32, and its losses on a `TrainBatch` (examples of some
cases, with activations cached below the first trained block; see `batches`). The loop has gradient
accumulation and clipping, held-out cases with early stopping on the best weights, and checkpoints.
The order of the cases and all random draws depend on (seed, step) only, so that a resumed training
ends with the same bytes. Under `accelerate launch` every process trains on its share of each step,
and gradients are averaged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn

from errata.core.errors import BadData, BadRun, NotFinite
from errata.core.model.backbone import Backbone
from errata.core.state import PrepareContext
from errata.core.types import Case, digest
from errata.training import checkpoint
from errata.training.batches import CachedExample, ExamplePool, Role, TrainBatch, TrainExample
from errata.training.optimise import generator

CURVE = 40  # maximum number of points of a stored loss curve


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of the training loop; base of the `Config` of trained editors.

    Names are those of transformers' `TrainingArguments` where it has the setting.

    steps: updates at most. batch_size: cases per forward. gradient_accumulation_steps: forwards per
    update. lr: step size after the warm-up. warmup: updates in which the step size rises from 0.
    schedule: how the step size falls, `constant`, `cosine` (to a tenth) or `linear` (to zero).
    max_grad_norm: larger gradients are scaled down to this norm, 0 = no clipping.
    generality_examples, locality_examples: probes of the kind drawn per case and step.
    generality_pool, locality_pool: probes per case that they are drawn from. generality_kinds,
    locality_kinds: kinds of probes that fill the pool, in turn. held_out: cases that are not
    trained on. eval_steps: steps between two measurements of their loss. patience: measurements
    without a new best after which training stops. save_steps: steps between checkpoints. cache_gb:
    memory for activations below the lowest trained block. eos: the end token is part of the target.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "batch": "batch_size",
        "accumulate": "gradient_accumulation_steps",
        "clip": "max_grad_norm",
        "every": "eval_steps",
        "keep": "save_steps",
        "gen": "generality_examples",
        "loc": "locality_examples",
        "gen_pool": "generality_pool",
        "loc_pool": "locality_pool",
        "gen_kinds": "generality_kinds",
        "loc_kinds": "locality_kinds",
    }

    steps: int = 2000
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr: float = 1e-3
    warmup: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    max_grad_norm: float = 1.0
    generality_examples: int = 2
    locality_examples: int = 2
    generality_pool: int = 4
    locality_pool: int = 6
    generality_kinds: tuple[str, ...] = ("t_generality", "m_generality")
    locality_kinds: tuple[str, ...] = ("t_locality", "m_locality")
    held_out: int = 64
    eval_steps: int = 100
    patience: int = 10
    save_steps: int = 100
    cache_gb: float = 2.0
    eos: bool = True


class Trainee(ABC):
    """The network under training. Subclasses set `module`, `floor` and `weights`.

    module: weights and buffers, float32, on the backbone's device; all of them go into the state.
    floor: the lowest block that the training changes; the model below runs once per example. None
    if examples have to run through the whole model. weights: loss name -> factor; other entries of
    `losses` are reported in the curve and not trained on.
    """

    module: nn.Module
    floor: int | None = None
    weights: Mapping[str, float]

    def __init__(self, backbone: Backbone, config: TrainingSettings) -> None:
        self.backbone, self.config = backbone, config

    @abstractmethod
    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        """Scalars by name. Called without gradients on held-out cases."""

    def rows(self, case: Case, rng: torch.Generator) -> list[TrainExample]:
        """The pool of a case: its edit, then probes for generality and for locality."""
        c = self.config
        first = TrainExample("reliability", case.edit.prompt, case.edit.target, "reliability")
        gen = _in_turn(case, "generality", c.generality_kinds, c.generality_pool, rng)
        return [first, *gen, *_in_turn(case, "locality", c.locality_kinds, c.locality_pool, rng)]

    def optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of the module's parameters; each group may have its own `lr`."""
        return torch.optim.Adam(self.module.parameters(), lr=self.config.lr, fused=True)

    def stepped(self) -> None:
        """Called after each update."""
        return

    def score(self, means: Mapping[str, float]) -> float:
        """The quantity that is lowest at the best step, from means over the held-out cases."""
        return means["total"]

    def validated(self, means: Mapping[str, float]) -> None:
        """Called after each evaluation on held-out cases; may change buffers only."""
        return


def _in_turn(
    case: Case, role: Role, kinds: Sequence[str], count: int, rng: torch.Generator
) -> list[TrainExample]:
    """`count` probes of a case, about equally many of each kind and group."""
    by_group: dict[tuple[str, str], list[TrainExample]] = {}
    for kind in kinds:
        for p in case.probes:
            if p.kind == kind and p.reference.strip():
                row = TrainExample(role, p.prompt, p.reference, p.kind)
                by_group.setdefault((p.kind, p.group), []).append(row)
    piles = [[pile[i] for i in _shuffled(len(pile), rng)] for pile in by_group.values()]
    piles = [piles[i] for i in _shuffled(len(piles), rng)]
    out: list[TrainExample] = []
    for turn in range(max(map(len, piles), default=0)):
        out += [pile[turn] for pile in piles if turn < len(pile)]
    return out[:count]


def _shuffled(n: int, rng: torch.Generator) -> list[int]:
    order: list[int] = torch.randperm(n, generator=rng).tolist()
    return order


@dataclass(frozen=True)
class TrainingResult:
    """The best weights and buffers, and a JSON-ready record of the training (a state's meta)."""

    tensors: Mapping[str, Tensor]
    account: Mapping[str, Any]


@dataclass
class TrainingProgress:
    """The progress of a training without its tensors; JSON-ready."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


class _Losses(nn.Module):
    """The trainee as a module whose forward returns the loss, so that DDP can wrap it."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.inner = trainee.module
        self.trainee = trainee

    def forward(self, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        named = dict(self.trainee.losses(batch))
        weights = self.trainee.weights
        total = torch.stack([w * named[n] for n, w in weights.items() if n in named]).sum()
        if torch.is_grad_enabled() and not total.requires_grad:
            # no example of this batch meets the module (an adapter on image tokens, texts alone)
            total = total + 0.0 * next(self.trainee.module.parameters()).sum()
        return total, {"total": total.detach(), **{k: v.detach() for k, v in named.items()}}


def train(
    backbone: Backbone,
    cases: Sequence[Case],
    trainee: Trainee,
    *,
    seed: int,
    work: PrepareContext | None = None,
) -> TrainingResult:
    """Trains for `steps` steps, or until the held-out loss no longer improves.

    Raises BadData without training cases, NotFinite for a loss that is not finite, BadRun for a
    folder with the checkpoint of another training.
    """
    return _Loop(backbone, cases, trainee, seed, work or PrepareContext()).run()


class _Loop:
    def __init__(
        self,
        backbone: Backbone,
        cases: Sequence[Case],
        trainee: Trainee,
        seed: int,
        work: PrepareContext,
    ) -> None:
        self.backbone, self.trainee, self.seed, self.work = backbone, trainee, seed, work
        self.c = trainee.config
        self.held, self.cases = _hold_out(cases, self.c.held_out, seed)
        self.pools = ExamplePool(
            backbone,
            lambda case: trainee.rows(case, generator(seed, "pool", case.id)),
            floor=trainee.floor,
            eos=self.c.eos,
            limit=int(self.c.cache_gb * 2**30),
        )
        # a step without examples of some role leaves parameters without a gradient
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        # without cpu=True, processes without an accelerator would not share their gradients
        self.accelerator = Accelerator(
            mixed_precision="no", device_placement=False, kwargs_handlers=[unused],
            cpu=not torch.accelerator.is_available(),
        )  # fmt: skip
        self.optimiser = trainee.optimiser()
        self.rates = [float(g["lr"]) for g in self.optimiser.param_groups]
        self.model: Any = self.accelerator.prepare_model(_Losses(trainee), device_placement=False)
        self.progress = TrainingProgress()
        self.best: dict[str, Tensor] = {}
        self.plan = digest(
            {
                "config": asdict(self.c),
                "trainee": type(trainee).__name__,
                "backbone": backbone.fingerprint(),
                "seed": seed,
                "cases": [digest(case) for case in cases],
                "shapes": {k: list(v.shape) for k, v in trainee.module.state_dict().items()},
                "processes": self.accelerator.num_processes,
            }
        )

    # -- batches ------------------------------------------------------------------------------

    def _case(self, n: int) -> Case:
        """The n-th case of the training; every epoch has another order."""
        epoch, place = divmod(n, len(self.cases))
        order = torch.randperm(len(self.cases), generator=generator(self.seed, "order", epoch))
        return self.cases[int(order[place])]

    def _batch(self, cases: Sequence[Case], rng: torch.Generator) -> TrainBatch:
        examples: list[CachedExample] = []
        of_case: list[int] = []
        for number, case in enumerate(cases):
            chosen = self._chosen(self.pools.of(case), rng)
            examples += chosen
            of_case += [number] * len(chosen)
        device = self.backbone.device_of("")
        return TrainBatch(
            self.backbone, tuple(cases), tuple(examples), torch.tensor(of_case, device=device),
            self.trainee.floor, self.c.eos, rng,
        )  # fmt: skip

    def _chosen(self, pool: Sequence[CachedExample], rng: torch.Generator) -> list[CachedExample]:
        out = [p for p in pool if p.example.role == "reliability"]
        counts: dict[Role, int] = {
            "generality": self.c.generality_examples,
            "locality": self.c.locality_examples,
        }
        for role, count in counts.items():
            mine = [p for p in pool if p.example.role == role]
            out += [mine[i] for i in sorted(_shuffled(len(mine), rng)[:count])]
        return out

    def _training_batch(self, step: int, part: int) -> TrainBatch:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        number = (step * self.c.gradient_accumulation_steps + part) * world + rank
        first = number * self.c.batch_size
        cases = [self._case(first + i) for i in range(self.c.batch_size)]
        return self._batch(cases, generator(self.seed, "turn", number))

    # -- one update, one evaluation -----------------------------------------------------------

    def _rate(self, step: int) -> float:
        if step < self.c.warmup:
            return (step + 1) / self.c.warmup
        if self.c.schedule == "constant":
            return 1.0
        gone = (step - self.c.warmup) / max(1, self.c.steps - self.c.warmup)
        if self.c.schedule == "linear":
            return 1.0 - gone
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * gone))

    def _update(self, step: int) -> None:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * self._rate(step)
        self.trainee.module.train()
        self.optimiser.zero_grad(set_to_none=True)
        for part in range(self.c.gradient_accumulation_steps):
            last = part == self.c.gradient_accumulation_steps - 1
            waiting = nullcontext() if last else self.accelerator.no_sync(self.model)
            with waiting, torch.enable_grad():
                total, named = self.model(self._training_batch(step, part))
                self._check_finite(total, step)
                self.accelerator.backward(total / self.c.gradient_accumulation_steps)
            for name, value in named.items():
                for key, one in ((name, float(value)), (f"#{name}", 1.0)):
                    self.progress.sums[key] = self.progress.sums.get(key, 0.0) + one
        if self.c.max_grad_norm:
            parameters = self.trainee.module.parameters()
            norm = self.accelerator.clip_grad_norm_(parameters, self.c.max_grad_norm)
            if norm is not None:
                self._check_finite(norm, step)
        self.optimiser.step()
        self.trainee.stepped()

    def _check_finite(self, value: Tensor, step: int) -> None:
        if not bool(torch.isfinite(value.detach()).all()):
            raise NotFinite(
                f"the training's loss or gradient became {float(value.detach())} at step {step}. "
                "Lower the step size (--set lr=...), or load the model with --dtype float32."
            )

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean losses of the held-out cases; each process computes its share."""
        self.trainee.module.eval()
        size = self.c.batch_size
        batches = [self.held[i : i + size] for i in range(0, len(self.held), size)]
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        sums: dict[str, float] = {}
        for number, cases in enumerate(batches):
            if number % world != rank:
                continue
            _, named = _Losses.forward(
                self._unwrapped(), self._batch(cases, generator(self.seed, "held", number))
            )
            for name, value in named.items():
                for key, one in ((name, float(value)), (f"#{name}", 1.0)):
                    sums[key] = sums.get(key, 0.0) + one * len(cases)
        return _means(self._of_all(sums))

    def _of_all(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes; a process may lack a name."""
        total: dict[str, float] = {}
        for one in gather_object([dict(sums)]):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _unwrapped(self) -> _Losses:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, _Losses)
        return model

    def _evaluate(self) -> None:
        """Evaluates: adds a point to the curve, keeps the best weights, or stops."""
        p = self.progress
        held = self._validate() if self.held else {}
        trained = _means(self._of_all(p.sums))
        p.curve.append({"step": p.step, "train": _rounded(trained), "held_out": _rounded(held)})
        p.sums = {}
        score = self.trainee.score(held) if self.held else -p.step
        self._check_finite(torch.tensor(score), p.step)
        if p.best is None or score < p.best:
            p.best, p.best_step, p.stale = score, p.step, 0
            self.best = {k: v.detach().clone() for k, v in self.trainee.module.state_dict().items()}
        else:
            p.stale += 1
            p.stopped = p.stale >= self.c.patience
        self.trainee.validated(held or trained)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> TrainingResult:
        p = self._resumed()
        what = "training"
        if p.step == 0 and not p.curve:
            self._evaluate()
        while p.step < self.c.steps and not p.stopped:
            self._update(p.step)
            p.step += 1
            if p.step % self.c.eval_steps == 0 or p.step == self.c.steps:
                self._evaluate()
            if p.step % self.c.save_steps == 0 and p.step < self.c.steps and not p.stopped:
                self._save()
            self.work.report(what, p.step, self.c.steps)
        if p.step < self.c.steps:
            self.work.report(what, self.c.steps, self.c.steps)
        return TrainingResult(self.best, self._account())

    def _account(self) -> dict[str, Any]:
        p, c = self.progress, self.c
        count = p.step * c.batch_size * c.gradient_accumulation_steps
        return {
            "cases": len(self.cases),
            "held_out": len(self.held),
            "steps": p.step,
            "best_step": p.best_step,
            "stopped_early": p.stopped,
            "epochs": round(count * self.accelerator.num_processes / len(self.cases), 2),
            "parameters": sum(q.numel() for q in self.trainee.module.parameters()),
            "curve": thinned(p.curve, CURVE),
        }

    def _save(self) -> None:
        path = self.work.checkpoint
        if path is None:
            return
        main = self.accelerator.is_main_process
        sums = self._of_all(self.progress.sums)  # the first process resumes with all of them
        self.progress.sums = sums if main else {}
        if main:
            point = checkpoint.Checkpoint(
                self.plan, asdict(self.progress), self.trainee.module.state_dict(), self.best,
                self.optimiser.state_dict(),
            )  # fmt: skip
            checkpoint.save(path, point)
        self.accelerator.wait_for_everyone()

    def _resumed(self) -> TrainingProgress:
        """Resumes from the checkpoint in the folder, if there is one."""
        point = checkpoint.load(self.work.checkpoint)
        if point is None:
            return self.progress
        if point.plan != self.plan:
            raise BadRun(
                f"{self.work.folder} holds an unfinished training with other settings, cases, seed "
                "or model. Repeat that command, delete training.safetensors in it, or choose "
                "another --out."
            )
        self.trainee.module.load_state_dict(dict(point.module))
        checkpoint.restore_optimiser(self.optimiser, point.optimiser)
        device = self.backbone.device_of("")
        self.best = {k: v.to(device) for k, v in point.best.items()}
        self.progress = TrainingProgress(**point.progress)
        if not self.accelerator.is_main_process:
            self.progress.sums = {}
        return self.progress


def _hold_out(
    cases: Sequence[Case], count: int, seed: int
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(held-out, training) cases; at most a fifth is held out. Raises BadData."""
    if not cases:
        raise BadData("there are no cases to train on. Name a benchmark's train part.")
    count = min(count, len(cases) // 5)
    held = set(_shuffled(len(cases), generator(seed, "held out"))[:count])
    return (
        tuple(c for i, c in enumerate(cases) if i in held),
        tuple(c for i, c in enumerate(cases) if i not in held),
    )


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    return {n: v / sums[f"#{n}"] for n, v in sums.items() if not n.startswith("#")}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {k: float(f"{v:.5g}") for k, v in values.items()}


def thinned(curve: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` points, evenly spaced, with the first and the last."""
    if len(curve) <= most:
        return [dict(p) for p in curve]
    picked = [round(i * (len(curve) - 1) / (most - 1)) for i in range(most)]
    return [dict(curve[i]) for i in picked]
