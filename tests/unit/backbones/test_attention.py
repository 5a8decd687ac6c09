"""Attention weights, against what the fused attention does to values that name their column."""

from __future__ import annotations

import pytest
import torch

from errata.core.errors import BadBackbone
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import Recorder
from tests import tiny


class NameColumns(Recorder):
    """The values of columns start ... start + size are unit vectors, those of all others zero.

    The input of the output projection is then attention itself: one feature per column.
    """

    def __init__(self, layer, heads, start):
        super().__init__((f"text.{layer}.attn.v", f"text.{layer}.attn.o"))
        self.heads, self.start, self.layer = heads, start, layer

    def at(self, site, x, y, ctx):
        super().at(site, x, y, ctx)
        if site.endswith(".o"):
            return y
        size = self.heads.size
        named = torch.zeros(*y.shape[:2], self.heads.keys, size)
        for k in range(min(size, y.shape[1] - self.start)):
            named[:, self.start + k, :, k] = 1.0
        return named.flatten(2)


def by_values(bb, batch, layer):
    """[B, h, T, T] attention of a block, read from its fused form."""
    heads, width = bb.heads(layer), batch.ids.shape[1]
    parts = []
    for start in range(0, width, heads.size):
        patch = NameColumns(layer, heads, start)
        with torch.no_grad(), bb.applied(patch):
            bb.logits(batch)
        mixed = patch.x[f"text.{layer}.attn.o"]
        parts.append(mixed.unflatten(-1, (heads.queries, heads.size)).transpose(1, 2))
    return torch.cat(parts, dim=-1)[..., :width]


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.WINDOWED])
def test_weights_are_those_of_the_models_own_attention(family, ragged):
    """Grouped queries, rotary positions, windows, padding: nothing is computed again by hand."""
    bb = tiny.shared(family)
    prompts = [ragged[0], ragged[2], ragged[1]]
    batch = bb.encode(prompts, ["red", "blue ring", "green"])
    columns = torch.stack([batch.lengths - 1, batch.mask.sum(1) - 1], dim=1)
    before = bb.text.config._attn_implementation
    found = bb.attention(batch, columns)
    assert bb.text.config._attn_implementation == before == "sdpa", "as it was"
    assert found.shape == (bb.depth, 3, bb.heads(0).queries, 2, batch.ids.shape[1])
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    rows = torch.arange(3)[:, None]
    for layer in (0, 1, bb.depth - 1):
        wanted = by_values(bb, batch, layer).transpose(1, 2)[rows, columns].transpose(1, 2)
        torch.testing.assert_close(found[layer], wanted, atol=2e-5, rtol=1e-4)
    assert bool((found * (1 - batch.mask[None, :, None, None])).sum() == 0), "never at padding"


def test_a_window_ends_what_is_looked_at(ragged):
    bb = tiny.shared("mistral")
    batch = bb.encode([ragged[2]])
    weights = bb.attention(batch, batch.lengths[:, None] - 1)[0, 0, :, 0]
    seen = (weights > 0).any(0).nonzero()[:, 0]
    last = int(batch.lengths[0]) - 1
    assert seen.tolist() == list(range(last - 11, last + 1)), "its window has 12 columns"


def test_a_model_that_does_not_show_it_says_so():
    class Blind:
        name = "blind"

    with pytest.raises(BadBackbone, match="blind does not show its attention"):
        Backbone.attention(Blind(), None, None)
