"""SVG elements, and a panel of them with its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HEAD, NOTE = 26, 15
"""Height of a panel's title, of a line of notes. SVG user units, as all sizes here."""

GLYPH = 6.1
"""Mean width of a letter of a label."""


@dataclass(frozen=True)
class Element:
    """One SVG element; `text` is its content."""

    tag: str
    attributes: dict[str, Any]
    text: str = ""


@dataclass(frozen=True)
class DrawnPanel:
    """A panel: its elements, relative to its own corner, and its size."""

    elements: tuple[Element, ...]
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0


def with_notes(
    out: list[Element], notes: Sequence[str], width: float, y: float, heading: str
) -> DrawnPanel:
    """A panel that ends at `y`, with notes below it. heading: the panel's title, for its width."""
    for note in notes:
        y += NOTE
        out.append(text(0, y, note, "note"))
    letters = max((len(n) for n in notes), default=0) * GLYPH * 0.96
    return DrawnPanel(tuple(out), max(width, letters, len(heading) * GLYPH * 1.1), y + 4)


def title(heading: str) -> list[Element]:
    """The title of a panel; nothing for an empty one."""
    return [text(0, 13, heading, "heading")] if heading else []


def text(x: float, y: float, content: str, style: str, anchor: str = "start") -> Element:
    return Element("text", {"class": style, "x": x, "y": y, "text-anchor": anchor}, content)


def box(x: float, y: float, width: float, height: float, style: str) -> Element:
    return Element("rect", {"class": style, "x": x, "y": y, "width": width, "height": height})


def rounded(x: float) -> float:
    return round(float(x), 2)
