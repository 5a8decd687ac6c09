"""Builds records in the published schema of `unike_umm`: text edits whose effect can be drawn.

How the published records were made was not released. Here they come from two sources: relations,
from rows of CounterFact and MQuAKE (`rows`, `relations`), and attributes, which a model behind an
endpoint proposes in four stages (`instruct`). Both pass the same `checks`; what fails is written to
rejected.jsonl with the reason. No torch. The folder holds:

UniKE.json      the records, in the published schema
rejected.jsonl  every row and reply that became no record, with the reason
build.json      counts and sources
replies.jsonl   replies of the endpoint, one line per request, appended as they arrive
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.benchmarks.unike_umm.build.instruct import CATEGORIES, Interview, instruct
from errata.benchmarks.unike_umm.build.rows import (
    BuiltRecord,
    Rejected,
    RewriteRow,
    build,
    counts,
    read_rows,
)
from errata.core.errors import BadData, BadSpec
from errata.core.files import check_folder, lines_of, read_bytes, write_bytes, write_json
from errata.core.locks import locked
from errata.io.chat_client import Endpoint

VERSION = 1


@dataclass(frozen=True, slots=True)
class Attributes:
    """A request to an endpoint: `count` records of each category."""

    endpoint: Endpoint
    categories: tuple[str, ...] = CATEGORIES
    count: int = 20

    def __post_init__(self) -> None:
        for category in self.categories:
            if category not in CATEGORIES:
                raise BadSpec(
                    f"unknown category '{category}' of attributes. Known: {', '.join(CATEGORIES)}."
                )
        if self.count < 1:
            raise BadSpec(f"--count {self.count} asks for nothing. Give at least 1.")


def build_umm(
    out: Path,
    rows: Sequence[Path],
    attributes: Attributes | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Writes the folder and returns the content of build.json.

    Attributes come first, as in the published file. Raises BadSpec without any source, BadData for
    a file that is no list of rows, and BadEndpoint.
    """
    if not rows and attributes is None:
        raise BadSpec(
            "nothing to build from. Give --rows FILE (CounterFact or MQuAKE), or --endpoint URL "
            "and --model NAME for attributes."
        )
    check_folder(out)
    read = [row for path in rows for row in read_rows(path)]
    with locked(out):
        return _build(out, rows, read, attributes, progress)


def _build(
    out: Path,
    rows: Sequence[Path],
    read: Sequence[RewriteRow],
    attributes: Attributes | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    records: list[BuiltRecord] = []
    rejected: list[Rejected] = []
    about: dict[str, Any] = {"schema": VERSION, "rows": [_source(path) for path in rows]}
    if attributes is not None:
        interview = Interview(attributes.endpoint, out / "replies.jsonl")
        records, rejected = instruct(interview, attributes.categories, attributes.count, progress)
        about["attributes"] = {
            "model": attributes.endpoint.model,
            "categories": list(attributes.categories),
            "count": attributes.count,
            **counts(records, rejected),
        }
    if read:
        relations, refused = build(read)
        about["relations"] = {"rows": len(read), **counts(relations, refused)}
        records, rejected = [*records, *relations], [*rejected, *refused]
    write_json(out / "UniKE.json", [r.published() for r in records])
    write_bytes(out / "rejected.jsonl", lines_of(rejected))
    write_json(out / "build.json", about)
    return about


def _source(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": hashlib.sha256(read_bytes(path, BadData)).hexdigest()}
