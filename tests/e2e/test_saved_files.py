"""Files that errata 0.1 saved still load, answer and score as they did (tests/fixtures/v0.1)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.backbones import load
from errata.cli import main
from errata.core.files import read_json, versions
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Prompt, from_json
from errata.evaluation.limits import same_answers
from errata.io import patch_folder
from errata.io.states import store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"
INDEX: dict[str, Any] = json.loads((FIXTURES / "index.json").read_text(encoding="utf-8"))
PATCHES: dict[str, Any] = INDEX["patches"]
STATES = sorted(f.name for f in (FIXTURES / "states").iterdir())
RUNS = sorted(f.name.removesuffix(".tar.gz") for f in (FIXTURES / "runs").iterdir())
#: run -> options of the `errata bench` that made it
ONE_STEP = {
    "ft_l": (),
    "serac": ("--set", "steps=40", "--state", str(FIXTURES / "states" / "serac_bench")),
    "unike": (),
    "memit": (),
}

pytestmark = pytest.mark.trained


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ERRATA_HOME with the states in it, where patches that refer to them find them."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_HOME", str(folder))
        for name in STATES:
            store(State.load(FIXTURES / "states" / name))
        yield folder


@pytest.fixture(scope="module")
def model() -> Backbone:
    return load("micro-vlm")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [from_json(Prompt, p) for p in INDEX["prompts"]]


def unpacked(run: str, folder: Path) -> Path:
    with tarfile.open(FIXTURES / "runs" / f"{run}.tar.gz") as packed:
        packed.extractall(folder, filter="data")
    return folder / run


def command(*words: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(w) for w in words])
    assert not exit_.value.code, words


def bench(run: str, out: Path) -> None:
    """On the cases of version 1 of microworld, which the runs were made on."""
    command(
        "bench", "micro-vlm", "--editor", run, "--benchmark", "microworld:vqa@eval/v1",
        "--protocol", "one_step", "--limit", 24, *ONE_STEP[run], "--out", out,
    )  # fmt: skip


def test_the_model_is_known_by_its_former_fingerprint(model: Backbone) -> None:
    assert model.former_fingerprint() == INDEX["fingerprint"]["micro-vlm"]
    assert model.identified_by(INDEX["fingerprint"]["micro-vlm"])


@pytest.mark.parametrize("name", sorted(n for n, p in PATCHES.items() if "top" in p))
def test_a_patch_answers_as_it_did(name: str, model: Backbone, prompts: list[Prompt]) -> None:
    expected = PATCHES[name]
    patch = errata.load_patch(FIXTURES / "patches" / name, model)
    assert [a.text for a in errata.ask(model, prompts)] == expected["clean"]
    with model.applied(patch):
        assert [a.text for a in errata.ask(model, prompts)] == expected["answers"]
        batch = model.encode(prompts, rows=[0] * len(prompts))
        logits = model.logits(batch, rows=torch.zeros(len(prompts), dtype=torch.long))
    top = logits[:, 0].float().topk(3).values
    torch.testing.assert_close(top, torch.tensor(expected["top"]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(n for n, p in PATCHES.items() if "top" not in p))
def test_patches_in_one_file_answer_as_they_did(
    name: str, model: Backbone, prompts: list[Prompt]
) -> None:
    """A stack of two patches, and rows: prompt i is asked in row i % 2."""
    rows = [i % 2 for i in range(len(prompts))]
    with model.applied(errata.load_patch(FIXTURES / "patches" / name, model)):
        batch = model.encode(prompts, rows=rows)
        answers = model.generate(batch, [8] * len(prompts), rows=torch.tensor(rows))
    assert [model.decode(a.ids) for a in answers] == PATCHES[name]["answers"]


def test_which_patches_need_a_state_is_seen(model: Backbone) -> None:
    """A state that comes with errata is no need; that of an editor alone is none either."""
    patches = {n: errata.load_patch(FIXTURES / "patches" / n, model) for n in PATCHES}
    needs = {n: patch_folder.state_of(p) for n, p in patches.items()}
    assert {n for n, state in needs.items() if state} == {"serac", "visedit", "dualedit"}
    assert '"state": "' in json.dumps(patches["unike"].pack()[0])


@pytest.mark.parametrize("name", STATES)
def test_a_state_keeps_its_hash(name: str) -> None:
    folder = FIXTURES / "states" / name
    state = State.load(folder)
    assert state.digest() == read_json(folder / "state.json")["digest"]


@pytest.mark.parametrize("run", RUNS)
def test_scoring_again_gives_the_same_bytes(run: str, tmp_path: Path) -> None:
    folder = unpacked(run, tmp_path)
    before = (folder / "scores.json").read_bytes()
    command("score", folder)
    scored = (folder / "scores.json").read_bytes()
    assert without_intervals(scored, before) == without_intervals(before, before)
    (folder / "scores.json").unlink()
    command("score", folder)
    assert (folder / "scores.json").read_bytes() == scored


def without_intervals(scores: bytes, of: bytes) -> str:
    """The text of a scores.json without its intervals, which are made in another way since 0.1.

    They hold the value, and have a width. Everything else is the same.
    """

    def cleared(new: Any, old: Any) -> Any:
        if isinstance(new, dict):
            if ci := new.get("ci95"):
                assert ci[0] <= new["value"] <= ci[1], new
                assert ci[0] < ci[1] or new == old, new
            return {
                k: None if k == "ci95" else cleared(v, old.get(k, {}))
                for k, v in new.items()
                if k not in ("bootstrap", "intervals")
            }
        return new

    return json.dumps(cleared(json.loads(scores), json.loads(of)))


def test_runs_are_reported_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {run: unpacked(run, tmp_path) for run in RUNS}
    for group in (list(ONE_STEP), ["sequential"], ["direct"]):
        page = tmp_path / f"{group[0]}.html"
        command("report", *(runs[r] for r in group), "--html", page)
        assert page.stat().st_size > 10_000
    capsys.readouterr()
    command("compare", runs["ft_l"], runs["memit"], "--json")
    assert json.loads(capsys.readouterr().out)["cases"] == 24


@pytest.mark.parametrize("run", ["ft_l", "serac"])
def test_a_cut_run_is_resumed_to_the_same_answers(run: str, tmp_path: Path) -> None:
    """Up to the rounding of the machine, which may be another one than the run began on."""
    whole, cut = unpacked(run, tmp_path / "whole"), unpacked(run, tmp_path / "cut")
    lines = (cut / "done.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 2
    (cut / "done.jsonl").write_text(lines[0])
    (cut / "scores.json").unlink()
    # of another version of Python or torch it would rightly be refused
    manifest = read_json(cut / "manifest.json")
    first = {"benchmark": "microworld:vqa@eval/v1"}
    (cut / "manifest.json").write_text(json.dumps({**manifest, "versions": versions(), **first}))
    plan = (cut / "plan.json").read_text()
    (cut / "plan.json").write_text(plan.replace("microworld:vqa@eval/disjoint", first["benchmark"]))
    bench(run, cut)
    answers = [(f / "answers.jsonl").read_bytes() for f in (cut, whole)]
    assert len(answers[0].splitlines()) == len(answers[1].splitlines())
    assert same_answers(*answers)
    scores, before = ((f / "scores.json").read_bytes() for f in (cut, whole))
    assert without_intervals(scores, before) == without_intervals(before, before)


@pytest.mark.parametrize(
    "run",
    ["ft_l", *(pytest.param(n, marks=pytest.mark.by_hand) for n in ("serac", "unike", "memit"))],
)
def test_a_new_run_gives_the_same_scores(run: str, tmp_path: Path) -> None:
    bench(run, tmp_path / "new")
    old = unpacked(run, tmp_path)
    new, before = ((f / "scores.json").read_bytes() for f in (tmp_path / "new", old))
    assert without_intervals(new, before) == without_intervals(before, before)
