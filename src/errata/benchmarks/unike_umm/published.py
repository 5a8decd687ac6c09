"""Reads the published file UniKE.json: checks, cleaning, splits.

UniKE.json is a list of records {subject, category, source, stage_1 ... stage_4}; a stage is
{question, prompt, gt, gt_target, image_prompt, visual_target, vqa_question}. The edit is the prompt
of stage 1 with its `gt_target`; stages 2 to 4 are tests only. Differences from the released
scripts: the subject is written as in the prompt (they edit it as in the field `subject`, but test
it as in the prompt); "{}" in a prompt is replaced by the subject; a record or stage that cannot be
used becomes a Skip.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.errors import BadData
from errata.core.files import read_bytes
from errata.core.types import Skip

FILE = "UniKE.json"
SOURCES = ("attribute", "relation")
STAGES = ("stage_1", "stage_2", "stage_3", "stage_4")
MEND = "Get the published file again, then run `errata data verify unike_umm:FILE.json`."


@dataclass(frozen=True, slots=True)
class PublishedStage:
    """One stage with stripped, formatted texts; "" for a missing one."""

    number: int
    prompt: str
    old: str
    target: str
    image_prompt: str
    criterion: str
    question: str

    @property
    def group(self) -> str:
        return f"stage{self.number}"

    @property
    def drawable(self) -> str:
        """Why this stage cannot be drawn and judged; "" if it can."""
        texts = {
            "image_prompt": self.image_prompt,
            "vqa_question": self.question,
            "visual_target": self.criterion,
            "gt_target": self.target,
        }
        return ", ".join(f"{key} is empty" for key, text in texts.items() if not text)


@dataclass(frozen=True, slots=True)
class PublishedRecord:
    """A record that can be edited. subject: as written in stage 1's prompt; given: the field."""

    id: str
    subject: str
    given: str
    category: str
    source: str
    stages: tuple[PublishedStage, ...]
    templated: bool

    @property
    def first(self) -> PublishedStage:
        return self.stages[0]


def place(source: str, root: Path | None) -> Path | None:
    """Where the file is: `source` as a benchmark names it, below `root` if both are given."""
    return (root or Path()) / source if source else root


def find_file(root: Path | None) -> Path:
    """`root` itself, or UniKE.json in it, else in ERRATA_HOME. Raises BadData."""
    if root is None:
        home = os.environ.get("ERRATA_HOME")
        if not home:
            raise BadData(
                f"the tasks {' and '.join(SOURCES)} of unike_umm need {FILE}, which errata does "
                "not ship: name it (unike_umm:FILE.json), put it into ERRATA_HOME/unike_umm, build "
                "one with `errata data build-umm`, or choose unike_umm:microworld."
            )
        root = Path(home) / "unike_umm"
    path = root if root.is_file() else root / FILE
    if not path.is_file():
        raise BadData(
            f"{path} is not there. Name the published {FILE} (unike_umm:FILE.json), or choose "
            "unike_umm:microworld, which needs no files."
        )
    return path


def read(path: Path) -> list[Any]:
    """The list in a file. Raises BadData."""
    try:
        data = json.loads(read_bytes(path, BadData).decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise BadData(f"{path} cannot be read as JSON ({e}). {MEND}") from e
    if not isinstance(data, list):
        raise BadData(f"{path} holds no list of records. {MEND}")
    return data


def records(rows: Sequence[Any]) -> tuple[list[PublishedRecord], list[Skip]]:
    """The usable records in file order, and the skipped records and stages with reasons."""
    usable: list[PublishedRecord] = []
    skips: list[Skip] = []
    for index, row in enumerate(rows):
        try:
            record = _record(index, row, skips)
        except _Unusable as e:
            skips.append(Skip(f"row-{index:05d}", str(e)))
        else:
            usable.append(record)
    return usable, skips


class _Unusable(Exception):
    """The reason why a row cannot become a record."""


def _record(index: int, row: Any, skips: list[Skip]) -> PublishedRecord:
    if not isinstance(row, Mapping):
        raise _Unusable("the row is no JSON object")
    subject, category, source = (_text(row, k) for k in ("subject", "category", "source"))
    if not subject:
        raise _Unusable("the subject is empty")
    if source not in SOURCES:
        raise _Unusable(f"its source '{source}' is neither {' nor '.join(SOURCES)}")
    name = f"{source}-{index:05d}"
    stages = []
    for number, key in enumerate(STAGES, 1):
        if key not in row:
            continue
        if not isinstance(row[key], Mapping):
            skips.append(Skip(f"{name}/stage{number}", "the stage is no JSON object"))
        elif number > 1 and source == "relation":
            why = "of a relation only stage 1 is read, as published"
            skips.append(Skip(f"{name}/stage{number}", why))
        else:
            stages.append(_stage(number, row[key], subject))
    if not stages or stages[0].number != 1:
        raise _Unusable("it has no stage_1")
    first = stages[0]
    if not first.prompt or not first.target:
        raise _Unusable(f"stage_1 has no {'prompt' if not first.prompt else 'gt_target'}")
    surface = surface_form(first.prompt, subject)
    if surface is None:
        raise _Unusable("its subject is not in the prompt of stage_1")
    templated = "{}" in _text(row["stage_1"], "prompt")
    return PublishedRecord(name, surface, subject, category, source, tuple(stages), templated)


def _stage(number: int, data: Mapping[str, Any], subject: str) -> PublishedStage:
    return PublishedStage(
        number,
        prompt=formatted(_text(data, "prompt"), subject),
        old=_text(data, "gt"),
        target=_text(data, "gt_target"),
        image_prompt=formatted(_text(data, "image_prompt"), subject),
        criterion=formatted(_text(data, "visual_target"), subject),
        question=formatted(_text(data, "vqa_question"), subject),
    )


def _text(data: Mapping[str, Any], key: str) -> str:
    """A field as stripped text; "" if it is missing or no text. Numbers become text."""
    value = data.get(key, "")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if isinstance(value, str) else ""


def formatted(text: str, subject: str) -> str:
    """The text with its one "{}" replaced by the subject; other texts are returned unchanged."""
    if text.count("{}") != 1:
        return text
    head, tail = (part.replace("{{", "{").replace("}}", "}") for part in text.split("{}"))
    return f"{head}{subject}{tail}"


def surface_form(prompt: str, subject: str) -> str | None:
    """The subject as written in the prompt, as whole words if possible; None if absent."""
    plain = re.escape(subject)
    for pattern in (rf"(?<!\w){plain}(?!\w)", plain):
        if match := re.search(pattern, prompt, re.IGNORECASE):
            return match[0]
    return None


def part(record: PublishedRecord) -> str:
    """The split of a record, from its subject only: 20 % train, 10 % dev, 70 % eval."""
    name = " ".join(record.given.casefold().split())
    tenth = int(hashlib.sha256(f"unike_umm/{name}".encode()).hexdigest(), 16) % 10
    return "train" if tenth < 2 else "dev" if tenth == 2 else "eval"


def chosen(
    usable: Sequence[PublishedRecord], split: str, variant: str
) -> Iterator[PublishedRecord]:
    """The records of a split; all records in the variant `published`, which has no splits."""
    return (r for r in usable if variant == "published" or part(r) == split)
