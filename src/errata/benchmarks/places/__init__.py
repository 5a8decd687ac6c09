"""Places: the country of a city is changed, and what follows from it is asked (`places`).

307 cities, 54 countries and 30 questions of general knowledge, written for errata, for language
models that know the world. The new country lies on another continent and has another language than
the true one, so that all that follows from the edit changes. The plan keeps the cities whose
country the unedited model knows, and the consequences that it knows (the new country's capital).
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from errata.benchmarks._countries import COUNTRIES, Country
from errata.benchmarks._rewrites import SPLITS, Rewrite, case_of, split_of
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Case, HopQuestion, Probe, Prompt

RELATION = "country"
#: The city is not the first word: without BOS, a model's first position is unlike all others.
ASKED = "The city of {} is located in the country of"
PARAPHRASES = (
    "{} is a city in the country of",
    "The country where {} lies is called",
    "People who live in {} are citizens of",
)
#: What follows from the country: field of `Country` -> (about the city, about the country)
FOLLOWS: Mapping[str, tuple[str, str]] = {
    "capital": (
        "The capital of the country where {} is located is",
        "The capital of {} is",
    ),
    "continent": ("{} is a city on the continent of", "The continent on which {} lies is"),
    "language": (
        "The official language of the country where {} is located is",
        "The official language of {} is",
    ),
}
NEIGHBOURS = 2  # questions about other cities of the true country
FAR = 2  # questions of general knowledge


class Places(Benchmark):
    """One edit a city (task `text`).

    t_generality: three other wordings. near_locality: two cities of the same country
    (`same_answer`) and one of a third country (`neighbour`). t_locality: general knowledge (`far`).
    portability: the capital, the continent and the language of the city's country.
    """

    name: ClassVar[str] = "places"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = ("text",)
    splits: ClassVar[tuple[str, ...]] = SPLITS

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        cities = [(c, n) for c, n in _cities() if split_of(c) == spec.split]
        return Loaded(tuple(_case(city, _countries()[name]) for city, name in cities))

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Counts, and whether the tables agree. root: not used."""
        names = [name for _, name in _cities()]
        return {
            "cities": len(names),
            "countries": len(_countries()),
            "cities without a country": sorted(c for c, n in _cities() if n not in _countries()),
            "questions of general knowledge": len(_far_questions()),
            "splits": {s: sum(split_of(c) == s for c, _ in _cities()) for s in SPLITS},
        }


def _rows(name: str) -> list[list[str]]:
    """The rows of a table of this folder, without its heading."""
    text = (files(__package__ or "") / name).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines(), delimiter="\t"))[1:]


@cache
def _countries() -> Mapping[str, Country]:
    """The countries that have a city in the table, by name."""
    names = {name for _, name in _cities()}
    return {c.name: c for c in COUNTRIES if c.name in names}


def _differs(new: Country, true: Country) -> bool:
    """Whether the new country has another continent and language; it must have just one of each."""
    one = new.capital and new.continent and new.language
    return bool(one) and new.continent != true.continent and new.language != true.language


@cache
def _cities() -> Sequence[tuple[str, str]]:
    """(city, country), in the order of the table."""
    return [(city, country) for city, country in _rows("cities.tsv")]


@cache
def _far_questions() -> Sequence[tuple[str, str, str]]:
    """(question, its answer, a wrong answer)."""
    return [(q, right, wrong) for q, right, wrong in _rows("general.tsv")]


def _chosen(key: str, things: Sequence[Any]) -> Any:
    """One of `things`, by the hash of a text."""
    return things[
        int(hashlib.sha256(f"errata/places/{key}".encode()).hexdigest(), 16) % len(things)
    ]


def _case(city: str, true: Country) -> Case:
    new = _chosen(f"{city}/new", [c for c in _countries().values() if _differs(c, true)])
    prompt = ASKED.format(city)
    change = Rewrite(prompt, city, new.name, true.name, RELATION)
    probes = [*_direct(city, true, new), *_elsewhere(city, true, new), *_follows(city, true, new)]
    return case_of(f"places-{city}", change, probes, "counterfactual")


def _direct(city: str, true: Country, new: Country) -> Iterator[Probe]:
    asked = Prompt.of(ASKED.format(city))
    yield Probe("reliability", asked, "reliability", reference=new.name, contrast=true.name)
    for i, text in enumerate(PARAPHRASES):
        yield Probe(
            f"t_generality/{i}", Prompt.of(text.format(city)), "t_generality",
            reference=new.name, contrast=true.name,
        )  # fmt: skip


def _elsewhere(city: str, true: Country, new: Country) -> Iterator[Probe]:
    """What must not change: other cities, and general knowledge."""
    same = [c for c, name in _cities() if name == true.name and c != city]
    others = [(c, name) for c, name in _cities() if name not in (true.name, new.name)]
    near = []
    for i in range(min(NEIGHBOURS, len(same))):
        near.append((same.pop(same.index(_chosen(f"{city}/near{i}", same))), true.name))
    third = _chosen(f"{city}/third", others)
    for i, (name, answer) in enumerate([*near, third]):
        yield Probe(
            f"near_locality/{i}", Prompt.of(ASKED.format(name)), "near_locality",
            "same_answer" if answer == true.name else "neighbour", answer, contrast=new.name,
        )  # fmt: skip
    start = _far_questions().index(_chosen(f"{city}/far", _far_questions()))
    for i in range(FAR):
        text, right, wrong = _far_questions()[(start + i) % len(_far_questions())]
        yield Probe(f"t_locality/{i}", Prompt.of(text), "t_locality", "far", right, contrast=wrong)


def _follows(city: str, true: Country, new: Country) -> Iterator[Probe]:
    for column, (about_city, about_country) in FOLLOWS.items():
        answer, before = getattr(new, column), getattr(true, column)
        if not before:  # the true country has more than one: the edit may not change it
            continue
        hop = HopQuestion(Prompt.of(about_country.format(new.name)), answer)
        yield Probe(
            f"portability/{column}", Prompt.of(about_city.format(city)), "portability", column,
            answer, hop, contrast=before,
        )  # fmt: skip
