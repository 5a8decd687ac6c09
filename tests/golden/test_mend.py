"""MEND against numbers worked out by hand, and against plain loops that write weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from errata.algorithms.gradient_factors import Factors, factors, group_factors
from errata.core.types import Case, Edit, Probe, Prompt
from errata.editors.mend import Mend, MendNetwork, Transform
from errata.patches.delta import Delta
from errata.training.batches import ExamplePool, TrainBatch
from errata.training.optimise import encode_edits, target_loss
from tests import tiny

SMALL = Mend(layers=(2, 3), rank=4)
RNG = torch.Generator


def network(shapes: dict[str, tuple[int, int]], **settings: object) -> MendNetwork:
    return MendNetwork(shapes, Mend(**{"rank": 4, **settings}).config, RNG().manual_seed(0))


def test_factors_are_the_gradient_of_the_weights(edits: Sequence[Edit]) -> None:
    """sum_t d_t x_t^T of each row = the gradient of a dense change by that row's own loss."""
    bb, sites = tiny.shared("llava"), SMALL.sites(tiny.shared("llava"))
    got = [f for f in group_factors(bb, [[e] for e in edits], sites, eos=True)]
    for edit, own in zip(edits, got, strict=True):
        batch, rows = encode_edits(bb, [[edit]], eos=True)
        dense = {s: {"dense": torch.zeros(1, *bb.weight(s)[::-1])} for s in sites}
        patch = Delta(dense, rows=1)
        with torch.enable_grad(), bb.applied(patch):
            loss_B, _ = target_loss(bb.logits(batch, rows=rows), batch)
        loss_B.sum().backward()
        for site in sites:
            wanted = patch.part(site)["dense"].grad
            assert wanted is not None and float(wanted.abs().max()) > 1e-6
            made = torch.einsum("to,tn->on", own[site].d[0], own[site].x[0])
            assert torch.allclose(made, wanted[0], atol=1e-6, rtol=1e-4)


def test_only_tokens_that_the_loss_reaches_are_used(edits: Sequence[Edit]) -> None:
    """The last block: those that predict the target. Below: no padding."""
    bb = tiny.shared("llava")
    batch, rows = encode_edits(bb, [[e] for e in edits], eos=True)
    sites = ["text.2.mlp.up", "text.3.mlp.down"]
    found = factors(bb, bb.enter(batch, 2, rows=rows), sites, rows=rows)
    for b, target in enumerate(batch.targets):
        first = int(batch.lengths[b]) - 1
        last = found[sites[1]].used[b].nonzero()[:, 0].tolist()
        assert last == list(range(first, first + len(target)))
        below = found[sites[0]].used[b]
        assert not bool((below & ~batch.mask[b].bool()).any())
        assert int(below.sum()) > len(target)


def test_statistics_in_parts_are_those_of_the_whole() -> None:
    rng = RNG().manual_seed(3)
    x, d = torch.randn(50, 3, generator=rng) * 4 + 7, torch.randn(50, 2, generator=rng) * 1e-3
    made = Transform((3, 2), 1, SMALL.config, rng)
    for part in (slice(0, 1), slice(1, 30), slice(30, 30), slice(30, 50)):
        made.count_in(x[part], d[part])
    z = torch.cat([x, d], dim=1)
    assert torch.allclose(made.mean, z.mean(0), rtol=1e-4, atol=1e-6)
    spread = (made.squares / (made.count - 1).float()).sqrt()
    assert torch.allclose(spread, z.std(0), rtol=1e-3)


def test_one_layer_by_hand() -> None:
    """z = (1, -2), V = (1, 1), U = (3, -1)^T, b = (0, 4), matrix 1: s = (2, 1), t = (1, 0).

    V z = -1, U V z + b = (-3, 5), s * . + t = (-5, 5), relu = (0, 5): h = (1, 3).
    """
    made = Transform((1, 1), 2, Mend(rank=1, depth=1).config, RNG())
    made.V[0].data = torch.tensor([[1.0, 1.0]])
    made.U[0].data = torch.tensor([[3.0], [-1.0]])
    made.b[0].data = torch.tensor([0.0, 4.0])
    made.s[0].data[1] = torch.tensor([2.0, 1.0])
    made.t[0].data[1] = torch.tensor([1.0, 0.0])
    x, d = made(torch.tensor([[1.0]]), torch.tensor([[-2.0]]), 1)
    assert (x.item(), d.item()) == pytest.approx((1.0, 3.0))


def test_the_start_is_the_identity_on_normalised_factors() -> None:
    """x has mean 3 and spread 2, d mean 0 and spread 4: 5 -> 1, -8 -> -2; the rate is -0.5.

    The second token is padding and adds nothing, though its normalised factors are not zero.
    """
    made = network({"s": (1, 1)}, edit_lr=-0.5).eval()
    transform = made.transforms["1x1"]
    assert isinstance(transform, Transform)
    transform.mean.copy_(torch.tensor([3.0, 0.0]))
    transform.squares.copy_(torch.tensor([4.0, 16.0]) * 9)
    transform.count.fill_(10)
    x, d = torch.tensor([[[5.0], [0.0]]]), torch.tensor([[[-8.0], [0.0]]])
    a, b, used = made({"s": Factors(x, d, torch.tensor([[True, False]]))})["s"]
    assert a.flatten().tolist() == pytest.approx([1.0, 0.0])
    assert b.flatten().tolist() == pytest.approx([1.0, 0.0])
    assert used.tolist() == [[True, False]]


