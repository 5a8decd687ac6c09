"""Columns that run behind finished ones: `Backbone.suffix`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from errata.algorithms.locate_then_edit.value_search import ColumnShift
from errata.backbones._pruning import few_queries
from errata.core.types import Prompt
from errata.testing import zoo
from tests import tiny

ASKED = ("The ring of the blue thing is", "It", "Which shape has the small thing?")


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_attention_of_few_queries_is_that_of_the_library(heads: int, groups: int) -> None:
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 3, 8, generator=rng)
    key, value = torch.randn(2, 2, groups, 7, 8, generator=rng)
    mask = torch.rand(2, 1, 3, 7, generator=rng) < 0.6
    mask[..., 0] = True
    ours = few_queries(query, key, value, mask, 0.5)
    theirs = functional.scaled_dot_product_attention(
        query, key, value, mask, scale=0.5, enable_gqa=True
    )
    assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_neo", "bloom", "opt"])
def test_gradients_are_those_of_whole_rows(name: str) -> None:
    """llama runs packed, the others from the library's cache (windows, positions of their own)."""
    bb = zoo.loaded(name)
    batch = bb.encode([Prompt.of(t) for t in ASKED], ["green", "blue ring", "red"])
    first = torch.tensor([3, 0, 2])
    shift = ColumnShift(["text.2.mlp"], first, torch.zeros_like(first))
    state = bb.enter(batch, 2)
    suffix = bb.suffix(state, first)
    assert suffix is not None
    results = []
    for what, columns in ((state, first), (suffix, torch.zeros_like(first))):
        delta = torch.ones(1, bb.width, requires_grad=True)
        shift.columns_B, shift.delta = columns, {"text.2.mlp": delta}
        with torch.enable_grad(), bb.applied(shift):
            loss = torch.stack([
                bb.logits(what)[b, len(t)].log_softmax(-1)[5] for b, t in enumerate(batch.targets)
            ]).sum()  # fmt: skip
            results.append((loss.detach(), *torch.autograd.grad(loss, delta)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_hooks_that_read_whole_rows_get_whole_rows() -> None:
    """A gate decides at the end of the prompt, which the last columns alone do not show."""
    bb = tiny.shared("llava")
    batch = bb.encode([Prompt.of(ASKED[0])], ["green"])
    state = bb.enter(batch, 1)
    first = torch.tensor([2])
    assert bb.suffix(state, first) is not None
    whole = ColumnShift(["text.1.mlp"], first, torch.zeros_like(first))  # not pointwise
    with bb.applied(whole):
        assert bb.suffix(bb.enter(batch, 1), first) is None
