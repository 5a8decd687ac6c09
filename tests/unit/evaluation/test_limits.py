"""A run whose --limit is raised is continued with the further cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.core import registry
from errata.core.errors import BadRun, BadSpec
from errata.core.measure.benchmark import BenchmarkSpec
from errata.evaluation import limits, plan
from errata.evaluation.bench import bench
from tests.short import short_microworld
from tests.stub import NotesEditor, Stub, knowing

SPEC = "microworld:vqa@dev"


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    spec = BenchmarkSpec.parse(SPEC)
    benchmark = registry.load("benchmarks", "microworld")()
    with short_microworld(dev=26):
        yield knowing(benchmark.load(spec).cases, benchmark.panel(spec))


@pytest.fixture
def run(stub: Stub, tmp_path: Path) -> Callable[..., Path]:
    def start(name: str, limit: int | None, protocol: str = "one_step", **more: Any) -> Path:
        return bench(
            stub, NotesEditor(), SPEC, protocol, tmp_path / name, limit=limit, rows=3, **more
        )

    return start


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def cases_of(run: Path) -> list[list[str]]:
    return [lane["cases"] for u in read(run / "plan.json")["units"] for lane in u["lanes"]]


def test_a_raised_run_scores_as_one_that_had_the_limit_from_the_start(
    run: Callable[..., Path],
) -> None:
    short = run("a", 4)
    answers = (short / "answers.jsonl").read_bytes()
    finished = (short / "done.jsonl").read_bytes()
    assert run("a", 9) == short
    assert (short / "answers.jsonl").read_bytes().startswith(answers), "asked once"
    assert (short / "done.jsonl").read_bytes().startswith(finished)
    whole = run("b", 9)
    assert (short / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    for key in ("cases", "panel", "dropped", "base_accuracy"):
        assert read(short / "plan.json")[key] == read(whole / "plan.json")[key], key
    assert (short / "before.jsonl").read_bytes() == (whole / "before.jsonl").read_bytes()
    manifest = read(short / "manifest.json")
    assert (manifest["limit"], manifest["earlier_limits"]) == (9, [4])


def test_windows_that_were_edited_stay_and_what_was_left_over_is_used(
    run: Callable[..., Path],
) -> None:
    short = run("a", 11, "sequential:4")
    earlier = cases_of(short)
    before = (short / "answers.jsonl").read_bytes()
    run("a", 24, "sequential:4")
    after = cases_of(short)
    assert after[: len(earlier)] == earlier and len(after) > len(earlier)
    flat = [case for lane in after for case in lane]
    assert len(set(flat)) == len(flat)
    assert (short / "answers.jsonl").read_bytes().startswith(before)
    lanes = [lane["id"] for u in read(short / "plan.json")["units"] for lane in u["lanes"]]
    assert len(set(lanes)) == len(lanes)
    done = (short / "done.jsonl").read_bytes()
    run("a", 24, "sequential:4")
    assert (short / "done.jsonl").read_bytes() == done, "the same command again does nothing"


def test_a_limit_can_be_raised_twice_and_to_all_cases(run: Callable[..., Path]) -> None:
    for limit in (2, 5, None):
        run("a", limit, "batch:1")
    manifest = read(run("a", None, "batch:1") / "manifest.json")
    assert (manifest["limit"], manifest["earlier_limits"]) == (None, [2, 5])


def test_a_kill_while_the_limit_is_raised_is_continued_by_the_same_command(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("before.jsonl", "plan.json"):
        out = run(name, 4)

        def killed(path: Path, data: Any, last: str = name) -> None:
            if path.name == last:
                raise KeyboardInterrupt
            path.write_bytes(data)

        with monkeypatch.context() as patch:
            patch.setattr(limits, "write_bytes", killed)
            with pytest.raises(KeyboardInterrupt):
                run(name, 6)
        assert not (out / "scores.json").exists(), "scores of fewer cases would mislead"
        run(name, 6)
        assert read(out / "scores.json")["cases"] == 6
    with monkeypatch.context() as patch:
        patch.setattr(limits, "write_json", lambda path, data: killed(path, data, path.name))
        with pytest.raises(KeyboardInterrupt):
            run("plan.json", 8)
    assert read(run("plan.json", 8) / "scores.json")["cases"] == 8


def test_what_is_no_beginning_is_refused_and_kept(run: Callable[..., Path]) -> None:
    out = run("a", 4)
    with pytest.raises(BadRun, match=r"limit \(4 there, 3 now\)"):
        run("a", 3)
    with pytest.raises(BadRun, match="seed"):
        run("a", 6, seed=1)
    with pytest.raises(BadRun, match=r"protocol \(one_step there, sequential:4 now\)"):
        run("a", 5, "sequential:4")
    with pytest.raises(BadSpec, match="Raise --limit"):
        run("b", 3, "sequential:4")
    plan = read(out / "plan.json")
    plan["cases"][0]["probes"].pop()
    (out / "plan.json").write_text(json.dumps(plan))
    files = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    with pytest.raises(BadRun, match="cannot be continued with a higher --limit"):
        run("a", 6)
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} == files


def test_progress_counts_cases(run: Callable[..., Path]) -> None:
    said: list[tuple[str, int, int]] = []
    run("a", 8, progress=lambda *x: said.append(x))
    steps = [(done, total) for what, done, total in said if what == "cases edited and asked"]
    assert {total for _, total in steps} == {8}
    counts = [done for done, _ in steps]
    assert counts == sorted(counts) and (counts[0], counts[-1]) == (0, 8)
    assert len(set(counts)) > 4, "more often than once a unit (3 units of at most 3 cases)"


def test_answers_are_the_same_up_to_the_rounding_of_a_machine() -> None:
    def line(probe: str, text: str, logprob: float, case: str = "a") -> bytes:
        reference = {"ids": [1], "logprobs": [logprob], "argmax": [2]}
        row = {"case": case, "probe": probe, "step": -1, "tag": "", "text": text}
        return (json.dumps({**row, "reference": reference}) + "\n").encode()

    old = line("p", "blue", -8.52904) + line("q", "red", -0.5)
    same = limits.same_answers
    assert same(old, line("p", "blue", -8.52905) + line("q", "red", -0.5))
    assert not same(old, line("p", "blue", -8.6) + line("q", "red", -0.5))
    assert not same(old, line("p", "green", -8.52904) + line("q", "red", -0.5))
    assert not same(old, line("q", "red", -0.5) + line("p", "blue", -8.52904))
    more = old + line("r", "x", -1.0)
    assert not same(old, more) and same(old, more, beginning=True)
    assert not same(more, old, beginning=True) and not same(b"{", old)


def test_plans_are_the_same_whatever_was_looked_at_beside_them() -> None:
    def plan(*dropped: str, cases: str = "ab") -> bytes:
        skips = [{"id": skip, "reason": "unknown"} for skip in dropped]
        return json.dumps({"cases": [{"id": c} for c in cases], "dropped": skips}).encode()

    same = limits.same_plan
    assert same(plan("a/p", "c", "d/q"), plan("a/p"))
    assert not same(plan("a/p"), plan()) and not same(plan(), plan(cases="abc"))
    assert not same(b"{", plan()) and not same(b"[]", plan())


def test_few_more_cases_are_asked_than_are_used(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run of 9 cases no more than two blocks of 8, also where the benchmark has more."""
    asked: set[str] = set()
    ask_all = plan.ask_all

    def count(bb: Any, requests: Any, **more: Any) -> Any:
        asked.update(r.ask.case for r in requests)
        return ask_all(bb, requests, **more)

    monkeypatch.setattr(plan, "ask_all", count)
    monkeypatch.setattr(plan, "BLOCK", 8)
    with short_microworld(dev=40):
        bench(stub, NotesEditor(), SPEC, "one_step", tmp_path / "r", limit=9)
    assert 9 <= len(asked - {"panel"}) <= 16
