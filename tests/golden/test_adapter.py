"""The adapter's arithmetic against numbers made by hand and a plain loop, and its bank."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from errata.core.errors import BadPatch, MissingMask, MissingState
from errata.core.gate import gate_class
from errata.core.model.recorder import outputs_at
from errata.core.patch import Header, parts_of
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.io.patch_folder import load, save
from errata.io.states import store
from errata.networks.adapter import AdapterNetwork, AdapterSite, CrossAttention, Influence
from errata.networks.edit_bank import EditBank
from errata.patches.adapter import Adapter
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from errata.training.optimise import encode_edits
from tests import tiny

TEXT, IMAGE = "text.1.in", "text.2.in"
#: the gate at the lowest adapter, and above both
GATES = ("", "text.3.in", "text.3.block")


def identity(linear: torch.nn.Linear) -> None:
    torch.nn.init.eye_(linear.weight)
    torch.nn.init.zeros_(linear.bias)


def test_cross_attention_by_hand() -> None:
    """Width 2, one head, all maps the identity: LayerNorm of (a, b) is (+-1, -+1).

    x = (3, 1) is normed to (1, -1); E has (2, 0) -> (1, -1), (0, 4) -> (-1, 1) and a padded row.
    Scores are (2, -2) / sqrt 2, so the first gets p = sigmoid(4 / sqrt 2); out = (2p - 1) (1, -1).
    """
    net = CrossAttention(2, 2, 1, 0)
    for linear in (net.enter, net.query, net.key, net.value, net.leave):
        identity(linear)
    e = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [9.0, -9.0]]])
    k, v = net.memory(e, torch.tensor([0]))
    out = net(torch.tensor([[[3.0, 1.0]]]), k, v, torch.tensor([[True, True, False]]))
    p = 1 / (1 + math.exp(-4 / math.sqrt(2)))
    torch.testing.assert_close(out, torch.tensor([[[2 * p - 1, 1 - 2 * p]]]), atol=1e-4, rtol=1e-4)


def test_heads_attend_apart() -> None:
    """Two heads over halves of four channels equal two single heads over two channels each."""
    torch.manual_seed(0)
    net = CrossAttention(4, 4, 2, 0)
    for linear in (net.enter, net.query, net.key, net.value, net.leave):
        identity(linear)
    x, e = torch.randn(1, 3, 4), torch.randn(1, 5, 4)
    real = torch.ones(1, 5, dtype=torch.bool)
    out = net(x, *net.memory(e, torch.tensor([4])), real)
    q, k = net.norm_x(x), net.norm_e(e)
    for h in (slice(0, 2), slice(2, 4)):
        weights = (q[0, :, h] @ k[0, :, h].T / math.sqrt(2)).softmax(-1)
        torch.testing.assert_close(out[0, :, h], weights @ k[0, :, h])


def test_target_tokens_are_marked_in_order() -> None:
    """Last prompt token at column 1, two marks: columns 2 and 3 get one each, 4 the last again."""
    net = CrossAttention(2, 2, 1, 2)
    identity(net.value)
    net.mark.data = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    e = torch.tensor([[[1.0, -1.0]] * 5])
    v = net.memory(e, torch.tensor([1]))[1][0]
    wanted = [[1, -1], [1, -1], [11, -1], [1, 9], [1, 9]]
    torch.testing.assert_close(v, torch.tensor(wanted).float(), atol=1e-4, rtol=1e-4)


def test_influence_by_hand() -> None:
    """Width 2, one head, no hidden layer: logit = <LN(x), LN(p)> / sqrt 2 = +-2 / sqrt 2."""
    mapper = Influence(2, 3, 1)
    for side in ("token", "prompt"):
        torch.nn.init.zeros_(getattr(mapper, f"{side}_down").weight)
        torch.nn.init.zeros_(getattr(mapper, f"{side}_down").bias)
    logits = mapper(torch.tensor([[[5.0, 1.0], [0.0, 2.0]]]), torch.tensor([[1.0, 0.0]]))
    wanted = 2 / math.sqrt(2)
    torch.testing.assert_close(logits, torch.tensor([[wanted, -wanted]]), atol=1e-4, rtol=1e-4)


def test_the_mean_over_heads_is_one_scaled_product() -> None:
    mapper = Influence(4, 3, 2)
    x, p = torch.randn(1, 3, 4), torch.randn(1, 4)
    a, b = mapper._side("token", x)[0], mapper._side("prompt", p[:, None])[0, 0]
    heads = [(a[:, h] @ b[h]) / math.sqrt(2) for h in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(mapper(x, p)[0], (heads[0] + heads[1]) / 2)


def network(backbone: tiny.HfVlm, *places: AdapterSite, seed: int = 0) -> AdapterNetwork:
    torch.manual_seed(seed)
    net = AdapterNetwork(places, width=backbone.width, mid=16, heads=4)
    for attention in net.attention:
        torch.nn.init.normal_(attention.leave.weight, std=1.0)
    return net.requires_grad_(False)


def stated(net: AdapterNetwork) -> State:
    """The network as what `prepare` writes."""
    tensors = {k: v.clone() for k, v in net.state_dict().items()}
    return State("test", {"network": net.settings}, tensors)


def adapter(
    backbone: tiny.HfVlm,
    net: AdapterNetwork,
    edits: list[Edit],
    gate: str = "none",
    tau: float = 0.99,
    at: str = "",
) -> Adapter:
    """`at`: where the gate's keys are, the lowest adapter's site unless named."""
    site = at or min(p.site for p in net.places)
    how = gate_class(gate)(site, tau)
    batch, _ = encode_edits(backbone, [[e] for e in edits], eos=True)
    sites = [p.site for p in net.places]
    bank = EditBank.of(sites, how, batch, outputs_at(backbone, batch, [*sites, site]), eos=True)
    bank = EditBank(bank.states, bank.keys, bank.lengths, bank.ends, torch.zeros_like(bank.owner))
    header = Header(backbone=backbone.name, fingerprint=backbone.fingerprint())
    return Adapter(net, bank, how).requires_grad_(False).with_header(header, edits)


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def both(backbone: tiny.HfVlm) -> AdapterNetwork:
    return network(backbone, AdapterSite(TEXT, "text"), AdapterSite(IMAGE, "visual"))


def test_only_the_tokens_named_are_rewritten(
    backbone: tiny.HfVlm, ragged: list[Prompt], edits: list[Edit]
) -> None:
    """Not the begin token, not the last prompt token, not the answer, not padding."""
    batch = backbone.encode(ragged, ["green", "x", "red ring", "blue", "thing"])
    clean = outputs_at(backbone, batch, [TEXT])[TEXT]
    columns = torch.arange(batch.ids.shape[1])
    for tokens in ("visual", "text", "all"):
        patch = adapter(backbone, network(backbone, AdapterSite(TEXT, tokens)), edits[:1])
        with backbone.applied(patch):
            moved = (outputs_at(backbone, batch, [TEXT])[TEXT] != clean).any(-1)
        for b in range(batch.size):
            image = batch.vision[b]
            start = int(image.nonzero().max()) if bool(image.any()) else 0
            text = (columns > start) & (columns < batch.lengths[b] - 1)
            wanted = {"visual": image, "text": text, "all": text | image}[tokens]
            assert torch.equal(moved[b], wanted), (tokens, b)


def test_two_adapters_at_one_site_both_act(
    backbone: tiny.HfVlm, ragged: list[Prompt], edits: list[Edit]
) -> None:
    """On tokens of their own, so that each does what it does there alone."""
    batch = backbone.encode(ragged)
    both = network(backbone, AdapterSite(TEXT, "text"), AdapterSite(TEXT, "visual"))
    seen = {}
    for name, chosen in (("both", (0, 1)), ("text", (0,)), ("visual", (1,))):
        net = network(backbone, *(both.places[i] for i in chosen))
        for own, i in zip(net.attention, chosen, strict=True):
            own.load_state_dict(both.attention[i].state_dict())
        with backbone.applied(adapter(backbone, net, edits[:1])):
            seen[name] = outputs_at(backbone, batch, [TEXT])[TEXT]
    clean = outputs_at(backbone, batch, [TEXT])[TEXT]
    apart = clean + (seen["text"] - clean) + (seen["visual"] - clean)
    assert not torch.equal(seen["visual"], clean) and not torch.equal(seen["text"], clean)
    torch.testing.assert_close(seen["both"], apart)


@pytest.mark.parametrize("at", GATES)
def test_a_closed_gate_gives_the_base_bit_for_bit(
    backbone: tiny.HfVlm, both: AdapterNetwork, ragged: list[Prompt], edits: list[Edit], at: str
) -> None:
    """Row 0 is the edit's own question: the gate opens there, and nowhere else."""
    batch = backbone.encode(ragged)
    clean = backbone.logits(batch)
    with backbone.applied(adapter(backbone, both, edits[:1], "prompt", 0.9999, at)):
        edited = backbone.logits(batch)
    same = [torch.equal(a, b) for a, b in zip(edited, clean, strict=True)]
    assert same == [False, True, True, True, True]


