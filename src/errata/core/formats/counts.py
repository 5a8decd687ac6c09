"""Numbers with their noun: 1 edit, 2 edits, 3 patches."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number and the noun, which is given for one and has a regular plural."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(('ch', 'sh', 's', 'x')) else 's'}"
