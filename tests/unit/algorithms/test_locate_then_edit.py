"""Keys, spreading, exactness and memory of the locate-then-edit editors, on a random LLaVA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata import editor
from errata.algorithms.locate_then_edit import corpus
from errata.algorithms.locate_then_edit.base import (
    KeyReader,
    LocateThenEdit,
    bare_and_mean,
    mean_key,
)
from errata.algorithms.locate_then_edit.layer_stats import StatsSettings, collect, site_of
from errata.algorithms.locate_then_edit.multi_layer import MultiLayerUpdate
from errata.algorithms.locate_then_edit.value_search import ColumnRecorder, search
from errata.core.errors import BadSpec, MissingState, Notice
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Case, Edit, Probe, Prompt
from errata.io import patch_folder as patches
from errata.linalg import covariance, lowrank
from errata.patches.stack import stacked
from tests import tiny
from tests.fast import FAST

#: what random models and few steps are told; tests/unit/algorithms/test_written.py
NOTICES = "ignore:editor '.*:errata.core.errors.Notice"
FOUR = ("rome", "memit", "pmet", "alphaedit")
EDITS = [
    Edit(Prompt.of(f"The {what} of the {thing} is"), target, f"the {thing}", id=f"{what} {thing}")
    for what, thing, target in (
        ("colour", "ring", "green"),
        ("shape", "thing", "blue thing"),
        ("colour", "New Fact", "red"),
        ("shape", "Prompt", "ring of red"),
        ("Fact", "green ring", "blue"),
        ("thing", "red thing", "green"),
    )
]


PLAIN = [f"The {a} of the {b} is what?" for a in "abcdef" for b in "uvwxyz"]


@pytest.fixture(scope="module")
def state() -> State:
    lines = [
        f"The {a} of the {b} is {c}" for a in "abcdef" for b in "uvwxyz" for c in ("red", "it")
    ]
    documents = [corpus.Document(Prompt.of(line)) for line in lines]
    source = corpus.Corpus("lines", "lines", len(lines), lambda: iter(documents))
    return collect(tiny.shared("llava"), source, StatsSettings())


def _made(name: str, **settings: Any) -> Any:
    return editor(name, **{**FAST[name], **settings})


def _at(bb: Backbone, edits: Sequence[Edit], site: str) -> tuple[Tensor, Tensor]:
    """Input and output of a site at each edit's subject in its bare prompt."""
    xs, ys = [], []
    for e in edits:
        where = torch.tensor([bb.last_column(e.prompt, str(e.subject))])
        look = ColumnRecorder([site], where)
        with torch.no_grad(), bb.applied(look):
            bb.logits(bb.encode([e.prompt]))
        xs.append(look.x[site][0])
        ys.append(look.y[site][0])
    return torch.stack(xs), torch.stack(ys)


def test_keys_are_half_bare_and_romes_a_plain_mean():
    """Two edits, one feature: bare 1 and 10, templates (3, 5, 7) and (20, 20, 50)."""
    keys = torch.tensor([[1.0, 3, 5, 7], [10, 20, 20, 50]])[..., None]
    assert bare_and_mean(keys)[:, 0].tolist() == [0.5 * 1 + 0.5 * 5, 0.5 * 10 + 0.5 * 30]
    assert mean_key(keys)[:, 0].tolist() == [4.0, 25.0]
    mixed = keys[:, [0, 3, 1, 2]]
    assert torch.equal(bare_and_mean(mixed), bare_and_mean(keys))
    assert bare_and_mean(keys[:, :1])[:, 0].tolist() == [1.0, 10.0]


def test_keys_are_the_down_projections_inputs_behind_each_beginning():
    bb, starts = tiny.shared("llava"), ("", "It is. ", "A ring, so. ")
    reader = KeyReader(bb, list(enumerate(EDITS[:2])), starts, "subject", 1)
    keys, now = reader.read([1, 2], "text.2.block", top=2)
    assert keys[1].shape == (2, 3, 64)
    for e, edit in enumerate(EDITS[:2]):
        for p, start in enumerate(starts):
            behind = [Edit(Prompt.of(start + edit.prompt.text), edit.target, edit.subject)]
            x, _ = _at(bb, behind, site_of(2))
            assert torch.allclose(keys[2][e, p], x[0], atol=1e-5)
    _, y = _at(bb, EDITS[:2], "text.2.block")
    assert torch.allclose(now, y, atol=1e-5)


