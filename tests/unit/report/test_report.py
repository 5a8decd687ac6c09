"""The HTML report and the tables, on synthetic runs."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from errata.core.errors import BadRun
from errata.core.files import read_json, write_json
from errata.core.formats.run_files import read_scores
from errata.core.types import Case, Image, Prompt
from errata.evaluation.compare import compare_runs
from errata.evaluation.score import score_run
from errata.report.charts import bars
from errata.report.differences import differences
from errata.report.html import render_report, write_report
from errata.report.results import read_settings
from errata.report.tables import group_view, legend, main_view, origins, terminal_table

MakeRun = Callable[..., Path]
VOID = frozenset({"meta", "input", "img", "br", "link", "hr"})


class Page(HTMLParser):
    """Elements and text of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for t, attrs in self.elements if t == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def html(runs: list[Path]) -> str:
    return render_report(runs, gallery=6, root=runs[0].parent)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_self_contained(html: str, page: Page) -> None:
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "action", "poster"):
            value = attrs.get(name) or ""
            assert value[:1] in ("", "#") or value.startswith("data:image/png;base64,"), value
    assert not re.search(r"@import|url\(|https?://", html)
    kinds = [attrs.get("type") for attrs in page.all("script")]
    assert kinds.count(None) == 1 and set(kinds) <= {None, "application/octet-stream"}


def test_structure(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for a in page.all("a") if a.get("href")}
    assert {t[1:] for t in targets if t} <= set(ids)
    assert all(a.get("scope") for a in page.all("th"))
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    assert len(page.all("h1")) == 1
    assert page.all("html")[0]["lang"] == "en"


def test_says_what_was_run(page: Page) -> None:
    for words in (
        "5 editors on micro-vlm",
        "microworld:vqa@eval/disjoint",
        "errata bench micro-vlm --editor tpatcher --benchmark microworld:vqa@eval/disjoint "
        "--protocol sequential:10 --seed 0 --limit 20",
        "20 cases in 2 independent units",
        "3 the model says '…', not the old answer",
        "1 the hop is not known",
        "7 the base already answers the target",
        "1 image is missing",
        "What later edits made the model forget",
        "Time per edit",
        "6 of 20 cases",
    ):
        assert words in page.text, words


def test_scorers_are_never_mixed(runs: list[Path]) -> None:
    for setting in read_settings(runs):
        for scorer in ("exact", "token"):
            for view in (main_view(setting, scorer), group_view(setting, scorer)):
                assert view.headings
                assert {h.key.rpartition(".")[2] for h in view.headings} == {scorer}
        assert [h.key for h in main_view(setting, "exact", tag="own").headings][:1] in (
            [],
            ["reliability.exact@own"],
        )


def test_values_are_those_of_scores_json(runs: list[Path]) -> None:
    first = read_settings(runs)[0]
    view = main_view(first, "exact")
    for run, line in zip(runs, view.lines, strict=False):
        metrics = read_json(run / "scores.json")["metrics"]
        for heading, cell in zip(view.headings, line.cells, strict=True):
            entry = metrics[heading.key]
            assert (cell.value, [cell.low, cell.high]) == (entry["value"], entry["ci95"])
            assert cell.n == entry["n"]
    assert (
        view.base[0] == read_json(runs[0] / "scores.json")["metrics"]["reliability.exact"]["base"]
    )
    assert origins(first) == ["correction", "counterfactual"]


def test_mean5_is_the_mean_of_five(runs: list[Path]) -> None:
    metrics = read_json(runs[0] / "scores.json")["metrics"]
    five = ("reliability", "t_generality", "m_generality", "t_locality", "m_locality")
    for scorer in ("exact", "token"):
        mean = sum(metrics[f"{kind}.{scorer}"]["value"] for kind in five) / 5
        assert metrics[f"mean5.{scorer}"]["value"] == pytest.approx(mean, abs=2e-6)


def test_settings(runs: list[Path]) -> None:
    settings = read_settings(runs)
    assert [s.protocol for s in settings] == ["one_step", "batch:5", "sequential:10"]
    assert [r.label for r in settings[0].results] == ["ft_l", "ft_v", "tpatcher", "ike", "lora"]
    assert [s.sequential for s in settings] == [False, False, True]


def test_labels_tell_runs_apart(make_run: MakeRun) -> None:
    made = [
        make_run("a", "ft_l"),
        make_run("b", "ft_l", arguments={"lr": 0.1}),
        make_run("c", "lora", seed=1),
        make_run("d", "lora", seed=2),
        make_run("e", "ike"),
        make_run("f", "ike"),
    ]
    (setting,) = read_settings(made)
    labels = [
        "ft_l (defaults)",
        "ft_l (lr=0.1)",
        "lora (seed 1)",
        "lora (seed 2)",
        "ike (e)",
        "ike (f)",
    ]
    assert [r.label for r in setting.results] == labels


