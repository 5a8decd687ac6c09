"""The parts of the page that are HTML of our own. All texts are escaped."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image as Pillow

from errata.core.formats.counts import counted
from errata.core.types import Image
from errata.io.images import load_image
from errata.ui.outcome import HEADINGS, Outcome

SIDE = 160  # pixels of a picture in the page at most


def outcome_html(outcome: Outcome) -> str:
    """The sentence, the table of answers and the pictures of a correction."""
    template = _templates().get_template("outcome.html.jinja")
    return str(template.render(outcome=outcome, headings=HEADINGS, thumb=thumb))


def line_html(text: str, kind: str) -> str:
    """One line for the reader. kind: `good`, `bad` or `plain`; a bad one is read out at once."""
    role = "alert" if kind == "bad" else "status"
    return str(
        Markup('<p class="line {}" role="{}">{}</p>').format(kind, role, escape(text))
        if text
        else ""
    )


def answer_html(text: str, name: str, corrections: int) -> str:
    """corrections: how many are in use."""
    used = f"with {counted(corrections, 'correction')} in use" if corrections else "as it is"
    line = Markup('<p class="answer" role="status"><span>{}, {}, says</span> <b>{}</b></p>')
    return str(line.format(name, used, text or "(nothing)"))


def picture_html(image: Image | None) -> str:
    if image is None:
        return '<div class="picture none">No picture: the question is asked alone.</div>'
    line = Markup('<div class="picture"><img src="{}" alt="the picture that is asked about"></div>')
    return str(line.format(thumb(image, 320)))


def head_html(name: str) -> str:
    return str(
        Markup(
            "<header><h1>Correct what <em>{}</em> says</h1><p>Ask it something. Say what the "
            "answer should be. See what changed, and take it back whenever you like: the model "
            "itself is never changed.</p></header>"
        ).format(name)
    )


def thumb(picture: Image | Pillow.Image, side: int = SIDE) -> str:
    """A PNG of at most `side` pixels as a data URI."""
    shown = load_image(picture) if isinstance(picture, Image) else picture.convert("RGB")
    if max(shown.size) > side:
        shown = shown.copy()
        shown.thumbnail((side, side))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@functools.cache
def _templates() -> Any:
    loader = jinja2.PackageLoader("errata.ui", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def style() -> str:
    """The style sheet of the page."""
    return str(_templates().get_template("style.css.jinja").render())
