"""A run from start to end: plan the cases, prepare the editor, run the units, score.

`run_folder` writes the files and resumes a killed run; `runner` edits and asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errata.core import files, registry
from errata.core.editor import Editor
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.protocol import Protocol, Unit
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.evaluation import judging, score
from errata.evaluation.pictures import SEEDS, PictureStore
from errata.evaluation.plan import make_plan, plan_json, protocol_of, select
from errata.evaluation.run_folder import RunWriter
from errata.evaluation.runner import LaneState, Runner
from errata.io import patch_folder, states

ROWS = 16
Progress = Callable[[str, int, int], None]


def bench(
    backbone: Backbone,
    editor: Editor,
    benchmark: str,
    protocol: str,
    out: files.FilePath,
    *,
    seed: int = 0,
    limit: int | None = None,
    rows: int = ROWS,
    root: files.FilePath | None = None,
    state: State | None = None,
    legacy: bool = False,
    metrics: Sequence[str] | None = None,
    keep_patches: bool = False,
    image_seeds: int = SEEDS,
    command: str = "",
    progress: Progress | None = None,
) -> Path:
    """Runs `editor` on `benchmark` under `protocol` into the folder `out`, and scores the run.

    An unfinished run in `out` is resumed. image_seeds: images per prompt (protocols that draw).
    """
    out, root = Path(out), None if root is None else Path(root)
    spec, order = BenchmarkSpec.parse(benchmark), protocol_of(protocol)
    editor = editor.for_backbone(backbone)

    started = time.perf_counter()
    selection = select(
        backbone, spec, seed=seed, limit=limit, root=root, draws=order.draws, legacy=legacy,
        progress=progress,
    )  # fmt: skip
    plan = make_plan(selection, spec, order, rows=rows, seed=seed)
    before_seconds = time.perf_counter() - started

    options = {
        "seed": seed, "limit": limit, "rows": rows, "legacy": legacy, "data_sha256": plan.data,
        **({"image_seeds": image_seeds} if order.draws else {}),
    }  # fmt: skip
    writer = RunWriter(out)
    writer.start(
        {
            **_settings(backbone, editor, spec, order, state),
            "fingerprint": _fingerprint(backbone, out),
            **options,
        },
        plan_json(plan),
        selection.before,
        command,
        editor.Config,
    )
    finished = writer.resume([unit.id for unit in plan.units])

    started = time.perf_counter()
    if state is None and finished < len(plan.units):
        state = prepared(backbone, editor, spec, seed=seed, root=root)
    prepare_seconds = time.perf_counter() - started

    runner = Runner(
        backbone,
        editor,
        state,
        order,
        plan.panel,
        {(a.case, a.probe): a for a in selection.before},
        seed=seed,
        legacy=legacy,
        store=PictureStore(out, range(image_seeds)) if order.draws else None,
    )
    for number, unit in enumerate(plan.units[finished:], finished):
        _report(progress, number, len(plan.units))
        answers, timing, lanes = runner.run(unit)
        if keep_patches:
            _save_patches(out, unit, lanes)
        writer.add(unit.id, answers, timing)
    _report(progress, len(plan.units), len(plan.units))
    writer.write_timing(before_seconds, prepare_seconds)

    judge = judging.own_judge(spec, {case.task for case in plan.cases}) if order.draws else ""
    if judge:
        judging.judge_run(out, registry.load("judges", judge)(), progress=progress)
    score.score_run(out, list(metrics) if metrics else None)
    return out


def prepared(
    backbone: Backbone, editor: Editor, spec: BenchmarkSpec, *, seed: int, root: Path | None
) -> State | None:
    """The editor's state: None if it uses none, the shipped one if it must be trained.

    A state that is cheap to collect is collected from the train split of the same benchmark.
    """
    if not editor.uses_state:
        return None
    if editor.needs_state:
        return editor.shipped_state(backbone)
    train = BenchmarkSpec(spec.name, spec.tasks, "train", spec.variant)
    loaded = registry.load("benchmarks", spec.name)().load(train, root=root, seed=seed)
    return states.prepare_cached(editor, backbone, loaded.cases, seed=seed)


def _settings(
    backbone: Backbone,
    editor: Editor,
    spec: BenchmarkSpec,
    protocol: Protocol,
    state: State | None,
) -> dict[str, Any]:
    """The part of the manifest that must be equal for a run to be resumed."""
    summary = editor.summary
    return {
        "schema": 1,
        "backbone": backbone.name,
        "revision": backbone.revision,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "style": backbone.style,
        "editor": editor.name,
        "preset": summary["preset"],
        "arguments": summary["passed"],
        "config": summary["config"],
        "state": state.digest() if state is not None else "",
        "benchmark": str(spec),
        "protocol": protocol.spec,
        "versions": files.versions(),
    }


def _fingerprint(backbone: Backbone, out: Path) -> str:
    """The model's fingerprint; of a run that an older errata began, the one that it has."""
    manifest = out / "manifest.json"
    begun = files.read_json(manifest) if manifest.exists() else None
    given = begun.get("fingerprint") if isinstance(begun, dict) else None
    if isinstance(given, str) and backbone.identified_by(given):
        return given
    return backbone.fingerprint()


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress("editing and asking", done, total)


def _save_patches(out: Path, unit: Unit, lanes: Sequence[LaneState]) -> None:
    for lane, result in zip(unit.lanes, lanes, strict=True):
        if result.patch is not None:
            patch_folder.save(result.patch, out / "patches" / lane.id)
