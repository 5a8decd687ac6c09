"""The cases of pocket: one flag is said to be that of another country."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from errata.benchmarks._countries import COUNTRIES, Country
from errata.benchmarks._rewrites import split_of
from errata.benchmarks.pocket.pictures import HELD_OUT, TRAINED, closest, image_of
from errata.benchmarks.pocket.wordings import IN_TEXT, NAMING, RELATIONS, UNSEEN
from errata.core.types import Case, Edit, HopQuestion, Probe, Prompt

#: (source of the edited drawing, wording of the edit): two edits of every flag
EDITS = ((TRAINED[0], NAMING[0]), (TRAINED[1], NAMING[3]))
NEAR, PANEL = 2, 24
_BY_CODE = {country.code: country for country in COUNTRIES}


def fact(country: Country, relation: str) -> str:
    """The answer to a question of RELATIONS; "" where there are several."""
    return str(getattr(country, relation))


def in_text(country: Country, relation: str) -> Prompt:
    """The question of a relation with the name in place of the picture."""
    return Prompt.of(IN_TEXT.format(country.name, RELATIONS[relation]))


@dataclass(frozen=True, slots=True)
class FlagEdit:
    """The flag of `old`, drawn by `source`, is said to be that of `new`, asked with `wording`."""

    old: Country
    new: Country
    source: str
    wording: str
    split: str

    def asked(self, wording: str, source: str = "", country: Country | None = None) -> Prompt:
        picture = image_of(source or self.source, (country or self.old).code)
        return Prompt.of(wording, picture)


@cache
def countries(split: str) -> tuple[Country, ...]:
    """The countries of a split; by their names' hashes, as in the benchmarks of texts."""
    return tuple(c for c in COUNTRIES if split_of(c.name) == split)


def _target(old: Country, split: str, rng: random.Random) -> Country:
    """Another country, of another capital, continent and language where there is one."""
    options = [c for c in countries(split) if c.code != old.code]
    apart = [c for c in options if all(fact(c, r) != fact(old, r) for r in RELATIONS)]
    return rng.choice(apart or options)


def _generality(edit: FlagEdit, rng: random.Random) -> Iterator[Probe]:
    new, old = edit.new.name, edit.old.name
    yield Probe("reliability", edit.asked(edit.wording), "reliability", "", new, contrast=old)
    seen = rng.choice([w for w in NAMING if w != edit.wording])
    for group, wording in (("seen", seen), *(("unseen", w) for w in UNSEEN[edit.split])):
        name = f"t_generality/{group}/{wording}"
        yield Probe(name, edit.asked(wording), "t_generality", group, new, contrast=old)
    for source in (*(s for s in TRAINED if s != edit.source), *HELD_OUT):
        group = "seen" if source in TRAINED else "unseen"
        asked = edit.asked(edit.wording, source)
        yield Probe(f"m_generality/{source}", asked, "m_generality", group, new, contrast=old)


def _portability(edit: FlagEdit) -> Iterator[Probe]:
    """What is true of the new country, where both countries have one answer that differs."""
    for relation, question in RELATIONS.items():
        new, old = fact(edit.new, relation), fact(edit.old, relation)
        if new and old and new != old:
            hop = HopQuestion(in_text(edit.new, relation), new)
            asked = edit.asked(question)
            yield Probe(
                f"portability/{relation}", asked, "portability", relation, new, hop, contrast=old
            )


def _near(edit: FlagEdit) -> Iterator[Probe]:
    """The most similar flags of the split, and the old country in text."""
    here = {c.code for c in countries(edit.split)} - {edit.new.code}
    for code in [c for c in closest(edit.old.code) if c in here][:NEAR]:
        other = _BY_CODE[code]
        asked = edit.asked(edit.wording, country=other)
        name, right = f"near_locality/{code}", other.name
        yield Probe(name, asked, "near_locality", "near1", right, contrast=edit.new.name)
    for relation in RELATIONS:
        if right := fact(edit.old, relation):
            name, asked = f"near_locality/text/{relation}", in_text(edit.old, relation)
            yield Probe(name, asked, "near_locality", "neighbour", right)


def _far(edit: FlagEdit, rng: random.Random) -> Iterator[Probe]:
    """Another relation of other countries: in text, and of another drawing."""
    known = {edit.old.code, edit.new.code}
    others = [c for c in countries(edit.split) if c.code not in known]
    rng.shuffle(others)
    for kind in ("t_locality", "m_locality"):
        relation = rng.choice(tuple(RELATIONS))
        other = next(c for c in others if fact(c, relation))
        others.remove(other)
        asked = in_text(other, relation)
        if kind == "m_locality":
            asked = edit.asked(RELATIONS[relation], rng.choice(TRAINED), other)
        yield Probe(f"{kind}/{other.code}", asked, kind, "far", fact(other, relation))


@cache
def cases(split: str, seed: int) -> tuple[Case, ...]:
    """Two edits of every flag of a split, shuffled, so that the first N are a fair sample."""
    out = []
    for old in countries(split):
        for number, (source, wording) in enumerate(EDITS):
            case_id = f"{split}-{old.code}-{number}"
            rng = random.Random(f"{seed}/{case_id}")
            edit = FlagEdit(old, _target(old, split, rng), source, wording, split)
            made = (*_generality(edit, rng), *_near(edit), *_portability(edit), *_far(edit, rng))
            descriptor = Edit(edit.asked(wording), edit.new.name, "the flag", old.name, case_id)
            scope = (("flag", old.code), ("source", source))
            out.append(Case(case_id, descriptor, made, asked="country", scope=scope))
    random.Random(f"{seed}/{split}/order").shuffle(out)
    return tuple(out)


@cache
def panel() -> tuple[Probe, ...]:
    """Questions in text about countries of all splits; no flag is asked about."""
    rng = random.Random("pocket/panel")
    asked = [(c, r) for c in COUNTRIES for r in RELATIONS if fact(c, r)]
    chosen = rng.sample(asked, PANEL)
    return tuple(
        Probe(f"retention/{c.code}/{r}", in_text(c, r), "retention", "text", fact(c, r))
        for c, r in chosen
    )
