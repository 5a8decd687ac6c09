"""When two answers are the same answer."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """NFC, stripped, casefolded, without one trailing full stop."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).strip().casefold())
    return text.removesuffix(".").rstrip()
