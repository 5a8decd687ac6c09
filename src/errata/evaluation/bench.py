"""A run from start to end: plan the cases, prepare the editor, run the units, score.

`run_folder` writes the files and resumes a killed run; `runner` edits and asks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from errata.algorithms.scoped import ScopedEditor
from errata.core import files, registry
from errata.core.editor import Editor
from errata.core.errors import BadSpec
from errata.core.formats.run_files import read_stored_plan
from errata.core.formats.validation import path_of, whole_number
from errata.core.locks import locked
from errata.core.measure.benchmark import BenchmarkSpec, Loaded
from errata.core.measure.protocol import Protocol, Unit
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.model.memory import measured_peak
from errata.core.model.scope import Scope
from errata.core.state import State
from errata.core.types import Answer, Case, brief
from errata.evaluation import judging, score
from errata.evaluation.answers import drawing_settings
from errata.evaluation.distribute.ray_workers import RayWorkers
from errata.evaluation.distribute.shards import RunShard
from errata.evaluation.limits import earlier_limits
from errata.evaluation.pictures import SEEDS, PictureStore
from errata.evaluation.plan import make_plan, plan_json, protocol_of, select
from errata.evaluation.run_folder import Phase, RunWriter, UnitTiming, check_out
from errata.evaluation.runner import LaneState, Runner
from errata.evaluation.score_table import check_forced
from errata.io import patch_folder, states
from errata.io.images import split_uri

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
    forced: bool = False,
    metrics: Sequence[str] | None = None,
    keep_patches: bool = False,
    image_seeds: int = SEEDS,
    command: str = "",
    shard: str | None = None,
    workers: RayWorkers | None = None,
    progress: Progress | None = None,
) -> Path:
    """Runs `editor` on `benchmark` under `protocol` into the folder `out`, and scores the run.

    An unfinished run in `out` is resumed; one with a lower limit is continued with the further
    cases. shard: `i/n` runs every n-th unit only and scores nothing; `merge_shards` puts the shards
    together. workers: where the units run, on a Ray cluster. image_seeds: images per prompt
    (protocols that draw). legacy: the likeliest tokens are recorded, also where none of `metrics`
    reads them. forced: answers after an edit are not generated; metrics that read scores under
    teacher forcing alone are computed (`Metric.forced`). Raises BadRun or BadOutput for a folder
    that cannot hold the run, InUse while another process works in it.
    """
    out, root = _checked(backbone, editor, out, root)
    whole_number("seed", seed)
    for what, number in (("limit", limit), ("rows", rows), ("image_seeds", image_seeds)):
        if number is not None:
            whole_number(what, number, least=1)
    legacy = legacy or any(registry.load("metrics", name).reads_top for name in metrics or ())
    spec, order = BenchmarkSpec.parse(benchmark), protocol_of(protocol)
    if forced:
        check_forced([registry.load("metrics", name) for name in metrics or ()])
        if order.draws:
            raise BadSpec(
                f"protocol '{order.name}' draws from generated answers. Leave --forced out, or "
                "choose another protocol, such as one_step."
            )
    if workers is not None and order.draws:
        raise BadSpec(
            f"protocol '{order.name}' draws pictures into {out}, which workers of a cluster may "
            "not reach. Use --shard i/n and `errata merge` instead of --ray."
        )
    check_out(out)
    with locked(out):
        return _bench(
            backbone, editor.for_backbone(backbone), spec, order, out,
            seed=seed, limit=limit, rows=rows, root=root, state=state, legacy=legacy,
            forced=forced, metrics=metrics, keep_patches=keep_patches, image_seeds=image_seeds,
            command=command, shard=shard, workers=workers, progress=progress,
        )  # fmt: skip


def _bench(
    backbone: Backbone,
    editor: Editor,
    spec: BenchmarkSpec,
    order: Protocol,
    out: Path,
    *,
    seed: int,
    limit: int | None,
    rows: int,
    root: Path | None,
    state: State | None,
    legacy: bool,
    forced: bool,
    metrics: Sequence[str] | None,
    keep_patches: bool,
    image_seeds: int,
    command: str,
    shard: str | None,
    workers: RayWorkers | None,
    progress: Progress | None,
) -> Path:
    """The run itself; only one process at a time is in here with the same folder."""
    editor.check_fit(backbone, state)
    drawing = drawing_settings(backbone)
    settings = {
        **_settings(backbone, editor, spec, order, state),
        "fingerprint": _fingerprint(backbone, out),
        "seed": seed, "limit": limit, "rows": rows, "legacy": legacy,
        **({"forced": True} if forced else {}),
        **({"image_seeds": image_seeds} if order.draws else {}),
        **({"drawing": drawing[0]} if order.draws and drawing else {}),
    }  # fmt: skip
    part = RunShard() if shard is None else RunShard.parse(shard)
    if shard is not None:
        settings["shard"] = str(part)
    writer = RunWriter(out)
    writer.check(settings, editor.Config)
    with timed() as before:
        selection = select(
            backbone, spec, seed=seed, limit=limit, root=root, draws=order.draws, legacy=legacy,
            progress=progress,
        )  # fmt: skip
    earlier = earlier_limits(out, limit)
    plan = make_plan(selection, spec, order, rows=rows, seed=seed, earlier=earlier)
    writer.start(
        {**settings, "data_sha256": plan.data, **_files_read(spec, root)},
        plan_json(plan),
        selection.before,
        command,
        editor.Config,
        _root_of(plan.cases, root),
    )
    units = part.of(plan.units)
    finished = writer.resume([unit.id for unit in units])
    with timed() as preparation:
        if finished < len(units):
            if state is None:
                state = prepared(backbone, editor, spec, seed=seed, root=root)
            editor = in_scope(backbone, editor, spec, plan.cases, seed=seed, root=root)
    make = partial(
        Runner, editor=editor, state=state, protocol=order, panel=plan.panel,
        before={(a.case, a.probe): a for a in selection.before}, seed=seed, legacy=legacy,
        forced=forced, store=PictureStore(out, range(image_seeds)) if order.draws else None,
        keep_parts=keep_patches,
    )  # fmt: skip
    told, left = CaseProgress(progress, units, finished), units[finished:]
    if workers is None:
        results = _here(make(backbone), left, told)
    else:
        results = workers.run(make, left, backbone.fingerprint(), keep_patches)
    for unit, (answers, timing, lanes) in results:
        if keep_patches:
            _save_patches(out, unit, lanes)
        writer.add(unit.id, answers, timing)
        told.finish()
    writer.write_timing(before, preparation)
    if shard is None:
        finish_run(out, metrics, progress=progress)
    return out


def _here(
    runner: Runner, units: Sequence[Unit], told: CaseProgress
) -> Iterator[tuple[Unit, tuple[list[Answer], UnitTiming, list[LaneState]]]]:
    for unit in units:
        yield unit, runner.run(unit, told.within)
        if runner.store is not None:  # the unit is written now
            runner.store.finished()


def finish_run(
    run: Path, metrics: Sequence[str] | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Judges the pictures of a complete run, if its benchmark has a judge, and scores the run."""
    plan, cases = read_stored_plan(run)
    spec, tasks = BenchmarkSpec.parse(plan["benchmark"]), {case.task for case in cases.cases}
    drawn = protocol_of(plan["protocol"]).draws
    if drawn and (judge := judging.own_judge(spec, tasks)):
        judging.judge_run(run, registry.load("judges", judge)(), progress=progress)
    return score.score_run(run, list(metrics) if metrics else None)


