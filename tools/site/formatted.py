"""Text and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def code(text: object) -> str:
    return f"`{text}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table. Line breaks and bars in cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in lines)


def _cell(value: Any) -> str:
    """Bars are escaped, but not in code: there Python-Markdown would show the backslash."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", str(value)))
    return "".join(p if p.startswith("`") else re.sub(r"(?<!\\)\|", r"\\|", p) for p in parts)


def from_docstring(text: str) -> str:
    """A docstring as Markdown: lists and indented code keep their form, angle brackets are text."""
    lines = []
    previous = ""
    for line in text.splitlines():
        begins = re.match(r"- ", line)
        if begins and previous.strip() and not re.match(r"- |  ", previous):
            lines.append("")
        lines.append(line if line.startswith("    ") else re.sub(r"<", "&lt;", line))
        previous = line
    return "\n".join(lines)
