"""Reads rows of facts, and says of every wrong one which field is wrong and why."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core import files
from errata.core.errors import BadData, BadImage
from errata.core.formats.json_lines import BadLine, json_lines
from errata.core.formats.pictures import data_of
from errata.core.text import normalise
from errata.core.types import Image
from errata.io.images import load_image, split_uri

SPLITS = ("train", "dev", "eval")
#: Fields that an edit is made from, and those that are asked before and after it.
EDIT_FIELDS = ("prompt", "target", "image", "subject", "old", "id")
PROBE_FIELDS = ("rephrase", "image_rephrase", "locality", "portability", "split")
QUESTION_FIELDS = ("prompt", "image", "answer")
_ID = re.compile(r"[^/\\\x00-\x1f\x7f]{1,100}")


@dataclass(frozen=True, slots=True)
class FactQuestion:
    """A question beside the fact. image: a path or URI. answer: "" if it is not known."""

    prompt: str
    image: str | None = None
    answer: str = ""


@dataclass(frozen=True, slots=True)
class FactRow:
    """One fact: the edit, and what is asked before and after it. Images are paths or URIs."""

    id: str
    prompt: str
    target: str
    image: str | None = None
    subject: str | None = None
    old: str | None = None
    split: str = "eval"
    rephrase: tuple[str, ...] = ()
    image_rephrase: tuple[str, ...] = ()
    locality: tuple[FactQuestion, ...] = ()
    portability: tuple[FactQuestion, ...] = ()


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with a field of a row."""

    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}, " if self.line else ""
        return f"{where}'{self.field}': {self.reason}" if self.field else f"{where}{self.reason}"


@dataclass(frozen=True, slots=True)
class FactFile:
    """The rows of a file that are right, and what is wrong with the others."""

    rows: tuple[FactRow, ...]
    problems: tuple[RowProblem, ...]


def read_bytes(path: Path) -> bytes:
    """The content of a file of facts. Raises BadData."""
    if not files.exists(path):
        raise BadData(f"{path} does not exist. Give a JSON Lines file of facts.")
    return files.read_bytes(path, BadData)


def read_facts(data: bytes, folder: Path, *, decode: bool = False) -> FactFile:
    """The rows of a file. folder: relative images start there. decode: images are opened too."""
    rows: list[FactRow] = []
    problems: list[RowProblem] = []
    seen: dict[str, int] = {}
    bad: list[BadLine] = []
    for number, row in _lines(data, bad):
        reader = RowReader(row, number, folder, decode=decode)
        fact = reader.fact()
        if fact.id in seen:
            reader.bad("id", f"'{fact.id}' is the id of line {seen[fact.id]} too")
        seen.setdefault(fact.id, number)
        problems += reader.problems
        if not reader.problems:
            rows.append(fact)
    problems += [RowProblem(e.number, "", str(e)) for e in bad]
    return FactFile(tuple(rows), tuple(sorted(problems, key=lambda p: p.line)))


def _lines(data: bytes, bad: list[BadLine]) -> Iterator[tuple[int, Any]]:
    """As `json_lines`; a file that cannot be read at all is one bad line."""
    try:
        yield from json_lines(data, bad)
    except BadLine as e:
        bad.append(e)


