"""DualEdit and VisEdit: where they act, how the gate is tuned, what they are trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.algorithms.attribution import noise_influence
from errata.algorithms.gated_adapter import AdapterTrainee, similarities
from errata.backbones import _prefixes
from errata.contract import editors as contract
from errata.core import registry
from errata.core.errors import BadEdit, BadSpec
from errata.core.gate import Gate, gate_class
from errata.core.model.recorder import outputs_at
from errata.core.types import Case, Edit, Probe, Prompt
from errata.editors.dualedit import DualEdit
from errata.editors.visedit import VisEdit
from errata.patches.adapter import Adapter
from errata.patches.rows import Rows
from errata.patches.stack import stacked
from errata.training.batches import ExamplePool, TrainBatch, TrainExample
from errata.training.optimise import generator
from tests import tiny

FAST = {"mid": 16, "heads": 4, "steps": 6, "batch_size": 2, "lr": 1e-2, "gate_cases": 4}


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


def dual(**more: object) -> DualEdit:
    return DualEdit(**{"text_layer": 1, "visual_layer": 2, **FAST, **more})


def turn_of(backbone: tiny.HfVlm, trainee: AdapterTrainee, cases: list[Case]) -> TrainBatch:
    """All rows of all cases."""
    pools = ExamplePool(
        backbone, lambda c: trainee.rows(c, generator(0)), floor=trainee.floor, eos=True, limit=0
    )
    pieces = [(i, p) for i, c in enumerate(cases) for p in pools.of(c)]
    return TrainBatch(
        backbone, tuple(cases), tuple(p for _, p in pieces),
        torch.tensor([i for i, _ in pieces]), trainee.floor, True, generator(0, "turn"),
    )  # fmt: skip


def awake(trainee: AdapterTrainee) -> AdapterTrainee:
    """With a last linear map that is not zero any more."""
    with torch.no_grad():
        for n, p in trainee.module.named_parameters():
            if "leave" in n:
                p.normal_(0, 0.3, generator=generator(0, n))
    return trainee


def test_each_modality_has_its_own_layer(backbone: tiny.HfVlm) -> None:
    def where(**layers: int | None) -> list[tuple[str, str]]:
        return [(p.site, p.tokens) for p in dual(**layers).places(backbone)]

    assert where() == [("text.2.in", "text"), ("text.3.in", "visual")]
    assert where(text_layer=None) == [("text.3.in", "visual")]
    assert where(visual_layer=None, text_layer=-3) == [("text.2.in", "text")]
    assert dual(text_layer=2, visual_layer=0).gate_site(backbone) == "text.1.in"
    with pytest.raises(BadSpec, match="neither"):
        where(text_layer=None, visual_layer=None)
    with pytest.raises(BadSpec, match="text blocks 0 to 3"):
        where(text_layer=16)


def test_training_starts_at_the_unedited_model(backbone: tiny.HfVlm, cases: list[Case]) -> None:
    """No locality loss at the start, a gradient for every adapter, and none for the trunk."""
    trainee = dual().trainee(backbone, cases, 0)
    assert isinstance(trainee, AdapterTrainee) and trainee.floor == 2
    losses = trainee.losses(turn_of(backbone, trainee, cases))
    assert float(losses["locality"].detach()) == pytest.approx(0.0, abs=1e-6)
    (losses["reliability"] + losses["generality"]).backward()
    for attention in trainee.module.attention:
        grad = attention.leave.weight.grad
        assert grad is not None and float(grad.abs().max()) > 0


def test_losses_over_rows_and_over_all_tokens(backbone: tiny.HfVlm, cases: list[Case]) -> None:
    """By hand: each token counts once (`tokens`, as the code), or each example (`rows`)."""
    found, parts = {}, {}
    for mean in ("rows", "tokens"):
        trainee = awake(dual(loss_mean=mean).trainee(backbone, cases, 0))  # type: ignore[arg-type]
        turn = turn_of(backbone, trainee, cases)
        found[mean] = {k: float(v.detach()) for k, v in trainee.losses(turn).items()}
        with torch.no_grad(), backbone.applied(trainee.patch(turn)):
            logits = turn.logits()
        for role in ("reliability", "locality"):
            parts[role] = []
            for i in turn.index(role):  # type: ignore[arg-type]
                example = turn.examples[i]
                now = logits[i, : len(example.target)].log_softmax(-1)
                if example.unedited is None:
                    parts[role].append(-now[range(len(now)), list(example.target)])
                else:
                    p = example.unedited.log_softmax(-1)
                    parts[role].append((p.exp() * (p - now)).sum(-1))
    assert len({len(v) for v in parts["reliability"]}) > 1, "targets of unlike length"
    for role, values in parts.items():
        by_row = sum(float(v.mean()) for v in values) / len(values)
        assert found["rows"][role] == pytest.approx(by_row, rel=1e-5)
        assert found["tokens"][role] == pytest.approx(float(torch.cat(values).mean()), rel=1e-5)


def test_text_locality_is_trained(backbone: tiny.HfVlm, cases: list[Case]) -> None:
    """The KL of questions without an image reaches the textual adapter (the code skips it)."""
    trainee = awake(dual(locality_kinds=("t_locality",)).trainee(backbone, cases, 0))  # type: ignore[arg-type]
    turn = turn_of(backbone, trainee, cases)
    loc = [turn.examples[i] for i in turn.index("locality")]
    assert len(loc) == 4 and not any(bool(p.vision.any()) for p in loc)
    trainee.losses(turn)["locality"].backward()
    text, visual = (a.leave.weight.grad for a in trainee.module.attention)
    assert text is not None and float(text.abs().max()) > 0
    assert visual is None or float(visual.abs().max()) == 0


def test_the_loss_is_that_of_the_edits_made(backbone: tiny.HfVlm, cases: list[Case]) -> None:
    """A turn's rows see what `find` would put live for their case."""
    editor = dual(gate="none")
    trainee = awake(editor.trainee(backbone, cases, 0))  # type: ignore[arg-type]
    turn = turn_of(backbone, trainee, cases)
    patch = trainee.patch(turn)
    with torch.no_grad(), backbone.applied(patch):
        together = turn.logits()
    state = editor.prepare(backbone, cases)
    assert state is not None
    tensors = {k: v.detach().clone() for k, v in trainee.module.state_dict().items()}
    state = replace(state, tensors=tensors)
    found = editor.edit_rows(backbone, [c.edit for c in cases], [state] * 4)
    for b, piece in enumerate(turn.examples):
        batch = backbone.encode([piece.example.prompt], [piece.example.target], eos=True)
        with torch.no_grad(), backbone.applied(found[int(turn.of_case[b])].patch):
            alone = backbone.logits(batch)[0]
        torch.testing.assert_close(together[b, : len(alone)], alone, atol=2e-4, rtol=2e-4)


