"""The latent memory against a block-by-block forward written out here, on every family.

The reference runs each block by hand: its own softmax attention over q, k and v (only the rotary
angles come from the model), retrieval and alpha as plain loops, then the mixture and the output
projection. It uses none of the patch's code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from errata.core.model.recorder import Recorder
from errata.core.types import Prompt
from errata.patches.latent import BlockMemory, Latent, LatentSettings, SharedMemory
from errata.patches.neurons import Neurons
from errata.patches.stack import Stack
from tests import tiny
from tests.latents import knowledge, latent

FAMILIES = sorted({**tiny.FAMILIES, **tiny.WINDOWED})
#: text models that place image tokens in more than one axis, or see them in both directions
TEXT_ONLY = ("qwen2.5", "qwen3", "gemma3")


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def mlp(h: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Two linear layers with the exact GELU between them."""
    z = weights["w0"] @ ((h - weights["mean"]) / weights["std"]) + weights["b0"]
    z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
    return weights["w1"] @ z + weights["b1"]


def rotated(x_THf: Tensor, cos_Tf: Tensor, sin_Tf: Tensor) -> Tensor:
    half = x_THf.shape[-1] // 2
    turned = torch.cat([-x_THf[..., half:], x_THf[..., :half]], -1)
    return x_THf * cos_Tf[:, None] + turned * sin_Tf[:, None]


