"""Patch arithmetic against numbers worked out by hand, searches against plain loops.

The plain loops write weights.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch

from errata.core import registry
from errata.core.editor import EditRequest
from errata.core.hooks.context import HookContext
from errata.core.hooks.manager import HookManager
from errata.core.types import Edit
from errata.patches._rows import per_row
from errata.patches.delta import Delta
from errata.patches.neurons import Neurons
from errata.training.optimise import RowAdam, SearchSettings, encode_edits, per_group, target_loss
from tests import tiny


def ctx() -> HookContext:
    return HookManager(torch.nn.Identity(), []).context()


def test_dense_delta_by_hand() -> None:
    """x = (1, 2), dW = [[1, 0], [0, 3], [1, 1]], bias (0, 0, 5): x dW^T + b = (1, 6, 3 + 5)."""
    patch = Delta(
        {
            "s": {
                "dense": torch.tensor([[1.0, 0], [0, 3], [1, 1]]),
                "bias": torch.tensor([0.0, 0, 5]),
            }
        }
    )
    y = patch.at("s", torch.tensor([[[1.0, 2.0]]]), torch.full((1, 1, 3), 10.0), ctx())
    assert y.tolist() == [[[11.0, 16.0, 18.0]]]


def test_low_rank_delta_by_hand() -> None:
    """x = (1, 2), A = (3, 4) -> 11; B = (1, -1)^T -> (11, -11)."""
    patch = Delta({"s": {"A": torch.tensor([[3.0, 4.0]]), "B": torch.tensor([[1.0], [-1.0]])}})
    y = patch.at("s", torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 1, 2), ctx())
    assert y.tolist() == [[[11.0, -11.0]]]


def test_plain_neurons_by_hand() -> None:
    """x = (1, 2); neuron 0: relu(1*1 + 2*1 - 1) = 2, neuron 1: relu(-1) = 0; values (1, 0), (9, 9);
    shared (0, 1) adds (2 + 0) * (0, 1): y = (2, 2).
    """
    part = {
        "key": torch.tensor([[1.0, -1.0], [1.0, 0.0]]),
        "key_bias": torch.tensor([-1.0, 0.0]),
        "value": torch.tensor([[1.0, 0.0], [9.0, 9.0]]),
        "shared": torch.tensor([0.0, 1.0]),
    }
    y = Neurons({"m": part}, act="relu").at(
        "m", torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 1, 2), ctx()
    )
    assert y.tolist() == [[[2.0, 2.0]]]


def test_gated_neurons_by_hand() -> None:
    """Gate 2, up 3: silu(2) * 3 = 6 / (1 + e^-2); value (1)."""
    part = {
        "key": torch.tensor([[2.0]]),
        "key_bias": torch.zeros(1),
        "up": torch.tensor([[0.0]]),
        "up_bias": torch.tensor([3.0]),
        "value": torch.tensor([[1.0]]),
    }
    y = Neurons({"m": part}, act="silu").at(
        "m", torch.tensor([[[1.0]]]), torch.zeros(1, 1, 1), ctx()
    )
    assert y.item() == pytest.approx(6 / (1 + math.exp(-2)), rel=1e-6)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [1, 1, 0, 0, 2, 2], [2, 0, 0, 1, 2, 2, 2]])
def test_per_row_is_each_row_on_its_own(rows: list[int]) -> None:
    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(len(rows), 4, 5, generator=rng), torch.randn(3, 5, 2, generator=rng)
    y = per_row(x, torch.tensor(rows), 3, lambda v, i: v @ (w if i is None else w[i]))
    expected = torch.stack([x[b] @ w[r] for b, r in enumerate(rows)])
    torch.testing.assert_close(y, expected)


def test_row_adam_is_torch_adam_on_each_row_and_freezes_rows() -> None:
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    goal = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(start.clone())
    ours = RowAdam(module, SearchSettings(lr=0.1, steps=5, max_grad_norm=1.0))
    stops = [5, 3, 0]
    for turn in range(5):
        loss = (module.weight - goal).square().sum()
        ours.step(loss, torch.tensor([turn < s for s in stops]))
    for row, stop in enumerate(stops):
        w = torch.nn.Parameter(start[row].clone())
        adam = torch.optim.Adam([w], lr=0.1)
        for _ in range(stop):
            adam.zero_grad()
            (w - goal[row]).square().sum().backward()
            torch.nn.utils.clip_grad_norm_([w], 1.0)
            adam.step()
        torch.testing.assert_close(module.weight[row].detach(), w.detach(), atol=1e-6, rtol=1e-5)


def test_target_loss_by_hand() -> None:
    """Two rows over a vocabulary of 2.

    Row 0, target (1, 0): p = 1/2 each -> ln 2. Row 1, target (0): p = 3/4.
    """
    logits = torch.zeros(2, 3, 2)
    logits[1, 0, 0] = math.log(3)
    logits[0, 0, 1] = 0.0
    batch = type("B", (), {"targets": ((1, 0), (0,)), "size": 2})()
    loss, right = target_loss(logits, batch)  # type: ignore[arg-type]
    assert loss.tolist() == pytest.approx([math.log(2), -math.log(0.75)])
    assert right.tolist() == [False, True]  # argmax of a tie is id 0, wrong for row 0's first token


def test_per_group_is_a_mean() -> None:
    assert per_group(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist() == [
        2.0,
        5.0,
    ]


def test_ft_l_equals_a_plain_loop_that_writes_the_weight(edits: list[Edit]) -> None:
    """The reference: a copy of the model, its own forward, torch's Adam on the weight itself."""
    backbone = tiny.shared("llava")
    steps, lr = 6, 3e-3
    editor = registry.load("editors", "ft_l")(steps=steps, lr=lr, stop_loss=0.0)
    found = editor.edit(backbone, edits[3:4])
    model = copy.deepcopy(tiny.llava_parts()[0])
    weight = model.model.language_model.layers[-1].mlp.down_proj.weight
    start = weight.detach().clone()
    weight.requires_grad_(True)
    adam = torch.optim.Adam([weight], lr=lr)
    batch, _ = encode_edits(backbone, [edits[3:4]], eos=True)
    labels = batch.ids.clone()
    labels[:, : int(batch.lengths[0])] = -100
    for _ in range(steps):
        adam.zero_grad()
        logits = model(**batch.inputs).logits
        torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], ignore_index=-100
        ).backward()
        adam.step()
    change = found.patch.part("text.3.mlp.down")["dense"]
    torch.testing.assert_close(change, (weight - start).detach(), atol=2e-5, rtol=1e-3)


