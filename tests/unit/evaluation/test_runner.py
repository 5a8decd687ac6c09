"""Lanes that fail alone: reasons instead of crashes, and everybody else untouched."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import errata
from errata.core import registry
from errata.core.editor import EditRequest, EditResult
from errata.core.errors import BadRun, BadSpec, FingerprintMismatch, MissingState, NotFinite
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.backbone import Backbone
from errata.core.types import Edit, Prompt, from_json
from errata.evaluation.bench import bench
from errata.evaluation.run_folder import FinishedUnit
from errata.testing import zoo
from tests import tiny
from tests.stub import NotesEditor, Stub, knowing

SPEC = "microworld:vqa@dev"


class Moody(NotesEditor):
    """Cannot make edits whose target has an even number of letters."""

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        for _, edit in request.edits:
            if len(edit.target) % 2 == 0:
                raise NotFinite(f"the loss of edit '{edit.id}' became nan")
        return super().find(backbone, request)


@pytest.fixture(scope="module")
def stub() -> Stub:
    spec = BenchmarkSpec.parse(SPEC)
    benchmark = registry.load("benchmarks", "microworld")()
    return knowing(benchmark.load(spec).cases, benchmark.panel(spec))


@pytest.mark.parametrize("protocol", ["one_step", "sequential:4"])
def test_a_failed_edit_is_unscored_and_the_others_are_scored(
    stub: Stub, tmp_path: Path, protocol: str
) -> None:
    out = bench(stub, Moody(), SPEC, protocol, tmp_path / "r", limit=24, rows=3)
    plan = json.loads((out / "plan.json").read_text())
    bad = sum(len(c["edit"]["target"]) % 2 == 0 for c in plan["cases"])
    assert 0 < bad < len(plan["cases"])
    entry = json.loads((out / "scores.json").read_text())["metrics"]["reliability.exact"]
    assert entry["n"] == len(plan["cases"]) - bad and entry["unscored"] == bad
    assert entry["value"] == 1.0


def test_a_changed_plan_is_not_continued(stub: Stub, tmp_path: Path) -> None:
    out = bench(stub, NotesEditor(), SPEC, "one_step", tmp_path / "r", limit=8, rows=2)
    plan = json.loads((out / "plan.json").read_text())
    plan["cases"][0]["probes"].pop()
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadRun, match="not what this run began with"):
        bench(stub, NotesEditor(), SPEC, "one_step", tmp_path / "r", limit=8, rows=2)


def test_a_state_is_checked_before_it_is_used(edits: list[Edit]) -> None:
    bb = tiny.shared("llava")
    make = registry.load("editors", "tpatcher")
    with pytest.raises(MissingState, match="memory_weight=0"):
        make().edit(bb, edits[:1])
    from errata.core.types import Case, Probe

    probe = Probe("l", Prompt.of("What?"), "t_locality", reference="ring")
    state = make(steps=1, memory=50).prepare(bb, [Case("c", edits[1], (probe,))])
    with pytest.raises(BadSpec, match=r"made with layers=\[-1\], now it is \[-2\]"):
        make(steps=1, memory=50, layers=(-2,)).edit(bb, edits[:1], state)
    with pytest.raises(FingerprintMismatch, match="another model"):
        make(steps=1, memory=50).edit(tiny.shared("qwen3"), edits[:1], state)


def test_later_neurons_spare_earlier_edits(edits: list[Edit]) -> None:
    """After an edit its own states join the lane's memory, and only that lane's."""
    from errata.core.types import Case, Probe

    bb = tiny.shared("llava")
    editor = registry.load("editors", "tpatcher")(steps=2, memory=50)
    probe = Probe("l", Prompt.of("What?"), "t_locality", reference="ring")
    state = editor.prepare(bb, [Case("c", edits[1], (probe,))])
    found = editor.edit_rows(bb, edits[:2], [state, state])
    past = [f.state.tensors["past/text.3.mlp"] for f in found if f.state is not None]
    assert all(len(p) >= 1 for p in past) and not past[0].equal(past[1])
    assert "past/text.3.mlp" not in state.tensors
    assert found[0].state is not None and found[0].state.origin == state.digest()


class Renamed(NotesEditor):
    """An editor one of whose settings had another name when the run began."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        renamed: ClassVar[Mapping[str, str]] = {"clip": "max_grad_norm"}
        max_grad_norm: float = 1.0


def test_a_run_that_began_under_old_names_of_settings_is_resumed(
    stub: Stub, tmp_path: Path
) -> None:
    def run(**settings: float) -> Path:
        return bench(stub, Renamed(**settings), SPEC, "one_step", tmp_path / "r", limit=8, rows=2)

    out = run(max_grad_norm=5.0)
    scores = (out / "scores.json").read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"] == manifest["arguments"] == {"max_grad_norm": 5.0}
    manifest |= {"config": {"clip": 5.0}, "arguments": {"clip": 5.0}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert (run(clip=5.0) / "scores.json").read_bytes() == scores
    with pytest.raises(BadRun, match="holds another run: arguments"):
        run(clip=4.0)


def test_a_metric_that_reads_the_likeliest_tokens_gets_them(stub: Stub, tmp_path: Path) -> None:
    """By what the metric says of itself, not by its name."""

    def recorded(name: str, metrics: list[str] | None) -> bool:
        out = bench(
            stub, NotesEditor(), SPEC, "one_step", tmp_path / name, limit=2, metrics=metrics
        )
        return bool(json.loads((out / "manifest.json").read_text())["legacy"])

    reading = [n for n in registry.names("metrics") if registry.load("metrics", n).reads_top]
    assert reading == ["legacy"]
    assert recorded("a", None) is False and recorded("b", ["word"]) is False
    assert recorded("c", reading) is True


@pytest.mark.parametrize(
    "changed",
    [
        {"searches": [{"stepsx": 1, "reached": True}]},
        {"searches": [{"steps": "x", "reached": True}]},
        {"searches": [{"steps": 1}]},
        {"edits": 10**30},
        {"edits": -1},
    ],
)
def test_a_finished_unit_that_cannot_be_summed_up_is_refused(changed: dict[str, Any]) -> None:
    whole = {"unit": "u", "length": 9, "edits": 2, "searches": [{}, {"steps": 2, "reached": True}]}
    assert from_json(FinishedUnit, whole).edits == 2
    with pytest.raises(ValueError, match=r"a search needs|bytes of answers"):
        from_json(FinishedUnit, {**whole, **changed})


def test_what_every_edit_would_refuse_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A down projection that a model with experts lacks; a state that was never trained."""
    monkeypatch.setattr(
        sys.modules["errata.evaluation.bench"], "select", lambda *a, **k: pytest.fail("was asked")
    )
    for name, editor, why in (
        ("mixtral", errata.editor("memit"), "no site"),
        ("llama", errata.editor("serac"), "errata prepare"),
    ):
        with pytest.raises((BadSpec, MissingState), match=why):
            errata.bench(zoo.loaded(name), editor, "places", "one_step", tmp_path / name)
        assert not (tmp_path / name / "manifest.json").exists()
