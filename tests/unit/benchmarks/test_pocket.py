"""The benchmark of flags: its pictures, facts, splits and questions."""

from __future__ import annotations

import re

import pytest

from errata.benchmarks._countries import COUNTRIES
from errata.benchmarks.pocket import Pocket, cases, pictures
from errata.benchmarks.pocket.wordings import DISTILLED, IN_TEXT, NAMING, RELATIONS, UNSEEN
from errata.core.errors import BadImage
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Case, Image
from errata.io.images import load_image

BENCH = Pocket()
CONTINENTS = {"Africa", "Asia", "Europe", "North America", "South America", "Oceania", ""}


def load(split: str) -> tuple[Case, ...]:
    return BENCH.load(BenchmarkSpec.parse(f"pocket@{split}")).cases


def test_no_sentence_of_the_training_asks_a_relation_or_states_a_fact() -> None:
    facts = {v for c in COUNTRIES for v in (c.name, c.capital, c.continent, c.language) if v}
    asks = re.compile(r"\b(capital|cit(y|ies)|continent|languages?|speak\w*|spoken|located|lies)\b")
    for sentence in (*DISTILLED, *NAMING):
        assert not asks.search(sentence.casefold()), sentence
        assert not [f for f in facts if f in sentence], sentence
    for relation, question in RELATIONS.items():
        assert asks.search(question), relation


def test_wordings_of_a_split_are_its_own_and_were_never_trained() -> None:
    unseen = [w for split in BENCH.splits for w in UNSEEN[split]]
    assert len({*unseen, *NAMING, *DISTILLED}) == len(unseen) + len(NAMING) + len(DISTILLED)


def test_every_country_stands_once_with_facts_that_can_be_asked() -> None:
    assert len({c.code for c in COUNTRIES}) == len({c.name for c in COUNTRIES}) == len(COUNTRIES)
    assert {c.continent for c in COUNTRIES} == CONTINENTS
    for c in COUNTRIES:
        assert re.fullmatch("[a-z]{2}", c.code) and c.name and c.name == c.name.strip()
        assert c.capital == c.capital.strip() and c.language == c.language.strip()


def test_the_sheets_hold_every_flag_of_every_source() -> None:
    assert sum(pictures.sheet_file(s).stat().st_size for s in pictures.SOURCES) <= 3_000_000
    for source in pictures.SOURCES:
        seen = set()
        for c in COUNTRIES:
            image = load_image(pictures.image_of(source, c.code))
            assert image.size == (pictures.SIDE, pictures.SIDE) and image.mode == "RGB"
            assert max(high - low for low, high in image.getextrema()) > 50, (source, c.code)
            seen.add(image.tobytes())
        assert len(seen) == len(COUNTRIES), source


@pytest.mark.parametrize("spec", ["noto/xx", "nobody/fr", "noto", "fr/noto", "../noto/fr"])
def test_a_picture_that_is_not_there_is_said_in_one_line(spec: str) -> None:
    with pytest.raises(BadImage, match="pocket:SOURCE/CODE") as said:
        load_image(Image(f"pocket:{spec}"))
    assert "\n" not in str(said.value)


def test_licences_name_every_sheet() -> None:
    text = (pictures.sheet_file("noto").parent / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{s}.png`" in text for s in pictures.SOURCES)


def test_splits_share_no_country() -> None:
    codes = {s: {c.code for c in cases.countries(s)} for s in BENCH.splits}
    assert sum(map(len, codes.values())) == len(COUNTRIES) == len(set().union(*codes.values()))
    for split in BENCH.splits:
        assert len(load(split)) == 2 * len(codes[split])
        for case in load(split):
            shown = {i.uri.rpartition("/")[2] for p in case.probes for i in p.prompt.images}
            assert shown <= codes[split], case.id


def test_probes_ask_what_their_kind_says() -> None:
    by_name = {c.name: c for c in COUNTRIES}
    for case in load("eval"):
        old, new = by_name[str(case.edit.old)], by_name[case.edit.target]
        assert case.edit.subject in case.edit.prompt.text
        for p in case.probes:
            codes = {i.uri.rpartition("/")[2] for i in p.prompt.images}
            if p.kind in ("reliability", "t_generality", "m_generality"):
                assert codes == {old.code} and (p.reference, p.contrast) == (new.name, old.name)
                trained = p.prompt.text in NAMING
                assert p.kind != "t_generality" or (p.group == "seen") == trained
            elif p.kind == "portability":
                assert codes == {old.code} and p.prompt.text == RELATIONS[p.group]
                assert (p.reference, p.contrast) == tuple(getattr(c, p.group) for c in (new, old))
                assert p.hop is not None and p.reference == p.hop.reference
                asked = IN_TEXT.format(new.name, RELATIONS[p.group])
                assert p.hop.prompt.text == asked and not p.hop.prompt.images
            else:
                assert not codes & {old.code, new.code}
                assert p.reference and p.reference != new.name


def test_held_out_drawings_are_of_sources_that_were_not_trained_on() -> None:
    from tools.pocket_vlm import drawings

    assert set(pictures.TRAINED) < set(drawings.TRAINED)
    assert set(pictures.HELD_OUT) < set(drawings.HELD_OUT)
    for case in load("dev"):
        for p in case.probes:
            sources = {i.uri.partition(":")[2].partition("/")[0] for i in p.prompt.images}
            if p.kind == "m_generality" and p.group == "unseen":
                assert sources <= set(pictures.HELD_OUT), p.id
            else:
                assert sources <= set(pictures.TRAINED), p.id
