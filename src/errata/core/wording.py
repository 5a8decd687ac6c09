"""What kinds of questions are called in pictures and tables."""

from __future__ import annotations

WORDS = {
    "reliability": "the edit",
    "t_generality": "rephrase",
    "m_generality": "other image",
    "portability": "what follows",
    "near_locality": "near",
    "t_locality": "far, text",
    "m_locality": "far, image",
}


def label(kind: str, group: str) -> str:
    """What a kind of question, or one group of it, is called in a picture."""
    word = WORDS.get(kind, kind.replace("_", " "))
    if kind in ("t_locality", "m_locality") and group in ("", "far"):
        return word
    group = group.replace("_", " ")
    if group.startswith(word):
        return group
    return f"{word}: {group}" if group else word
