"""A saved pipeline of diffusers on the command line: benchmarked, judged, reported, analysed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.command import command_of
from tests.endpoint import said, serving
from tests.umm import record

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow]

MEMIT = ("--editor", "memit", "--set", "layers=[1,2]", "--set", "steps=3", "--set", "lr=0.5",
         "--set", "mom2_weight=10")  # fmt: skip
DRAWING = ("--steps", 2, "--size", 32, "--draw-with", "max_sequence_length=64", "--draw-with",
           "together=16")  # fmt: skip
ATTRIBUTES = ("color", "material", "pattern", "shape", "size")
RELATIONS = ("occupation", "location", "creator", "affiliation")
#: image prompts: of the four stages of the first attribute, of one of the others
PICTURES = 4 + len(ATTRIBUTES[1:]) + len(RELATIONS)


@pytest.fixture(scope="module")
def folder() -> Path:
    from errata.testing.drawing.pipelines import folder_of

    return folder_of("sana")


@pytest.fixture
def state(errata, folder, tmp_path) -> Path:
    """Statistics of keys, taken through the pipeline's own text encoder."""
    texts, out = tmp_path / "texts.txt", tmp_path / "stats"
    texts.write_text("".join(f"Fact {i}: the ring of thing {i} is blue.\n" for i in range(40)))
    made = errata("stats", folder, "--corpus", texts, "--layers", "1,2", "--out", out,
                  "--draw-with", "size=32")  # fmt: skip
    assert made.code == 0, made.err
    return out


@pytest.fixture
def errata(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., SimpleNamespace]:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    module = importlib.import_module("errata.benchmarks.unike_umm.cases")
    monkeypatch.setattr(module, "RATIONALE", 16)  # a random model never ends one
    return command_of(capsys)


@pytest.fixture
def benchmark(tmp_path: Path) -> str:
    """A file in the published schema: every attribute and relation, one of them with four stages.

    No old answer: a random model would not give it.
    """
    made: list[dict[str, Any]] = []
    for i, category in enumerate((*ATTRIBUTES, *RELATIONS)):
        source = "attribute" if category in ATTRIBUTES else "relation"
        stages = (1,) if i else (1, 2, 3, 4)
        made.append({**record(i, stages), "source": source, "category": category})
        for one in made[-1].values():
            if isinstance(one, dict):
                one["gt"] = ""
    path = tmp_path / "records.json"
    path.write_text(json.dumps(made))
    return f"unike_umm:{path}@eval/published"


@pytest.mark.parametrize(
    "protocol", ["direct", "reasoning:prepend", "reasoning:replace", "reasoning:instruct"]
)
def test_from_a_folder_to_a_judged_report(errata, folder, state, benchmark, tmp_path, protocol):
    run, page = tmp_path / "run", tmp_path / "report.html"
    bench = ("bench", folder, *MEMIT, "--benchmark", benchmark, "--protocol", f"{protocol}:9x3",
             "--state", state, "--image-seeds", 1, *DRAWING, "--out", run)  # fmt: skip
    ran = errata(*bench)
    assert ran.code == 0, ran.err
    pictures = sorted(run.rglob("*.png"))
    edited = [p for p in pictures if "@" not in p.name]
    assert len(edited) == PICTURES, "a picture of every stage of every case"
    assert any(p.read_bytes() != p.with_name(p.name.replace("-0", "@pre-0")).read_bytes()
               for p in edited)  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    given = {"steps": 2, "size": 32, "max_sequence_length": 64, "together": 16}
    assert manifest["drawing"] == {**given, "diffusers": diffusers.__version__}
    assert list(manifest["files"]) == ["records.json"]
    with serving(lambda body: said('{"observation": "it is", "matches_target": true}')) as stub:
        judged = errata("judge", run, "--endpoint", stub.url, "--model", "m", "--mode", "criterion")
        assert judged.code == 0, judged.err
        assert 0 < len(stub.requests) <= len(pictures)  # equal pictures are judged once
    scores = json.loads((run / "scores.json").read_text())
    assert scores["metrics"]["vqa.judge"]["value"] == 1.0
    assert scores["metrics"]["vqa.judge"]["n"] == len(ATTRIBUTES) + len(RELATIONS)
    controls = {"vqa.judge@pre", "vqa.judge@oracle"}
    controls |= set() if protocol == "direct" else {"vqa.judge@ceiling"}
    assert controls <= scores["metrics"].keys()
    assert set(scores["by_part"]["category"]) == {*ATTRIBUTES, *RELATIONS}
    assert errata("report", run, "--html", page).code == 0
    assert "Does the edit reach the picture?" in page.read_text()
    assert errata(*bench).code == 0, "the same command again resumes the finished run"
    at = len(bench) - 1 - bench[::-1].index("--steps")
    other = errata(*bench[: at + 1], 3, *bench[at + 2 :])
    assert other.code == 2 and "drawing" in other.err, "other pictures do not go into this run"


def test_drift_of_a_pipeline(errata, folder, state, benchmark, tmp_path):
    out = tmp_path / "drift"
    ran = errata("analyze", "drift", folder, *MEMIT, "--benchmark", benchmark, "--state",
                 state, "--limit", 2, "--rows", 2, "--with", "seeds=1", *DRAWING[:1], 3,
                 *DRAWING[2:], "--out", out)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "the same drawing twice: no change at any stage" in ran.out
    facts = json.loads((out / "drift.json").read_text())
    assert facts["stages"] == [
        "tap", "caption_projection", "projected", "blocks.0", "blocks.1", "velocity", "picture",
    ]  # fmt: skip


def test_an_edit_that_cannot_be_drawn_is_refused(errata, tmp_path):
    from errata.testing.drawing.pipelines import folder_of

    model, out = folder_of("lumina2"), tmp_path / "patch"
    size = ("--draw-with", "size=32", "--draw-with", "max_sequence_length=160")
    edit = ("edit", model, "--prompt", "The colour of a ring is", "--target", "red", *size)
    refused = errata(*edit, "--editor", "ft_l", "--set", "layers=[3]", "--out", out)
    assert refused.code == 2 and not out.exists()
    assert "block 3 of 4 cannot reach the picture" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    wrong = errata("doctor", model, "--draw-with", "max_length=160")
    assert wrong.code == 2 and "Did you mean 'max_sequence_length'?" in wrong.err
