"""The value search against a plain loop over the whole model, and its rules one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.algorithms.locate_then_edit import value_search
from errata.algorithms.locate_then_edit.context_templates import context_templates, with_template
from errata.algorithms.locate_then_edit.value_search import ValueOptimizer, ValueSettings, search
from errata.core.errors import BadEdit, BadSpec, NotFinite
from errata.core.types import Edit, Prompt
from tests import tiny

BEGINNINGS = ("", "A fact. ", "New thing of it. ")
LAYER = 1
EDITS = [
    (0, Edit(Prompt.of("The colour of the ring is"), "green", subject="the ring", id="a")),
    (1, Edit(Prompt.of("Which shape has the Fact?"), "blue thing", subject="Fact", id="b")),
    (2, Edit(Prompt.of("New Prompt, of a colour"), "red", subject="New Prompt", id="c")),
]
FREE = {"stop_loss": 0.0, "clamp": 100.0, "weight_decay": 0.5, "eos": False}


def _settings(**changed: Any) -> ValueSettings:
    site = f"text.{LAYER + 1}.in"
    return ValueSettings(**{"sites": (site,), "lr": 0.1, "steps": 5, **FREE, **changed})


class Plain:
    """One edit, the whole model at every step, a hook on the block, torch's own Adam."""

    def __init__(self, edit: Edit, settings: ValueSettings, layer: int = LAYER) -> None:
        self.bb, self.edit, self.s = tiny.shared("llava"), edit, settings
        self.block = self.bb.blocks[layer]
        self.target = self.bb.answer_ids(edit.target, edit.prompt)
        texts = [with_template(edit.prompt, p) for p in BEGINNINGS]
        self.rows = [[*self.bb.encode([t]).ids[0].tolist(), *self.target[:-1]] for t in texts]
        subject = str(edit.subject)
        self.places = [self.bb.last_column(t, subject) for t in texts]
        last = Prompt.of(settings.kl_prompt.replace("{}", subject))
        self.rows.append(self.bb.encode([last]).ids[0].tolist())
        self.places.append(self.bb.last_column(last, subject))
        self.seen: list[Tensor] = []

    def logits(self, delta: Tensor) -> list[Tensor]:
        """[T, V] of every row, each run alone."""
        out = []
        self.seen = []
        for ids, place in zip(self.rows, self.places, strict=True):

            def add(_: Any, args: Any, y: Any, place: int = place) -> Any:
                first = y[0] if isinstance(y, tuple) else y
                self.seen.append(first[0, place].detach().clone())
                moved = first.clone()
                moved[0, place] = moved[0, place] + delta
                return (moved, *y[1:]) if isinstance(y, tuple) else moved

            handle = self.block.register_forward_hook(add)
            try:
                row = torch.tensor([ids])
                out.append(
                    self.bb.model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0]
                )
            finally:
                handle.remove()
        return out

    def kl(self, delta: Tensor, before: Tensor) -> Tensor:
        """KL(now || before) at the subject's last token, from its definition."""
        p = self.logits(delta)[-1][self.places[-1]].softmax(-1)
        return (p * (p.log() - before.log())).sum()

    def find(self) -> Tensor:
        delta = torch.zeros(self.bb.width, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=self.s.lr)
        before = start = None
        for step in range(self.s.steps):
            rows = self.logits(delta)
            if before is None:
                start, before = self.seen[0], rows[-1][self.places[-1]].softmax(-1).detach()
            n = len(self.target)
            loss: Any = 0.0
            for row in rows[:-1]:
                behind = row[len(row) - n :].log_softmax(-1)
                loss = loss - behind[range(n), list(self.target)].mean() / len(BEGINNINGS)
            now = rows[-1][self.places[-1]].softmax(-1)
            loss = loss + self.s.kl_factor * (now * (now.log() - before.log())).sum()
            loss = loss + self.s.weight_decay * delta.norm() / start.norm() ** 2
            if step == self.s.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert start is not None
        return start + delta.detach()


