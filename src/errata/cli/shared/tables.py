"""Prints the tables of scored runs, and what their columns mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.cli.shared.printing import say, show_table

if TYPE_CHECKING:
    from errata.report.results import Setting


def print_tables(settings: Sequence[Setting], scorer: str = "exact") -> None:
    """One table per setting that has scores of `scorer`, one per study of pictures, a legend."""
    from rich.table import Table
    from rich.text import Text

    from errata.report import image_tables, tables

    scored = [s for s in settings if any(scorer in result.scorers for result in s.results)]
    drawn = image_tables.studies(settings)
    for setting in scored:
        show_table(tables.terminal_table(setting, scorer))
        for line in tables.left_out(setting):
            say(line)
    for study in drawn:
        show_table(image_tables.terminal_table(study))
    words = Table.grid(padding=(0, 2))
    for word, meaning in (*tables.legend(scored, scorer), *image_tables.legend(drawn)):
        words.add_row(Text(word, "bold"), Text(meaning, "dim"))
    show_table(words)
