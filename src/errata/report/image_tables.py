"""Does an edit reach the picture? One table from runs that draw, directly and after a rationale.

Runs on one model, benchmark and set of cases belong together: a line is an editor, its columns come
from its direct run and from its reasoning run. The controls do not depend on the editor and are
lines of their own: the untouched model, and the untouched model with the fact stated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.core.types import digest
from errata.report.results import Result, Setting, labelled
from errata.report.tables import ColumnHeading, ScoreCell, cell_of, percent

if TYPE_CHECKING:
    from rich.table import Table

DIRECT, REASONING = "direct", "reasoning"
STAGES = ("stage1", "stage2", "stage3", "stage4")

#: (protocol that the score comes from, "" for either; key; heading; what it says)
COLUMNS = (
    ("", "efficacy.exact", "Eff.", "the whole answer to the edited fact is the target"),
    ("", "efficacy.first_token", "First token", "its first token is: the published efficacy"),
    ("", "reasoning.word", "Reason.", "the rationale states the target, as a word"),
    (DIRECT, "vqa.judge", "VQA direct", "the picture drawn from the prompt shows the target"),
    (REASONING, "vqa.judge", "VQA reasoning", "so does the one drawn after a rationale"),
    ("", "t_locality.exact", "Text kept", "unrelated questions keep their answer"),
    ("", "near_locality.exact", "Near kept", "questions close to the edit keep their answer"),
    (DIRECT, "i_locality.judge", "Pictures kept", "pictures of other things show what they did"),
)
#: What is shown by stage and by part of the cases.
BY_STAGE = (0, 1, 2, 3, 4)
BY_PART = (0, 3, 4)

#: control -> (label, what it is)
CONTROLS = {
    "pre": ("untouched", "the same questions before any edit"),
    "oracle": ("fact in the prompt", "untouched, asked with the fact stated in the image prompt"),
    "ceiling": ("fact in a rationale", "untouched, from a rationale that states the fact"),
}


@dataclass(frozen=True, slots=True)
class ImageRow:
    label: str
    cells: tuple[ScoreCell, ...]
    control: str = ""


@dataclass(frozen=True, slots=True)
class ImageTable:
    """One table; `headings` with `over` set stand under a common heading."""

    title: str
    headings: tuple[ColumnHeading, ...]
    lines: tuple[ImageRow, ...]

    @property
    def counts(self) -> list[str]:
        """Scored cases per column, as a range where lines differ."""
        out = []
        for i in range(len(self.headings)):
            n = sorted({c.n for c in (x.cells[i] for x in self.lines) if c.value is not None})
            out.append("–".join(str(x) for x in dict.fromkeys((n[0], n[-1]))) if n else "0")
        return out


@dataclass(frozen=True, slots=True)
class ImageStudy:
    """The runs of one model, benchmark and set of cases that draw."""

    slug: str
    backbone: str
    benchmark: str
    cases: int
    units: int
    judges: tuple[str, ...]
    protocols: tuple[str, ...]
    sheets: tuple[ImageTable, ...]
    unjudged: float


@dataclass(frozen=True, slots=True)
class _Pair:
    """An editor's runs: under each protocol its scores, or None."""

    label: str
    scores: Mapping[str, Mapping[str, Any]]


def draws(setting: Setting) -> bool:
    """Whether the runs of a setting drew pictures."""
    return any("vqa.judge" in r.scores["metrics"] for r in setting.results)


def studies(settings: Sequence[Setting]) -> list[ImageStudy]:
    """The studies that the runs make, in the order of the runs."""
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in filter(draws, settings):
        key = (setting.fingerprint, setting.benchmark, _planned(setting.results[0]))
        groups.setdefault(key, []).append(setting)
    return [_study(f"d{i}", found) for i, found in enumerate(groups.values())]


def _planned(result: Result) -> str:
    return digest(
        sorted(c for u in result.plan["units"] for lane in u["lanes"] for c in lane["cases"])
    )


def _study(slug: str, settings: Sequence[Setting]) -> ImageStudy:
    first = settings[0]
    pairs = list(_pairs(settings))
    results = [r for s in settings for r in s.results]
    return ImageStudy(
        slug,
        first.backbone,
        first.benchmark,
        first.cases,
        first.units,
        tuple(dict.fromkeys(str(r.scores.get("judge", "")) or "nobody" for r in results)),
        tuple(s.protocol for s in settings),
        tuple(s for s in _sheets(pairs) if s.headings),
        max(float(_value(r.scores["metrics"], "vqa.unjudged") or 0.0) for r in results),
    )


def _pairs(settings: Sequence[Setting]) -> Iterator[_Pair]:
    """An editor's direct and reasoning run side by side; several variants are lines apart."""
    variants = [s for s in settings if s.protocol.split(":")[0] == REASONING]
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    labels = _labels(settings)
    for setting in settings:
        kind = setting.protocol.split(":")[0]
        for result in setting.results:
            label = labels[id(result)]
            if kind == REASONING and len(variants) > 1:
                label = f"{label} ({setting.protocol.split(':')[1]})"
            found.setdefault(label, {})[kind] = result.scores
    return (_Pair(label, scores) for label, scores in found.items())


