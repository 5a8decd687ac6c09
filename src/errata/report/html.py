"""The report of scored runs and of analyses: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from errata.core.errors import BadOutput
from errata.core.files import check_file, dumps, write_bytes
from errata.core.formats.collector import without_collector
from errata.core.measure.metric import Scorer
from errata.figures.plots import panel_svg, style_sheet
from errata.report import charts
from errata.report.analysis_pages import AnalysisPage, read_analyses
from errata.report.differences import differences
from errata.report.gallery import cards
from errata.report.image_tables import CONTROLS, studies
from errata.report.packed import CHUNK, pack
from errata.report.results import Setting, read_settings, scorers_of
from errata.report.tables import UNEDITED, group_view, main_view, origins, percent
from errata.report.trained_on import trained_on

GALLERY = 48


def check_out(html: Path) -> None:
    """Raises BadOutput or DiskFull unless a report can be written to the file; before any work.

    A report is replaced, and so is an empty file; any other file is not.
    """
    check_file(html)
    if not html.exists():
        return
    with open(html, "rb") as f:
        start = f.read(64).lstrip().lower()
    if start and not start.startswith((b"<!doctype html", b"<html")):
        raise BadOutput(f"{html} is there already and is no report. Choose another --html.")


@without_collector()
def write_report(
    runs: Sequence[Path],
    html: Path,
    *,
    analyses: Sequence[Path] = (),
    title: str | None = None,
    gallery: int = GALLERY,
    root: Path | None = None,
    scorer: str = "",
) -> Path:
    """Writes the report of scored runs and of analyses and returns its path. Raises BadRun.

    Raises BadOutput or DiskFull if the file cannot be written.
    """
    check_out(html)
    text = render_report(
        runs, analyses=analyses, title=title, gallery=gallery, root=root, scorer=scorer
    )
    write_bytes(html, text.encode())
    return html


def render_report(
    runs: Sequence[Path],
    *,
    analyses: Sequence[Path] = (),
    title: str | None = None,
    gallery: int = GALLERY,
    root: Path | None = None,
    scorer: str = "",
) -> str:
    """The report as text, with at most `gallery` cases; those behind the first 48 are packed.

    runs, analyses: folders that `errata bench` and `errata analyze` wrote; either may be empty, not
    both. root: folder of the benchmark's pictures: those outside it and the runs are not embedded
    unless the run recorded them. scorer: whose scores are shown first. Raises BadRun.
    """
    pages = read_analyses(analyses)
    settings = read_settings(runs) if runs or not pages else []
    chosen, total = cards(settings, gallery, root)
    shown = chosen[:GALLERY]
    protocols = _distinct(a.protocol for c in chosen for q in c.questions for a in q.answers)
    scorers = scorers_of(settings)
    env = _environment()
    article: Any = env.get_template("case.html.jinja").module
    packed = pack(chosen[GALLERY:], lambda card: str(article.article(card, len(protocols) > 1)))
    script = env.get_template("script.js.jinja").render(chunk=CHUNK)
    return env.get_template("report.html.jinja").render(
        title=title or (_title(settings) if settings else _analyses_title(pages)),
        settings=settings,
        studies=studies(settings),
        controls=CONTROLS,
        analyses=pages,
        seeds=_distinct(str(r.manifest.get("seed", "–")) for s in settings for r in s.results),
        scorers=scorers,
        figure_style=style_sheet(),
        compared={s.slug: differences(s, [scorer.name for scorer in scorers]) for s in settings},
        words=words(settings, [scorer.name for scorer in scorers]),
        first_scorer=next((s.name for s in scorers if s.name == scorer), _first(scorers)),
        cards=shown,
        packed=packed,
        chosen=len(chosen),
        cards_of=total,
        methods=_distinct(a.method for c in chosen for q in c.questions for a in q.answers),
        protocols=protocols,
        kinds={q.kind: q.heading for c in chosen for q in c.questions},
        places=_distinct(c.where for c in chosen),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _first(scorers: Sequence[Scorer]) -> str:
    return scorers[0].name if scorers else ""


def _title(settings: Sequence[Setting]) -> str:
    backbones = _distinct(s.backbone.rstrip("/").rsplit("/", 1)[-1] for s in settings)
    editors = _distinct(r.editor for s in settings for r in s.results)
    what = editors[0] if len(editors) == 1 else f"{len(editors)} editors"
    return f"{what} on {' and '.join(backbones)}"


def words(settings: Sequence[Setting], scorers: Sequence[str]) -> list[tuple[str, str]]:
    """(word, meaning) of every column and row of the tables, each once."""
    found: dict[str, str] = {}
    for setting in settings:
        for scorer in scorers:
            for heading in main_view(setting, scorer).headings:
                found.setdefault(heading.label, heading.meaning)
    return [
        *((word, meaning) for word, meaning in found.items() if meaning),
        ("Unedited", f"{UNEDITED[0].upper()}{UNEDITED[1:]}."),
        ("Case", "One edit with the questions about it."),
        ("Unit", "Cases that do not influence each other; edits of one sequence are one unit."),
        ("Base, before", "The answer of the unedited model."),
    ]


def _analyses_title(pages: Sequence[AnalysisPage]) -> str:
    names, backbones = _distinct(p.name for p in pages), _distinct(p.backbone for p in pages)
    return (
        f"{', '.join(names)} of {' and '.join(b.rstrip('/').rsplit('/', 1)[-1] for b in backbones)}"
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("errata.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(percent=percent, seconds=charts.seconds, dumps=dumps, trained_on=trained_on)
    env.globals.update(
        main_view=main_view,
        group_view=group_view,
        origins=origins,
        bar_charts=charts.bars,
        curve_charts=charts.curves,
        forgotten=charts.forgotten,
        times=charts.times,
        panel_svg=panel_svg,
    )
    return env