@pytest.mark.parametrize("kl_factor", [0.0625, 1.0])
def test_rows_equal_a_plain_loop_over_the_whole_model(kl_factor):
    """Batched over edits, entered above the edited block, the head at target positions only."""
    settings = _settings(kl_factor=kl_factor)
    found = search(tiny.shared("llava"), EDITS, BEGINNINGS, settings).value[settings.sites[0]]
    for (row, edit), value in zip(EDITS, found, strict=True):
        wanted = Plain(edit, settings).find()
        assert float((value - wanted).abs().max()) < 1e-5 * float(wanted.abs().max()), row


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_an_edit_among_others_is_that_edit_alone(family, pictures):
    bb = tiny.shared(family)
    shown = Edit(Prompt.of("Which shape is the ring?", pictures[0]), "blue", "the ring", id="d")
    edits = [*EDITS, (3, shown)]
    settings = _settings(stop_loss=2.0)
    together = search(bb, edits, BEGINNINGS, settings)
    for e, edit in enumerate(edits):
        alone = search(bb, [edit], BEGINNINGS, settings)
        a, b = together.value[settings.sites[0]][e], alone.value[settings.sites[0]][0]
        assert float((a - b).abs().max()) < 1e-5 * max(1.0, float(b.abs().max()))
        assert together.log[e]["steps"] == alone.log[0]["steps"]


def test_rows_of_finished_edits_do_not_run(monkeypatch):
    bb, edits, running = tiny.shared("llava"), [], list[int]()
    for n in range(2):
        edits += [(row + 3 * n, replace(edit, id=f"{edit.id}{n}")) for row, edit in EDITS]
    settings = _settings(stop_loss=7.2, steps=40, lr=0.3, weight_decay=1e-3)
    logits = bb.logits

    def counted(state, **passed):
        running.append(len(passed["rows"]))
        return logits(state, **passed)

    monkeypatch.setattr(bb, "logits", counted)
    together = search(bb, edits, BEGINNINGS, settings)
    rows, site = len(BEGINNINGS) + 1, settings.sites[0]
    first, second, third = sorted({line["steps"] for line in together.log})
    # two edits of each; four of six still run after the first has stopped, two after the second
    assert running == [6 * rows] * (second + 1) + [2 * rows] * (third - second)
    assert 0 <= first < second < third < 39
    for e, edit in enumerate(edits):
        alone = search(bb, [edit], BEGINNINGS, settings)
        a, b = together.value[site][e], alone.value[site][0]
        assert float((a - b).abs().max()) < 1e-5 * max(1.0, float(b.abs().max()))
        assert together.log[e] == pytest.approx(alone.log[0], rel=1e-4)


def test_many_edits_are_cut_into_parts(monkeypatch):
    whole = search(tiny.shared("llava"), EDITS, BEGINNINGS, _settings())
    monkeypatch.setattr(value_search, "ROWS", 8)
    parts = search(tiny.shared("llava"), EDITS, BEGINNINGS, _settings())
    site = _settings().sites[0]
    assert torch.allclose(whole.value[site], parts.value[site], atol=1e-5)
    assert [a["steps"] for a in whole.log] == [b["steps"] for b in parts.log]


def test_the_kl_is_that_of_now_from_before_at_the_subject():
    settings = _settings(kl_factor=1.0)
    bb, edit = tiny.shared("llava"), EDITS[1][1]
    plain = Plain(edit, settings)
    before = plain.logits(torch.zeros(bb.width))[-1][plain.places[-1]].softmax(-1).detach()
    q = value_search.value_batch(bb, [EDITS[1]], BEGINNINGS, settings)
    shift = value_search.ColumnShift(settings.sites, q.columns_B, q.owner_B)
    goal = value_search.ValueLoss(q, settings, 1)
    delta = 4.0 * torch.randn(bb.width, generator=torch.Generator().manual_seed(3))
    got = []
    for size in (0.0, 1.0):
        shift.delta = {settings.sites[0]: size * delta[None]}
        with torch.no_grad(), bb.applied(shift):
            got.append(float(goal._kl(bb.logits(q.batch, rows=q.rows_B))[0]))
    wanted = float(plain.kl(delta, before).detach())
    now = plain.logits(delta)[-1][plain.places[-1]].softmax(-1)
    backwards = float((before * (before.log() - now.log())).sum().detach())
    assert got[0] == 0.0
    assert got[1] == pytest.approx(wanted, rel=1e-4)
    assert abs(wanted - backwards) > 0.01 * wanted  # the direction matters here