def test_the_threshold_parts_the_kinds_best() -> None:
    """By hand: every cut between .5 and .8 is right about all but .9; half way is .65."""
    inside = {"reliability": torch.tensor([1.0, 1.0]), "t_generality": torch.tensor([0.8, 0.95])}
    outside = {"t_locality": torch.tensor([0.1, 0.5]), "near_locality": torch.tensor([0.5, 0.9])}
    assert Gate.tune(inside, outside) == pytest.approx(0.65)
    assert Gate.tune(inside, {}) is None


def test_every_kind_counts_as_one() -> None:
    """Ninety easy in-scope probes do not outvote ten hard ones of another kind."""
    inside = {"reliability": torch.ones(90), "m_generality": torch.full((10,), 0.4)}
    outside = {"t_locality": torch.full((10,), 0.1), "m_locality": torch.full((10,), 0.5)}
    # above .5: 1/2 + 1; between .4 and .1: 1 + 1/2; the first of equals is taken
    assert Gate.tune(inside, outside) == pytest.approx(0.25)


def test_the_gate_is_tuned_without_answers(backbone: tiny.HfVlm, cases: list[Case]) -> None:
    changed = [
        Case(c.id, c.edit, tuple(Probe(p.id, p.prompt, p.kind, reference="blue") for p in c.probes))
        for c in cases
    ]
    for kind, same in (("prompt", True), ("leaky", False)):
        sites = ["text.2.in", "text.3.block"]
        both = [similarities(backbone, some, gate_class(kind), sites) for some in (cases, changed)]
        one, two = both[0]["text.2.in"], both[1]["text.2.in"]
        pairs = [(one[i][k], two[i][k]) for i in (0, 1) for k in one[i]]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs) == same


def test_the_leaky_gate_warns_and_fails_the_decision_test(
    backbone: tiny.HfVlm, cases: list[Case], pictures: list[str], edits: list[Edit], tmp_path: Path
) -> None:
    """The one row of tests/QUARANTINE.md: it is there to measure the leak, so it must have it."""
    texts = ["What is the colour of the thing?", "Which shape?", "Is it red?", "New thing", "Ring"]
    many = [Prompt.of(f"{t} {i}", p) for t in texts for i, p in enumerate((*pictures, None, None))]
    world = contract.World(backbone, edits, many[:3], many, cases, tmp_path)
    editor = dual(gate="leaky", threshold=0.3, steps=30)
    with pytest.warns(UserWarning, match="gold answer"), pytest.raises(AssertionError):
        contract.holds_decisions(editor, world)
    contract.holds_decisions(dual(threshold=0.3, steps=30), world)
    rows = (Path(__file__).parents[1] / "QUARANTINE.md").read_text(encoding="utf-8")
    assert "| dualedit (gate=leaky) | decisions |" in rows


