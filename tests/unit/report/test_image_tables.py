"""The report of runs that draw: one line per editor over both protocols, and the pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from errata.core import registry
from errata.core.measure.benchmark import BenchmarkSpec
from errata.evaluation.bench import bench
from errata.evaluation.compare import compare_runs
from errata.report.html import render_report
from errata.report.image_tables import studies, terminal_table
from errata.report.results import read_settings
from tests.umm import Believer, Painter, write_records
from tests.unit.report.drawn import SPEC


@pytest.fixture(scope="module")
def runs(drawn_runs: dict[str, Path]) -> dict[str, Path]:
    return drawn_runs


def test_an_editor_is_one_line(runs: dict[str, Path]) -> None:
    (study,) = studies(read_settings(list(runs.values())))
    first = study.tables[0]
    labels = [h.label for h in first.headings]
    lines = {x.label: dict(zip(labels, x.cells, strict=True)) for x in first.lines}
    assert list(lines) == [
        *("unedited", "good", "none", "fact in the prompt", "fact in a rationale")
    ]
    direct = json.loads((runs["good-direct"] / "scores.json").read_text())["metrics"]
    assert lines["good"]["VQA direct"].value == direct["vqa.judge"]["value"]
    assert 0 < (lines["good"]["VQA direct"].value or 0) < 1
    assert lines["good"]["VQA reasoning"].value == 1.0
    assert lines["good"]["Efficacy"].value == 1.0 and lines["none"]["Efficacy"].value == 0.0
    assert lines["none"]["VQA reasoning"].value == 0.0
    assert lines["unedited"]["VQA direct"].value == lines["unedited"]["Efficacy"].value == 0.0
    assert lines["fact in the prompt"]["VQA direct"].value == 1.0
    assert lines["fact in a rationale"]["VQA direct"].value is None
    assert lines["fact in a rationale"]["VQA reasoning"].value == 1.0
    assert lines["unedited"]["Pictures kept"].value is None
    assert lines["good"]["VQA direct"].low is not None
    assert study.unjudged == 0.5 and study.judges == ("pixel@1",)


def test_sheets_by_stage_and_part(runs: dict[str, Path]) -> None:
    (study,) = studies(read_settings(list(runs.values())))
    assert [s.title for s in study.tables] == ["All stages", "By stage", "By category"]
    by_stage = [(h.over, h.label) for h in study.tables[1].headings]
    assert ("VQA direct", "stage 1") in by_stage and ("VQA reasoning", "stage 2") in by_stage
    assert {h.label for h in study.tables[2].headings} == {"color", "pattern"}


def test_one_protocol_alone_and_variants_apart(runs: dict[str, Path]) -> None:
    (study,) = studies(read_settings([runs["good-direct"]]))
    labels = [h.label for h in study.tables[0].headings]
    assert "VQA direct" in labels and "VQA reasoning" not in labels


def test_the_page_shows_pictures_and_rationales(runs: dict[str, Path]) -> None:
    page = render_report(list(runs.values()))
    assert "Does the edit reach the picture?" in page
    figures = re.findall(r'<figure class="frame (\w+)( control)?">', page)
    # 12 cases, 2 stages: before, 4 runs, two controls; and 2 other pictures: before, 4 runs
    assert len(figures) >= 12 * 2 * 7
    assert {f for f, _ in figures} >= {"right", "wrong"}
    assert page.count("good wrote") == 12 * 2
    assert "data:image/png;base64," in page
    assert "50.0 % of the pictures of a run have no verdict" in page


def test_the_terminal_shows_the_same(runs: dict[str, Path]) -> None:
    import io

    from rich.console import Console

    (study,) = studies(read_settings(list(runs.values())))
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(terminal_table(study))
    text = console.export_text()
    assert "VQA reasoning" in text and "fact in a rationale" in text


def test_pictures_are_compared_in_pairs(runs: dict[str, Path]) -> None:
    found = compare_runs(runs["none-direct"], runs["good-direct"])["metrics"]["vqa.judge"]
    assert found["n"] == 12 and found["difference"] == found["b"] > 0


def test_runs_without_pictures_have_no_such_table(runs: dict[str, Path], tmp_path: Path) -> None:
    root = write_records(tmp_path / "data")
    cases = registry.load("benchmarks", "unike_umm")().load(BenchmarkSpec.parse(SPEC), root=root)
    out = bench(
        Painter(cases.cases), Believer(), SPEC, "one_step", tmp_path / "r", root=root, limit=4
    )
    assert studies(read_settings([out])) == []
    assert "reach the picture" not in render_report([out])
