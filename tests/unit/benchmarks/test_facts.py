"""Own facts as a benchmark: `facts:FILE.jsonl`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from errata.benchmarks.facts import Facts
from errata.benchmarks.facts.edits import read_edits
from errata.benchmarks.facts.rows import EDIT_FIELDS, PROBE_FIELDS, QUESTION_FIELDS, read_facts
from errata.cli import main
from errata.contract import benchmarks as contract
from errata.core.errors import BadData, BadEdit, BadSpec
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Case, Image, Prompt
from errata.evaluation.bench import bench
from errata.evaluation.run_folder import read_run
from tests import tiny

PACKAGE = files("errata.benchmarks.facts")
EXAMPLE = Path(str(PACKAGE)) / "example" / "facts.jsonl"
SCHEMA = json.loads((PACKAGE / "schema.json").read_text())
FULL: dict[str, Any] = {
    "id": "a",
    "prompt": "What is the thing?",
    "image": "p/a.png",
    "target": "red ring",
    "subject": "thing",
    "old": "blue",
    "rephrase": ["Which thing?", "Thing?"],
    "image_rephrase": ["p/b.png"],
    "locality": [
        "Who?",
        {"prompt": "Which shape?", "image": "p/a.png", "answer": "ring"},
        {"prompt": "Which shape?", "image": "p/b.png"},
    ],
    "portability": ["And so?", {"prompt": "Then?", "image": None, "answer": "green"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p").mkdir()
    for i, name in enumerate("ab"):
        Pillow.new("RGB", (28, 28), (i * 90, 5, 5)).save(tmp_path / "p" / f"{name}.png")
    return tmp_path


def command(*words: Any) -> int:
    with pytest.raises(SystemExit) as e:
        main([str(w) for w in words])
    return int(str(e.value.code or 0))


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "own facts@1.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def load(path: Path, split: str = "eval") -> tuple[Case, ...]:
    return Facts().load(BenchmarkSpec.parse(f"facts:{path}@{split}")).cases


def test_a_row_is_a_case(folder: Path) -> None:
    (case,) = load(write(folder, FULL))
    a, b = str(folder / "p/a.png"), str(folder / "p/b.png")
    asked = Prompt.of("What is the thing?", a)
    assert (case.edit.prompt, case.edit.target, case.edit.subject) == (asked, "red ring", "thing")
    assert [(p.id, p.group, p.prompt, p.reference) for p in case.probes] == [
        ("reliability", "", asked, "red ring"),
        ("t_generality/0", "", Prompt.of("Which thing?", a), "red ring"),
        ("t_generality/1", "", Prompt.of("Thing?", a), "red ring"),
        ("m_generality/0", "", Prompt.of("What is the thing?", b), "red ring"),
        ("t_locality/0", "far", Prompt.of("Who?"), ""),
        ("near_locality/1", "same_image", Prompt.of("Which shape?", a), "ring"),
        ("m_locality/2", "far", Prompt.of("Which shape?", b), ""),
        ("portability/0", "", Prompt.of("And so?", a), "red ring"),
        ("portability/1", "", Prompt.of("Then?"), "green"),
    ]


@pytest.mark.parametrize("field", ["rephrase", "image_rephrase", "locality", "portability"])
def test_one_value_is_a_list_of_one(field: str, folder: Path) -> None:
    for value in [FULL[field][0], FULL[field][-1]]:
        one, many = ({**FULL, field: v, "id": None} for v in (value, [value]))
        assert load(write(folder, one)) == load(write(folder, many))
    for empty in (None, []):
        (case,) = load(write(folder, {**FULL, field: empty}))
        assert len(case.probes) == 9 - len(FULL[field])


BAD: list[tuple[Any, str, str]] = [
    ("{", "", "not valid JSON"),
    ('{"prompt": "a", "prompt": "b", "target": "c"}', "", "'prompt' twice"),
    ([1], "", "not an object"),
    ("5", "", "not an object"),
    ({"target": "t"}, "prompt", "is missing"),
    ({"prompt": "p"}, "target", "is missing"),
    ({"prompt": " ", "target": "t"}, "prompt", "is empty"),
    ({"prompt": "p", "target": "."}, "target", "says nothing"),
    ({"prompt": "p", "target": 5}, "target", "must be a text, not 5"),
    ({"prompt": "p", "target": None}, "target", "must be a text, not null"),
    ({"prompt": "p", "target": "t", "tagret": "x"}, "tagret", "is unknown"),
    ({"prompt": "p", "target": "t", "subject": "q"}, "subject", "not part of the prompt"),
    ({"prompt": "p", "target": "t", "image": "p/c.png"}, "image", "no file 'p/c.png'"),
    ({"prompt": "p", "target": "t", "image": ["p/a.png"]}, "image", "must be a text"),
    ({"prompt": "p", "target": "t", "image_rephrase": "p/a.png"}, "image_rephrase", "beside no"),
    ({"prompt": "p", "target": "t", "split": "test"}, "split", "train, dev, eval"),
    ({"prompt": "p", "target": "t", "id": "a/b"}, "id", "cannot be one"),
    ({"prompt": "p", "target": "t", "id": "first"}, "id", "line 1 too"),
    ({"prompt": "p", "target": "t", "rephrase": ["a", 5]}, "rephrase[1]", "must be a text"),
    ({"prompt": "p", "target": "t", "rephrase": {"a": 1}}, "rephrase", "must be a text"),
    ({"prompt": "p", "target": "t", "locality": [[]]}, "locality[0]", "a text or an object"),
    ({"prompt": "p", "target": "t", "locality": {"answer": "x"}}, "locality.prompt", "is missing"),
    (
        {"prompt": "p", "target": "t", "locality": [{"prompt": "a", "answr": "x"}]},
        "locality[0].answr",
        "is unknown",
    ),
    (
        {"prompt": "p", "target": "t", "portability": {"prompt": "a", "image": "no.png"}},
        "portability.image",
        "no file",
    ),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD)
def test_line_and_field_of_a_bad_row_are_named(
    row: Any, field: str, reason: str, folder: Path
) -> None:
    path = write(folder, {"id": "first", "prompt": "p", "target": "t"}, "", row)
    (problem,) = Facts().verify(root=path)["problems"]
    assert problem.startswith(f"line 3, '{field}'" if field else "line 3, ") and reason in problem
    with pytest.raises(BadData) as e:
        load(path)
    assert f"{path}, line 3" in str(e.value) and reason in str(e.value)


def test_every_bad_row_is_named_by_the_validator(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row, field, _ in BAD if field != "id"]
    path = write(folder, *rows)
    problems = Facts().verify(root=path)["problems"]
    assert [int(p.split(",")[0].split()[1]) for p in problems] == list(range(1, len(rows) + 1))
    assert command("data", "verify", f"facts:{path}") == 2
    assert all(p in capsys.readouterr().out for p in problems[:1])


def test_schema_and_validator_know_the_same_fields() -> None:
    assert set(SCHEMA["properties"]) == {*EDIT_FIELDS, *PROBE_FIELDS}
    assert set(SCHEMA["$defs"]["question"]["properties"]) == set(QUESTION_FIELDS)
    for part in (SCHEMA, SCHEMA["$defs"]["question"]):
        assert part["additionalProperties"] is False
    for field in SCHEMA["required"]:
        row = {k: v for k, v in FULL.items() if k != field}
        assert not read_facts(json.dumps(row).encode(), EXAMPLE.parent).rows


def test_the_example_holds_the_contract_and_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("data", "example", "--out", tmp_path / "x") == 0
    assert command("data", "example", "--out", tmp_path / "x") == 2
    path = tmp_path / "x" / "facts.jsonl"
    assert path.read_bytes() == EXAMPLE.read_bytes() and (tmp_path / "x/schema.json").is_file()
    cases = load(path)
    assert len({p.kind for c in cases for p in c.probes}) == 7
    monkeypatch.setattr(
        contract, "_cases", lambda _, split="eval": load(path) if split == "eval" else ()
    )
    for _, check in contract.checks(Facts):
        check()


def test_the_rows_are_edits_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "p")  # images start at the file
    (edit,) = read_edits(write(folder, FULL))
    (case,) = load(write(folder, FULL))
    assert (edit.prompt.text, edit.target, edit.old) == ("What is the thing?", "red ring", "blue")
    assert [i.uri for i in edit.prompt.images] == [i.uri for i in case.edit.prompt.images]
    with pytest.raises(BadEdit, match=r"line 1: 'locality\[0\]'"):
        read_edits(write(folder, {**FULL, "locality": [5]}))


def test_paths_as_windows_writes_them_and_images_in_memory(folder: Path) -> None:
    data = "data:image/png;base64,AAAA"
    path = write(folder, {**FULL, "image": "p\\a.png", "image_rephrase": [data]})
    (case,) = load(path)
    assert case.edit.prompt.images == (Image(str(folder / "p/a.png")),)
    assert case.probes[3].prompt.images == (Image(data),)
    assert read_edits(path)[0].prompt.images[0].uri == str(folder / "p/a.png")


def test_the_split_of_a_row(folder: Path) -> None:
    rows = [{"prompt": f"p{i}", "target": "t", "split": s} for i, s in enumerate(["train", None])]
    path = write(folder, *rows)
    for split, names in (("train", ["p0"]), ("eval", ["p1"]), ("dev", [])):
        assert [c.edit.prompt.text for c in load(path, split)] == names


@pytest.mark.parametrize(
    ("text", "source", "split"),
    [
        ("facts:a.jsonl", "a.jsonl", "eval"),
        ("facts:/x y/a@b.jsonl", "/x y/a@b.jsonl", "eval"),
        ("facts:a/b@train.jsonl@train", "a/b@train.jsonl", "train"),
        ("facts:C:\\a.jsonl@dev", "C:\\a.jsonl", "dev"),
    ],
)
def test_the_name_of_a_file_is_part_of_the_spec(text: str, source: str, split: str) -> None:
    spec = BenchmarkSpec.parse(text)
    assert (spec.name, spec.source, spec.split) == ("facts", source, split)
    assert BenchmarkSpec.parse(str(spec)) == spec
    assert BenchmarkSpec.parse(text, split="train").split in ("train", split)


@pytest.mark.parametrize("text", ["facts", "facts:", "facts: ", "facts@train", "facts:@eval"])
def test_a_file_must_be_named(text: str) -> None:
    with pytest.raises(BadSpec, match=r"facts:FILE\.jsonl"):
        BenchmarkSpec.parse(text)


def test_a_run_records_the_file(folder: Path) -> None:
    import errata

    path = write(folder, FULL, {"prompt": "Which shape is the ring?", "target": "ring"})
    run = bench(
        tiny.shared("llava"), errata.editor("ft_l", steps=2), f"facts:{path}", "one_step",
        folder / "run",
    )  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    kinds = Counter(p.kind for c in read_run(run).cases.values() for p in c.probes)
    assert kinds["reliability"] == 2 and kinds["m_locality"] == 1
    path.write_text(path.read_text() + '{"prompt": "What?", "target": "red"}\n')
    with pytest.raises(errata.UserError):
        bench(
            tiny.shared("llava"), errata.editor("ft_l", steps=2), f"facts:{path}", "one_step", run
        )


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("notes.png", "no image of a known format"),
        ("data:image/png;base64,@@", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "no image of a known format"),
        ("https://example.org/a.png", "othing is downloaded"),
        ("microworld:shape=nope", "cannot read the scene"),
        ("facts:some.jsonl", "renders no images"),
    ],
)
def test_an_image_that_cannot_be_opened_is_named_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str], image: str, says: str
) -> None:
    (folder / "notes.png").write_text("no picture")
    good = {"prompt": "What?", "target": "red"}
    for wrong in ({"image": image}, {"locality": {"prompt": "Who?", "image": image}}):
        path = write(folder, good, {**good, **wrong})
        (problem,) = Facts().verify(root=path)["problems"]
        assert problem.startswith("line 2, '") and says in problem
    path = write(folder, good, {**good, "image": image})
    assert command("edit", "no/model", "--edits", path, "--out", folder / "out") == 2
    err = capsys.readouterr().err
    assert "line 2" in err and says in err and err.count("\n") == 1, err


def test_wrong_rows_are_not_left_out_of_an_audit(folder: Path) -> None:
    for rows, says in (
        (({"prompt": "a"},), "line 1, 'target': is missing"),
        ((), "holds no facts"),
    ):
        with pytest.raises(BadData, match=says):
            Facts().audit(root=write(folder, *rows))
    assert not Facts().verify(root=write(folder))["ok"]


def test_what_a_plan_leaves_out_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.png").write_text("no picture")
    good = {"prompt": "What?", "target": "red"}
    path = write(folder, good, {**good, "image": "notes.png"})
    words = ("--editor", "ft_l", "--set", "steps=0", "--protocol", "one_step")
    run = folder / "run"
    assert not command("bench", "micro-vlm", *words, "--benchmark", f"facts:{path}", "--out", run)
    said = " ".join(capsys.readouterr().out.split())
    assert "1 case left out before any edit: cannot use image" in said
    assert not command("results", run) and "1 case left out" in capsys.readouterr().out


def test_an_example_that_was_killed_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own"
    assert not command("data", "example", "--out", out)
    whole = {p: p.read_bytes() for p in out.rglob("*.*")}
    next(out.rglob("*.png")).unlink()
    assert not command("data", "example", "--out", out)
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == whole
    (out / "facts.jsonl").write_text("mine\n")
    assert command("data", "example", "--out", out) == 2
    assert (
        "facts.jsonl" in capsys.readouterr().err and (out / "facts.jsonl").read_text() == "mine\n"
    )


@pytest.mark.parametrize("path", ["/dev/zero", "/", "no.jsonl", "a\0b"])
def test_what_is_no_file_of_facts_is_one_line(path: str) -> None:
    for read in (Facts().verify, Facts().audit):
        with pytest.raises(BadData):
            read(root=Path(path))
