"""Analyses in the report: pictures inside, numbers in tables, nothing from elsewhere."""

from __future__ import annotations

import base64
import json
import re

import pytest

from errata.core.errors import BadRun
from errata.core.figure import Figure, Findings, Heat, Table
from errata.figures.plots import write_findings
from errata.report.analysis_pages import MOST, read_analyses
from errata.report.html import render_report, write_report

ABOUT = {
    "schema": 1,
    "analysis": "attention",
    "settings": {"top": 3},
    "arguments": {"top": 3, "layers": [1, 2]},
    "backbone": "tiny <model>",
    "fingerprint": "abc",
    "editor": None,
    "state": "",
    "benchmark": "made:up@dev",
    "limit": 5,
    "seed": 0,
}


@pytest.fixture
def folder(tmp_path):
    heat = Heat("p", ("a",), ("x",), ((0.25,),))
    tables = (
        Table("short", ("group", "value"), [("<visual>", 0.125)]),
        Table("long", ("i",), [(i,) for i in range(MOST + 1)]),
    )
    figure = Figure("shares", "Shares & more", (heat,), 1, "A caption.")
    write_findings(Findings((figure,), tables, {}, ("peaks in block 1",)), tmp_path / "one",
                   "attention", ABOUT)  # fmt: skip
    return tmp_path / "one"


def test_a_folder_is_read_back(folder):
    (look,) = read_analyses([folder, folder])
    assert (look.name, look.backbone, look.sentences) == (
        "attention", "tiny <model>", ("peaks in block 1",),
    )  # fmt: skip
    assert look.command == (
        "errata analyze attention 'tiny <model>' --benchmark made:up@dev --limit 5 --seed 0 "
        "--with 'layers=[1, 2]' --with top=3 --out one"
    )
    (picture,) = look.figures
    drawn = base64.b64decode(picture.data.split(",")[1]).decode()
    assert drawn == (folder / "shares.svg").read_text()
    assert [(n.file, len(n.rows), n.count) for n in look.tables] == [
        ("short.csv", 1, 1), ("long.csv", 0, MOST + 1),
    ]  # fmt: skip


def test_analyses_alone_make_a_report(folder, tmp_path):
    page = write_report([], tmp_path / "r.html", analyses=[folder]).read_text()
    assert "<h1>attention of tiny &lt;model&gt;</h1>" in page
    assert "&lt;visual&gt;" in page and "0.125" in page and "peaks in block 1" in page
    assert "Shares &amp; more" in page and f"{MOST + 1} rows of numbers are in long.csv" in page
    assert "Provenance" not in page and "pick-0" not in page.split("</style>")[1]
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is loaded from elsewhere"
    assert page.count("data:image/svg+xml;base64,") == 1


def test_plots_over_a_setting_are_shown_too(folder, tmp_path):
    heat = Figure("grid-a-b", "a by b", (Heat("p", ("1",), ("2",), ((50.0,),)),), 1)
    about = {"schema": 1, "varied": ["a,b"], "runs": ["runs/x y"], "scorer": "token",
             "backbone": "tiny", "benchmark": "made:up"}  # fmt: skip
    write_findings(Findings((heat,), ()), tmp_path / "two", "grid-a-b", about)
    one, two = read_analyses([folder, tmp_path / "two"])
    assert (one.name, two.name, two.backbone) == ("attention", "over a,b", "tiny")
    assert two.command == "errata report 'runs/x y' --vary a,b --scorer token --plots two"
    page = render_report([], analyses=[tmp_path / "two"])
    assert "over a,b <small>runs, tiny, made:up</small>" in page


def test_analyses_stand_behind_runs(folder, runs):
    page = render_report(runs[:1], analyses=[folder])
    body = page.split("<main")[1]
    assert body.index('id="s0"') < body.index('id="a0"') < body.index('id="gallery"')
    assert '<a href="#a0">attention</a>' in page and 'id="provenance"' in page
    assert 'id="a0"' not in render_report(runs[:1])


def test_folders_that_cannot_be_shown(folder, tmp_path):
    with pytest.raises(BadRun, match="holds no analysis"):
        read_analyses([tmp_path])
    with pytest.raises(BadRun, match="no run was named"):
        render_report([])
    told = json.loads((folder / "attention.json").read_text())
    (folder / "shares.svg").unlink()
    with pytest.raises(BadRun, match=r"shares\.svg is missing"):
        read_analyses([folder])
    for change, words in (
        ({"figures": [{"name": "../x", "title": "", "caption": ""}]}, "missing"),
        ({"figures": None}, "older version"),
    ):
        wrong = {k: v for k, v in {**told, **change}.items() if v is not None}
        (folder / "attention.json").write_text(json.dumps(wrong))
        with pytest.raises(BadRun, match=words):
            read_analyses([folder])
