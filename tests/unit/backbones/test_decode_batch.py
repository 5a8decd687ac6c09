"""Rows of several questions that are decoded together: each as if it were alone."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import errata
from errata import Edit, Prompt
from errata.core.hooks.context import HookContext
from errata.core.patch import Patch
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from tests import tiny

STEPS = 4
TOKENS = (40, 90, 33, 60)


class PromptGate(Patch):
    """Adds a constant where the last prompt token points one way; counts how often it decided."""

    decides = True

    def __init__(self, direction: Tensor) -> None:
        super().__init__(("text.1.block",))
        self.register_buffer("direction", direction)
        self.decided_rows = 0

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        def decide() -> Tensor:
            self.decided_rows += len(y)
            return ctx.last_prompt(y, self) @ self.direction > 0

        open_B = ctx.decide(self, site, decide)
        return torch.where(open_B[:, None, None], y + 3 * self.direction, y)

    def pack(self) -> NoReturn:
        raise AssertionError

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> NoReturn:
        raise AssertionError


def patches_for(bb: tiny.HfVlm, pictures: list[str]) -> list[Patch]:
    rng = torch.Generator().manual_seed(3)

    def delta(site: str) -> Delta:
        n, o = bb.weight(site)
        a, b = torch.randn(2, n, generator=rng) * 0.3, torch.randn(o, 2, generator=rng) * 0.3
        return Delta({site: {"A": a, "B": b}}).requires_grad_(False)

    gate = PromptGate(torch.randn(bb.width, generator=rng))
    said = errata.editor("say", scope="lookup").for_backbone(bb)
    fact = Edit(Prompt.of("Which shape?"), "a green ring")
    route = said.edit(bb, [fact]).patch
    return [
        Stack([]),
        delta("text.1.mlp.down"),
        gate,
        route,
        stacked(delta("text.2.mlp.down"), gate),
        delta("text.1.mlp.down"),
    ]


def alone(bb: tiny.HfVlm, patch: Patch, prompt: Prompt) -> list[Tensor]:
    """[V] logits of the first token and after each of TOKENS."""
    with bb.only(patch), bb.ask(bb.encode([prompt], rows=[0])) as question:
        out = [question.logits[0, 0]]
        out += [question.feed(torch.tensor([[t]]))[0, -1] for t in TOKENS[: STEPS - 1]]
    return out


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.WINDOWED])
def test_rows_that_join_and_leave_are_answered_as_alone(family, pictures):
    bb = tiny.shared(family)
    patches = patches_for(bb, pictures)
    prompts = [
        Prompt.of("Which shape?"),
        Prompt.of("What is the colour of the thing?", pictures[0]),
        Prompt.of("Is the thing red or blue, please?", pictures[1]),
    ]
    jobs = [(i, j) for i in range(len(patches)) for j in range(len(prompts))]
    wanted = {(i, j): alone(bb, patches[i], prompts[j]) for i, j in jobs}
    rng = random.Random(1)
    rng.shuffle(jobs)
    got: dict[tuple[int, int], list[Tensor]] = {job: [] for job in jobs}
    batch = bb.decode_batch(bb.place(Rows(patches)))
    assert batch is not None
    rows: list[tuple[int, int]] = []
    waiting = list(jobs)
    while waiting or rows:
        new = [waiting.pop() for _ in range(min(len(waiting), rng.randint(0, 3)))]
        if new:
            owners = [i for i, _ in new]
            with batch.asking():
                encoded = bb.encode([prompts[j] for _, j in new], rows=owners)
                with bb.ask(encoded, rows=torch.tensor(owners)) as question:
                    for job, logits in zip(new, question.logits[:, 0], strict=True):
                        got[job].append(logits)
                    batch.join(question)
            rows += new
        if rows:
            ids = torch.tensor([TOKENS[len(got[job]) - 1] for job in rows])
            for job, logits in zip(rows, batch.feed(ids), strict=True):
                got[job].append(logits)
            left = [n for n, job in enumerate(rows) if len(got[job]) < STEPS]
            batch.keep(left)
            rows = [rows[n] for n in left]
        assert batch.size == len(rows)
    for job in jobs:
        for step, (a, b) in enumerate(zip(got[job], wanted[job], strict=True)):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=f"{job}, step {step}")


def test_a_decision_is_made_once_per_question():
    bb = tiny.shared("llava")
    gate = PromptGate(torch.ones(bb.width))
    batch = bb.decode_batch(bb.place(Rows([Stack([]), gate])))
    for owner in (1, 0, 1):
        with batch.asking():
            encoded = bb.encode([Prompt.of("Which shape?")], rows=[owner])
            with bb.ask(encoded, rows=torch.tensor([owner])) as question:
                batch.join(question)
    for _ in range(3):
        batch.feed(torch.tensor([40] * batch.size))
        batch.keep(range(1, batch.size))
    assert gate.decided_rows == 2
    assert batch.size == 0


def test_models_whose_rows_cannot_be_joined_say_so(monkeypatch):
    bb = tiny.llava()
    monkeypatch.setattr(bb, "layer_types", lambda: {"linear_attention"})
    assert bb.decode_batch() is None


def test_hooks_that_are_merged_once_keep_their_decisions():
    bb = tiny.shared("llava")
    gate = PromptGate(torch.ones(bb.width))
    block = bb.merged_once(gate)
    with block():
        encoded = bb.encode([Prompt.of("Which shape?")])
        with bb.ask(encoded) as question:
            question.feed(torch.tensor([[40]]))
    with block(), torch.no_grad():
        question.feed(torch.tensor([[40]]))
    assert gate.decided_rows == 1
    assert not bb.hooks.stack
