"""`analyze attention`: shares and means per token, from weights that are known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from errata.analyses.attention import AttentionAnalysis, AttentionSummary, measured
from errata.core.analysis import Subject
from errata.core.errors import BadSpec
from errata.core.figure import ceiling
from errata.core.types import Case, Edit, Prompt
from tests import tiny


def cases(edits):
    return tuple(Case(e.id, e, ()) for e in edits)


def test_shares_by_hand(edits):
    """Two heads: one looks at the first image token only, the other at all columns evenly."""
    batch = tiny.shared("llava").encode([e.prompt for e in edits[:2]], ["red", "red ring"])
    real = batch.mask.float()

    def attention(given, columns):
        assert torch.equal(columns[:, 0], batch.lengths - 1)
        assert torch.equal(columns[:, 1], batch.mask.sum(1) - 1)
        weights = torch.zeros(3, 2, 2, 2, real.shape[1])
        weights[:, :, 0, :, 1] = 1.0
        weights[:, :, 1] = (real / real.sum(1, keepdim=True))[None, :, None]
        return weights

    found = measured(Subject(SimpleNamespace(attention=attention)), batch, 3)
    n = real.sum(1)
    for who in ("prompt", "answer"):
        share = {g: found[who, "share", g] for g in ("visual", "text", "begin", "top visual")}
        assert share["visual"].shape == (2, 3)
        torch.testing.assert_close(share["visual"][:, 0], 0.5 + 0.5 * 4 / n)
        torch.testing.assert_close(share["top visual"][:, 1], 0.5 + 0.5 * 3 / n)
        torch.testing.assert_close(share["begin"][:, 2], 0.5 / n)
        text = batch.lengths - 5
        torch.testing.assert_close(share["text"][:, 0], 0.5 * text / n)
        torch.testing.assert_close(found[who, "per_token", "text"][:, 0], 0.5 / n)
        torch.testing.assert_close(found[who, "per_token", "visual"][:, 0], 1 / 8 + 0.5 / n)
        torch.testing.assert_close(found[who, "per_token", "top visual"][:, 0], 1 / 6 + 0.5 / n)
    assert ("prompt", "share", "answer") not in found


@pytest.mark.parametrize("family", ["llava", "qwen3", "gemma3"])
def test_groups_share_all_attention_of_a_model(family, edits):
    found = AttentionAnalysis().look(Subject(tiny.shared(family), cases(edits), rows=3))
    rows = [r for r in found.tables[0].rows if r[1] == "share" and r[2] != "visual, top 3"]
    for who in ("prompt", "answer"):
        for block in range(4):
            total = sum(r[4] for r in rows if r[0] == who and r[3] == block)
            assert total == pytest.approx(1, abs=1e-5)
    assert found.facts["cases"] == 4 and "a first look" in found.said[-1]
    assert len(found.figures[0].panels) == 4


def test_neither_batches_nor_padding_change_it(edits):
    bb = tiny.shared("llava")
    alone = AttentionAnalysis().look(Subject(bb, cases(edits), rows=1)).tables[0].rows
    joint = AttentionAnalysis().look(Subject(bb, cases(edits), rows=4)).tables[0].rows
    for a, b in zip(alone, joint, strict=True):
        assert a[:4] == b[:4] and a[4] == pytest.approx(b[4], abs=2e-6)


def test_peaks_and_intervals():
    rows = {"a": [0.1, 0.5, 0.2], "b": [0.1, 0.7, 0.2]}
    summary = AttentionSummary({("prompt", "share", "visual"): rows}, ["a", "b"], 3)
    assert summary.peaks() == {"prompt": {"share": {"visual": {"block": 1, "agree": 1.0}}}}
    value = summary.mean_at(("prompt", "share", "visual"), 1)
    assert value.value == 0.6 and value.low < 0.5 and value.high > 0.7


def test_what_cannot_be_seen_is_refused(edits):
    bb = tiny.shared("llava")
    text = Case("t", replace(edits[0], prompt=Prompt.of("Which?")), ())
    assert isinstance(text.edit, Edit)
    with pytest.raises(BadSpec, match="questions about images"):
        AttentionAnalysis().look(Subject(bb, (text,)))
    with pytest.raises(BadSpec, match="top=0"):
        AttentionAnalysis(top=0).look(Subject(bb, cases(edits)))


def test_round_ends_of_axes():
    assert [ceiling(x) for x in (0.013, 0.02, 0.3, 1, 7, 0)] == [0.02, 0.02, 0.5, 1, 10, 1]
