"""How much a scope test gains when it may read the gold answer: SERAC's classifier, four inputs.

    OMP_NUM_THREADS=1 python experiments/scope_leak.py [--task vqa] [--steps 500] [--limit 240]
        [--readings prompt text ...] [--out scope.json]

The multimodal port of SERAC (EasyEdit) decides from the question's text together with the answer
that is being scored, and never reads the image. Here the same network is trained on the same cases
with the same loss to decide from

    prompt          image and question (this library's `serac`)
    text            the question alone
    text+answer     the question and the gold answer, as published
    prompt+answer   image, question and gold answer

It prints, per kind of probe, how often the scope decides rightly: it should open where the new
answer is expected, and stay closed elsewhere. For locality kinds this is a lower bound of the score
of a hard switch (a closed scope gives the old answer bit for bit). For `+answer` inputs a second
row has the same questions without an answer, as at inference.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import errata
from errata.core import registry
from errata.core.kinds import TARGET_KINDS
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.model.recorder import PromptStates, outputs_at
from errata.core.types import Case, Prompt
from errata.editors.serac import Serac, SeracNetwork, SeracTrainee
from errata.evaluation.statistics.intervals import Intervals
from errata.training.batches import TrainBatch
from errata.training.loop import TrainExample, train

LAYER, CHUNK = 4, 64
#: input -> (has the image, has the answer)
READINGS = {
    "prompt": (True, False),
    "text": (False, False),
    "text+answer": (False, True),
    "prompt+answer": (True, True),
}


class ScopeOnly(SeracTrainee):
    """SERAC's scope loss on one of the inputs."""

    module: SeracNetwork

    def __init__(self, backbone: Backbone, editor: Serac, image: bool, answer: bool) -> None:
        whole = editor.trainee(backbone, (), 0)
        super().__init__(backbone, editor.config, LAYER, whole.module)  # type: ignore[arg-type]
        self.image, self.answer = image, answer
        self.weights = {"scope": 1.0}

    def rows(self, case: Case, rng: torch.Generator) -> list[TrainExample]:
        return [replace(r, prompt=self.shown(r.prompt)) for r in super().rows(case, rng)]

    def shown(self, prompt: Prompt) -> Prompt:
        return prompt if self.image else Prompt.of(prompt.text)

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        state = batch.state
        assert isinstance(state, PrefixState) and state.stream is not None
        return self._scope(batch, self.read(state.stream, state.batch))

    def read(self, stream: Tensor, batch: Batch, *, answer: bool = True) -> PromptStates:
        if not (self.answer and answer):
            return PromptStates.of(stream, batch)
        ends = batch.lengths + torch.tensor([len(t) for t in batch.targets])
        return PromptStates.of(stream, replace(batch, lengths=ends))

    @torch.no_grad()
    def points(self, pairs: Sequence[tuple[Prompt, str]], *, edits: bool, answer: bool) -> Tensor:
        """[P, e] keys of edits or queries of questions; `answer`: whether the input has it."""
        out = []
        site = f"text.{LAYER}.in"
        for start in range(0, len(pairs), CHUNK):
            part = pairs[start : start + CHUNK]
            batch = self.backbone.encode([self.shown(p) for p, _ in part], [a for _, a in part])
            read = self.read(outputs_at(self.backbone, batch, [site])[site], batch, answer=answer)
            query, key = self.module.scope(*read.parts)
            out.append(key if edits else query)
        return torch.cat(out)


def cases_of(spec: str) -> tuple[Case, ...]:
    parsed = BenchmarkSpec.parse(spec)
    return tuple(registry.load("benchmarks", parsed.name)().load(parsed).cases)


def opened(trainee: ScopeOnly, cases: Sequence[Case], *, answer: bool) -> dict[str, Any]:
    """Kind -> share of probes on which the scope opens, with a 95 % interval over cases."""
    keys = trainee.points([(c.edit.prompt, c.edit.target) for c in cases], edits=True, answer=True)
    questions = [(i, p) for i, c in enumerate(cases) for p in c.probes if p.reference.strip()]
    queries = trainee.points(
        [(p.prompt, p.reference) for _, p in questions], edits=False, answer=answer
    )
    gap = (queries - keys[[i for i, _ in questions]]).square().sum(-1)
    is_open = (torch.exp(-gap) > 0.5).float().tolist()
    intervals = Intervals(sorted({c.id for c in cases}))
    by_kind: dict[str, dict[str, list[float]]] = {}
    for (i, p), o in zip(questions, is_open, strict=True):
        by_kind.setdefault(p.kind, {}).setdefault(cases[i].id, []).append(o)
    out: dict[str, Any] = {}
    for kind, units in by_kind.items():
        right = (
            units if kind in TARGET_KINDS else {k: [1 - v for v in vs] for k, vs in units.items()}
        )
        mean = intervals.mean([right], [1.0], within=(0.0, 1.0))
        assert mean is not None
        out[kind] = {"right": mean.value, "ci95": mean.ci95, "n": len(units)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="vqa")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--limit", type=int, default=240)
    parser.add_argument("--readings", nargs="+", default=list(READINGS), choices=list(READINGS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = errata.load("micro-vlm")
    train_cases = cases_of(f"microworld:{args.task}@train")
    eval_cases = cases_of(f"microworld:{args.task}@eval")[: args.limit]
    results: dict[str, Any] = {"task": args.task, "steps": args.steps, "cases": len(eval_cases)}
    for name in args.readings:
        image, answer = READINGS[name]
        editor = Serac(preset="micro-vlm", steps=args.steps, layer=LAYER)
        trainee = ScopeOnly(backbone, editor, image, answer)
        done = train(backbone, train_cases, trainee, seed=0)
        trainee.module.load_state_dict(dict(done.tensors))
        trainee.module.eval()
        results[name] = opened(trainee, eval_cases, answer=True)
        if answer:
            results[f"{name}, without answer"] = opened(trainee, eval_cases, answer=False)
        for row in (name, f"{name}, without answer"):
            if row in results:
                cells = {k: f"{100 * v['right']:.1f}" for k, v in results[row].items()}
                print(row, json.dumps(cells), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
