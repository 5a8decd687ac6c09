"""`prepare`: train or collect the state of an editor, once, on the train split of a benchmark."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import say
from errata.cli.shared.workers import Ray, Workers, pooled, workers_of
from errata.core.errors import BadData, BadSpec
from errata.core.formats.counts import counted

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.measure.benchmark import BenchmarkSpec
    from errata.core.model.backbone import Backbone
    from errata.core.model.scope import Scope


@takes_model()
def prepare(
    model: ModelOptions,
    benchmark: Annotated[str, typer.Option(help="The train split is used: name[:task][@train].")],
    editor: Annotated[
        str | None, typer.Option("--editor", help="See `errata list editors`.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option("--scope", help="A scope instead: see `errata list scopes`.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: ERRATA_HOME/states/<hash>.")
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    root: options.Root = None,
    ray: Ray = None,
    workers: Workers = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a finished state that is in DIR already.")
    ] = False,
) -> None:
    """Train or collect the state of an editor, or of a scope, and write it to a folder.

    Repeat the same command to resume a killed training from its last checkpoint.

    --ray is for states that are collected from many prompts; a training runs in one process.
    """
    spec = training_spec(benchmark)
    elsewhere = workers_of(model, ray, workers)
    from errata.cli.shared.progress import reporting
    from errata.core import files, registry
    from errata.core.locks import locked
    from errata.core.state import PrepareContext, check_shareable
    from errata.io.states import check_home, check_out, home, link, store

    ed = _preparable(editor, scope, preset, settings)
    if elsewhere is not None:
        check_shareable(ed)
    if _writes():
        check_out(out, force=force) if out is not None else check_home()
    loaded = registry.load("benchmarks", spec.name)().load(spec, root=root, seed=seed)
    if not loaded.cases:
        raise BadData(f"{spec} has no cases to prepare on. Give another --benchmark.")
    bb = replace(model, device=model.device or _own_device()).load()
    ed = ed.for_backbone(bb)
    cases, start = loaded.cases[:limit], time.monotonic()
    workplace = out or _workplace(home(), ed, bb, spec, limit, seed)
    with locked(workplace) if _writes() else nullcontext():
        if out is not None and _writes():
            check_out(out, force=force)  # another command may have written it meanwhile
        with reporting(ed.name) as progress, ExitStack() as stack:
            pool = pooled(stack, elsewhere, bb)
            work = PrepareContext(workplace, progress if _writes() else None, pool)
            state = ed.prepare(bb, cases, seed=seed, work=work)
        if state is None:
            say(f"'{ed.name}' needs no preparation; nothing was written")
            return
        if not _writes():
            return
        digest = state.digest()
        if out is None:
            folder = store(state)
        else:
            folder = out
            state.save(folder)
            link(folder, digest)
        work.clear()
        seconds = round(time.monotonic() - start, 1)
        files.write_json(folder / "timing.json", {"seconds": seconds})
    if workplace != folder:
        with suppress(OSError):
            workplace.rmdir()
    say(f"state {digest[:16]} of {counted(len(cases), 'case')} written to {folder} in {seconds} s")


def _preparable(
    editor: str | None, scope: str | None, preset: str | None, settings: list[str] | None
) -> Editor | Scope:
    """What is prepared: an editor, or a scope. Raises BadSpec unless one of them is named."""
    if (editor is None) == (scope is None):
        raise BadSpec("name what is prepared: --editor NAME, or --scope NAME.")
    if editor is not None:
        return options.make_editor(editor, preset, settings)
    if preset is not None:
        raise BadSpec("scopes have no presets. Leave --preset out.")
    made = options.make_scope(scope, settings)
    assert made is not None
    if made.state_name:
        raise BadSpec(
            f"scope '{scope}' works from a state of the editor '{made.state_name}'. Prepare that: "
            f"--editor {made.state_name}."
        )
    return made


def _workplace(
    home: Path,
    editor: Editor | Scope,
    bb: Backbone,
    spec: BenchmarkSpec,
    limit: int | None,
    seed: int,
) -> Path:
    """Checkpoint folder of a training without --out: the same for the same command."""
    from errata.core.types import digest

    what = {
        "editor": editor.name, "settings": editor.summary["config"], "backbone": bb.fingerprint(),
        "benchmark": str(spec), "limit": limit or 0, "seed": seed,
    }  # fmt: skip
    return home / "training" / digest(what)[:16]


def _own_device() -> str | None:
    """The GPU of this process under `accelerate launch` on several GPUs; None elsewhere."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return None
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else None


def _writes() -> bool:
    """Whether this process writes the state and reports progress: only one of several does."""
    return os.environ.get("RANK", "0") == "0"


def training_spec(text: str) -> BenchmarkSpec:
    """The benchmark's train split. Raises BadSpec for eval: no editor may be prepared on it."""
    from errata.core.measure.benchmark import BenchmarkSpec

    spec = BenchmarkSpec.parse(text, split="train")
    if spec.split == "eval":
        raise BadSpec(f"'{text}' is the split that editors are measured on. Prepare on @train.")
    return spec
