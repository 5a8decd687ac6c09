"""Countries with capital, continent and language (`countries.tsv`); pocket draws their flags.

Left out are the flags that cannot be told from another one at this size, or that sources draw in
different forms because the state changed it: Chad (Romania), Monaco (Indonesia), Luxembourg (the
Netherlands), Syria and Afghanistan. An empty field is a question with more than one good answer.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Country:
    """name: as it stands in a sentence, with its article. code: ISO 3166, two letters."""

    code: str
    name: str
    capital: str
    continent: str
    language: str


def _read() -> tuple[Country, ...]:
    text = (files("errata") / "benchmarks" / "countries.tsv").read_text(encoding="utf-8")
    return tuple(Country(**row) for row in csv.DictReader(text.splitlines(), delimiter="\t"))


COUNTRIES = _read()