def test_the_search_ends_before_a_backward():
    """At most steps - 1 updates; below stop_loss none; what is found is then where it began."""
    bb, site = tiny.shared("llava"), _settings().sites[0]
    full = search(bb, EDITS, BEGINNINGS, _settings(steps=4))
    assert [line["steps"] for line in full.log] == [3, 3, 3]
    assert not any(line["stopped"] for line in full.log)
    at_once = search(bb, EDITS, BEGINNINGS, _settings(stop_loss=1e9))
    assert [line["steps"] for line in at_once.log] == [0, 0, 0]
    assert torch.equal(at_once.value[site], at_once.start[site])
    first = [line["nll"] for line in at_once.log]  # with delta 0 that is the whole loss
    low, middle, _ = sorted(first)
    each = search(bb, EDITS, BEGINNINGS, _settings(steps=2, stop_loss=(low + middle) / 2))
    assert [line["steps"] for line in each.log] == [int(nll != low) for nll in first]


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_the_clamp_holds_after_every_step(steps):
    settings = _settings(lr=3.0, clamp=0.3, steps=steps)
    found = search(tiny.shared("llava"), EDITS, BEGINNINGS, settings)
    site = settings.sites[0]
    moved = (found.value[site] - found.start[site]).norm(dim=1)
    limit = 0.3 * found.start[site].norm(dim=1)
    assert torch.allclose(moved, limit, rtol=1e-4)
    assert all(line["clamped"] == steps - 1 for line in found.log)


def test_the_update_is_adams():
    start = {"s": torch.tensor([[3.0, 4.0]])}
    deltas = ValueOptimizer({"s": torch.zeros(1, 2)})
    deltas.begin(start, _settings(lr=0.2))
    free = torch.zeros(1, 2, requires_grad=True)
    adam = torch.optim.Adam([free], lr=0.2)
    goal = torch.tensor([[1.0, -2.0]])
    for step in range(6):
        ours = 2 * (deltas.shift("s") - goal)
        deltas.step({"s": ours}, torch.tensor([True]), step)
        adam.zero_grad()
        (free - goal).square().sum().backward()
        adam.step()
        assert torch.allclose(deltas.shift("s"), free.detach(), atol=1e-6)
    deltas.step({"s": ours}, torch.tensor([False]), 6)
    assert torch.allclose(deltas.shift("s"), free.detach(), atol=1e-6)


def test_unikes_steps_grow_with_the_start():
    """|h0| = 250: scale 2.5, first step lr * 2.5^0.35, then a cosine; |h0| = 50: as ever."""
    settings = _settings(scaled=True, lr=0.1, clamp=4.0, steps=25)
    deltas = ValueOptimizer({"s": torch.zeros(3, 2)})
    deltas.begin({"s": torch.tensor([[150.0, 200.0], [30.0, 40.0], [600.0, 800.0]])}, settings)
    assert deltas.scale["s"][:, 0].tolist() == [2.5, 1.0, 5.0]
    peak = 0.1 * 2.5**0.35
    assert deltas.rate("s", 0)[:, 0].tolist() == pytest.approx([peak, 0.1, 0.1 * 5**0.35])
    half = deltas.rate("s", 10)[0, 0]  # cos(0.4 pi) = 0.309017
    assert float(half) == pytest.approx(peak * (0.9 * 0.5 * 1.309017 + 0.1), rel=1e-5)
    deltas.free["s"] = torch.full((3, 2), 1e6)
    deltas.step({"s": torch.zeros(3, 2)}, torch.ones(3, dtype=torch.bool), 0)
    assert deltas.shift("s").norm(dim=1).tolist() == pytest.approx([1000.0, 200.0, 2000.0])


def test_an_automatic_step_is_a_share_of_the_start():
    """The first step has length |h0| * 4 / 24 of 25 steps, whatever the width."""
    settings = _settings(lr="auto", clamp=100.0, steps=25, weight_decay=0.0)
    for width in (2, 64):
        start = torch.linspace(1.0, 30.0, 3)[:, None] * torch.ones(3, width)
        deltas = ValueOptimizer({"s": torch.zeros(3, width)})
        deltas.begin({"s": start}, settings)
        deltas.step({"s": torch.randn(3, width)}, torch.ones(3, dtype=torch.bool), 0)
        length = deltas.shift("s").norm(dim=1) / start.norm(dim=1)
        assert length.tolist() == pytest.approx([4 / 24] * 3, rel=1e-4)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_an_automatic_search_fits_models_of_any_scale(factor):
    """A model whose stream is larger by a factor gets steps that are larger by it."""
    bb = tiny.FAMILIES["llava"]()
    with torch.no_grad():
        bb.model.get_input_embeddings().weight.mul_(factor)
        for block in bb.blocks:
            block.self_attn.o_proj.weight.mul_(factor)
            block.mlp.down_proj.weight.mul_(factor)
    settings = _settings(lr="auto", stop_loss=0.0, weight_decay=0.0, steps=10, clamp=4.0)
    there, here = (search(b, EDITS, BEGINNINGS, settings) for b in (tiny.shared("llava"), bb))
    for one, other in zip(there.log, here.log, strict=True):
        assert other["nll"] == pytest.approx(one["nll"], rel=0.05)
        assert other["delta_norm"] == pytest.approx(factor * one["delta_norm"], rel=0.05)


