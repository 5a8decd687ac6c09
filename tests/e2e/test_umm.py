"""The bundled model that draws, through whole runs: edited, drawn, judged, reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errata.backbones import load
from errata.cli.shared.options import bundled_models
from errata.core import registry
from errata.core.model.backbone import Backbone
from errata.evaluation.bench import bench
from errata.report.html import render_report

SPEC = "unike_umm:microworld@dev"
pytestmark = pytest.mark.skipif("micro-umm" not in bundled_models(), reason="no bundled model")


@pytest.fixture(scope="module")
def micro() -> Backbone:
    torch.set_num_threads(1)
    return load("micro-umm")


@pytest.fixture(scope="module")
def runs(micro: Backbone, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    editor = registry.load("editors", "ft_l")(steps=10)
    folder = tmp_path_factory.mktemp("umm")
    return [
        bench(micro, editor, SPEC, f"{way}:2x1", folder / way, limit=4, image_seeds=1)
        for way in ("direct", "reasoning")
    ]


@pytest.mark.slow
def test_both_protocols_give_all_scores(runs: list[Path]) -> None:
    for run, tags in zip(runs, (("", "@pre", "@oracle"), ("", "@pre", "@oracle", "@ceiling")),
                         strict=True):  # fmt: skip
        scores = json.loads((run / "scores.json").read_text())
        assert scores["judge"].startswith("microworld@")
        n = scores["cases"]
        assert n in (2, 4)
        for key in ("efficacy.exact", "efficacy.first_token", "reasoning.word", "t_locality.exact",
                    "near_locality.exact", "efficacy.exact@own"):  # fmt: skip
            assert scores["metrics"][key]["n"] == n, key
        for tag in tags:
            entry = scores["metrics"][f"vqa.judge{tag}"]
            assert entry["n"] + entry["unscored"] == n, tag
        assert set(scores["by_part"]) == {"category", "object", "source"}
        assert (run / "verdicts.jsonl").exists()


@pytest.mark.slow
def test_the_unedited_model_says_the_old_answers(runs: list[Path]) -> None:
    """Every kind of completion that is scored is one that the model knows before the edit."""
    run = runs[0]
    plan = json.loads((run / "plan.json").read_text())
    old = {
        (c["id"], p["id"]): c["edit"]["old"]
        for c in plan["cases"] for p in c["probes"] if p["kind"] == "efficacy"
    }  # fmt: skip
    lines = [json.loads(x) for x in (run / "before.jsonl").read_text().splitlines()]
    said = {(a["case"], a["probe"]): a["text"] for a in lines}
    right = sum(said[key] == value for key, value in old.items())
    assert right >= 0.9 * len(old)


@pytest.mark.slow
def test_the_report_shows_them_side_by_side(runs: list[Path]) -> None:
    page = render_report(runs)
    assert "Does the edit reach the picture?" in page and 'class="strip"' in page
