"""Alpha: how much memory is mixed into attention for each question, and what was retrieved.

Source: UniKE Sec. 3.3 and Fig. 4b. The paper says that alpha is high for questions about the edit
and low for others. Here each case is edited alone and all its probes are asked. The patch's
decisions are recorded: alpha per block, the retrieved entries, and the share of the attention to
the memory that the edit's own entries get.

`rank` is the share of pairs (a question about the edit, one of another kind, of the same case) in
which the first has the higher alpha; 0.5 means that alpha does not tell them apart.

Shapes: B questions of a batch, K retrieved entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from errata.analyses._summary import Summary, cells, text, with_ends
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Bar, Bars, Figure, Findings, Spread, Spreads, Table, Tone, Value
from errata.core.formats.counts import counted
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.kinds import KINDS, TARGET_KINDS, family, label
from errata.core.model.backbone import Backbone
from errata.core.types import Case, Probe
from errata.patches.rows import Rows

BATCH = 64
#: kinds whose questions are about the edited fact itself
SAME_FACT = family("edit", "generality")
#: kinds against which alpha of the edited fact is ranked
OTHERS = {"near": family("near_locality"), "far": family("far_locality")}
TEXT = "every text-only one"


@dataclass(frozen=True)
class AlphaRecord:
    """One question at one block.

    own_found: whether an entry of the edit itself was retrieved; own_weight: its attention weight.
    cosine: of the nearest entry. entries: number of retrieved entries.
    """

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
    """Distributions of alpha, retrieved own entries and the nearest cosine, by kind of question."""

    name = "alpha"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """layers: blocks to show, negative from the end; () = all that have a memory."""

        layers: tuple[int, ...] = ()

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec for an editor whose patches have no memory."""
        if subject.editor is None:
            raise BadSpec("analysis 'alpha' looks at an editor's patches. Name one with --editor.")
        layers = {subject.backbone.layer(i) for i in self.config.layers}
        records = [r for r in observed(subject) if not layers or r.block in layers]
        if not records:
            what = f"at block {sorted(layers)}" if layers else "as it is set"
            raise BadSpec(
                f"editor '{subject.editor.name}', {what}, mixes no memory into attention, so there "
                "is no alpha to see. Choose one that does, such as unike with extrinsic=latent."
            )
        summary = AlphaSummary(records)
        return Findings(
            _figures(summary, subject),
            (_all_questions(records), summary.table()),
            {"cases": summary.cases, "blocks": summary.blocks, "rank": summary.ranks()},
            (*summary.lines(), *first_look(summary.cases, "case")),
        )


def observed(subject: Subject) -> Iterator[AlphaRecord]:
    """Edits each case alone, one case per row, and asks its probes."""
    assert subject.editor is not None
    bb, done = subject.backbone, 0
    for start in range(0, len(subject.cases), subject.rows):
        part = subject.cases[start : start + subject.rows]
        results = subject.editor.edit_rows(
            bb, [c.edit for c in part], [subject.state] * len(part), seed=subject.seed
        )
        with bb.applied(Rows([result.patch for result in results])):
            yield from _ask(bb, part)
        done += len(part)
        subject.progress("editing and asking", done, len(subject.cases))


def _ask(backbone: Backbone, cases: Sequence[Case]) -> Iterator[AlphaRecord]:
    probes = [(row, p) for row, c in enumerate(cases) for p in c.probes]
    probes.sort(key=lambda q: (bool(q[1].prompt.images), len(q[1].prompt.text)))
    for start in range(0, len(probes), BATCH):
        part = probes[start : start + BATCH]
        rows = [row for row, _ in part]
        batch = backbone.encode([p.prompt for _, p in part], rows=rows)
        with torch.no_grad(), backbone.ask(batch, rows=torch.tensor(rows)) as question:
            for hook in backbone.hooks.running:
                for block, decision in hook.decided(question.ctx).items():
                    yield from _of_block(block, decision, [(cases[r].id, p) for r, p in part])