def test_decay_in_both_readings():
    bb, site = tiny.shared("llava"), _settings().sites[0]
    for decay, power in (("linear", 1), ("squared", 2)):
        settings = _settings(decay=decay, weight_decay=0.5, kl_factor=0.0)
        q = value_search.value_batch(bb, EDITS[:1], BEGINNINGS, settings)
        goal = value_search.ValueLoss(q, settings, 1)
        vector, start = torch.full((1, bb.width), 0.5), torch.full((1, bb.width), 2.0)
        with torch.no_grad():
            loss = goal.loss(bb.logits(q.batch), {site: vector}, {site: start})
        # sqrt(32) * 0.5 = 2.8284 and sqrt(32) * 2 = 11.3137
        wanted = 0.5 * (2.828427 / 11.313709**2 if power == 1 else 0.25**2)
        assert float(loss) - float(goal.parts["nll"]) == pytest.approx(wanted, rel=1e-4)


def test_pmets_rule_eases_and_stops():
    """All target tokens the likeliest: the NLL counts a tenth; with a small KL the search ends."""
    q = value_search.value_batch(tiny.shared("llava"), EDITS, BEGINNINGS, _settings())
    goal = value_search.ValueLoss(
        q, _settings(downweight_when_right=True, stop_loss=0.05, kl_factor=1.0), 3
    )
    goal.parts = {"right": torch.tensor([1.0, 1.0, 0.0]), "kl": torch.tensor([0.5, 0.005, 0.005])}
    goal.stop(torch.tensor([2.0, 2.0, 2.0]))
    assert goal.active_E.tolist() == [True, False, True]
    assert goal.weight_E.tolist() == pytest.approx([0.1, 0.1, 1.0])


def test_templates_are_sampled_once_until_the_weights_change(monkeypatch):
    from errata.algorithms.locate_then_edit import context_templates as module

    calls = []
    sample = module.sample_templates
    monkeypatch.setattr(module, "sample_templates", lambda *a: calls.append(a) or sample(*a))
    bb = tiny.FAMILIES["llava"]()

    def drawn(seed=1, lengths=(10,)):
        return context_templates(bb, "sampled", lengths, torch.Generator().manual_seed(seed))

    first = drawn()
    assert drawn() == first and len(calls) == 1
    drawn(seed=2), drawn(lengths=(5,))
    assert len(calls) == 3
    with torch.no_grad():
        for weight in bb.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    assert drawn() != first and len(calls) == 4


def test_templates_are_drawn_from_the_unedited_model(tmp_path):
    from errata.patches.delta import Delta

    bb = tiny.shared("llava")
    once = context_templates(bb, "sampled", (10,), torch.Generator().manual_seed(1))
    assert once[0] == "" and len(once) == 6 and all(c.endswith(". ") for c in once[1:])
    assert [c.split()[0][:1] for c in once[1:]] == ["T", "T", "B", "I", "Y"]
    into, out = bb.weight("text.3.mlp.down")
    noise = torch.randn(out, into, generator=torch.Generator().manual_seed(0))
    with bb.applied(Delta({"text.3.mlp.down": {"dense": noise}})):
        again = context_templates(bb, "sampled", (10,), torch.Generator().manual_seed(1))
    assert again == once
    fresh = tiny.FAMILIES["llava"]()
    with fresh.applied(Delta({"text.3.mlp.down": {"dense": noise}})):
        assert context_templates(fresh, "sampled", (10,), torch.Generator().manual_seed(1)) == once
    assert context_templates(bb, "sampled", (10,), torch.Generator().manual_seed(2)) != once
    assert len(context_templates(bb, "sampled", (5, 5, 10, 10), torch.Generator())) == 21
    file = tmp_path / "templates.txt"
    file.write_text("Once upon a time.\n\nHere it says\n")
    given = context_templates(bb, str(file), (10,), torch.Generator())
    assert given == ("", "Once upon a time. ", "Here it says. ")
    assert context_templates(bb, "none", (10,), torch.Generator()) == ("",)
    with pytest.raises(BadSpec, match="one template a line"):
        context_templates(bb, str(tmp_path / "nowhere"), (10,), torch.Generator())


def test_what_cannot_be_searched():
    bb = tiny.shared("llava")
    wrong = Edit(Prompt.of("The colour of the ring is"), "green", subject="the square")
    with pytest.raises(BadEdit, match="not in the prompt"):
        search(bb, [(0, wrong)], BEGINNINGS, _settings())
    with pytest.raises(NotFinite, match="Lower the step size"):
        search(bb, EDITS, BEGINNINGS, _settings(lr=float("inf")))
