"""Links of the pages that leave docs/: their targets are copied into the site."""

from __future__ import annotations

import os
import re
from pathlib import Path

LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
#: files of the root that are pages of the site
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/CHANGELOG.md",
    "CONTRIBUTING.md": "project/CONTRIBUTING.md",
    "SECURITY.md": "project/SECURITY.md",
}


def copied(path: Path) -> str:
    """Where a file from outside docs/ is in the site. path: from the root. Not as a page."""
    return f"files/{path.as_posix()}" + (".txt" if path.suffix in ("", ".md") else "")


def _source(uri: str, root: Path) -> Path:
    """The file that a page was made from."""
    beside = root / uri.removeprefix("project/")
    return beside if uri.startswith("project/") and beside.exists() else root / "docs" / uri


def _target(source: Path, link: str, root: Path) -> Path | None:
    """What a relative link of a file leads to, from the root; None for another sort of link."""
    if re.match(r"\w+:|/", link):
        return None
    path = Path(os.path.normpath(source.parent / link))
    return path.relative_to(root) if path.is_relative_to(root) and path.exists() else None


def outside(root: Path) -> set[Path]:
    """The files that pages link to and that are no part of docs/."""
    sources = [*(root / "docs").rglob("*.md"), *(root / p for p in PAGES if p != "README.md")]
    found = set()
    for source in sources:
        for link, _ in LINK.findall(source.read_text(encoding="utf-8")):
            path = _target(source, link, root)
            if path and path.parts[0] != "docs" and str(path) not in PAGES:
                if (root / path).is_file():
                    found.add(root / path)
    return found


def rewritten(text: str, uri: str, root: Path) -> str:
    """The text of a page with its links as they are in the site."""
    source = _source(uri, root)

    def link(match: re.Match[str]) -> str:
        path = _target(source, match[1], root)
        if path is None:
            return match[0]
        if path.parts[0] == "docs":
            target = Path(*path.parts[1:]).as_posix()
            if (root / path).is_dir():
                target += "/index.md"
        else:
            target = PAGES.get(path.as_posix()) or copied(path)
        target = target.replace(".ipynb", ".md")
        return f"]({os.path.relpath(target, Path(uri).parent)}{match[2] or ''})"

    return LINK.sub(link, text)
