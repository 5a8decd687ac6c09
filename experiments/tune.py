"""Tunes editors with equal budgets on the dev split. The eval split is never used.

    OMP_NUM_THREADS=1 python experiments/tune.py --trials 12 --limit 64 --out FILE [--editor ...]

Seeded random search over the spaces below; the defaults are the first trial. The objective is the
mean of the five paper metrics and near locality, `exact`, and over the benchmarks and protocols
that are named: `tune.sh` names both tasks of microworld@dev, as single edits and in sequences.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import errata
from errata.core import registry
from errata.core.config import parse_config
from errata.core.editor import Editor
from errata.core.kinds import MEANS
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.evaluation.bench import bench

PAPER, OBJECTIVE = MEANS["mean5"].kinds, MEANS["mean6"].kinds
SPACES: dict[str, dict[str, list[Any]]] = {
    "ft_l": {
        "lr": [1e-3, 3e-3, 1e-2, 3e-2],
        "steps": [25, 50],
        "stop_loss": [1e-2, 5e-2, 0.2],
        "layers": [[-1], [-2], [-3], [-4]],
    },
    "ft_v": {
        "lr": [1e-4, 3e-4, 1e-3, 3e-3],
        "steps": [25, 50, 100],
        "stop_loss": [1e-2, 5e-2, 0.2],
    },
    "lora": {
        "lr": [1e-4, 3e-4, 1e-3, 3e-3],
        "steps": [25, 50],
        "stop_loss": [1e-2, 5e-2, 0.2],
        "rank": [2, 8],
        "layers": [[], [-1], [-4, -3, -2, -1]],
        "parts": [["attn.q", "attn.v"], ["mlp.down"]],
    },
    "tpatcher": {
        "lr": [3e-3, 1e-2, 3e-2],
        "steps": [50, 100, 200],
        "stop_loss": [1e-2, 5e-2, 0.2],
        "layers": [[-1], [-2], [-3], [-4, -3, -2, -1]],
        "neurons": [1, 5, 10],
        "act_weight": [0.1, 1.0],
        "memory_weight": [1.0, 10.0, 100.0],
        "value_scale": [1.0, 3.0, 10.0],
    },
    "unike": {
        "lr": [3e-3, 1e-2],
        "steps": [50, 100, 200],
        "stop_loss": [3e-3, 1e-2, 5e-2],
        "memory_weight": [0.0, 0.1, 0.3, 1.0],
        "act_weight": [0.1, 1.0],
        "value_scale": [1.0, 3.0, 10.0],
        "alpha": ["query", 0.3, 0.5, 0.7],
        "cutoff": [-1.0, 0.8, 0.85, 0.9],
        "beta": [0.03, 0.1, 0.3],
    },
    "ike": {
        "demonstrations": [0, 2, 4, 8],
        "scope": ["always", "retrieved"],
        "threshold": [0.5, 0.7, 0.9],
        "encoder": ["backbone"],
    },
}


def trials(editor: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The defaults, then distinct random points of the editor's space."""
    rng = random.Random(f"{seed}|{editor}")
    points: list[dict[str, Any]] = [{k: v[0] for k, v in SPACES[editor].items() if len(v) == 1}]
    while len(points) < count:
        point = {k: rng.choice(v) for k, v in SPACES[editor].items()}
        if point not in points:
            points.append(point)
    return points


def made(cls: type[Editor], point: dict[str, Any]) -> Editor:
    """The editor at a point, without the settings that change nothing there."""
    probe = cls()
    probe.config = parse_config("editor", cls.name, cls.Config, point)
    return cls(**{k: v for k, v in point.items() if k not in probe.idle()})


def measure(
    backbone: Backbone,
    editor: Editor,
    benchmark: str,
    protocol: str,
    limit: int,
    state: State | None,
) -> dict[str, float]:
    """Kind -> the score of one run, whose folder is removed."""
    out = Path(tempfile.mkdtemp(prefix="errata-tune-"))
    bench(backbone, editor, benchmark, protocol, out / "run", limit=limit, state=state)
    scores = json.loads((out / "run" / "scores.json").read_text(encoding="utf-8"))
    shutil.rmtree(out)
    return {k: scores["metrics"][f"{k}.exact"]["value"] for k in OBJECTIVE}


def objective(measured: list[dict[str, float]]) -> float:
    """The mean over kinds and runs."""
    return sum(sum(m.values()) / len(m) for m in measured) / len(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--editor", action="append")
    parser.add_argument("--backbone", default="micro-vlm")
    parser.add_argument("--benchmark", nargs="+", default=["microworld:vqa@dev"])
    parser.add_argument("--protocol", nargs="+", default=["one_step"])
    parser.add_argument("--state", type=Path, help="prepared, for editors that need one")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = errata.load(args.backbone)
    state = State.load(args.state) if args.state else None
    results: dict[str, Any] = {}
    for editor in args.editor or SPACES:
        finished = []
        for point in trials(editor, args.trials, args.seed):
            started = time.perf_counter()
            # a preset that does not exist for the backbone: settings are exactly the point
            instance = made(registry.load("editors", editor), point)
            instance.for_backbone = lambda _, instance=instance: instance
            editor_state = state if state is not None and state.editor == editor else None
            measured = [
                measure(backbone, instance, benchmark, protocol, args.limit, editor_state)
                for benchmark in args.benchmark
                for protocol in args.protocol
            ]
            means = {k: round(sum(m[k] for m in measured) / len(measured), 3) for k in OBJECTIVE}
            seconds = time.perf_counter() - started
            finished.append(
                {"set": point, "objective": round(objective(measured), 4), **means, "s": seconds}
            )
            print(editor, json.dumps(finished[-1]), flush=True)
        finished.sort(key=lambda t: -t["objective"])
        results[editor] = finished
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
