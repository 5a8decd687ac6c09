"""`--forced`: nothing is generated after an edit; what needs nothing generated is scored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.protocol import Ask
from errata.core.types import Probe
from errata.evaluation import score
from errata.evaluation.answers import PromptRequest, ask_all
from errata.evaluation.bench import bench
from errata.report.html import write_report
from tests import tiny
from tests.stub import NotesEditor, Stub, knowing

SPEC = "microworld:vqa@dev"


class Silent(Stub):
    """Generates only while nothing is edited."""

    @contextmanager
    def ask(self, what: Any, *, rows: Any = None, answers_only: bool = False) -> Iterator[Any]:
        with super().ask(what, rows=rows, answers_only=answers_only) as q:
            if self.hooks.stack:
                q.greedy = None
            yield q


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The same run, forced and not."""
    spec, world = BenchmarkSpec.parse(SPEC), registry.load("benchmarks", "microworld")()
    right = knowing(world.load(spec).cases, world.panel(spec)).right
    out = tmp_path_factory.mktemp("runs")
    return {
        forced: bench(
            (Silent if forced else Stub)(right=right), NotesEditor(), SPEC, "one_step",
            out / str(forced), limit=12, rows=3, forced=forced,
        )
        for forced in (True, False)
    }  # fmt: skip


def test_scores_under_teacher_forcing_are_those_of_a_whole_run(runs: dict[bool, Path]) -> None:
    forced, whole = (
        json.loads((runs[f] / "scores.json").read_text("utf-8"))["metrics"] for f in (True, False)
    )
    names = {key.rpartition(".")[2] for key in forced}
    assert "token" in names and "token_own" in names
    assert not names & {"exact", "joint", "word"}
    assert {k: v for k, v in whole.items() if k in forced} == forced


def test_the_run_says_that_nothing_was_generated(runs: dict[bool, Path]) -> None:
    manifest = json.loads((runs[True] / "manifest.json").read_text("utf-8"))
    assert manifest["forced"] is True
    assert "forced" not in json.loads((runs[False] / "manifest.json").read_text("utf-8"))
    lines = (runs[True] / "answers.jsonl").read_text("utf-8").splitlines()
    assert all(json.loads(line)["text"] == "" for line in lines)


def test_other_metrics_are_refused(runs: dict[bool, Path], tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"'exact' reads generated answers.*token"):
        score.score_run(runs[True], ["exact"])
    with pytest.raises(BadSpec, match="'begins' reads generated answers"):
        bench(Stub(), NotesEditor(), SPEC, "one_step", tmp_path / "r", metrics=["begins"],
              forced=True)  # fmt: skip


def test_a_report_of_it_can_be_written(runs: dict[bool, Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report([runs[True]], page)
    assert "Token" in page.read_text("utf-8")


def test_the_head_scores_the_same_without_generation(pictures: list[str]) -> None:
    bb = tiny.shared("llava")
    asked = [
        PromptRequest(
            Ask("c", Probe(str(i), errata.Prompt.of("What?", picture), "reliability",
                           reference="green thing"))
        )
        for i, picture in enumerate(pictures[:2])
    ]  # fmt: skip
    whole, forced = ask_all(bb, asked, step=0), ask_all(bb, asked, step=0, forced=True)
    assert [a.reference for a in whole] == [a.reference for a in forced]
    assert not any(a.text or a.ids for a in forced)