def _of_block(
    block: int, decision: Mapping[str, torch.Tensor], questions: Sequence[tuple[str, Probe]]
) -> Iterator[AlphaRecord]:
    own = decision["own"] & decision["used"]
    weight = (decision["weight"] * own).sum(1).tolist()
    cosines = decision["cosine"]
    cosine = cosines[:, 0].tolist() if cosines.shape[1] else [0.0] * len(questions)
    columns = (decision["alpha"].tolist(), own.any(1).tolist(), weight, cosine)
    for (case, probe), alpha, is_found, w, c in zip(questions, *columns, strict=True):
        yield AlphaRecord(
            case, probe.kind, probe.group, not probe.prompt.images, block, alpha, is_found, w, c,
            int(decision["own"].shape[1]),
        )  # fmt: skip


class AlphaSummary(Summary):
    """The records by kind of question and block."""

    def __init__(self, records: Sequence[AlphaRecord]) -> None:
        cases = sorted({r.case for r in records})
        super().__init__(cases)
        self.blocks = sorted({r.block for r in records})
        self.cases = len(cases)
        self.entries = max(r.entries for r in records)
        order = {k: i for i, k in enumerate(KINDS)}
        groups = {
            (r.kind not in TARGET_KINDS, order.get(r.kind, len(order)), r.group, r.kind)
            for r in records
        }
        self.kinds = [(kind, group) for *_, group, kind in sorted(groups)]
        self.by: dict[tuple[str, int], list[AlphaRecord]] = {}
        for r in records:
            self.by.setdefault((label(r.kind, r.group), r.block), []).append(r)
            if r.text_only:
                self.by.setdefault((TEXT, r.block), []).append(r)

    @property
    def labels(self) -> dict[str, Tone]:
        """Every row of a panel, and its tone."""
        tones: dict[str, Tone] = {
            label(k, g): "changes" if k in TARGET_KINDS else "stays" for k, g in self.kinds
        }
        if any(name == TEXT for name, _ in self.by):
            tones[TEXT] = "soft"
        return tones

    def rows(self, name: str, block: int) -> list[AlphaRecord]:
        return self.by.get((name, block), [])

    def mean_of(self, rows: Sequence[AlphaRecord], of: Callable[[AlphaRecord], float]) -> Value:
        """The mean over questions, with an interval over cases."""
        by_case: dict[str, list[float]] = {}
        for r in rows:
            by_case.setdefault(r.case, []).append(of(r))
        return self.value(by_case, within=(0.0, 1.0))

    def highest(self, of: Callable[[AlphaRecord], float]) -> float:
        """A round upper end for an axis of means, above every interval, at most 1."""
        tops = [
            v.high or v.value
            for name in self.labels
            for block in self.blocks
            if (rows := self.rows(name, block))
            for v in (self.mean_of(rows, of),)
        ]
        return next((h for h in (0.1, 0.2, 0.5) if max(tops, default=1.0) <= h), 1.0)

    def rank(self, block: int, kinds: Sequence[str]) -> tuple[Value, int] | None:
        """(share of pairs within a case in which the edited fact has the higher alpha, cases)."""
        sides: dict[str, tuple[list[float], list[float]]] = {}
        for name in self.labels:
            for r in self.rows(name, block) if name != TEXT else ():
                if r.kind in SAME_FACT or r.kind in kinds:
                    sides.setdefault(r.case, ([], []))[r.kind in kinds].append(r.alpha)
        shares: dict[str, list[float]] = {}
        for case, (same, others) in sides.items():
            if same and others:
                higher = np.sign(np.subtract.outer(same, others)) / 2 + 0.5
                shares[case] = [float(higher.mean())]
        return (self.value(shares, within=(0.0, 1.0)), len(shares)) if shares else None

    def ranks(self) -> dict[str, Any]:
        """JSON-ready: block -> near, far -> value, ci95, n."""
        out: dict[str, Any] = {}
        for block in self.blocks:
            for name, kinds in OTHERS.items():
                rank = self.rank(block, kinds)
                if rank is not None:
                    value, n = rank
                    out.setdefault(str(block), {})[name] = {
                        "value": value.value, "ci95": [value.low, value.high], "n": n,
                    }  # fmt: skip
        return out

    def lines(self) -> tuple[str, ...]:
        out = []
        for block in self.blocks:
            edit = self.rows(label("reliability", ""), block)
            parts = [f"alpha on the edit {text(self.mean_of(edit, _alpha))}"] if edit else []
            parts += [f"own entries found {text(self.mean_of(edit, _found))}"] if edit else []
            out.append(f"block {block}: " + "; ".join((*parts, *self.notes(block))))
        return tuple(out)

    def notes(self, block: int) -> tuple[str, ...]:
        ranks = {name: self.rank(block, kinds) for name, kinds in OTHERS.items()}
        return tuple(
            f"ranked above {name}: {text(r[0])}, n = {r[1]}" for name, r in ranks.items() if r
        )

    def table(self) -> Table:
        columns = (
            *("kind", "group", "block", "questions", "cases", *with_ends("alpha")),
            *("alpha_sd", "alpha_q25", "alpha_q50", "alpha_q75"),
            *with_ends("own_found", "own_weight", "cosine"),
        )
        groups = [(*k, label(*k)) for k in self.kinds] + [("text-only", "", TEXT)]
        out = []
        for kind, group, name in groups:
            for block in self.blocks:
                if rows := self.rows(name, block):
                    out.append((kind, group, block, *self._numbers(rows)))
        return Table("alpha", columns, out)

    def _numbers(self, rows: Sequence[AlphaRecord]) -> list[float | int | None]:
        alpha = np.array([r.alpha for r in rows])
        mean, *others = (cells(self.mean_of(rows, of)) for of in (_alpha, _found, _weight, _cosine))
        spread = [round(float(alpha.std()), 6)]
        spread += [round(float(q), 6) for q in np.quantile(alpha, (0.25, 0.5, 0.75))]
        counts = [len(rows), len({r.case for r in rows})]
        return [*counts, *mean, *spread, *(x for triple in others for x in triple)]