def _checked(backbone: Any, editor: Any, out: Any, root: Any) -> tuple[Path, Path | None]:
    """The folders of a run and of the benchmark's files. Raises BadBackbone or BadSpec."""
    check_backbone(backbone)
    if not isinstance(editor, Editor):
        raise BadSpec(f"an editor is given as {brief(editor)}. Make one: errata.editor(NAME).")
    folder = path_of(out, "the folder of a run")
    return folder, None if root is None else path_of(root, "the root of a benchmark")


def _files_read(spec: BenchmarkSpec, root: Path | None) -> dict[str, Any]:
    """The user's files that the benchmark reads, for the manifest; {} for other benchmarks."""
    read = dict(registry.load("benchmarks", spec.name)().files(spec, root=root))
    return {"files": read} if read else {}


def prepared(
    backbone: Backbone, editor: Editor, spec: BenchmarkSpec, *, seed: int, root: Path | None
) -> State | None:
    """The editor's state: None if it uses none, the shipped one if it must be trained.

    A state that is cheap to collect is collected from the train split of the same benchmark, or,
    where that has no cases, of the benchmark that the bundled model was made for.
    """
    if not editor.uses_state:
        return None
    if editor.needs_state:
        return editor.shipped_state(backbone)
    return _collected(backbone, editor, spec, seed, root)


