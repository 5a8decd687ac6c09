"""How much memory is mixed into attention, question by question: alpha, and what was retrieved.

Source: UniKE Sec. 3.3 and Fig. 4b, where alpha is said to be high for what concerns the edit and
low elsewhere. Each case is edited once, alone; then every probe of it is asked, and what the live
patch decided from the prompt is read: alpha per block, which entries were retrieved, and how much
of the attention to the memory the edit's own entries get.

`rank` of two kinds is the share of pairs (a question about the edit, one of the other kind, same
case) in which the first has the higher alpha: 0.5 says that alpha does not tell them apart.

Shapes: B questions of a batch, K retrieved entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Bar, Bars, Figure, Findings, Spread, Spreads, Table, Tone, Value
from errata.core.kinds import KINDS, TARGET_KINDS, family, label
from errata.core.model.backbone import Backbone
from errata.core.types import Case, Probe
from errata.evaluation.bootstrap import Bootstrap
from errata.patches.rows import Rows

BATCH = 64
#: kinds whose questions are about the edited fact itself
SAME_FACT = family("edit", "generality")
#: kinds against which alpha of the edited fact is ranked
OTHERS = {"near": family("near_locality"), "far": family("far_locality")}
TEXT = "every text-only one"


@dataclass(frozen=True)
class AlphaRecord:
    """One question at one block. own_weight: of the edit's own entries, in all attention weight."""

    case: str
    kind: str
    group: str
    text_only: bool
    block: int
    alpha: float
    own_found: bool
    own_weight: float
    cosine: float
    entries: int


