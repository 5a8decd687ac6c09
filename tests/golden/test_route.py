"""The route's decision and its two switches against numbers worked out by hand; and on a model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.core.errors import MissingMask, MissingState
from errata.core.model.recorder import Recorder
from errata.core.patch import Header, Patch, united
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.io.patch_folder import load, save
from errata.io.states import store
from errata.networks.reader import Reader, initialise
from errata.networks.scope import ScopeNetwork
from errata.patches._corrections import singles
from errata.patches.counterfactual import Counterfactual, CounterfactualNetwork
from errata.patches.delta import Delta
from errata.patches.route import Route, mixed
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from errata.scopes.trained import TrainedScope
from errata.training.optimise import generator
from tests import tiny

SITE, WIDTH = "text.2.in", 32


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def scope() -> ScopeNetwork:
    net = ScopeNetwork(WIDTH, 16, slots=2, blocks=1, heads=2, key=4)
    initialise(net, generator(0, "scope"))
    net.of_edit.load_state_dict(net.of_query.state_dict())
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def speaker() -> CounterfactualNetwork:
    net = CounterfactualNetwork(WIDTH, 16, slots=2, blocks=1, heads=2)
    initialise(net, generator(0, "speaker"))
    return net.requires_grad_(False)


def delta(*values: float) -> Delta:
    """Row i adds values[i] to every logit-making number above the deciding block."""
    rng = generator(1, "delta")
    dense = torch.randn(1, WIDTH, 2 * WIDTH, generator=rng)
    rows = torch.cat([v * dense for v in values])
    return Delta({"text.3.mlp.down": {"dense": rows}}, rows=len(values)).requires_grad_(False)


def keys_of(backbone: tiny.HfVlm, scope: ScopeNetwork, prompts: list[Prompt]) -> Tensor:
    """Each prompt's point, made without the patch that will meet it."""
    batch = backbone.encode(prompts)
    stream = backbone.enter(batch, 2).stream
    assert stream is not None
    columns = torch.arange(stream.shape[1]) < batch.lengths[:, None]
    last = stream[torch.arange(len(prompts)), batch.lengths - 1]
    return scope(stream, columns, last)[0]


def trained(scope: ScopeNetwork, name: str = "n", threshold: float = 0.5) -> TrainedScope:
    """The network of these tests as a scope, from a state that only its name tells from others."""
    tensors = {f"scope.{k}": v for k, v in scope.state_dict().items()}
    state = State("serac", {"scope": scope.settings, "name": name}, tensors)
    return TrainedScope(state, layer=int(SITE.split(".")[1]), threshold=threshold)


def route(
    backbone: tiny.HfVlm,
    scope: ScopeNetwork,
    prompts: list[Prompt],
    branch: Patch,
    *,
    switch: str = "hard",
    threshold: float = 0.9999,
    name: str = "n",
) -> Route:
    edits = [Edit(p, "x") for p in prompts]
    made = Route(
        trained(scope, name, threshold),
        keys_of(backbone, scope, prompts),
        singles(branch),
        switch=switch,  # type: ignore[arg-type]
    )
    header = Header(fingerprint=backbone.fingerprint())
    return made.with_header(header, edits).requires_grad_(False)


def logits(backbone: tiny.HfVlm, patch: Patch | None, asked: list[Prompt]) -> Tensor:
    with backbone.applied(patch):
        rows = [0] * len(asked)
        return backbone.logits(backbone.encode(asked, rows=rows), rows=torch.tensor(rows))


def test_similarity_and_nearest_by_hand(scope: ScopeNetwork) -> None:
    """Keys (0,0), (1,0), (0,2); query (1, 1): squared gaps 2, 1, 2: entry 1, e^-1. With owners
    (0, 1, 0) and row 0 the second is not met: gaps 2 and 2, the later of equals, e^-2.
    """
    keys = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 2, 0, 0]])
    query = torch.tensor([[1.0, 1, 0, 0]])
    of = trained(scope)
    entry, similarity = of.nearest(query, keys)
    assert entry.tolist() == [1] and similarity.item() == pytest.approx(math.exp(-1))
    entry, similarity = of.nearest(query, keys, torch.tensor([[True, False, True]]))
    assert entry.tolist() == [2] and similarity.item() == pytest.approx(math.exp(-2))
    _, similarity = of.nearest(query, keys, torch.zeros(1, 3, dtype=torch.bool))
    assert similarity.item() == -torch.inf