def _collected(
    backbone: Backbone, what: Editor | Scope, spec: BenchmarkSpec, seed: int, root: Path | None
) -> State | None:
    cases = _load(replace(spec, split="train"), root, seed)
    if not cases and (own := backbone.bundled.get(backbone.name)):
        cases = _load(BenchmarkSpec.parse(own, split="train"), None, seed)
    return states.prepare_cached(what, backbone, cases, seed=seed) if cases else None


def in_scope(
    backbone: Backbone, editor: Editor, spec: BenchmarkSpec, cases: Sequence[Case], *, seed: int,
    root: Path | None,
) -> Editor:  # fmt: skip
    """The editor, its scope with a state if it needs one that is cheap, and told of the cases."""
    if not isinstance(editor, ScopedEditor):
        return editor
    scope = editor.scope
    if scope.lacks_state:
        scope = scope.with_state(_collected(backbone, scope, spec, seed, root))
    return editor.with_scope(scope.told(cases))


def _load(spec: BenchmarkSpec, root: Path | None, seed: int) -> tuple[Case, ...]:
    loaded: Loaded = registry.load("benchmarks", spec.name)().load(spec, root=root, seed=seed)
    return loaded.cases


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


def _root_of(cases: Sequence[Case], root: Path | None) -> str:
    """The folder that all pictures in files lie below; "" where there are none."""
    prompts = [p for c in cases for p in (c.edit.prompt, *(probe.prompt for probe in c.probes))]
    local = {
        str(Path(image.uri).resolve().parent)
        for prompt in prompts
        for image in prompt.images
        if split_uri(image.uri)[0] is None
    }
    if root is not None and local:
        return str(root.resolve())
    return os.path.commonpath(local) if local else ""


@contextmanager
def timed() -> Iterator[Phase]:
    """The seconds and the peak memory of what runs inside, when it ends."""
    phase, started = Phase(), time.perf_counter()
    with measured_peak() as peak:
        yield phase
    phase.seconds, phase.peak_mb = time.perf_counter() - started, peak.mb


class CaseProgress:
    """Tells how many cases are edited and asked; a unit of several cases counts case by case."""

    def __init__(self, progress: Progress | None, units: Sequence[Unit], finished: int) -> None:
        self._progress = progress
        self._sizes = [sum(len(lane.cases) for lane in unit.lanes) for unit in units]
        self._finished = finished
        self.within(0.0)

    def within(self, share: float) -> None:
        """`share` of the present unit is done: as many of its cases, the last one when it ends."""
        size = self._sizes[self._finished] if self._finished < len(self._sizes) else 0
        self._tell(min(int(share * size), max(size - 1, 0)))

    def finish(self) -> None:
        """The present unit is done."""
        self._finished += 1
        self._tell(0)

    def _tell(self, cases: int) -> None:
        if self._progress is not None:
            done = sum(self._sizes[: self._finished]) + cases
            self._progress("cases edited and asked", done, sum(self._sizes))


def _fingerprint(backbone: Backbone, out: Path) -> str:
    """The model's fingerprint; of a run that an older errata began, the one that it has."""
    manifest = out / "manifest.json"
    begun = files.read_json(manifest) if manifest.exists() else None
    given = begun.get("fingerprint") if isinstance(begun, dict) else None
    if isinstance(given, str) and backbone.identified_by(given):
        return given
    return backbone.fingerprint()


def _save_patches(out: Path, unit: Unit, lanes: Sequence[LaneState]) -> None:
    for lane, result in zip(unit.lanes, lanes, strict=True):
        if result.patch is not None:
            patch_folder.save(result.patch, out / "patches" / lane.id)
