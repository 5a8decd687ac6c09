"""Pictures of several shapes in one batch, and what a model inside a wrapper needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from errata.backbones import _tokens
from errata.core.errors import BadImage
from errata.core.types import Edit, Prompt
from errata.editors.ft_v import FtV
from errata.testing import tiny_models as tiny
from errata.testing.tiled_models import TILED

ALL: dict[str, Callable[[], Any]] = {**tiny.FAMILIES, **tiny.WINDOWED, **TILED}
SHAPES = ((56, 28), (56, 56), (28, 56), (28, 28), (56, 28))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    folder = tmp_path_factory.mktemp("shapes")
    for i, (width, height) in enumerate(SHAPES):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(folder / f"{i}.png")
    return [Prompt.of("Which" * (i % 2 + 1), str(folder / f"{i}.png")) for i in range(len(SHAPES))]


@pytest.mark.parametrize("family", ALL)
def test_a_batch_of_several_shapes_is_as_one_by_one(family: str, prompts: list[Prompt]) -> None:
    bb = ALL[family]()
    alone = torch.cat([bb.logits(bb.encode([p])) for p in prompts])
    for order in ([0, 1, 2, 3, 4], [3, 1, 0], [2, 2, 1]):
        together = bb.logits(bb.encode([prompts[i] for i in order]))
        torch.testing.assert_close(together, alone[order], atol=1e-3, rtol=1e-3)


def test_rows_at_a_vision_site_find_their_tiles(prompts: list[Prompt]) -> None:
    """Edits of the vision tower made in rows: each picture gets the patch of its own row."""
    bb = TILED["llava_next"]()
    edits = [Edit(p, "red") for p in prompts[:3]]
    editor = FtV(steps=2, lr=1e-2)
    rows = [r.patch for r in editor.edit_rows(bb, edits)]
    for edit, row in zip(edits, rows, strict=True):
        one = editor.edit(bb, [edit]).patch
        with bb.applied(one):
            want = bb.logits(bb.encode([edit.prompt]))
        with bb.applied(row):
            got = bb.logits(bb.encode([edit.prompt]))
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def test_sizes_that_nothing_tells_are_refused() -> None:
    def image(height: int, **more: torch.Tensor) -> _tokens.EncodedImage:
        pixels = {"pixel_values": torch.ones(1, 3, height, 4), **more}
        return _tokens.EncodedImage((3,), 1, pixels, ())

    with pytest.raises(BadImage, match="one at a time"):
        _tokens.joined([image(4), image(8)], "m")
    size = torch.tensor([[4, 4]])
    both = _tokens.joined([image(4, image_sizes=size), image(8, image_sizes=size * 2)], "m")
    assert both["pixel_values"].sum() == 3 * 4 * 12
    with pytest.raises(BadImage, match="different inputs"):
        _tokens.joined([image(4, image_sizes=size), image(4)], "m")


@pytest.mark.parametrize("family", {**tiny.FAMILIES, **tiny.WINDOWED})
@pytest.mark.parametrize("wrapper", ["peft", "forward replaced"])
def test_a_wrapped_model_is_given_what_it_needs(
    family: str, wrapper: str, prompts: list[Prompt], tmp_path: Path
) -> None:
    bb = ALL[family]()
    batch = bb.encode(prompts[:2])
    want, model = bb.logits(batch), bb.model
    if wrapper == "peft":
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=r".*\.q_proj")
        model = peft.get_peft_model(model, config).eval()
    else:
        inner = model.forward
        model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    other = type(bb)(model, bb.processor, name="wrapped")
    given = other.encode(prompts[:2])
    assert sorted(given.inputs) == sorted(batch.inputs)
    torch.testing.assert_close(other.logits(given), want, atol=1e-4, rtol=1e-4)
