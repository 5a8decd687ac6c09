"""CounterFact: false facts to be taught to a language model, `counterfact:FILE.json[@split]`.

Meng et al. 2022 (ROME). errata ships no records. FILE is ROME's `counterfact.json`, or the flat
`counterfact-edit.json` or `counterfact-train.json` of RECIPE and EasyEdit. Every subject belongs to
one split by its hash, so that facts for tuning (`dev`) share no subject with `eval`. The variant
`FILE.json@eval/known` keeps the facts that the unedited model answers with the true answer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from errata.benchmarks._rewrites import (
    SPLITS,
    VARIANTS,
    BadRecord,
    Rewrite,
    case_of,
    checked,
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
from errata.core.types import Case, Probe, Prompt, Skip

SENTENCE_END = re.compile(r"""[.!?:;\n]["')\]]?\s""")
MOST_WORDS = 12  # in front of the subject of a generation prompt
TRIES = 100  # records that are looked at for a far question
MEND = "Give ROME's counterfact.json, or counterfact-edit.json of RECIPE or EasyEdit."


@dataclass(frozen=True, slots=True)
class CounterFactRow:
    """One record. neighbours: prompts about other subjects, each with its true answer."""

    id: str
    rewrite: Rewrite
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]


class CounterFact(Benchmark):
    """One edit a record (task `text`), with its paraphrases and the neighbours of its subject.

    reliability: the edited prompt. t_generality: ROME's paraphrases (`paraphrase`). The flat files
    have one, which in 83 % of the records is one of ROME's generation prompts (`generation`): many
    of these ask what follows from the fact ("One can get to X by navigating").
    near_locality: the same relation of other subjects whose true answer is the one that the edit
    replaces (the papers' neighbourhood); ROME has ten, the flat files one. t_locality: a neighbour
    of a train record with answers of another kind. Each probe names the other
    answer of its record as its contrast, for the papers' probabilities. ROME's attribute and
    generation prompts are not asked: they serve the fluency and consistency scores.
    """

    name: ClassVar[str] = "counterfact"
    version: ClassVar[str] = "3"
    tasks: ClassVar[tuple[str, ...]] = ("text",)
    splits: ClassVar[tuple[str, ...]] = SPLITS
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    source: ClassVar[str] = "FILE.json"

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """Cases in file order. Raises BadData for a file that is none of CounterFact."""
        rows, skips = _read(path_of(self.name, spec.source, root))
        origin = origin_of(spec)
        chosen = [row for row in rows if split_of(row.rewrite.subject) == spec.split]
        others = Others.of(rows)
        return Loaded(tuple(_case(row, origin, others) for row in chosen), tuple(skips))

    def files(self, spec: BenchmarkSpec, *, root: Path | None = None) -> Mapping[str, str]:
        path = path_of(self.name, spec.source, root)
        return {path.name: file_hash(path)}

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """root: the file. The records that cannot be used, with the reason."""
        path = path_of(self.name, "", root)
        rows, skips = _read(path)
        return verified(path, len(rows), skips)

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """root: the file. Counts; how often a neighbour of eval is about an edited subject."""
        rows, skips = _read(path_of(self.name, "", root))
        others = Others.of(rows)
        kinds = Counter(p.kind for row in rows for p in _case(row, "correction", others).probes)
        edited = {row.rewrite.subject for row in rows}
        return {
            "records": len(rows),
            "skipped": len(skips),
            "splits": dict(sorted(Counter(split_of(r.rewrite.subject) for r in rows).items())),
            "subjects": len(edited),
            "probes": dict(sorted(kinds.items())),
            "neighbours about a subject that is edited too": sum(
                any(beginning in edited for beginning in _beginnings(prompt))
                for row in rows
                for prompt, _ in row.neighbours
            ),
        }


def _beginnings(text: str) -> Iterator[str]:
    """The text up to each of its spaces."""
    words = text.split(" ")
    yield from (" ".join(words[:n]) for n in range(1, len(words) + 1))


