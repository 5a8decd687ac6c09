"""serac with testimony as an input of its scope: the fairness experiment of `witness`.

    python experiments/serac_testimony.py prepare --seed 0 --out STATE
    python experiments/serac_testimony.py bench --state STATE --limit 240 --out RUN

`witness` decides where an edit applies by what the unedited model says of a picture. Is that why it
leads, and would `serac` with the same knowledge lead too? Here serac's scope is given it: the
answers to the questions that the scope `testimony` would choose on the same training cases, about
the question's picture and about the edit's. A vector that serac compares becomes

    [its embedding + a projection of all answers, a_q * sqrt(p_q) for each question q]

where p_q is the next-token distribution that the question q gets. So the squared gap grows by
2 a_q^2 (1 - Bhattacharyya coefficient) per question: bounded, and smooth. All of it is trained
together with serac's own networks, on its examples and losses. The rest is serac's: its threshold,
its small model, its preset. No plug-in: the patches cannot be saved.

Shapes: B prompts, Q questions, m buckets of tokens, e width of a key.
"""

from __future__ import annotations

import argparse
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import errata
from errata.cli.shared.progress import ProgressLines
from errata.core import registry
from errata.core.editor import EditRequest, EditResult
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import PromptStates
from errata.core.model.scope import CHUNK, PromptScope, squared_gaps
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Edit, Prompt
from errata.editors.serac import Serac, SeracTrainee
from errata.networks.scope import ScopeNetwork
from errata.networks.trained import trained
from errata.patches.route import Route
from errata.scopes._cases import some_of
from errata.scopes._hashes import picture
from errata.scopes.testimony import CHOOSING, TestimonyScope
from errata.scopes.testimony._choice import choose
from errata.scopes.testimony._witness import BUCKETS, Panel, Witness
from errata.training.batches import TrainBatch
from errata.training.loop import Trainee

NAME = "serac_testimony"
FIRST = 0.3  # a_q before training: one clear disagreement adds 0.18; a gap of 0.69 closes
FASTER = 10.0  # their step size over the others': they are few, and have a way to go


class Testimonies:
    """What the unedited model says of pictures; each is asked about once."""

    def __init__(self, backbone: Backbone, questions: Sequence[str]) -> None:
        self.questions = tuple(questions)
        self._witness = Witness(backbone, Panel(self.questions, ()))
        self._known: dict[Hashable, Tensor] = {}

    def of(self, prompts: Sequence[Prompt]) -> Tensor:
        """[B, Q, m] roots of the answers' distributions."""
        keys = [tuple(map(picture, p.images)) for p in prompts]
        new = {k: p for k, p in zip(keys, prompts, strict=True) if k not in self._known}
        if new:
            said = self._witness.testimonies(list(new.values()))
            self._known.update(zip(new, said, strict=True))
        return torch.stack([self._known[k] for k in keys])


