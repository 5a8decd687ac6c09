"""What CounterFact and MQuAKE share: a JSON list of records, rewrites, splits by subject."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.errors import BadData
from errata.core.files import read_bytes
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.text import same_answer
from errata.core.types import Case, Edit, Probe, Prompt, Skip

SPLITS = ("train", "dev", "eval")
#: Whether every fact is edited, or those that the unedited model answers with the true answer.
VARIANTS = ("all", "known")
SHOWN = 100


class BadRecord(ValueError):
    """Why a record of a file cannot be used."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One counterfactual change: `prompt` should be continued by `new` and no more by `true`."""

    prompt: str
    subject: str
    new: str
    true: str
    relation: str = ""


def origin_of(spec: BenchmarkSpec) -> str:
    """The origin of the cases: a plan keeps counterfactual ones where the model is right."""
    return "counterfactual" if spec.variant == "known" else "correction"


def split_of(subject: str) -> str:
    """The split of a subject, by its hash alone: 2 of 10 parts train, 1 dev, 7 eval.

    All facts about a subject are in one split, whichever of the files they come from.
    """
    part = int(hashlib.sha256(f"errata/subject/{subject.casefold()}".encode()).hexdigest(), 16) % 10
    return "train" if part < 2 else "dev" if part == 2 else "eval"


def path_of(name: str, source: str, root: Path | None) -> Path:
    """The file of the user. Raises BadData."""
    if not source and root is None:
        raise BadData(f"the benchmark {name} reads a file. Name it: {name}:FILE.json.")
    return (root or Path()) / source


def file_hash(path: Path) -> str:
    return hashlib.sha256(read_bytes(path, BadData)).hexdigest()


def verified(path: Path, used: int, skips: Sequence[Skip]) -> dict[str, Any]:
    """What `verify` says about a file."""
    return {
        "file": str(path),
        "sha256": file_hash(path),
        "ok": not skips,
        "edits": used,
        "problems": [f"{s.id}: {s.reason}" for s in skips[:SHOWN]],
        "more problems": max(0, len(skips) - SHOWN),
    }


def records(path: Path, mend: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(index, record) of a JSON list of objects. Raises BadData with the reason and `mend`."""
    try:
        data: Any = json.loads(read_bytes(path, BadData).decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise BadData(f"{path} is not UTF-8 text (byte {e.start}). {mend}") from e
    except json.JSONDecodeError as e:
        raise BadData(f"{path} is not JSON: line {e.lineno}: {e.msg}. {mend}") from e
    except (RecursionError, ValueError) as e:  # nested or long beyond what Python reads
        raise BadData(f"{path} is not JSON that can be read ({e}). {mend}") from e
    if not isinstance(data, list) or not data:
        raise BadData(f"{path} holds no list of records. {mend}")
    for index, record in enumerate(data):
        if not isinstance(record, dict):
            raise BadData(f"{path}: record {index} (from 0) is no object. {mend}")
        yield index, record


def text_of(record: Mapping[str, Any], key: str) -> str:
    """A text that can be asked. Raises BadRecord."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if key not in record else "empty" if value == "" else "no text"
        raise BadRecord(f"'{key}' is {found}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"'{key}' holds half of a surrogate pair") from None
    return value.strip()


def texts_of(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts; () where the record has none. Raises BadRecord."""
    value = record.get(key, ())
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRecord(f"'{key}' is no list")
    return tuple(text_of({key: item}, key) for item in value)


def rewrite_of(record: Any, *, where: str = "requested_rewrite") -> Rewrite:
    """A rewrite as ROME writes it, its `prompt` with `{}` for the subject. Raises BadRecord."""
    if not isinstance(record, Mapping):
        raise BadRecord(f"'{where}' is no object")
    sides = {}
    for key in ("target_new", "target_true"):
        side = record.get(key)
        if not isinstance(side, Mapping):
            raise BadRecord(f"'{where}.{key}' is no object with 'str'")
        sides[key] = text_of(side, "str")
    template, subject = text_of(record, "prompt"), text_of(record, "subject")
    if template.count("{}") != 1:
        raise BadRecord(f"'{where}.prompt' needs one {{}} for the subject")
    relation = record.get("relation_id")
    return checked(
        Rewrite(
            template.replace("{}", subject),
            subject,
            sides["target_new"],
            sides["target_true"],
            relation if isinstance(relation, str) else "",
        )
    )


def checked(rewrite: Rewrite) -> Rewrite:
    """Raises BadRecord for a rewrite that asks for nothing new."""
    if rewrite.subject not in rewrite.prompt:
        raise BadRecord(f"the subject '{rewrite.subject}' is not part of the prompt")
    if same_answer(rewrite.new, rewrite.true):
        raise BadRecord(f"the new answer is the true one ('{rewrite.true}')")
    return rewrite


def case_of(id: str, change: Rewrite, probes: Iterable[Probe], origin: str) -> Case:
    """The case of one rewrite."""
    scope = (("subject", change.subject), ("relation", change.relation))
    return Case(
        id,
        Edit(Prompt.of(change.prompt), change.new, change.subject, change.true, id),
        tuple(probes),
        task="text",
        origin=origin,
        asked="relation" if change.relation else "",
        scope=scope[: 1 + bool(change.relation)],
    )
