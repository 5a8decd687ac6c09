"""Gate: which key tells questions about an edit from other questions.

Source: DualEdit Fig. 4 (Shi et al. 2025): cosines of the mean visual, the mean textual, and the
last token's hidden state, between an edit and its rephrases, and between an edit and questions that
it must not change. The paper finds that the last token separates the two and the means do not. Its
last token is that of question AND gold answer: the same for the edit and its rephrases, another one
for all other questions. Shown are both means and every gate with a threshold: `leaky` is the
published key, `prompt` the last prompt token, which is there before an answer is.

Per key, block and kind of question: the AUC (how often an in-scope question, a rephrase or another
image of the same thing, is nearer to its edit than a question of that kind; over pairs of all
cases, as one threshold serves all), and the balanced accuracy with a threshold tuned on training
cases. The edit's own question, whose cosine is 1, is left out.

Shapes: B questions, T columns, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from errata.algorithms.gated_adapter import OUT_OF_SCOPE, site_behind
from errata.analyses._summary import Summary, cells, number, spaced, text, with_ends
from errata.core import registry
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Figure, Findings, Heat, Spread, Spreads, Table
from errata.core.formats.counts import counted
from errata.core.gate import Gate, TokenColumns
from errata.core.hooks.context import HookContext
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.kinds import family, label
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.model.recorder import EnoughRecorded, Recorder, run_until_enough
from errata.core.types import Case, Prompt
from errata.evaluation.statistics.intervals import Estimate, Intervals
from errata.training.optimise import generator

IN_SCOPE = family("generality")
ALL = "all, one threshold"
BATCH = 64

Cosines = dict[str, list[float]]
"""case -> cosines of its questions of one kind."""


@dataclass
class GateScores:
    """Cosines of one reading at one block: kind of question -> case -> cosines."""

    inside: dict[str, Cosines] = field(default_factory=dict)
    outside: dict[str, Cosines] = field(default_factory=dict)


Similar = dict[tuple[str, int], GateScores]
"""(reading, block) -> cosines."""


class VisualMean(Gate):
    """Cosine of the means over image tokens."""

    name = "visual"
    reads = "mean of the image tokens"

    def key(self, states_BTd: Tensor, columns: TokenColumns) -> Tensor:
        return _mean(states_BTd, columns.vision)


class TextMean(Gate):
    """Cosine of the means over the prompt's text tokens, without the first (begin) token."""

    name = "text"
    reads = "mean of the question's tokens"

    def key(self, states_BTd: Tensor, columns: TokenColumns) -> Tensor:
        at = torch.arange(columns.vision.shape[1], device=columns.vision.device)
        text_BT = (at < columns.lengths[:, None]) & ~columns.vision
        last_BT = at == columns.lengths[:, None] - 1
        return _mean(states_BTd, text_BT & (text_BT.cumsum(1) > 1) | last_BT)


