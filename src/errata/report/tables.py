"""Methods x columns of scores: one model for the terminal and for HTML; one scorer per table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.core.formats.counts import counted
from errata.core.kinds import COLUMNS, ProbeKind, ScoreColumn, column_of
from errata.report.results import Result, Setting

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """One score, as fractions; `value` is None where nothing was scored."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    units: int = 0
    unscored: int = 0
    base: float | None = None

    @property
    def text(self) -> str:
        return percent(self.value)

    @property
    def interval(self) -> str:
        return self.interval_to()

    def interval_to(self, digits: int = 1) -> str:
        """The interval with so many decimals; "" where there is none."""
        if self.low is None:
            return ""
        return f"{percent(self.low, digits)}–{percent(self.high, digits)}"


@dataclass(frozen=True, slots=True)
class ColumnHeading:
    """A column; `over` is the heading above several groups of one kind."""

    key: str
    label: str
    meaning: str
    over: str = ""
    short: str = ""

    @property
    def named(self) -> str:
        """The label, with the heading above it."""
        return f"{self.over}: {self.label}" if self.over else self.label


@dataclass(frozen=True, slots=True)
class TableRow:
    label: str
    cells: tuple[ScoreCell, ...]


@dataclass(frozen=True, slots=True)
class TableView:
    """One table. `base` is the unedited model's score on the same references, per column."""

    scorer: str
    headings: tuple[ColumnHeading, ...]
    lines: tuple[TableRow, ...]
    base: tuple[float | None, ...]

    @property
    def counts(self) -> list[str]:
        """The number of scored cases per column, as a range where methods differ."""
        columns = (sorted(line.cells[i].n for line in self.lines) for i in range(len(self.base)))
        return [f"{n[0]}" if n[0] == n[-1] else f"{n[0]}–{n[-1]}" for n in columns]

    @property
    def unscored(self) -> list[tuple[str, str, int]]:
        """(method, column, cases) wherever something could not be scored."""
        return [
            (line.label, f"{h.over} {h.label}".strip(), cell.unscored)
            for line in self.lines
            for h, cell in zip(self.headings, line.cells, strict=True)
            if cell.unscored
        ]


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def cell_of(metrics: Mapping[str, Any], key: str) -> ScoreCell:
    """The score under a key of `scores.json`; an empty cell where it is not there.

    An interval without width, which errata before 0.2 wrote where all units agree, is read as none:
    `errata score` computes it anew.
    """
    entry = metrics.get(key)
    if entry is None:
        return ScoreCell(None)
    low, high = entry["ci95"] or (None, None)
    if low == high:
        low = high = None
    return ScoreCell(
        entry["value"], low, high, entry["n"], entry["units"], entry["unscored"], entry.get("base")
    )


def columns_of(results: Sequence[Result], scorer: str) -> list[ScoreColumn]:
    """The columns that any of these runs has a value for under `scorer`, in the tables' order."""
    custom: dict[str, ProbeKind] = {}
    names: dict[str, None] = {}
    for result in results:
        custom |= result.custom_kinds
        for key, entry in result.metrics.items():
            head, _, tail = key.rpartition(".")
            if tail == scorer and "/" not in head and entry["value"] is not None:
                names[head] = None
    order = list(COLUMNS)
    known = sorted((n for n in names if n in COLUMNS), key=order.index)
    return [column_of(n, custom) for n in (*known, *(n for n in names if n not in COLUMNS))]


def main_view(setting: Setting, scorer: str, *, tag: str = "", origin: str = "") -> TableView:
    """All columns under one scorer.

    `tag` own: right after the case's own edit; `origin`: only the edits of that origin.
    """
    headings = [
        ColumnHeading(
            f"{column.name}.{scorer}{f'@{tag}' if tag else ''}",
            column.heading,
            column.meaning,
            short=column.short_heading,
        )
        for column in columns_of(setting.results, scorer)
    ]
    return _view(setting, scorer, headings, origin)


