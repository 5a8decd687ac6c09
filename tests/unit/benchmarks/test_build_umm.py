"""Records for `unike_umm` from rows: which are kept, what they say, and why others are not."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from errata.benchmarks.unike_umm.build.checks import KEYS, names, problem, related, same_look, words
from errata.benchmarks.unike_umm.build.folder import build_umm
from errata.benchmarks.unike_umm.build.relations import CATEGORIES, RELATIONS, by_wording
from errata.benchmarks.unike_umm.build.rows import build, read_rows
from errata.core.errors import BadData, BadSpec

STAGE = {
    "question": "What color is a fire hydrant?",
    "prompt": "The color of a fire hydrant is",
    "gt": "red",
    "gt_target": "purple",
    "image_prompt": "A photo of a fire hydrant on a sidewalk.",
    "visual_target": "The fire hydrant must be purple.",
    "vqa_question": "What color is the fire hydrant?",
}


def flat(number, subject, prompt, old, target):
    return {
        "case_id": number,
        "prompt": prompt,
        "subject": subject,
        "target_new": target,
        "ground_truth": old,
        "rephrase_prompt": "x",
        "locality_prompt": "y",
        "locality_ground_truth": "z",
    }


def nested(subject, prompt, relation, old, target):
    return {
        "prompt": prompt,
        "relation_id": relation,
        "target_new": {"str": target, "id": "Q1"},
        "target_true": {"str": old, "id": "Q2"},
        "subject": subject,
        "question": f"What about {subject}?",
    }


FLAT = [
    flat(0, "Lake Omba", "Lake Omba is located in the country of", "Peru", "Norway"),
    flat(1, "Ann Lee", "Ann Lee speaks the language", "French", "Dutch"),
    flat(2, "Ann Lee", "Ann Lee, the", "piano", "violin"),
    flat(3, "Ann Lee", "Ann Lee plays the instrument", "piano", "violin"),
    flat(4, "Ann Lee", "Ann Lee performs on the", "piano", "violin"),
    flat(5, "Ann Lee", "Ann Lee, playing the", "piano", "trumpet"),
    flat(6, "Ann Lee", "The occupation of Ann Lee is", "pianist", "mayor"),
    flat(7, "Bank of Montreal", "Bank of Montreal is based in", "Montreal", "Oslo"),
    flat(8, "Dan Roe", "Dan Roe professionally plays the sport", "soccer", "football"),
    flat(9, "Tom", "The tune is produced by", "Sony", "Fiat"),
    flat(10, "Dan Roe", "Dan Roe was born in", "Paris", "Rome"),
    flat(11, "The Bells", "The Bells label :", "Word", "Coral"),
]
NESTED = [
    {"case_id": 7, "requested_rewrite": [
        nested("Ova", "{} was created by", "P170", "Stan Lee", "Jane Doe"),
        nested("Ova", "The director of {} is", "P1037", "A. B.", "C. D."),
    ]},
    {"case_id": 8, "requested_rewrite": [
        nested("Lake Omba", "{} is located in the continent of", "P30", "Asia", "Europe"),
        nested("Zed Co", "The headquarters of {} is in the city of", "P159", "Bonn", "Rome"),
        nested("Zed Co", "The headquarters of {} is in the city of", "P159", "Kiel", "Rome"),
    ]},
]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    paths = (tmp_path / "cf.json", tmp_path / "mq.json")
    for path, data in zip(paths, (FLAT, NESTED), strict=True):
        path.write_text(json.dumps(data), encoding="utf-8")
    return paths


def test_rows_become_records_or_are_rejected_with_a_reason(files):
    rows = [row for path in files for row in read_rows(path)]
    records, rejected = build(rows)
    assert [(r.subject, r.category) for r in records] == [
        ("Lake Omba", "location"),
        ("Ann Lee", "occupation"),
        ("Ova", "creator"),
    ]
    assert {(r.file, r.number, r.subject): r.reason for r in rejected if r.file == "cf.json"} == {
        ("cf.json", 1, "Ann Lee"): "a language or genre has no look",
        ("cf.json", 2, "Ann Lee"): "the wording fits several relations",
        ("cf.json", 4, "Ann Lee"): "duplicate: an earlier row makes the same edit",
        ("cf.json", 5, "Ann Lee"): "conflict: an earlier row wants another answer",
        ("cf.json", 6, "Ann Lee"): (
            "conflict: an earlier row edits the same category of the subject"
        ),
        ("cf.json", 7, "Bank of Montreal"): "image_prompt names the old answer",
        ("cf.json", 8, "Dan Roe"): "old answer and target look the same",
        ("cf.json", 9, "Tom"): "the prompt does not hold the subject",
        ("cf.json", 10, "Dan Roe"): "the value is not seen in a picture of the subject",
        ("cf.json", 11, "The Bells"): "prompt is not the beginning of a sentence",
    }
    assert Counter(r.reason for r in rejected if r.file == "mq.json") == {
        "the relation belongs to none of the four categories": 1,
        "conflict: an earlier row edits the same category of the subject": 1,
        "rows disagree about the old answer": 2,
    }
    assert len(records) + len(rejected) == len(rows) == 17


def test_a_record_has_the_published_keys_and_its_own_rows_words(files):
    records, _ = build(read_rows(files[1]))
    published = next(r for r in records if r.subject == "Ova").published()
    assert set(published) == {"subject", "category", "source", "stage_1"}
    assert published["source"] == "relation" and published["category"] == "creator"
    stage = published["stage_1"]
    assert set(stage) == set(KEYS)
    assert stage["prompt"] == "Ova was created by"
    assert (stage["gt"], stage["gt_target"]) == ("Stan Lee", "Jane Doe")
    assert stage["question"] == "What about Ova?"
    assert "Ova" in stage["image_prompt"] and "Jane Doe" in stage["visual_target"]


@pytest.mark.parametrize("relation", [r for r in RELATIONS if r.category], ids=lambda r: r.id)
def test_every_relations_templates_make_a_neutral_stage(relation):
    assert relation.category in CATEGORIES

    def say(template):
        return template.format(s="Zorblax Quu", t="Vexomir")

    stage = {
        "question": say(relation.question),
        "prompt": "Zorblax Quu is",
        "gt": "Prellon",
        "gt_target": "Vexomir",
        "image_prompt": say(relation.picture),
        "visual_target": say(relation.shows),
        "vqa_question": say(relation.asks),
    }
    assert problem(stage, "Zorblax Quu") is None


def test_wordings_are_told_apart():
    wordings = {
        "{} is located in": "P276", "The headquarter of {} is located in": "P159",
        "{} is located in the country of": "P17", "{} belongs to the continent of": "P30",
        "{}'s capital is": "P36", "{}, a product of": "P176", "{}, a product created by": "P178",
        "{} works as": "P106", "{} works for": "P108", "{} plays as": "P413",
        "{} holds the position of": "P39", "{} works in the field of": "P101",
        "{} was founded in": "P740", "{} was created in": "P495", "{} was employed in": "P937",
        "{} premieres on": "P449", "{} was released by": "P264", "The twin city of {} is": "P190",
    }  # fmt: skip
    assert {t: [r.id for r in by_wording(t)] for t in wordings} == {
        t: [id] for t, id in wordings.items()
    }
    assert [by_wording(t) for t in ("{}, in", "{} plays", "{} is from")] == [(), (), ()]


def test_word_forms():
    for a, b in (
        ("italy", "italian"), ("france", "french"), ("stripe", "striped"), ("europe", "european"),
        ("norway", "norwegian"), ("wool", "woollen"), ("buddhism", "buddhist"), ("red", "red"),
    ):  # fmt: skip
        assert related(a, b) and related(b, a), (a, b)
    for a, b in (
        ("iran", "iraq"),
        ("india", "indiana jones"),
        ("red", "rendered"),
        ("tan", "tank"),
    ):
        assert not related(a, b), (a, b)
    assert words("St. John's U.S.A. café") == ("st", "john", "usa", "café")


@pytest.mark.parametrize(
    ("text", "value", "named"),
    [
        ("a featured, rendered picture", "red", False),
        ("a Red barn", "red", True),
        ("the French coast", "France", True),
        ("seen on BBC One", "British Broadcasting Corporation", True),
        ("the York road", "New York", True),
        ("the company in the city", "Ford Motor Company", False),
        ("a tiny cup", "small", True),
        ("polka dots on it", "dotted", True),
        ("between weeks", "wee", False),
    ],
)
def test_what_names_a_value(text, value, named):
    assert names(text, value) is named


def test_values_that_look_the_same():
    assert same_look("Soccer", "football") and same_look("x y", "X  y")
    assert not same_look("red", "purple")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"gt": None}, "gt is no text"),
        ({"extra": "x"}, "unknown extra"),
        ({"gt_target": "crimson"}, "look the same"),
        ({"image_prompt": "A photo of a hydrant."}, "image_prompt does not name the subject"),
        ({"image_prompt": "A reddish fire hydrant."}, "image_prompt names the old answer"),
        ({"image_prompt": "A rendered fire hydrant."}, None),
        ({"image_prompt": "A scarlet fire hydrant."}, "image_prompt names the old answer"),
        ({"image_prompt": "A violet fire hydrant."}, "image_prompt names the target"),
        ({"vqa_question": "Is it purple?"}, "vqa_question names the target"),
        ({"vqa_question": "Its color"}, "vqa_question is no question"),
        ({"prompt": "A fire hydrant has a color."}, "not the beginning"),
        ({"prompt": "The color of {} fire hydrant is"}, "braces"),
        ({"visual_target": "The fire hydrant is purple."}, "must be seen"),
        ({"visual_target": "It must be red."}, "must be seen"),
        ({"question": "a\nb"}, "question is not one line"),
        ({"gt": ""}, "gt is not one line"),
        ({"prompt": "x" * 301}, "prompt is not one line"),
    ],
)
def test_what_a_stage_must_be(change, why):
    found = problem({**STAGE, **change}, "fire hydrant")
    assert found is None if why is None else why in (found or "")


def test_a_stage_may_lack_no_key_and_be_no_list():
    assert problem({k: v for k, v in STAGE.items() if k != "gt"}, "x") == "the stage lacks gt"
    assert problem([STAGE], "x") == "the stage is no JSON object"


def test_the_folder(files, tmp_path):
    out = tmp_path / "out"
    facts = build_umm(out, files, None, lambda *a: None)
    records = json.loads((out / "UniKE.json").read_text())
    lines = [json.loads(x) for x in (out / "rejected.jsonl").read_text().splitlines()]
    assert facts["relations"]["records"] == len(records) == 3
    assert facts["relations"]["rejected"] == len(lines) == 14
    assert sum(facts["relations"]["by reason"].values()) == 14
    assert lines[0]["data"] == FLAT[1] and lines[0]["reason"] == "a language or genre has no look"
    before = (out / "UniKE.json").read_bytes()
    build_umm(out, files, None, lambda *a: None)
    assert (out / "UniKE.json").read_bytes() == before


def test_bad_files_are_named(tmp_path):
    for text, why in (("[{}]", "row 0"), ("{}", "no JSON list"), ("[", "not JSON")):
        path = tmp_path / "rows.json"
        path.write_text(text)
        with pytest.raises(BadData, match=why):
            read_rows(path)
    with pytest.raises(BadData, match=r"none\.json does not exist"):
        read_rows(tmp_path / "none.json")
    with pytest.raises(BadSpec, match="nothing to build from"):
        build_umm(tmp_path / "o", (), None, lambda *a: None)
