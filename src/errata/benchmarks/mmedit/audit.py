"""Counts from the released files: leaks, repetitions, unclean rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from errata.benchmarks.mmedit import splits
from errata.benchmarks.mmedit.rows import MMEditRow, has_label, is_quoted, rephrase_problem

WINDOWS = (10, 20)


def describe(rows: Sequence[MMEditRow]) -> dict[str, Any]:
    """Counts of one file."""
    n = max(1, len(rows))
    words = [len(r.alt.split()) for r in rows]
    by_image = Counter(r.image for r in rows)
    by_edit = Counter((r.image, r.src) for r in rows)
    return {
        "rows": len(rows),
        "distinct_src": len({r.src for r in rows}),
        "distinct_rephrase": len({r.rephrase for r in rows}),
        "distinct_images": len(by_image),
        "distinct_m_loc_images": len({r.m_loc for r in rows}),
        "rows_sharing_image": sum(c for c in by_image.values() if c > 1),
        "repeated_image_and_src": sum(c - 1 for c in by_edit.values()),
        "consecutive_same_image": sum(a.image == b.image for a, b in pairwise(rows)),
        "windows_with_repeated_image": {str(k): repeated_windows(rows, k) for k in WINDOWS},
        "target": {
            "words_mean": round(sum(words) / n, 2),
            "one_word": sum(w == 1 for w in words),
            "one_word_share": round(sum(w == 1 for w in words) / n, 3),
            "yes_no": sum(r.alt.strip().casefold() in ("yes", "no") for r in rows),
            "digits": sum(r.alt.strip().isdigit() for r in rows),
            "already_correct": sum(r.pred == r.alt for r in rows),
            "already_correct_casefold": sum(
                r.pred.strip().casefold() == r.alt.strip().casefold() for r in rows
            ),
            "ends_with_space": sum(r.alt.endswith(" ") for r in rows),
            "ends_with_newline": sum(r.alt.endswith("\n") for r in rows),
            "white_space_around": sum(r.alt != r.alt.strip() for r in rows),
        },
        "rephrase": {
            "same_as_src": sum(r.rephrase == r.src for r in rows),
            "quoted": sum(is_quoted(r.rephrase) for r in rows),
            "labelled": sum(has_label(r.rephrase) for r in rows),
            "several_lines": sum(len(r.rephrase.strip().splitlines()) > 1 for r in rows),
            "dropped": dict(
                sorted(Counter(filter(None, (rephrase_problem(r.rephrase) for r in rows))).items())
            ),
        },
        "locality": {
            "nq_prefix": sum(r.loc.startswith("nq question: ") for r in rows),
            "t_loc_question_mark": sum(r.loc.endswith("?") for r in rows),
            "t_loc_answer_several_lines": sum("\n" in r.loc_ans.strip() for r in rows),
            "m_loc_image_edited_in_same_file": sum(r.m_loc in by_image for r in rows),
        },
    }


def repeated_windows(rows: Sequence[MMEditRow], k: int) -> dict[str, int]:
    """Complete consecutive windows of k rows; how many of them edit an image more than once."""
    windows = [rows[i : i + k] for i in range(0, len(rows) - k + 1, k)]
    return {
        "repeated": sum(len({r.image for r in w}) < k for w in windows),
        "windows": len(windows),
    }


def leaks(train: Sequence[MMEditRow], held_out: Sequence[MMEditRow]) -> dict[str, int]:
    """How many eval rows share something with the released train file."""
    images = {r.image for r in train}
    edits = {(r.src, r.image) for r in train}
    facts = {(r.src, r.alt) for r in train}
    questions = {r.loc for r in train}
    return {
        "eval_rows": len(held_out),
        "image_in_train": sum(r.image in images for r in held_out),
        "image_and_src_in_train": sum((r.src, r.image) in edits for r in held_out),
        "src_and_target_in_train": sum((r.src, r.alt) in facts for r in held_out),
        "t_loc_question_in_train": sum(r.loc in questions for r in held_out),
        **locality_leaks([splits.triple(r) for r in train], held_out),
        "m_loc_image_edited_in_train": sum(r.m_loc in images for r in held_out),
    }


def locality_leaks(shown: Sequence[splits.Triple], held_out: Sequence[MMEditRow]) -> dict[str, int]:
    triples, pairs = set(shown), {t[:2] for t in shown}
    images, questions = {t.image for t in shown}, {t.question for t in shown}
    return {
        "image_in_train_m_loc": sum(r.image in images for r in held_out),
        "m_loc_image_in_train": sum(r.m_loc in images for r in held_out),
        "m_loc_question_in_train": sum(r.m_loc_q in questions for r in held_out),
        "m_loc_image_and_question_in_train": sum((r.m_loc, r.m_loc_q) in pairs for r in held_out),
        "m_loc_triple_in_train": sum(splits.triple(r) in triples for r in held_out),
    }


def describe_disjoint(
    task: str,
    train: Mapping[str, Sequence[MMEditRow]],
    held_out: Mapping[str, Sequence[MMEditRow]],
    seed: int = 0,
) -> dict[str, Any]:
    """What `disjoint` keeps of `task`, and what eval rows still share with it (`left`)."""
    rows, eval_rows = train[task], held_out[task]
    edited = splits.edited_images(held_out.values())
    asked = splits.locality_images(held_out.values())
    train_part = splits.disjoint(task, "train", train, held_out, seed)
    dev_part = splits.disjoint(task, "dev", train, held_out, seed)
    shown = [t for part in (train_part, dev_part) for t in part.triples if t is not None]
    images = {r.image for part in (train_part, dev_part) for r in part.rows}
    dev_shown = {t.image for t in dev_part.triples if t is not None}
    return {
        "rows_kept": len(splits.kept_rows(rows, edited)),
        "rows_train": len(train_part.rows),
        "rows_dev": len(dev_part.rows),
        "m_loc_pairs": len({t[:2] for t in splits.locality_pool(rows, frozenset())}),
        "m_loc_pairs_free_of_eval_m_loc": len(splits.locality_pool(rows, asked)),
        "m_loc_pairs_free_of_eval": len(splits.locality_pool(rows, asked | edited)),
        "m_loc_pairs_drawn_train": len({t for t in train_part.triples if t is not None}),
        "m_loc_pairs_drawn_dev": len({t for t in dev_part.triples if t is not None}),
        "rows_without_m_loc": sum(t is None for p in (train_part, dev_part) for t in p.triples),
        "left": {
            "image_in_train": sum(r.image in images for r in eval_rows),
            **locality_leaks(shown, eval_rows),
            "m_loc_image_edited_in_train": sum(r.m_loc in images for r in eval_rows),
            "train_dev_images": len(
                {r.image for r in train_part.rows} & {r.image for r in dev_part.rows}
            ),
            "train_dev_m_loc_images": len({t.image for t in train_part.triples if t} & dev_shown),
        },
    }


def cross_task(
    train: Mapping[str, Sequence[MMEditRow]], held_out: Mapping[str, Sequence[MMEditRow]]
) -> dict[str, Any]:
    """What the eval rows of one task share with the train rows of the other (counts)."""
    return {
        f"{a}_eval_in_{b}_train": {
            "image": sum(r.image in {q.image for q in train[b]} for r in held_out[a]),
            **locality_leaks([splits.triple(q) for q in train[b]], held_out[a]),
        }
        for a in held_out
        for b in train
        if a != b
    }