class Said(nn.Module):
    """Adds testimonies to the vectors that serac's scope compares."""

    def __init__(self, questions: int, key: int) -> None:
        super().__init__()
        self.settings = {"questions": questions, "key": key}
        into = questions * (BUCKETS + 1)
        self.weights = nn.Parameter(torch.full((questions,), FIRST))
        self.of_query = nn.Linear(into, key, bias=False)
        self.of_edit = nn.Linear(into, key, bias=False)
        for linear in (self.of_query, self.of_edit):
            nn.init.zeros_(linear.weight)

    def added(self, query: Tensor, edit: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """(as a question, as an edit), [B, e + Q m] each, from [B, e], [B, e], [B, Q, m]."""
        said = said.to(query.device)
        flat, roots = said.flatten(1), (said * self.weights[:, None]).flatten(1)
        return (
            torch.cat([query + self.of_query(flat), roots], dim=1),
            torch.cat([edit + self.of_edit(flat), roots], dim=1),
        )


class TestifiedTrainee(SeracTrainee):
    """serac's training, with the testimonies of the examples' pictures."""

    def __init__(self, own: SeracTrainee, testimonies: Testimonies) -> None:
        assert own.floor is not None
        super().__init__(own.backbone, own.config, own.floor, own.module)
        self.testimonies = testimonies
        self.said = Said(len(testimonies.questions), own.module.scope.settings["key"])
        self.module.add_module("said", self.said.to(self.backbone.device_of("")))

    def vectors(self, batch: TrainBatch, prompts: PromptStates) -> tuple[Tensor, Tensor]:
        said = self.testimonies.of([e.example.prompt for e in batch.examples])
        return self.said.added(*super().vectors(batch, prompts), said)

    def optimiser(self) -> torch.optim.Optimizer:
        lr, few = self.config.lr, self.said.weights
        rest = [p for p in self.module.parameters() if p is not few]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": [few], "lr": FASTER * lr}]
        return torch.optim.Adam(groups, lr=lr, fused=True)


class TestifiedScope(PromptScope):
    """serac's trained scope, which also asks about the picture."""

    name = NAME
    needs_state = True

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptScope.Config):
        """layer: the block whose input is read. threshold: least similarity of a question that
        belongs to an edit.
        """

        layer: int
        threshold: float

    @torch.no_grad()
    def _vectors(self, backbone: Backbone, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """(as questions, as edits)."""
        state = self.state
        assert state is not None
        scope = ScopeNetwork.of(state)
        said = trained(state, lambda: Said(**state.meta["said"]), "said.")
        asked = state.views.setdefault(NAME, Testimonies(backbone, state.meta["questions"]))
        parts = []
        with backbone.unedited():
            for start in range(0, len(prompts), CHUNK):
                some = prompts[start : start + CHUNK]
                batch = backbone.encode(some)
                stream = backbone.enter(batch, self.config.layer).stream
                assert stream is not None
                query, edit = scope(*PromptStates.of(stream, batch).parts)
                parts.append(said.added(query, edit, asked.of(some)))
        return torch.cat([q for q, _ in parts]), torch.cat([e for _, e in parts])

    def query(self, backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
        return self._vectors(backbone, prompts)[0]

    def keys(self, backbone: Backbone, edits: Sequence[Edit]) -> Tensor:
        return self._vectors(backbone, [e.prompt for e in edits])[1]

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.exp(-squared_gaps(query, keys)).float()

    def opens(self, score: Tensor) -> Tensor:
        opens: Tensor = score > self.config.threshold
        return opens


class SeracTestimony(Serac):
    """serac behind `TestifiedScope`."""

    name = NAME

    def trainee(self, backbone: Backbone, cases: Sequence[Case], seed: int) -> Trainee:
        own = super().trainee(backbone, cases, seed)
        assert isinstance(own, SeracTrainee)
        c = TestimonyScope.Config()
        some = some_of(cases, c.cases, seed)[:CHOOSING]
        work = PrepareContext()
        panel, _ = choose(backbone, some, c.questions, c.pictures, c.pool, seed, work)
        assert panel is not None, "these cases ask nothing about pictures"
        return TestifiedTrainee(own, Testimonies(backbone, panel.questions))

    def extra(self, backbone: Backbone, trainee: Trainee, cases: Sequence[Case]) -> dict[str, Any]:
        assert isinstance(trainee, TestifiedTrainee)
        questions = list(trainee.testimonies.questions)
        more = {"said": trainee.said.settings, "questions": questions}
        return {**super().extra(backbone, trainee, cases), **more}

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        settings = {"layer": self._layer(backbone), "threshold": self.config.threshold}
        results = []
        for result, group, state in zip(
            super().find(backbone, request), request.groups, request.prepared, strict=True
        ):
            route = result.patch
            assert isinstance(route, Route)
            scope = TestifiedScope(state, **settings)
            patch = Route(scope, scope.keys(backbone, group), route.corrections)
            results.append(EditResult(backbone.place(patch), result.state))
        return results


def prepare(args: argparse.Namespace, backbone: Backbone) -> None:
    spec = BenchmarkSpec.parse(args.benchmark, split="train")
    cases = registry.load("benchmarks", spec.name)().load(spec).cases[: args.limit]
    args.out.mkdir(parents=True, exist_ok=True)
    work = PrepareContext(args.out, ProgressLines(f"{NAME}: "))
    editor = SeracTestimony(**({} if args.steps is None else {"steps": args.steps}))
    state = editor.prepare(backbone, cases, seed=args.seed, work=work)
    assert state is not None
    state.save(args.out)
    work.clear()
    for question, weight in zip(
        state.meta["questions"], state.tensors["said.weights"].tolist(), strict=True
    ):
        print(f"{weight:.2f} {question}")


def bench(args: argparse.Namespace, backbone: Backbone) -> None:
    errata.bench(
        backbone, SeracTestimony(), args.benchmark, args.protocol, args.out, limit=args.limit,
        state=State.load(args.state), progress=ProgressLines(f"{NAME}: "),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["prepare", "bench"])
    parser.add_argument("--benchmark", default="microworld:vqa")
    parser.add_argument("--protocol", default="one_step")
    parser.add_argument("--state", type=Path, help="of `bench`: what `prepare` wrote")
    parser.add_argument("--seed", type=int, default=0, help="of `prepare`")
    parser.add_argument("--steps", type=int, help="of `prepare`; default: serac's preset")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"prepare": prepare, "bench": bench}[args.what](args, errata.load("micro-vlm"))


if __name__ == "__main__":
    main()