def test_an_edit_is_read_below_earlier_adapters(
    backbone: tiny.HfVlm, cases: list[Case], edits: list[Edit]
) -> None:
    """With an adapter live, alone or in rows, the bank is the same, and so is the network."""
    editor = dual(gate="none")
    state = editor.prepare(backbone, cases)
    first, second = (editor.edit(backbone, [e], state).patch for e in edits[:2])
    assert isinstance(first, Adapter) and isinstance(second, Adapter)
    with backbone.applied(first):
        on_top = editor.edit(backbone, edits[1:2], state).patch
    with backbone.applied(Rows([first, second])):
        rowed = editor.edit_rows(backbone, [edits[1], edits[1]], [state] * 2)
    for other in (on_top, rowed[0].patch, rowed[1].patch):
        assert isinstance(other, Adapter)
        torch.testing.assert_close(other.bank.states[1], second.bank.states[1])
        torch.testing.assert_close(other.keys, second.keys)
        assert other.network is first.network
    joined = stacked(first, on_top)
    assert isinstance(joined, Adapter) and joined.edits == tuple(edits[:2])


def test_edits_that_an_adapter_cannot_reach_are_refused(
    backbone: tiny.HfVlm, cases: list[Case]
) -> None:
    told = Edit(Prompt.of("Which shape is it?"), "ring", id="text")
    for editor in (VisEdit(layer=1, **FAST), dual(text_layer=None)):
        state = editor.prepare(backbone, cases)
        with pytest.raises(BadEdit, match="no image"):
            editor.edit(backbone, [told], state)
    editor = dual()
    editor.edit(backbone, [told], editor.prepare(backbone, cases))


def test_visedit_keeps_text_questions_as_they_are(
    backbone: tiny.HfVlm, cases: list[Case], ragged: list[Prompt]
) -> None:
    editor = VisEdit(layer=1, **FAST, influence_weight=0.0)
    patch = editor.edit(backbone, [cases[0].edit], editor.prepare(backbone, cases)).patch
    batch = backbone.encode(ragged)
    clean = backbone.logits(batch)
    with backbone.applied(patch):
        edited = backbone.logits(batch)
    same = [torch.equal(a, b) for a, b in zip(edited, clean, strict=True)]
    assert same == [not p.images for p in ragged]


def test_the_mapper_is_trained_on_the_question_that_is_ranked(
    backbone: tiny.HfVlm, cases: list[Case]
) -> None:
    """The mended bug: a rephrased picture has a target of its own, and keeps it."""
    trainee = VisEdit(layer=0, **FAST).trainee(backbone, cases, 0)
    edit = cases[0].edit
    other = Prompt((*cases[1].edit.prompt.images, edit.prompt.text))
    probe = Probe("v", other, "m_generality", reference=edit.target)
    case = Case("c", edit, (probe, *cases[0].probes))
    turn = turn_of(backbone, trainee, [case])  # type: ignore[arg-type]
    rows = trainee._rows(turn, 0, inside=True)  # type: ignore[attr-defined]
    assert {turn.examples[r].example.prompt for r in rows} == {edit.prompt, other}
    targets = [trainee._target(turn, r).influence for r in rows]  # type: ignore[attr-defined]
    assert all(t.sum().item() == pytest.approx(1) and bool((t > 0).all()) for t in targets)
    assert not torch.allclose(targets[0], targets[-1])
    again = trainee._target(turn, rows[0]).influence  # type: ignore[attr-defined]
    assert torch.equal(again, targets[0])
    closed = trainee._rows(turn, 0, inside=False)  # type: ignore[attr-defined]
    assert [turn.examples[r].example.kind for r in closed] == ["m_locality"]