def _labels(settings: Sequence[Setting]) -> dict[int, str]:
    """A result's label among all results of its editor, whatever the protocol."""
    longest = max(settings, key=lambda s: len(s.results)).results
    names = {_who(r): r.label for r in labelled(longest)}
    return {
        id(r): names.get(_who(r), r.label) for s in settings for r in s.results
    }  # fmt: skip


def _who(result: Result) -> tuple[str, str, str]:
    m = result.manifest
    return result.editor, digest(dict(result.arguments)), str(m.get("seed"))


def _sheets(pairs: Sequence[_Pair]) -> Iterator[ImageTable]:
    yield _sheet("All stages", [(i, c[1], c[2], "") for i, c in enumerate(COLUMNS)], pairs, _all)
    staged = [
        (i, _grouped(COLUMNS[i][1], stage), stage.replace("stage", "stage "), COLUMNS[i][2])
        for i in BY_STAGE
        for stage in STAGES
    ]
    yield _sheet("By stage", staged, pairs, _all)
    names = dict.fromkeys(
        (part, value)
        for pair in pairs
        for scores in pair.scores.values()
        for part, values in scores.get("by_part", {}).items()
        for value in values
    )
    for part in dict.fromkeys(part for part, _ in names):
        values = [v for p, v in names if p == part]
        if len(values) < 2:
            continue
        wanted = [
            (i, f"{value}\n{COLUMNS[i][1]}", value, COLUMNS[i][2])
            for i in BY_PART
            for value in values
        ]
        yield _sheet(f"By {part}", wanted, pairs, _of_part(part))
        if len(values) < 3:
            continue
        plain = [(i, c[1], c[2], "") for i, c in enumerate(COLUMNS) if i in BY_PART]
        yield _sheet(f"Mean over the parts by {part}, of equal weight", plain, pairs, _macro(part))


def _grouped(key: str, group: str) -> str:
    kind, _, scorer = key.partition(".")
    return f"{kind}/{group}.{scorer}"


def _all(scores: Mapping[str, Any], key: str) -> ScoreCell:
    return cell_of(scores["metrics"], key)


def _of_part(part: str) -> Any:
    def read(scores: Mapping[str, Any], key: str) -> ScoreCell:
        value, _, name = key.partition("\n")
        return cell_of(scores.get("by_part", {}).get(part, {}).get(value, {}), name)

    return read


def _macro(part: str) -> Any:
    def read(scores: Mapping[str, Any], key: str) -> ScoreCell:
        return cell_of(scores.get("macro", {}).get(part, {}), key)

    return read


def _sheet(
    title: str,
    wanted: Sequence[tuple[int, str, str, str]],
    pairs: Sequence[_Pair],
    read: Any,
) -> ImageTable:
    """wanted: (column, key, label, heading over it)."""

    def cell(pair: _Pair, column: int, key: str) -> ScoreCell:
        protocol = COLUMNS[column][0]
        order = (protocol,) if protocol else (DIRECT, REASONING)
        scores = next((pair.scores[p] for p in order if p in pair.scores), None)
        found: ScoreCell = read(scores, key) if scores is not None else ScoreCell(None)
        return found

    def control(tag: str, column: int, key: str) -> ScoreCell:
        if "locality" in key:  # what is kept is measured against this very model
            return ScoreCell(None)
        tagged = (cell(p, column, f"{key}@{tag}") for p in pairs)
        found = next((c for c in tagged if c.value is not None), ScoreCell(None))
        if tag == "pre" and found.value is None:
            bases = (cell(p, column, key) for p in pairs)
            base = next((c for c in bases if c.base is not None), None)
            return ScoreCell(base.base, n=base.n, units=base.units) if base else ScoreCell(None)
        return found

    shown = [
        w for w in wanted
        if any(cell(p, w[0], w[1]).value is not None for p in pairs)
    ]  # fmt: skip
    headings = tuple(
        ColumnHeading(key, label, COLUMNS[i][3], over) for i, key, label, over in shown
    )
    lines = [ImageRow(p.label, tuple(cell(p, i, k) for i, k, _, _ in shown)) for p in pairs]
    bounds = [
        ImageRow(label, tuple(control(tag, i, k) for i, k, _, _ in shown), tag)
        for tag, (label, _) in CONTROLS.items()
    ]
    bounds = [b for b in bounds if any(c.value is not None for c in b.cells)]
    return ImageTable(title, headings, tuple([*bounds[:1], *lines, *bounds[1:]]))


def _value(metrics: Mapping[str, Any], key: str) -> float | None:
    entry = metrics.get(key)
    return None if entry is None else entry["value"]


def terminal_table(study: ImageStudy) -> Table:
    """The first table of a study for a terminal, percentages with 95 % intervals."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    sheet = study.sheets[0]
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=escape(f"{study.benchmark}: does the edit reach the picture? %"),
        caption=escape(
            f"{study.backbone}; {study.cases} cases, {study.units} units; judged by "
            f"{', '.join(study.judges)}"
        ),
    )
    table.add_column("method", no_wrap=True)
    for heading in sheet.headings:
        table.add_column(heading.label, justify="right")
    for line in sheet.lines:
        texts = (
            f"{percent(c.value)}\n[dim]{c.interval_to(0)}[/dim]" if c.value is not None else "–"
            for c in line.cells
        )
        table.add_row(escape(line.label), *texts, style="dim" if line.control else "")
    return table