def _alpha(r: AlphaRecord) -> float:
    return r.alpha


def _found(r: AlphaRecord) -> float:
    return float(r.own_found)


def _weight(r: AlphaRecord) -> float:
    return r.own_weight


def _cosine(r: AlphaRecord) -> float:
    return r.cosine


def _all_questions(records: Sequence[AlphaRecord]) -> Table:
    columns = (
        *("case", "kind", "group", "text_only", "block", "alpha"),
        *("own_found", "own_weight", "cosine"),
    )
    return Table(
        "alpha-questions",
        columns,
        [
            (
                *(r.case, r.kind, r.group, int(r.text_only), r.block, round(r.alpha, 6)),
                *(int(r.own_found), round(r.own_weight, 6), round(r.cosine, 6)),
            )
            for r in records
        ],
    )


def _figures(summary: AlphaSummary, subject: Subject) -> tuple[Figure, ...]:
    assert subject.editor is not None
    passed = ", ".join(f"{k}={v}" for k, v in subject.editor.passed.items())
    where = (
        f"{subject.editor.name}{f' ({passed})' if passed else ''} on {subject.backbone.name}, "
        f"{subject.benchmark}: {counted(summary.cases, 'case')}, one edit each. "
    )
    columns = 2 if len(summary.blocks) > 1 else 1

    def spreads(
        of: Callable[[AlphaRecord], float], low: float, *, notes: bool
    ) -> tuple[Spreads, ...]:
        return tuple(
            Spreads(
                f"block {block}",
                tuple(
                    Spread(name, tuple(of(r) for r in summary.rows(name, block)), tone)
                    for name, tone in summary.labels.items()
                    if summary.rows(name, block)
                ),
                low,
                1.0,
                summary.notes(block) if notes else (),
            )
            for block in summary.blocks
        )

    def bars(of: Callable[[AlphaRecord], float], high: float = 1.0) -> tuple[Bars, ...]:
        return tuple(
            Bars(
                f"block {block}",
                tuple(
                    Bar(name, summary.mean_of(rows, of), tone, len(rows))
                    for name, tone in summary.labels.items()
                    if (rows := summary.rows(name, block))
                ),
                high,
            )
            for block in summary.blocks
        )

    lowest = min((r.cosine for group in summary.by.values() for r in group), default=0.0)
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
    if any(r.own_found for group in summary.by.values() for r in group):
        k = f"the {summary.entries} retrieved"
        figures += [
            Figure(
                "alpha-own", f"The edit's own entries are among {k}",
                bars(_found), columns, where + over,
            ),
            Figure(
                "alpha-own-weight", f"Weight of the edit's own entries among {k}",
                bars(_weight, summary.highest(_weight)), columns,
                where + over + "Attention of the last prompt token, mean over heads; one entry of "
                f"{summary.entries} with an equal share has {100 / summary.entries:.1f}.",
            ),
        ]  # fmt: skip
    return tuple(figures)
