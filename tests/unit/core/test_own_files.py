"""errata's own files are read faster, never differently: what is odd goes to the careful reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import BadRun
from errata.core.files import dumps, json_bytes, lines_of, read_lines
from errata.core.formats.own_files import own_lines, own_object
from errata.core.formats.run_files import read_stored_plan
from errata.core.types import Answer, Case, Edit, Probe, Prompt, Scored, to_json

SCORED = Scored((1, 2), (-0.5, -1e-05), (1, 3))
ANSWERS = [
    Answer("a", "p/0", text='she said "{no}": yes', ids=(1,), reference=SCORED),
    Answer("a", "p/1", 3, "own", "\u00e9\u2028\U0001f600", own=SCORED, contrast=SCORED),
    Answer("b", "p/0", notes={"unscored": "the question is too long", "more": {"k": [1.5]}}),
    Answer("b", "p/1", stopped=False, top=((1, 2), (3, 4))),
]
LINE = lines_of(ANSWERS[:1])


def case(name: str) -> Case:
    prompt = Prompt.of("What is the home of it?")
    edit = Edit(id=name, prompt=prompt, target="Ironham")
    return Case(
        id=name, edit=edit, probes=(Probe("p/0", prompt, kind="reliability", reference="Ironham"),)
    )


def plan(cases: list[Case]) -> dict[str, Any]:
    lanes = [{"id": f"l{c.id}", "cases": [c.id]} for c in cases]
    return {
        "schema": 1, "benchmark": "x", "protocol": "one_step", "panel": [], "dropped": [],
        "cases": [to_json(c) for c in cases], "units": [{"id": "u0", "lanes": lanes}],
    }  # fmt: skip


def test_own_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    data = lines_of(ANSWERS * 3)
    assert own_lines(Answer, data) == ANSWERS * 3
    (tmp_path / "a.jsonl").write_bytes(data)
    assert read_lines(tmp_path / "a.jsonl", Answer) == ANSWERS * 3


ODD = {
    "a name twice": LINE.replace(b'"step": -1', b'"step": 1, "step": -1'),
    "a name twice inside": LINE.replace(b'"argmax": ', b'"argmax": [7], "argmax": '),
    "NaN": LINE.replace(b"-0.5", b"NaN"),
    "infinite": LINE.replace(b"-0.5", b"-Infinity"),
    "huge": LINE.replace(b"-0.5", b"1e999"),
    "half a pair": LINE.replace(b"yes", b"\\ud83d"),
    "no UTF-8": LINE.replace(b"yes", b"\xff"),
    "nested deeply": lines_of([Answer("a", "p")]).replace(
        b'"notes": {}', b'"notes": {"a": ' + b"[" * 120 + b"]" * 120 + b"}"
    ),
    "a number for a text": LINE.replace(b'"probe": "p/0"', b'"probe": 3'),
    "no object": b"[1, 2]\n",
    "no JSON": LINE + b"{broken\n",
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_line_is_left_to_the_careful_reader(name: str, tmp_path: Path) -> None:
    data = LINE + ODD[name]  # the first line makes its shape known
    assert own_lines(Answer, LINE) == ANSWERS[:1]
    assert own_lines(Answer, data) is None
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(BadRun, match=r"line [234]"):
        read_lines(tmp_path / "a.jsonl", Answer)


FOREIGN = {
    "other spaces": LINE.replace(b": ", b":"),
    "ends of Windows": LINE.replace(b"\n", b"\r\n"),
    "escapes": json.dumps(to_json(ANSWERS[1]), sort_keys=True).encode() + b"\n",
    "blank lines": b"\n" + LINE + b"\n",
    "fields left out": b'{"case": "a", "probe": "p"}\n',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_line_of_another_program_is_read_as_well(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(FOREIGN[name])
    [found] = read_lines(tmp_path / "a.jsonl", Answer)
    assert found.case == "a"


def test_own_items_are_read_without_their_plain_json(tmp_path: Path) -> None:
    cases = [case("1"), case("2"), case("3")]
    found = own_object(Case, json_bytes(plan(cases)), "cases")
    assert found == {**plan(cases), "cases": tuple(cases)}
    (tmp_path / "plan.json").write_bytes(json_bytes(plan(cases)))
    rest, stored = read_stored_plan(tmp_path)
    assert stored.cases == tuple(cases)
    assert "cases" not in rest
    assert rest["units"] == plan(cases)["units"]


@pytest.mark.parametrize("form", ["one line", "four spaces", "Windows", "no cases", "one case"])
def test_a_plan_in_another_form_says_the_same(form: str, tmp_path: Path) -> None:
    cases = (
        [] if form == "no cases" else [case("1")] if form == "one case" else [case("1"), case("2")]
    )
    data = json_bytes(plan(cases))
    data = dumps(plan(cases)).encode() if form == "one line" else data
    data = json.dumps(plan(cases), indent=4).encode() if form == "four spaces" else data
    data = data.replace(b"\n", b"\r\n") if form == "Windows" else data
    (tmp_path / "plan.json").write_bytes(data)
    rest, stored = read_stored_plan(tmp_path)
    assert stored.cases == tuple(cases)
    assert rest == {k: v for k, v in plan(cases).items() if k != "cases"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"target": "Ironham"', b'"target": 3'),
        (b'"id": "2"', b'"id": "1"'),
        (b'"schema": 1', b'"schema": NaN'),
        (b'"cases": [\n  {', b'"cases": [\n  {{'),
        (b'"Ironham"', b'"\\ud83d"'),
    ],
)
def test_a_damaged_plan_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    data = json_bytes(plan([case("1"), case("2")]))
    assert old in data
    (tmp_path / "plan.json").write_bytes(data.replace(old, new))
    with pytest.raises(BadRun):
        read_stored_plan(tmp_path)
