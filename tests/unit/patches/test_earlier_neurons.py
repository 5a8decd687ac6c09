"""Neurons of earlier edits run where their effect can change, and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.recorder import Recorder
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.editors.tpatcher import TPatcher
from errata.patches._rows import joined, padded_size
from errata.patches.neurons import Neurons
from tests import tiny


@pytest.fixture(scope="module")
def bb() -> tiny.HfVlm:
    return tiny.llava(layers=3)


def neurons(block: int, seed: int, *, count: int = 6) -> Neurons:
    rng = torch.Generator().manual_seed(seed)
    sizes = {"key": (32, count), "key_bias": (count,), "value": (count, 32)}
    part = {name: torch.randn(*size, generator=rng) * 0.3 for name, size in sizes.items()}
    return Neurons({f"text.{block}.mlp": part})


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(number of neurons, columns of a row that they ran at), in order."""
    seen: list[tuple[int, int]] = []
    change = Neurons.change

    def counted(self: Neurons, x: Tensor, part: Mapping[str, Tensor]) -> Tensor:
        seen.append((len(part["value"]), x.shape[1]))
        return change(self, x, part)

    monkeypatch.setattr(Neurons, "change", counted)
    return seen


def test_many_neurons_are_padded_by_a_quarter_at_most() -> None:
    sizes = [padded_size(n) for n in range(1, 20000)]
    assert all(n <= size for n, size in enumerate(sizes, 1))
    assert all(size < 1.26 * n for n, size in enumerate(sizes, 1) if n > 2048)
    assert len(set(sizes)) < 24  # a compiled model sees few shapes
    one = joined([torch.ones(2, 3), torch.ones(2, 2)], 1)
    assert one.shape == (2, 16) and torch.equal(one.sum(1), torch.tensor([5.0, 5.0]))


def test_in_the_last_block_they_run_at_the_columns_of_the_answer(
    bb: tiny.HfVlm, ragged: list[Prompt], columns: list[tuple[int, int]]
) -> None:
    patch = neurons(2, 0).requires_grad_(False)
    batch = bb.encode(ragged, ["red", "blue ring", "", "green", "a"])
    longest = max(len(t) for t in batch.targets)
    with torch.no_grad(), bb.applied(patch):
        whole = bb.logits(batch)
        with bb.ask(batch, answers_only=True) as q:
            asked = q.logits
    assert columns == [(6, batch.ids.shape[1]), (6, 1 + longest)]  # a search keeps its bits
    torch.testing.assert_close(asked, whole, atol=1e-5, rtol=1e-5)


def test_below_the_searched_patch_they_run_once(
    bb: tiny.HfVlm, ragged: list[Prompt], columns: list[tuple[int, int]]
) -> None:
    """The same bits as when they run at every step, and in the blocks above they do."""
    below, above = (neurons(i, i, count=7 + i).requires_grad_(False) for i in (1, 2))
    searched = neurons(1, 5)
    batch = bb.encode(ragged, ["red"] * len(ragged))
    with bb.applied(below), bb.applied(above):
        state = bb.enter(batch, 1)
        for step in range(3):
            with torch.no_grad():
                searched.part("text.1.mlp")["value"].mul_(1.5)
            columns.clear()
            with torch.enable_grad(), bb.applied(searched):
                kept = bb.logits(state)
                ran = Counter(count for count, _ in columns)
                assert torch.equal(kept, bb.logits(bb.enter(batch, 1)))
            assert ran[8] == (0 if step else 1) and ran[9] == 1
        with torch.no_grad():
            below.part("text.1.mlp")["value"].mul_(2.0)
        with torch.enable_grad(), bb.applied(searched):
            assert not torch.equal(bb.logits(state), kept)


class Counted(Hook):
    """How often each block's FFN has run."""

    pointwise = True

    def __init__(self, depth: int) -> None:
        super().__init__(f"text.{i}.mlp" for i in range(depth))
        self.runs: Counter[str] = Counter()

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.runs[site] += 1
        return y


def test_the_next_memory_is_what_the_search_saw_last(edits: list[Edit]) -> None:
    """The FFN's inputs with the edit live, without another forward."""
    bb = tiny.shared("llava")
    editor = TPatcher(steps=2, memory=40, prompts=10, neurons=3, lr=0.01)
    site = f"text.{bb.depth - 1}.mlp"
    state = State("tpatcher", {}, {site: torch.randn(40, bb.width)})
    count = Counted(bb.depth)
    with bb.applied(count):
        found = editor.edit(bb, edits[:1], state)
    assert count.runs["text.0.mlp"] == 2  # for the keys, and below the search
    assert found.state is not None
    batch, watch = bb.encode([edits[0].prompt], [edits[0].target], eos=True), Recorder([site])
    with torch.no_grad(), bb.applied(found.patch, watch):
        bb.logits(batch)
    first = int(batch.lengths[0]) - 1
    seen = watch.x[site][0, first : first + min(3, len(batch.targets[0]))]
    past = found.state.tensors[f"past/{site}"]
    torch.testing.assert_close(past, torch.unique(seen, dim=0), atol=1e-4, rtol=1e-4)
