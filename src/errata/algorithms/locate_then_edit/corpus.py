"""Corpora for key statistics: a file, a data set, or the questions of training cases.

A corpus can be read several times, and its hash identifies its content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from errata.core.errors import BadData, MissingExtra
from errata.core.files import check_regular
from errata.core.types import Case, Prompt, digest, to_json


class Document(NamedTuple):
    """A prompt and its answer ("" = none)."""

    prompt: Prompt
    target: str = ""

    @property
    def text(self) -> str:
        return f"{self.prompt.text} {self.target}"


@dataclass(frozen=True)
class Corpus:
    """walk: yields the documents. count: their number. sha256: of their content."""

    name: str
    sha256: str
    count: int
    walk: Callable[[], Iterator[Document]]


def mentions(names: Sequence[str]) -> Callable[[str], bool]:
    """A function: whether a text contains one of the names as a whole word, in any case."""
    escaped = [re.escape(n.strip()) for n in names if n.strip()]
    if not escaped:
        return lambda _: False
    pattern = re.compile(rf"(?<!\w)({'|'.join(escaped)})(?!\w)", re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


def from_file(path: Path, *, most: int | None = None) -> Corpus:
    """One document a line; empty lines do not count. Raises BadData."""
    h, count, encoding = hashlib.sha256(), 0, "utf-8"
    check_regular(path, BadData)
    try:
        with open(path, "rb") as f:
            encoding = json.detect_encoding(f.read(4))
            f.seek(0)
            while block := f.read(1 << 20):
                h.update(block)
        with open(path, encoding=encoding, errors="replace") as text:
            count = sum(bool(line.strip()) for line in text)
    except OSError as e:
        raise BadData(f"cannot read {path}: {e.strerror}. Give a text file.") from None
    count = min(count, most or count)

    def walk() -> Iterator[Document]:
        with open(path, encoding=encoding, errors="replace") as f:
            lines = (text for line in f if (text := line.strip()))
            for text, _ in zip(lines, range(count), strict=False):
                yield Document(Prompt.of(text))

    return Corpus(path.name, digest([h.hexdigest(), count]), count, walk)


def from_dataset(
    name: str, *, split: str, column: str, most: int | None = None, seed: int = 0
) -> Corpus:
    """A data set of the Hub (`id` or `id:config`) or in a folder, its rows shuffled.

    Raises MissingExtra without the library `datasets`, BadData for what it cannot load.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            f"there is no text file '{name}', and to read it as a data set needs another library. "
            "Run pip install 'errata[corpus]', or give a file with one document a line."
        ) from None
    where, _, config = name.partition(":")
    try:
        rows: Any = datasets.load_dataset(where, *([config] if config else []), split=split)
    except (OSError, ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0].rstrip(".")
        raise BadData(
            f"cannot load the data set '{name}': {reason}. Give an id, id:config, or a text file."
        ) from None
    if column not in rows.column_names:
        raise BadData(
            f"the data set '{name}' has no column '{column}'. "
            f"It has: {', '.join(rows.column_names)}. Pass --column."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most].tolist()

    def walk() -> Iterator[Document]:
        for i in order:
            if text := str(rows[i][column]).strip():
                yield Document(Prompt.of(text))

    h = hashlib.sha256()
    count = 0
    for document in walk():
        h.update(document.prompt.text.encode(errors="replace") + b"\n")
        count += 1
    return Corpus(name, h.hexdigest(), count, walk)


def from_cases(
    cases: Sequence[Case],
    *,
    most: int,
    edited: bool,
    without: Sequence[str] = (),
    rng: torch.Generator,
) -> Corpus:
    """At most `most` different questions of training cases, with their right answers.

    edited: also questions about the facts that the cases edit, with the old answers (a target may
    be false and is never used). without: names that no text may contain. Image prompts have no
    answer.
    """
    pool: dict[Document, None] = {}
    for case in cases:
        if edited:
            pool.setdefault(Document(case.edit.prompt, case.edit.old or ""))
        for probe in case.probes:
            if probe.kind_info.keeps_answer:
                pool.setdefault(Document(probe.prompt, probe.reference))
            elif probe.kind == "i_locality":
                pool.setdefault(Document(probe.prompt))
    excluded = mentions(without)
    documents = [d for d in pool if not excluded(d.text)]
    order = torch.randperm(len(documents), generator=rng)[:most].tolist()
    chosen = [documents[i] for i in order]
    sha = digest([[to_json(d.prompt), d.target] for d in chosen])
    return Corpus("training cases", sha, len(chosen), lambda: iter(chosen))


def leaving_out(corpus: Corpus, names: Sequence[str]) -> Corpus:
    """The documents that contain none of the names.

    In a small world the facts that are edited later would otherwise be among the texts whose keys
    an edit protects.
    """
    if not names:
        return corpus
    excluded = mentions(names)
    count = sum(not excluded(d.text) for d in corpus.walk())

    def walk() -> Iterator[Document]:
        return (d for d in corpus.walk() if not excluded(d.text))

    sha = digest([corpus.sha256, sorted(names)])
    return Corpus(corpus.name, sha, count, walk)
