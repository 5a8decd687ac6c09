"""The training loop: what it sees, what it keeps, and that a killed training ends the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from errata.core.errors import BadData, BadRun, NotFinite
from errata.core.model.backbone import Backbone
from errata.core.model.batch import PrefixState
from errata.core.state import PrepareContext
from errata.core.types import Case, Edit, Probe, Prompt
from errata.patches.delta import Delta
from errata.training.batches import ExamplePool, TrainBatch, TrainExample
from errata.training.loop import Trainee, TrainingResult, TrainingSettings, train
from tests import tiny

SITE = "text.2.mlp.down"
FAST = TrainingSettings(
    steps=6, batch_size=2, held_out=2, eval_steps=2, save_steps=1, patience=50, lr=1e-2
)


class Shared(Trainee):
    """One low-rank change for all cases."""

    floor: int | None = 2

    def __init__(self, backbone: Backbone, config: TrainingSettings) -> None:
        super().__init__(backbone, config)
        into, out = backbone.weight(SITE)
        rng = torch.Generator().manual_seed(5)
        self.patch = Delta(
            {SITE: {"A": torch.randn(2, into, generator=rng) / 8, "B": torch.zeros(out, 2)}}
        )
        self.module: nn.Module = self.patch
        self.weights: Mapping[str, float] = {"reliability": 1.0, "generality": 1.0, "locality": 1.0}
        self.seen: list[TrainBatch] = []

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        self.seen.append(batch)
        with self.backbone.applied(self.patch):
            return batch.losses(batch.logits())


@pytest.fixture(scope="module")
def cases(edits: Sequence[Edit]) -> list[Case]:
    out = []
    for i in range(12):
        e = replace(edits[i % 4], id=f"c{i}")
        probes = (
            Probe("r", e.prompt, "reliability", reference=e.target),
            Probe("g", e.prompt.with_text(f"Please {i}: x"), "t_generality", reference=e.target),
            Probe("h", edits[(i + 1) % 4].prompt, "m_generality", reference=e.target),
            Probe("l", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring"),
            Probe("m", edits[(i + 2) % 4].prompt, "m_locality", reference="red thing"),
        )
        out.append(Case(f"c{i}", e, probes))
    return out


def run(
    cases: Sequence[Case], config: TrainingSettings = FAST, folder: Path | None = None
) -> TrainingResult:
    bb = tiny.shared("llava")
    return train(bb, cases, Shared(bb, config), seed=1, work=PrepareContext(folder))


class Killed(Exception):
    pass


def killed_at(step: int) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("at", [1, 3, 4, 5])
def test_a_killed_training_ends_with_the_same_bits(
    cases: list[Case], tmp_path: Path, at: int
) -> None:
    bb, config = tiny.shared("llava"), replace(FAST, save_steps=2, gradient_accumulation_steps=2)
    whole = run(cases, config)
    with pytest.raises(Killed):
        train(bb, cases, Shared(bb, config), seed=1, work=PrepareContext(tmp_path, killed_at(at)))
    assert (tmp_path / "training.safetensors").exists() == (at >= 2)
    again = train(bb, cases, Shared(bb, config), seed=1, work=PrepareContext(tmp_path))
    assert again.account == whole.account
    for name, value in whole.tensors.items():
        assert torch.equal(again.tensors[name], value), name


@pytest.mark.parametrize("family", sorted({**tiny.FAMILIES, **tiny.WINDOWED}))
def test_cached_rows_equal_the_whole_model(family: str, cases: list[Case]) -> None:
    """Rows of different pools, put together behind the trunk, against one forward of all."""
    bb = tiny.shared(family)
    pools = ExamplePool(
        bb, lambda c: Shared(bb, FAST).rows(c, torch.Generator()), floor=2, eos=True, limit=1 << 30
    )
    text = [TrainExample("locality", Prompt.of(f"Which {i}?"), "ring of red") for i in range(2)]
    plain = ExamplePool(bb, lambda c: text, floor=2, eos=True, limit=1 << 30)
    pieces = [pools.of(cases[0])[1], *plain.of(cases[1])[:1], *pools.of(cases[2])[::-1]]
    asked = [p.example for p in pieces]
    batch = bb.encode([e.prompt for e in asked], [e.target for e in asked], eos=True)
    cut = all(p.prefix is not None for p in pieces)
    assert cut == (family != "gemma3")  # its masks cannot be cut: its rows run through the trunk
    turn = TrainBatch(
        bb, (), tuple(pieces), torch.zeros(len(pieces)).long(), 2, True, torch.Generator()
    )
    state = turn.state
    assert isinstance(state, PrefixState) and state.layer == 2
    assert torch.equal(state.batch.ids * batch.mask, batch.ids * batch.mask)
    with torch.no_grad():
        got, want = turn.logits(), bb.logits(batch)
    for b, target in enumerate(batch.targets):
        assert torch.allclose(got[b, : len(target)], want[b, : len(target)], atol=2e-5)


def test_the_trunk_runs_once_per_case(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    bb = tiny.shared("llava")
    entered: list[int] = []
    whole = type(bb).enter

    def counted(self: Any, batch: Any, layer: int, **k: Any) -> Any:
        entered.append(batch.size)
        return whole(self, batch, layer, **k)

    monkeypatch.setattr(type(bb), "enter", counted)
    run(cases, replace(FAST, steps=20))
    assert len(entered) == len(cases)


def test_without_room_nothing_is_kept_and_the_bits_are_the_same(cases: list[Case]) -> None:
    kept, fresh = run(cases), run(cases, replace(FAST, cache_gb=0.0))
    for name, value in kept.tensors.items():
        assert torch.equal(fresh.tensors[name], value)


def test_it_learns_and_keeps_the_best(cases: list[Case]) -> None:
    done = run(cases, replace(FAST, steps=40, eval_steps=5))
    curve = done.account["curve"]
    held = [p["held_out"]["total"] for p in curve]
    best = next(p for p in curve if p["step"] == done.account["best_step"])
    assert best["held_out"]["total"] == min(held) < held[0]
    losses = {"total", "reliability", "generality", "locality"}
    assert set(curve[-1]["train"]) >= losses | {"reliability_right", "locality_kept"}


def test_it_stops_early_and_returns_the_best(cases: list[Case]) -> None:
    done = run(cases, replace(FAST, steps=60, eval_steps=1, patience=3, lr=5.0))
    assert done.account["stopped_early"] and done.account["steps"] < 60
    assert done.account["steps"] == done.account["best_step"] + 3
    untouched = Shared(tiny.shared("llava"), FAST).module.state_dict()
    if done.account["best_step"] == 0:
        assert all(torch.equal(done.tensors[k], v) for k, v in untouched.items())


def test_held_out_cases_are_never_trained_on(cases: list[Case]) -> None:
    bb = tiny.shared("llava")
    trainee = Shared(bb, replace(FAST, steps=30))
    train(bb, cases, trainee, seed=1)
    trained = {c.id for t in trainee.seen for c in t.cases if len(t.cases) == 2}
    assert trained
    grads = [t for t in trainee.seen]
    held = {c.id for c in grads[0].cases}  # the first look comes before the first update
    later = {c.id for t in grads[1:] for c in t.cases}
    assert len(held) == 2 and held < later | held


def test_a_turn_has_each_edit_first(cases: list[Case]) -> None:
    bb = tiny.shared("llava")
    trainee = Shared(bb, FAST)
    train(bb, cases, trainee, seed=1)
    turn = trainee.seen[-1]
    assert [p.example.prompt for p in turn.examples if p.example.role == "reliability"] == [
        c.edit.prompt for c in turn.cases
    ]
    edits = turn.edits
    assert isinstance(edits, PrefixState)
    assert edits.batch.prompts == tuple(c.edit.prompt for c in turn.cases)


def test_another_training_in_the_folder_is_refused(cases: list[Case], tmp_path: Path) -> None:
    bb = tiny.shared("llava")
    with pytest.raises(Killed):
        train(bb, cases, Shared(bb, FAST), seed=1, work=PrepareContext(tmp_path, killed_at(3)))
    with pytest.raises(BadRun, match="other settings"):
        train(bb, cases, Shared(bb, FAST), seed=2, work=PrepareContext(tmp_path))
    (tmp_path / "training.safetensors").write_bytes(b"torn")
    with pytest.raises(BadRun, match="Delete it"):
        train(bb, cases, Shared(bb, FAST), seed=1, work=PrepareContext(tmp_path))


def test_what_cannot_be_trained_says_so(cases: list[Case]) -> None:
    bb = tiny.shared("llava")
    with pytest.raises(BadData):
        train(bb, [], Shared(bb, FAST), seed=1)
    broken = Shared(bb, FAST)
    with torch.no_grad():
        next(broken.module.parameters()).fill_(float("nan"))
    with pytest.raises(NotFinite):
        train(bb, cases, broken, seed=1)
