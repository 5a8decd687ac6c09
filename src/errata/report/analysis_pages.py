"""Folders that `errata analyze` or `report --plots` wrote, read for the report.

SVG files become data URIs, CSV files become tables.
"""

from __future__ import annotations

import base64
import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun
from errata.core.files import checked, is_file, read_json, read_text, visible

MOST = 120
"""Tables with more rows are not shown; the report names their file."""


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure as a data URI, so that its style and the page's do not mix."""

    title: str
    caption: str
    data: str


@dataclass(frozen=True, slots=True)
class PageTable:
    """A CSV file; `rows` is empty where there are too many to show."""

    file: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    count: int


@dataclass(frozen=True, slots=True)
class AnalysisPage:
    """One analysis, or scores of runs over a setting. `about` is the content of its JSON file."""

    slug: str
    name: str
    about: Mapping[str, Any]
    sentences: tuple[str, ...]
    figures: tuple[PageFigure, ...]
    tables: tuple[PageTable, ...]
    folder: str

    @property
    def backbone(self) -> str:
        return str(self.about.get("backbone", ""))

    @property
    def benchmark(self) -> str:
        return str(self.about.get("benchmark") or "")

    @property
    def command(self) -> str:
        """The command that repeats the analysis."""
        a = self.about
        if "varied" in a:
            words = ["errata", "report", *map(str, a.get("runs", ()))]
            words += [w for v in a["varied"] for w in ("--vary", str(v))]
            return shlex.join([*words, "--scorer", str(a.get("scorer")), "--plots", self.folder])
        words = ["errata", "analyze", self.name, self.backbone]
        if isinstance(editor := a.get("editor"), Mapping):
            words += ["--editor", str(editor.get("name"))]
        for option in ("state", "benchmark", "limit", "seed"):
            if a.get(option) not in (None, ""):
                words += [f"--{option}", str(a[option])]
        for key, value in (a.get("arguments") or {}).items():
            text = value if isinstance(value, str) else json.dumps(value)
            words += ["--with", f"{key}={text}"]
        return shlex.join([*words, "--out", self.folder])

    @property
    def settings(self) -> dict[str, str]:
        """What was analysed, by the name of the setting."""
        keys = ("backbone", "fingerprint", "benchmark", "editor", "state", "settings", "limit",
                "seed", "versions")  # fmt: skip
        values = {k: self.about.get(k) for k in keys}
        return {
            k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
            for k, v in values.items()
            if v not in (None, "")
        }


@dataclass(frozen=True)
class StoredFigure:
    name: str
    title: str
    caption: str = ""


@dataclass(frozen=True)
class StoredAnalysis:
    """What the JSON file of an analysis, or of scores over a setting, must hold to be shown."""

    figures: tuple[StoredFigure, ...]
    tables: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    analysis: str = ""
    varied: tuple[str, ...] = ()
    backbone: str = ""
    runs: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)


def read_analyses(folders: Sequence[Path]) -> list[AnalysisPage]:
    """The analyses in these folders. Raises BadRun where there are none, or files are missing."""
    pages: list[AnalysisPage] = []
    for folder in dict.fromkeys(folders):
        names = [n for n in visible(folder) if n.endswith(".json")]
        contents = {folder / name: _content(folder / name) for name in names}
        analyses = {path: about for path, about in contents.items() if about is not None}
        if not analyses:
            raise BadRun(f"{folder} holds no analysis. Give a folder that `errata analyze` wrote.")
        for path, about in analyses.items():
            if "figures" not in about:
                raise BadRun(f"{path} is of an older version. Repeat its `errata analyze`.")
            stored = checked(StoredAnalysis, about, path)
            pages.append(
                AnalysisPage(
                    f"a{len(pages)}",
                    stored.analysis or f"over {' and '.join(stored.varied)}",
                    about,
                    stored.said,
                    tuple(_figure(folder, f) for f in stored.figures),
                    tuple(_table(folder, name) for name in stored.tables),
                    folder.name,
                )
            )
    return pages


def _content(path: Path) -> dict[str, Any] | None:
    """The JSON of an analysis; None for any other JSON file. Raises BadRun for a damaged one."""
    content = read_json(path)
    known = isinstance(content, dict) and ("analysis" in content or "varied" in content)
    return content if known else None


def _figure(folder: Path, figure: StoredFigure) -> PageFigure:
    text = _file(folder, f"{figure.name}.svg").encode()
    data = "data:image/svg+xml;base64," + base64.b64encode(text).decode()
    return PageFigure(figure.title, figure.caption, data)


def _table(folder: Path, name: str) -> PageTable:
    try:
        rows = list(csv.reader(_file(folder, f"{name}.csv").splitlines()))
    except csv.Error:
        rows = []
    if not rows:
        raise BadRun(
            f"{folder / name}.csv is no table. Repeat the `errata analyze` that wrote {folder}."
        )
    columns, body = tuple(rows[0]), [tuple(r) for r in rows[1:]]
    shown = tuple(body) if len(body) <= MOST else ()
    return PageTable(f"{name}.csv", columns, shown, len(body))


def _file(folder: Path, name: str) -> str:
    path = folder / name
    if Path(name).name != name or not is_file(path):
        raise BadRun(f"{path} is missing. Repeat the `errata analyze` that wrote {folder}.")
    return read_text(path)
