"""Selects the rows of a split, and an M-locality triple for each row.

`published` is the release: `train` is the whole train file (so `dev` is a part of it), and it
contains the M-locality probes of `eval`. `disjoint` changes only what is trained on: rows whose
image is edited in eval are removed, and every other row gets a new M-locality triple, on an image
that eval neither asks about nor edits; `dev` and `train` share no image either. Eval means the eval
files of the tasks in the spec: to test an editor on both tasks, prepare it on `mmedit:vqa+caption`.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from errata.benchmarks.mmedit.rows import MMEditRow

DEV_ROWS = 500


class Triple(NamedTuple):
    """Image, question and gold answer of an M-locality probe."""

    image: str
    question: str
    answer: str


def triple(row: MMEditRow) -> Triple:
    return Triple(row.m_loc, row.m_loc_q, row.m_loc_a)


@dataclass(frozen=True, slots=True)
class Selected:
    """The rows of a split in file order, each with its triple (None: no triple is left)."""

    rows: tuple[MMEditRow, ...]
    triples: tuple[Triple | None, ...]


def as_released(rows: Iterable[MMEditRow]) -> Selected:
    kept = tuple(rows)
    return Selected(kept, tuple(triple(r) for r in kept))


def edited_images(files: Iterable[Sequence[MMEditRow]]) -> frozenset[str]:
    return frozenset(r.image for rows in files for r in rows)


def locality_images(files: Iterable[Sequence[MMEditRow]]) -> frozenset[str]:
    return frozenset(r.m_loc for rows in files for r in rows)


def kept_rows(train: Sequence[MMEditRow], edited: frozenset[str]) -> tuple[MMEditRow, ...]:
    """Train rows whose image is not edited in eval."""
    return tuple(r for r in train if r.image not in edited)


def dev_rows(train: Sequence[MMEditRow], edited: frozenset[str]) -> tuple[MMEditRow, ...]:
    """The dev split: 500 rows, or a tenth of a small file, out of `kept_rows`, by whole images.

    It depends on the files only, not on a seed: rows for tuning never become rows for training.
    """
    groups: dict[str, list[MMEditRow]] = defaultdict(list)
    for row in kept_rows(train, edited):
        groups[row.image].append(row)
    room = min(DEV_ROWS, max(1, len(train) // 10)) if len(groups) > 1 else 0
    chosen: list[MMEditRow] = []
    for image in sorted(groups, key=lambda i: _order("dev", i)):
        if len(groups[image]) <= room - len(chosen):
            chosen += groups[image]
    return tuple(sorted(chosen, key=lambda r: r.index))


def locality_pool(train: Sequence[MMEditRow], taken: frozenset[str]) -> tuple[Triple, ...]:
    """Distinct M-locality triples of a train file, in file order, without images in `taken`."""
    return tuple(dict.fromkeys(triple(r) for r in train if r.m_loc not in taken))


def in_dev_pool(image: str) -> bool:
    """Whether a locality image belongs to dev: a tenth of them, the same in every task."""
    return int(_order("pool", image), 16) % 10 == 0


def disjoint(
    task: str,
    split: str,
    train: Mapping[str, Sequence[MMEditRow]],
    held_out: Mapping[str, Sequence[MMEditRow]],
    seed: int,
) -> Selected:
    """The split `train` or `dev` of `task`, without the images of eval.

    train, held_out: train and eval rows of every task of the spec.
    """
    edited = edited_images(held_out.values())
    dev = {t: dev_rows(rows, edited) for t, rows in train.items()}
    taken = edited | locality_images(held_out.values())
    if split == "dev":
        rows = dev[task]
        pool = [t for t in locality_pool(train[task], taken) if in_dev_pool(t.image)]
    else:
        dev_images = edited_images(dev.values())
        rows = tuple(r for r in kept_rows(train[task], edited) if r.image not in dev_images)
        pool = [
            t for t in locality_pool(train[task], taken | dev_images) if not in_dev_pool(t.image)
        ]
    return Selected(rows, _draw(rows, pool, random.Random(f"errata/mmedit/{task}/{split}/{seed}")))


def _draw(
    rows: Sequence[MMEditRow], pool: Sequence[Triple], rng: random.Random
) -> tuple[Triple | None, ...]:
    """One triple per row, not on the image of the row; none repeats before all were used."""
    drawn: list[Triple | None] = []
    waiting: list[Triple] = []
    for row in rows:
        if all(t.image == row.image for t in waiting):
            waiting += rng.sample(pool, len(pool))
        # Taken from the front; a triple on the image of this row is left for the next row.
        at = next((i for i, t in enumerate(waiting) if t.image != row.image), None)
        drawn.append(None if at is None else waiting.pop(at))
    return tuple(drawn)


def _order(purpose: str, image: str) -> str:
    return hashlib.sha256(f"errata/mmedit/{purpose}/{image}".encode()).hexdigest()
