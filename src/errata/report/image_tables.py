"""Does an edit reach the picture? One table per study, from runs that generate images.

A study has the runs on one model, benchmark and set of cases. A row is an editor; its columns come
from its `direct` run and from its `reasoning` run. The controls do not depend on the editor and
have their own rows: the unedited model, and the unedited model with the fact stated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.core.formats.counts import counted
from errata.core.types import digest
from errata.report.results import Result, Setting, labelled
from errata.report.tables import ColumnHeading, ScoreCell, cell_of, percent

if TYPE_CHECKING:
    from rich.table import Table

DIRECT, REASONING = "direct", "reasoning"
STAGES = ("stage1", "stage2", "stage3", "stage4")

#: (protocol of the score, "" for either; key of scores.json; heading; meaning)
COLUMNS = (
    ("", "efficacy.exact", "Efficacy", "The whole answer to the edited prompt is the target."),
    ("", "efficacy.first_token", "First token", "Its first token is: the published efficacy."),
    ("", "reasoning.word", "Reasoning", "The rationale states the target, as a whole word."),
    (DIRECT, "vqa.judge", "VQA direct", "The picture generated from the prompt shows the target."),
    (
        REASONING,
        "vqa.judge",
        "VQA reasoning",
        "The picture generated after a rationale shows the target.",
    ),
    ("", "t_locality.exact", "Text kept", "Unrelated questions keep their answer."),
    ("", "near_locality.exact", "Near kept", "Questions close to the edit keep their answer."),
    (
        DIRECT,
        "i_locality.judge",
        "Pictures kept",
        "Pictures of other things show the same as before.",
    ),
)
#: The columns that are also shown by stage, and by part of the cases.
BY_STAGE = (0, 1, 2, 3, 4)
BY_PART = (0, 3, 4)

#: tag of a control -> (label, meaning)
CONTROLS = {
    "pre": ("unedited", "The same questions before any edit."),
    "oracle": (
        "fact in the prompt",
        "The unedited model, the fact stated in the image prompt.",
    ),
    "ceiling": (
        "fact in a rationale",
        "The unedited model, the fact stated in a rationale.",
    ),
}


ReadCell = Callable[[Mapping[str, Any], str], ScoreCell]
"""(scores of a run, key) -> cell"""


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
        """Scored cases per column, as a range where rows differ."""
        out = []
        for i in range(len(self.headings)):
            n = sorted({c.n for c in (x.cells[i] for x in self.lines) if c.value is not None})
            out.append("–".join(str(x) for x in dict.fromkeys((n[0], n[-1]))) if n else "0")
        return out


@dataclass(frozen=True, slots=True)
class ImageStudy:
    """The runs of one model, benchmark and set of cases that generate images."""

    slug: str
    backbone: str
    benchmark: str
    cases: int
    units: int
    judges: tuple[str, ...]
    protocols: tuple[str, ...]
    tables: tuple[ImageTable, ...]
    unjudged: float


@dataclass(frozen=True, slots=True)
class _Pair:
    """The scores of an editor's runs, by protocol."""

    label: str
    scores: Mapping[str, Mapping[str, Any]]


def draws(setting: Setting) -> bool:
    """Whether the runs of a setting generated images."""
    return any("vqa.judge" in r.metrics for r in setting.results)


def studies(settings: Sequence[Setting]) -> list[ImageStudy]:
    """The studies that the runs make, in the order of the runs."""
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in filter(draws, settings):
        key = (setting.fingerprint, setting.benchmark, digest(setting.results[0].case_ids))
        groups.setdefault(key, []).append(setting)
    return [_study(f"d{i}", group) for i, group in enumerate(groups.values())]


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
        tuple(t for t in _tables(pairs) if t.headings),
        max(float(cell_of(r.metrics, "vqa.unjudged").value or 0.0) for r in results),
    )


def _pairs(settings: Sequence[Setting]) -> Iterator[_Pair]:
    """An editor's direct and reasoning run together; each variant of reasoning is a row."""
    variants = [s for s in settings if s.protocol.split(":")[0] == REASONING]
    scores: dict[str, dict[str, Mapping[str, Any]]] = {}
    labels = _labels(settings)
    for setting in settings:
        kind = setting.protocol.split(":")[0]
        for result in setting.results:
            label = labels[id(result)]
            if kind == REASONING and len(variants) > 1:
                label = f"{label} ({setting.protocol.split(':')[1]})"
            scores.setdefault(label, {})[kind] = result.scores
    return (_Pair(label, by_protocol) for label, by_protocol in scores.items())


