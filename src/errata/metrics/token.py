"""Teacher-forced token accuracy, what VisEdit, DualEdit and EasyEdit print.

Target kinds: the fraction of target tokens that are the argmax given the target's earlier tokens.
Locality kinds: the fraction of the gold answer's tokens whose argmax did not change; and as
`token_own`, the fraction of the model's own earlier answer that is still the argmax. High even for
an unedited model on long targets (captions): never compare it with `exact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.core.metric import Metric, ScoredProbe
from errata.core.types import LOCALITY_KINDS, TARGET_KINDS, Answer, Probe
from errata.metrics._rules import argmax_agreement, token_accuracy


class Token(Metric):
    """`token`, and `token_own` for locality kinds. Unscored: answers without teacher forcing."""

    name = "token"
    kinds = TARGET_KINDS | LOCALITY_KINDS

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind in TARGET_KINDS:
            return token_accuracy(after.reference)
        if probe.kind not in LOCALITY_KINDS:
            return None
        where = f"case {after.case}, probe {probe.id}"
        return argmax_agreement(before.reference, after.reference, where)

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        yield from super().score_case(rows)
        for row in rows:
            if row.probe.kind in LOCALITY_KINDS:
                group = f"/{row.probe.group}" if row.probe.group else ""
                # An own answer is greedy, so its ids are what the unedited model put first.
                yield f"{row.probe.kind}{group}.token_own", token_accuracy(row.after.own)