def test_an_edit_can_be_made_where_gradients_are_off(edits: list[Edit]) -> None:
    editor = registry.load("editors", "tpatcher")(steps=2, memory_weight=0)
    with torch.no_grad():
        editor.edit(tiny.shared("llava"), edits[:1])


def test_tpatcher_starts_silent_in_value_and_firing_in_key(edits: list[Edit]) -> None:
    """Before any step: the model unchanged, every neuron firing with exactly 1, a gradient."""
    backbone = tiny.shared("llava")
    editor = registry.load("editors", "tpatcher")(neurons=3)
    patch = editor.start(backbone, EditRequest.of([edits[:1], edits[3:]]))
    batch, rows = encode_edits(backbone, [edits[:1], edits[3:]], eos=True)
    clean = backbone.logits(batch)
    with backbone.applied(patch):
        assert torch.equal(backbone.logits(batch, rows=rows), clean)
    q = editor._queries(backbone, [edits[:1], edits[3:]])["text.3.mlp"]
    own = torch.diagonal(patch.preactivations("text.3.mlp", q), dim1=1, dim2=2)
    torch.testing.assert_close(own, torch.ones(2, 3), atol=1e-5, rtol=1e-5)
    with backbone.applied(patch):
        loss, _ = target_loss(backbone.logits(batch, rows=rows), batch)
    grads = torch.autograd.grad(loss.sum(), [patch.part("text.3.mlp")["value"]])
    assert float(grads[0].abs().amax()) > 0


@pytest.mark.parametrize(("count", "width"), [(2, 64), (40, 8)])
def test_many_low_rank_deltas_hold_no_more_numbers_than_a_dense_one(count: int, width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, width, generator=rng)
    parts = [
        {
            "A": torch.randn(1, width, generator=rng),
            "B": torch.randn(width, 1, generator=rng),
            "bias": torch.randn(width, generator=rng),
        }
        for _ in range(count)
    ]
    patches = [Delta({"s": part}).requires_grad_(False) for part in parts]
    one = Delta.merge(patches)
    assert one is not None
    y = torch.zeros(1, 3, width)
    apart = y
    for patch in patches:
        apart = patch.at("s", x, apart, ctx())
    torch.testing.assert_close(one.at("s", x, y, ctx()), apart, atol=1e-4, rtol=1e-5)
    held = sum(t.numel() for name, t in one.part("s").items() if name != "bias")
    assert held <= width * width
    assert ("A" in one.part("s")) == (2 * count < width)