def _labels(settings: Sequence[Setting]) -> dict[int, str]:
    """A result's label among all results of its editor, whatever the protocol."""
    longest = max(settings, key=lambda s: len(s.results)).results
    names = {_identity(r): r.label for r in labelled(longest)}
    return {
        id(r): names.get(_identity(r), r.label) for s in settings for r in s.results
    }  # fmt: skip


def _identity(result: Result) -> tuple[str, str, str]:
    m = result.manifest
    return result.editor, digest(dict(result.arguments)), str(m.get("seed"))


def _tables(pairs: Sequence[_Pair]) -> Iterator[ImageTable]:
    yield _table("All stages", [(i, c[1], c[2], "") for i, c in enumerate(COLUMNS)], pairs, _all)
    staged = [
        (i, _grouped(COLUMNS[i][1], stage), stage.replace("stage", "stage "), COLUMNS[i][2])
        for i in BY_STAGE
        for stage in STAGES
    ]
    yield _table("By stage", staged, pairs, _all)
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
        yield _table(f"By {part}", wanted, pairs, _of_part(part))
        if len(values) < 3:
            continue
        plain = [(i, c[1], c[2], "") for i, c in enumerate(COLUMNS) if i in BY_PART]
        yield _table(f"Mean over the parts by {part}, of equal weight", plain, pairs, _macro(part))


def _grouped(key: str, group: str) -> str:
    kind, _, scorer = key.partition(".")
    return f"{kind}/{group}.{scorer}"


def _all(scores: Mapping[str, Any], key: str) -> ScoreCell:
    return cell_of(scores["metrics"], key)


def _of_part(part: str) -> ReadCell:
    def read(scores: Mapping[str, Any], key: str) -> ScoreCell:
        value, _, name = key.partition("\n")
        return cell_of(scores.get("by_part", {}).get(part, {}).get(value, {}), name)

    return read


def _macro(part: str) -> ReadCell:
    def read(scores: Mapping[str, Any], key: str) -> ScoreCell:
        return cell_of(scores.get("macro", {}).get(part, {}), key)

    return read


def _table(
    title: str,
    wanted: Sequence[tuple[int, str, str, str]],
    pairs: Sequence[_Pair],
    read: ReadCell,
) -> ImageTable:
    """wanted: (index in COLUMNS, key, label, heading over it) of every column.

    read: (scores, key) -> cell.
    """

    def cell(pair: _Pair, column: int, key: str) -> ScoreCell:
        protocol = COLUMNS[column][0]
        order = (protocol,) if protocol else (DIRECT, REASONING)
        scores = next((pair.scores[p] for p in order if p in pair.scores), None)
        return read(scores, key) if scores is not None else ScoreCell(None)

    def control(tag: str, column: int, key: str) -> ScoreCell:
        if "locality" in key:  # locality compares with the unedited model itself
            return ScoreCell(None)
        tagged = (cell(p, column, f"{key}@{tag}") for p in pairs)
        score = next((c for c in tagged if c.value is not None), ScoreCell(None))
        if tag == "pre" and score.value is None:
            bases = (cell(p, column, key) for p in pairs)
            base = next((c for c in bases if c.base is not None), None)
            return ScoreCell(base.base, n=base.n, units=base.units) if base else ScoreCell(None)
        return score

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


def terminal_table(study: ImageStudy) -> Table:
    """The first table of a study for a terminal, percentages with 95 % intervals."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    first = study.tables[0]
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=escape(f"{study.benchmark}: does the edit reach the picture? %"),
        caption=escape(
            f"{study.backbone}; {counted(study.cases, 'case')}, {counted(study.units, 'unit')}; "
            f"judged by {', '.join(study.judges)}"
        ),
    )
    table.add_column("method", no_wrap=True)
    for heading in first.headings:
        table.add_column(heading.label, justify="right")
    for line in first.lines:
        texts = (
            f"{percent(c.value)}\n[dim]{c.interval_to(0)}[/dim]" if c.value is not None else "–"
            for c in line.cells
        )
        table.add_row(escape(line.label), *texts, style="dim" if line.control else "")
    table.add_section()
    table.add_row("n", *first.counts, style="dim")
    return table


def legend(drawn: Sequence[ImageStudy]) -> list[tuple[str, str]]:
    """(word, meaning) of the columns and controls in the terminal's tables of pictures."""
    tables = [study.tables[0] for study in drawn]
    words = {h.label: h.meaning for table in tables for h in table.headings}
    controls = {row.control for table in tables for row in table.lines}
    return [*words.items(), *(CONTROLS[c] for c in ("oracle", "ceiling") if c in controls)]
