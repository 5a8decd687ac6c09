"""Reads rows of CounterFact and MQuAKE and turns them into records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.benchmarks.unike_umm.build.checks import holds, problem, same_look, words
from errata.benchmarks.unike_umm.build.relations import Relation, by_id, by_wording
from errata.core.errors import BadData
from errata.core.files import read_bytes

Stage = dict[str, str]


@dataclass(frozen=True, slots=True)
class RewriteRow:
    """One edit of a file. template: the prompt with `{}` for the subject ("" without a subject).

    relation: the Wikidata id of the row; "" if only the wording tells the relation.
    """

    file: str
    number: int
    subject: str
    template: str
    target: str
    old: str
    relation: str = ""
    question: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row or reply that became no record. reason: from a fixed list; data: the row."""

    file: str
    number: int
    reason: str
    subject: str = ""
    stage: str = ""
    data: Any = None


@dataclass(frozen=True, slots=True)
class BuiltRecord:
    """A record of the published schema."""

    subject: str
    category: str
    source: str
    stages: Mapping[str, Stage]

    def published(self) -> dict[str, Any]:
        """The record as in UniKE.json, without `case_id`: records are identified by index."""
        return {
            "subject": self.subject,
            "category": self.category,
            "source": self.source,
            **self.stages,
        }


def read_rows(path: Path) -> tuple[RewriteRow, ...]:
    """All edits of a CounterFact or MQuAKE file, flat or nested. Raises BadData."""
    try:
        data = json.loads(read_bytes(path, BadData).decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise BadData(f"{path} is not JSON ({e}). Give the released file.") from None
    if not isinstance(data, list):
        raise BadData(f"{path} holds no JSON list of rows. Give a CounterFact or MQuAKE file.")
    return tuple(row for n, item in enumerate(data) for row in _rows(path, n, item))


def _rows(path: Path, number: int, item: Any) -> Iterator[RewriteRow]:
    rewrites = item.get("requested_rewrite") if isinstance(item, dict) else None
    edits = rewrites if isinstance(rewrites, list) else [item if rewrites is None else rewrites]
    for data in edits:
        try:
            yield _row(path.name, number, data)
        except (KeyError, TypeError, AttributeError):
            raise BadData(
                f"{path}: row {number} (from 0) is of neither schema. A row has prompt, subject, "
                "target_new and ground_truth (CounterFact) or requested_rewrite (MQuAKE)."
            ) from None


def _row(file: str, number: int, data: Any) -> RewriteRow:
    subject, prompt = data["subject"].strip(), data["prompt"].strip()
    nested = isinstance(data["target_new"], dict)
    target = data["target_new"]["str"] if nested else data["target_new"]
    old = data["target_true"]["str"] if nested else data["ground_truth"]
    if prompt.count("{}") != 1:
        prompt = prompt.replace(subject, "{}", 1) if subject and subject in prompt else ""
    relation, question = data.get("relation_id", ""), data.get("question", "")
    return RewriteRow(
        file, number, subject, prompt, target.strip(), old.strip(), relation, question, data
    )


def relation_of(row: RewriteRow) -> Relation | str:
    """The relation of a row, or why the row cannot be used."""
    if not row.template:
        return "the prompt does not hold the subject"
    fits = by_wording(row.template)
    if row.relation:
        named = by_id(row.relation)
        fits = fits if named is None else (named,)
        if not fits:
            return "the relation belongs to none of the four categories"
    if not fits:
        return "the wording fits several relations"
    assert len(fits) == 1, (row.template, [r.id for r in fits])
    return fits[0] if fits[0].category else fits[0].why


def compose(row: RewriteRow, relation: Relation) -> Stage:
    """The stage of a row: its prompt and answers, and the templates of the relation.

    In every field the subject is written as in the row.
    """

    def fill(template: str) -> str:
        return template.format(s=row.subject, t=row.target)

    return {
        "question": row.question or fill(relation.question),
        "prompt": row.template.replace("{}", row.subject),
        "gt": row.old,
        "gt_target": row.target,
        "image_prompt": fill(relation.picture),
        "visual_target": fill(relation.shows),
        "vqa_question": fill(relation.asks),
    }


def build(rows: Sequence[RewriteRow]) -> tuple[list[BuiltRecord], list[Rejected]]:
    """Records in the order of the rows: at most one per subject and category.

    Two edits of one relation contradict each other, and a picture can show only one place or maker:
    the first row is kept. Rows with different old answers for one relation of a subject are all
    rejected, since one of them is wrong.
    """
    doubted = _doubted(rows)
    kept: dict[tuple[str, str], tuple[Relation, RewriteRow]] = {}
    records: list[BuiltRecord] = []
    rejected: list[Rejected] = []
    for row in rows:
        why = relation = relation_of(row)
        if isinstance(relation, Relation):
            stage = compose(row, relation)
            why = problem(stage, row.subject) or ""
            key = (_key(row.subject), relation.category)
            if not why and (_key(row.subject), relation.id) in doubted:
                why = "rows disagree about the old answer"
            if not why and key in kept:
                why = _clash(kept[key], (relation, row))
            if not why:
                kept[key] = (relation, row)
                stages = {"stage_1": stage}
                records.append(BuiltRecord(row.subject, relation.category, "relation", stages))
                continue
        rejected.append(
            Rejected(row.file, row.number, str(why), row.subject, "stage_1", dict(row.data))
        )
    return records, rejected


def _key(text: str) -> str:
    return " ".join(words(text))


def _doubted(rows: Sequence[RewriteRow]) -> set[tuple[str, str]]:
    """(subject, relation) pairs for which rows give different old answers."""
    olds: dict[tuple[str, str], str] = {}
    doubted = set()
    for row in rows:
        relation = relation_of(row)
        if isinstance(relation, Relation):
            key = (_key(row.subject), relation.id)
            first = olds.setdefault(key, row.old)
            if not same_look(first, row.old) and not holds(first, row.old):
                doubted.add(key)
    return doubted


def _clash(first: tuple[Relation, RewriteRow], second: tuple[Relation, RewriteRow]) -> str:
    if first[0] is second[0] and same_look(first[1].target, second[1].target):
        return "duplicate: an earlier row makes the same edit"
    if first[0] is second[0]:
        return "conflict: an earlier row wants another answer"
    return "conflict: an earlier row edits the same category of the subject"


def counts(records: Sequence[BuiltRecord], rejected: Sequence[Rejected]) -> dict[str, Any]:
    """Counts of records by category and stages, and of rejections by reason."""
    stages = Counter(f"{r.category}, {len(r.stages)} stages" for r in records if len(r.stages) > 1)
    return {
        "records": len(records),
        "by category": dict(sorted(Counter(r.category for r in records).items())),
        **({"by stages": dict(sorted(stages.items()))} if stages else {}),
        "rejected": len(rejected),
        "by reason": dict(Counter(r.reason for r in rejected).most_common()),
    }