def _read(path: Path) -> tuple[list[CounterFactRow], list[Skip]]:
    rows: list[CounterFactRow] = []
    skips: list[Skip] = []
    seen: set[str] = set()
    for index, record in records(path, MEND):
        number = record.get("case_id", index)
        name = f"counterfact-{number}"
        try:
            if name in seen:
                raise BadRecord(f"case_id {number} stands in the file twice")
            seen.add(name)
            nested = "requested_rewrite" in record
            rows.append(_nested(name, record) if nested else _flat(name, record))
        except BadRecord as e:
            skips.append(Skip(f"row-{index:05d}", str(e)))
    return rows, skips


def _nested(name: str, record: Mapping[str, Any]) -> CounterFactRow:
    rewrite = rewrite_of(record["requested_rewrite"])
    prompts = texts_of(record, "neighborhood_prompts")
    neighbours = tuple((prompt, rewrite.true) for prompt in prompts)
    return CounterFactRow(name, rewrite, texts_of(record, "paraphrase_prompts"), neighbours)


def _flat(name: str, record: Mapping[str, Any]) -> CounterFactRow:
    rewrite = checked(
        Rewrite(
            text_of(record, "prompt"),
            text_of(record, "subject"),
            text_of(record, "target_new"),
            text_of(record, "ground_truth"),
        )
    )
    neighbour = text_of(record, "locality_prompt"), text_of(record, "locality_ground_truth")
    return CounterFactRow(name, rewrite, (text_of(record, "rephrase_prompt"),), (neighbour,))


def _case(row: CounterFactRow, origin: str, others: Others) -> Case:
    return case_of(row.id, row.rewrite, [*_probes(row), *_far(row, others)], origin)


def _probes(row: CounterFactRow) -> Iterator[Probe]:
    prompt = Prompt.of(row.rewrite.prompt)
    new, true = row.rewrite.new, row.rewrite.true
    yield Probe("reliability", prompt, "reliability", reference=new, contrast=true)
    for i, text in enumerate(row.paraphrases):
        asked = Prompt.of(text)
        group = paraphrase_group(text, row.rewrite.subject)
        yield Probe(f"t_generality/{i}", asked, "t_generality", group, new, contrast=true)
    for i, (text, answer) in enumerate(row.neighbours):
        asked = Prompt.of(text)
        yield Probe(
            f"near_locality/{i}", asked, "near_locality", "same_answer", answer, contrast=new
        )


def paraphrase_group(prompt: str, subject: str) -> str:
    """`paraphrase` for a prompt with an unrelated text in front of the subject, else `generation`.

    In the 20,000 records of the flat files this agrees with whether the prompt without its subject
    occurs at least five times, but for 25 records.
    """
    before = prompt.partition(subject)[0]
    unrelated = SENTENCE_END.search(before) or len(before.split()) > MOST_WORDS
    return "paraphrase" if unrelated else "generation"


def _far(row: CounterFactRow, others: Others) -> Iterator[Probe]:
    """A neighbour of another record, chosen by the record's id, with answers of another sort."""
    start = int(hashlib.sha256(f"errata/far/{row.id}".encode()).hexdigest(), 16)
    own = others.answers_beside(row.rewrite)
    for i in range(min(len(others.rows), TRIES)):
        other = others.rows[(start + i) % len(others.rows)]
        if not own & others.answers_beside(other.rewrite):
            text, answer = other.neighbours[0]
            yield Probe(
                "t_locality", Prompt.of(text), "t_locality", "far", answer,
                contrast=other.rewrite.new,
            )  # fmt: skip
            return


@dataclass(frozen=True, slots=True)
class Others:
    """Records that far questions are taken from, and the answers that stand beside each answer.

    Flat files name no relation. A record gives two answers that fit its relation, so that relations
    whose answers are never together in a record, and never beside the same third, are different.
    """

    rows: Sequence[CounterFactRow]
    beside: Mapping[str, Set[str]]

    @classmethod
    def of(cls, rows: Sequence[CounterFactRow], split: str = "train") -> Others:
        beside: dict[str, set[str]] = {}
        for row in rows:
            for answer in (row.rewrite.true, row.rewrite.new):
                beside.setdefault(answer, set()).update((row.rewrite.true, row.rewrite.new))
        chosen = [r for r in rows if split_of(r.rewrite.subject) == split and r.neighbours]
        return cls(chosen, beside)

    def answers_beside(self, rewrite: Rewrite) -> Set[str]:
        return self.beside[rewrite.true] | self.beside[rewrite.new]
