"""The base of editors whose state is a trained network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.core.editor import Editor
from errata.core.model.backbone import Backbone
from errata.core.state import PrepareContext, State
from errata.core.types import Case
from errata.training.loop import Trainee, TrainingSettings, train


class TrainedEditor(Editor):
    """An editor whose state is a trained network. Subclasses implement `trainee` and `find`.

    The state's tensors are those of the module; `meta["training"]` is the record of the training.
    """

    needs_state = True

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainingSettings):
        """Settings."""

    def idle(self) -> Mapping[str, str]:
        c, idle = self.config, dict(super().idle())
        for role in ("generality", "locality"):
            if not vars(c)[f"{role}_examples"]:
                unused = (f"{role}_weight", f"{role}_pool")
                idle |= dict.fromkeys(unused, f"{role}_examples=0")
        if not c.held_out:
            idle["patience"] = "held_out=0"
        return idle

    @abstractmethod
    def trainee(self, backbone: Backbone, cases: Sequence[Case], seed: int) -> Trainee:
        """The untrained network; random numbers come from `generator(seed, ...)`."""

    def extra(self, backbone: Backbone, trainee: Trainee, cases: Sequence[Case]) -> dict[str, Any]:
        """More entries of the state's meta (thresholds, ...), with the best weights loaded."""
        return {}

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        trainee = self.trainee(backbone, cases, seed)
        done = train(backbone, cases, trainee, seed=seed, work=work)
        trainee.module.load_state_dict(dict(done.tensors))
        trainee.module.eval()
        extra = self.extra(backbone, trainee, cases)
        meta = {"training": {**done.account, "seed": seed}, **extra}
        tensors = {k: v.detach().cpu() for k, v in done.tensors.items()}
        return State(self.name, meta, tensors)
