"""Which column is what, for families that put their begin token and image in different places."""

from __future__ import annotations

import pytest
import torch

from errata.analyses._token_groups import TokenGroups
from tests import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_real_column_is_one_thing(family, ragged):
    bb = tiny.shared(family)
    batch = bb.encode(ragged, ["red"] * len(ragged))
    m = TokenGroups.of(batch)
    parts = torch.stack([m.begin, m.visual, m.text, m.last, m.answer]).int()
    assert torch.equal(parts.sum(0), batch.mask.int())
    assert torch.equal(m.visual, batch.vision)
    assert m.begin.sum(1).tolist() == m.last.sum(1).tolist() == [1] * len(ragged)
    assert m.answer.sum(1).tolist() == [len(t) for t in batch.targets]


def test_places_by_hand(pictures):
    from errata.core.types import Prompt

    prompt = Prompt.of("Which?", pictures[0])
    llava, blip2 = (
        TokenGroups.of(tiny.shared(f).encode([prompt], ["red"])) for f in ("llava", "blip2")
    )
    # <s> <image> x 4 \n Which ?| Ġred   and   <image> x 4 <s> Which ?| Ġred
    assert llava.begin[0].nonzero().tolist() == [[0]]
    assert llava.visual[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4]
    assert llava.text[0].nonzero()[:, 0].tolist() == [5, 6]
    assert llava.last[0].nonzero().tolist() == [[7]]
    assert llava.answer[0].nonzero()[0].tolist() == [8]
    assert blip2.visual[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert blip2.begin[0].nonzero().tolist() == [[4]]
    assert blip2.text[0].nonzero()[:, 0].tolist() == [5]
