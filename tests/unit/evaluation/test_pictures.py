"""Whole runs that draw, against a stub whose pictures are known: scores, controls, failures.

The stub (tests/umm.py) draws an edited thing right by itself when its number is even, and always
when the prompt states a colour, as oracle prompts and rationales do.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.core import registry
from errata.core.errors import BadBackbone, BadSpec, NotFinite, TooLong
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Case
from errata.evaluation.bench import bench
from errata.evaluation.judging import judge_run
from errata.evaluation.run_folder import read_run
from errata.evaluation.score import score_run
from tests.stub import NotesEditor, Stub
from tests.umm import Believer, Painter, PixelJudge, thing_of, write_records

SPEC = "unike_umm:attribute"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("umm"))


@pytest.fixture(scope="module")
def cases(root: Path) -> tuple[Case, ...]:
    benchmark = registry.load("benchmarks", "unike_umm")()
    found: tuple[Case, ...] = benchmark.load(BenchmarkSpec.parse(SPEC), root=root).cases
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No answers from other tests."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(painter: Stub, out: Path, root: Path, protocol: str = "direct:12x4", **more: Any) -> Path:
    options = {"rows": 2, "image_seeds": 2, **more}
    return bench(
        painter, options.pop("editor", Believer()), SPEC, protocol, out, root=root, **options
    )


def judged(out: Path, judge: PixelJudge | None = None) -> dict[str, Any]:
    judge_run(out, judge or PixelJudge())
    metrics: dict[str, Any] = score_run(out)["metrics"]
    return metrics


@pytest.fixture(scope="module")
def direct_run(
    cases: tuple[Case, ...], root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("direct")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_HOME", str(folder / "home"))
        return run(Painter(cases), folder / "run", root)


@pytest.fixture
def direct(direct_run: Path, tmp_path: Path) -> Path:
    """A copy of one finished run with pictures, not judged."""
    return shutil.copytree(direct_run, tmp_path / "direct")


def even(out: Path) -> float:
    """The share of planned things with an even number."""
    folder = read_run(out)
    numbers = [int(folder.cases[c].edit.subject[4:]) for ids in folder.lanes.values() for c in ids]  # type: ignore[index]
    return round(sum(n % 2 == 0 for n in numbers) / len(numbers), 6)


def test_direct_scores(direct: Path) -> None:
    m = judged(direct)
    assert 0.2 < even(direct) < 0.8
    assert m["vqa.judge"]["value"] == even(direct) == m["vqa/stage1.judge"]["value"]
    assert m["vqa.judge_old"]["value"] == pytest.approx(1 - even(direct))
    assert (m["vqa.judge@pre"]["value"], m["vqa.judge@oracle"]["value"]) == (0.0, 1.0)
    assert m["vqa.judge"]["base"] == 0.0
    for key in ("efficacy.exact", "efficacy.exact@own", "efficacy.first_token", "reasoning.word"):
        assert m[key]["value"] == 1.0, key
    assert m["i_locality.judge"]["value"] == m["t_locality.exact"]["value"] == 1.0
    assert m["vqa.judge"]["n"] == m["efficacy.exact"]["n"] == 48
    low, high = m["vqa.judge"]["ci95"]
    assert low < m["vqa.judge"]["value"] < high
    assert "vqa.exact" not in m and "efficacy.judge" not in m and "vqa.judge@ceiling" not in m


def test_reasoning_scores(cases: tuple[Case, ...], root: Path, tmp_path: Path) -> None:
    out = run(Painter(cases), tmp_path / "r", root, "reasoning:replace:12x4")
    m = judged(out)
    assert m["vqa.judge"]["value"] == 1.0  # from a rationale every thing is drawn right
    assert m["vqa.judge@pre"]["value"] == m["reasoning.word@pre"]["value"] == 0.0
    assert m["vqa.judge_old@pre"]["value"] == m["reasoning.old_word@pre"]["value"] == 1.0
    assert m["vqa.judge@ceiling"]["value"] == m["vqa.judge@oracle"]["value"] == 1.0
    assert m["reasoning.recall_word"]["value"] == m["reasoning.caption_word"]["value"] == 1.0


def test_parts_and_their_plain_mean(direct: Path) -> None:
    judge_run(direct, PixelJudge())
    scores = score_run(direct)
    by = scores["by_part"]["category"]
    assert sorted(by) == ["color", "pattern"]
    parts = [by[k]["vqa/stage1.judge"] for k in ("color", "pattern")]
    assert sum(p["n"] for p in parts) == 48
    micro = sum(p["n"] * p["value"] for p in parts) / 48
    assert scores["metrics"]["vqa/stage1.judge"]["value"] == pytest.approx(micro, abs=1e-5)
    macro = scores["macro"]["category"]["vqa/stage1.judge"]
    assert macro["value"] == pytest.approx(sum(p["value"] for p in parts) / 2, abs=1e-5)
    assert macro["ci95"][0] < macro["value"] < macro["ci95"][1] and macro["n"] == 48
    assert scores["judge"] == "pixel@1"


def test_pictures_lie_where_answers_say(direct: Path) -> None:
    folder = read_run(direct)
    named = [image for a in folder.answers.values() for image in a.images]
    files = {str(p.relative_to(direct)) for p in (direct / "images").rglob("*") if p.is_file()}
    assert len(named) == len(set(named)) and set(named) == files
    assert all(len(a.images) == 2 for a in folder.answers.values() if a.images)
    manifest = json.loads((direct / "manifest.json").read_text())
    assert manifest["image_seeds"] == 2


def test_controls_are_drawn_once_for_all_editors(
    cases: tuple[Case, ...], root: Path, tmp_path: Path
) -> None:
    first, second = Painter(cases), Painter(cases)
    one = run(first, tmp_path / "one", root)
    two = run(second, tmp_path / "two", root, "direct:12x6")
    controls = [text for text, _ in first.draws if text.endswith("Shown clearly")]
    edited = sum(not a.tag for a in read_run(two).answers.values() if a.images)
    assert len(second.draws) == edited < len(first.draws), controls
    pictures = [sorted((r / "images").rglob("*@oracle-0.png")) for r in (one, two)]
    assert pictures[0]
    for a, b in zip(*pictures, strict=True):
        assert a.read_bytes() == b.read_bytes() and a.name == b.name


def test_a_damaged_keep_is_drawn_again(
    cases: tuple[Case, ...], root: Path, tmp_path: Path, home: Path
) -> None:
    first, second = Painter(cases), Painter(cases)
    one = run(first, tmp_path / "one", root)
    for file in (home / "before" / "pictures").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    two = run(second, tmp_path / "two", root)
    assert len(second.draws) == len(first.draws)
    assert (one / "answers.jsonl").read_bytes() == (two / "answers.jsonl").read_bytes()


def test_every_row_has_its_own_patch(cases: tuple[Case, ...], root: Path, tmp_path: Path) -> None:
    painter = Painter(cases)
    out = run(painter, tmp_path / "r", root, rows=4)
    assert {row for _, row in painter.draws} == {0, 1, 2, 3}
    assert judged(out)["vqa.judge"]["value"] == even(out)


class Broken(Painter):
    """Cannot draw the prompts of some things."""

    def draw(self, prompts: Any, seeds: Any, *, rows: Any = None) -> Any:
        for p in prompts:
            if thing_of(p.text) in ("velm7", "velm31", "velm33", "velm35"):
                raise TooLong(f"prompt '{p.text}' needs 99 tokens")
        return super().draw(prompts, seeds, rows=rows)


class Failing(Believer):
    """Cannot make the edits of one thing, nor those of its batch."""

    def find(self, backbone: Any, request: Any) -> Any:
        if any(e.subject == "velm10" for _, e in request.edits):
            raise NotFinite("the loss became nan")
        return super().find(backbone, request)


def counts(m: dict[str, Any], key: str) -> tuple[int, int]:
    return m[key]["n"], m[key]["unscored"]


def test_no_failure_shrinks_a_denominator(
    cases: tuple[Case, ...], root: Path, tmp_path: Path
) -> None:
    whole = judged(run(Painter(cases), tmp_path / "whole", root))
    broken = run(Broken(cases), tmp_path / "broken", root, editor=Failing())
    blind = judged(broken, PixelJudge(blind=1))
    planned = {c for ids in read_run(broken).lanes.values() for c in ids}
    for key in ("vqa.judge", "vqa.judge@oracle", "efficacy.exact", "reasoning.word"):
        assert sum(counts(whole, key)) == sum(counts(blind, key)) == len(planned) == 48, key
    # velm10 and the three of its batch are lost, some others have no picture
    assert counts(blind, "efficacy.exact") == (44, 4)
    folder = read_run(broken)
    lost = {c for ids in folder.lanes.values() for i in range(0, 12, 4)
            if "attribute-00010" in ids[i : i + 4] for c in ids[i : i + 4]}  # fmt: skip
    undrawn = {f"attribute-{i:05d}" for i in (7, 31, 33, 35)} & planned
    assert len(lost) == 4 and undrawn
    assert counts(blind, "vqa.judge")[1] == len(lost | undrawn)
    assert blind["vqa.unjudged"]["value"] > 0.5  # every second picture has no verdict
    reasons = json.loads((broken / "scores.json").read_text())["unscored_because"]
    assert any("nan" in r for r in reasons) and any("99 tokens" in r for r in reasons)


def test_a_picture_that_is_gone_is_unjudged_not_wrong(direct: Path) -> None:
    m = judged(direct)
    folder = read_run(direct)
    for image in folder.answers["attribute-00010", "vqa/stage1", ""].images:
        (direct / image).unlink()
    (direct / "verdicts.jsonl").unlink()
    tally = judge_run(direct, PixelJudge())
    assert sum(tally.waiting.values()) == 2 and "missing" in next(iter(tally.waiting))
    again = score_run(direct)["metrics"]
    assert sum(counts(again, "vqa/stage1.judge")) == sum(counts(m, "vqa/stage1.judge"))
    assert counts(again, "vqa/stage1.judge")[1] == 1


def test_unjudged_runs_can_be_scored(direct: Path) -> None:
    scores = json.loads((direct / "scores.json").read_text())
    assert scores["metrics"]["vqa.judge"]["n"] == 0
    assert scores["metrics"]["vqa.judge"]["unscored"] == 48
    assert scores["metrics"]["vqa.unjudged"]["value"] == 1.0
    assert "judge" not in scores


def test_protocols_and_models_that_do_not_draw(
    cases: tuple[Case, ...], root: Path, tmp_path: Path
) -> None:
    out = run(Painter(cases), tmp_path / "r", root, "sequential:6")
    plan = json.loads((out / "plan.json").read_text())
    reasons = [s["reason"] for s in plan["dropped"] if "/vqa/" in s["id"]]
    assert len(reasons) == 2 * 48 and set(reasons) == {"this protocol draws no pictures"}
    assert not (out / "images").exists()
    metrics = json.loads((out / "scores.json").read_text())["metrics"]
    assert metrics["efficacy.exact"]["value"] == 1.0 and "vqa.judge" not in metrics
    with pytest.raises(BadBackbone, match="draws no pictures"):
        run(Stub(), tmp_path / "s", root)
    with pytest.raises(BadSpec, match="nothing to draw"):
        bench(Painter(cases), NotesEditor(), "microworld:vqa@dev", "direct:4x2", tmp_path / "t")


def interrupted(painter: Painter, out: Path, root: Path, pictures: int, protocol: str) -> bool:
    """Runs in a fork and kills it once it has written so many pictures. True if it still ran."""
    child = os.fork()
    if child == 0:
        try:
            painter.delay = 0.004
            run(painter, out, root, protocol, rows=1)
        finally:
            os._exit(0)
    while _written(out) < pictures:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _written(out: Path) -> int:
    """Pictures that are there; `os.walk` also counts while folders disappear."""
    return sum(f.endswith(".png") for _, _, names in os.walk(out / "images") for f in names)


@pytest.mark.parametrize("protocol", ["direct:6x4", "reasoning:6x4"])
def test_a_killed_run_ends_with_the_same_bytes(
    cases: tuple[Case, ...], root: Path, tmp_path: Path, protocol: str
) -> None:
    whole = run(Painter(cases), tmp_path / "whole", root, protocol, rows=1)
    judged(whole)
    drawn = len(_pictures(whole))
    rng, kills = random.Random(protocol), 0
    for i in range(2):
        out = tmp_path / f"k{i}"
        kills += interrupted(Painter(cases), out, root, int(drawn * rng.uniform(0, 0.9)), protocol)
        again = run(Painter(cases), out, root, protocol, rows=1)
        judged(again)
        for name in ("answers.jsonl", "scores.json", "plan.json", "before.jsonl"):
            assert (again / name).read_bytes() == (whole / name).read_bytes(), (i, name)
        assert _pictures(again) == _pictures(whole)
    assert kills >= 1


def _pictures(out: Path) -> dict[str, bytes]:
    return dict(_read(out))


def _read(out: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted((out / "images").rglob("*")):
        if path.is_file():
            yield str(path.relative_to(out)), path.read_bytes()


class Stopped(Painter):
    """Is interrupted at its call of `draw` number `last`."""

    last, calls = 7, 0

    def draw(self, *given: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return super().draw(*given, **more)


def test_an_interrupted_unit_draws_no_batch_twice(
    cases: tuple[Case, ...], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.evaluation.pictures.PICTURES", 16)
    whole = Painter(cases)
    out = run(whole, tmp_path / "whole", root, "direct:12x4")
    shutil.rmtree(tmp_path / "home")
    first, second = Stopped(cases), Painter(cases)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "cut", root, "direct:12x4")
    cut = run(second, tmp_path / "cut", root, "direct:12x4")
    assert len(first.draws) > 0 < len(second.draws)
    assert len(first.draws) + len(second.draws) == len(whole.draws)
    pictures = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.png")}
    assert pictures == {p.relative_to(cut): p.read_bytes() for p in cut.rglob("*.png")}
    assert not (cut / "images" / ".begun").exists()


def test_a_picture_that_was_changed_since_is_drawn_again(
    cases: tuple[Case, ...], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.evaluation.pictures.PICTURES", 16)
    whole = Painter(cases)
    run(whole, tmp_path / "whole", root, "direct:12x4")
    shutil.rmtree(tmp_path / "home")
    first, second = Stopped(cases), Painter(cases)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "cut", root, "direct:12x4")
    shutil.rmtree(tmp_path / "home")  # or finished controls come from there
    some = next((tmp_path / "cut").rglob("*.png"))
    some.write_bytes(some.read_bytes() + b"0")
    run(second, tmp_path / "cut", root, "direct:12x4")
    batch = 8  # prompts of two seeds
    assert len(first.draws) + len(second.draws) == len(whole.draws) + batch