def test_other_cases_never_share_a_table(make_run: MakeRun) -> None:
    made = [make_run("a", "ft_l", cases=20), make_run("b", "ike", cases=12)]
    assert [s.cases for s in read_settings(made)] == [20, 12]


HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'


def test_hostile_text_is_inert(make_run: MakeRun) -> None:
    def change(case: Case) -> Case:
        prompt = Prompt.of(HOSTILE, case.edit.prompt.images[0])
        edit = replace(case.edit, prompt=prompt, target=HOSTILE, old=HOSTILE)
        probes = tuple(
            replace(p, prompt=prompt, reference=HOSTILE, group=p.group and "g'\"<b>")
            for p in case.probes
        )
        return replace(case, edit=edit, probes=probes, task=HOSTILE, origin="<i>")

    run = make_run("a", "ft_l", change=change, backbone=HOSTILE, arguments={"<b>": HOSTILE})
    page = Page(render_report([run], title=HOSTILE))
    kinds = [attrs.get("type") for attrs in page.all("script")]
    assert kinds.count(None) == 1 and set(kinds) <= {None, "application/octet-stream"}
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert all(tag not in ("b", "i") or not attrs for tag, attrs in page.elements)
    assert page.text.count('<script>alert("x")</script>') > 9
    assert "{{ 7 * 7 }}" in page.text and not page.all("i")


def test_only_our_script_may_run(html: str) -> None:
    import base64
    import hashlib

    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"script-src &#39;sha256-{digest}&#39;" in html or f"script-src 'sha256-{digest}'" in html
    )


def test_a_missing_image_is_a_placeholder(make_run: MakeRun, tmp_path: Path) -> None:
    def change(case: Case) -> Case:
        gone = Prompt.of("what is it?", Image("/nowhere/gone.png"))
        return replace(case, edit=replace(case.edit, prompt=gone))

    page = Page(render_report([make_run("a", "ft_l", change=change)], gallery=2, root=tmp_path))
    missing = [a for a in page.all("span") if "missing" in (a.get("class") or "")]
    assert len(missing) == 2
    assert all("no such file" in (a["aria-label"] or "") for a in missing)


def test_pictures_are_small(make_run: MakeRun, tmp_path: Path) -> None:
    from PIL import Image as Pillow

    Pillow.effect_noise((1200, 900), 80).convert("RGB").save(tmp_path / "big.png")

    def change(case: Case) -> Case:
        big = Prompt.of("what is it?", Image(str(tmp_path / "big.png")))
        return replace(case, edit=replace(case.edit, prompt=big))

    page = Page(render_report([make_run("a", "ft_l", change=change)], gallery=1, root=tmp_path))
    assert all(len(a["src"] or "") < 40_000 for a in page.all("img"))