def _mean(states_BTd: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, d]; NaN for an empty mask."""
    mask_BT1 = mask_BT[..., None]
    return (states_BTd.float() * mask_BT1).sum(1) / mask_BT1.sum(1)


def readings() -> dict[str, type[Gate]]:
    """What is compared: both means, then the gates with a threshold, first those without a leak."""
    gates = [g for g in registry.usable("gates").values() if not g.always_open]
    gates.sort(key=lambda g: (g.reads_answer, g.name))
    both: list[type[Gate]] = [VisualMean, TextMean]
    return {g.name: g for g in (*both, *gates)}


class KeyRecorder(Recorder):
    """`keys[site][reading]` [B, d]; NaN for a question without such tokens."""

    def __init__(self, sites: Sequence[str], batch: Batch) -> None:
        super().__init__(sites)
        self.columns = TokenColumns.of(batch)
        self.gates = {name: {s: gate(s) for s in sites} for name, gate in readings().items()}
        self.keys: dict[str, dict[str, Tensor]] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        columns = self.columns.to(y.device)
        self.keys[site] = {
            name: gates[site].key(y, columns).float().cpu() for name, gates in self.gates.items()
        }
        if self.sites <= self.keys.keys():
            raise EnoughRecorded
        return y


class GateAnalysis(Analysis):
    """Similarities of edits and questions, and how well a gate with these keys decides."""

    name = "gate"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """layers: blocks behind which keys are read, negative from the end; () = all.

        shown: number of these blocks whose distributions are drawn, evenly spaced. train: number of
        training cases on which thresholds are tuned.
        """

        layers: tuple[int, ...] = ()
        shown: int = 3
        train: int = 200

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without in-scope or without other questions."""
        bb, c = subject.backbone, self.config
        layers = sorted({bb.layer(i) for i in c.layers}) or list(range(bb.depth))
        cases = [x for x in subject.cases if x.edit.target.strip()]
        pool = [x for x in subject.split("train") if x.edit.target.strip()]
        order = torch.randperm(len(pool), generator=generator(subject.seed, "gate")).tolist()
        train = [pool[i] for i in order[: c.train]]
        scores = similar(subject, cases, layers, "reading cases")
        train_scores = similar(subject, train, layers, "reading training cases")
        for which, s in (("these", scores), ("the training", train_scores)):
            kinds = s.get(("prompt", layers[0]))
            if kinds is None or not kinds.inside or not kinds.outside:
                raise BadSpec(
                    f"{which} cases have no rephrases, or no questions to tell them from. Name a "
                    "--benchmark with generality and locality questions, or more of it."
                )
        summary = GateSummary(scores, train_scores, layers, [x.id for x in cases])
        where = f"{bb.name}, {subject.benchmark}: {counted(len(cases), 'case')}. "
        shown = [layers[i] for i in spaced(len(layers), max(1, c.shown))]
        facts = {
            "cases": len(cases), "training cases": len(train), "blocks": layers,
            "chosen on training cases": summary.best_blocks(),
        }  # fmt: skip
        return Findings(
            (summary.histograms(shown, where), *summary.heats(where)),
            (summary.table(), summary.questions(shown)),
            facts,
            (*summary.lines(), *first_look(len(cases), "case")),
        )


def similar(subject: Subject, cases: Sequence[Case], layers: Sequence[int], what: str) -> Similar:
    """Similarities of each case's questions to its edit."""
    out: Similar = {}
    bb, each = subject.backbone, max(1, subject.rows)
    gates = {(name, i): g(site_behind(bb, i)) for name, g in readings().items() for i in layers}
    for start in range(0, len(cases), each):
        part = cases[start : start + each]
        edits = keys_of(bb, [x.edit.prompt for x in part], [x.edit.target for x in part], layers)
        probes = [
            (i, p) for i, x in enumerate(part) for p in x.probes
            if p.kind in (*IN_SCOPE, *OUT_OF_SCOPE) and p.reference.strip()
        ]  # fmt: skip
        probes.sort(key=lambda q: (bool(q[1].prompt.images), len(q[1].prompt.text)))
        for first in range(0, len(probes), BATCH):
            some = probes[first : first + BATCH]
            keys = keys_of(bb, [p.prompt for _, p in some], [p.reference for _, p in some], layers)
            index = [i for i, _ in some]
            for reading, key in keys.items():
                values = gates[reading].similarity(key, edits[reading][index])
                kinds = out.setdefault(reading, GateScores())
                for (i, p), value in zip(some, values.tolist(), strict=True):
                    if value == value:  # not NaN: a question without an image has no visual mean
                        side = kinds.inside if p.kind in IN_SCOPE else kinds.outside
                        rows = side.setdefault(label(p.kind, _group(p.kind, p.group)), {})
                        rows.setdefault(part[i].id, []).append(value)
        subject.progress(what, start + len(part), len(cases))
    return out


def _group(kind: str, group: str) -> str:
    """Wordings that the model was trained on and others are one kind here."""
    return "" if kind in IN_SCOPE else group


