"""What `analyze drift` makes of its measurements: figures, tables and lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from errata.analyses.drift.drawings import COMPARED, DriftRecords
from errata.analyses.drift.path import PICTURE
from errata.analyses.drift.trajectories import ALL, OTHER, SUBJECT, FourWay, Place, StageShift
from errata.core.figure import (
    Bar,
    Bars,
    Figure,
    Heat,
    Line,
    Lines,
    Panel,
    Table,
    Tone,
    Value,
    ceiling,
)
from errata.evaluation.bootstrap import Bootstrap, Estimate

#: what each drawing is, in words
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
Cases = dict[str, float]


class DriftSummary:
    """`where` says on what: the model, the benchmark, how much of it."""

    def __init__(self, seen: DriftRecords, boot: Bootstrap, where: str) -> None:
        self.seen, self.boot, self.where = seen, boot, where
        self.path = (*seen.stages, PICTURE)
        self.unit = {place: median(v) for place, v in seen.spreads.items() if v}

    # -- numbers ------------------------------------------------------------------------------

    def places(self, stage: str) -> list[Place]:
        return [p for p in self.unit if p[0] == stage]

    def values(self, condition: str, place: Place, measure: str) -> Cases:
        """case -> value, where there is one."""
        steps = self.seen.steps.get((condition, place), {})
        found = ((case, self._value(step, place, measure)) for case, step in steps.items())
        return {case: v for case, v in found if v is not None}

    def _value(self, step: StageShift, place: Place, measure: str) -> float | None:
        if measure == "signal":
            unit = self.unit.get(place, 0.0)
            return step.size / unit if unit > 0 else None
        value: float | None = getattr(step, measure)
        return value

    def mean(self, values: Mapping[str, float]) -> Estimate | None:
        return self.boot.mean([{c: [v] for c, v in values.items()}], [1.0])

    def at_stage(self, condition: str, stage: str, measure: str, group: str) -> Estimate | None:
        """Mean over cases and kept steps; of the picture's stages all tokens, whatever `group`."""
        rows: dict[str, list[float]] = {}
        places = self.places(stage)
        wanted = group if any(p[2] == group for p in places) else ALL
        for place in (p for p in places if p[2] == wanted):
            for case, v in self.values(condition, place, measure).items():
                rows.setdefault(case, []).append(v)
        return self.mean({case: sum(v) / len(v) for case, v in rows.items()})

    def met(self, drawing: str) -> dict[str, list[float]]:
        """case -> 1 or 0 per picture; an abstaining judge has not seen the target."""
        shown = self.seen.shown.get(drawing, {})
        return {case: [float(v.meets is True) for v in vs] for case, vs in shown.items()}

    def rate(self, drawing: str) -> Estimate | None:
        return self.boot.mean([self.met(drawing)], [1.0])

    def link(self, place: Place, measure: str) -> tuple[Estimate | None, int, int]:
        """AUC of a measure of the edit, and how many cases are right and wrong.

        A case is right where at least half of its pictures show the target.
        """
        values = self.values("edit", place, measure)
        met = {case: sum(v) / len(v) >= 0.5 for case, v in self.met("edit").items() if v}
        sides: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        for case, value in values.items():
            if case in met:
                sides[0 if met[case] else 1][case] = [value]
        return self.boot.auc(*sides), len(sides[0]), len(sides[1])

    @property
    def twin(self) -> float:
        """The largest change between two equal drawings."""
        steps = (
            s for (c, _), cases in self.seen.steps.items() if c == "twin" for s in cases.values()
        )
        return max((max(s.size, s.relative or 0.0, s.cosine or 0.0) for s in steps), default=0.0)

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
        made = []
        for condition, tone in TONES.items():
            if aligned and not COMPARED[condition][2]:
                continue
            points = []
            for x, stage in enumerate(self.path):
                found = self.at_stage(condition, stage, measure, group)
                if found is not None:
                    points.append((float(x), _shown(found)))
            if points:
                made.append(Line(condition, tuple(points), tone))
        top = max((v.high or v.value for line in made for _, v in line.points), default=1.0)
        return Lines(title, tuple(made), axis="stage", high=ceiling(top), percent=False)

    def _towards(self) -> Heat:
        rows = [c for c in ("edit", "random", *list(COMPARED)[4:7]) if self._has(c)]
        return Heat(
            "Cosine with the oracle's change",
            tuple(rows),
            tuple(str(i) for i in range(len(self.path))),
            tuple(tuple(_number(self.at_stage(c, s, "towards", ALL)) for s in self.path)
                  for c in rows),
            low=-1.0, high=1.0, middle=0.0, axis="stage",
        )  # fmt: skip

    def _has(self, condition: str) -> bool:
        return any(c == condition for c, _ in self.seen.steps)

    def _moments(self) -> tuple[Panel, ...]:
        stages = [s for s in self.seen.stages if (s, 0, ALL) in self.unit]
        times = tuple(f"{t:.2f}" for t in self.seen.moments)
        made = []
        for condition in ("edit", "random", "oracle", "edit after rationale"):
            if not self._has(condition):
                continue
            measure = "relative" if COMPARED[condition][2] else "signal"
            cells = tuple(
                tuple(_number(self.mean(self.values(condition, (s, m, ALL), measure)))
                      for m in range(len(times)))
                for s in stages
            )  # fmt: skip
            title = f"{condition}: {'relative change' if measure == 'relative' else 'signal'}"
            made.append(Heat(title, tuple(stages), times, cells, low=0.0, axis="time"))
        return tuple(made)

    def _pictures(self) -> tuple[Figure, ...]:
        if not self.seen.shown:
            return ()
        bars = tuple(
            Bar(words, _shown(rate), "changes")
            for drawing, words in DRAWINGS.items()
            if (rate := self.rate(drawing)) is not None
        )
        said = self.stated()
        notes = () if said is None else (f"rationales that state the target: {_per_cent(said)}",)
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
        for stage, cases in self.seen.ways.items():
            names = {
                "edit": "edit", "reason": "rationale", "later": "edit, after the rationale",
                "both": "both",
            }  # fmt: skip
            found = [(words, self.mean(_of(cases, key))) for key, words in names.items()]
            top = max((f.ci95[1] if f and f.ci95 else f.value if f else 0.0) for _, f in found)
            bars = tuple(Bar(w, _shown(f), "soft") for w, f in found if f is not None)
            notes = tuple(
                f"cosine {words}: {_text(self.mean(_of(cases, key)))}"
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
        numbers = [f"{m}{end}" for m in MEASURES for end in ("", "_low", "_high")]
        return (
            Table("drift", (*columns, *numbers, "spread", "n"), list(self._means())),
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
                    for drawing, cases in self.seen.shown.items()
                    for case, verdicts in cases.items()
                    for seed, v in enumerate(verdicts)
                ],
            ),
            Table(
                "drift-four-way",
                ("stage", "case", *FourWay.__dataclass_fields__, "stated"),
                [
                    (stage, case, *(getattr(w, f) for f in FourWay.__dataclass_fields__),
                     self.seen.stated.get(case))
                    for stage, cases in self.seen.ways.items()
                    for case, w in cases.items()
                ],
            ),
        )  # fmt: skip

    def _time(self, place: Place) -> float | None:
        return None if place[1] < 0 else round(self.seen.moments[place[1]], 4)

    def _means(self) -> Iterator[tuple[Any, ...]]:
        for condition, place in self.seen.steps:
            row: list[Any] = []
            for measure in MEASURES:
                found = self.mean(self.values(condition, place, measure))
                row += _flat(found)
            n = len(self.seen.steps[condition, place])
            stage, _, group = place
            yield condition, stage, self._time(place), group, *row, self.unit.get(place), n

    def _cases(self) -> Iterator[tuple[Any, ...]]:
        for (condition, place), cases in self.seen.steps.items():
            for case, step in cases.items():
                values = (self._value(step, place, m) for m in MEASURES)
                yield case, condition, place[0], self._time(place), place[2], *map(_rounded, values)

    def _links(self) -> Iterator[tuple[Any, ...]]:
        for place in self.unit:
            for measure in MEASURES:
                found, right, wrong = self.link(place, measure)
                if found is not None:
                    yield (
                        place[0],
                        self._time(place),
                        place[2],
                        measure,
                        *_flat(found),
                        right,
                        wrong,
                    )

    def stated(self) -> Estimate | None:
        return self.mean({c: float(v) for c, v in self.seen.stated.items()})

    def facts(self) -> dict[str, Any]:
        return {
            "stages": list(self.path),
            "times": [round(t, 4) for t in self.seen.moments],
            "largest change between equal drawings": self.twin,
            "largest difference between edited states put in and the edit itself": self.seen.echo,
            "pictures that show the target": {
                words: _plain(self.rate(drawing)) for drawing, words in DRAWINGS.items()
                if drawing in self.seen.shown
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
                out.append(f"pictures that show the target, {words}: {_per_cent(rate)}")
        best = self._best_link()
        return (*out, *([best] if best else []))

    def _size(self, condition: str, stage: str) -> float:
        cases = self.seen.steps.get((condition, (stage, -1, ALL)), {})
        return max((s.size for s in cases.values()), default=0.0)

    def _best_link(self) -> str:
        """What tells success best at the text stages; a choice among many, so no test."""
        stages = [s for s in self.seen.stages if (s, -1, ALL) in self.unit]
        found = [
            (auc, stage, group, m)
            for stage in stages
            for group in (SUBJECT, OTHER)
            for m in MEASURES
            if (auc := self.link((stage, -1, group), m)[0]) is not None
        ]
        if not found:
            return ""
        auc, stage, group, m = max(found, key=lambda f: abs(f[0].value - 0.5))
        return (
            f"of {len(found)} readings of the text stages, {m} of the {group} tokens at {stage} "
            f"tells pictures that show the target best: AUC {_text(auc)}"
        )


def _of(cases: Mapping[str, FourWay], key: str) -> Cases:
    return {c: v for c, w in cases.items() if (v := getattr(w, key)) is not None}


def _shown(found: Estimate) -> Value:
    return Value(found.value, *(found.ci95 or (None, None)))


def _number(found: Estimate | None) -> float:
    return found.value if found is not None else float("nan")


def _flat(found: Estimate | None) -> list[Any]:
    return [None, None, None] if found is None else [found.value, *(found.ci95 or (None, None))]


def _plain(found: Estimate | None) -> Any:
    return None if found is None else {"value": found.value, "ci95": found.ci95, "n": found.units}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _text(found: Estimate | None) -> str:
    if found is None:
        return "-"
    if found.ci95 is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"


def _per_cent(found: Estimate) -> str:
    if found.ci95 is None:
        return f"{100 * found.value:.0f} %"
    low, high = (100 * x for x in found.ci95)
    return f"{100 * found.value:.0f} % ({low:.0f} to {high:.0f})"
