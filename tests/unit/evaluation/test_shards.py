"""Shards of a run, and their merge: the same files as one process writes."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest

import errata
from errata.cli import main
from errata.core.errors import BadRun, BadSpec
from errata.evaluation.bench import finish_run
from errata.evaluation.distribute.merge import merge_shards
from errata.evaluation.distribute.shards import RunShard

SAME = ("plan.json", "before.jsonl", "answers.jsonl", "scores.json")


MODEL = functools.cache(lambda: errata.load("micro-vlm"))


def _run(out: Path, **passed) -> Path:
    return errata.bench(
        MODEL(), errata.editor("ft_l", steps=3), "microworld:vqa", "one_step", out,
        limit=10, rows=2, **passed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    whole = _run(folder / "whole", keep_patches=True)
    shards = [_run(folder / f"s{i}", keep_patches=True, shard=f"{i}/3") for i in (1, 2, 3)]
    return whole, shards


def test_every_unit_is_in_one_shard():
    units = list(range(11))
    parts = [list(RunShard(i, 4).of(units)) for i in range(1, 5)]
    assert sorted(u for part in parts for u in part) == units
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert RunShard().of(units) == units


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "-1/2", "1/0", "a/b", "1/2/3", "²/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(BadSpec, match="is not i/n"):
        RunShard.parse(text)


def test_merged_shards_equal_one_process(runs, tmp_path):
    whole, shards = runs
    out = merge_shards([shards[2], shards[0], shards[1]], tmp_path / "merged")
    finish_run(out)
    for name in SAME:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    patches = sorted(p.relative_to(whole) for p in (whole / "patches").rglob("*"))
    assert patches == sorted(p.relative_to(out) for p in (out / "patches").rglob("*"))
    there, here = (json.loads((f / "timing.json").read_text()) for f in (whole, out))
    assert here["phases"]["edit"]["count"] == there["phases"]["edit"]["count"] == 10
    manifests = [json.loads((f / "manifest.json").read_text()) for f in (whole, out)]
    for manifest in manifests:
        manifest.pop("created")
    assert manifests[0] == manifests[1]


def test_a_merged_run_goes_on_like_any_other(runs, tmp_path):
    whole, shards = runs
    out = merge_shards(shards, tmp_path / "merged")
    before = (out / "answers.jsonl").read_bytes()
    _run(out, keep_patches=True)
    assert (out / "answers.jsonl").read_bytes() == before
    assert (out / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()


def test_a_killed_merge_is_repeated(runs, tmp_path, monkeypatch):
    from errata.evaluation.run_folder import RunWriter

    whole, shards = runs
    add, calls = RunWriter.add_lines, []

    def killed(self, *args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        add(self, *args)

    monkeypatch.setattr(RunWriter, "add_lines", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_shards(shards, tmp_path / "merged")
    monkeypatch.undo()
    out = merge_shards(shards, tmp_path / "merged")
    finish_run(out)
    for name in SAME:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_shard_alone_has_no_scores_and_says_what_it_is(runs):
    _, shards = runs
    assert not (shards[0] / "scores.json").exists()
    with pytest.raises(BadRun, match=r"shard 1/3 of a run: .* `errata merge`"):
        errata.score_run(shards[0])


def test_shards_that_do_not_belong_together(runs, tmp_path):
    whole, shards = runs
    with pytest.raises(BadRun, match="1 shard of this run not given, first 2/3"):
        merge_shards([shards[0], shards[2]], tmp_path / "a")
    with pytest.raises(BadRun, match="are the same shard"):
        merge_shards([*shards, shards[1]], tmp_path / "a")
    with pytest.raises(BadRun, match="is a whole run, not a shard"):
        merge_shards([whole, *shards], tmp_path / "a")
    other = _run(tmp_path / "other", seed=1, keep_patches=True, shard="2/3")
    with pytest.raises(BadRun, match=r"are not of one run: .*seed.* differ"):
        merge_shards([shards[0], other, shards[2]], tmp_path / "a")
    half = tmp_path / "half"
    shutil.copytree(shards[1], half)
    lines = (half / "done.jsonl").read_bytes().splitlines(keepends=True)
    (half / "done.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(BadRun, match="is not finished: 1 of 2 units"):
        merge_shards([shards[0], half, shards[2]], tmp_path / "a")
    planned = tmp_path / "planned"
    shutil.copytree(shards[1], planned)
    plan = json.loads((planned / "plan.json").read_text())
    plan["data"] = "other"
    (planned / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadRun, match="answered otherwise in"):
        merge_shards([shards[0], planned, shards[2]], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_shards_do_not_go_into_the_run_of_another_editor(runs, tmp_path):
    """Its plan is the same: what is asked does not depend on the editor."""
    _, shards = runs
    other = tmp_path / "other"
    errata.bench(
        MODEL(), errata.editor("ft_l", steps=4), "microworld:vqa", "one_step", other,
        limit=10, rows=2,
    )  # fmt: skip
    before = {f: f.read_bytes() for f in other.iterdir() if f.is_file()}
    with pytest.raises(BadRun, match="holds another run"):
        merge_shards(shards, other)
    assert {f: f.read_bytes() for f in other.iterdir() if f.is_file()} == before


def test_another_shard_does_not_go_on_in_the_folder(runs):
    _, shards = runs
    with pytest.raises(BadRun, match="shard"):
        _run(shards[0], keep_patches=True, shard="2/3")


def test_on_the_command_line(tmp_path, capsys):
    def command(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as e:
            main([*words])
        return int(e.value.code or 0), capsys.readouterr().out

    base = (
        "bench", "micro-vlm", "--editor", "ft_l", "--set", "steps=3", "--benchmark",
        "microworld:vqa", "--protocol", "one_step", "--limit", "4", "--rows", "1",
    )  # fmt: skip
    assert command(*base, "--out", str(tmp_path / "x"), "--shard", "3/2")[0] == 2
    assert not (tmp_path / "x").exists()
    for i in (1, 2):
        code, said = command(*base, "--out", str(tmp_path / f"s{i}"), "--shard", f"{i}/2")
        assert code == 0 and f"shard {i}/2 written" in said
    folders = [str(tmp_path / f"s{i}") for i in (1, 2)]
    code, said = command("merge", *folders, "--out", str(tmp_path / "all"))
    assert code == 0 and "reliability" in said