@pytest.mark.parametrize("at", GATES)
def test_a_question_with_an_answer_decides_as_without(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit], at: str
) -> None:
    """The gate opens on the edit's question whatever answer follows; the leaking one does not."""
    for gate, wanted in (("prompt", [True, True, True]), ("leaky", [False, True, False])):
        patch = adapter(backbone, both, edits[:1], gate, 0.9999, at)
        target = edits[0].target
        opened = []
        for answer in (None, target, "blue ring"):
            given = [answer] if answer else None
            with (
                backbone.applied(patch),
                backbone.ask(backbone.encode([edits[0].prompt], given)) as q,
            ):
                opened.append(bool(q.ctx.memo[id(patch), patch.gate.site][1][0]))  # type: ignore[attr-defined]
        assert opened == wanted, gate


def test_a_bank_routes_to_the_nearest_edit(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit]
) -> None:
    """Each edit's question is answered as by that edit alone; equal questions by the latest."""
    prompts = [e.prompt for e in edits]
    bank = adapter(backbone, both, edits)
    one = [adapter(backbone, both, [e]) for e in edits]
    joined = stacked(*one[:4])
    assert isinstance(joined, Adapter) and joined.edits == tuple(edits)
    assert joined.network is both
    for patch in (bank, joined):
        for prompt, alone in zip(prompts, one, strict=True):
            with backbone.applied(patch):
                together = backbone.logits(backbone.encode([prompt]))
            with backbone.applied(alone):
                torch.testing.assert_close(
                    together, backbone.logits(backbone.encode([prompt])), atol=1e-4, rtol=1e-4
                )
    again = Edit(edits[0].prompt, "blue", id="again")
    late = stacked(joined, adapter(backbone, both, [again]))
    batch = backbone.encode(prompts[:1])
    with backbone.applied(late):
        said = backbone.logits(batch)
    with backbone.applied(adapter(backbone, both, [again])):
        torch.testing.assert_close(said, backbone.logits(batch), atol=1e-4, rtol=1e-4)


