"""What trained editors read of a batch is where it is said to be."""

from __future__ import annotations

import torch

from errata.core.model.recorder import PromptStates, answer_embeddings, head_inputs
from errata.core.types import Prompt
from tests import tiny


def test_answers_and_the_states_that_say_them(ragged: list[Prompt]) -> None:
    """State j of a row predicts its token j; the token before token 0 is the prompt's last."""
    backbone = tiny.shared("llava")
    targets = ["red", "a green thing of it", "blue", "x", "ring of"]
    batch = backbone.encode(ragged, targets, eos=True)
    states = head_inputs(backbone, batch)
    stated, real = answer_embeddings(backbone, batch, states)
    logits = backbone.logits(batch)
    table = backbone.site("embed").first.weight
    assert isinstance(table, torch.Tensor)
    for b, target in enumerate(batch.targets):
        n = len(target)
        assert real[b].tolist() == [j < n for j in range(real.shape[1])]
        before = [int(batch.ids[b, batch.lengths[b] - 1]), *target[:-1]]
        assert torch.equal(stated[b, :n, 0], table[list(target)])
        assert torch.equal(stated[b, :n, 1], table[before])
        said = backbone.hooks.call("head", stated[b, :n, 2])
        torch.testing.assert_close(said, logits[b, :n], atol=1e-5, rtol=1e-5)


def test_a_prompt_ends_where_its_answer_begins(ragged: list[Prompt]) -> None:
    """Another answer changes neither the prompt's columns nor its last state."""
    backbone = tiny.shared("llava")
    read = []
    for targets in (["red"] * 5, ["a green thing of it"] * 5):
        batch = backbone.encode(ragged, targets)
        stream = backbone.enter(batch, 2).stream
        assert stream is not None
        read.append((PromptStates.of(stream, batch), batch))
    (one, batch), (two, _) = read
    assert one.mask.sum(1).tolist() == batch.lengths.tolist()
    torch.testing.assert_close(one.last, two.last, atol=1e-5, rtol=1e-5)
    taken = one.take(torch.tensor([3]))
    assert torch.equal(taken.last[0], one.stream[3, batch.lengths[3] - 1])
