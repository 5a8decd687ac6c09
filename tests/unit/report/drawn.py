"""Runs that draw: a model that paints what it believes, and an editor that changes its beliefs."""

from __future__ import annotations

import json
from pathlib import Path

from errata.core import registry
from errata.core.files import write_json
from errata.core.measure.benchmark import BenchmarkSpec
from errata.evaluation.bench import bench
from errata.evaluation.judging import judge_run
from errata.evaluation.score import score_run
from tests.umm import Beliefs, Believer, Painter, PixelJudge, write_records

SPEC = "unike_umm:attribute"


class Forgetful(Believer):
    """Learns nothing."""

    def find(self, backbone, request):  # type: ignore[no-untyped-def]
        return [type(f)(Beliefs({}), f.state) for f in super().find(backbone, request)]


def write_drawn(folder: Path) -> dict[str, Path]:
    """editor-protocol -> run."""
    root = write_records(folder / "data")
    cases = registry.load("benchmarks", "unike_umm")().load(BenchmarkSpec.parse(SPEC), root=root)
    made = {}
    for name, editor in (("good", Believer()), ("none", Forgetful())):
        for way in ("direct", "reasoning"):
            out = bench(Painter(cases.cases), editor, SPEC, f"{way}:6x3", folder / f"{name}-{way}",
                        root=root, limit=12, image_seeds=2, seed=1)  # fmt: skip
            judge_run(out, PixelJudge(blind=1 if way == "reasoning" else -1))
            score_run(out)
            manifest = json.loads((out / "manifest.json").read_text())
            write_json(out / "manifest.json", {**manifest, "editor": name})
            made[f"{name}-{way}"] = out
    return made
