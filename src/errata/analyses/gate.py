"""Gate: which representation tells questions about an edit from other questions.

Source: DualEdit Fig. 4 (Shi et al. 2025): cosines between an edit and its rephrases, and questions
that must stay as they were, of the mean visual, the mean textual, and the last token's state. The
paper finds that the last token parts them and the means do not. Its last token is that of question
AND gold answer: equal for the edit and what should follow it, different for everything else. Both
readings are shown: `leaky`, as published, and `prompt`, the last prompt token, which is all that
there is when a question is asked.

Per reading, block and kind of question: AUC (how often an in-scope question, a rephrase or the same
thing in another picture, is nearer to its edit than one of that kind; pairs of all cases with all,
as one threshold has to serve them all), and balanced accuracy, with the threshold tuned on
training cases. The edit's own question, whose cosine is 1, is in neither.

Shapes: B questions, T columns, d stream width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from errata.algorithms.gated_adapter import OUT_OF_SCOPE, site_behind
from errata.analyses._tokens import TokenGroups
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Figure, Findings, Heat, Spread, Spreads, Table
from errata.core.gate import Gate
from errata.core.hooks.context import HookContext
from errata.core.kinds import family, label
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.model.recorder import EnoughRecorded, Recorder, run_until_enough
from errata.core.types import Case, Prompt
from errata.evaluation.bootstrap import Bootstrap, Estimate
from errata.training.optimise import generator

READINGS = {
    "visual": "mean of the image tokens",
    "text": "mean of the question's tokens",
    "prompt": "last prompt token",
    "leaky": "last token with the gold answer",
}
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


class GateReader(Recorder):
    """Every reading of every site: `found[site][reading]` [B, d], NaN where there is nothing."""

    def __init__(self, sites: Sequence[str], batch: Batch) -> None:
        super().__init__(sites)
        m = TokenGroups.of(batch)
        end_B = batch.mask.sum(1) - 1
        columns = torch.arange(batch.mask.shape[1], device=end_B.device)
        self.masks = {
            "visual": m.visual,
            "text": m.text | m.last,
            "prompt": m.last,
            "leaky": columns == end_B[:, None],
        }
        self.found: dict[str, dict[str, Tensor]] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.found[site] = {
            name: ((y.float() * m).sum(1) / m.sum(1)).cpu()
            for name, mask in self.masks.items()
            for m in (mask.to(y.device)[..., None],)
        }
        if self.sites <= self.found.keys():
            raise EnoughRecorded
        return y


class GateAnalysis(Analysis):
    """Cosines of an edit with other questions, and what a gate makes of them."""

    name = "gate"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """layers: blocks behind which states are read, from the end where negative; all when empty.

        shown: of how many of them distributions are drawn, evenly spaced. train: training cases
        on which thresholds are tuned.
        """

        layers: tuple[int, ...] = ()
        shown: int = 3
        train: int = 200

    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without questions to tell apart."""
        bb, c = subject.backbone, self.config
        layers = sorted({bb.layer(i) for i in c.layers}) or list(range(bb.depth))
        cases = [x for x in subject.cases if x.edit.target.strip()]
        pool = [x for x in subject.split("train") if x.edit.target.strip()]
        order = torch.randperm(len(pool), generator=generator(subject.seed, "gate")).tolist()
        train = [pool[i] for i in order[: c.train]]
        found = similar(subject, cases, layers, "reading cases")
        known = similar(subject, train, layers, "reading training cases")
        for which, s in (("these", found), ("the training", known)):
            kinds = s.get(("prompt", layers[0]))
            if kinds is None or not kinds.inside or not kinds.outside:
                raise BadSpec(
                    f"{which} cases have no rephrases, or no questions to tell them from. Name a "
                    "--benchmark with generality and locality questions, or more of it."
                )
        told = Told(found, known, layers, Bootstrap([x.id for x in cases]))
        where = f"{bb.name}, {subject.benchmark}: {len(cases)} cases. "
        shown = [layers[i] for i in _spaced(len(layers), max(1, c.shown))]
        facts = {
            "cases": len(cases), "training cases": len(train), "blocks": layers,
            "chosen on training cases": told.chosen(),
        }  # fmt: skip
        return Findings(
            (told.histograms(shown, where), *told.heats(where)),
            (told.table(), told.questions(shown)),
            facts,
            (*told.lines(), *first_look(len(cases), "cases")),
        )