def test_the_soft_mixture_by_hand() -> None:
    """p = (1/2, 1/2), q = (4/5, 1/5), s = 1/4: 3/4 p + 1/4 q = (23/40, 17/40)."""
    base = torch.tensor([[[5.0, 5.0]]])
    other = torch.tensor([[[math.log(4.0), 0.0]]])
    got = mixed(base, other, torch.tensor([0.25])).exp()
    assert got.flatten().tolist() == pytest.approx([23 / 40, 17 / 40])
    assert mixed(base, other, torch.tensor([1.0])).exp().flatten().tolist() == pytest.approx(
        [0.8, 0.2]
    )
    assert torch.equal(mixed(base, other, torch.tensor([0.0])), base)


def test_reader_sees_the_prompt_alone() -> None:
    """Columns outside the mask change nothing, each column inside does."""
    net = Reader(4, 8, slots=2, blocks=2, heads=2)
    initialise(net, generator(0, "reader"))
    rng = generator(0, "stream")
    stream = torch.randn(1, 5, 4, generator=rng)
    mask = torch.tensor([[True, True, True, False, False]])
    one = net(stream, mask, stream[:, 2])
    for column in range(5):
        other = stream.clone()
        other[:, column] += torch.randn(4, generator=rng)
        changed = not torch.equal(net(other, mask, stream[:, 2]), one)
        assert changed == (column < 3), column


def test_closed_is_the_base_bit_for_bit_and_open_is_the_branch(
    backbone: tiny.HfVlm, scope: ScopeNetwork, ragged: list[Prompt]
) -> None:
    """The two prompts in the memory meet their own row of the branch, the others meet nothing."""
    patch = route(backbone, scope, [ragged[0], ragged[1]], delta(0.2, 0.7))
    got, base = logits(backbone, patch, ragged), logits(backbone, None, ragged)
    assert torch.equal(got[2:], base[2:])
    for b, value in ((0, 0.2), (1, 0.7)):
        plain = Delta({s: {"dense": p["dense"][0]} for s, p in _parts(delta(value)).items()})
        want = logits(backbone, plain.requires_grad_(False), ragged)
        assert not torch.allclose(got[b], base[b], atol=1e-3)
        torch.testing.assert_close(got[b], want[b], atol=2e-5, rtol=2e-5)


def _parts(patch: Delta) -> dict[str, dict[str, Tensor]]:
    return {s: {k: p.detach() for k, p in patch.part(s).items()} for s in patch.names}


def edited(
    speaker: CounterfactualNetwork, count: int, tokens: int, seed: int = 0, state: str = ""
) -> Counterfactual:
    rng = generator(seed, "memory")
    memory = torch.randn(count, 2 + tokens, 16, generator=rng)
    real = torch.ones(count, 2 + tokens, dtype=torch.bool)
    return Counterfactual(speaker, SITE, memory, real, state=state).requires_grad_(False)