def test_adapters_of_two_networks_or_gates_stay_apart(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit]
) -> None:
    one = adapter(backbone, both, edits[:1])
    foreign = network(backbone, AdapterSite(TEXT, "text"), AdapterSite(IMAGE, "visual"), seed=1)
    for other in (adapter(backbone, foreign, edits[1:2]),
                  adapter(backbone, both, edits[1:2], "prompt")):  # fmt: skip
        assert parts_of(stacked(one, other)) == [one, other]
        assert Adapter.batch([one, other]) is None
    same = [AdapterNetwork.of(stated(both)) for _ in range(2)]
    assert same[0] is not same[1]
    first, second = (adapter(backbone, net, edits[i : i + 1]) for i, net in enumerate(same))
    assert isinstance(stacked(first, second), Adapter)


@pytest.mark.parametrize("at", GATES)
@pytest.mark.parametrize("gate", ["none", "prompt"])
def test_rows_of_banks_equal_each_bank_alone(
    backbone: tiny.HfVlm,
    both: AdapterNetwork,
    ragged: list[Prompt],
    edits: list[Edit],
    gate: str,
    at: str,
) -> None:
    """Banks of different sizes; fused, and one by one beside another shape."""
    banks = [
        adapter(backbone, both, edits[:3], gate, 0.5, at),
        adapter(backbone, both, edits[3:], gate, 0.5, at),
    ]
    low = Delta({"text.2.attn.q": {"A": torch.randn(2, 32), "B": torch.randn(32, 2)}})
    low.requires_grad_(False)
    prompts = [*ragged, *ragged, edits[0].prompt, edits[3].prompt]
    rows = [0] * 5 + [1] * 5 + [0, 1]
    for patches in (banks, [banks[0], Stack([banks[1], low])]):
        rowed = Rows(patches)
        assert (rowed.layers is not None) == (patches is banks)
        with backbone.applied(rowed):
            batch = backbone.encode(prompts, rows=rows)
            together = backbone.logits(batch, rows=torch.tensor(rows))
            said = backbone.generate(batch, [5] * len(rows), rows=torch.tensor(rows))
        for b, (prompt, r) in enumerate(zip(prompts, rows, strict=True)):
            with backbone.applied(patches[r]):
                one = backbone.encode([prompt])
                torch.testing.assert_close(
                    together[b], backbone.logits(one)[0], atol=2e-4, rtol=2e-4
                )
                assert backbone.generate(one, [5])[0] == said[b]


@pytest.mark.parametrize("at", GATES)
def test_decoding_with_a_cache_equals_decoding_without(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit], at: str
) -> None:
    prompt = edits[0].prompt
    with backbone.applied(adapter(backbone, both, edits[:2], "prompt", 0.5, at)):
        said = backbone.generate(backbone.encode([prompt]), [6])[0].ids
        ids: list[int] = []
        for _ in said:
            text = backbone.decode(ids)
            batch = backbone.encode([prompt], [text] if ids else None)
            if ids and batch.targets[0] != tuple(ids):
                break  # these ids are no text of their own, so they cannot be put again
            ids.append(int(backbone.logits(batch)[0, len(ids)].argmax()))
    assert ids and tuple(ids) == said[: len(ids)]