def similar(subject: Subject, cases: Sequence[Case], layers: Sequence[int], what: str) -> Similar:
    """Cosines of each case's questions with its edit."""
    out: Similar = {}
    bb, each = subject.backbone, max(1, subject.rows)
    for start in range(0, len(cases), each):
        part = cases[start : start + each]
        edits = states(bb, [x.edit.prompt for x in part], [x.edit.target for x in part], layers)
        asked = [
            (i, p) for i, x in enumerate(part) for p in x.probes
            if p.kind in (*IN_SCOPE, *OUT_OF_SCOPE) and p.reference.strip()
        ]  # fmt: skip
        asked.sort(key=lambda a: (bool(a[1].prompt.images), len(a[1].prompt.text)))
        for first in range(0, len(asked), BATCH):
            some = asked[first : first + BATCH]
            own = states(bb, [p.prompt for _, p in some], [p.reference for _, p in some], layers)
            index = [i for i, _ in some]
            for key, state in own.items():
                cosines = torch.cosine_similarity(state, edits[key][index], dim=-1)
                kinds = out.setdefault(key, GateScores())
                for (i, p), cosine in zip(some, cosines.tolist(), strict=True):
                    if cosine == cosine:  # not NaN: a question without an image has no visual
                        side = kinds.inside if p.kind in IN_SCOPE else kinds.outside
                        rows = side.setdefault(label(p.kind, _group(p.kind, p.group)), {})
                        rows.setdefault(part[i].id, []).append(cosine)
        subject.progress(what, start + len(part), len(cases))
    return out


def _group(kind: str, group: str) -> str:
    """Wordings seen and unseen in training are one kind here."""
    return "" if kind in IN_SCOPE else group


def states(
    backbone: Backbone, prompts: Sequence[Prompt], answers: Sequence[str], layers: Sequence[int]
) -> dict[tuple[str, int], Tensor]:
    """(reading, block) -> [B, d]."""
    sites = {i: site_behind(backbone, i) for i in layers}
    batch = backbone.encode(prompts, answers)
    reader = GateReader(tuple(sites.values()), batch)
    run_until_enough(backbone, batch, reader)
    return {(r, i): reader.found[site][r] for i, site in sites.items() for r in READINGS}


