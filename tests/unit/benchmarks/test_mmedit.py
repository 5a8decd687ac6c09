"""MMEdit on hand-made rows; on the released files too if ERRATA_MMEDIT_ROOT names them."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from errata.benchmarks.mmedit import MMEdit, splits
from errata.benchmarks.mmedit.rows import KEYS, clean_rephrase, read_rows, rephrase_problem
from errata.core import registry
from errata.core.errors import BadData
from errata.core.measure.benchmark import BenchmarkSpec, Loaded
from errata.core.types import Case, from_json, to_json
from errata.io.images import load_image

NAMES = {
    ("vqa", "train"): "vqa_train.json",
    ("vqa", "eval"): "vqa_eval.json",
    ("caption", "train"): "caption_train_edit.json",
    ("caption", "eval"): "caption_eval_edit.json",
}
KINDS = ["reliability", "t_generality", "m_generality", "t_locality", "m_locality"]


def row(i: int, **change: str) -> dict[str, str]:
    return {
        "src": f"What is thing {i}?",
        "pred": "no",
        "rephrase": f"Which thing is number {i}?",
        "alt": "two birds",
        "image": f"val2014/{i}.jpg",
        "image_rephrase": f"val2014_image_rephrase/{i}.png",
        "loc": f"nq question: who wrote book {i}",
        "loc_ans": "someone",
        "m_loc": f"val2014/m{i}.jpg",
        "m_loc_q": f"What sport is {i}?",
        "m_loc_a": "golf",
    } | change


def write(root: Path, task: str, part: str, rows: Any, folder: str = "") -> Path:
    path = root / folder / NAMES[task, part]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def load(root: Path, text: str, seed: int = 0) -> Loaded:
    return MMEdit().load(BenchmarkSpec.parse(text), root=root, seed=seed)


def only(root: Path, **change: str) -> Loaded:
    write(root, "vqa", "eval", [row(0, **change)])
    return load(root, "mmedit:vqa")


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (4, 4), "red").save(root / name)


def locality(case: Case) -> Any:
    return next(p for p in case.probes if p.kind == "m_locality")


def small(root: Path, n: int = 60) -> None:
    """As in the release: some edited images shared, M-locality shared row by row."""
    shared = {"image": "val2014/0.jpg"}
    write(root, "vqa", "train", [row(i, **(shared if i < 3 else {})) for i in range(n)])
    write(
        root,
        "vqa",
        "eval",
        [row(i, image=f"val2014/{0 if i < 2 else 1000 + i}.jpg") for i in range(9)],
    )


def test_is_registered() -> None:
    assert registry.load("benchmarks", "mmedit") is MMEdit
    assert "MMEdit" in registry.summary("benchmarks", "mmedit")


def test_a_row_becomes_a_case_with_five_probes(tmp_path: Path) -> None:
    loaded = only(tmp_path, alt=" two birds \n", pred="two birds")
    (case,) = loaded.cases
    assert not loaded.skipped
    assert case.id == case.edit.id == "vqa-eval-00000" and case.task == "vqa"
    assert (case.edit.target, case.edit.old, case.origin) == ("two birds", None, "correction")
    assert [p.kind for p in case.probes] == KINDS == [p.id for p in case.probes]
    assert [p.prompt.text for p in case.probes] == [
        "What is thing 0?",
        "Which thing is number 0?",
        "What is thing 0?",
        "nq question: who wrote book 0",
        "What sport is 0?",
    ]
    base = tmp_path.resolve()
    pictures = [
        "val2014/0.jpg",
        "val2014/0.jpg",
        "val2014_image_rephrase/0.png",
        None,
        "val2014/m0.jpg",
    ]
    assert [p.prompt.images[0].uri if p.prompt.images else None for p in case.probes] == [
        None if p is None else str(base / p) for p in pictures
    ]
    assert [p.reference for p in case.probes] == ["two birds"] * 3 + ["someone", "golf"]
    assert all(i.sha256 is None for p in case.probes for i in p.prompt.images)
    assert from_json(Case, to_json(case)) == case


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ('"Is it red?"', "Is it red?"),
        ("\u201cIs it red?\u201d ", "Is it red?"),
        ('What does "stop" mean?', 'What does "stop" mean?'),
        ('What is above the word "stop"', 'What is above the word "stop"'),
        ('Rewritten question: "Is it red?"', "Is it red?"),
        ("Rewritten question: Is it red?", "Is it red?"),
        ('"Rewritten question: Is it red?"', "Is it red?"),
        ("a photograph of", "a photograph of"),
    ],
)
def test_clean_rephrase(given: str, cleaned: str) -> None:
    assert rephrase_problem(given) is None
    assert clean_rephrase(given) == cleaned


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ('"Is it red?"\n\nRewritten as:\n"Is its colour red?"', "several lines"),
        ("I'm sorry, but as an AI language model I cannot answer.", "refusal"),
        ('Can you please rephrase the following question: "Is it red?"', "asks for a rewriting"),
        ('"Is it red?" can be rewritten as "Is its colour red?"', "the original and a rewriting"),
        (" ", "empty"),
    ],
)
def test_unusable_rephrase_costs_one_probe(tmp_path: Path, given: str, reason: str) -> None:
    loaded = only(tmp_path, rephrase=given)
    (case,) = loaded.cases
    assert [p.kind for p in case.probes] == [k for k in KINDS if k != "t_generality"]
    (skip,) = loaded.skipped
    assert skip.id == "vqa-eval-00000/t_generality" and reason in skip.reason


@pytest.mark.parametrize(("key", "lost"), [("loc", "t_locality"), ("m_loc_a", "m_locality")])
def test_empty_field_costs_its_probe(tmp_path: Path, key: str, lost: str) -> None:
    loaded = only(tmp_path, **{key: " "})
    assert [p.kind for p in loaded.cases[0].probes] == [k for k in KINDS if k != lost]
    assert [s.id for s in loaded.skipped] == [f"vqa-eval-00000/{lost}"]


@pytest.mark.parametrize("key", ["src", "alt"])
def test_empty_edit_costs_the_case(tmp_path: Path, key: str) -> None:
    loaded = only(tmp_path, **{key: "\n"})
    assert not loaded.cases
    assert [(s.id, "empty" in s.reason) for s in loaded.skipped] == [("vqa-eval-00000", True)]


@pytest.mark.parametrize("bad", ["../secret.jpg", "/etc/passwd", "val2014/../../x", "", "a\0b"])
def test_path_that_leaves_the_root_is_skipped(tmp_path: Path, bad: str) -> None:
    loaded = only(tmp_path, image=bad)
    assert not loaded.cases and [s.id for s in loaded.skipped] == ["vqa-eval-00000"]
    loaded = only(tmp_path, m_loc=bad, image_rephrase=bad)
    assert len(loaded.cases[0].probes) == 3
    assert [s.id.split("/")[1] for s in loaded.skipped] == ["m_generality", "m_locality"]


def test_link_out_of_the_root_is_skipped(tmp_path: Path) -> None:
    root = tmp_path / "root"
    draw(tmp_path, "elsewhere/0.jpg")
    draw(root, "val2014/m0.jpg", "val2014_image_rephrase/0.png")
    (root / "val2014" / "0.jpg").symlink_to(tmp_path / "elsewhere" / "0.jpg")
    loaded = only(root)
    assert not loaded.cases and "leaves its root" in loaded.skipped[0].reason


@pytest.mark.parametrize("folder", ["", "images"])
def test_missing_images_are_recorded_once_there_is_an_image_folder(
    tmp_path: Path, folder: str
) -> None:
    write(tmp_path, "vqa", "eval", [row(0), row(1)])
    assert len(load(tmp_path, "mmedit:vqa").cases) == 2
    draw(tmp_path / folder, "val2014/0.jpg", "val2014_image_rephrase/0.png")
    loaded = load(tmp_path, "mmedit:vqa")
    assert [c.id for c in loaded.cases] == ["vqa-eval-00000"]
    assert {s.id: s.reason for s in loaded.skipped} == {
        "vqa-eval-00000/m_locality": "image val2014/m0.jpg is missing under the root",
        "vqa-eval-00001": "image val2014/1.jpg is missing under the root",
    }
    assert load_image(loaded.cases[0].edit.prompt.images[0]).size == (4, 4)


@pytest.mark.parametrize("folder", ["", "vqa", "editing-data/vqa"])
def test_layouts(tmp_path: Path, folder: str) -> None:
    write(tmp_path, "vqa", "eval", [row(0)], folder)
    assert len(load(tmp_path, "mmedit:vqa").cases) == 1


def test_root_from_errata_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "vqa", "eval", [row(0)], "mmedit")
    spec = BenchmarkSpec.parse("mmedit:vqa")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    assert len(MMEdit().load(spec).cases) == 1
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "none"))
    with pytest.raises(BadData, match="not a folder"):
        MMEdit().load(spec)
    monkeypatch.delenv("ERRATA_HOME")
    with pytest.raises(BadData, match="--root DIR"):
        MMEdit().load(spec)


def missing(key: str) -> list[dict[str, str]]:
    return [row(0), {k: v for k, v in row(1).items() if k != key}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not JSON"]),
        (b'[{"src": ', ["not JSON", "line 1"]),
        (b"\xff\xfe", ["not UTF-8"]),
        (b"[" * 100_000, ["JSON"]),
        (b'{"src": "x"}', ["JSON object", "list of rows"]),
        (b"[1]", ["row 0", "JSON number"]),
        (b"[null]", ["row 0", "JSON null"]),
        (json.dumps([row(0) | {"alt": 2}]).encode(), ["row 0", "'alt'", "JSON number"]),
        (json.dumps([row(0) | {"m_loc": None}]).encode(), ["row 0", "'m_loc'", "JSON null"]),
        (json.dumps([row(0, src="\ud800")]).encode(), ["row 0", "'src'", "surrogate"]),
        *((json.dumps(missing(k)).encode(), ["row 1", f"'{k}'", "missing"]) for k in KEYS),
    ],
)
def test_bad_file_is_one_line(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "vqa_eval.json").write_bytes(content)
    with pytest.raises(BadData) as caught:
        load(tmp_path, "mmedit:vqa")
    message = str(caught.value)
    assert "\n" not in message
    for word in ["vqa_eval.json", *words]:
        assert word in message


def test_keys_are_the_eleven_and_more_are_ignored(tmp_path: Path) -> None:
    assert len(KEYS) == 11 and set(KEYS) == set(row(0))
    path = write(tmp_path, "vqa", "eval", [row(0) | {"port_new": []}])
    assert read_rows(path)[0].src == "What is thing 0?"


def test_missing_annotation_file_names_the_places(tmp_path: Path) -> None:
    write(tmp_path, "vqa", "eval", [row(0)])
    with pytest.raises(BadData, match=r"caption_eval_edit\.json is not in .*editing-data/caption"):
        load(tmp_path, "mmedit:caption")
    with pytest.raises(BadData, match=r"vqa_train\.json"):
        load(tmp_path, "mmedit:vqa@train")


def test_eval_is_the_same_in_both_variants(tmp_path: Path) -> None:
    small(tmp_path)
    assert load(tmp_path, "mmedit:vqa") == load(tmp_path, "mmedit:vqa@eval/published")


def test_published_train_is_the_whole_file(tmp_path: Path) -> None:
    small(tmp_path)
    cases = load(tmp_path, "mmedit:vqa@train/published").cases
    assert [c.id for c in cases] == [f"vqa-train-{i:05d}" for i in range(60)]
    dev = load(tmp_path, "mmedit:vqa@dev/published").cases
    assert len(dev) == 6 and set(dev) < set(cases)


def images_of(cases: tuple[Case, ...]) -> set[str]:
    return {c.edit.prompt.images[0].uri for c in cases}


def asked_of(cases: tuple[Case, ...]) -> set[str]:
    return {locality(c).prompt.images[0].uri for c in cases}


def test_disjoint_train_and_dev_share_nothing_with_eval(tmp_path: Path) -> None:
    small(tmp_path, 200)
    train, dev, held_out = (
        load(tmp_path, f"mmedit:vqa@{s}").cases for s in ("train", "dev", "eval")
    )
    assert (len(train), len(dev)) == (200 - 3 - 20, 20)
    for one, other in ((train, held_out), (dev, held_out), (train, dev)):
        assert not images_of(one) & images_of(other)
        assert not asked_of(one) & asked_of(other)
    assert not asked_of(train) & (images_of(held_out) | images_of(dev))
    # The part of dev is the same in both variants; only what M-locality asks is drawn anew.
    published = load(tmp_path, "mmedit:vqa@dev/published").cases
    assert [c.edit for c in published] == [c.edit for c in dev]


def test_seed_draws_only_locality(tmp_path: Path) -> None:
    small(tmp_path, 200)
    a, again, b = (load(tmp_path, "mmedit:vqa@train", seed).cases for seed in (0, 0, 1))
    assert a == again != b
    assert [c.edit for c in a] == [c.edit for c in b]
    assert load(tmp_path, "mmedit:vqa", 0) == load(tmp_path, "mmedit:vqa", 1)


def test_shared_images_stay_on_one_side_of_dev(tmp_path: Path) -> None:
    write(tmp_path, "vqa", "train", [row(i, image=f"val2014/{i // 4}.jpg") for i in range(120)])
    write(tmp_path, "vqa", "eval", [row(900)])
    train, dev = (load(tmp_path, f"mmedit:vqa@{s}").cases for s in ("train", "dev"))
    assert (len(train), len(dev)) == (108, 12)
    assert not images_of(train) & images_of(dev)


def test_no_free_locality_is_recorded(tmp_path: Path) -> None:
    rows = [row(i, m_loc="val2014/one.jpg") for i in range(20)]
    write(tmp_path, "vqa", "train", rows)
    write(tmp_path, "vqa", "eval", [row(900, m_loc="val2014/one.jpg")])
    loaded = load(tmp_path, "mmedit:vqa@train")
    assert len(loaded.cases) == len(loaded.skipped) == 18
    assert all(s.id.endswith("/m_locality") and "free" in s.reason for s in loaded.skipped)


def test_drawing_is_even_and_avoids_the_rows_own_image(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "vqa", "train", [row(i) for i in range(12)]))
    held_out = read_rows(write(tmp_path, "vqa", "eval", [row(900)]))
    pool = [splits.Triple(f"val2014/{i}.jpg", "q", "a") for i in range(4)]
    drawn = splits._draw(rows, pool, random.Random(0))
    counts = Counter(t for t in drawn if t is not None)
    assert sum(counts.values()) == 12 and set(counts) == set(pool)
    assert all(t is not None and t.image != r.image for t, r in zip(drawn, rows, strict=True))
    assert splits._draw(held_out, [], random.Random(0)) == (None,)


def test_two_tasks_hold_out_the_eval_of_both(tmp_path: Path) -> None:
    small(tmp_path, 200)
    write(tmp_path, "caption", "train", [row(i, image=f"val2014/c{i}.jpg") for i in range(200)])
    write(
        tmp_path,
        "caption",
        "eval",
        [row(150, image="val2014/e.jpg"), row(1, image="val2014/m77.jpg")],
    )
    cases = load(tmp_path, "mmedit@train").cases
    assert {c.task for c in cases} == {"vqa", "caption"}
    base = tmp_path.resolve() / "val2014"
    forbidden = {str(base / f"m{i}.jpg") for i in (*range(9), 150, 77)}
    assert not asked_of(cases) & forbidden


def test_audit_of_hand_made_rows(tmp_path: Path) -> None:
    train = [row(0), row(1, m_loc="val2014/m0.jpg", m_loc_q="What sport is 0?"), row(2), row(2)]
    held_out = [
        row(0, alt="YES", pred="yes", m_loc_a="polo"),
        row(7, image="val2014/0.jpg", alt="7 ", rephrase='"Is it?"', m_loc="val2014/2.jpg"),
        row(8, rephrase="What is thing 8?", alt="one\n", loc=train[0]["loc"]),
    ]
    write(tmp_path, "vqa", "train", train)
    write(tmp_path, "vqa", "eval", held_out)
    facts = MMEdit().audit(root=tmp_path)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["not_audited"] == ["caption"]
    leaks = facts["vqa"]["leaks"]
    assert leaks == {
        "eval_rows": 3,
        "image_in_train": 2,
        "image_and_src_in_train": 1,
        "src_and_target_in_train": 0,
        "t_loc_question_in_train": 2,
        "image_in_train_m_loc": 0,
        "m_loc_image_in_train": 1,
        "m_loc_question_in_train": 1,
        "m_loc_image_and_question_in_train": 1,
        "m_loc_triple_in_train": 0,
        "m_loc_image_edited_in_train": 1,
    }
    own = facts["vqa"]["eval"]
    assert (own["rows"], own["distinct_images"], own["consecutive_same_image"]) == (3, 2, 1)
    assert own["rows_sharing_image"] == 2 and facts["vqa"]["train"]["repeated_image_and_src"] == 1
    target = own["target"]
    assert (target["yes_no"], target["digits"], target["one_word"]) == (1, 1, 3)
    assert (target["already_correct"], target["already_correct_casefold"]) == (0, 1)
    assert (target["ends_with_space"], target["ends_with_newline"]) == (1, 1)
    assert (own["rephrase"]["quoted"], own["rephrase"]["same_as_src"]) == (1, 1)


def test_audit_without_files(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="of no task"):
        MMEdit().audit(root=tmp_path)


def test_verify(tmp_path: Path) -> None:
    write(tmp_path, "vqa", "eval", [row(0), row(1, image="../x")])
    (tmp_path / "vqa_train.json").write_text("{")
    draw(tmp_path, "val2014/0.jpg", "val2014_image_rephrase/0.png", "val2014_image_rephrase/1.png")
    facts = MMEdit().verify(root=tmp_path)
    assert json.loads(json.dumps(facts)) == facts and not facts["ok"]
    files = facts["files"]
    assert set(files) == set(NAMES.values())
    assert "is not in" in files["caption_eval_edit.json"]["problem"]
    assert "not JSON" in files["vqa_train.json"]["problem"]
    assert "2 rows, the release 2093" in files["vqa_eval.json"]["problem"]
    found = files["vqa_eval.json"]["images"]
    assert (found["present"], found["named"], found["unusable"]) == (True, 6, 3)


ROOT = os.environ.get("ERRATA_MMEDIT_ROOT")
real = pytest.mark.skipif(not ROOT, reason="ERRATA_MMEDIT_ROOT does not name the released files")


@real
def test_released_files_are_known() -> None:
    files = MMEdit().verify(root=Path(ROOT or ""))["files"]
    assert [f.get("problem") for f in files.values()] == [None] * 4


@real
def test_released_splits() -> None:
    root = Path(ROOT or "")
    sizes = {
        text: len(load(root, text).cases)
        for text in ("mmedit:vqa@train/published", "mmedit:vqa", "mmedit:caption@train/published",
                     "mmedit:caption", "mmedit:vqa@train", "mmedit:vqa@dev", "mmedit:caption@dev")
    }  # fmt: skip
    assert list(sizes.values()) == [6345, 2093, 2849, 1000, 4458, 500, 284]


@real
def test_released_leaks() -> None:
    facts = MMEdit().audit(root=Path(ROOT or ""))
    vqa, caption = facts["vqa"], facts["caption"]
    for task, n, same in ((vqa, 2093, 2093), (caption, 1000, 745)):
        assert task["leaks"]["m_loc_image_and_question_in_train"] == n
        assert task["leaks"]["m_loc_triple_in_train"] == same
        assert task["leaks"]["t_loc_question_in_train"] == 0
        left = task["disjoint"]["left"]
        none = {k for k, count in left.items() if count == 0}
        assert set(left) - none == {"m_loc_question_in_train", "m_loc_image_edited_in_train"}
    assert (vqa["leaks"]["image_in_train"], vqa["eval"]["consecutive_same_image"]) == (1380, 703)
    assert vqa["eval"]["windows_with_repeated_image"] == {
        "10": {"repeated": 203, "windows": 209},
        "20": {"repeated": 104, "windows": 104},
    }
    assert vqa["disjoint"]["rows_kept"] == 4958
    assert vqa["disjoint"]["m_loc_pairs_free_of_eval_m_loc"] == 2946
    assert vqa["disjoint"]["m_loc_pairs_free_of_eval"] == 2847