class RowReader:
    """Reads the fields of one row; what is wrong is added to `problems`."""

    def __init__(self, row: Any, number: int, folder: Path, *, decode: bool = False) -> None:
        self.number, self.folder, self.decode = number, folder, decode
        self.problems: list[RowProblem] = []
        self.row: Mapping[str, Any] = {}
        if isinstance(row, dict):
            self.row = row
            self._known(row, (*EDIT_FIELDS, *PROBE_FIELDS), "")
        else:
            self.bad("", f'is {_brief(row)}, not an object {{"prompt": ..., "target": ...}}')

    def bad(self, field: str, reason: str) -> None:
        self.problems.append(RowProblem(self.number, field, reason))

    def fact(self) -> FactRow:
        """The row; where there are problems, with "" in the place of wrong values."""
        if self.problems and not self.row:
            return FactRow(f"line{self.number}", "", "")
        prompt, target = self._text("prompt"), self._text("target")
        if target and not normalise(target):
            self.bad("target", f"says nothing ({target!r})")
        subject = self._text("subject", must=False) or None
        if subject is not None and prompt and subject not in prompt:
            self.bad("subject", f"'{subject[:60]}' is not part of the prompt; copy it from there")
        image = self._image("image", self.row.get("image"))
        return FactRow(
            self._id(), prompt, target, image, subject, self._text("old", must=False) or None,
            **self.probes(image, target),
        )  # fmt: skip

    def probes(self, image: str | None, target: str) -> dict[str, Any]:
        """The fields that are asked before and after the edit."""
        split = self._text("split", must=False) or "eval"
        if split not in SPLITS:
            self.bad("split", f"is '{split[:60]}', not {', '.join(SPLITS)}")
        pictures = [self._image(name, v) for name, v in self._each("image_rephrase")]
        if pictures and self.row.get("image") is None:
            self.bad("image_rephrase", "stands beside no 'image': the fact is about none")
        return {
            "split": split,
            "rephrase": tuple(self._string(name, v) for name, v in self._each("rephrase")),
            "image_rephrase": tuple(p for p in pictures if p is not None),
            "locality": tuple(self._question(n, v, None, "") for n, v in self._each("locality")),
            "portability": tuple(
                self._question(n, v, image, target) for n, v in self._each("portability")
            ),
        }

    def _known(self, values: Mapping[str, Any], known: tuple[str, ...], inside: str) -> None:
        for key in values:
            if key not in known:
                self.bad(f"{inside}{key}", f"is unknown; known are {', '.join(known)}")

    def _string(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            self.bad(name, f"must be a text, not {_brief(value)}")
            return ""
        if not value.strip():
            self.bad(name, "is empty")
        return value

    def _text(self, name: str, *, must: bool = True) -> str:
        if name not in self.row and must:
            self.bad(name, "is missing")
            return ""
        value = self.row.get(name)
        return "" if value is None and not must else self._string(name, value)

    def _id(self) -> str:
        name = self._text("id", must=False)
        if name and (not _ID.fullmatch(name) or name in (".", "..", "panel")):
            self.bad("id", f"'{name[:60]}' cannot be one: up to 100 letters, no slash")
        return name or f"line{self.number:04d}"

    def _each(self, field: str) -> list[tuple[str, Any]]:
        """(name, value) of a field that may hold one value or a list of them."""
        value = self.row.get(field)
        if value is None:
            return []
        if isinstance(value, list):
            return [(f"{field}[{i}]", v) for i, v in enumerate(value)]
        return [(field, value)]

    def _question(self, name: str, value: Any, image: str | None, answer: str) -> FactQuestion:
        """A question as a text or an object; image, answer: where it names none."""
        if not isinstance(value, dict):
            if not isinstance(value, str):
                self.bad(name, f"must be a text or an object with 'prompt', not {_brief(value)}")
                return FactQuestion("")
            return FactQuestion(self._string(name, value), image, answer)
        self._known(value, QUESTION_FIELDS, f"{name}.")
        if "prompt" not in value:
            self.bad(f"{name}.prompt", "is missing")
        prompt = self._string(f"{name}.prompt", value["prompt"]) if "prompt" in value else ""
        if "image" in value:
            image = self._image(f"{name}.image", value["image"])
        if value.get("answer") is not None:
            answer = self._string(f"{name}.answer", value["answer"])
        return FactQuestion(prompt, image, answer)

    def _image(self, name: str, value: Any) -> str | None:
        """A path or URI; relative paths start at the folder of the file."""
        if value is None:
            return None
        if not (text := self._string(name, value)).strip():
            return None
        try:
            in_memory = data_of(text) is not None
        except BadImage as e:
            self.bad(name, str(e).rstrip("."))
            return None
        uri = text if in_memory or split_uri(text)[0] is not None else self._file(name, text)
        return uri if uri is not None and self._opens(name, uri) else None

    def _file(self, name: str, text: str) -> str | None:
        for written in dict.fromkeys((text, text.replace("\\", "/"))):
            path = self.folder / written
            if "\0" not in written and os.path.isfile(path):
                return str(path)
        hint = f"relative images start at {self.folder}"
        if "://" in text:
            hint = "nothing is downloaded: save the image, and give the file's path"
        self.bad(name, f"there is no file '{text[:100]}' ({hint})")
        return None

    def _opens(self, name: str, uri: str) -> bool:
        if not self.decode:
            return True
        try:
            load_image(Image(uri))
        except BadImage as e:
            self.bad(name, str(e).rstrip("."))
            return False
        return True


def _brief(value: Any) -> str:
    if value is None:
        return "null"
    return f"a {type(value).__name__}" if isinstance(value, (dict, list)) else repr(value)[:60]