def test_spreading_over_additive_layers():
    """MEMIT leaves (L - 1 - i) / L behind layer i; PMET writes 3.2317 times in all for L = 5."""
    memit, pmet = editor("memit"), editor("pmet")
    assert isinstance(memit, MultiLayerUpdate) and isinstance(pmet, MultiLayerUpdate)
    left, size = 1.0, 5
    for i in range(size):
        left -= left / memit.residual_divisor(i, size)
        assert left == pytest.approx((size - 1 - i) / size)
    assert sum(1 / pmet.residual_divisor(i, size) for i in range(size)) == pytest.approx(
        3.2317, abs=1e-4
    )


@pytest.mark.parametrize("same_key", [False, True])
def test_rome_maps_its_key_to_the_value_exactly(state, same_key):
    bb = tiny.shared("llava")
    rome = _made("rome", same_key=same_key, context_templates="none")
    patch = rome.edit(bb, EDITS[:1], state).patch
    settings = rome.search_settings([site_of(1)])
    wanted = search(bb, [(0, EDITS[0])], ("",), settings).value[site_of(1)]
    with bb.applied(patch):
        _, got = _at(bb, EDITS[:1], site_of(1))
    # without templates the averaged key is the bare one, so both readings coincide
    assert torch.allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()))
    a = patch.part(site_of(1))["A"][0].double()
    k, _ = _at(bb, EDITS[:1], site_of(1))
    c = state.tensors["moment/1"].double()
    c = c + 0.5 * covariance.scale(c) * torch.eye(len(c))
    u = torch.linalg.solve(c, k[0].double())
    assert torch.allclose(a, u / u.norm(), atol=1e-6)


@pytest.mark.filterwarnings(NOTICES)
def test_rome_with_the_bare_key_below(state):
    """With templates W k_1 = v still holds for the bare prompt, and r-ROME holds for the mean."""
    bb = tiny.shared("llava")
    for same_key in (False, True):
        rome = _made("rome", same_key=same_key)
        patch, starts = rome.edit(bb, EDITS[:1], state).patch, rome.templates(bb, 0)
        value = search(bb, [(0, EDITS[0])], starts, rome.search_settings([site_of(1)]))
        keys, _ = KeyReader(bb, [(0, EDITS[0])], starts, "subject", 1).read([1], top=1)
        key = mean_key(keys[1])[0] if same_key else keys[1][0, 0]
        part = patch.part(site_of(1))
        change = (part["B"] @ (part["A"] @ key)).detach()
        moved = (value.value[site_of(1)] - value.start[site_of(1)])[0]
        assert torch.allclose(change, moved, atol=1e-4 * float(moved.abs().max()))


def test_one_layer_without_a_price_reaches_the_value(state):
    """lambda -> 0: the block's output in the bare prompt is z for every edit of the batch."""
    bb = tiny.shared("llava")
    memit = _made("memit", layers=(1,), mom2_weight=1e-9, context_templates="none", steps=3)
    patch = memit.edit(bb, EDITS[:3], state).patch
    z = search(bb, list(enumerate(EDITS[:3])), ("",), memit.value_settings(bb, 1)).value[
        "text.2.in"
    ]
    with bb.applied(patch):
        _, got = _at(bb, EDITS[:3], "text.1.block")
    assert torch.allclose(got, z, atol=1e-3 * float(z.abs().max()))
    assert all(e["left"] < 1e-3 for e in patch.header.notes["edits"])


@pytest.mark.filterwarnings(NOTICES)
def test_pmet_writes_the_attention_beside_the_ffn(state):
    """One layer without a price: both outputs become the values that were searched together."""
    bb = tiny.shared("llava")
    settings = {"layers": (1,), "mom2_weight": 1e-6, "context_templates": "none", "write": "both"}
    pmet = _made("pmet", **settings)
    with pytest.raises(BadSpec, match="was made with write=ffn, now it is both"):
        pmet.edit(bb, EDITS[:2], state)
    cases = [
        Case(e.id, e, tuple(Probe(q, Prompt.of(q), "t_locality", "", "it") for q in PLAIN))
        for e in EDITS
    ]
    both = pmet.prepare(bb, cases)
    assert pmet.shipped_state(bb) is None and pmet.settings_of_state()["write"] == "both"
    patch = pmet.edit(bb, EDITS[:2], both).patch
    assert patch.sites == {"text.1.attn.o", "text.1.mlp.down"}
    settings = pmet.value_settings(bb, 1)
    wanted = search(bb, list(enumerate(EDITS[:2])), ("",), settings).value
    with bb.applied(patch):
        for site in settings.sites:
            z = wanted[site]
            _, got = _at(bb, EDITS[:2], site)
            assert torch.allclose(got, z, atol=1e-2 * float(z.abs().max())), site
    noted = patch.header.notes["edits"]
    assert all(e["left"] < 1e-2 and e["left.attn.o"] < 1e-2 for e in noted)
    alone = _made("pmet", layers=(1,)).edit(bb, EDITS[:2], both).patch  # serves the FFN alone too
    assert alone.sites == {"text.1.mlp.down"}


