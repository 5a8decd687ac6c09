"""KE against its formula written out densely, and its constraint by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from errata.algorithms.gradient_factors import Factors, delta_of
from errata.core.types import Case, Edit, Prompt
from errata.editors.ke import Ke, KeNetwork, KeTrainee, tokens
from tests import tiny

SMALL = {"layers": (2, 3), "hidden": 4, "condition": 6, "width": 5, "scale": 3.0}


@pytest.fixture(scope="module")
def network() -> KeNetwork:
    return Ke(**SMALL).network(tiny.shared("llava"), 0)


def gradient(network: KeNetwork, used: int = 3) -> dict[str, Factors]:
    rng = torch.Generator().manual_seed(2)
    return {
        s: Factors(torch.randn(2, 5, n, generator=rng), torch.randn(2, 5, o, generator=rng),
                   torch.arange(5).expand(2, 5) < used)
        for s, (n, o) in network.shapes.items()
    }  # fmt: skip


def test_the_low_rank_is_the_masked_gradient(network: KeNetwork) -> None:
    """dW = scale sigmoid(eta) (G * softmax(a_out) a_in^T + softmax(b_out) b_in^T), densely."""
    bb = tiny.shared("llava")
    ids, lengths = tokens(bb, ["ring >> red || Which thing?", "a >> b || c"], 32)
    grads = gradient(network)
    with torch.no_grad():
        update, c = network(grads, ids, lengths), network.read(ids, lengths)
    for (site, (n, o)), head in zip(network.shapes.items(), network.heads, strict=True):
        dense = torch.zeros(o, n)
        for b in range(2):
            out = head(c[b]).detach()
            a_in, b_in, a_out, b_out = (
                out[:n],
                out[n : 2 * n],
                out[2 * n : -1][:o],
                out[-1 - o : -1],
            )
            G = sum(torch.outer(grads[site].d[b, t], grads[site].x[b, t]) for t in range(3))
            masked = G * torch.outer(a_out.softmax(0), a_in)
            dense += 3.0 * torch.sigmoid(out[-1]) * (masked + torch.outer(b_out.softmax(0), b_in))
        part = delta_of(update, [0, 1]).part(site)
        assert part["A"].shape == (8, n)  # three tokens and one rank of its own, two edits
        assert torch.allclose(part["B"] @ part["A"], dense, atol=1e-5)


def test_padding_of_the_text_is_not_read(network: KeNetwork) -> None:
    bb = tiny.shared("llava")
    texts = ["a >> b || c", "ring >> red || Which thing is it, and of what colour?"]
    together = network.read(*tokens(bb, texts, 64))
    for i, text in enumerate(texts):
        assert torch.allclose(network.read(*tokens(bb, [text], 64))[0], together[i], atol=1e-6)
    cut = network.read(*tokens(bb, texts, 4))
    assert not torch.allclose(cut[1], together[1], atol=1e-4)


def test_the_old_answer_is_the_models_own(edits: Sequence[Edit]) -> None:
    bb = tiny.shared("llava")
    edit = Edit(Prompt.of("Which ring?"), " red", old="blue")
    batch = bb.encode([edit.prompt])
    own = bb.decode(bb.generate(batch, [16])[0].ids)
    assert Ke()._conditions(bb, [edit], [0]) == [f"{own} >> red || Which ring?"]
    assert Ke(belief="given")._conditions(bb, [edit], [0]) == ["blue >> red || Which ring?"]
    assert Ke(belief="given")._conditions(bb, [edits[0]], [0])[0].startswith(" >> green ||")


def test_the_multiplier_rises_above_the_margin_and_stops_at_zero(edits: Sequence[Edit]) -> None:
    """d/dm of m (KL - margin) = KL - margin, upwards; RMSprop's step does not change its sign."""
    bb = tiny.shared("llava")
    editor = Ke(**SMALL, margin=0.5, multiplier=0.05, lr_multiplier=0.5)
    trainee = editor.trainee(bb, [Case(e.id, e, ()) for e in edits], 0)
    assert isinstance(trainee, KeTrainee)
    optimiser, m = trainee.optimiser(), trainee.network.multiplier
    seen = []
    for kl in (2.0, *[0.1] * 20):
        seen.append(float(m.detach()))
        optimiser.zero_grad()
        (m[0] * (torch.tensor(kl) - trainee.network.margin[0])).backward()
        optimiser.step()
        trainee.stepped()
    assert seen[1] > seen[0]
    assert all(b < a or a == b == 0.0 for a, b in pairwise(seen[1:]))
    assert seen[-1] == 0.0


def test_the_margin_shrinks_once_edits_succeed(edits: Sequence[Edit]) -> None:
    bb = tiny.shared("llava")
    editor = Ke(**SMALL, margin=1.0, margin_end=0.7)
    trainee = editor.trainee(bb, [Case(e.id, e, ()) for e in edits], 0)
    assert isinstance(trainee, KeTrainee)
    seen = []
    for rel, gen in ((0.95, 0.5), (0.95, 0.95), (1.0, 1.0)):
        trainee.validated({"reliability_right": rel, "generality_right": gen})
        seen.append(round(float(trainee.network.margin), 3))
    assert seen == [1.0, 0.8, 0.7]
    means = {"reliability": 1.0, "generality": 2.0, "locality": 3.0, "constraint": 99.0}
    assert trainee.score(means) == 6.0