def test_statistics_change_in_training_only() -> None:
    made = network({"s": (2, 2)})
    rng = RNG().manual_seed(1)
    f = {"s": Factors(torch.randn(1, 5, 2, generator=rng), torch.randn(1, 5, 2, generator=rng),
                      torch.ones(1, 5, dtype=torch.bool))}  # fmt: skip
    made.eval()(f)
    assert float(made.transforms["2x2"].count) == 0  # type: ignore[arg-type]
    made.train()(f)
    assert float(made.transforms["2x2"].count) == 5  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cases(edits: Sequence[Edit]) -> list[Case]:
    far = Probe("l", Prompt.of("What is Fact 1?"), "t_locality", reference="ring")
    out = []
    for e in edits:
        again = Probe("g", e.prompt.with_text("Say it:"), "t_generality", reference=e.target)
        out.append(Case(e.id, e, (far, again)))
    return out


def test_the_patch_is_the_update_of_the_weights(cases: list[Case]) -> None:
    """W + sum over the group's edits of rate * sum_t z_d z_x^T, written into a copy of the model.

    A network at its start: what it adds to the normalised factors is zero.
    """
    bb = tiny.llava()
    editor = Mend(layers=(2, 3), rank=4, edit_lr=-0.01, steps=2, batch_size=2, lr=0.0, lr_rate=0.0)
    state = editor.prepare(bb, cases)
    assert state is not None
    group = [c.edit for c in cases[:2]]
    found = editor.edit(bb, group, state)
    sites = editor.sites(bb)
    changes = {s: torch.zeros(*bb.weight(s)[::-1]) for s in sites}
    for edit in group:
        own = next(group_factors(bb, [[edit]], sites, eos=True))
        for site in sites:
            into, out = bb.weight(site)
            name = f"transforms.{into}x{out}."
            mean, squares = state.tensors[name + "mean"], state.tensors[name + "squares"]
            spread = (squares / (float(state.tensors[name + "count"]) - 1)).sqrt() + 1e-7
            for x, d, used in zip(own[site].x[0], own[site].d[0], own[site].used[0], strict=True):
                if used:
                    z = (torch.cat([x, d]) - mean) / spread
                    changes[site] += -0.01 * torch.outer(z[into:], z[:into])
    batch = bb.encode([c.edit.prompt for c in cases])
    with torch.no_grad(), bb.applied(found.patch):
        patched = bb.logits(batch)
    clean = bb.logits(batch)
    with torch.no_grad():
        for site, change in changes.items():
            weight = bb.site(site).first.weight
            assert isinstance(weight, nn.Parameter)
            weight += change
    written = bb.logits(batch)
    assert torch.allclose(patched, written, atol=1e-4)
    assert float((patched - clean).abs().max()) > 1e-2


def turn(cases: list[Case], trainee: object) -> TrainBatch:
    bb = tiny.shared("llava")
    rows = lambda c: trainee.rows(c, RNG().manual_seed(0))  # type: ignore[attr-defined]  # noqa: E731
    pools = ExamplePool(bb, rows, floor=2, eos=True, limit=1 << 30)
    pieces = [(p, i) for i, c in enumerate(cases) for p in pools.of(c)]
    return TrainBatch(bb, tuple(cases), tuple(p for p, _ in pieces),
                torch.tensor([i for _, i in pieces]), 2, True, RNG())  # fmt: skip


def test_the_outer_loss_looks_at_the_token_behind(cases: list[Case]) -> None:
    """Against the model's own forward; a model that repeats the token it sees is not rewarded."""
    bb = tiny.shared("llava")
    one = turn(cases, SMALL.trainee(bb, cases, 0))
    with torch.no_grad():
        got = one.losses(one.logits())
    wanted = []
    for c in cases:
        batch = bb.encode([c.edit.prompt], [c.edit.target], eos=True)
        with torch.no_grad():
            logp = bb.model(**batch.inputs).logits.log_softmax(-1)[0]
        first, ids = int(batch.lengths[0]), batch.targets[0]
        wanted.append(-sum(float(logp[first - 1 + j, t]) for j, t in enumerate(ids)) / len(ids))
    assert float(got["reliability"]) == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)
    assert float(got["locality"]) == pytest.approx(0.0, abs=1e-6)
    copying = torch.zeros(len(one.examples), 20, len(tiny.tokenizer()))
    for b, p in enumerate(one.examples):
        assert p.prefix is not None
        seen = [int(p.prefix.ids[p.prefix.length - 1]), *p.target]
        for j, token in enumerate(seen):
            copying[b, j, token] = 50.0
    assert float(one.losses(copying)["reliability"]) > 5


def test_the_outer_gradient_reaches_the_network(cases: list[Case]) -> None:
    bb = tiny.shared("llava")
    trainee = replace_rate(SMALL, -1e-2).trainee(bb, cases, 0)
    before = copy.deepcopy(trainee.module.state_dict())
    one = turn(cases, trainee)
    optimiser = trainee.optimiser()
    first = 0.0
    for step in range(8):
        named = trainee.losses(one)
        loss = named["reliability"] + named["generality"] + named["locality"]
        first = first or float(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step == 0:
            moved = {n for n, p in trainee.module.named_parameters() if float(p.grad.abs().max())}  # type: ignore[union-attr]
            assert {n.split(".")[0] for n in moved} == {"transforms", "rates"}
            assert any(".U." in n for n in moved) and not any(".V." in n for n in moved)
    after = trainee.module.state_dict()
    assert any(not torch.equal(after[k], before[k]) for k in after if ".V." in k)
    assert float(loss.detach()) < first


def replace_rate(editor: Mend, rate: float) -> Mend:
    out = copy.copy(editor)
    out.config = replace(editor.config, edit_lr=rate)
    return out
