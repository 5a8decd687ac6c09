"""Attribution of modules and image tokens, by hand and against the model run directly."""

from __future__ import annotations

import math

import pytest
import torch

from errata.analyses.attribution import (
    grid_of,
    module_attribution,
    module_scores,
    visual_attribution,
    windows,
)
from errata.core.errors import BadSpec
from errata.core.types import Prompt
from errata.finding.gradient import generator
from errata.finding.influence import noise_influence
from tests import tiny


def test_scores_by_hand() -> None:
    value = torch.tensor([[4.0, -1.0, 0.0]])
    chance = torch.tensor([[0.25, 0.64, 0.5]])
    wanted = [math.sqrt(0.25), -math.sqrt(0.25 * 0.64), 0.0]
    assert module_scores(value, chance)[0].tolist() == pytest.approx(wanted)


def outputs(
    backbone: tiny.HfVlm, prompt: Prompt
) -> tuple[dict[tuple[int, int], torch.Tensor], int]:
    """What every module says at the last token, and the token that the model says."""
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def keep(at: tuple[int, int], out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen[at] = (out[0] if isinstance(out, tuple) else out)[0, -1]

    handles = [
        module.register_forward_hook(lambda _, x, out, at=(i, m): keep(at, out))
        for i, block in enumerate(backbone.blocks)
        for m, module in enumerate((block.self_attn, block.mlp))
    ]
    with torch.no_grad():
        logits = backbone.model(**backbone.encode([prompt]).inputs).logits
    for handle in handles:
        handle.remove()
    return seen, int(logits[0, -1].argmax())


def test_modules_are_read_as_the_model_reads_its_stream(ragged: list[Prompt]) -> None:
    """Against hooks on the model's own modules, one question at a time."""
    backbone = tiny.shared("llava")
    found = module_attribution(backbone, ragged)
    assert found.shape == (len(ragged), backbone.depth, 2)
    norm, head = backbone.site("final_norm").first, backbone.site("head").first
    for p, prompt in enumerate(ragged):
        seen, token = outputs(backbone, prompt)
        with torch.no_grad():
            logits = {at: head(norm(x[None]))[0] for at, x in seen.items()}
        largest = max(abs(float(v[token])) for v in logits.values())
        for (i, m), v in logits.items():
            share, chance = float(v[token]) / largest, float(v.softmax(-1)[token])
            wanted = math.copysign(math.sqrt(abs(share) * chance), share)
            assert float(found[p, i, m]) == pytest.approx(wanted, abs=2e-4)


def test_windows_stop_at_the_border() -> None:
    found = windows((2, 3), 1)
    assert [w.tolist() for w in found] == [
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [1, 2, 4, 5],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [1, 2, 4, 5],
    ]
    assert [w.tolist() for w in windows((2, 2), 0)] == [[0], [1], [2], [3]]


def test_a_map_over_the_image(pictures: list[str]) -> None:
    backbone = tiny.shared("llava")
    prompt = Prompt.of("Which shape?", pictures[0])
    one = visual_attribution(backbone, prompt, [0, -1], radius=0, draws=2)
    assert one.shape == (2, 2, 2) and bool((one > 0).all())
    columns = backbone.encode([prompt]).vision[0].nonzero()
    wanted = noise_influence(
        backbone, backbone.encode([prompt] * 5), list(columns), layers=[0, 3], sigma=0.7, draws=2,
        rng=generator(0, "attribution", 0),
    )  # fmt: skip
    torch.testing.assert_close(one.flatten(1), torch.stack([wanted[0], wanted[3]]))
    again = visual_attribution(backbone, prompt, [0, -1], radius=0, draws=2)
    assert torch.equal(one, again)
    everything = visual_attribution(backbone, prompt, [0], radius=1, draws=20)
    assert float(everything.std() / everything.mean()) < 0.5  # every window is the whole picture


def test_what_cannot_be_mapped_is_refused(pictures: list[str]) -> None:
    backbone = tiny.shared("llava")
    with pytest.raises(BadSpec, match="one image"):
        visual_attribution(backbone, Prompt.of("Which?"), [0])
    with pytest.raises(BadSpec, match="does not fit 4"):
        visual_attribution(backbone, Prompt.of("Which?", pictures[0]), [0], grid=(2, 3))
    assert grid_of(576) == (24, 24)
    with pytest.raises(BadSpec, match="no square"):
        grid_of(32)
