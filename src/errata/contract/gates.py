"""What every gate must hold: keys from the prompt alone, a choice among the edits of the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from errata.core.gate import Gate, TokenColumns, unpack_gate

SITE = "text.1.in"
B, T, K, D = 4, 9, 3, 8


def checks(cls: type[Gate]) -> list[tuple[str, Callable[[], None]]]:
    from errata.contract._names import named

    return [(named(f), partial(f, cls)) for n, f in globals().items() if n.startswith("holds_")]


def _batch() -> tuple[torch.Tensor, TokenColumns]:
    """Random hidden states of prompts of 4 to 7 tokens, two of them image tokens, no answers."""
    states = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))
    lengths, columns = torch.arange(4, 4 + B), torch.arange(T)
    vision = ((columns >= 1) & (columns < 3)).expand(B, T)
    return states, TokenColumns(lengths, columns < lengths[:, None], vision)


def holds_prompt(cls: type[Gate]) -> None:
    """Its key depends on the prompt alone, or it declares that it reads the answer, and warns."""
    states, columns = _batch()
    behind = ~columns.real[..., None]
    answered = replace(columns, real=torch.arange(T) < columns.lengths[:, None] + 2)
    gate = cls(SITE)
    alone = gate.key(states, columns)
    assert alone.shape == (B, D)
    assert torch.equal(gate.key(torch.where(behind, states + 1, states), columns), alone)
    if cls.reads_answer:
        assert cls.warning
    else:
        assert torch.equal(gate.key(torch.where(behind, states + 1, states), answered), alone)


def holds_own(cls: type[Gate]) -> None:
    """A prompt is routed to an edit of its own row; to none where the row has none."""
    states, columns = _batch()
    gate = cls(SITE, -1e9)
    query = gate.key(states, columns)
    own = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]]).bool()
    chosen, opened = gate.decide(query, query[:K], own)
    assert chosen.shape == opened.shape == (B,)
    assert all(bool(own[b, chosen[b]]) for b in (0, 1, 3))
    assert not bool(opened[2])


def holds_latest(cls: type[Gate]) -> None:
    """Of two equal edits the later one is chosen."""
    states, columns = _batch()
    gate = cls(SITE)
    query = gate.key(states, columns)
    chosen, _ = gate.decide(query[:1], query[[0, 0]])
    assert chosen.tolist() == [1]


def holds_packed(cls: type[Gate]) -> None:
    """What is saved makes the same gate again."""
    gate = cls(SITE, 0.5)
    assert unpack_gate(gate.pack()) == gate
