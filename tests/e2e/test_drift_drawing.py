"""`errata analyze drift FOLDER` on saved models that draw, loaded as their users load them.

Stand-ins are in the layout of their hub repositories, and the code of their authors is installed.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.command import command_of
from tests.umm import record

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow]

FT = ("--editor", "ft_l", "--set", "layers=[1]", "--set", "steps=3", "--set", "lr=0.05")
#: model -> options of its drawing
MODELS: dict[str, tuple[object, ...]] = {
    "lumina2": ("--steps", 2, "--size", 32, "--draw-with", "max_sequence_length=200"),
    "janus": ("--guidance", 2, "--draw-with", "temperature=8.0"),
    "emu3": ("--guidance", 2, "--size", 32, "--draw-with", "temperature=8.0"),
    "ovis_u1": ("--trust-remote-code", "--steps", 2, "--size", 28, "--guidance", 2),
    "omnigen2": ("--trust-remote-code", "--steps", 2, "--size", 32),
    "blip3o": ("--trust-remote-code",),
}
#: between the tap and the picture
STAGES = {
    "lumina2": ("time_caption_embed.caption_embedder", "projected", "blocks.0", "blocks.1",
                "velocity"),
    "janus": ("logits",),
    "emu3": ("logits",),
    "ovis_u1": ("projected", *(f"blocks.{i}" for i in range(4)), "velocity"),
    "omnigen2": ("time_caption_embed.caption_embedder", "projected", "blocks.0", "blocks.1",
                 "velocity"),
    "blip3o": ("projected", "blocks.0", "blocks.1", "velocity"),
}  # fmt: skip

#: where a change may show nothing: a token is the same until its logits turn over
SAMPLED = {("janus", "picture"), ("emu3", "picture")}


@pytest.fixture
def errata(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., SimpleNamespace]:
    module = importlib.import_module("errata.benchmarks.unike_umm.cases")
    monkeypatch.setattr(module, "RATIONALE", 16)  # a random model never ends one
    for library in ("transformers.dynamic_module_utils", "diffusers.utils.dynamic_modules_utils"):
        monkeypatch.setattr(f"{library}.HF_MODULES_CACHE", str(tmp_path / library))
    return command_of(capsys)


@pytest.fixture
def benchmark(tmp_path: Path) -> str:
    """Two records in the published schema; no old answer: a random model would not give it."""
    records = [record(i, (1,)) for i in range(2)]
    for one in records:
        one["stage_1"]["gt"] = ""
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    return f"unike_umm:{path}@eval/published"


def folder_of(name: str) -> Path:
    from errata.testing.drawing import emu3, janus, pipelines, standins

    if name in ("janus", "emu3"):
        return (janus if name == "janus" else emu3).folder()
    return (standins if name in standins.STANDINS else pipelines).folder_of(name)


@pytest.mark.parametrize("name", MODELS)
def test_drift_of_a_saved_model(errata, benchmark, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    from errata.testing.drawing import standins

    out = tmp_path / "drift"
    with ExitStack() as stack:
        if name in standins.STANDINS:
            stack.enter_context(standins.installed(name, tmp_path / "code"))
        ran = errata("analyze", "drift", folder_of(name), *FT, "--benchmark", benchmark, "--rows",
                     2, "--with", "seeds=1", *MODELS[name], "--out", out)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "the same drawing twice: no change at any stage" in ran.out
    stages = ["tap", *STAGES[name], "picture"]
    assert json.loads((out / "drift.json").read_text())["stages"] == stages
    rows = list(csv.DictReader((out / "drift.csv").read_text().splitlines()))
    every = [r for r in rows if r["group"] == "all"]
    for condition in ("twin", "edit", "random"):
        of_stage = {r["stage"]: r for r in every if r["condition"] == condition and
                    float(r["time"] or 0) == 0}  # fmt: skip
        assert list(of_stage) == stages, condition
        changes = {stage: float(r["relative"]) for stage, r in of_stage.items()}
        assert all((c == 0) == (condition == "twin") for s, c in changes.items()
                   if (name, s) not in SAMPLED), (condition, changes)  # fmt: skip
        assert {r["n"] for r in of_stage.values()} == {"2"}
    twin = [r for r in rows if r["condition"] == "twin"]
    assert all(float(r[m]) == 0 for r in twin for m in ("relative", "cosine"))
    assert {"rationale, unedited", "edit after rationale"} <= {r["condition"] for r in rows}
