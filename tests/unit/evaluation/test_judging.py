"""Judging as a step of its own: resumed, keyed by content, one judge at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from errata.cli import main
from errata.cli.judge import make_judge, own_judge
from errata.core import registry
from errata.core.errors import BadEndpoint, BadSpec, UnknownName
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.judge import RETRY
from errata.core.types import JudgeQuestion, Verdict
from errata.evaluation.bench import bench
from errata.evaluation.judging import judge_run
from errata.evaluation.run_folder import read_run
from errata.evaluation.score import score_run
from tests.endpoint import said, serving
from tests.umm import Believer, Painter, PixelJudge, write_records

SPEC = "unike_umm:attribute"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judging")
    root = write_records(folder / "data")
    cases = registry.load("benchmarks", "unike_umm")().load(BenchmarkSpec.parse(SPEC), root=root)
    painter = Painter(cases.cases)
    return bench(painter, Believer(), SPEC, "direct:6x3", folder / "r", root=root, image_seeds=2,
                 limit=12)  # fmt: skip


@pytest.fixture
def out(made: Path) -> Path:
    for name in ("verdicts.jsonl", "judging.json"):
        (made / name).unlink(missing_ok=True)
    return made


def pictures(out: Path) -> int:
    return sum(len(a.images) for a in read_run(out).answers.values())


def test_nothing_is_judged_twice(out: Path) -> None:
    judge = PixelJudge()
    first = judge_run(out, judge)
    assert (first.judged, first.kept) == (pictures(out), 0)
    asked = judge.asked
    assert asked < pictures(out)  # equal pictures under one view are asked about once
    second = judge_run(out, judge)
    assert (second.judged, second.kept, judge.asked) == (0, pictures(out), asked)


def test_a_changed_picture_is_judged_again(out: Path) -> None:
    judge = PixelJudge()
    judge_run(out, judge)
    answer = read_run(out).answers
    key = next(k for k, a in answer.items() if k[1] == "vqa/stage1" and k[2] == "oracle")
    path = out / answer[key].images[0]
    before = path.read_bytes()
    try:
        picture = Image.new("RGB", (2, 1), (255, 255, 255))
        picture.save(path)
        again = judge_run(out, judge)
        assert again.judged == 1
        verdict = read_run(out).answers[key].verdicts[0]
        assert verdict.answer == "white"
    finally:
        path.write_bytes(before)


class Torn(PixelJudge):
    """Breaks down after some pictures; what it cannot do now waits."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        found = super().judge(pictures)
        keep = max(0, self.good)
        self.good -= len(pictures)
        if keep == 0:
            raise BadEndpoint("the server is gone")
        late = Verdict(self.identity, note=RETRY + "too busy")
        return [*found[:keep], *(late for _ in found[keep:])]


def test_what_waits_is_judged_next_time_and_never_wrong(out: Path) -> None:
    tally = judge_run(out, Torn(1000))
    everything = tally.judged
    for name in ("verdicts.jsonl", "judging.json"):
        (out / name).unlink()
    whole = _value(out, Torn(1000))
    (out / "verdicts.jsonl").unlink()
    tally = judge_run(out, Torn(20))
    assert tally.waiting["too busy"] == everything - tally.judged > 0
    partly = score_run(out)["metrics"]["vqa.judge@oracle"]
    assert partly["value"] in (None, 1.0) and partly["n"] + partly["unscored"] == 12
    assert _value(out, Torn(1000)) == whole


def _value(out: Path, judge: PixelJudge) -> object:
    judge_run(out, judge)
    return score_run(out)["metrics"]


def test_a_breakdown_keeps_what_was_judged(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.evaluation.judging.CHUNK", 5)
    with pytest.raises(BadEndpoint):
        judge_run(out, Torn(10))
    lines = (out / "verdicts.jsonl").read_text().splitlines()
    assert len(lines) >= 10
    judge = PixelJudge()
    assert judge_run(out, judge).kept >= 10


def test_a_torn_line_is_cut_off(out: Path) -> None:
    judge_run(out, PixelJudge())
    path = out / "verdicts.jsonl"
    text = path.read_text()
    path.write_text(text[:-40])
    assert judge_run(out, PixelJudge()).judged == 1
    assert [json.loads(line) for line in path.read_text().splitlines()]
    assert len(path.read_text().splitlines()) == len(text.splitlines())


class Other(PixelJudge):
    name = "other"

    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        return [Verdict(self.identity, meets=False) for _ in pictures]


def test_the_last_judge_counts_and_judges_never_mix(out: Path) -> None:
    judge_run(out, PixelJudge())
    judge_run(out, Other())
    assert score_run(out)["judge"] == "other@1"
    assert score_run(out)["metrics"]["vqa.judge@oracle"]["value"] == 0.0
    assert judge_run(out, PixelJudge()).kept == pictures(out)
    assert score_run(out)["metrics"]["vqa.judge@oracle"]["value"] == 1.0


def test_which_judge(out: Path) -> None:
    with pytest.raises(BadSpec, match="names no judge"):
        own_judge(out)
    with pytest.raises(UnknownName, match="openai"):
        make_judge("opnai", {})
    with pytest.raises(BadSpec, match="--endpoint URL"):
        make_judge("openai", {})
    assert make_judge("openai", {"endpoint": "http://x/v1", "model": "m", "mode": "blind"})


def test_the_command(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    replies = {"good": said('{"answer": "red"}'), "bad": said('{"answer": true}')}

    def command(reply: str) -> int:
        with serving(lambda body: replies[reply]) as stub, pytest.raises(SystemExit) as e:
            main(["judge", str(out), "--endpoint", stub.url, "--model", "eye", "--mode", "blind"])
        return int(e.value.code or 0)

    assert command("bad") == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("errata: ") and "not judged yet" in last
    assert json.loads((out / "scores.json").read_text())["metrics"]["vqa.judge"]["n"] == 0
    assert command("good") == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["judge"] == "openai@1:blind:eye"
    assert 0 < scores["metrics"]["vqa.judge"]["value"] < 1  # red is the target of some
    assert "pictures judged by openai@1:blind:eye" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["judge", str(out)])
    assert "names no judge" in capsys.readouterr().err