@pytest.mark.parametrize("at", ["text.2.in", *GATES[1:]])
def test_a_gate_further_up_decides_from_the_unedited_stream(
    backbone: tiny.HfVlm, both: AdapterNetwork, ragged: list[Prompt], edits: list[Edit], at: str
) -> None:
    """By hand: cosines of last prompt tokens in a forward without any patch. What lives beside the
    adapter is seen, and a state entered anywhere gives the same.
    """
    patch = adapter(backbone, both, edits[:1], "prompt", 0.0, at)
    batch = backbone.encode(ragged)
    rows = torch.arange(batch.size)
    beside = Delta({"text.1.mlp.down": {"A": torch.randn(2, 64), "B": torch.randn(32, 2) / 4}})
    for other in (None, beside.requires_grad_(False)):
        with backbone.applied(other):
            state = outputs_at(backbone, batch, [at])[at][rows, batch.lengths - 1]
        near = torch.cosine_similarity(state, patch.keys, dim=-1)
        patch.gate = gate_class("prompt")(at, float(near.sort().values[2:4].mean()))
        with backbone.applied(other, patch):
            with backbone.ask(batch) as q:
                assert torch.equal(q.ctx.memo[id(patch), at][1], near >= patch.gate.threshold)  # type: ignore[attr-defined]
            whole = backbone.logits(batch)
            for layer in range(-1, backbone.depth):
                entered = backbone.enter(batch, layer)
                torch.testing.assert_close(backbone.logits(entered), whole, atol=1e-4, rtol=1e-4)
        with backbone.applied(other):
            below = backbone.enter(batch, 1)
        if other is None:
            with backbone.applied(patch):
                torch.testing.assert_close(backbone.logits(below), whole, atol=1e-4, rtol=1e-4)


def test_a_raw_call_leaves_no_room_for_a_gate_further_up(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit]
) -> None:
    patch = adapter(backbone, both, edits[:1], "prompt", 0.5, "text.3.in")
    batch = backbone.encode([edits[0].prompt])
    with (
        torch.no_grad(),
        backbone.applied(patch),
        pytest.raises(BadPatch, match=r"backbone\.ask"),
    ):
        backbone.model(**batch.inputs)


def test_a_raw_call_knows_the_image_tokens_from_the_ids_alone(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit]
) -> None:
    batch = backbone.encode([edits[0].prompt])
    embeddings = backbone.hooks.call("embed", batch.ids)
    with torch.no_grad(), backbone.applied(adapter(backbone, both, edits[:1])):
        raw = backbone.model(**batch.inputs).logits[:, -1:].float()
        torch.testing.assert_close(raw, backbone.logits(batch), atol=1e-4, rtol=1e-4)
        with pytest.raises(MissingMask, match=r"image tokens.*backbone\.ask"):
            backbone.model(inputs_embeds=embeddings, attention_mask=batch.mask)


def test_a_saved_adapter_is_loaded_bit_for_bit(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit], tmp_path: Path
) -> None:
    state = stated(both)
    patch = adapter(backbone, AdapterNetwork.of(state), edits, "prompt", 0.25)
    save(patch, tmp_path / "p")
    with pytest.raises(MissingState, match=state.digest()[:16]):
        load(tmp_path / "p", backbone)
    store(state)
    loaded = load(tmp_path / "p", backbone)
    assert isinstance(loaded, Adapter) and loaded.form() == patch.form()
    batch = backbone.encode([e.prompt for e in edits])
    with backbone.applied(patch):
        one = backbone.logits(batch)
    with backbone.applied(loaded):
        assert torch.equal(backbone.logits(batch), one)
    assert stacked(loaded, patch).network is loaded.network  # type: ignore[attr-defined]


def test_patches_share_one_copy_of_the_network(
    backbone: tiny.HfVlm, both: AdapterNetwork, edits: list[Edit]
) -> None:
    state = stated(both)
    net = AdapterNetwork.of(state)
    assert net is AdapterNetwork.of(state)
    name = "attention.0.enter.weight"
    assert net.state_dict()[name].data_ptr() == state.tensors[name].data_ptr()
    patches = [adapter(backbone, net, [e]) for e in edits]
    rowed = Adapter.batch(patches)
    assert rowed is not None and rowed.network is net
    assert not any("attention" in name for name in patches[0].pack()[1])
