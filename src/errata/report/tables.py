"""Methods x metrics: one model for the terminal and for HTML. One scorer per table, never mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.report.results import Result, Setting

if TYPE_CHECKING:
    from rich.table import Table

SCORERS = ("exact", "token")

#: kind -> (heading, what it says). In the order of the columns.
COLUMNS = {
    "reliability": ("Reliability", "the edited question is answered by the target"),
    "t_generality": ("T-generality", "so are other wordings of it"),
    "m_generality": ("M-generality", "so are other images of the same thing"),
    "t_locality": ("T-locality", "unrelated text questions keep their answer"),
    "m_locality": ("M-locality", "unrelated image questions keep their answer"),
    "mean5": ("Mean of 5", "the mean of the five columns before"),
    "near_locality": ("Near locality", "questions close to the edit keep their answer"),
    "mean6": ("Mean of 6", "the five, and near locality"),
    "portability": ("Portability", "what follows from the new fact is answered"),
    "retention": ("Retention", "a fixed panel of questions keeps its answers"),
    "efficacy": ("Efficacy", "the target reaches the output"),
    "joint": ("All at once", "one edit is reliable, general and local in every probe"),
}
#: Headings for a terminal, where ten columns must fit.
SHORT = {
    "reliability": "rel",
    "t_generality": "T-gen",
    "m_generality": "M-gen",
    "t_locality": "T-loc",
    "m_locality": "M-loc",
    "mean5": "mean 5",
    "near_locality": "near",
    "mean6": "mean 6",
    "portability": "port",
    "retention": "retain",
    "joint": "all",
}
SHOULD_CHANGE = frozenset(
    {"reliability", "t_generality", "m_generality", "portability", "efficacy"}
)


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
        """The interval with so many decimals, or nothing."""
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

    @property
    def kind(self) -> str:
        return self.key.rpartition(".")[0].partition("/")[0]


@dataclass(frozen=True, slots=True)
class TableRow:
    label: str
    cells: tuple[ScoreCell, ...]


@dataclass(frozen=True, slots=True)
class TableView:
    """One table: `base` is the untouched model's accuracy on the same references."""

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
    entry = metrics.get(key)
    if entry is None:
        return ScoreCell(None)
    low, high = entry["ci95"] or (None, None)
    return ScoreCell(
        entry["value"], low, high, entry["n"], entry["units"], entry["unscored"], entry.get("base")
    )


def main_view(setting: Setting, scorer: str, *, tag: str = "", origin: str = "") -> TableView:
    """All kinds under one scorer.

    `tag` own = right after the own edit; `origin` = only the edits of that origin.
    """
    headings = [
        ColumnHeading(f"{kind}.{scorer}{f'@{tag}' if tag else ''}", label, meaning)
        for kind, (label, meaning) in COLUMNS.items()
    ]
    return _view(setting, scorer, headings, origin)


def group_view(setting: Setting, scorer: str) -> TableView:
    """The groups of every kind that has several."""
    found: dict[str, dict[str, None]] = {}
    for result in setting.results:
        for key in result.scores["metrics"]:
            head, _, name = key.rpartition(".")
            kind, _, group = head.partition("/")
            if group and name == scorer:
                found.setdefault(kind, {})[group] = None
    headings = [
        ColumnHeading(
            f"{kind}/{group}.{scorer}",
            group.replace("_", " "),
            COLUMNS[kind][1],
            COLUMNS[kind][0],
        )
        for kind in sorted(found, key=lambda k: (k != "near_locality", list(COLUMNS).index(k)))
        if kind in COLUMNS and len(found[kind]) > 1
        for group in sorted(found[kind])
    ]
    return _view(setting, scorer, headings, "")


def origins(setting: Setting) -> list[str]:
    """The origins of edits, when there are several."""
    found = sorted({o for r in setting.results for o in r.scores.get("by_origin", {})})
    return found if len(found) > 1 else []


def _view(
    setting: Setting, scorer: str, headings: Sequence[ColumnHeading], origin: str
) -> TableView:
    def metrics(result: Result) -> Mapping[str, Any]:
        by_origin: Mapping[str, Any] = result.scores["by_origin"] if origin else {}
        found: Mapping[str, Any] = by_origin.get(origin, {}) if origin else result.scores["metrics"]
        return found

    def asked(heading: ColumnHeading) -> bool:
        cells = [cell_of(metrics(r), heading.key) for r in setting.results]
        return any(cell.value is not None for cell in cells)

    shown = tuple(h for h in headings if asked(h))
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
        caption=escape(f"{setting.backbone}; {setting.cases} cases, {setting.units} units"),
    )
    table.add_column("method", no_wrap=True)
    for heading in view.headings:
        table.add_column(SHORT.get(heading.kind, heading.label), justify="right", no_wrap=True)
    table.add_row("untouched", *(percent(b) for b in view.base), style="dim", end_section=True)
    for line in view.lines:
        texts = (f"{c.text}\n[dim]{c.interval_to(0)}[/dim]" for c in line.cells)
        table.add_row(escape(line.label), *texts)
    return table
