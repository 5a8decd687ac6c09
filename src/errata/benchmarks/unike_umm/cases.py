"""Cases of the published records: the edit of stage 1 and all its probes.

Locality probes are sampled from records of the train split, which no other split edits. The
released code measures no locality. The variant `published` edits all records, so it has no locality
probes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from errata.benchmarks.unike_umm.published import PublishedRecord, PublishedStage, chosen
from errata.benchmarks.unike_umm.templates import reasoning_prompt, stated_rationale
from errata.core.text import same_answer
from errata.core.types import Case, Edit, JudgeQuestion, Probe, Prompt, Skip, StatedFact

#: Maximum tokens of a rationale, as published.
RATIONALE = 512
FAR, NEAR, PICTURES = 2, 2, 2


def cases(
    usable: Sequence[PublishedRecord], task: str, split: str, variant: str, seed: int
) -> tuple[list[Case], list[Skip]]:
    """The cases of a task (the `source` of records) in file order, and the skipped probes."""
    pool = _Pool.of(usable, split, variant)
    of_task, skips = [], []
    for record in chosen(usable, split, variant):
        if record.source == task:
            case, missing = _case(record, pool, seed)
            of_task.append(case)
            skips += missing
    return of_task, skips


@dataclass(frozen=True, slots=True)
class _Pool:
    """Records for locality probes. others: not edited in this split; all: of this split."""

    others: tuple[PublishedRecord, ...]
    all: tuple[PublishedRecord, ...]

    @classmethod
    def of(cls, usable: Sequence[PublishedRecord], split: str, variant: str) -> _Pool:
        if variant == "published":
            return cls((), ())
        away = "dev" if split == "train" else "train"
        return cls(
            tuple(r for r in chosen(usable, away, variant) if r.first.old),
            tuple(r for r in chosen(usable, split, variant) if r.first.old),
        )


def _case(record: PublishedRecord, pool: _Pool, seed: int) -> tuple[Case, list[Skip]]:
    first = record.first
    edit = Edit(Prompt.of(first.prompt), first.target, record.subject, first.old or None, record.id)
    probes: list[Probe] = []
    skips: list[Skip] = []
    for stage in record.stages:
        if stage.prompt and stage.target:
            probes.append(_efficacy(stage))
        else:
            why = f"{'prompt' if not stage.prompt else 'gt_target'} is empty"
            skips.append(Skip(f"{record.id}/efficacy/{stage.group}", why))
        if stage.drawable:
            skips.append(Skip(f"{record.id}/vqa/{stage.group}", stage.drawable))
        else:
            probes += _drawn(record, stage)
    rng = random.Random(f"errata/unike_umm/{record.id}/{seed}")
    probes += _kept(record, pool, rng)
    case = Case(
        record.id,
        edit,
        tuple(probes),
        task=record.source,
        origin="counterfactual",
        asked=record.category,
        scope=(("subject", record.given), (record.category, first.old)),
        parts=(("category", record.category), ("source", record.source)),
    )
    return case, skips


def _efficacy(stage: PublishedStage) -> Probe:
    return Probe(
        f"efficacy/{stage.group}",
        Prompt.of(stage.prompt),
        "efficacy",
        stage.group,
        stage.target,
    )


def _drawn(record: PublishedRecord, stage: PublishedStage) -> Iterator[Probe]:
    """The rationale probe and the picture probe of a stage."""
    view = JudgeQuestion(stage.question, stage.criterion, stage.target, stage.old, record.category)
    aids = StatedFact(
        oracle=Prompt.of(f"{stage.image_prompt.rstrip('. ')}. Shown clearly: {stage.criterion}"),
        rationale=stated_rationale(record.category, record.given, stage.target, stage.image_prompt),
    )
    yield Probe(
        f"reasoning/{stage.group}",
        Prompt.of(reasoning_prompt(record.category, record.given, stage.image_prompt)),
        "reasoning",
        stage.group,
        stage.target,
        cap=RATIONALE,
        view=view,
    )
    yield Probe(
        f"vqa/{stage.group}", Prompt.of(stage.image_prompt), "vqa", stage.group, view=view,
        aids=aids,
    )  # fmt: skip


def _kept(record: PublishedRecord, pool: _Pool, rng: random.Random) -> Iterator[Probe]:
    """Locality probes: questions and pictures that the edit should not change."""
    target = record.first.target
    others = [r for r in rng.sample(pool.others, len(pool.others)) if _other(r, record, target)]
    far = [r for r in others if r.category != record.category]
    like = [r for r in others if r.category == record.category]
    same_subject = [
        r for r in pool.all
        if r.id != record.id and r.category != record.category and _same_subject(r, record)
    ]  # fmt: skip
    yield from _questions(far[:FAR], "t_locality", "")
    yield from _questions(same_subject[:NEAR], "near_locality", "same_subject")
    yield from _questions(like[:NEAR], "near_locality", "same_attribute")
    drawable = [r for r in far[FAR:] if not r.first.drawable]
    for i, other in enumerate(drawable[:PICTURES]):
        yield _picture(other, i)


def _questions(records: Sequence[PublishedRecord], kind: str, group: str) -> Iterator[Probe]:
    head = f"{kind}/{group}" if group else kind
    for i, r in enumerate(records):
        yield Probe(f"{head}/{i}", Prompt.of(r.first.prompt), kind, group, r.first.old)


def _picture(record: PublishedRecord, i: int) -> Probe:
    first = record.first
    criterion = f"The answer to the question is: {first.old}."
    view = JudgeQuestion(first.question, criterion, first.old, category=record.category)
    return Probe(f"i_locality/{i}", Prompt.of(first.image_prompt), "i_locality", view=view)


def _other(r: PublishedRecord, record: PublishedRecord, target: str) -> bool:
    """Whether `r` has another subject, and an answer other than the edit's target."""
    return not _same_subject(r, record) and not same_answer(r.first.old, target)


def _same_subject(a: PublishedRecord, b: PublishedRecord) -> bool:
    return a.given.casefold() == b.given.casefold()