def group_view(setting: Setting, scorer: str) -> TableView:
    """The groups of every kind that has several; near locality first."""
    groups: dict[str, set[str]] = {}
    for result in setting.results:
        for key in result.metrics:
            head, _, tail = key.rpartition(".")
            kind, _, group = head.partition("/")
            if group and tail == scorer:
                groups.setdefault(kind, set()).add(group)
    columns = [c for c in columns_of(setting.results, scorer) if len(groups.get(c.name, ())) > 1]
    headings = [
        ColumnHeading(
            f"{column.name}/{group}.{scorer}",
            group.replace("_", " "),
            column.group_meaning(group) if isinstance(column, ProbeKind) else column.meaning,
            column.heading,
        )
        for column in sorted(columns, key=lambda c: c.name != "near_locality")
        for group in sorted(groups[column.name])
    ]
    return _view(setting, scorer, headings, "")


def origins(setting: Setting) -> list[str]:
    """The origins of edits, when there are several."""
    names = sorted({o for r in setting.results for o in r.scores.get("by_origin", {})})
    return names if len(names) > 1 else []


def _view(
    setting: Setting, scorer: str, headings: Sequence[ColumnHeading], origin: str
) -> TableView:
    def metrics(result: Result) -> Mapping[str, Any]:
        by_origin: Mapping[str, Any] = result.scores["by_origin"] if origin else {}
        return by_origin.get(origin, {}) if origin else result.metrics

    def has_value(heading: ColumnHeading) -> bool:
        cells = [cell_of(metrics(r), heading.key) for r in setting.results]
        return any(cell.value is not None for cell in cells)

    shown = tuple(filter(has_value, headings))
    lines = tuple(
        TableRow(r.label, tuple(cell_of(metrics(r), h.key) for h in shown)) for r in setting.results
    )
    base = tuple(
        next((c.base for c in column if c.base is not None), None)
        for column in (tuple(line.cells[i] for line in lines) for i in range(len(shown)))
    )
    return TableView(scorer, shown, lines, base)


def terminal_table(setting: Setting, scorer: str = "exact") -> Table:
    """A rich table of one setting, percentages with 95 % intervals."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    view = main_view(setting, scorer)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=escape(f"{setting.benchmark}, {setting.protocol}: {scorer}, %"),
        caption=escape(
            f"{setting.backbone}; {counted(setting.cases, 'case')}, "
            f"{counted(setting.units, 'unit')}"
        ),
    )
    table.add_column("method", no_wrap=True)
    for heading in view.headings:
        table.add_column(escape(heading.short), justify="right", no_wrap=True)
    table.add_row("unedited", *(percent(b) for b in view.base), style="dim", end_section=True)
    for line in view.lines:
        texts = (f"{c.text}\n[dim]{c.interval_to(0)}[/dim]" for c in line.cells)
        table.add_row(escape(line.label), *texts)
    table.add_section()
    table.add_row("n", *view.counts, style="dim")
    return table


def left_out(setting: Setting) -> list[str]:
    """What the plan of the runs left out, and why, one line for cases and one for questions."""
    lines = []
    for what, reasons in setting.dropped.items():
        count = sum(n for _, n in reasons)
        why = "; ".join(f"{n} x {reason}" if n < count else reason for reason, n in reasons[:3])
        more = " and other reasons" if len(reasons) > 3 else ""
        lines.append(
            f"{counted(count, what.removesuffix('s'))} left out before any edit: "
            f"{why.rstrip('.')}{more} (plan.json)"
        )
    return lines


INTERVALS = (
    "95 % intervals: Student's t over independent units (edits made one after another are one "
    "unit). Where all units agree it is the bound of Clopper and Pearson."
)
UNEDITED = "how often the model already gave the reference answer before any edit"


def legend(settings: Sequence[Setting], scorer: str = "exact") -> list[tuple[str, str]]:
    """(word, meaning) of what stands in the terminal's tables: columns, first and last row."""
    words: dict[str, str] = {}
    for setting in settings:
        for h in main_view(setting, scorer).headings:
            same = h.label.casefold() == h.short.casefold()
            words[h.short] = h.meaning if same else f"{h.label}. {h.meaning}"
    return [
        *((word, meaning.strip()) for word, meaning in words.items()),
        ("unedited", f"{UNEDITED}."),
        ("n", "cases that have a score in the column; the others are unscored."),
        ("a–b", INTERVALS),
    ]
