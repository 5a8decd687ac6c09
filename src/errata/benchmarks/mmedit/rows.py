"""The released MMEdit files: paths, format checks, cleaning."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from errata.core.errors import BadData
from errata.core.files import read_bytes

MEND = "Get the MMEdit release again, then run `errata data verify mmedit --root DIR`."


@dataclass(frozen=True, slots=True)
class ReleasedFile:
    """One annotation file as its authors released it."""

    task: str
    part: str
    name: str
    rows: int
    sha256: str


RELEASED = (
    ReleasedFile(
        "vqa", "train", "vqa_train.json", 6345,
        "82e242bd7fd3ab855413ba7972665c33bca920ae3b0982b71cae2af1b61700b0",
    ),
    ReleasedFile(
        "vqa", "eval", "vqa_eval.json", 2093,
        "7299743ebe2854b240c6fe6f252fdb0c2ae3993ba2e5b23f07c6fee54ed1bcc0",
    ),
    ReleasedFile(
        "caption", "train", "caption_train_edit.json", 2849,
        "583e306d72d06ad9106544e74cbeff5cc6105720b0cdfac675754d2f08ea9a20",
    ),
    ReleasedFile(
        "caption", "eval", "caption_eval_edit.json", 1000,
        "7c2215a419b82249c957abd12b850ef3c962d2de0d68f092c073f10bb63c2e83",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MMEditRow:
    """One row of the file. `index` counts from 0; the other fields are the 11 keys of the file.

    `pred` is the answer of BLIP2-OPT. It is used in the audit only: other models give other
    answers.
    """

    index: int
    src: str
    pred: str
    rephrase: str
    alt: str
    image: str
    image_rephrase: str
    loc: str
    loc_ans: str
    m_loc: str
    m_loc_q: str
    m_loc_a: str

    @property
    def images(self) -> tuple[str, str, str]:
        return self.image, self.image_rephrase, self.m_loc


KEYS = tuple(f.name for f in fields(MMEditRow))[1:]


def released(task: str, part: str) -> ReleasedFile:
    return next(r for r in RELEASED if (r.task, r.part) == (task, part))


def find_root(root: Path | None) -> Path:
    """`root`, else the folder `mmedit` in ERRATA_HOME. Raises BadData if it is not there."""
    if root is None:
        home = os.environ.get("ERRATA_HOME")
        if not home:
            raise BadData(
                "mmedit needs its files, which errata does not ship: pass --root DIR, or put them "
                "into the folder mmedit of ERRATA_HOME and set that variable."
            )
        root = Path(home) / "mmedit"
    if not os.path.isdir(root):
        raise BadData(f"{root} is not a folder. It must hold the MMEdit release: pass --root DIR.")
    return root


def places(root: Path, file: ReleasedFile) -> tuple[Path, ...]:
    """Possible paths of this file: flat, by task, or as in EasyEdit's archive."""
    folders = (root, root / file.task, root / "editing-data" / file.task)
    return tuple(folder / file.name for folder in folders)


def find_file(root: Path, file: ReleasedFile) -> Path:
    for path in places(root, file):
        if os.path.isfile(path):
            return path
    raise BadData(
        f"{file.name} is not in {root}, nor in its folders {file.task} and "
        f"editing-data/{file.task}. Put the released file there, or pass another --root."
    )


def file_sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path, BadData)).hexdigest()


def read_rows(path: Path) -> tuple[MMEditRow, ...]:
    """All rows of one annotation file. Raises BadData naming file, row and key."""
    try:
        data: Any = json.loads(read_bytes(path, BadData).decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise BadData(f"{path} is not UTF-8 text (byte {e.start}). {MEND}") from e
    except json.JSONDecodeError as e:
        raise BadData(f"{path} is not JSON: line {e.lineno}: {e.msg}. {MEND}") from e
    except (RecursionError, ValueError) as e:  # nested or long beyond what Python reads
        raise BadData(f"{path} is not JSON that can be read ({e}). {MEND}") from e
    if not isinstance(data, list):
        raise BadData(f"{path} holds a JSON {_kind(data)}, not the list of rows it should. {MEND}")
    return tuple(_row(path, i, item) for i, item in enumerate(data))


def _row(path: Path, index: int, item: Any) -> MMEditRow:
    where = f"{path}: row {index} (from 0)"
    if not isinstance(item, dict):
        raise BadData(f"{where} is a JSON {_kind(item)}, not an object. {MEND}")
    for key in KEYS:
        if key not in item:
            raise BadData(f"{where}: key '{key}' is missing. {MEND}")
        value = item[key]
        if not isinstance(value, str):
            raise BadData(f"{where}: key '{key}' holds a JSON {_kind(value)}, not a string. {MEND}")
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise BadData(f"{where}: key '{key}' holds half of a surrogate pair. {MEND}") from e
    return MMEditRow(index, **{key: item[key] for key in KEYS})


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        dict: "object",
        list: "list",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
    }
    return names[type(value)]


# Cleaning removes white space, labels and quotes. No row is added, and none is reworded.

#: In both E-VQA files: the label that the language model wrote before its paraphrase.
_LABEL = re.compile(r'"?rewritten question:\s*', re.IGNORECASE)
_REFUSAL = re.compile(
    r"\bsorry\b|\blanguage model\b|\bI cannot\b|\bunable to (?:help|assist)\b", re.IGNORECASE
)
_REQUEST = re.compile(
    r"\b(?:following (?:question|statement)|(?:revised|different) (?:version|way)|rephrase the)\b",
    re.IGNORECASE,
)
_TWO = re.compile(r"\brewritten as\b", re.IGNORECASE)
_QUOTES = (('"', '"'), ("“", "”"))


def is_quoted(text: str) -> bool:
    """Whether the whole text is in double quotes."""
    return len(text) > 1 and any(text.startswith(a) and text.endswith(b) for a, b in _QUOTES)


def rephrase_problem(text: str) -> str | None:
    """Why a paraphrase cannot be asked; None if it can."""
    text = text.strip()
    if not text:
        return "the paraphrase is empty"
    if len(text.splitlines()) > 1:
        return "the paraphrase has several lines"
    if _TWO.search(text):
        return "the paraphrase holds the original and a rewriting"
    if _REFUSAL.search(text):
        return "the paraphrase is a refusal"
    if _REQUEST.search(text):
        return "the paraphrase asks for a rewriting instead of being one"
    return None


def has_label(text: str) -> bool:
    return _LABEL.match(text.strip()) is not None


def clean_rephrase(text: str) -> str:
    """A paraphrase without the label and the quotes around it."""
    text = text.strip()
    if label := _LABEL.match(text):
        # An opening quote before the label has its partner at the end of the text.
        text = text[label.end() :] if text[0] != '"' else '"' + text[label.end() :]
    return text[1:-1].strip() if is_quoted(text) else text


def locality_question(text: str) -> str:
    """The text of a T-locality probe as in the file, with its literal prefix `nq question: `.

    Every published pipeline keeps that prefix; VisEdit and DualEdit add a question mark, the others
    do not. Any other wording is added by the backbone's prompt style.
    """
    return text.strip()
