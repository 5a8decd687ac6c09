"""A report shows pictures of the run and of its benchmark, and no other file of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pillow

from errata.core.errors import BadRun
from errata.core.files import read_json, write_json
from errata.core.types import Case, Image, Prompt
from errata.evaluation.score import score_run
from errata.io.images import hash_image
from errata.report.html import render_report
from errata.report.results import read_result
from tests.unit.report.conftest import MakeRun

OUTSIDE = "it lies outside the run"


def shown(run: Path, root: Path | None = None) -> bool:
    page = render_report([run], gallery=1, root=root)
    assert (OUTSIDE in page) == ("data:image/png" not in page)
    return OUTSIDE not in page


@pytest.mark.parametrize("way", ["plain", "hashed", "dots", "link"])
def test_only_pictures_below_the_run_or_the_root(
    make_run: MakeRun, tmp_path: Path, way: str
) -> None:
    private = tmp_path / "private" / "mine.png"
    private.parent.mkdir()
    Pillow.new("RGB", (8, 8), "red").save(private)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link.png").symlink_to(private)
    uri = {"dots": f"{tmp_path}/a/../private/mine.png", "link": f"{tmp_path}/a/link.png"}
    image = Image(uri.get(way, str(private)))
    image = Image(image.uri, hash_image(image)) if way == "hashed" else image

    def change(case: Case) -> Case:
        prompt = Prompt((image, "what is it?"))
        probes = tuple(replace(p, prompt=prompt) for p in case.probes)
        return replace(case, edit=replace(case.edit, prompt=prompt), probes=probes)

    run = make_run("a", "ft_l", change=change, root=str(tmp_path / "images"))
    assert not shown(run)
    assert shown(run, private.parent)
    assert not shown(run, tmp_path / "images")
    manifest = read_json(run / "manifest.json")
    write_json(run / "manifest.json", {**manifest, "root": "/"})
    assert shown(run) == (way == "hashed")  # what the run recorded counts with its hash only


def test_scores_of_other_answers_are_refused(make_run: MakeRun) -> None:
    run = make_run("a", "ft_l")
    read_result(run)
    for name in ("answers.jsonl", "before.jsonl", "plan.json"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole.replace(b"red", b"tan"))
        with pytest.raises(BadRun, match=rf"{name} has changed since .*errata score"):
            read_result(run)
        (run / name).write_bytes(whole)
    (run / "answers.jsonl").write_bytes(
        (run / "answers.jsonl").read_bytes().replace(b'"text": "red"', b'"text": "tan"')
    )
    score_run(run)
    read_result(run)


def test_a_run_scored_before_hashes_were_kept_is_read(make_run: MakeRun) -> None:
    run = make_run("a", "ft_l")
    (run / "scored.json").unlink()
    read_result(run)