def test_failed_edits_are_shown_as_unscored(make_run: MakeRun) -> None:
    import json

    run = make_run("a", "ft_l")
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    for answer in answers:
        if answer["case"] == "vqa-000":
            answer["notes"] = {"unscored": "the loss became NaN"}
    (run / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    score_run(run)
    text = Page(render_report([run])).text
    assert "ft_l : 1 case unscored, because the loss became NaN" in text
    assert "ft_l Reliability 1" in text


def test_gallery_choice_ignores_answers(runs: list[Path], page: Page) -> None:
    shown = [a["aria-label"] for a in page.all("article")]
    assert shown == [f"Case vqa-{i * 20 // 6:03d}" for i in range(6)]


def test_what_no_later_edit_changed_is_said_not_drawn(make_run: MakeRun) -> None:
    run = make_run("a", "ft_l", "sequential:10")
    scores = read_json(run / "scores.json")
    for points in scores["by_position"].values():
        points["last"] = points["own"]
    write_json(run / "scores.json", scores)
    assert read_settings([run])[0].forgotten == ()
    text = Page(render_report([run])).text
    assert "every score right after the own edit is the score after the last one" in text
    assert "after the last edit (dashed)" not in text


def test_a_run_without_scores(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", "ft_l")
    (run / "scores.json").unlink()
    with pytest.raises(BadRun, match=r"errata score"):
        render_report([run])
    with pytest.raises(BadRun, match="no run was named"):
        render_report([])
    with pytest.raises(BadRun, match="does not exist"):
        render_report([tmp_path / "nothing"])


def test_scores_of_another_version(make_run: MakeRun) -> None:
    run = make_run("a", "ft_l")
    write_json(run / "scores.json", {**read_json(run / "scores.json"), "schema": 9})
    with pytest.raises(BadRun, match="another version"):
        render_report([run])


def test_written_twice_is_the_same(runs: list[Path], tmp_path: Path) -> None:
    pages = [write_report(runs[:2], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_without_timing(make_run: MakeRun) -> None:
    run = make_run("a", "ft_l")
    (run / "timing.json").unlink()
    assert "Time per edit" not in Page(render_report([run])).text


def test_terminal_table(runs: list[Path]) -> None:
    console = Console(width=180, file=io.StringIO(), record=True)
    setting = read_settings(runs)[2]
    console.print(terminal_table(setting))
    text = console.export_text()
    value: Any = read_json(setting.results[2].path / "scores.json")["metrics"]["reliability.exact"]
    assert f"{100 * value['value']:.1f}" in text
    for words in ("sequential:10: exact, %", "unedited", "tpatcher", "retain"):
        assert words in text
    assert re.search(r"^\s*n +20 +20 .* 2 +20\s*$", text, re.MULTILINE), "n of every column"
    meanings = dict(legend([setting]))
    assert {"rel", "mean 6", "retain", "unedited", "n", "a–b"} <= meanings.keys()
    assert all(len(meaning.split()) > 3 for meaning in meanings.values())


def test_every_scorer_has_a_tab_and_says_what_it_is(page: Page, html: str) -> None:
    tabs = [a["value"] for a in page.all("input") if a.get("name") == "scorer"]
    assert tabs == ["exact", "token", "token_own"]
    assert next(a for a in page.all("input") if "checked" in a)["value"] == "exact"
    assert "Teacher-forced token accuracy" in page.text
    assert html.count("body:has(#pick-2:not(:checked)) main .scores-2 ") == 1


def test_the_scorer_that_is_asked_for_is_shown_first(runs: list[Path]) -> None:
    page = Page(render_report(runs[:1], gallery=1, scorer="token"))
    assert [a["value"] for a in page.all("input") if "checked" in a] == ["token"]


def test_cases_behind_the_first_are_packed_and_complete(runs: list[Path], monkeypatch) -> None:
    monkeypatch.setattr("errata.report.html.GALLERY", 6)
    whole = render_report(runs[:2], gallery=20, root=runs[0].parent)
    page = Page(whole)
    assert len(page.all("article")) == 6 and "20 of 20 cases" in page.text
    index, chunk = re.findall(r'octet-stream" [^>]*>([^<]+)</script>', whole)
    records, cases = (json.loads(gzip.decompress(base64.b64decode(p))) for p in (index, chunk))
    assert len(records) == len(cases) == 14
    for record, html in zip(records, cases, strict=True):
        case = Page(html)
        (article,) = case.all("article")
        assert article["id"] == record["anchor"]
        assert sum(count for *_, count in record["answers"]) == html.count('<li class="answer')
        assert case.all("article")[0]["aria-label"].split()[-1].lower() in record["text"]


def test_pictures_stop_where_a_report_would_be_too_large(runs: list[Path], monkeypatch) -> None:
    whole = Page(render_report(runs[:1], gallery=6, root=runs[0].parent))
    monkeypatch.setattr("errata.report.gallery.MOST_OF_PICTURES", 1000)
    page = Page(render_report(runs[:1], gallery=6, root=runs[0].parent))
    labels = [a.get("aria-label") or "" for a in page.all("span")]
    assert 0 < len(page.all("img")) < len(whole.all("img"))
    assert any("pictures already" in label for label in labels)


def test_groups_are_explained(page: Page) -> None:
    assert "What the groups are" in page.text
    assert "the edited question about a thing that differs in one attribute" in page.text


def test_a_chart_compares_the_methods_on_one_score(runs: list[Path]) -> None:
    setting = read_settings(runs)[0]
    shown = bars(setting, "exact")
    headings = main_view(setting, "exact").headings
    assert [c.label for c in shown] == [h.label for h in headings]
    for chart, heading in zip(shown, headings, strict=True):
        assert [row.label for row in chart.panel.rows] == [r.label for r in setting.results]
        for row, result in zip(chart.panel.rows, setting.results, strict=True):
            assert row.value is not None
            assert row.value.value == result.metrics[heading.key]["value"]
        assert chart.meaning == heading.meaning


def test_paired_differences_are_those_of_compare(runs: list[Path], page: Page) -> None:
    setting = read_settings(runs)[0]
    found = differences(setting, ["exact"])
    assert found is not None and found.refused == ()
    assert [(p.a, p.b) for p in found.pairs] == [("ft_l", r.label) for r in setting.results[1:]]
    expected = compare_runs(runs[0], runs[2])["metrics"]
    for heading, cell in zip(found.headings["exact"], found.pairs[1].cells["exact"], strict=True):
        entry = expected[heading.key]
        assert cell is not None and cell.n == entry["n"]
        assert cell.text == f"{100 * entry['difference']:+.1f}"
        low, high = entry["ci95"]
        assert cell.interval == f"{100 * low:+.1f} to {100 * high:+.1f}"
        assert bool(cell.clear) == (low > 0 or high < 0)
    assert "tpatcher − ft_l" in page.text and "Paired differences" in page.text


def test_few_methods_are_compared_in_all_pairs_and_one_in_none(runs: list[Path]) -> None:
    (three,) = read_settings(runs[:3])
    found = differences(three, ["exact"])
    assert found is not None
    pairs = [(p.a, p.b) for p in found.pairs]
    assert pairs == [("ft_l", "ft_v"), ("ft_l", "tpatcher"), ("ft_v", "tpatcher")]
    assert differences(read_settings(runs[:1])[0], ["exact"]) is None


def test_runs_that_cannot_be_paired_say_why(make_run: MakeRun) -> None:
    made = [make_run("a", "ft_l"), make_run("b", "ike")]
    lines = (made[1] / "before.jsonl").read_text().splitlines()
    lines[0] = re.sub(r'"text": ?"[^"]*"', '"text": "another"', lines[0])
    (made[1] / "before.jsonl").write_text("\n".join(lines) + "\n")
    score_run(made[1])
    text = Page(render_report(made)).text
    assert "ike and ft_l are not compared: the unedited model answered 1 of" in text


def test_every_column_and_group_has_its_meaning_on_the_page(runs: list[Path], page: Page) -> None:
    for setting in read_settings(runs):
        for scorer in ("exact", "token", "token_own"):
            for view in (main_view(setting, scorer), group_view(setting, scorer)):
                for heading in view.headings:
                    assert len(heading.meaning.split()) > 2, heading
                    assert heading.meaning in page.text, heading
    titles = {a.get("title") for a in page.all("th")}
    assert "Mean of reliability, both generalities, both localities and near locality." in titles


def test_cases_are_closed_and_say_how_many_answers_are_right(page: Page) -> None:
    cases = [a for a in page.all("details") if a.get("class") == "whole"]
    assert len(cases) == 6 and not any("open" in a for a in cases)
    assert re.search(r"tpatcher \d+/\d+", page.text)


def test_every_number_of_a_table_has_its_label_for_narrow_screens(page: Page) -> None:
    cells = [a for a in page.all("td") if a.get("data-label")]
    labels = {a["data-label"] for a in cells}
    assert {"Reliability", "Mean of 6", "Near locality: near1", "Median", "Peak memory"} <= labels


def test_peak_memory_of_a_run_that_did_not_measure_it_is_left_out(make_run: MakeRun) -> None:
    run = make_run("a", "ft_l")
    timing = read_json(run / "timing.json")
    assert "656 MB" not in Page(render_report([run])).text, "the peak of the process"
    write_json(run / "timing.json", {**timing, "peak_of": "phase"})
    assert "656 MB" in Page(render_report([run])).text


def test_an_old_interval_without_width_is_no_interval(make_run: MakeRun) -> None:
    run = make_run("a", "ft_l")
    scores = read_json(run / "scores.json")
    scores["metrics"]["reliability.exact"] |= {"value": 1.0, "ci95": [1.0, 1.0]}
    write_json(run / "scores.json", scores)
    cell = main_view(read_settings([run])[0], "exact").lines[0].cells[0]
    assert (cell.value, cell.low, cell.high, cell.interval) == (1.0, None, None, "")


@pytest.mark.parametrize("name", ["capped", "unscored_because", "scorers"])
@pytest.mark.parametrize("value", [None, "x"])
def test_scores_that_the_report_cannot_show_are_refused(
    runs: list[Path], tmp_path: Path, name: str, value: str | None
) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    scores = json.loads((run / "scores.json").read_text())
    (run / "scored.json").unlink(missing_ok=True)
    for change in ({name: value}, {}):
        kept = {k: v for k, v in scores.items() if k != name}
        (run / "scores.json").write_text(json.dumps({**kept, **change}))
        with pytest.raises(BadRun, match=name):
            read_scores(run)