def test_alphaedit_stays_in_the_null_space(state):
    bb = tiny.shared("llava")
    patch = _made("alphaedit").edit(bb, EDITS[:3], state).patch
    for layer in (1, 2):
        c = state.tensors[f"moment/{layer}"].double()
        values, vectors = torch.linalg.eigh(c)
        small = values < 0.5 * float(c.diagonal().mean())
        part = patch.part(site_of(layer))
        change = (part["B"] @ part["A"]).detach().double()
        outside = change @ vectors[:, ~small]
        assert float(outside.norm()) < 1e-5 * float(change.norm())
        noted = [e["layers"][str(layer)] for e in patch.header.notes["edits"]]
        assert {n["null_dim"] for n in noted} == {int(small.sum())}
        assert all(0 < n["null_share"] < 1 for n in noted)


def _sequence(name: str, memory: str, state: State, folder: Path | None) -> tuple[Any, State]:
    """Three batches of two; with a folder, patch and state go through files behind the second."""
    bb, made, live = tiny.shared("llava"), _made(name, memory=memory), None
    now: State | None = state
    for b in range(3):
        with bb.applied(live):
            found = made.edit(bb, EDITS[2 * b : 2 * b + 2], now)
        live = found.patch if live is None else stacked(live, found.patch)
        now = found.state
        if folder is not None and b == 1:
            assert now is not None
            patches.save(live, folder / "patch")
            now.save(folder / "state")
            live, now = patches.load(folder / "patch", bb), State.load(folder / "state")
    assert live is not None and now is not None
    return live, now


@pytest.mark.parametrize("memory", ["keys", "recomputed"])  # one thing, under its old name too
@pytest.mark.parametrize("name", FOUR)
@pytest.mark.filterwarnings(NOTICES)
def test_a_sequence_that_was_saved_goes_on_bit_for_bit(name, memory, state, tmp_path):
    one, after = _sequence(name, memory, state, None)
    two, again = _sequence(name, memory, state, tmp_path)
    assert [e.id for e in one.edits] == [e.id for e in EDITS]  # the order is on record
    made, read = one.pack()[1], two.pack()[1]
    assert made.keys() == read.keys()
    assert all(torch.equal(made[k], read[k]) for k in made)
    assert after.digest() == again.digest() and after.origin == state.digest()
    assert len(after.tensors["keys/1"]) == 6


def test_recomputed_keys_are_those_of_the_edited_model(state):
    """K_p grows by the keys measured after the batch; `keys` by those that were written with."""
    bb = tiny.shared("llava")
    for memory in ("keys", "recomputed"):
        made = _made("memit", memory=memory, context_templates="none")
        found = made.edit(bb, EDITS[:2], state)
        before, _ = _at(bb, EDITS[:2], site_of(2))
        with bb.applied(found.patch):
            after, _ = _at(bb, EDITS[:2], site_of(2))
        assert not torch.allclose(before, after, atol=1e-4)
        kept = found.state.tensors["keys/2"]
        if memory == "recomputed":
            assert torch.allclose(kept, after, atol=1e-5)
        else:  # layer 1 was written by then, layer 2 was not
            assert torch.allclose(kept, after, atol=1e-5)  # its keys do not depend on itself
            first = found.state.tensors["keys/1"]
            assert torch.allclose(first, _at(bb, EDITS[:2], site_of(1))[0], atol=1e-5)
    assert "keys/1" not in _made("memit").edit(bb, EDITS[:2], state).state.tensors


@pytest.mark.parametrize("name", FOUR)
def test_memory_protects_earlier_edits(name, state):
    """The change that a second edit makes at the first one's key is smaller with memory."""
    bb = tiny.shared("llava")
    moved = {}
    for memory in ("none", "keys"):
        weight = {"mom2_weight": 1.0} if name != "alphaedit" else {}
        if (name, memory) == ("rome", "none"):
            weight = {}  # which has no effect on one key
        made = _made(name, memory=memory, context_templates="none", **weight)
        first = made.edit(bb, EDITS[:1], state)
        k, _ = _at(bb, EDITS[:1], site_of(1))
        with bb.applied(first.patch):
            second = made.edit(bb, EDITS[1:2], first.state)
        part = second.patch.part(site_of(1))
        size = lowrank.norm(part["A"], part["B"])
        moved[memory] = float((part["B"] @ (part["A"] @ k[0])).norm()) / size
    assert moved["keys"] < 0.7 * moved["none"]


