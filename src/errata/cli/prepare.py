"""`prepare`: what an editor learns once, from the training part of a benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import _shared as shared
from errata.core.errors import BadSpec

if TYPE_CHECKING:
    from errata.core.benchmark import BenchmarkSpec


def prepare(
    backbone: shared.BackboneName,
    editor: shared.EditorName,
    benchmark: Annotated[str, typer.Option(help="Its train part is used: name[:task][@train].")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: ERRATA_HOME/states/<hash>.")
    ] = None,
    preset: shared.Preset = None,
    settings: shared.Settings = None,
    seed: shared.Seed = 0,
    limit: shared.Limit = None,
    root: shared.Root = None,
    style: shared.Style = "raw",
    dtype: shared.Dtype = "auto",
    device: shared.Device = None,
    device_map: shared.DeviceMap = None,
    revision: shared.Revision = None,
    trust_remote_code: shared.Trust = False,
) -> None:
    """Train or collect an editor's state and write it to a folder."""
    spec = training_spec(benchmark)
    from errata.core import registry
    from errata.core.states import keep, link

    loaded = registry.load("benchmarks", spec.name)().load(spec, root=root, seed=seed)
    ed = shared.make_editor(editor, preset, settings)
    bb = shared.open_backbone(
        backbone, style=style, dtype=dtype, device=device, device_map=device_map,
        revision=revision, trust=trust_remote_code,
    )  # fmt: skip
    ed = ed.for_backbone(bb)
    state = ed.prepare(bb, loaded.cases[:limit], seed=seed)
    if state is None:
        print(f"editor '{editor}' needs no preparation; nothing was written")
        return
    digest = state.digest()
    if out is None:
        folder = keep(state)
    else:
        folder = out
        state.save(folder)
        link(folder, digest)
    print(f"state {digest[:16]} of {len(loaded.cases[:limit])} cases written to {folder}")


def training_spec(text: str) -> BenchmarkSpec:
    """The benchmark's train part. Raises BadSpec for eval: an editor must not see it."""
    from errata.core.benchmark import BenchmarkSpec

    spec = BenchmarkSpec.parse(text)
    if "@" not in text:
        return replace(spec, split="train")
    if spec.split == "eval":
        raise BadSpec(f"'{text}' is the part that editors are measured on. Prepare on @train.")
    return spec
