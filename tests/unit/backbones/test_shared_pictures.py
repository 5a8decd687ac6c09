"""Questions about one picture share its columns; answers that ended are computed no further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.core.hooks.hook import Hook
from errata.core.model.batch import Batch, Question
from errata.core.types import Prompt
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.testing import zoo
from tests import tiny

WORDS = ("Which shape is it?", "The colour of the small thing, in one word:", "It is")
PICTURES = [
    f"microworld:shape=ring,colour={c},pattern=striped,accent=black,size=small,position=centre,"
    "background=grey,seed=1"
    for c in ("blue", "green")
]
TARGETS = ("green", "blue ring", "red", "small", "it", "black ring")


def asked(bb: Any) -> Batch:
    prompts = [Prompt.of(text, picture) for picture in PICTURES for text in WORDS]
    return bb.encode(prompts, TARGETS)


def low(seed: int) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 64, generator=rng), torch.randn(32, 2, generator=rng)
    return Delta({"text.1.mlp.down": {"A": a, "B": b}}).requires_grad_(False)


def answers(q: Question, size: int) -> tuple[Tensor, Any, Any]:
    logits = q.logits
    scored = q.score([(5, 7, 9)] * size)
    return logits, q.greedy([6] * size), [s.logprobs for s in scored]


@contextmanager
def columns_run(bb: Any) -> Iterator[list[int]]:
    """How many columns each forward runs through the first block."""
    counts: list[int] = []
    handle = bb.blocks[0].register_forward_hook(
        lambda _, args, out: counts.append(
            (out[0] if isinstance(out, tuple) else out).shape[:2].numel()
        )
    )
    yield counts
    handle.remove()


@pytest.mark.parametrize("name", ["llava", "blip2", "qwen2_vl", "gemma3", "chameleon", "kosmos2"])
def test_answers_are_those_of_whole_rows(name: str) -> None:
    bb = zoo.loaded(name)
    batch = asked(bb)
    results = []
    for only in (False, True):
        with bb.ask(batch, answers_only=only) as q:
            results.append(answers(q, batch.size))
    for b, target in enumerate(batch.targets):
        whole, shared = (r[0][b, : len(target) + 1] for r in results)
        torch.testing.assert_close(shared, whole, atol=1e-5, rtol=1e-5)
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[0][2], results[1][2], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 0, 1]])
def test_rows_of_one_patch_share_and_others_do_not(rows: list[int]) -> None:
    bb = tiny.shared("llava")
    batch, patch, of = asked(bb), Rows([low(0), low(1)]), torch.tensor(rows)
    results = []
    with bb.applied(patch):
        for only in (False, True):
            with columns_run(bb) as counts, bb.ask(batch, rows=of, answers_only=only) as q:
                results.append((answers(q, batch.size), counts[0]))
    (whole, _), (shared, first) = results
    for b, target in enumerate(batch.targets):
        n = len(target) + 1
        torch.testing.assert_close(shared[0][b, :n], whole[0][b, :n], atol=1e-5, rtol=1e-5)
    assert shared[1] == whole[1]
    prefixes = {(row, i // 3) for i, row in enumerate(rows)}
    if len(prefixes) < batch.size:
        assert first < batch.size * batch.ids.shape[1] and first % len(prefixes) == 0


def test_the_columns_of_a_picture_run_once() -> None:
    bb = tiny.shared("llava")
    batch = asked(bb)
    end = int((batch.vision[0] * torch.arange(1, batch.ids.shape[1] + 1)).max())
    with columns_run(bb) as counts, bb.ask(batch, answers_only=True) as q:
        q.scores()
    assert counts == [2 * end, batch.size * (batch.ids.shape[1] - end)]


def test_a_hook_that_reads_whole_rows_gets_whole_rows() -> None:
    bb = tiny.shared("llava")
    batch = asked(bb)
    hook = Hook(["text.1.in"])
    with bb.applied(hook), columns_run(bb) as counts, bb.ask(batch, answers_only=True) as q:
        q.scores()
    assert counts == [batch.ids.numel()]


def test_answers_that_ended_are_not_computed_further() -> None:
    """Caps stand for answers of different lengths; the ids are those of each question alone."""
    bb = tiny.shared("llava")
    prompts = [Prompt.of(f"{w} {i}") for i in range(4) for w in WORDS[:2]]
    caps = [24, 2, 2, 3, 2, 3, 2, 2]
    batch = bb.encode(prompts)
    free = [True] * len(caps)
    with columns_run(bb) as counts, bb.ask(batch) as q:
        said = q.greedy(caps, free=free)
    alone = []
    for prompt, cap in zip(prompts, caps, strict=True):
        with bb.ask(bb.encode([prompt])) as q:
            alone += q.greedy([cap], free=[True])
    assert said == alone
    longest = max(len(g.ids) for g in said)
    needed = sum(len(g.ids) for g in said)
    assert longest > 5 and sum(counts[1:]) < 2 * needed < longest * len(caps)