class Told:
    """What can be said of the cosines."""

    def __init__(
        self, found: Similar, known: Similar, layers: Sequence[int], boot: Bootstrap
    ) -> None:
        self.found, self.known, self.layers, self.boot = found, known, layers, boot
        first = found["prompt", layers[0]]
        seen = {c for kinds in known.values() for side in (kinds.inside, kinds.outside)
                for rows in side.values() for c in rows}  # fmt: skip
        self.known_boot = Bootstrap(sorted(seen))
        self.inside, self.outside = sorted(first.inside, reverse=True), sorted(first.outside)
        self._aucs = {
            (r, i, kind): boot.auc(_pooled(kinds.inside), kinds.outside.get(kind, {}))
            for (r, i), kinds in found.items()
            for kind in self.outside
        }

    def auc(self, reading: str, layer: int, kind: str) -> Estimate | None:
        return self._aucs[reading, layer, kind]

    def threshold(self, reading: str, layer: int, kind: str) -> float | None:
        """Tuned on training cases for one kind, or for all, each counting as one."""
        kinds = self.known[reading, layer]
        outside = kinds.outside if kind == ALL else {
            k: v for k, v in kinds.outside.items() if k == kind
        }  # fmt: skip
        return Gate.tune(_tensors(kinds.inside), _tensors(outside))

    def accuracy(
        self, reading: str, layer: int, kind: str, *, known: bool = False
    ) -> Estimate | None:
        """Balanced: the mean of the shares of in-scope and of other questions that are right."""
        tau = self.threshold(reading, layer, kind)
        source = self.known if known else self.found
        kinds = source[reading, layer]
        names = list(kinds.outside) if kind == ALL else [kind]
        if tau is None or any(n not in kinds.outside for n in names):
            return None
        groups = [
            {c: [float((v >= tau) == inside) for v in vs] for c, vs in rows.items()}
            for inside, parts in (
                (True, list(kinds.inside.values())),
                (False, [kinds.outside[n] for n in names]),
            )
            for rows in parts
        ]
        mix = [0.5 / len(kinds.inside)] * len(kinds.inside) + [0.5 / len(names)] * len(names)
        return (self.known_boot if known else self.boot).mean(groups, mix)

    def chosen(self) -> dict[str, int]:
        """Reading -> the block where one threshold is best, on training cases."""

        def score(reading: str, layer: int) -> float:
            found = self.accuracy(reading, layer, ALL, known=True)
            return found.value if found else 0.0

        return {r: max(self.layers, key=lambda i: score(r, i)) for r in READINGS}

    def histograms(self, shown: Sequence[int], where: str) -> Figure:
        lowest = min(
            v for layer in shown for r in READINGS for side in
            (self.found[r, layer].inside, self.found[r, layer].outside)
            for rows in side.values() for vs in rows.values() for v in vs
        )  # fmt: skip
        low = next(x for x in (0.8, 0.5, 0.0, -0.2, -0.5, -1.0) if lowest >= x)
        panels = tuple(
            Spreads(f"{words}, block {layer}", self._rows(self.found[r, layer]), low, 1.0)
            for layer in shown
            for r, words in READINGS.items()
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
        made = []
        for measure, kinds in ((self.auc, self.outside), (self.accuracy, [*self.outside, ALL])):
            made.append(
                tuple(
                    Heat(
                        words,
                        tuple(kinds),
                        columns,
                        tuple(
                            tuple(_value(measure(r, i, kind)) for i in self.layers)
                            for kind in kinds
                        ),
                        low=0.0, high=1.0, middle=0.5, axis="block",
                    )
                    for r, words in READINGS.items()
                )
            )  # fmt: skip
        blank = "Blank: no image to read. Intervals are in gate.csv."
        return (
            Figure(
                "gate-auc", "How well a cosine tells in-scope questions from others: AUC",
                made[0], 2, f"{where}0.5 is chance. {blank}",
            ),
            Figure(
                "gate-accuracy", "The same as balanced accuracy", made[1], 2,
                f"{where}Thresholds tuned on training cases, per kind of question, and once for "
                f"all kinds. 0.5 is chance. {blank}",
            ),
        )  # fmt: skip

    def lines(self) -> tuple[str, ...]:
        out = []
        for reading, layer in self.chosen().items():
            aucs = ", ".join(
                f"{kind} {_shown(found)}"
                for kind in self.outside
                if (found := self.auc(reading, layer, kind)) is not None
            )
            whole = self.accuracy(reading, layer, ALL)
            one = f"; one threshold for all: {_shown(whole)}" if whole else ""
            out.append(f"{reading} (block {layer}, chosen on training cases): AUC {aucs}{one}")
        return tuple(out)

    def table(self) -> Table:
        columns = (
            *("reading", "block", "against", "auc", "auc_low", "auc_high", "threshold"),
            *("accuracy", "accuracy_low", "accuracy_high", "n_inside", "n_outside"),
        )
        rows = []
        for r in READINGS:
            for i in self.layers:
                kinds = self.found[r, i]
                inside = sum(map(len, _pooled(kinds.inside).values()))
                for kind in (*self.outside, ALL):
                    names = self.outside if kind == ALL else [kind]
                    n = sum(len(v) for k in names for v in kinds.outside.get(k, {}).values())
                    if not n:
                        continue
                    auc = None if kind == ALL else self.auc(r, i, kind)
                    tau, right = self.threshold(r, i, kind), self.accuracy(r, i, kind)
                    rows.append((r, i, kind, *_flat(auc), tau, *_flat(right), inside, n))
        return Table("gate", columns, rows)

    def questions(self, shown: Sequence[int]) -> Table:
        """Every cosine that is drawn."""
        rows = [
            (case, kind, reading, layer, round(v, 5))
            for (reading, layer), kinds in self.found.items()
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


def _value(found: Estimate | None) -> float:
    return found.value if found else float("nan")


def _flat(found: Estimate | None) -> tuple[Any, Any, Any]:
    low, high = (found.ci95 if found and found.ci95 else None) or (None, None)
    return (found.value if found else None, low, high)


def _shown(found: Estimate) -> str:
    if found.ci95 is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.ci95[0]:.2f}–{found.ci95[1]:.2f})"


def _spaced(count: int, most: int) -> list[int]:
    most = min(most, count)
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]