class Reference:
    """Logits [T, V] of one unpadded row with a memory mixed in."""

    def __init__(self, bb: tiny.HfVlm, patch: Latent, lengths: int) -> None:
        self.bb, self.patch, self.last = bb, patch, lengths - 1
        self.alphas: dict[int, float] = {}

    def angles(self, batch: Any) -> list[Any]:
        """The rotary angles that the model hands to each block; they do not depend on states."""
        seen: list[Any] = []
        hooks = [
            b.register_forward_pre_hook(
                lambda _m, _a, k: seen.append(k.get("position_embeddings")), with_kwargs=True
            )
            for b in self.bb.blocks
        ]
        watch = Recorder(["text.0.in"])
        with self.bb.applied(watch):
            self.bb.logits(batch)
        for hook in hooks:
            hook.remove()
        self.start = watch.x["text.0.in"][0]
        return seen

    def heads_of(self, attn: Any, n_Td: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, H, f], k and v [T, G, f] before rotation."""
        f = attn.head_dim
        q, k, v = (p(n_Td).unflatten(-1, (-1, f)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        return q, k, v

    def retrieved(self, layer: int, h_d: Tensor) -> Tensor:
        """[K, d] h_pos of the entries nearest to the state of the last prompt token."""
        shared = self.patch.blocks[layer]
        own_sem, own_pos = self.patch.own(layer)
        sem = [*own_sem, *shared.sem]
        pos = [*own_pos, *shared.pos]
        near = [cosine(s - shared.centre, h_d - shared.centre) for s in sem]
        order = sorted(range(len(sem)), key=lambda i: -near[i])[: self.patch.options.top]
        order = [i for i in order if near[i] >= self.patch.options.cutoff]
        self.near = [near[i] for i in order]
        return torch.stack([pos[i] for i in order]) if order else torch.empty(0, len(h_d))

    def mixed(self, layer: int, h_Td: Tensor, q_THf: Tensor, known: Any, out_Tn: Tensor) -> Tensor:
        options, scale = self.patch.options, self.bb.heads(layer).scale
        pos = self.retrieved(layer, h_Td[self.last])
        if not len(pos):
            return out_Tn
        _, keys, values = known(pos)
        groups = q_THf.shape[1] // keys.shape[1]
        know, weights = [], []
        for t in range(len(h_Td)):
            of_heads = []
            for j in range(q_THf.shape[1]):
                score = keys[:, j // groups] @ q_THf[t, j] * scale
                if options.attention == "cosine":
                    score = torch.tensor(self.near) / options.temperature
                w = torch.exp(score - score.max())
                of_heads.append(w / w.sum())
            weights.append(torch.stack(of_heads).mean(0))
            know.append(torch.cat([w @ values[:, j // groups] for j, w in enumerate(of_heads)]))
        shared = self.patch.blocks[layer]

        def similar(t: int) -> float:
            said = mlp(weights[t] @ pos, dict(shared.encoder))
            return min(1.0, max(0.0, cosine(said, h_Td[t] - shared.centre)))

        alpha = [similar(self.last)] * len(h_Td)
        if options.alpha == "token":
            alpha[: self.last] = [similar(t) for t in range(self.last)]
        elif not isinstance(options.alpha, str):
            alpha = [options.alpha] * len(h_Td)
        self.alphas[layer] = alpha[self.last]
        share = torch.tensor(alpha)[:, None]
        return (1 - share) * out_Tn + share * torch.stack(know)

    def block(self, i: int, h_Td: Tensor, angles: Any) -> Tensor:
        block: Any = self.bb.blocks[i]
        attn, opt = block.self_attn, hasattr(block, "self_attn_layer_norm")
        norm = block.self_attn_layer_norm if opt else block.input_layernorm
        plain, k, v = self.heads_of(attn, norm(h_Td))
        q = plain
        if not opt:
            cos, sin = (a[0, 0] if a.dim() == 4 else a[0] for a in angles)
            q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        groups, t = q.shape[1] // k.shape[1], torch.arange(len(h_Td))
        seen = t[:, None] >= t[None]
        given = attn if hasattr(attn, "sliding_window") else getattr(attn, "config", None)
        window = getattr(given, "sliding_window", None)
        if window:
            seen &= t[:, None] - t[None] < window
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        score = torch.einsum("thf,shf->hts", q, k) * self.bb.heads(i).scale
        score = score.masked_fill(~seen, -torch.inf).softmax(-1)
        out = torch.einsum("hts,shf->thf", score, v).flatten(1)
        if i in self.patch.heads:
            out = self.mixed(i, h_Td, plain, lambda pos: self.heads_of(attn, norm(pos)), out)
        if opt:
            h_Td = h_Td + attn.out_proj(out)
            return h_Td + block.fc2(block.activation_fn(block.fc1(block.final_layer_norm(h_Td))))
        if hasattr(block, "pre_feedforward_layernorm"):
            h_Td = h_Td + block.post_attention_layernorm(attn.o_proj(out))
            inside = block.mlp(block.pre_feedforward_layernorm(h_Td))
            return h_Td + block.post_feedforward_layernorm(inside)
        h_Td = h_Td + attn.o_proj(out)
        return h_Td + block.mlp(block.post_attention_layernorm(h_Td))

    def logits(self, batch: Any) -> Tensor:
        angles = self.angles(batch)
        h_Td = self.start
        for i in range(self.bb.depth):
            h_Td = self.block(i, h_Td, angles[i])
        text: Any = self.bb.text
        norm = text.norm if hasattr(text, "norm") else text.final_layer_norm
        return self.bb.head(norm(h_Td))


def asked(family: str, pictures: list[str]) -> list[tuple[Prompt, str]]:
    images = [None] if family in TEXT_ONLY else [None, pictures[0]]
    return [(Prompt.of("What is the colour of the thing?", i), "green ring") for i in images]


def against_reference(bb: tiny.HfVlm, patch: Latent, prompt: Prompt, answer: str) -> Reference:
    """Compares the logits at the last prompt token and at every answer token."""
    batch = bb.encode([prompt], [answer])
    assert len(batch.targets[0]) >= 2
    with torch.no_grad():
        reference = Reference(bb, patch, int(batch.lengths[0]))
        wanted = reference.logits(batch)[int(batch.lengths[0]) - 1 :]
        with bb.applied(patch):
            found = bb.logits(batch)[0]
        plain = bb.logits(batch)[0]
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(found, plain, atol=1e-2), "the memory does nothing here"
    return reference


@pytest.mark.parametrize(
    "options", [{"alpha": 0.5}, {"alpha": "query"}, {"alpha": "token"}], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_forward_by_hand(
    family: str, options: dict[str, Any], pictures: list[str]
) -> None:
    bb = tiny.shared(family)
    patch = latent(bb, knowledge(bb), **options)
    for prompt, answer in asked(family, pictures):
        reference = against_reference(bb, patch, prompt, answer)
        assert max(reference.alphas.values()) > 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "cosine", "temperature": 0.3},
        {"cutoff": 0.05, "top": 8},
        {"top": 1, "alpha": 1.0},
        {"top": 5000},
        {"alpha": "query", "attention": "cosine"},
    ],
    ids=str,
)
def test_options_equal_the_forward_by_hand(options: dict[str, Any], pictures: list[str]) -> None:
    bb = tiny.shared("llava")
    for prompt, answer in asked("llava", pictures):
        against_reference(bb, latent(bb, knowledge(bb), **options), prompt, answer)


def test_a_cutoff_above_all_similarities_leaves_the_model_alone(ragged: list[Prompt]) -> None:
    bb = tiny.shared("llava")
    batch = bb.encode(ragged)
    clean = bb.logits(batch)
    for alpha in ("query", "token", 0.7):
        with bb.applied(latent(bb, knowledge(bb), cutoff=1.0, alpha=alpha)):
            assert torch.equal(bb.logits(batch), clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llava", "blip2"])
def test_alpha_zero_is_the_base_bit_for_bit(
    family: str, dtype: torch.dtype, ragged: list[Prompt]
) -> None:
    bb = tiny.FAMILIES[family]()
    bb.model.to(dtype)
    batch = bb.encode(ragged, ["green"] * len(ragged))
    clean, known = bb.logits(batch), knowledge(bb)
    with bb.applied(latent(bb, known, alpha=0.0)):
        assert torch.equal(bb.logits(batch), clean)
    with bb.applied(latent(bb, known, alpha=0.3)):
        assert not torch.equal(bb.logits(batch), clean)


def test_values_of_zero_equal_the_memory_alone(ragged: list[Prompt]) -> None:
    bb = tiny.shared("llava")
    rng = torch.Generator().manual_seed(0)
    part = {
        "key": torch.randn(32, 3, generator=rng),
        "key_bias": torch.randn(3, generator=rng),
        "up": torch.randn(32, 3, generator=rng),
        "up_bias": torch.randn(3, generator=rng),
        "value": torch.zeros(3, 32),
    }
    memory = latent(bb, knowledge(bb), alpha="query")
    neurons = Neurons({f"text.{i}.mlp": part for i in (1, 2, 3)}).requires_grad_(False)
    batch = bb.encode(ragged)
    with bb.applied(memory):
        alone = bb.logits(batch)
    with bb.applied(Stack([memory, neurons])):
        assert torch.equal(bb.logits(batch), alone)


def test_alpha_one_with_one_entry_replaces_the_attention_output(ragged: list[Prompt]) -> None:
    """One entry has weight 1, so h_know = v(LN(h_pos)) for each head, whatever the query."""
    bb = tiny.shared("llava")
    rng = torch.Generator().manual_seed(3)
    pos = torch.randn(1, 32, generator=rng)
    nothing = torch.empty(0, 32)
    zero = {"mean": torch.zeros(32), "std": torch.ones(32), "w0": torch.eye(32)}
    shared = BlockMemory(pos, pos, {**zero, "b0": torch.zeros(32)}, torch.zeros(32))
    patch = Latent(
        SharedMemory("one", {2: shared}),
        {2: bb.heads(2)},
        {2: (nothing, nothing)},
        LatentSettings(alpha=1.0),
    )
    watch = Recorder(["text.2.attn"])
    with torch.no_grad(), bb.applied(patch, watch):
        bb.logits(bb.encode(ragged))
    block: Any = bb.blocks[2]
    value_Gf = block.self_attn.v_proj(block.input_layernorm(pos)).reshape(2, 8)
    wanted = block.self_attn.o_proj(value_Gf[[0, 0, 1, 1]].reshape(32))
    seen = watch.y["text.2.attn"]
    torch.testing.assert_close(seen, wanted.expand_as(seen), atol=1e-5, rtol=1e-5)


def test_cosines_are_of_states_minus_the_centre_by_hand() -> None:
    """Centre (1, 1): entries (2, 1), (1, 3) become (1, 0), (0, 2); the query (0.6, 0.8)."""
    entries = BlockMemory(
        torch.tensor([[2.0, 1.0], [1.0, 3.0]]).half(),
        torch.zeros(2, 2),
        {},
        torch.tensor([1.0, 1.0]).half(),
    )
    assert entries.norms.tolist() == [1.0, 2.0]
    cosines = entries.cosines(torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(cosines, torch.tensor([[0.6, 0.8]]), atol=1e-6, rtol=0)