def keys_of(
    backbone: Backbone, prompts: Sequence[Prompt], answers: Sequence[str], layers: Sequence[int]
) -> dict[tuple[str, int], Tensor]:
    """(reading, block) -> keys [B, d]."""
    sites = {i: site_behind(backbone, i) for i in layers}
    batch = backbone.encode(prompts, answers)
    recorder = KeyRecorder(tuple(sites.values()), batch)
    run_until_enough(backbone, batch, recorder)
    return {
        (name, i): key for i, site in sites.items() for name, key in recorder.keys[site].items()
    }


class GateSummary(Summary):
    """AUC, thresholds and accuracies per reading, block and kind of question."""

    def __init__(
        self, scores: Similar, train: Similar, layers: Sequence[int], cases: Sequence[str]
    ) -> None:
        super().__init__(cases)
        self.scores, self.train, self.layers = scores, train, layers
        self.readings = readings()
        first = scores["prompt", layers[0]]
        train_cases = {c for kinds in train.values() for side in (kinds.inside, kinds.outside)
                       for rows in side.values() for c in rows}  # fmt: skip
        self.train_intervals = Intervals(sorted(train_cases))
        self.inside, self.outside = sorted(first.inside, reverse=True), sorted(first.outside)
        self._aucs = {
            (r, i, kind): self.intervals.auc(_pooled(kinds.inside), kinds.outside.get(kind, {}))
            for (r, i), kinds in scores.items()
            for kind in self.outside
        }

    def auc(self, reading: str, layer: int, kind: str) -> Estimate | None:
        return self._aucs[reading, layer, kind]

    def threshold(self, reading: str, layer: int, kind: str) -> float | None:
        """Tuned on training cases for one kind, or for all, each with the same weight."""
        kinds = self.train[reading, layer]
        outside = kinds.outside if kind == ALL else {
            k: v for k, v in kinds.outside.items() if k == kind
        }  # fmt: skip
        return self.readings[reading].tune(_tensors(kinds.inside), _tensors(outside))

    def accuracy(
        self, reading: str, layer: int, kind: str, *, on_train: bool = False
    ) -> Estimate | None:
        """Balanced: the mean of the shares of in-scope and of other questions that are right."""
        threshold = self.threshold(reading, layer, kind)
        kinds = (self.train if on_train else self.scores)[reading, layer]
        names = list(kinds.outside) if kind == ALL else [kind]
        if threshold is None or any(n not in kinds.outside for n in names):
            return None
        groups = [
            {c: [float((v >= threshold) == inside) for v in vs] for c, vs in rows.items()}
            for inside, parts in (
                (True, list(kinds.inside.values())),
                (False, [kinds.outside[n] for n in names]),
            )
            for rows in parts
        ]
        mix = [0.5 / len(kinds.inside)] * len(kinds.inside) + [0.5 / len(names)] * len(names)
        return (self.train_intervals if on_train else self.intervals).mean(
            groups, mix, within=(0.0, 1.0)
        )

    def best_blocks(self) -> dict[str, int]:
        """Reading -> the block where one threshold is best, on training cases."""

        def score(reading: str, layer: int) -> float:
            accuracy = self.accuracy(reading, layer, ALL, on_train=True)
            return accuracy.value if accuracy else 0.0

        return {r: max(self.layers, key=lambda i: score(r, i)) for r in self.readings}

    def histograms(self, shown: Sequence[int], where: str) -> Figure:
        lowest = min(
            v for layer in shown for r in self.readings for side in
            (self.scores[r, layer].inside, self.scores[r, layer].outside)
            for rows in side.values() for vs in rows.values() for v in vs
        )  # fmt: skip
        low = next(x for x in (0.8, 0.5, 0.0, -0.2, -0.5, -1.0) if lowest >= x)
        panels = tuple(
            Spreads(f"{gate.reads}, block {layer}", self._rows(self.scores[r, layer]), low, 1.0)
            for layer in shown
            for r, gate in self.readings.items()
        )
        return Figure(
            "gate", "Cosine with the edit", panels, 2,
            f"{where}Each question with its own case's edit. Line: median; box: quartiles; n: "
            "questions. The last token with the gold answer is the published reading: it exists "
            "only where the answer is already known.",
        )  # fmt: skip

    def _rows(self, kinds: GateScores) -> tuple[Spread, ...]:
        sides = ((self.inside, kinds.inside, "changes"), (self.outside, kinds.outside, "stays"))
        return tuple(
            Spread(name, tuple(v for vs in side[name].values() for v in vs), tone)  # type: ignore[arg-type]
            for names, side, tone in sides
            for name in names
            if name in side
        )

    def heats(self, where: str) -> tuple[Figure, Figure]:
        columns = tuple(map(str, self.layers))
        panels = []
        for measure, kinds in ((self.auc, self.outside), (self.accuracy, [*self.outside, ALL])):
            panels.append(
                tuple(
                    Heat(
                        gate.reads,
                        tuple(kinds),
                        columns,
                        tuple(
                            tuple(number(measure(r, i, kind)) for i in self.layers)
                            for kind in kinds
                        ),
                        low=0.0, high=1.0, middle=0.5, axis="block",
                    )
                    for r, gate in self.readings.items()
                )
            )  # fmt: skip
        blank = "Blank: no image to read. Intervals are in gate.csv."
        return (
            Figure(
                "gate-auc", "How well a cosine tells in-scope questions from others: AUC",
                panels[0], 2, f"{where}0.5 is chance. {blank}",
            ),
            Figure(
                "gate-accuracy", "The same as balanced accuracy", panels[1], 2,
                f"{where}Thresholds tuned on training cases, per kind of question, and once for "
                f"all kinds. 0.5 is chance. {blank}",
            ),
        )  # fmt: skip

    def lines(self) -> tuple[str, ...]:
        out = []
        for reading, layer in self.best_blocks().items():
            aucs = ", ".join(
                f"{kind} {text(auc)}"
                for kind in self.outside
                if (auc := self.auc(reading, layer, kind)) is not None
            )
            whole = self.accuracy(reading, layer, ALL)
            one = f"; one threshold for all: {text(whole)}" if whole else ""
            out.append(f"{reading} (block {layer}, chosen on training cases): AUC {aucs}{one}")
        return tuple(out)

    def table(self) -> Table:
        columns = (
            *("reading", "block", "against", *with_ends("auc"), "threshold"),
            *(*with_ends("accuracy"), "n_inside", "n_outside"),
        )
        rows = []
        for r in self.readings:
            for i in self.layers:
                kinds = self.scores[r, i]
                inside = sum(map(len, _pooled(kinds.inside).values()))
                for kind in (*self.outside, ALL):
                    names = self.outside if kind == ALL else [kind]
                    n = sum(len(v) for k in names for v in kinds.outside.get(k, {}).values())
                    if not n:
                        continue
                    auc = None if kind == ALL else self.auc(r, i, kind)
                    threshold, accuracy = self.threshold(r, i, kind), self.accuracy(r, i, kind)
                    rows.append((r, i, kind, *cells(auc), threshold, *cells(accuracy), inside, n))
        return Table("gate", columns, rows)

    def questions(self, shown: Sequence[int]) -> Table:
        """Every similarity that is drawn."""
        rows = [
            (case, kind, reading, layer, round(v, 5))
            for (reading, layer), kinds in self.scores.items()
            if layer in shown
            for side in (kinds.inside, kinds.outside)
            for kind, cases in side.items()
            for case, vs in cases.items()
            for v in vs
        ]
        return Table("gate-questions", ("case", "kind", "reading", "block", "cosine"), rows)


def _pooled(kinds: Mapping[str, Cosines]) -> Cosines:
    out: Cosines = {}
    for rows in kinds.values():
        for case, vs in rows.items():
            out.setdefault(case, []).extend(vs)
    return out


def _tensors(kinds: Mapping[str, Cosines]) -> dict[str, Tensor]:
    return {k: torch.tensor([v for vs in rows.values() for v in vs]) for k, rows in kinds.items()}
