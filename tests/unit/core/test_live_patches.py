"""Patches that are live together act as one: the same bits whatever was live before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from errata.core.hooks.hook import Hook
from errata.core.model.live_patches import live_hooks
from errata.core.patch import Header, Patch
from errata.core.types import Edit, Prompt
from errata.patches.delta import Delta
from errata.patches.neurons import Neurons
from errata.patches.rows import Rows
from errata.patches.stack import Stack, folded, stacked
from tests import tiny

SITE, OTHER = "text.1.attn.o", "text.0.attn.o"


@pytest.fixture(scope="module")
def bb() -> tiny.HfVlm:
    return tiny.llava(layers=2)


def headed(patch: Patch, seed: int) -> Patch:
    edit = Edit(Prompt.of(f"Question {seed}?"), f"answer {seed}")
    return patch.requires_grad_(False).with_header(Header(editor="t", seed=seed), [edit])


def low(seed: int, site: str = SITE, rank: int = 1) -> Patch:
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 32, generator=rng), torch.randn(32, rank, generator=rng)
    return headed(Delta({site: {"A": a * 0.1, "B": b * 0.1}}), seed)


def dense(seed: int) -> Patch:
    rng = torch.Generator().manual_seed(seed)
    return headed(Delta({SITE: {"dense": torch.randn(32, 32, generator=rng) * 0.01}}), seed)


def neuron(seed: int) -> Patch:
    rng = torch.Generator().manual_seed(seed)
    sizes = {"key": (32, 1), "key_bias": (1,), "value": (1, 32)}
    part = {name: torch.randn(*size, generator=rng) * 0.1 for name, size in sizes.items()}
    return headed(Neurons({"text.0.mlp": part}), seed)


def logits(bb: tiny.HfVlm, *patches: Patch) -> Tensor:
    batch = bb.encode([Prompt.of("What is the colour of the thing?"), Prompt.of("Where?")])
    with bb.applied(*patches), torch.no_grad():
        return bb.logits(batch)


def one_by_one(bb: tiny.HfVlm, patches: Sequence[Patch]) -> Tensor:
    """Every patch a hook of its own."""
    batch = bb.encode([Prompt.of("What is the colour of the thing?"), Prompt.of("Where?")])
    with bb.hooks.block(patches, lambda hooks: hooks, alone=True), torch.no_grad():
        return bb.logits(batch)


@pytest.mark.parametrize("make", [low, dense, neuron])
def test_many_patches_act_as_one_by_one(bb: tiny.HfVlm, make) -> None:
    patches = [make(i) for i in range(30)]
    torch.testing.assert_close(logits(bb, *patches), one_by_one(bb, patches), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [low, dense, neuron])
def test_a_stack_that_grew_has_the_bits_of_one_made_at_once(bb: tiny.HfVlm, make) -> None:
    """And so has what the bench keeps of it, which has no parts any more."""
    patches = [make(i) for i in range(20)]
    grown = kept = patches[0]
    for patch in patches[1:]:
        grown, kept = stacked(grown, patch), folded(kept, patch)
        logits(bb, grown)
    expected = logits(bb, Stack(patches))
    assert torch.equal(logits(bb, grown), expected)
    assert torch.equal(logits(bb, kept), expected)
    assert not kept.members() and kept.edits == tuple(e for p in patches for e in p.edits)
    assert kept.origins == frozenset().union(*(p.origins for p in patches))


def test_without_one_edit_the_others_act_as_if_it_had_never_been_there(bb: tiny.HfVlm) -> None:
    patches = [*(low(i) for i in range(12)), *(dense(i) for i in range(12, 16))]
    whole = stacked(*patches)
    logits(bb, whole)
    rest = [p for p in whole.members() if p is not patches[5]]
    fresh = [*(low(i) for i in range(12) if i != 5), *(dense(i) for i in range(12, 16))]
    assert torch.equal(logits(bb, stacked(*rest)), logits(bb, Stack(fresh)))


def numbers(hooks: Sequence[Hook]) -> int:
    return sum(p.numel() for h in hooks if isinstance(h, Patch) for p in h.parameters())


def test_the_numbers_do_not_grow_beyond_the_matrix() -> None:
    """Factors while they are smaller than it, about r < d/2; then a matrix."""
    ranks = {n: live_hooks([low(i) for i in range(n)]) for n in (4, 16, 17, 200)}
    assert [len(hooks) for hooks in ranks.values()] == [1] * 4
    assert [numbers(hooks) for hooks in ranks.values()] == [4 * 64, 16 * 64, 32 * 32, 32 * 32]


def test_parts_of_all_forms_and_sites_become_one_patch(bb: tiny.HfVlm) -> None:
    patches = [low(0), dense(1), low(2, OTHER), low(3, rank=3), dense(4)]
    (one,) = live_hooks(patches)
    assert isinstance(one, Delta) and set(one.part(SITE)) == {"dense"}
    torch.testing.assert_close(logits(bb, *patches), one_by_one(bb, patches), atol=1e-5, rtol=1e-5)


def test_one_more_patch_costs_one_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    merge = Delta.merge.__func__
    monkeypatch.setattr(
        Delta, "merge", classmethod(lambda cls, p: counts.append(len(p)) or merge(cls, p))
    )
    stack: Patch = stacked(*(low(i) for i in range(50)))
    live_hooks([stack])
    counts.clear()
    for i in range(50, 55):
        stack = stacked(stack, low(i))
        Rows([stack])
        live_hooks([stack])
    assert counts == [2] * 5, counts


def test_a_part_that_was_written_to_is_seen(bb: tiny.HfVlm) -> None:
    patches = [low(i) for i in range(4)]
    stack = stacked(*patches)
    before = logits(bb, stack)
    with torch.no_grad():
        patches[1].part(SITE)["A"].mul_(3.0)
    assert not torch.equal(logits(bb, stack), before)
    assert torch.equal(logits(bb, stack), logits(bb, Stack(patches)))