def test_the_soft_switch_mixes_what_the_two_models_say(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    """All rows are mixed by their similarity to the one key; the hard switch takes one of both."""
    branch = edited(speaker, 1, 3)
    base = logits(backbone, None, ragged).softmax(-1)
    hard = logits(backbone, route(backbone, scope, ragged[:1], branch, threshold=-1.0), ragged)
    soft = logits(backbone, route(backbone, scope, ragged[:1], branch, switch="soft"), ragged)
    keys = keys_of(backbone, scope, ragged)
    s = torch.exp(-(keys - keys[0]).square().sum(-1))[:, None, None]
    want = (1 - s) * base + s * hard.softmax(-1)
    assert s[0].item() == pytest.approx(1) and bool((s[1:] < 0.999).all())
    torch.testing.assert_close(soft.exp(), want, atol=1e-5, rtol=1e-4)


def test_the_decision_is_the_same_whatever_is_said(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    patch = route(backbone, scope, ragged[:2], edited(speaker, 2, 3), threshold=0.5)
    seen = []
    for targets in (["red"] * 5, ["a thing of the ring", "x", "green blue", "x", "y"], None):
        with backbone.applied(patch), backbone.ask(backbone.encode(ragged, targets)) as q:
            live = backbone.hooks.points["head"].live[0]
            seen.append(q.ctx.memo[id(live), SITE])  # type: ignore[attr-defined]
    for entry, similarity, *_ in seen[1:]:
        assert torch.equal(entry, seen[0][0])
        torch.testing.assert_close(similarity, seen[0][1], atol=1e-5, rtol=1e-5)


def test_the_small_model_generates_as_it_scores(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    """Greedy answers with a cache, in a batch whose rows end early, equal full forwards."""
    patch = route(backbone, scope, ragged[:3], edited(speaker, 3, 2))
    caps = [6, 2, 5, 6, 6]
    with backbone.applied(patch):
        guess = backbone.generate(backbone.encode(ragged, ["red"] * 5), caps)
        said = backbone.generate(backbone.encode(ragged), caps)
        assert guess == said
        for prompt, one in zip(ragged, said, strict=True):
            shown = backbone.decode(one.ids)
            batch = backbone.encode([prompt])
            with backbone.ask(batch) as q:
                best = [int(q.logits[0, 0].argmax())]
                for token in one.ids[:-1]:
                    best.append(int(q.feed(torch.tensor([[token]]))[0, -1].argmax()))
            assert tuple(best[: len(one.ids)]) == one.ids, shown
    assert said != backbone.generate(backbone.encode(ragged), caps)


def test_asking_again_after_an_answer_gives_the_same(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    """Nothing of one continuation reaches the next: scoring after a greedy answer and before."""
    patch = route(backbone, scope, ragged[:3], edited(speaker, 3, 2))
    ids = [(40, 41, 42), (50,), (60, 61), (70, 71, 72, 73), (80, 81)]
    with backbone.applied(patch):
        with backbone.ask(backbone.encode(ragged)) as q:
            first = q.score(ids)
        with backbone.ask(backbone.encode(ragged)) as q:
            top = q.top(3)
            q.greedy([5] * 5)
            assert q.score(ids) == first
            assert q.top(3) == top


def test_rows_equal_single_routes(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    """Memories of different sizes and answers of different lengths, one per batch row."""
    routes = [
        route(backbone, scope, ragged[:1], edited(speaker, 1, 3)),
        route(backbone, scope, ragged[1:3], edited(speaker, 2, 1, seed=4)),
        route(backbone, scope, ragged[2:3], edited(speaker, 1, 2, seed=5)),
    ]
    together = Rows(routes)
    assert together.layers is not None and len(together.layers) == 1
    asked, rows = [*ragged, *ragged], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    with backbone.applied(together):
        got = backbone.logits(backbone.encode(asked, rows=rows), rows=torch.tensor(rows))
        said = backbone.generate(
            backbone.encode(asked, rows=rows), [4] * 10, rows=torch.tensor(rows)
        )
    base = logits(backbone, None, asked)
    for b, (prompt, r) in enumerate(zip(asked, rows, strict=True)):
        torch.testing.assert_close(
            got[b], logits(backbone, routes[r], [prompt])[0], atol=2e-4, rtol=2e-4
        )
        with backbone.applied(routes[r]):
            assert backbone.generate(backbone.encode([prompt]), [4])[0] == said[b]
    opened = [not torch.equal(got[b], base[b]) for b in range(10)]
    assert opened == [True, True, True, False, False, False, False, True, False, False]


def test_a_lane_without_an_edit_is_left_alone(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    one = route(backbone, scope, ragged[:1], edited(speaker, 1, 3), switch="soft")
    rows = torch.tensor([0, 1])
    with backbone.applied(Rows([one, Stack([])])):
        got = backbone.logits(backbone.encode([ragged[0]] * 2, rows=[0, 1]), rows=rows)
    assert torch.equal(got[1], logits(backbone, None, [ragged[0]] * 2)[1])
    torch.testing.assert_close(got[0], logits(backbone, one, [ragged[0]])[0], atol=1e-4, rtol=1e-4)


def test_join_is_one_memory_whose_nearest_edit_wins(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    a = route(backbone, scope, ragged[:1], edited(speaker, 1, 3))
    b = route(backbone, scope, ragged[1:2], edited(speaker, 1, 1, seed=2))
    again = route(backbone, scope, ragged[:1], edited(speaker, 1, 2, seed=3))
    both = stacked(a, b)
    assert isinstance(both, Route) and both.edits == (*a.edits, *b.edits)
    assert len(united([a, b, again])) == 1
    got = logits(backbone, both, ragged)
    torch.testing.assert_close(got[0], logits(backbone, a, ragged)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], logits(backbone, b, ragged)[1], atol=1e-5, rtol=1e-5)
    told_again = logits(backbone, stacked(both, again), ragged)
    torch.testing.assert_close(
        told_again[0], logits(backbone, again, ragged)[0], atol=1e-5, rtol=1e-5
    )
    foreign = route(backbone, scope, ragged[:1], edited(speaker, 1, 1), name="other")
    assert isinstance(stacked(a, foreign), Stack)


def stated(scope: ScopeNetwork, speaker: CounterfactualNetwork, name: str = "test") -> State:
    """Both networks as what `prepare` writes."""
    tensors = {f"scope.{k}": v for k, v in scope.state_dict().items()}
    tensors |= {f"speaker.{k}": v for k, v in speaker.state_dict().items()}
    sizes = {"scope": scope.settings, "speaker": speaker.settings}
    return State("test", {**sizes, "name": name}, tensors)


def test_a_route_to_deltas_and_to_a_small_model_is_saved_and_loaded(
    backbone: tiny.HfVlm,
    scope: ScopeNetwork,
    speaker: CounterfactualNetwork,
    ragged: list[Prompt],
    tmp_path: Path,
) -> None:
    """The networks stay in the state that the patch names."""
    state = stated(scope, speaker)
    store(state)
    for n, branch in enumerate((delta(0.2, 0.7), edited(speaker, 2, 3, state=state.digest()))):
        patch = route(backbone, scope, ragged[:2], branch)
        assert patch.scope.state is not None
        store(patch.scope.state)
        save(patch, tmp_path / str(n))
        loaded = load(tmp_path / str(n), backbone)
        assert torch.equal(logits(backbone, loaded, ragged), logits(backbone, patch, ragged))
        again = stacked(load(tmp_path / str(n), backbone), patch)
        assert isinstance(again, Route) and again.keys.shape[0] == 2, "the later ones replace"
    names = set(load(tmp_path / "1", backbone).pack()[1])
    assert names == {f"{SITE}/keys", "corrections/0/head/memory", "corrections/0/head/real"}


def test_a_route_without_a_mask_raises(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    patch = route(backbone, scope, ragged[:1], edited(speaker, 1, 3))
    batch = backbone.encode(ragged[:1])
    inputs = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
    with torch.no_grad(), backbone.applied(patch):
        backbone.model(**batch.inputs)
        with pytest.raises(MissingMask):
            backbone.model(**inputs)


def test_a_route_on_a_windowed_model(
    scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    """Where a continuation shifts the columns of its prompt, what was decided does not move."""
    backbone = tiny.shared("mistral")
    patch = route(backbone, scope, ragged[:2], edited(speaker, 2, 2))
    with backbone.applied(patch):
        together = backbone.generate(backbone.encode(ragged), [5, 2, 5, 4, 5])
        for prompt, said, cap in zip(ragged, together, [5, 2, 5, 4, 5], strict=True):
            assert backbone.generate(backbone.encode([prompt]), [cap])[0] == said


def test_an_edited_stream_is_no_business_of_the_route(
    backbone: tiny.HfVlm, scope: ScopeNetwork, speaker: CounterfactualNetwork, ragged: list[Prompt]
) -> None:
    """The route's own branch never reaches what the scope reads, in prefill or later."""
    patch = route(backbone, scope, ragged[:2], delta(3.0, 5.0))
    seen = []
    for live in (None, patch):
        watch = Recorder((SITE,))
        with backbone.applied(live, watch):
            backbone.logits(backbone.encode(ragged))
        seen.append(watch.x[SITE])
    assert torch.equal(seen[0], seen[1])


def test_a_route_whose_networks_are_not_here_says_so(
    backbone: tiny.HfVlm,
    scope: ScopeNetwork,
    speaker: CounterfactualNetwork,
    ragged: list[Prompt],
    tmp_path: Path,
) -> None:
    patch = route(backbone, scope, ragged[:1], delta(1.0), name="never kept")
    save(patch, tmp_path)
    assert patch.scope.state is not None
    with pytest.raises(MissingState, match=patch.scope.state.digest()[:16]):
        load(tmp_path, backbone)
