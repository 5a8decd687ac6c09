"""Folders that `errata analyze` or `report --plots` wrote, for the report.

Pictures become data, numbers tables.
"""

from __future__ import annotations

import base64
import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun

MOST = 120
"""Longer tables stay in their file."""


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure: `data` is a URI, so that its own colours and the page's never meet."""

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
    """One analysis, or runs over a setting. `about`: what was looked at, as its JSON file says."""

    slug: str
    name: str
    about: Mapping[str, Any]
    said: tuple[str, ...]
    pictures: tuple[PageFigure, ...]
    numbers: tuple[PageTable, ...]
    folder: str

    @property
    def backbone(self) -> str:
        return str(self.about.get("backbone", ""))

    @property
    def command(self) -> str:
        """The command that makes these pictures again."""
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
        for key, value in a.get("arguments", {}).items():
            given = value if isinstance(value, str) else json.dumps(value)
            words += ["--with", f"{key}={given}"]
        return shlex.join([*words, "--out", self.folder])

    @property
    def settings(self) -> dict[str, str]:
        """What was looked at, one line each."""
        keys = ("backbone", "fingerprint", "benchmark", "editor", "state", "settings", "limit",
                "seed", "versions")  # fmt: skip
        found = {k: self.about.get(k) for k in keys}
        return {
            k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
            for k, v in found.items()
            if v not in (None, "")
        }


def read_looks(folders: Sequence[Path]) -> list[AnalysisPage]:
    """The analyses in these folders. Raises BadRun where there are none, or files are missing."""
    found: list[AnalysisPage] = []
    for folder in dict.fromkeys(folders):
        here = [
            (path, told) for path in sorted(folder.glob("*.json"))
            if isinstance(told := _told(path), dict) and ("analysis" in told or "varied" in told)
        ]  # fmt: skip
        if not here:
            raise BadRun(f"{folder} holds no analysis. Give a folder that `errata analyze` wrote.")
        for path, told in here:
            if "figures" not in told:
                raise BadRun(f"{path} is of an older version. Repeat its `errata analyze`.")
            found.append(
                AnalysisPage(
                    f"a{len(found)}",
                    str(told.get("analysis") or f"over {' and '.join(told['varied'])}"),
                    told,
                    tuple(map(str, told.get("said", ()))),
                    tuple(_picture(folder, f) for f in told["figures"]),
                    tuple(_numbers(folder, name) for name in told.get("tables", ())),
                    folder.name,
                )
            )
    return found


def _told(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _picture(folder: Path, figure: Mapping[str, str]) -> PageFigure:
    text = _file(folder, f"{figure['name']}.svg").encode()
    data = "data:image/svg+xml;base64," + base64.b64encode(text).decode()
    return PageFigure(figure["title"], figure["caption"], data)


def _numbers(folder: Path, name: str) -> PageTable:
    rows = list(csv.reader(_file(folder, f"{name}.csv").splitlines()))
    columns, body = tuple(rows[0]), [tuple(r) for r in rows[1:]]
    shown = tuple(body) if len(body) <= MOST else ()
    return PageTable(f"{name}.csv", columns, shown, len(body))


def _file(folder: Path, name: str) -> str:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise BadRun(f"{path} is missing. Repeat the `errata analyze` that wrote {folder}.")
    return path.read_text(encoding="utf-8")
