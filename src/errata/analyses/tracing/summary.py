"""Averages of causal tracing over facts: figure, tables, peaks and the lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errata.analyses._summary import Scores, Summary, cells, text
from errata.analyses.tracing.facts import GROUPS, LAST, LAST_SUBJECT
from errata.analyses.tracing.runs import ATTN, KINDS, MLP, STATES, FactTrace
from errata.core.figure import Figure, Heat, Panel, Table

WORDS = {
    STATES: "hidden state after the block",
    MLP: "FFN outputs in a window around the block",
    ATTN: "attention outputs in a window around the block",
}
SHORT = {STATES: "hidden state", MLP: "FFN", ATTN: "attention"}


class TracingSummary(Summary):
    """Mean effects per kind, group of tokens and block."""

    def __init__(self, traces: Sequence[FactTrace], layers: Sequence[int]) -> None:
        super().__init__([t.fact.case for t in traces])
        self.traces, self.layers = traces, layers
        self.effects = {k: {g: _effects(traces, k, g) for g in GROUPS} for k in KINDS}
        self.clean = self.value({t.fact.case: [t.clean] for t in traces})
        self.corrupted = self.value({t.fact.case: [t.corrupted] for t in traces})
        self.total = self.value({t.fact.case: [t.clean - t.corrupted] for t in traces})

    def peaks(self) -> dict[str, Any]:
        """kind -> group -> the block with the largest mean effect, and that effect.

        range: the 95 % interval of the block over resamples; agree: the share with the same block.
        """
        out: dict[str, Any] = {}
        for kind, by_group in self.effects.items():
            for group, rows in by_group.items():
                if not rows:
                    continue
                peak = self.peak(rows, self.layers)
                mean = self.at(rows, self.layers.index(peak["block"]))
                ends = [self.layers[i] for i in self.intervals.peak_range(rows)]
                out.setdefault(kind, {})[group] = {
                    **peak, "range": ends, "effect": mean.value, "low": mean.low,
                    "high": mean.high, "n": len(rows),
                }  # fmt: skip
        return out

    def suggested(self) -> int | None:
        """The block of the FFN's largest effect at the last subject token.

        None where that effect does not differ from 0.
        """
        peak = self.peaks()[MLP].get(LAST_SUBJECT)
        return peak["block"] if peak and peak["low"] is not None and peak["low"] > 0 else None

    def facts(self) -> dict[str, Any]:
        about = (("clean", self.clean), ("corrupted", self.corrupted), ("total", self.total))
        return {
            **{name: dict(zip(("value", "low", "high"), cells(v), strict=True))
               for name, v in about},
            "peaks": self.peaks(),
            "suggested layer": self.suggested(),
        }  # fmt: skip

    def lines(self) -> tuple[str, ...]:
        out = [
            f"average total effect {text(self.total)}: p(answer) {self.clean.value:.2f} clean, "
            f"{self.corrupted.value:.2f} with noise on the subject"
        ]
        peaks = self.peaks()
        for kind in KINDS:
            for group in (LAST_SUBJECT, LAST):
                if (p := peaks[kind].get(group)) is None:
                    continue
                mean = self.at(self.effects[kind][group], self.layers.index(p["block"]))
                out.append(
                    f"{SHORT[kind]}, {group}: largest effect {text(mean, 3)} at block {p['block']} "
                    f"(95 % interval {p['range'][0]}–{p['range'][1]}, n = {p['n']})"
                )
        best = self.suggested()
        if best is None:
            out.append("no block for --set layers: the FFN's effect at the last subject token is 0")
        else:
            out.append(
                f"the FFN at the last subject token matters most around block {best}: for editors "
                f"that change one FFN, --set layers=[{best}]"
            )
        return tuple(out)

    def figure(self, caption: str) -> Figure:
        panels: list[Panel] = []
        shown = [g for g in GROUPS if self.effects[STATES][g]]
        for kind in KINDS:
            values = tuple(self._means(self.effects[kind][g]) for g in shown)
            panels.append(
                Heat(WORDS[kind], tuple(shown), tuple(map(str, self.layers)), values,
                     middle=0.0, axis="block")
            )  # fmt: skip
        return Figure("tracing", "Which states carry the fact", tuple(panels), 1, caption)

    def _means(self, scores: Scores) -> tuple[float, ...]:
        return tuple(self.at(scores, i).value for i in range(len(self.layers)))

    def tables(self) -> tuple[Table, Table]:
        """Mean effects; and the probabilities of every fact."""
        rows = [
            (kind, group, layer, *cells(self.at(by_case, i)), len(by_case))
            for kind, by_group in self.effects.items()
            for group, by_case in by_group.items()
            if by_case
            for i, layer in enumerate(self.layers)
        ]
        facts = [
            (t.fact.case, len(t.fact.columns), round(t.clean, 6), round(t.corrupted, 6))
            for t in self.traces
        ]
        return (
            Table("tracing", ("restored", "tokens", "block", "effect", "low", "high", "n"), rows),
            Table("tracing-facts", ("case", "restored_tokens", "clean", "corrupted"), facts),
        )


def _effects(traces: Sequence[FactTrace], kind: str, group: str) -> Mapping[str, list[float]]:
    """case -> mean effect over its tokens of a group, per block; without cases that have none."""
    out = {}
    for t in traces:
        own = [c for c, column in enumerate(t.fact.columns) if t.fact.group(column) == group]
        if own:
            out[t.fact.case] = t.effects[kind][:, own].mean(1).tolist()
    return out