class AlphaAnalysis(Analysis):
    """The distribution of alpha, of retrieved own entries, and of the best cosine, per kind."""

    name = "alpha"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """layers: blocks to show, from the end where negative; all that decide when empty."""

        layers: tuple[int, ...] = ()

    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec for an editor whose patches mix in no memory."""
        if subject.editor is None:
            raise BadSpec("analysis 'alpha' looks at an editor's patches. Name one with --editor.")
        layers = {subject.backbone.layer(i) for i in self.config.layers}
        seen = [s for s in observed(subject) if not layers or s.block in layers]
        if not seen:
            what = f"at block {sorted(layers)}" if layers else "as it is set"
            raise BadSpec(
                f"editor '{subject.editor.name}', {what}, mixes no memory into attention, so there "
                "is no alpha to see. Choose one that does, such as unike with extrinsic=latent."
            )
        told = Told(seen)
        return Findings(
            _figures(told, subject),
            (_every(seen), told.table()),
            {"cases": told.cases, "blocks": told.blocks, "rank": told.ranks()},
            (*told.lines(), *first_look(told.cases, "cases")),
        )


def observed(subject: Subject) -> Iterator[AlphaRecord]:
    """Edits the cases in rows, one edit each, and asks each its probes."""
    assert subject.editor is not None
    bb, done = subject.backbone, 0
    for start in range(0, len(subject.cases), subject.rows):
        part = subject.cases[start : start + subject.rows]
        found = subject.editor.edit_rows(
            bb, [c.edit for c in part], [subject.state] * len(part), seed=subject.seed
        )
        with bb.applied(Rows([f.patch for f in found])):
            yield from _asked(bb, part)
        done += len(part)
        subject.progress("editing and asking", done, len(subject.cases))


def _asked(backbone: Backbone, cases: Sequence[Case]) -> Iterator[AlphaRecord]:
    asked = [(row, p) for row, c in enumerate(cases) for p in c.probes]
    asked.sort(key=lambda a: (bool(a[1].prompt.images), len(a[1].prompt.text)))
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        rows = [row for row, _ in part]
        batch = backbone.encode([p.prompt for _, p in part], rows=rows)
        with torch.no_grad(), backbone.ask(batch, rows=torch.tensor(rows)) as question:
            for hook in backbone.hooks.running:
                for block, told in hook.decided(question.ctx).items():
                    yield from _of_block(block, told, [(cases[r].id, p) for r, p in part])


def _of_block(
    block: int, told: Mapping[str, torch.Tensor], asked: Sequence[tuple[str, Probe]]
) -> Iterator[AlphaRecord]:
    own = told["own"] & told["used"]
    weight = (told["weight"] * own).sum(1).tolist()
    cosine = told["cosine"][:, 0].tolist() if told["cosine"].shape[1] else [0.0] * len(asked)
    columns = (told["alpha"].tolist(), own.any(1).tolist(), weight, cosine)
    for (case, probe), alpha, found, w, c in zip(asked, *columns, strict=True):
        yield AlphaRecord(
            case, probe.kind, probe.group, not probe.prompt.images, block, alpha, found, w, c,
            int(told["own"].shape[1]),
        )  # fmt: skip


class Told:
    """The questions by kind and block, and what can be said of them."""

    def __init__(self, seen: Sequence[AlphaRecord]) -> None:
        self.blocks = sorted({s.block for s in seen})
        self.cases = len({s.case for s in seen})
        self.boot = Bootstrap(sorted({s.case for s in seen}))
        self.entries = max(s.entries for s in seen)
        order = {k: i for i, k in enumerate(KINDS)}
        groups = {
            (s.kind not in TARGET_KINDS, order.get(s.kind, len(order)), s.group, s.kind)
            for s in seen
        }
        self.kinds = [(kind, group) for *_, group, kind in sorted(groups)]
        self.by: dict[tuple[str, int], list[AlphaRecord]] = {}
        for s in seen:
            self.by.setdefault((label(s.kind, s.group), s.block), []).append(s)
            if s.text_only:
                self.by.setdefault((TEXT, s.block), []).append(s)

    @property
    def labels(self) -> dict[str, Tone]:
        """Every row of a picture, and its colour."""
        tones: dict[str, Tone] = {
            label(k, g): "changes" if k in TARGET_KINDS else "stays" for k, g in self.kinds
        }
        if any(name == TEXT for name, _ in self.by):
            tones[TEXT] = "soft"
        return tones

    def rows(self, name: str, block: int) -> list[AlphaRecord]:
        return self.by.get((name, block), [])

    def mean(self, rows: Sequence[AlphaRecord], of: Callable[[AlphaRecord], float]) -> Value:
        """The mean over questions, with an interval over cases."""
        units: dict[str, list[float]] = {}
        for s in rows:
            units.setdefault(s.case, []).append(of(s))
        found = self.boot.mean([units], [1.0])
        assert found is not None
        return Value(found.value, *(found.ci95 or (None, None)))

    def highest(self, of: Callable[[AlphaRecord], float]) -> float:
        """A round end for an axis of means, above every interval, at most 1."""
        tops = [
            v.high or v.value
            for name in self.labels
            for block in self.blocks
            if (rows := self.rows(name, block))
            for v in (self.mean(rows, of),)
        ]
        return next((h for h in (0.1, 0.2, 0.5) if max(tops, default=1.0) <= h), 1.0)

    def rank(self, block: int, kinds: Sequence[str]) -> tuple[Value, int] | None:
        """(share of pairs within a case in which the edited fact has the higher alpha, cases)."""
        sides: dict[str, tuple[list[float], list[float]]] = {}
        for name in self.labels:
            for s in self.rows(name, block) if name != TEXT else ():
                if s.kind in SAME_FACT or s.kind in kinds:
                    sides.setdefault(s.case, ([], []))[s.kind in kinds].append(s.alpha)
        units: dict[str, list[float]] = {}
        for case, (mine, others) in sides.items():
            if mine and others:
                more = np.sign(np.subtract.outer(mine, others)) / 2 + 0.5
                units[case] = [float(more.mean())]
        found = self.boot.mean([units], [1.0]) if units else None
        if found is None:
            return None
        return Value(found.value, *(found.ci95 or (None, None))), len(units)

    def ranks(self) -> dict[str, Any]:
        """JSON-ready: block -> near, far -> value, ci95, n."""
        out: dict[str, Any] = {}
        for block in self.blocks:
            for name, kinds in OTHERS.items():
                found = self.rank(block, kinds)
                if found is not None:
                    value, n = found
                    out.setdefault(str(block), {})[name] = {
                        "value": value.value, "ci95": [value.low, value.high], "n": n,
                    }  # fmt: skip
        return out

    def lines(self) -> tuple[str, ...]:
        out = []
        for block in self.blocks:
            edit = self.rows(label("reliability", ""), block)
            shown = [f"alpha on the edit {_shown(self.mean(edit, _alpha))}"] if edit else []
            shown += [f"own entries found {_shown(self.mean(edit, _found))}"] if edit else []
            shown += self.notes(block)
            out.append(f"block {block}: " + "; ".join(shown))
        return tuple(out)

    def notes(self, block: int) -> tuple[str, ...]:
        found = {name: self.rank(block, kinds) for name, kinds in OTHERS.items()}
        return tuple(
            f"ranked above {name}: {_shown(r[0])}, n = {r[1]}" for name, r in found.items() if r
        )

    def table(self) -> Table:
        columns = (
            *("kind", "group", "block", "questions", "cases"),
            *("alpha", "alpha_low", "alpha_high", "alpha_sd", "alpha_q25", "alpha_q50"),
            *("alpha_q75", "own_found", "own_found_low", "own_found_high", "own_weight"),
            *("own_weight_low", "own_weight_high", "cosine", "cosine_low", "cosine_high"),
        )
        named = [(*k, label(*k)) for k in self.kinds] + [("text-only", "", TEXT)]
        out = []
        for kind, group, name in named:
            for block in self.blocks:
                if rows := self.rows(name, block):
                    out.append((kind, group, block, *self._numbers(rows)))
        return Table("alpha", columns, out)

    def _numbers(self, rows: Sequence[AlphaRecord]) -> list[float | int | None]:
        alpha = np.array([s.alpha for s in rows])
        parts = [self.mean(rows, of) for of in (_alpha, _found, _weight, _cosine)]
        flat = [[v.value, v.low, v.high] for v in parts]
        spread = [round(float(alpha.std()), 6)]
        spread += [round(float(q), 6) for q in np.quantile(alpha, (0.25, 0.5, 0.75))]
        counts = [len(rows), len({s.case for s in rows})]
        return [*counts, *flat[0], *spread, *flat[1], *flat[2], *flat[3]]


def _alpha(s: AlphaRecord) -> float:
    return s.alpha


def _found(s: AlphaRecord) -> float:
    return float(s.own_found)


def _weight(s: AlphaRecord) -> float:
    return s.own_weight


def _cosine(s: AlphaRecord) -> float:
    return s.cosine


def _shown(value: Value) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.2f}"
    return f"{value.value:.2f} ({value.low:.2f}–{value.high:.2f})"


def _every(seen: Sequence[AlphaRecord]) -> Table:
    columns = (
        *("case", "kind", "group", "text_only", "block", "alpha"),
        *("own_found", "own_weight", "cosine"),
    )
    return Table(
        "alpha-questions",
        columns,
        [
            (
                *(s.case, s.kind, s.group, int(s.text_only), s.block, round(s.alpha, 6)),
                *(int(s.own_found), round(s.own_weight, 6), round(s.cosine, 6)),
            )
            for s in seen
        ],
    )


def _figures(told: Told, subject: Subject) -> tuple[Figure, ...]:
    assert subject.editor is not None
    passed = ", ".join(f"{k}={v}" for k, v in subject.editor.passed.items())
    where = (
        f"{subject.editor.name}{f' ({passed})' if passed else ''} on {subject.backbone.name}, "
        f"{subject.benchmark}: {told.cases} cases, one edit each. "
    )
    columns = 2 if len(told.blocks) > 1 else 1

    def spreads(
        of: Callable[[AlphaRecord], float], low: float, *, notes: bool
    ) -> tuple[Spreads, ...]:
        return tuple(
            Spreads(
                f"block {block}",
                tuple(
                    Spread(name, tuple(of(s) for s in told.rows(name, block)), tone)
                    for name, tone in told.labels.items()
                    if told.rows(name, block)
                ),
                low,
                1.0,
                told.notes(block) if notes else (),
            )
            for block in told.blocks
        )

    def bars(of: Callable[[AlphaRecord], float], high: float = 1.0) -> tuple[Bars, ...]:
        return tuple(
            Bars(
                f"block {block}",
                tuple(
                    Bar(name, told.mean(rows, of), tone, len(rows))
                    for name, tone in told.labels.items()
                    if (rows := told.rows(name, block))
                ),
                high,
            )
            for block in told.blocks
        )

    lowest = min((s.cosine for group in told.by.values() for s in group), default=0.0)
    box = "Line: median; box: quartiles; n: questions. "
    over = "Whiskers: 95 % intervals over cases; n: questions. "
    figures = [
        Figure(
            "alpha", "Share of the memory in attention (alpha)",
            spreads(_alpha, 0.0, notes=True), columns,
            where + box + "Ranked above: how often a question about the edited fact has a higher "
            "alpha than a near (far) one of the same case; 0.5 is chance.",
        ),
        Figure(
            "alpha-cosine", "Cosine of the nearest memory entry",
            spreads(_cosine, 0.0 if lowest >= 0 else -1.0, notes=False), columns, where + box,
        ),
    ]  # fmt: skip
    if any(s.own_found for group in told.by.values() for s in group):
        k = f"the {told.entries} retrieved"
        figures += [
            Figure(
                "alpha-own", f"The edit's own entries are among {k}",
                bars(_found), columns, where + over,
            ),
            Figure(
                "alpha-own-weight", f"Weight of the edit's own entries among {k}",
                bars(_weight, told.highest(_weight)), columns,
                where + over + "Attention of the last prompt token, mean over heads; one entry of "
                f"{told.entries} with an equal share has {100 / told.entries:.1f}.",
            ),
        ]  # fmt: skip
    return tuple(figures)