@pytest.mark.parametrize("name", FOUR)
def test_a_limit_on_the_change_is_kept_and_noted(name, state):
    bb = tiny.shared("llava")
    with pytest.warns(Notice, match=r"max_upd_ratio=0.001 has cut the change: raise it"):
        result = _made(name, max_upd_ratio=1e-3).edit(bb, EDITS[:2], state)
    patch = result.patch
    for site in patch.sites:
        part, weight = patch.part(site), bb.site(site).first.weight
        ratio = lowrank.norm(part["A"], part["B"]) / float(weight.detach().norm())
        assert ratio <= (1 if name != "rome" else 2) * 1e-3 * 1.001  # rome: one update per edit
    noted = [size for e in result.log.notes["edits"] for size in e["layers"].values()]
    assert all(0 < size["clipped"] < 1 for size in noted)
    assert patch.header.notes["edits"] == result.log.notes["edits"]
    free = _made(name).edit(bb, EDITS[:2], state).patch
    assert all("clipped" not in s for e in free.header.notes["edits"] for s in e["layers"].values())


@pytest.mark.parametrize("name", FOUR)
def test_groups_of_different_sizes(name, state):
    bb = tiny.shared("llava")
    made = _made(name, context_templates="none")
    groups = [EDITS[:3], EDITS[3:4], EDITS[4:]]
    together = made.edit_groups(bb, groups, [state] * 3)
    for group, found in zip(groups, together, strict=True):
        alone = made.edit(bb, group, state).patch
        for site in alone.sites:
            a, b = (p.part(site)["B"] @ p.part(site)["A"] for p in (found.patch, alone))
            assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


def test_where_an_edit_is_looked_up(state):
    bb = tiny.shared("llava")
    nameless = Edit(Prompt.of("Which ring is it?"), "red", id="n")
    noted = _made("memit").edit(bb, [EDITS[0], nameless], state).log.notes["edits"]
    assert [e["token"] for e in noted] == ["subject", "last_prompt"]
    noted = _made("memit", token="last_prompt").edit(bb, EDITS[:1], state).log.notes["edits"]
    assert noted[0]["token"] == "last_prompt" and noted[0]["kl"] == 0.0


def test_published_settings():
    """A.6 of the sources: layers, steps, step size, decay, clamp, lambda per model."""
    wanted = {
        ("memit", "gpt2-xl"): ((13, 14, 15, 16, 17), 20, 0.5, 0.5, 0.75, 20000.0),
        ("memit", "gpt-j"): ((3, 4, 5, 6, 7, 8), 25, 0.5, 0.5, 0.75, 15000.0),
        ("memit", "llama-3"): ((4, 5, 6, 7, 8), 25, 0.1, 0.5, 0.75, 15000.0),
        ("memit", "easyedit"): ((4, 5, 6, 7, 8), 25, 0.5, 1e-3, 4.0, 15000.0),
        ("memit", "unike_umm"): ((4, 5, 6, 7, 8), 25, 0.1, 1e-3, 4.0, 15000.0),
        ("pmet", "gpt-j"): ((3, 4, 5, 6, 7, 8), 30, 0.2, 0.5, 0.75, 6000.0),
        ("pmet", "gpt-neox"): ((6, 7, 8, 9, 10), 30, 0.5, 0.5, 0.8, 15000.0),
        ("rome", "gpt2-xl"): ((17,), 20, 0.5, 0.5, 4.0, 15000.0),
        ("rome", "llama-3"): ((5,), 25, 0.5, 1e-3, 4.0, 15000.0),
    }
    for (name, preset), values in wanted.items():
        c = editor(name, preset=preset).config
        assert (c.layers, c.steps, c.lr, c.weight_decay, c.clamp, c.mom2_weight) == values
        assert not c.eos
    assert not editor("rome", preset="llama-3").uses_state
    assert editor("pmet", preset="gpt-j").config.kl_factor == 1.0
    alpha = editor("alphaedit", preset="unike_umm_blip3o").config
    assert (alpha.null_proj_alpha, alpha.nullspace_cov_reg, alpha.max_upd_ratio) == (0.7, 0.01, 0.5)
    assert alpha.memory == "keys" and alpha.L2 == 10.0 and alpha.layers[0] == 6


def test_settings_that_cannot_be():
    for name, wrong in (
        ("memit", {"clamp": 0.0}),
        ("memit", {"steps": 0}),
        ("rome", {"layers": (1, 2)}),
        ("alphaedit", {"null_proj_alpha": 0.0}),
        ("alphaedit", {"L2": 0.0}),
    ):
        with pytest.raises(BadSpec):
            editor(name, **wrong)
    with pytest.raises(MissingState, match="errata stats BACKBONE"):
        _made("memit").edit(tiny.shared("llava"), EDITS[:1])
    plain = editor("rome", mom2=False, layers=(1,), steps=4)
    assert isinstance(plain, LocateThenEdit)
    plain.edit(tiny.shared("llava"), EDITS[:1])
