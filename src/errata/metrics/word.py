"""Whether a rationale states the target, as whole words: reasoning accuracy without chance hits.

The published score is a substring test, which finds "red" in "textured" and "wee" in "between".
Here a mention begins and ends at a word boundary, in any script; a denied one ("not red", "instead
of red") does not count. Sizes count by meaning, as published: any word of the target's cluster.
`old_word` is the same for the old answer: a rationale may state both. Where the prompt asks for
tagged steps, `recall_word` reads the first step only, which is the one that asks for the edited
fact, and `caption_word` the last, from which the image is generated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from errata.core.kinds import ProbeKind
from errata.core.measure.metric import Metric, ScoredProbe, Scorer, kind_key
from errata.core.text import mentions, normalise
from errata.core.types import Answer, Probe

SMALL = frozenset(
    "tiny small little miniature minuscule microscopic tiny-sized wee petite pea-sized pint-sized "
    "diminutive itty-bitty bitesize bite-sized compact".split()
)
LARGE = frozenset(
    "huge massive colossal giant gigantic enormous immense vast towering mammoth gargantuan "
    "building-sized skyscraper-sized house-sized behemoth titanic monumental oversized "
    "jumbo".split()
)
TAG = re.compile(r"\[([^\[\]\n]{1,60})\]")


class Word(Metric):
    """`word`, `old_word`, `recall_word` and `caption_word`. Unscored: an empty reference."""

    name = "word"
    heading = "Word"
    meaning = "The rationale states the target, as a whole word that is not denied."
    more_scorers = (
        Scorer("old_word", "Old word", "The rationale states the old answer."),
        Scorer("recall_word", "Word, step 1", "The first tagged step states the target."),
        Scorer("caption_word", "Word, caption", "The caption step states the target."),
    )

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.output == "rationale"

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        return _stated(after.text, probe.reference, probe)

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        yield from super().score_case(rows)
        for row in rows:
            probe, text = row.probe, row.after.text
            if not self.applies(probe.kind_info):
                continue
            head = kind_key(probe)
            if probe.view is not None and probe.view.old:
                yield f"{head}.old_word", _stated(text, probe.view.old, probe)
            if TAG.search(probe.prompt.text):
                recall, caption = steps(text)
                yield f"{head}.recall_word", _stated(recall, probe.reference, probe)
                yield f"{head}.caption_word", _stated(caption, probe.reference, probe)


def _stated(text: str, wanted: str, probe: Probe) -> float | None:
    plain = normalise(wanted)
    if not plain:
        return None
    category = probe.view.category if probe.view is not None else ""
    words = [wanted]
    if category == "size":
        words = next((sorted(c) for c in (SMALL, LARGE) if plain in c), words)
    return float(any(mentions(text, w) for w in words))


def steps(text: str) -> tuple[str, str]:
    """The first tagged step and the caption of a rationale; "" for a caption not reached.

    The prompt opens the first step, so a rationale may begin inside it or repeat its tag.
    """
    parts = TAG.split(text)  # text, tag, text, tag, text ...
    tagged = list(zip(parts[1::2], parts[2::2], strict=True))
    first = parts[0] if parts[0].strip() or not tagged else tagged[0][1]
    captions = [body for tag, body in tagged if "caption" in tag.casefold()]
    return first, captions[-1] if captions else ""
