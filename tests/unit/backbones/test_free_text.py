"""A free text goes on behind a line break; an answer ends there."""

from __future__ import annotations

import torch

from errata.core.types import Prompt
from tests import tiny


def test_only_an_end_token_ends_a_free_text() -> None:
    bb = tiny.llava()
    prompts = [Prompt.of("Which shape?"), Prompt.of("What is the colour of the thing?")]
    rows = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        with bb.ask(bb.encode(prompts), rows=rows) as q:
            free = [g.ids for g in q.greedy([12, 12], free=[True, True])]
        assert all(len(ids) == 12 for ids in free)
        bb.stop_ids = bb.end_ids | {free[0][3], free[1][5]}  # as if these were line breaks
        with bb.ask(bb.encode(prompts), rows=rows) as q:
            first, second = q.greedy([12, 12], free=[True, False])
    assert first.ids == free[0] and not first.stopped
    cut = next(i for i, token in enumerate(free[1]) if token in bb.stop_ids)
    assert second.ids == free[1][:cut] and second.stopped


def test_line_breaks_are_no_end_tokens() -> None:
    bb = tiny.shared("llava")
    breaks = {i for t, i in bb.tokenizer.get_vocab().items() if "Ċ" in t}
    assert breaks and breaks <= bb.stop_ids and not breaks & bb.end_ids
