"""Normalises answers for comparison, and finds an answer in a text."""

from __future__ import annotations

import re
import unicodedata

#: Scripts that are written without spaces between words.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")
DENIED = re.compile(
    r"(?:\b(?:not|never|isn't|isn’t|no longer|instead of|rather than)\s+(?:an?\s+|the\s+)?|\bnon-)$"
)


def normalise(text: str) -> str:
    """NFC, stripped, casefolded, without one trailing full stop."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).strip().casefold())
    return text.removesuffix(".").rstrip()


def mentions(text: str, wanted: str) -> bool:
    """Whether `wanted` stands in `text` as whole words, not negated directly ("not red")."""
    text = unicodedata.normalize("NFC", text).casefold()
    wanted = unicodedata.normalize("NFC", wanted).strip().casefold()
    for match in re.finditer(re.escape(wanted), text) if wanted else ():
        before, after = text[: match.start()], text[match.end() :]
        whole = _edge(before[-1:], wanted[0]) and _edge(after[:1], wanted[-1], behind=True)
        if whole and not DENIED.search(before):
            return True
    return False


def _edge(outer: str, inner: str, *, behind: bool = False) -> bool:
    """Whether a word boundary lies between a neighbour and the first or last character."""
    if not outer or not (_letter(outer) and _letter(inner)):
        return True
    if behind and unicodedata.category(outer)[0] == "M":
        return False
    return _unspaced(outer) and _unspaced(inner)


def _letter(c: str) -> bool:
    """Whether a character is part of a word; a combining mark is part of its letter."""
    return c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M"


def _unspaced(c: str) -> bool:
    return unicodedata.name(c, "").startswith(UNSPACED)
