"""Cases that a report holds compressed, and shows when somebody looks for them.

A report opens in a moment because only its first cases are part of the page. The others are HTML in
gzip and base64, some dozens a chunk, with one index of what can be searched and filtered.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from errata.report.gallery import CaseCard

CHUNK = 25
"""Cases of one chunk: what is unpacked to show one of them."""


@dataclass(frozen=True, slots=True)
class PackedCases:
    """index: one record a case; chunks: JSON lists of their HTML. All as base64 of gzip."""

    count: int
    index: str
    chunks: tuple[str, ...]


def pack(cards: Sequence[CaseCard], html: Callable[[CaseCard], str]) -> PackedCases | None:
    """None for no cases. html: a case as it stands in the page."""
    if not cards:
        return None
    parts = [cards[i : i + CHUNK] for i in range(0, len(cards), CHUNK)]
    chunks = tuple(_packed([html(card) for card in part]) for part in parts)
    return PackedCases(len(cards), _packed([_record(card) for card in cards]), chunks)


def _record(card: CaseCard) -> dict[str, Any]:
    """What is searched and filtered. answers: [kind, method, protocol, verdict, count]."""
    verdicts = {None: "unscored", True: "right", False: "wrong"}
    counts = Counter(
        (q.kind, a.method, a.protocol, verdicts[a.right]) for q in card.questions for a in q.answers
    )
    words = [card.id, card.prompt, card.old, card.target]
    words += [word for q in card.questions for word in (q.text, q.wanted, q.before)]
    words += [a.text for q in card.questions for a in q.answers]
    return {
        "anchor": card.anchor,
        "where": card.where,
        "text": "\n".join(dict.fromkeys(words)).lower(),
        "answers": [[*key, count] for key, count in counts.items()],
    }


def _packed(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
