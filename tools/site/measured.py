"""What was measured of a plug-in: its rows in the tables of docs/results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import indent

from experiments.tables import BASE, MARKED, Table, markdown, read_csv
from tools.docs import ROOT

RESULTS = ROOT / "docs" / "results"
#: tables that are open; the others of a page are folded
SHOWN = 4
CSV = re.compile(r"--csv (\S+)")


@dataclass(frozen=True)
class Measured:
    """A table of a page of results. heading: the one above it."""

    page: str
    title: str
    heading: str
    csv: str
    rows: Table

    @property
    def first(self) -> str:
        return next(iter(self.rows[0]))

    def link(self, root: str) -> str:
        """A link to its heading. root: the way from a page to docs/."""
        where = f"#{_anchor(self.heading)}" if self.heading != self.title else ""
        text = self.title if self.heading == self.title else f"{self.title}: {self.heading}"
        return f"[{text.replace('`', '')}]({root}results/{self.page}.md{where})"

    def of(self, name: str) -> Table:
        """The rows about a plug-in: its name alone, with what tells variants apart, or as a part
        of the name of a run (`vqa-one_step-NAME-0`).
        """
        own = re.compile(rf"(?:^|-)`?{re.escape(name)}`?(?=$|[ ,(:-])")
        rows = [row for row in self.rows if own.search(row[self.first])]
        base = [row for row in self.rows if row[self.first] == BASE]
        return [*base, *rows] if rows else []


def _anchor(heading: str) -> str:
    """The anchor that Python-Markdown gives a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


@cache
def tables() -> tuple[Measured, ...]:
    """All tables of docs/results that have a CSV file, in the order of the index."""
    order = re.findall(r"^\| \[([\w-]+)\.md\]", (RESULTS / "index.md").read_text(), re.M)
    return tuple(table for page in order for table in _tables(page))


def _tables(page: str) -> Iterator[Measured]:
    text = (RESULTS / f"{page}.md").read_text(encoding="utf-8")
    title = re.findall(r"^# (.+)$", text, re.M)[0]
    for found in MARKED.finditer(text):
        if csv := CSV.search(found["arguments"]):
            headings = re.findall(r"^#{1,3} (.+)$", text[: found.start()], re.M)
            rows = read_csv(RESULTS / csv[1])
            yield Measured(page, title, headings[-1], Path(csv[1]).stem, rows)


def section(name: str, root: str, others: Sequence[str] = ()) -> str:
    """The part of a page that shows what was measured; "" if nothing was. others: CSV files shown
    whole.
    """
    parts = []
    for table in tables():
        if "difference" in table.first:
            continue
        rows = table.rows if table.csv in others else table.of(name)
        if rows:
            parts.append(f"From {table.link(root)}\n\n" + "\n".join(markdown(rows)))
    text, more = "\n\n".join(parts[:SHOWN]), "\n\n".join(parts[SHOWN:])
    if more:
        text += f'\n\n??? note "{len(parts) - SHOWN} more tables"\n\n' + indent(more, "    ")
    return text
