"""docs/results: every table equals its CSV file, and `--fill` writes the runs that are here."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(RESULTS.glob("*.md"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import tables

    return tables


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_tables_of_a_page_equal_their_csv_files(page: Path, tables: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(page) == text, f"run `python experiments/tables.py --fill {page}`"
    outside = tables.MARKED.sub("", text)
    if page.name != "index.md":  # its list of pages
        assert "\n|" not in outside, "a table without a CSV file"


def test_every_csv_file_is_on_a_page() -> None:
    """In a table of docs/results, or named where another page tells what a script wrote."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    text = "\n".join(p.read_text(encoding="utf-8") for p in pages)
    for path in (RESULTS / "data").glob("*.csv"):
        shown = (f"--csv data/{path.name} ", f"data/{path.name})")
        assert any(s in text for s in shown), path.name


def _run(folder: Path, editor: str, value: float) -> None:
    folder.mkdir(parents=True)
    entry = {"value": value, "ci95": [value - 0.1, value + 0.05], "base": 0.25, "n": 20, "units": 2}
    contents = {
        "scores": {"metrics": {"reliability.exact": entry, "mean6.exact": {"value": None}}},
        "manifest": {"editor": editor},
        "timing": {"phases": {"edit": {"seconds": 3.0, "count": 20}}},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_fill_writes_the_rows_of_runs_and_keeps_the_others(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    runs = "runs/one-vqa runs/two-vqa runs/three-vqa"
    page.write_text(f"a\n<!-- tables.py --csv data/t.csv {runs} -->\n<!-- end -->\nb\n")
    _run(tmp_path / "runs" / "one-vqa", "one", 0.5)
    _run(tmp_path / "runs" / "two-vqa", "two", 0.7)
    _run(tmp_path / "runs" / "three-vqa", "three", 0.8)
    tables.fill(page)
    expected = [
        "| editor | n | reliability | s/edit |",
        "|---|---|---|---|",
        "| *(base accuracy)* |  | 25.0 |  |",
        "| one | 20 / 2 seq. | 50.0 [40.0, 55.0] | 0.150 |",
        "| two | 20 / 2 seq. | 70.0 [60.0, 75.0] | 0.150 |",
        "| three | 20 / 2 seq. | 80.0 [70.0, 85.0] | 0.150 |",
    ]
    assert page.read_text().splitlines()[2:8] == expected

    (tmp_path / "runs" / "two-vqa" / "scores.json").unlink()
    (tmp_path / "runs" / "three-vqa").rename(tmp_path / "elsewhere")
    page.write_text(page.read_text().replace("runs/three-vqa", "runs/three-vqa runs/four-vqa"))
    tables.fill(page)
    assert page.read_text().splitlines()[2:8] == expected
    assert page.read_text().splitlines()[8] == "| four | not run | – |  |"


def test_a_row_of_training_seeds(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [tmp_path / "runs" / f"one-vqa-s{i}" for i in range(3)]
    for run in runs:
        _run(run, "one", 0.5)
    asked: list[list[str]] = []

    def combined(of: list[Path]) -> dict[str, object]:
        asked.append([run.name for run in of])
        entry = {"value": 0.6, "ci95": [0.4, 0.8], "n": 20, "units": 20}
        return {"metrics": {"reliability.exact": entry}}

    monkeypatch.setattr(tables, "combine_runs", combined)
    row = Path("+".join(str(run) for run in runs))
    _, cells = tables.score_table([row], "exact", ["reliability"], "editor")
    assert asked == [["one-vqa-s0", "one-vqa-s1", "one-vqa-s2"]]
    assert cells["editor"] == "one (seeds)"
    assert (cells["reliability"], cells["reliability_low"]) == ("60.0", "40.0")
    assert cells["s/edit"] == "0.150"


def test_a_difference_is_bold_where_its_interval_excludes_zero(tables: ModuleType) -> None:
    entry = {"difference": "b − a"}
    apart = entry | tables.percent("x", 0.01, (0.002, 0.02), "+.1f")
    equal = entry | tables.percent("x", 0.01, (-0.002, 0.02), "+.1f")
    unscored = entry | tables.percent("x", None, None)
    assert tables.markdown([apart, equal, unscored])[2:] == [
        "| b − a | **+1.0 [+0.2, +2.0]** |",
        "| b − a | +1.0 [-0.2, +2.0] |",
        "| b − a | – |",
    ]
