"""Figures, tables and lines of `analyze drift`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from errata.analyses._summary import Summary, as_value, cells, number, text, with_ends
from errata.analyses.drift.conditions import COMPARED, DriftRecords
from errata.analyses.drift.distances import ALL, OTHER, SUBJECT, FourWay, Place, StageShift
from errata.analyses.drift.trace import PICTURE
from errata.core.figure import Bar, Bars, Figure, Heat, Line, Lines, Panel, Table, Tone, ceiling
from errata.core.formats.counts import counted
from errata.evaluation.statistics.intervals import Estimate

#: drawing -> what it is
DRAWINGS = {
    "fresh": "unedited",
    "edit": "edited",
    "random": "random change of equal norm",
    "oracle": "unedited, prompt states the fact",
    "rationale": "unedited, edited model's rationale",
    "both": "edited, edited model's rationale",
    "subject": "unedited, edited states of the subject",
    "others": "unedited, edited states of other tokens",
    "all": "unedited, edited states of all tokens",
}
TONES: Mapping[str, Tone] = {
    "edit": "changes", "random": "stays", "oracle": "right", "edit after rationale": "wrong",
}  # fmt: skip
MEASURES = ("cosine", "relative", "signal", "towards")
Cases = Mapping[str, float]


class DriftSummary(Summary):
    """`where`: model, benchmark and number of cases, for captions.

    path: the stages in order. unit: place -> median distance between two prompts.
    """

    def __init__(self, records: DriftRecords, cases: Sequence[str], where: str) -> None:
        super().__init__(cases)
        self.records, self.where = records, where
        self.path = (*records.stages, PICTURE)
        self.unit = {place: median(v) for place, v in records.spreads.items() if v}

    # -- numbers ------------------------------------------------------------------------------

    def places(self, stage: str) -> list[Place]:
        return [p for p in self.unit if p[0] == stage]

    def values(self, condition: str, place: Place, measure: str) -> Cases:
        """case -> value, where there is one."""
        shifts = self.records.shifts.get((condition, place), {})
        values = ((case, self._value(shift, place, measure)) for case, shift in shifts.items())
        return {case: v for case, v in values if v is not None}

    def _value(self, shift: StageShift, place: Place, measure: str) -> float | None:
        if measure == "signal":
            unit = self.unit.get(place, 0.0)
            return shift.size / unit if unit > 0 else None
        value: float | None = getattr(shift, measure)
        return value

    def mean_of(self, values: Cases) -> Estimate | None:
        return self.mean({case: [v] for case, v in values.items()})

    def at_stage(self, condition: str, stage: str, measure: str, group: str) -> Estimate | None:
        """Mean over cases and recorded steps; at image stages always of all tokens."""
        rows: dict[str, list[float]] = {}
        places = self.places(stage)
        wanted = group if any(p[2] == group for p in places) else ALL
        for place in (p for p in places if p[2] == wanted):
            for case, v in self.values(condition, place, measure).items():
                rows.setdefault(case, []).append(v)
        return self.mean_of({case: sum(v) / len(v) for case, v in rows.items()})

    def successes(self, drawing: str) -> dict[str, list[float]]:
        """case -> 1 or 0 per image; 0 where the judge abstains."""
        verdicts = self.records.verdicts.get(drawing, {})
        return {case: [float(v.meets is True) for v in vs] for case, vs in verdicts.items()}

    def rate(self, drawing: str) -> Estimate | None:
        return self.mean(self.successes(drawing), within=(0.0, 1.0))

    def link(self, place: Place, measure: str) -> tuple[Estimate | None, int, int]:
        """AUC with which a measure of the edit tells right from wrong cases; numbers of both.

        A case is right if at least half of its images show the target.
        """
        values = self.values("edit", place, measure)
        is_right = {c: sum(v) / len(v) >= 0.5 for c, v in self.successes("edit").items() if v}
        right = {c: [v] for c, v in values.items() if is_right.get(c) is True}
        wrong = {c: [v] for c, v in values.items() if is_right.get(c) is False}
        return self.intervals.auc(right, wrong), len(right), len(wrong)

    @property
    def twin(self) -> float:
        """The largest change between two drawings of the same prompt and seed."""
        shifts = (
            s
            for (c, _), cases in self.records.shifts.items()
            if c == "twin"
            for s in cases.values()
        )
        return max((max(s.size, s.relative or 0.0, s.cosine or 0.0) for s in shifts), default=0.0)

    # -- figures ------------------------------------------------------------------------------

    def figures(self) -> tuple[Figure, ...]:
        stages = ", ".join(f"{i} {name}" for i, name in enumerate(self.path))
        path = Figure(
            "drift-path", "How far a change of the text model gets on the way to the picture",
            (
                self._lines("Relative change", "relative", ALL, aligned=True),
                self._lines("Signal: change / distance between prompts", "signal", ALL),
                self._lines("Signal of the subject's tokens", "signal", SUBJECT),
                self._towards(),
            ),
            2,
            f"{self.where}Stages: {stages}. Those of the picture: mean over the steps that were "
            "kept. Intervals: 95 %, over cases.",
        )  # fmt: skip
        moments = Figure(
            "drift-moments", "Change of the picture's states, by block and time",
            self._moments(), 2,
            f"{self.where}All image tokens; time 0 is noise, 1 the picture. Later steps hold what "
            "earlier ones changed.",
        )  # fmt: skip
        return (path, moments, *self._pictures(), *self._four_way())

    def _lines(self, title: str, measure: str, group: str, *, aligned: bool = False) -> Lines:
        lines = []
        for condition, tone in TONES.items():
            if aligned and not COMPARED[condition][2]:
                continue
            points = []
            for x, stage in enumerate(self.path):
                mean = self.at_stage(condition, stage, measure, group)
                if mean is not None:
                    points.append((float(x), as_value(mean)))
            if points:
                lines.append(Line(condition, tuple(points), tone))
        top = max((v.high or v.value for line in lines for _, v in line.points), default=1.0)
        return Lines(title, tuple(lines), axis="stage", high=ceiling(top), percent=False)

    def _towards(self) -> Heat:
        rows = [c for c in ("edit", "random", *list(COMPARED)[4:7]) if self._has(c)]
        return Heat(
            "Cosine with the oracle's change",
            tuple(rows),
            tuple(str(i) for i in range(len(self.path))),
            tuple(tuple(number(self.at_stage(c, s, "towards", ALL)) for s in self.path)
                  for c in rows),
            low=-1.0, high=1.0, middle=0.0, axis="stage",
        )  # fmt: skip

    def _has(self, condition: str) -> bool:
        return any(c == condition for c, _ in self.records.shifts)

    def _moments(self) -> tuple[Panel, ...]:
        stages = [s for s in self.records.stages if (s, 0, ALL) in self.unit]
        times = tuple(f"{t:.2f}" for t in self.records.moments)
        panels: list[Panel] = []
        for condition in ("edit", "random", "oracle", "edit after rationale"):
            if not self._has(condition):
                continue
            measure = "relative" if COMPARED[condition][2] else "signal"
            values = tuple(
                tuple(number(self.mean_of(self.values(condition, (s, m, ALL), measure)))
                      for m in range(len(times)))
                for s in stages
            )  # fmt: skip
            title = f"{condition}: {'relative change' if measure == 'relative' else 'signal'}"
            panels.append(Heat(title, tuple(stages), times, values, low=0.0, axis="time"))
        return tuple(panels)

    def _pictures(self) -> tuple[Figure, ...]:
        if not self.records.verdicts:
            return ()
        bars = tuple(
            Bar(words, as_value(rate), "changes")
            for drawing, words in DRAWINGS.items()
            if (rate := self.rate(drawing)) is not None
        )
        rate = self.stated()
        notes = () if rate is None else (f"rationales that state the target: {_percent(rate)}",)
        return (
            Figure(
                "drift-pictures", "What the pictures show",
                (Bars("Pictures that show the target", bars, notes=notes),), 1,
                f"{self.where}Read by the benchmark's judge; where it abstains the target was not "
                "seen.",
            ),
        )  # fmt: skip

    def _four_way(self) -> tuple[Figure, ...]:
        panels = []
        for stage, cases in self.records.four_way.items():
            names = {
                "edit": "edit", "reason": "rationale", "later": "edit, after the rationale",
                "both": "both",
            }  # fmt: skip
            means = [(words, self.mean_of(_of(cases, key))) for key, words in names.items()]
            values = [(words, as_value(mean)) for words, mean in means if mean is not None]
            top = max((v.value if v.high is None else v.high for _, v in values), default=0.0)
            bars = tuple(Bar(words, value, "soft") for words, value in values)
            notes = tuple(
                f"cosine {words}: {_text(self.mean_of(_of(cases, key)))}"
                for key, words in (
                    ("edit_reason", "of edit and rationale"),
                    ("edit_later", "of the edit before and after the rationale"),
                )
            )
            panels.append(Bars(f"{stage}: change of the mean state", bars, ceiling(top), notes))
        if not panels:
            return ()
        return (
            Figure(
                "drift-four-way", "What the edit does, and what its rationale does", tuple(panels),
                2, f"{self.where}Relative to the unedited state of the image prompt. The rationale "
                "is the edited model's.",
            ),
        )  # fmt: skip

    # -- tables and lines ---------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        columns = ("condition", "stage", "time", "group")
        return (
            Table("drift", (*columns, *with_ends(*MEASURES), "spread", "n"), list(self._means())),
            Table("drift-cases", ("case", *columns, *MEASURES), list(self._cases())),
            Table(
                "drift-link",
                ("stage", "time", "group", "measure", "auc", "low", "high", "right", "wrong"),
                list(self._links()),
            ),
            Table(
                "drift-pictures",
                ("case", "drawing", "seed", "meets", "read"),
                [
                    (case, drawing, seed, v.meets, v.answer)
                    for drawing, cases in self.records.verdicts.items()
                    for case, verdicts in cases.items()
                    for seed, v in enumerate(verdicts)
                ],
            ),
            Table(
                "drift-four-way",
                ("stage", "case", *FourWay.__dataclass_fields__, "stated"),
                [
                    (stage, case, *(getattr(w, f) for f in FourWay.__dataclass_fields__),
                     self.records.stated.get(case))
                    for stage, cases in self.records.four_way.items()
                    for case, w in cases.items()
                ],
            ),
        )  # fmt: skip

    def _time(self, place: Place) -> float | None:
        return None if place[1] < 0 else round(self.records.moments[place[1]], 4)

    def _means(self) -> Iterator[tuple[Any, ...]]:
        for condition, place in self.records.shifts:
            row: list[Any] = []
            for measure in MEASURES:
                row += cells(self.mean_of(self.values(condition, place, measure)))
            n = len(self.records.shifts[condition, place])
            stage, _, group = place
            yield condition, stage, self._time(place), group, *row, self.unit.get(place), n

    def _cases(self) -> Iterator[tuple[Any, ...]]:
        for (condition, place), cases in self.records.shifts.items():
            for case, shift in cases.items():
                values = (self._value(shift, place, m) for m in MEASURES)
                yield case, condition, place[0], self._time(place), place[2], *map(_rounded, values)

    def _links(self) -> Iterator[tuple[Any, ...]]:
        for place in self.unit:
            for measure in MEASURES:
                auc, right, wrong = self.link(place, measure)
                if auc is not None:
                    where = (place[0], self._time(place), place[2], measure)
                    yield *where, *cells(auc), right, wrong

    def stated(self) -> Estimate | None:
        return self.mean_of({c: float(v) for c, v in self.records.stated.items()})

    def facts(self) -> dict[str, Any]:
        swap_error = self.records.swap_error
        return {
            "stages": list(self.path),
            "times": [round(t, 4) for t in self.records.moments],
            "largest change between equal drawings": self.twin,
            "largest difference between edited states put in and the edit itself": swap_error,
            "pictures that show the target": {
                words: _plain(self.rate(drawing)) for drawing, words in DRAWINGS.items()
                if drawing in self.records.verdicts
            },
            "rationales that state the target": _plain(self.stated()),
        }  # fmt: skip

    def lines(self) -> tuple[str, ...]:
        twin = self.twin
        out = [
            "the same drawing twice: no change at any stage" if twin == 0 else
            f"the model does not repeat itself: equal drawings differ by up to {twin:.3g}"
        ]  # fmt: skip
        if self._size("edit", "tap") == 0:
            out.append("the edit does not reach the text states that are drawn from")
        if not self._has("random"):
            out.append("no random control: the edit is no change of matrices")
        if cut := len(self.records.cut):
            out.append(
                f"{counted(cut, 'case')} not drawn after the rationale: with that of one of them "
                "the subject is not in what is drawn (it is too long, or does not name it)"
            )
        for condition in ("edit", "random", "oracle"):
            if self._has(condition):
                parts = (
                    f"{stage} {_text(self.at_stage(condition, stage, 'signal', ALL))}"
                    for stage in self.path
                )
                out.append(f"{condition}, signal: {', '.join(parts)}")
        for drawing, words in DRAWINGS.items():
            rate = self.rate(drawing)
            if rate is not None:
                out.append(f"pictures that show the target, {words}: {_percent(rate)}")
        best = self._best_link()
        return (*out, *([best] if best else []))

    def _size(self, condition: str, stage: str) -> float:
        cases = self.records.shifts.get((condition, (stage, -1, ALL)), {})
        return max((s.size for s in cases.values()), default=0.0)

    def _best_link(self) -> str:
        """The measure with the best AUC at the text stages; chosen among many, so it is no test."""
        stages = [s for s in self.records.stages if (s, -1, ALL) in self.unit]
        links = [
            (auc, stage, group, m)
            for stage in stages
            for group in (SUBJECT, OTHER)
            for m in MEASURES
            if (auc := self.link((stage, -1, group), m)[0]) is not None
        ]
        if not links:
            return ""
        auc, stage, group, m = max(links, key=lambda link: abs(link[0].value - 0.5))
        return (
            f"of {len(links)} readings of the text stages, {m} of the {group} tokens at {stage} "
            f"tells pictures that show the target best: AUC {_text(auc)}"
        )


def _of(cases: Mapping[str, FourWay], key: str) -> Cases:
    return {c: v for c, w in cases.items() if (v := getattr(w, key)) is not None}


def _plain(mean: Estimate | None) -> Any:
    return None if mean is None else {"value": mean.value, "ci95": mean.ci95, "n": mean.units}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _text(mean: Estimate | None) -> str:
    return text(mean, to=" to ")


def _percent(mean: Estimate) -> str:
    return text(mean, 0, scale=100, unit=" %", to=" to ")
