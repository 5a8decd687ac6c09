"""MQuAKE: questions over several facts, one of which was changed, `mquake:FILE.json[@split]`.

Zhong et al. 2023. errata ships no records. FILE is one of the released files: MQuAKE-CF (also -3k
and -v2), MQuAKE-T, MQuAKE-hard. Every rewrite of a record is a case of its own, in the split of its
subject. The multi-hop questions of a record follow from all of its rewrites together, so they are
asked where the record has one rewrite; of other records they are skipped, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from errata.benchmarks._rewrites import (
    SPLITS,
    VARIANTS,
    BadRecord,
    Rewrite,
    case_of,
    file_hash,
    origin_of,
    path_of,
    records,
    rewrite_of,
    split_of,
    text_of,
    texts_of,
    verified,
)
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Case, HopQuestion, Probe, Prompt, Skip

MEND = "Give a released file of MQuAKE, such as MQuAKE-CF-3k.json."


@dataclass(frozen=True, slots=True)
class MultiHop:
    """The questions that follow from a changed fact: their answer, and the one before.

    hop: what a model must know for them beside the changed fact.
    """

    questions: tuple[str, ...]
    answer: str
    before: str
    hops: int
    hop: HopQuestion | None


@dataclass(frozen=True, slots=True)
class MQuAKERow:
    """One rewrite of a record. question: the edited prompt as a question, "" for none."""

    id: str
    rewrite: Rewrite
    question: str
    multi_hop: MultiHop | None = None


class MQuAKE(Benchmark):
    """One edit a rewrite (task `text`), with the multi-hop questions that follow from it.

    reliability: the edited prompt. t_generality: the same fact as a question. portability, with a
    group by the number of hops (`2_hop`): the record's questions. They count only if the unedited
    model knows the hop behind the changed one, or, where the changed one is the last, the first.
    An answer is compared with the record's answer, not with its aliases.
    """

    name: ClassVar[str] = "mquake"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = ("text",)
    splits: ClassVar[tuple[str, ...]] = SPLITS
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    source: ClassVar[str] = "FILE.json"

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """Cases in file order. Raises BadData for a file that is none of MQuAKE."""
        rows, skips = _read(path_of(self.name, spec.source, root))
        origin = origin_of(spec)
        chosen = [row for row in rows if split_of(row.rewrite.subject) == spec.split]
        return Loaded(tuple(_case(row, origin) for row in chosen), tuple(skips))

    def files(self, spec: BenchmarkSpec, *, root: Path | None = None) -> Mapping[str, str]:
        path = path_of(self.name, spec.source, root)
        return {path.name: file_hash(path)}

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """root: the file. The records that cannot be used, with the reason."""
        path = path_of(self.name, "", root)
        rows, skips = _read(path)
        return verified(path, len(rows), [s for s in skips if s.id.startswith("row-")])

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """root: the file. Counts, and how many prompts are edited to different answers."""
        rows, skips = _read(path_of(self.name, "", root))
        answers: dict[str, set[str]] = {}
        for row in rows:
            answers.setdefault(row.rewrite.prompt, set()).add(row.rewrite.new)
        kinds = Counter(p.kind for row in rows for p in _case(row, "correction").probes)
        return {
            "edits": len(rows),
            "skipped": dict(sorted(Counter(_short(s.reason) for s in skips).items())),
            "splits": dict(sorted(Counter(split_of(r.rewrite.subject) for r in rows).items())),
            "probes": dict(sorted(kinds.items())),
            "prompts with more than one new answer": sum(len(a) > 1 for a in answers.values()),
        }


def _short(reason: str) -> str:
    return reason.partition(":")[0]


def _read(path: Path) -> tuple[list[MQuAKERow], list[Skip]]:
    rows: list[MQuAKERow] = []
    skips: list[Skip] = []
    names: set[str] = set()
    edits: dict[tuple[str, str], str] = {}
    for index, record in records(path, MEND):
        number = record.get("case_id", index)
        name = f"mquake-{number}"
        try:
            if name in names:
                raise BadRecord(f"case_id stands in the file twice: {number}")
            names.add(name)
            found = _rows(name, record)
        except BadRecord as e:
            skips.append(Skip(f"row-{index:05d}", str(e)))
            continue
        if len(found) > 1:
            why = "its questions follow from several edits together, and a case holds one"
            skips.append(Skip(f"{name}/portability", why))
        for row in found:
            edit = row.rewrite.prompt, row.rewrite.new
            if len(found) > 1 and edit in edits:
                skips.append(Skip(row.id, f"the same edit as another one: {edits[edit]}"))
                continue
            edits.setdefault(edit, row.id)
            rows.append(row)
    return rows, skips


def _rows(name: str, record: Mapping[str, Any]) -> list[MQuAKERow]:
    given = record.get("requested_rewrite")
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise BadRecord("'requested_rewrite' is no list of rewrites")
    rewrites = [rewrite_of(r) for r in given]
    asked = [text_of(r, "question") if "question" in r else "" for r in given]
    one = _multi_hop(record, rewrites[0], asked[0]) if len(rewrites) == 1 else None
    ids = [name] if len(rewrites) == 1 else [f"{name}-{i}" for i in range(len(rewrites))]
    return [
        MQuAKERow(*row, one) for row in zip(ids, rewrites, asked, strict=True)
    ]  # fmt: skip


def _multi_hop(record: Mapping[str, Any], rewrite: Rewrite, asked: str) -> MultiHop:
    hops = record.get("new_single_hops")
    if not isinstance(hops, Sequence) or not all(isinstance(h, Mapping) for h in hops):
        raise BadRecord("'new_single_hops' is no list of hops")
    pairs = [(_cloze(h), text_of(h, "question"), text_of(h, "answer")) for h in hops]
    places = [i for i, (cloze, q, _) in enumerate(pairs) if rewrite.prompt == cloze or asked == q]
    if len(places) != 1:
        raise BadRecord("the changed fact is not one of its 'new_single_hops'")
    (at,) = places
    rest = [pair for i, pair in enumerate(pairs) if i != at]
    known = pairs[at + 1] if at + 1 < len(pairs) else rest[0] if rest else None
    return MultiHop(
        texts_of(record, "questions"),
        text_of(record, "new_answer"),
        text_of(record, "answer"),
        len(pairs),
        None if known is None else HopQuestion(Prompt.of(known[0] or known[1]), known[2]),
    )


def _cloze(hop: Mapping[str, Any]) -> str:
    return text_of(hop, "cloze") if "cloze" in hop else ""


def _case(row: MQuAKERow, origin: str) -> Case:
    return case_of(row.id, row.rewrite, _probes(row), origin)


def _probes(row: MQuAKERow) -> Iterator[Probe]:
    prompt = Prompt.of(row.rewrite.prompt)
    new, true = row.rewrite.new, row.rewrite.true
    yield Probe("reliability", prompt, "reliability", reference=new, contrast=true)
    if row.question:
        asked = Prompt.of(row.question)
        yield Probe("t_generality", asked, "t_generality", reference=new, contrast=true)
    if (more := row.multi_hop) is not None:
        for i, text in enumerate(more.questions):
            yield Probe(
                f"portability/{i}",
                Prompt.of(text),
                "portability",
                f"{more.hops}_hop",
                more.answer,
                more.hop,
                contrast=more.before,
            )
