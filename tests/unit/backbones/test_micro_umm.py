"""A model that draws: pictures, the path to them, and what patches do to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from errata.backbones._micro_umm import MicroUmm as Model
from errata.backbones._micro_umm import from_patches, to_patches
from errata.backbones.micro_umm import MicroUmmBackbone
from errata.core.errors import BadBackbone, BadSpec
from errata.core.hooks.context import HookContext
from errata.core.model.generation import image_generator
from errata.core.model.recorder import Recorder
from errata.core.patch import Patch
from errata.core.types import Prompt
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from tests import tiny

PROMPTS = [Prompt.of("the red ring"), Prompt.of("a blue thing of green shape"), Prompt.of("New")]
SEEDS = [3, 4]


@pytest.fixture
def bb() -> MicroUmmBackbone:
    found: MicroUmmBackbone = tiny.shared("micro_umm")
    return found


def delta(bb: MicroUmmBackbone, site: str, seed: int) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    into, out = bb.weight(site)
    return Delta({site: {"dense": torch.randn(out, into, generator=rng) * 0.3}}).requires_grad_(
        False
    )


def raw(bb: MicroUmmBackbone, prompts: list[Prompt], **options: Any) -> Tensor:
    return bb.drawn(bb.encode(prompts), SEEDS, **options)


class CallRecorder(Recorder):
    """Keeps all that each site takes and gives, with the time of the step."""

    def __init__(self, sites: Iterable[str]) -> None:
        super().__init__(sites)
        self.seen: list[tuple[str, float | None, Tensor, Tensor]] = []

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.seen.append((site, ctx.moment, x.clone(), y.clone()))
        return y


class Push(Delta):
    """Adds a constant behind a site; a shape of its own, so that rows run one by one."""

    def __init__(self, site: str, by: float) -> None:
        super().__init__({site: {}})
        self.by = by

    @classmethod
    def batch(cls, patches: Sequence[Patch]) -> None:
        return None

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        return y + self.by


def test_patches_of_a_picture_are_its_own_pixels() -> None:
    picture = torch.arange(2 * 8 * 8 * 3).float().reshape(2, 8, 8, 3)
    cut = to_patches(picture, 4)
    assert torch.equal(cut[1, 1], picture[1, :4, 4:].reshape(-1))  # the second patch of row one
    assert torch.equal(from_patches(cut, 4), picture)


def test_a_seed_decides_the_picture(bb: MicroUmmBackbone) -> None:
    once, twice = bb.draw(PROMPTS, SEEDS), bb.draw(PROMPTS, SEEDS)
    assert len(once) == 3 and len(once[0]) == 2 and once[0][0].size == (8, 8)
    assert once[0][0].mode == "RGB"
    for a, b in zip(once, twice, strict=True):
        assert [p.tobytes() for p in a] == [p.tobytes() for p in b]
    assert once[0][0].tobytes() != once[0][1].tobytes()
    assert once[0][0].tobytes() != once[1][0].tobytes()


def test_the_noise_is_the_same_for_every_prompt(bb: MicroUmmBackbone) -> None:
    recorder = CallRecorder(("draw.velocity",))
    with bb.applied(recorder):
        raw(bb, PROMPTS)
    first = recorder.seen[0][2]
    assert first.shape == (12, 4, 48)  # 3 prompts, 2 seeds, with and without the prompt
    for k in range(12):
        assert torch.equal(first[k], first[k % 2])
    assert not torch.equal(first[0], first[1])


def test_the_sampler_is_euler_with_guidance(bb: MicroUmmBackbone) -> None:
    """The same walk, written out with the classes alone."""
    batch = bb.encode(PROMPTS[:1])
    model, generator = bb.model, bb.model.generator
    with torch.no_grad():
        states = model.language_model.model(batch.ids, attention_mask=batch.mask)
        given = model.projector(states.last_hidden_state)
        x = torch.randn(4, 48, generator=torch.Generator().manual_seed(3))[None]
        for k in range(3):
            t = torch.tensor([k / 3])
            pulled = generator(x, t, given, batch.mask)
            free = generator(x, t, generator.null, torch.ones(1, 1))
            x = x + (free + bb.config.guidance * (pulled - free)) / 3
    torch.testing.assert_close(x, bb.drawn(batch, [3]), atol=1e-4, rtol=1e-4)


def test_every_stage_of_the_path_is_met(bb: MicroUmmBackbone) -> None:
    stages = bb.path()
    assert [s.name for s in stages] == ["tap", "projected", "blocks.0", "blocks.1", "velocity"]
    recorder = CallRecorder(s.site for s in stages)
    with bb.applied(recorder):
        raw(bb, PROMPTS)
    columns = bb.encode(PROMPTS).ids.shape[1]
    shapes = {
        "final_norm": (3, columns, 32),
        "bridge": (3, columns, 24),
        "draw.0.block": (12, 4, 24),
        "draw.1.block": (12, 4, 24),
        "draw.velocity": (12, 4, 48),
    }
    counts = dict.fromkeys(shapes, 0)
    for site, moment, _, y in recorder.seen:
        assert tuple(y.shape) == shapes[site], site
        assert (moment is None) == (not site.startswith("draw."))
        counts[site] += 1
    assert counts == {"final_norm": 1, "bridge": 1, **dict.fromkeys(list(shapes)[2:], 3)}
    moments = [m for s, m, _, _ in recorder.seen if s == "draw.velocity"]
    assert moments == pytest.approx([0, 1 / 3, 2 / 3])


def test_conditioning_is_what_the_generator_is_given(bb: MicroUmmBackbone) -> None:
    recorder, batch = CallRecorder(("bridge",)), bb.encode(PROMPTS)
    with bb.applied(recorder):
        bb.drawn(batch, [1])
    assert torch.equal(bb.conditioning(batch), recorder.seen[0][3])
    state = bb.enter(batch, 2)
    torch.testing.assert_close(bb.conditioning(state), bb.conditioning(batch), atol=1e-5, rtol=1e-5)


def test_conditioning_has_gradients(bb: MicroUmmBackbone) -> None:
    patch = delta(bb, "text.1.mlp.down", 1).requires_grad_(True)
    with torch.enable_grad(), bb.applied(patch):
        bb.conditioning(bb.encode(PROMPTS)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in patch.parameters())


@pytest.mark.parametrize("site", ["text.1.mlp.down", "text.3.attn.o", "bridge.up", "bridge.down"])
def test_an_edit_reaches_the_picture_and_leaves_no_trace(bb: MicroUmmBackbone, site: str) -> None:
    before = raw(bb, PROMPTS)
    with bb.applied(delta(bb, site, 5)):
        assert (raw(bb, PROMPTS) - before).abs().max() > 1e-3
    assert torch.equal(raw(bb, PROMPTS), before)


def test_an_edit_behind_the_tap_changes_no_picture(bb: MicroUmmBackbone) -> None:
    into, out = bb.weight("head")
    patch = Delta({"head": {"dense": torch.ones(out, into)}}).requires_grad_(False)
    before = raw(bb, PROMPTS)
    with bb.applied(patch):
        assert torch.equal(raw(bb, PROMPTS), before)
        assert not torch.equal(bb.logits(bb.encode(PROMPTS)), torch.zeros(()))


@pytest.mark.parametrize("site", ["text.2.mlp.down", "bridge.down"])
def test_rows_of_patches_equal_one_by_one(bb: MicroUmmBackbone, site: str) -> None:
    patches = [delta(bb, site, k) for k in range(3)]
    with bb.applied(Rows(patches)):
        together = raw(bb, PROMPTS)
        turned = raw(bb, PROMPTS, rows=torch.tensor([2, 0, 1]))
    for rows, found in (((0, 1, 2), together), ((2, 0, 1), turned)):
        for b, r in enumerate(rows):
            with bb.applied(patches[r]):
                alone = raw(bb, [PROMPTS[b]])
            torch.testing.assert_close(found[2 * b : 2 * b + 2], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, turned, atol=1e-3)


def test_rows_reach_the_generator_too(bb: MicroUmmBackbone) -> None:
    pushes = [Push("draw.0.block", by) for by in (0.0, 0.5, -1.0)]
    with bb.applied(Rows(pushes)):
        together = raw(bb, PROMPTS)
    for b, push in enumerate(pushes):
        with bb.applied(push):
            alone = raw(bb, [PROMPTS[b]])
        torch.testing.assert_close(together[2 * b : 2 * b + 2], alone, atol=1e-5, rtol=1e-5)


def test_a_saved_model_is_the_same_model(bb: MicroUmmBackbone, tmp_path: Path) -> None:
    bb.model.save_pretrained(tmp_path)
    bb.tokenizer.save_pretrained(tmp_path)
    again = MicroUmmBackbone.load(str(tmp_path))
    assert isinstance(again.model, Model)
    assert torch.equal(raw(again, PROMPTS), raw(bb, PROMPTS))
    assert again.fingerprint() == MicroUmmBackbone.load(str(tmp_path)).fingerprint()


def test_what_it_cannot_do_is_said_in_one_line(bb: MicroUmmBackbone, tmp_path: Path) -> None:
    with pytest.raises(BadBackbone, match="cannot load"):
        MicroUmmBackbone.load(str(tmp_path / "nothing"))
    with pytest.raises(BadSpec, match="style 'chat'"):
        MicroUmmBackbone.load("micro-umm", style="chat")
    with pytest.raises(BadSpec, match="writes rationales about one object"):
        bb.reasoning(Prompt.of("a photo of a horse"), "colour")
    with pytest.raises(BadBackbone, match="draws no pictures"):
        image_generator(tiny.shared("llava"))


def test_pictures_are_bytes_of_the_values(bb: MicroUmmBackbone) -> None:
    values = from_patches(raw(bb, PROMPTS[:1]), 4)[0].clamp(-1, 1)
    picture = np.asarray(bb.draw(PROMPTS[:1], SEEDS)[0][0])
    assert np.abs(picture - (values.numpy() + 1) * 127.5).max() <= 0.5 + 1e-4
