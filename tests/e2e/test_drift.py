"""`errata analyze drift` on the bundled model that draws, and its pages in a report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from errata.core import registry
from errata.core.measure.benchmark import BenchmarkSpec
from tests.command import command_of

pytestmark = [pytest.mark.slow]

FT = ("--editor", "ft_l", "--set", "layers=[1]", "--set", "steps=3", "--set", "lr=0.05")


@pytest.fixture
def errata(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    return command_of(capsys)


def test_drift_of_an_edit_is_measured_judged_and_reported(errata, tmp_path):
    out, page = tmp_path / "drift", tmp_path / "report.html"
    few = ("--limit", 3, "--rows", 3, "--with", "seeds=1")
    ran = errata("analyze", "drift", "micro-umm", *FT, *few, "--out", out)
    assert ran.code == 0, ran.err
    assert "the same drawing twice: no change at any stage" in ran.out
    assert "only 3 cases" in ran.out
    facts = json.loads((out / "drift.json").read_text())
    shown = facts["pictures that show the target"]
    assert {"unedited", "edited", "unedited, prompt states the fact"} <= set(shown)
    rows = list(csv.DictReader((out / "drift.csv").read_text().splitlines()))
    assert {r["stage"] for r in rows} >= {"tap", "projected", "blocks.0", "velocity", "picture"}
    reported = errata("report", "--html", page, "--analysis", out)
    assert reported.code == 0, reported.err
    assert "How far a change of the text model gets" in page.read_text()


def test_drift_of_a_patch(errata, tmp_path):
    edits, patch, out = tmp_path / "edits.jsonl", tmp_path / "patch", tmp_path / "drift"
    spec = BenchmarkSpec.parse("unike_umm:microworld@dev")
    cases = registry.load("benchmarks", "unike_umm")().load(spec).cases[:3]
    lines = [
        {"prompt": c.edit.prompt.text, "target": c.edit.target, "subject": c.edit.subject}
        for c in cases
    ]
    edits.write_text("".join(json.dumps(x) + "\n" for x in lines))
    made = errata("edit", "micro-umm", *FT, "--edits", edits, "--out", patch)
    assert made.code == 0, made.err
    few = ("--benchmark", spec, "--rows", 3, "--with", "seeds=1")
    ran = errata("analyze", "drift", "micro-umm", "--patch", patch, *few, "--out", out)
    assert ran.code == 0, ran.err
    assert json.loads((out / "drift.json").read_text())["cases"] == 3
