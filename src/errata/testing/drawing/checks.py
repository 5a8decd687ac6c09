"""What must hold for every model that draws, whoever wrote its code.

Run over tiny models by the tests; each function raises AssertionError where it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errata.analyses.drift.trace import drawing_steps, trace_drawing
from errata.backbones._drawing.probe import WORDS
from errata.contract.editors import weights
from errata.core.errors import BadSpec
from errata.core.model.generation import ImageGenerator
from errata.core.patch import Header
from errata.core.types import Prompt
from errata.io.patch_folder import load, save
from errata.patches.delta import Delta
from errata.patches.rows import Rows

PROMPTS = ("a photo of the red ring", "Which shape is the blue thing")
SUBJECTS = ("red ring", "blue thing")
SEEDS = (0, 1)


def prompts() -> list[Prompt]:
    return [Prompt.of(p) for p in PROMPTS]


def shift(bb: ImageGenerator, block: int, seed: int = 0) -> Delta:
    """A random change of the down projection of a block."""
    site = f"text.{block}.mlp.down"
    n, o = bb.weight(site)
    rng = torch.Generator().manual_seed(seed)
    part = {"A": torch.randn(2, n, generator=rng), "B": torch.randn(o, 2, generator=rng)}
    patch = Delta({site: part}).requires_grad_(False)
    return bb.place(patch.with_header(Header(backbone=bb.name, fingerprint=bb.fingerprint()), ()))


def equal(a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> bool:
    return [[p.tobytes() for p in row] for row in a] == [[p.tobytes() for p in row] for row in b]


def near(a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]], most: int = 2) -> bool:
    """Equal up to `most` of 255 steps of a pixel: in a batch, sums are rounded otherwise."""
    pairs = [
        (p, q) for row, other in zip(a, b, strict=True) for p, q in zip(row, other, strict=True)
    ]
    return all(
        int(np.abs(np.asarray(p).astype(int) - np.asarray(q)).max()) <= most for p, q in pairs
    )


def holds_seeds(bb: ImageGenerator, folder: Path) -> None:
    """The same prompt and seed give the same picture, others another one."""
    drawn = bb.draw(prompts(), SEEDS)
    assert equal(drawn, bb.draw(prompts(), SEEDS)), "drawn again: another picture"
    different = {p.tobytes() for row in drawn for p in row}
    assert len(different) == len(PROMPTS) * len(SEEDS), "two prompts or seeds give one picture"
    assert all(p.mode == "RGB" for row in drawn for p in row)


def alike() -> list[Prompt]:
    """Prompts of one length, which one call may draw."""
    return [Prompt.of(words) for words in WORDS]


def holds_batches(bb: ImageGenerator, folder: Path) -> None:
    """A picture does not depend on what else is drawn, up to the rounding of a pixel."""
    together = bb.draw(given := [*prompts()[:1], *alike()], SEEDS)
    for b, prompt in enumerate(given):
        for s, seed in enumerate(SEEDS):
            ((alone,),) = bb.draw([prompt], [seed])
            assert near([[alone]], [[together[b][s]]]), f"{prompt.text!r}, seed {seed}"


def holds_rows(bb: ImageGenerator, folder: Path) -> None:
    """Each prompt is drawn with the patch of its row."""
    patches = [shift(bb, 0), shift(bb, 0, seed=1)]
    one_each = []
    for prompt, patch in zip(alike(), patches, strict=True):
        with bb.applied(patch):
            one_each += bb.draw([prompt], SEEDS)
    with bb.applied(Rows(patches)):
        straight = bb.draw(alike(), SEEDS)
        assert near(straight, one_each), "with rows: other pictures"
        swapped = bb.draw(alike(), SEEDS, rows=torch.tensor([1, 0]))
        assert not equal(swapped[:1], straight[:1]), "rows have no effect"


def holds_reach(bb: ImageGenerator, folder: Path, reads: int) -> None:
    """A patch changes the picture if, and only if, its block is not above the one that is read.

    Saved, loaded and undone too; no weight is written.
    """
    before, fresh = weights(bb), bb.draw(prompts()[:1], SEEDS)
    for block in range(bb.depth):
        save(shift(bb, block), folder / str(block))
        with bb.applied(shift(bb, block)):
            drawn = bb.draw(prompts()[:1], SEEDS)
        assert equal(drawn, fresh) == (block > reads), f"a patch of block {block}, reads {reads}"
        with bb.applied(load(folder / str(block), bb)):
            assert equal(bb.draw(prompts()[:1], SEEDS), drawn), "saved and loaded: another picture"
    assert equal(bb.draw(prompts()[:1], SEEDS), fresh), "not undone"
    assert weights(bb) == before, "a weight was written"


def holds_refusal(bb: ImageGenerator, folder: Path, reads: int) -> None:
    """An edit above the block that is read is refused before it is made; below it is not."""
    for block in range(bb.depth):
        bb.layer(block)
        with bb.in_edit():
            try:
                bb.layer(block)
                refused = ""
            except BadSpec as e:
                refused = str(e)
        assert bool(refused) == (block > reads), f"block {block}: {refused!r}"
        if refused:
            assert "\n" not in refused and "cannot reach the picture" in refused
            assert f"block {reads}" in refused


def holds_twin(bb: ImageGenerator, folder: Path) -> None:
    """Two equal drawings are equal at every stage, an edited one differs at every stage."""
    seen = [_traced(bb), _traced(bb)]
    with bb.applied(shift(bb, 0)):
        edited = _traced(bb)
    names = [s.name for s in bb.path()]
    assert names[0] == "tap" and names[-1] in ("velocity", "logits"), names
    assert {*seen[0].text, *seen[0].steps} == set(names)
    for states in ("text", "steps"):
        one, two, other = (getattr(t, states) for t in (*seen, edited))
        for name in one:
            assert one[name].equal(two[name]), f"{name}: the same drawing twice differs"
            assert not one[name].equal(other[name]), f"{name}: an edit does not arrive"
    assert seen[0].pixels.equal(seen[1].pixels)


def _traced(bb: ImageGenerator) -> Any:
    keep = drawing_steps(bb, prompts()[0], 2)
    return trace_drawing(bb, prompts(), SUBJECTS, SEEDS, keep)[0]


def holds_columns(bb: ImageGenerator, folder: Path) -> None:
    """The columns of a subject are found in the conditioning, unless that is of queries alone."""
    mask, subject = bb.conditioning_columns(prompts(), SUBJECTS)
    assert bool(mask.any(1).all()) and not bool((subject & ~mask).any())
    found = subject.any(1)
    assert bool(found.all()) or not bool(found.any()), "one subject of two is found"
    assert bool((subject.sum(1) < mask.sum(1)).all()), "all columns are the subject's"


def holds_doctor(bb: ImageGenerator, folder: Path) -> None:
    """The logits are those of the model's own forward."""
    ours = bb.logits(bb.encode(prompts()[:1]))[0, 0]
    theirs = bb.model(**(bb.processed(prompts()[0]) or {})).logits[0, -1]
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4), "other logits than the model's own"
    assert "draw" in bb.capabilities
    assert {s.site for s in bb.path()} <= bb.hooks.sites.keys()
    assert all(path and path != "?" for path in bb.site_paths.values()), bb.site_paths


#: those that need only the model and a folder
CHECKS: tuple[Callable[[Any, Path], None], ...] = (
    holds_seeds, holds_batches, holds_rows, holds_twin, holds_columns, holds_doctor,
)  # fmt: skip
#: those that are also told the highest block that is read
REACH: tuple[Callable[[Any, Path, int], None], ...] = (holds_reach, holds_refusal)
