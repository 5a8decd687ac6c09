"""Teacher-forced token accuracy, what VisEdit, DualEdit and EasyEdit print.

Target kinds: the fraction of target tokens that are the argmax given the target's earlier tokens.
Locality kinds: the fraction of the gold answer's tokens whose argmax did not change; and as
`token_own`, the fraction of the model's own earlier answer that is still the argmax. High even for
an unedited model on long targets (captions): never compare it with `exact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.core.kinds import ProbeKind
from errata.core.measure.metric import Metric, ScoredProbe, Scorer, kind_key
from errata.core.types import Answer, Probe
from errata.metrics._rules import argmax_agreement, token_accuracy


class Token(Metric):
    """`token`, and `token_own` for locality kinds. Unscored: answers without teacher forcing."""

    name = "token"
    forced = True
    heading = "Token"
    meaning = (
        "Teacher-forced token accuracy: the model is given the wanted answer, and its next-token "
        "choice is compared at each position. An unedited model can already score highly on long "
        "targets, so do not compare it with Exact."
    )
    means = True
    more_scorers = (
        Scorer(
            "token_own",
            "Token, own",
            "Teacher-forced on the model's own answer before the edit: the fraction of its tokens "
            "that are still the model's choice.",
        ),
    )

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.output == "answer"

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind_info.expects_target:
            return token_accuracy(after.reference)
        if not probe.kind_info.keeps_answer:
            return None
        where = f"case {after.case}, probe {probe.id}"
        return argmax_agreement(before.reference, after.reference, where)

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        yield from super().score_case(rows)
        for row in rows:
            if row.probe.kind_info.keeps_answer:
                # The answer before the edit is greedy, so its ids were the unedited model's argmax.
                yield f"{kind_key(row.probe)}.token_own", token_accuracy(row.after.own)