def test_noise_influence_equals_each_module_run_by_itself(
    backbone: tiny.HfVlm, edits: list[Edit]
) -> None:
    """Against the model's own attention modules, called again with one noisy token each."""
    prompt, sigma, count = edits[0].prompt, 0.7, 3
    batch = backbone.encode([prompt])
    columns = batch.vision[0].nonzero()[:count, 0]
    found = noise_influence(
        backbone,
        batch,
        columns[:, None].unbind(),
        layers=[1, 3],
        sigma=sigma,
        draws=1,
        rng=generator(5),
    )
    one = backbone.encode([prompt])
    rng, calls = generator(5), {}
    for i in (1, 3):
        module = backbone.blocks[i].self_attn

        def keep(module: object, args: object, kwargs: dict[str, object], i: int = i) -> None:
            calls[i] = dict(kwargs)

        handle = module.register_forward_pre_hook(keep, with_kwargs=True)
        with torch.no_grad():
            backbone.model(**one.inputs, use_cache=False)
        handle.remove()
    for i in (1, 3):
        noise = torch.randn(count, backbone.width, generator=rng) * sigma
        kwargs, module = calls[i], backbone.blocks[i].self_attn
        clean = module(**kwargs)[0][0, -1]
        for n, column in enumerate(columns.tolist()):
            x = kwargs["hidden_states"].clone()
            x[0, column] += noise[n]
            noisy = module(**{**kwargs, "hidden_states": x})[0][0, -1]
            wanted = 1 - torch.cosine_similarity(noisy, clean, dim=0)
            torch.testing.assert_close(found[i][n], wanted.detach(), atol=1e-4, rtol=1e-3)


def test_noise_leaves_the_stream_as_it_is(backbone: tiny.HfVlm, edits: list[Edit]) -> None:
    """Without noise nothing has influence; layers do not see each other's noise."""
    batch = backbone.encode([edits[1].prompt])
    columns = batch.vision[0].nonzero()[:2, 0]

    def measured(layers: list[int], sigma: float) -> dict[int, torch.Tensor]:
        return noise_influence(
            backbone,
            batch,
            columns[:, None].unbind(),
            layers=layers,
            sigma=sigma,
            draws=1,
            rng=generator(1),
        )

    quiet = measured([0, 2], 0.0)
    assert all(float(v.abs().max()) < 1e-5 for v in quiet.values())
    torch.testing.assert_close(measured([0, 2], 0.7)[0], measured([0], 0.7)[0])
    assert float(measured([2], 0.7)[2].min()) > 0


def test_a_glimpse_runs_no_further_than_it_must(backbone: tiny.HfVlm, ragged: list[Prompt]) -> None:
    ran: list[int] = []
    handles = [
        b.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, b in enumerate(backbone.blocks)
    ]
    batch = backbone.encode(ragged)
    seen = outputs_at(backbone, batch, ["text.1.in", "text.2.in"])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1] and set(seen) == {"text.1.in", "text.2.in"}
    assert backbone.hooks.stack == ()
    state = backbone.enter(batch, 2)
    torch.testing.assert_close(seen["text.2.in"], state.stream)


def test_presets_are_those_of_the_papers() -> None:
    paper = registry.load("editors", "dualedit")(preset="paper").config
    assert (paper.text_layer, paper.visual_layer, paper.mid, paper.heads) == (16, 19, 1024, 8)
    assert (paper.lr, paper.batch_size, paper.steps, paper.gate) == (1e-4, 4, 50_000, "prompt")
    assert set(paper.locality_kinds) == {"t_locality", "m_locality"}
    paper = registry.load("editors", "visedit")(preset="paper").config
    assert (paper.layer, paper.noise_layers[0], paper.noise_layers[-1]) == (18, 19, 30)
    assert (paper.sigma, paper.tokens, paper.influence_weight) == (0.7, 24, 0.1)
    assert TrainExample("reliability", Prompt.of("x"), "y").role == "reliability"


@pytest.mark.parametrize("editor", [dual(), VisEdit(layer=1, tokens=3, **FAST)])
def test_shared_pictures_change_no_gradient(
    backbone: tiny.HfVlm, cases: list[Case], editor: DualEdit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edit and rephrased question begin alike; the plain computation runs their picture twice."""
    trainee = editor.trainee(backbone, cases, 0)
    assert isinstance(trainee, AdapterTrainee)
    rng = torch.Generator().manual_seed(3)
    for p in trainee.module.parameters():  # a new network's last map is zero and hides the rest
        p.data.add_(torch.randn(p.shape, generator=rng) * 0.1)
    found, rows = [], []
    looked = trainee.module.attention[0].register_forward_hook(lambda *a: rows.append(len(a[1][0])))
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(_prefixes, "identical_columns", lambda *_: None)
        with torch.enable_grad():
            named = trainee.losses(turn_of(backbone, trainee, cases))
            total = torch.stack([w * named[n] for n, w in trainee.weights.items()]).sum()
        found.append((total.detach(), *torch.autograd.grad(total, [*trainee.module.parameters()])))
    looked.remove()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert sum(float(g.abs().max()) > 1e-4 for g in found[0]) > len(found[0]) / 2
    if isinstance(editor, VisEdit):
        assert rows[0] < rows[1]
