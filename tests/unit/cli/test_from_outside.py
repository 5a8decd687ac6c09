"""A metric and a kind of probe that a third party adds, each in one file and its entry point."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from errata.core import registry
from errata.core.files import read_json
from errata.core.types import Prompt
from errata.evaluation.bench import bench
from errata.report.html import render_report
from tests.stub import NotesEditor, Stub

METRIC = '''
"""Length: how short the answer after the edit is."""

from errata.core.measure.metric import Metric


class Brief(Metric):
    name = "brief"
    heading = "Brevity"
    meaning = "One over the number of letters of the answer."
    means = False

    def score(self, before, after, probe):
        return 1 / max(len(after.text), 1)
'''

BENCHMARK = '''
"""Spots: where a thing stands, with a kind of probe of its own."""

from errata.core.measure.benchmark import Benchmark, Loaded
from errata.core.kinds import ProbeKind
from errata.core.types import Case, Edit, Probe, Prompt

SPATIAL = ProbeKind(
    "spatial", "Same place", "Where the things beside it stand is not changed by the edit.",
    side="locality", groups=(("left", "things to the left of the edited one"),),
)


class Spots(Benchmark):
    name = "spots"
    version = "1"
    tasks = ("text",)
    variants = ("disjoint",)

    def load(self, spec, *, root=None, seed=0):
        return Loaded(tuple(self.case(i) for i in range(6)))

    def case(self, i):
        prompt = Prompt.of(f"where is {i}?")
        probes = [Probe("rel", prompt, "reliability", reference="here")]
        for group in ("left", "right"):
            other = Prompt.of(f"what is {group} of {i}?")
            probes.append(Probe(group, other, SPATIAL.name, group, "box", custom_kind=SPATIAL))
        return Case(f"c{i}", Edit(prompt, "here", old="there"), tuple(probes), task="text")
'''

Errata = Callable[..., Any]


class Packages:
    """Plug-ins of third parties: modules in a folder, and their entry points."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.points: dict[str, EntryPoint] = {}

    def install(self, kind: str, name: str, class_name: str, source: str) -> None:
        module = f"third_party_{name}"
        (self.folder / f"{module}.py").write_text(source)
        self.points[name] = EntryPoint(name, f"{module}:{class_name}", f"errata.{kind}")

    def remove(self, name: str) -> None:
        del self.points[name]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    made = Packages(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: [e for e in made.points.values() if e.group == group],
    )
    return made


@pytest.fixture
def run(packages: Packages, tmp_path: Path) -> Path:
    """A run on the benchmark of the third party, on a backbone that is right before any edit."""
    packages.install("benchmarks", "spots", "Spots", BENCHMARK)
    right = {Prompt.of(f"where is {i}?"): "there" for i in range(6)}
    right |= {Prompt.of(f"what is {g} of {i}?"): "box" for i in range(6) for g in ("left", "right")}
    return bench(Stub(right=right), NotesEditor(), "spots", "one_step", tmp_path / "run")


def test_a_metric_is_computed_and_shown(run: Path, packages: Packages, errata: Errata) -> None:
    assert errata("score", run, "--metric", "brief").code == 2
    packages.install("metrics", "brief", "Brief", METRIC)
    assert errata("score", run, "--metric", "brief").code == 0
    scores = read_json(run / "scores.json")
    assert scores["scorers"]["brief"] == "1"
    assert scores["metrics"]["reliability.brief"]["value"] == pytest.approx(1 / len("here"))
    shown = errata("results", run, "--scorer", "brief")
    assert shown.code == 0 and "brief, %" in shown.out and "25.0" in shown.out
    page = render_report([run])
    assert ">Brevity</label>" in page and "One over the number of letters" in page
    assert "Methods and scores, Brevity, per cent" in page


def test_a_metric_that_is_gone_keeps_its_scores(
    run: Path, packages: Packages, errata: Errata
) -> None:
    packages.install("metrics", "brief", "Brief", METRIC)
    errata("score", run, "--metric", "brief")
    packages.remove("brief")
    assert errata("results", run, "--scorer", "brief").code == 0
    assert ">brief</label>" in render_report([run])


def test_an_unknown_scorer_is_one_line_with_those_that_exist(run: Path, errata: Errata) -> None:
    wrong = errata("results", run, "--scorer", "exat")
    assert wrong.code == 2
    assert "'exat'. Did you mean 'exact'? Known: exact, token, token_own." in wrong.err


def test_a_kind_of_probe_is_planned_scored_and_shown(
    run: Path, packages: Packages, errata: Errata
) -> None:
    plan = read_json(run / "plan.json")
    kinds = {p["kind"]: p.get("custom_kind") for p in plan["cases"][0]["probes"]}
    assert kinds["reliability"] is None and kinds["spatial"]["heading"] == "Same place"
    metrics = read_json(run / "scores.json")["metrics"]
    assert metrics["spatial.exact"]["n"] == 6 and metrics["spatial.exact"]["base"] == 1.0
    assert metrics["spatial.token"]["value"] is not None
    packages.remove("spots")  # the run describes its kinds
    assert errata("score", run).code == 0
    shown = errata("results", run)
    assert shown.code == 0 and "Same place" in shown.out
    page = render_report([run])
    for words in (
        'title="Where the things beside it stand is not changed by the edit."',
        ">Same place</th>",
        "things to the left of the edited one",
        '<option value="spatial">Same place</option>',
    ):
        assert words in page, words
