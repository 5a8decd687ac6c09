"""`errata analyze` and `errata report --vary` from the command line."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from errata.cli import main
from errata.cli.shared.options import bundled_models

QUICK = (
    *("--set", "epochs=2", "--set", "width=16", "--set", "encoder=backbone", "--set", "corpus=5"),
    *("--set", "memory=20", "--set", "prompts=10", "--set", "latent_layers=[-2,-1]"),
)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def errata(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ran(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small state of the bundled model, quickly made and of no use but for tests."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                *("prepare", "micro-vlm", "--editor", "unike", "--out", str(folder)),
                *("--benchmark", "microworld:vqa@train", "--limit", "60", *QUICK),
            ]
        )
    assert not exit_.value.code
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


@pytest.mark.trained
@pytest.mark.skipif("micro-vlm" not in bundled_models(), reason="no bundled model")
def test_spaces(errata, state, tmp_path):
    out = tmp_path / "spaces"
    ran = errata(
        *("analyze", "spaces", "micro-vlm", "--state", state, "--limit", 60, "--layer", -1),
        *("--with", "picture=pca", "--with", "known=8", "--out", out),
    )
    assert ran.code == 0, ran.err
    assert {p.name for p in out.iterdir()} == {
        *("spaces.json", "spaces.csv", "spaces-pca.csv", "spaces-pca.svg"),
    }
    told = json.loads((out / "spaces.json").read_text())
    assert (told["analysis"], told["editor"]["name"], told["limit"]) == ("spaces", "unike", 60)
    rows = read(out / "spaces.csv")
    assert [(r["block"], r["space"]) for r in rows] == [
        *(("7", "states"), ("7", "semantic"), ("7", "truthfulness")),
    ]
    assert all(0 <= float(r["probe"]) <= 1 for r in rows)
    of_block = told["blocks"]["7"]
    assert of_block["spaces"]["states"]["probe"]["value"] == float(rows[0]["probe"])
    assert "probe on states" in of_block["when prepared"]
    assert ET.parse(out / "spaces-pca.svg").getroot().tag.endswith("svg")
    assert "a first look" in ran.out


@pytest.mark.trained
@pytest.mark.skipif("micro-vlm" not in bundled_models(), reason="no bundled model")
def test_alpha(errata, state, tmp_path):
    out = tmp_path / "alpha"
    ran = errata(
        *("analyze", "alpha", "micro-vlm", "--editor", "unike", "--state", state, *QUICK),
        *(
            "--set",
            "intrinsic=false",
            "--set",
            "alpha=0.25",
            "--set",
            "cutoff=-1",
            "--limit",
            3,
            "--out",
            out,
        ),
    )
    assert ran.code == 0, ran.err
    rows = read(out / "alpha-questions.csv")
    assert {r["alpha"] for r in rows} == {"0.25"} and {r["block"] for r in rows} == {"6", "7"}
    assert len({r["case"] for r in rows}) == 3
    assert "block 7: alpha on the edit 0.25" in ran.out


@pytest.mark.trained
@pytest.mark.skipif("micro-vlm" not in bundled_models(), reason="no bundled model")
def test_studies_of_modalities_end_in_one_report(errata, tmp_path):
    """DualEdit's and VisEdit's studies: files of one command each, shown by `errata report`."""
    made = {
        "attention": (("attention.svg",), ("attention.csv",)),
        "sensitivity": (
            ("sensitivity-absolute.svg", "sensitivity-relative.svg"),
            ("sensitivity.csv", "sensitivity-excess.csv"),
        ),
        "gate": (
            ("gate.svg", "gate-auc.svg", "gate-accuracy.svg"), ("gate.csv", "gate-questions.csv"),
        ),
        "attribution": (
            ("attribution.svg", "attribution-images.svg"),
            ("attribution.csv", "attribution-images.csv"),
        ),
    }  # fmt: skip
    few = {
        "attention": (),
        "sensitivity": ("--with", "layers=[1,5]", "--with", "absolute=[1.0]"),
        "gate": ("--with", "layers=[2]", "--with", "train=4"),
        "attribution": ("--with", "maps=1", "--with", "layers=[1,2]", "--with", "draws=1"),
    }
    for name, (figures, tables) in made.items():
        out = tmp_path / name
        ran = errata("analyze", name, "micro-vlm", "--limit", 3, "--out", out, *few[name])
        assert ran.code == 0, ran.err
        assert {p.name for p in out.iterdir()} == {*figures, *tables, f"{name}.json"}
        for figure in figures:
            assert ET.parse(out / figure).getroot().tag.endswith("svg")
        assert "a first look" in ran.out
    shares = [r for r in read(tmp_path / "attention" / "attention.csv") if r["measure"] == "share"]
    assert all(0 <= float(r["value"]) <= 1 for r in shares)
    assert {r["block"] for r in read(tmp_path / "gate" / "gate.csv")} == {"2"}
    one = ("attribution", "micro-vlm", "--out", tmp_path / "one", "--with", "prompt=Which shape?")
    picture = "image=microworld:shape=ring,colour=blue,pattern=striped,accent=black,size=big,"
    picture += "position=top,background=beige,seed=1"
    ran = errata("analyze", *one, "--with", picture, "--with", "maps=1", "--with", "draws=1")
    assert ran.code == 0, ran.err
    assert "first look" not in ran.out
    page = tmp_path / "r.html"
    folders = [x for name in made for x in ("--analysis", tmp_path / name)]
    ran = errata("report", *folders, "--html", page)
    assert ran.code == 0, ran.err
    assert page.read_text().count("data:image/svg+xml;base64,") == 8


@pytest.mark.trained
@pytest.mark.skipif("micro-vlm" not in bundled_models(), reason="no bundled model")
def test_tracing(errata, tmp_path):
    out = tmp_path / "tracing"
    ran = errata(
        *("analyze", "tracing", "micro-vlm", "--limit", 20, "--layer", 1, "--layer", -1),
        *("--with", "facts=4", "--out", out),
    )
    assert ran.code == 0, ran.err
    assert {p.name for p in out.iterdir()} == {
        *("tracing.svg", "tracing.csv", "tracing-facts.csv", "tracing.json"),
    }
    rows = read(out / "tracing.csv")
    assert {r["restored"] for r in rows} == {"states", "mlp", "attn"}
    assert {r["block"] for r in rows} == {"1", "7"}
    told = json.loads((out / "tracing.json").read_text())
    assert told["known"] == 4 == len(read(out / "tracing-facts.csv"))
    last = next(
        r for r in rows if (r["restored"], r["tokens"], r["block"]) == ("states", "last token", "7")
    )
    assert float(last["effect"]) == pytest.approx(told["total"]["value"], abs=1e-4)
    assert "average total effect" in ran.out and "--set layers" in ran.out
    ran = errata("analyze", "tracing", "micro-vlm", "--with", "copies=0", "--out", tmp_path / "no")
    assert ran.code == 2 and ran.err.count("\n") == 1 and "copies=0" in ran.err


def test_bad_input_is_one_line(errata, tmp_path):
    (tmp_path / "file").write_text("x")
    out = ("--out", tmp_path / "out")
    for arguments, words in (
        (("analyze", "alfa", "micro-vlm", *out), "Did you mean 'alpha'?"),
        (("analyze", "spaces", "micro-vlm", *out), "Give --state DIR"),
        (("analyze", "spaces", "micro-vlm", "--state", tmp_path / "no", *out), "no state in"),
        (("analyze", "alpha", "micro-vlm", "--with", "x", *out), "Write --with name=value"),
        (("analyze", "alpha", "micro-vlm", "--set", "top=5", *out), "Name it with --editor"),
        (("analyze", "alpha", "micro-vlm", "--with", "layers=[1]", "--layer", 1, *out), "one of"),
        (("analyze", "alpha", "micro-vlm", "--out", tmp_path / "file"), "is a file"),
        (("analyze", "alpha", "micro-vlm", "--benchmark", "nowhere", *out), "unknown benchmark"),
        (("report", tmp_path, "--vary", "top"), "go together"),
        (("report", tmp_path, "--vary", "a,b,c", "--plots", tmp_path / "out"), "is no grid"),
        (("report", "--analysis", tmp_path), "Give --html FILE"),
        (("report", "--analysis", tmp_path, "--html", tmp_path / "r.html"), "holds no analysis"),
        (("report", "--html", tmp_path / "r.html"), "no run was named"),
    ):
        extra = ("--editor", "ft_l") if "nowhere" in arguments else ()
        ran = errata(*arguments, *extra)
        assert ran.code == 2, arguments
        assert words in ran.err and ran.err.count("\n") == 1, ran.err
    assert not (tmp_path / "out").exists()


def test_analyses_are_listed_and_shown(errata):
    rows = json.loads(errata("list", "analyses", "--json").out)
    known = {"spaces", "alpha", "attention", "sensitivity", "gate", "attribution", "tracing"}
    assert known <= {r["name"] for r in rows}
    assert "picture: Literal" in errata("show", "analysis", "spaces").out
