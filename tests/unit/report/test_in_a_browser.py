"""The report in headless Chromium: contrast, keys, search, links, downloads, time to open."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errata.core.files import read_json
from errata.report import gallery
from errata.report import html as report
from tests.unit.report.conftest import make_cases, write_run

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
COUNT = 2000
PATIENCE = 120_000  # ms; of a machine with other work to do

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


def expected(locator: Any) -> Any:
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    return expect(locator)


def says(page: Any, pattern: str) -> None:
    """Waits until the filters have counted. The page's policy forbids to wait for a script."""
    expected(page.locator(".filters output")).to_have_text(re.compile(pattern))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield found
        found.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Runs of three editors on 60 cases, of which 48 are in the page and 12 are packed."""
    folder = tmp_path_factory.mktemp("browser")
    cases = make_cases(folder / "images", 60)
    runs = [write_run(folder / e, e, "one_step", cases) for e in ("ft_l", "ft_v", "tpatcher")]
    out = folder / "report.html"
    return runs, report.write_report(runs, out, gallery=60, root=folder, scorer="token")


@pytest.fixture(scope="module")
def drawn_page(drawn_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of runs that draw: before, after, controls, verdicts and rationales."""
    out = tmp_path_factory.mktemp("drawn-report") / "pictures.html"
    return report.write_report(list(drawn_runs.values()), out)


@pytest.fixture
def opened(browser: Any, written: tuple[list[Path], Path]) -> Iterator[Callable[..., Any]]:
    """Opens the report; a message on the console fails the test."""
    contexts, errors = [], []

    def opened_page(anchor: str = "", **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{written[1].as_uri()}{anchor}")
        says(page, r"\d+ cases?, \d+ answers")
        return page

    yield opened_page
    for context in contexts:
        context.close()
    assert errors == []


def violations(page: Any, width: int) -> list[tuple[str, str]]:
    """What axe finds with everything unfolded: (rule, first place)."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.evaluate("document.querySelectorAll('details:not(.whole)').forEach(d => d.open = true)")
    page.evaluate("document.querySelectorAll('.whole').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = axe.run(page).response["violations"]
    return [(v["id"], v["nodes"][0]["html"][:200]) for v in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_contrast_names_and_structure_by_axe(opened, scheme, width):
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 900})
    assert violations(page, width) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_report_of_pictures_by_axe(browser, drawn_page, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    context.set_default_timeout(PATIENCE)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(drawn_page.as_uri())
    assert page.locator("figure.frame img").count() > 100
    assert violations(page, width) == [] == errors
    context.close()


def test_it_opens_with_the_scorer_that_was_asked_for(opened):
    page = opened()
    assert page.locator(".scorer:checked").get_attribute("value") == "token"
    shown = page.locator("section.setting table.metrics:visible caption").first.text_content()
    assert "Token" in shown


def test_a_table_is_saved_as_csv_and_latex(opened, written):
    page = opened()
    scores = read_json(written[0][0] / "scores.json")["metrics"]["reliability.token"]
    with page.expect_download() as download:
        page.locator(".take:visible").first.get_by_text("CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename == "methods-and-scores-token-per-cent.csv"
    rows = {row["Method"]: row for row in csv.DictReader(io.StringIO(text))}
    assert list(rows)[:2] == ["unedited", "ft_l"] and len(rows) == 5
    ends = [f"{100 * end:.1f}" for end in (scores["value"], *scores["ci95"])]
    names = ("Reliability", "Reliability_low", "Reliability_high")
    assert [rows["ft_l"][name] for name in names] == ends
    with page.expect_download() as download:
        page.locator(".take:visible").first.get_by_text("LaTeX").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("ft\\_l & "))
    assert f"{ends[0]} [{ends[1]}, {ends[2]}]" in row and row.endswith(" \\\\")
    assert sum("&" in line for line in lines) == 6 and "\\toprule" in lines
    assert len({line.count(" & ") for line in lines if "&" in line}) == 1


def test_packed_cases_are_found_filtered_and_linked(opened):
    page = opened()
    visible = page.locator("article.case:visible")
    assert visible.count() == 48
    assert page.locator(".filters output").text_content().startswith("60 cases, ")
    page.locator(".more").click()
    expected(page.locator("article.case")).to_have_count(60)
    assert page.locator(".more").is_hidden()

    page = opened()
    known = set(page.evaluate("[...document.querySelectorAll('article.case')].map(a => a.id)"))
    page.locator("[name=text]").fill("vqa-059")
    says(page, "1 case, .*")
    (anchor,) = page.evaluate(
        "[...document.querySelectorAll('article.case')].filter(a => !a.hidden).map(a => a.id)"
    )
    assert anchor not in known
    page.locator("[name=verdict]").select_option("wrong")
    page.wait_for_timeout(200)
    answers = page.locator(f"#{anchor} .answer:visible")
    assert 0 < answers.count() and all("wrong" in c for c in _classes(answers))
    page.locator("[name=text]").fill("no such words")
    page.wait_for_selector(".nothing:visible")

    page = opened(f"#{anchor}")
    page.wait_for_selector(f"#{anchor} details[open]")
    assert page.locator(f"#{anchor}").is_visible()


def _classes(elements: Any) -> list[str]:
    return [e.get_attribute("class") for e in elements.all()]


def test_keys_and_colours(opened):
    page = opened(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.keyboard.press("t")
    assert page.evaluate(ground) != dark
    assert page.locator(".theme").text_content() == "Dark"
    page.locator(".theme").click()
    assert page.evaluate(ground) == dark
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("o")
    second = page.locator("article.case").nth(1)
    assert second.locator("details.whole").get_attribute("open") is not None
    page.keyboard.press("k")
    assert "at" in page.locator("article.case").first.get_attribute("class").split()
    page.keyboard.press("/")
    page.keyboard.type("tj")  # in the field these are letters
    assert page.locator("[name=text]").input_value() == "tj"


def test_two_thousand_cases_open_in_two_seconds(browser, written, tmp_path, monkeypatch):
    """Measured in seconds of the page's thread: the test's machine may be busy."""
    runs, _ = written
    cards, _ = gallery.cards(report.read_settings(runs[:2]), 10, tmp_path)
    many = [replace(cards[i % len(cards)], id=f"case-{i:04d}") for i in range(COUNT)]
    monkeypatch.setattr(report, "cards", lambda *_: (many, COUNT))
    path = report.write_report(runs[:2], tmp_path / "many.html", gallery=COUNT)
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    says(page, f"{COUNT} cases, .*")
    metrics = session.send("Performance.getMetrics")["metrics"]
    seconds = {m["name"]: m["value"] for m in metrics}["TaskDuration"]
    assert seconds < 2
    page.locator("[name=text]").fill("case-1999")
    says(page, "1 case, .*")
    page.close()
