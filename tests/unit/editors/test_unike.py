"""The editor UniKE on a random LLaVA: what an edit consists of, its settings, its state."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.cli.shared.options import parse_settings
from errata.core import registry
from errata.core.editor import EditRequest
from errata.core.errors import BadData, BadSpec, Notice
from errata.core.model.recorder import Recorder
from errata.core.patch import Patch, parts_of, united
from errata.core.state import State
from errata.core.types import Case, Edit, Probe, Prompt
from errata.patches.context import Context
from errata.patches.latent import Latent, LatentSettings
from errata.patches.neurons import Neurons
from errata.patches.rows import Rows
from tests import tiny

#: what the state below was made with, and a short search
SHORT: dict[str, Any] = {
    "latent_layers": (-2, -1), "layers": (-2, -1), "width": 16, "epochs": 3, "memory": 60,
    "prompts": 20, "encoder": "backbone", "neurons": 3, "steps": 3, "top": 5,
}  # fmt: skip


def unike(**settings: Any) -> Any:
    """With the short search, as far as it has an effect beside `settings`."""
    cls = registry.load("editors", "unike")
    idle = cls(**settings).idle()
    short = {k: v for k, v in SHORT.items() if k in settings or k not in idle}
    return cls(**{**short, **settings})


@pytest.fixture(scope="module")
def bb() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def cases(pictures: list[str]) -> list[Case]:
    made = []
    for i in range(18):
        edit = Edit(Prompt.of(f"What is the colour of {i}?", pictures[i % 6]), f"ring {i}")
        probes = (
            Probe("g", edit.prompt.with_text(f"Colour {i}?"), "t_generality", reference="x"),
            Probe("l", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring"),
        )
        origin = "counterfactual" if i % 6 == 5 else "correction"
        made.append(Case(f"c{i}", edit, probes, origin=origin, asked="colour"))
    return made


@pytest.fixture(scope="module")
def state(bb: tiny.HfVlm, cases: list[Case]) -> State:
    made = unike().prepare(bb, cases)
    assert made is not None
    return made  # type: ignore[no-any-return]


def logits(bb: tiny.HfVlm, prompts: list[Prompt], *patches: Patch) -> Tensor:
    with torch.no_grad(), bb.applied(*patches):
        return bb.logits(bb.encode(prompts))


def shape_names(patch: Patch) -> list[str]:
    return [type(p).__name__ for p in parts_of(patch)]


# -- prepare ----------------------------------------------------------------------------------


def test_two_preparations_are_equal_and_seeds_are_not(
    bb: tiny.HfVlm, cases: list[Case], state: State
) -> None:
    assert unike().prepare(bb, cases).digest() == state.digest()
    assert unike().prepare(bb, cases, seed=1).digest() != state.digest()
    assert state.meta["triplets"] == 15  # three of 18 targets are counterfactual
    assert state.meta["failures"]["asked colour"] == 15
    assert len(state.tensors["text.2/sem"]) == len(state.tensors["text.3/pos"]) == 15
    assert set(state.meta["blocks"]) == {"2", "3"}
    for block in state.meta["blocks"].values():
        assert 0 <= block["probe on states"] <= 1 and "answers alone" in block


def test_few_triplets_are_enough_and_fewer_are_refused(bb: tiny.HfVlm, cases: list[Case]) -> None:
    for n in (4, 5):
        made = unike().prepare(bb, cases[:n])
        assert made.meta["triplets"] == n
        assert all(bool(t.isfinite().all()) for t in made.tensors.values())
        found = unike().edit(bb, [cases[0].edit], made)
        assert not torch.equal(
            logits(bb, [cases[0].edit.prompt], found.patch), logits(bb, [cases[0].edit.prompt])
        )
    with pytest.raises(BadData, match=r"gets only 3 .*needs 4 or more") as few:
        unike().prepare(bb, cases[:3])
    assert "\n" not in str(few.value)
    with pytest.raises(BadData, match="gets only 0 "):
        unike().prepare(bb, [c for c in cases if c.origin == "counterfactual"])


# -- what an edit is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({}, ["Latent", "Neurons"]),
        ({"extrinsic": "none"}, ["Neurons"]),
        ({"extrinsic": "none", "zeta": "off"}, ["Neurons"]),
        ({"extrinsic": "prompt"}, ["Context", "Neurons"]),
        ({"extrinsic": "prompt", "demonstrations": 0}, ["Context", "Neurons"]),
        ({"intrinsic": False}, ["Latent"]),
        ({"intrinsic": False, "extrinsic": "prompt"}, ["Context"]),
    ],
    ids=str,
)
def test_components(
    bb: tiny.HfVlm, state: State, edits: list[Edit], settings: dict[str, Any], shapes: list[str]
) -> None:
    found = unike(**settings).edit(bb, edits[:1], state)
    assert shape_names(found.patch) == shapes and found.patch.edits == tuple(edits[:1])
    assert found.patch.header.state == state.digest()
    for part in parts_of(found.patch):
        assert not any(p.requires_grad for p in part.parameters())
        if isinstance(part, Context):
            shown = part.facts[0].demonstrations
            assert len(shown) == settings.get("demonstrations", 4)
    prompt = edits[0].prompt
    assert not torch.equal(logits(bb, [prompt], found.patch), logits(bb, [prompt]))


OPTIONS: list[str] = [
    *(f"alpha={a}" for a in ("query", "token", 0.1, 0.9)),
    *(f"top={k}" for k in (10, 80)),
    "attention=cosine", "temperature=0.5", "cutoff=0.4", "own_rows=none", "own_rows=every",
    "zeta=off", "zeta=random", "zeta=semantic", "zeta=truthfulness", "beta=0", "neurons=1",
    "neurons=20", "act_weight=1", "eos=false",
]  # fmt: skip


@pytest.mark.parametrize("text", OPTIONS)
def test_every_setting_reaches_the_patch(
    bb: tiny.HfVlm, state: State, edits: list[Edit], text: str
) -> None:
    needed = {"attention": "cosine"} if text.startswith("temperature") else {}
    editor = unike(steps=1, **needed, **parse_settings([text]))
    memory, neurons = parts_of(editor.edit(bb, edits[2:3], state).patch)
    assert isinstance(memory, Latent) and isinstance(neurons, Neurons)
    name, value = next(iter(parse_settings([text]).items()))
    assert memory.options == LatentSettings(
        **{"top": 5, **needed, **({name: value} if hasattr(LatentSettings, name) else {})}
    )
    target = len(bb.encode([edits[2].prompt], [edits[2].target]).targets[0])
    rows = {"own_rows=none": 0, "own_rows=every": target}.get(text, 1)
    assert target > 1 and all(len(memory.own(i)[0]) == rows for i in (2, 3))
    part = neurons.part("text.3.mlp")
    assert part["value"].shape == (editor.config.neurons, 32)
    assert ("shared" in part) == (text not in ("zeta=off", "beta=0"))


def test_no_retrieval_at_all(bb: tiny.HfVlm, state: State, edits: list[Edit]) -> None:
    found = unike(top=0, intrinsic=False).edit(bb, edits[:1], state)
    plain = logits(bb, [edits[0].prompt])
    assert torch.equal(logits(bb, [edits[0].prompt], found.patch), plain)


def test_own_entries_are_the_edit_s_states(bb: tiny.HfVlm, state: State, edits: list[Edit]) -> None:
    """At the last tokens of question and answer, of v_e, x_e, y_e alone; read on what is live."""
    edit = edits[3]
    first = unike().edit(bb, edits[:1], state).patch
    for live in ((), (first,)):
        with bb.applied(*live):
            memory = parts_of(unike(own_stream=False).edit(bb, [edit], state).patch)[0]
        assert isinstance(memory, Latent)
        batch, watch = bb.encode([edit.prompt], [edit.target]), Recorder(["text.2.in", "text.3.in"])
        with torch.no_grad(), bb.applied(*live, watch):
            bb.logits(batch)
        for i in (2, 3):
            x = watch.x[f"text.{i}.in"][0]
            for found, at in zip(memory.own(i), (int(batch.lengths[0]) - 1, -1), strict=True):
                torch.testing.assert_close(found[0], x[at], atol=1e-4, rtol=1e-4)


def test_entries_of_upper_blocks_are_read_with_those_below_mixed_in(
    bb: tiny.HfVlm, state: State, edits: list[Edit]
) -> None:
    """Then the very question of the edit finds its own entry in every block: cosine one."""
    patch = unike(intrinsic=False).edit(bb, edits[:1], state).patch
    with bb.applied(patch), bb.ask(bb.encode([edits[0].prompt])) as q:
        found = [v for (_, s), v in q.ctx.memo.items() if s.endswith(".in")]  # type: ignore[attr-defined]
    assert len(found) == 2
    for one in found:
        assert bool(one["own"][0, 0]) and float(one["cos"][0, 0]) == pytest.approx(1, abs=1e-4)


def test_each_block_runs_once_for_the_entries(
    bb: tiny.HfVlm, state: State, edits: list[Edit]
) -> None:
    """The block above the last one that is read never does."""
    runs: list[int] = []
    handles = [
        bb.site(f"text.{i}.mlp").first.register_forward_hook(lambda *_, i=i: runs.append(i))
        for i in range(bb.depth)
    ]
    try:
        unike(intrinsic=False).edit(bb, edits[:2], state)
    finally:
        for handle in handles:
            handle.remove()
    assert runs == list(range(bb.depth - 1))


def test_zeta_by_hand(bb: tiny.HfVlm, state: State) -> None:
    """beta times the mean length of FFN outputs times a direction of length one."""
    sites = ["text.2.mlp", "text.3.mlp"]

    def shared(zeta: str, seed: int = 0, **more: Any) -> dict[str, Tensor]:
        request = EditRequest.of([[]], [state], seed)
        return unike(zeta=zeta, **more).shared(bb, sites, request)  # type: ignore[no-any-return]

    for site in sites:
        length = float(state.tensors[f"{site[:6]}/zeta/length"])
        for zeta in ("truthfulness", "semantic"):
            stored = state.tensors[f"{site[:6]}/zeta/{zeta}"].float()
            assert float(stored.norm()) == pytest.approx(1, abs=1e-3)
            torch.testing.assert_close(shared(zeta, beta=0.3)[site], 0.3 * length * stored)
        random = shared("random", beta=0.3)[site]
        assert float(random.norm()) == pytest.approx(0.3 * length, rel=1e-5)
        assert torch.equal(random, shared("random", beta=0.3)[site])
        assert not torch.allclose(random, shared("random", 1, beta=0.3)[site])
    assert shared("off") == shared("truthfulness", beta=0.0) == {}
    with pytest.raises(BadSpec, match=r"not prepared for text block 1"):
        unike(layers=(1,)).edit(bb, [Edit(Prompt.of("Which?"), "red")], state)


def test_zeta_is_the_difference_of_encoded_means(state: State) -> None:
    """By hand from the stored states: decoder (mean of unit encodings, true minus wrong)."""
    t = {k: v.double() for k, v in state.tensors.items() if k.startswith("text.3/")}
    for space, name in (("enc_tru", "truthfulness"), ("enc_sem", "semantic")):

        def run(h: Tensor, space: str = space) -> Tensor:
            x = (h - t[f"text.3/{space}/mean"]) / t[f"text.3/{space}/std"]
            for i in range(3):
                x = x @ t[f"text.3/{space}/w{i}"].T + t[f"text.3/{space}/b{i}"]
                x = x * 0.5 * (1 + torch.erf(x / 2**0.5)) if i < 2 else x
            return x / x.norm(dim=1, keepdim=True)

        apart = run(t["text.3/pos"]).mean(0) - run(t["text.3/neg"]).mean(0)
        back = t[f"text.3/decoder/{name}"] @ apart
        wanted, found = back / back.norm(), t[f"text.3/zeta/{name}"]
        assert float(wanted @ found) > 0.99


def test_values_of_zero_and_no_zeta_are_the_memory_alone(
    bb: tiny.HfVlm, state: State, edits: list[Edit]
) -> None:
    whole = unike(zeta="off", steps=0).edit(bb, edits[:1], state).patch
    alone = unike(intrinsic=False).edit(bb, edits[:1], state).patch
    prompts = [e.prompt for e in edits]
    assert torch.equal(logits(bb, prompts, whole), logits(bb, prompts, alone))


def test_the_memory_loss_is_t_patcher_s(bb: tiny.HfVlm) -> None:
    """gamma, beta and top of l_m are the same whichever editor asks for it."""
    from errata.algorithms.neuron_search import NeuronMemory

    rng = torch.Generator().manual_seed(0)
    part = {"key": torch.randn(2, 32, 3, generator=rng), "key_bias": torch.zeros(2, 3)}
    memory = NeuronMemory(torch.randn(200, 32, generator=rng) * 0.1)
    own = torch.ones(2, 3)
    other = registry.load("editors", "tpatcher")()
    wanted = other._memory_loss(part, memory, own)
    torch.testing.assert_close(unike(memory_weight=1.0)._memory_loss(part, memory, own), wanted)


# -- wrong settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "zeta=truth", "alpha=often", "top=1.5", "own_rows=all", "extrinsic=memory", "layers=9",
        "layers=[-9]", "latent_layers=[4]", "neurons=two", "layers=[]",
        "alpha=2", "alpha=-1", "alpha=NaN", "top=-1", "cutoff=2", "cutoff=NaN",
        "neurons=0", "neurons=-1", "temperature=0", "temperature=-1", "demonstrations=-1",
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line(
    bb: tiny.HfVlm, state: State, edits: list[Edit], text: str
) -> None:
    more = {"extrinsic": "prompt"} if text.startswith("demo") else {}
    more |= {"attention": "cosine"} if text.startswith("temp") else {}
    with pytest.raises(BadSpec) as bad:
        unike(**{**more, **parse_settings([text])}).edit(bb, edits[:1], state)
    assert "\n" not in str(bad.value)


def test_nothing_to_do_is_refused(bb: tiny.HfVlm, state: State, edits: list[Edit]) -> None:
    with pytest.raises(BadSpec, match="edits nothing"):
        unike(intrinsic=False, extrinsic="none").edit(bb, edits[:1], state)


# -- sequences --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"memory_weight": 0.1, "top": 3}], ids=str)
def test_a_sequence_appends_and_each_edit_can_be_taken_back(
    bb: tiny.HfVlm, state: State, edits: list[Edit], settings: dict[str, Any]
) -> None:
    editor, found, carried = unike(**settings), [], state
    for edit in edits[:3]:
        with bb.applied(*(f.patch for f in found)):
            found.append(editor.edit(bb, [edit], carried))
        carried = found[-1].state
        assert (carried.origin or carried.digest()) == state.digest()
    prompts = [e.prompt for e in edits]
    live = united([f.patch for f in found])
    memory = next(p for p in live if isinstance(p, Latent))
    assert len(memory.own(3)[0]) == 3 and memory.edits == tuple(edits[:3])
    assert sum(p.part("text.3.mlp")["value"].shape[0] for p in live if isinstance(p, Neurons)) == 9
    for gone in range(3):
        kept = [f.patch for i, f in enumerate(found) if i != gone]
        both = united(kept)
        wanted = torch.cat([parts_of(k)[0].own(3)[0] for k in kept])  # type: ignore[attr-defined]
        assert torch.equal(next(p for p in both if isinstance(p, Latent)).own(3)[0], wanted)
        told = pytest.warns(Notice, match="on top of") if gone < 2 else nullcontext()
        with told:  # the later ones were found on top of it
            left = logits(bb, prompts, *kept)
        assert not torch.equal(left, logits(bb, prompts, *(f.patch for f in found)))
    if settings:
        assert any(k.startswith("past/") for k in carried.tensors)


def test_rows_of_sequences_are_each_sequence_alone(
    bb: tiny.HfVlm, state: State, edits: list[Edit]
) -> None:
    """Two lanes of two edits: found in rows on rows of the first edits, and alone."""
    editor = unike(own_rows="every", top=30)
    first = editor.edit_rows(bb, edits[:2], [state] * 2)
    with bb.applied(Rows([f.patch for f in first])):
        second = editor.edit_rows(bb, edits[2:4], [state] * 2)
    prompts = [edits[2].prompt, edits[3].prompt]
    with bb.applied(Rows([f.patch for f in first]), Rows([f.patch for f in second])):
        together = bb.logits(bb.encode(prompts))
    for b in range(2):
        one = editor.edit(bb, [edits[b]], state).patch
        with bb.applied(one):
            two = editor.edit(bb, [edits[2 + b]], state).patch
        alone = logits(bb, prompts[b : b + 1], one, two)
        torch.testing.assert_close(together[b : b + 1], alone, atol=5e-3, rtol=5e-3)


def test_fused_neurons_with_and_without_a_shared_direction(bb: tiny.HfVlm) -> None:
    """Folding beta zeta' into the values changes nothing, alone, beside others, and in rows."""
    rng = torch.Generator().manual_seed(0)

    def made(shared: bool, e: int = 3) -> Neurons:
        part = {
            "key": torch.randn(32, e, generator=rng) * 0.3,
            "key_bias": torch.randn(e, generator=rng),
            "up": torch.randn(32, e, generator=rng) * 0.3,
            "up_bias": torch.ones(e),
            "value": torch.randn(e, 32, generator=rng) * 0.3,
        }
        part |= {"shared": torch.randn(32, generator=rng) * 0.3} if shared else {}
        return Neurons({"text.2.mlp": part}).requires_grad_(False)

    x = torch.randn(2, 4, 32, generator=rng)
    patches = [made(True), made(False), made(True, 2)]
    wanted = torch.zeros(2, 4, 32)
    for p in patches:
        t = p.part("text.2.mlp")
        o = torch.nn.functional.silu(x @ t["key"] + t["key_bias"]) * (x @ t["up"] + t["up_bias"])
        for j in range(o.shape[-1]):
            wanted += o[..., j : j + 1] * (t["value"][j] + t.get("shared", torch.zeros(32)))
    one = Neurons.merge(patches)
    assert one is not None and "shared" not in one.part("text.2.mlp")
    torch.testing.assert_close(one.change(x, one.part("text.2.mlp")), wanted, atol=1e-4, rtol=1e-4)
    assert "shared" in patches[0].part("text.2.mlp")
    same = [made(True), made(True)]
    rows = Neurons.batch(same)
    assert rows is not None
    y = rows.change(x, rows.part("text.2.mlp"))
    for r in range(2):
        alone = same[r].change(x[r], same[r].part("text.2.mlp"))
        torch.testing.assert_close(y[r], alone, atol=1e-4, rtol=1e-4)
    assert Neurons.batch([made(True), made(False)]) is None
