"""The reports of the gallery, made from runs that are kept as archives."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tools.docs import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "v0.1" / "runs"
#: name -> title, the archive, and its runs in the order of the table
REPORTS = {
    "three-editors": (
        "Three editors, one edit at a time",
        ROOT / "docs" / "reports" / "three-editors.tar.gz",
        ("ft_l", "tpatcher", "ike"),
    ),
    "sequence": ("A sequence of edits", FIXTURES / "sequential.tar.gz", ("sequential",)),
    "pictures": ("Pictures", FIXTURES / "direct.tar.gz", ("direct",)),
}


def made(folder: Path) -> dict[str, Path]:
    """Name -> the report, written below `folder`."""
    from errata.report.html import write_report

    paths = {}
    for name, (title, archive, runs) in REPORTS.items():
        into = folder / name
        with tarfile.open(archive) as file:
            file.extractall(into, filter="data")
        paths[name] = folder / f"{name}.html"
        write_report([into / run for run in runs], paths[name], title=title)
    return paths
