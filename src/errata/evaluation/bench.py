"""A run: plan it, make the edits unit by unit, ask the probes, score.

The planned unit is what a killed run resumes at. Its answers are appended in one write, then
`done.jsonl` gets a line with the length of `answers.jsonl`; whatever lies behind that length is cut
off on resume, so that an interrupted run ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core import files, registry
from errata.core import patch as patches
from errata.core.backbone import Backbone
from errata.core.benchmark import BenchmarkSpec
from errata.core.editor import Editor, State
from errata.core.errors import BadRun
from errata.core.judge import Judge
from errata.core.protocol import Protocol, Unit
from errata.core.types import Answer, Case, to_json
from errata.evaluation import judging, score
from errata.evaluation.pictures import SEEDS, PictureStore
from errata.evaluation.plan import Plan, make_plan, plan_json, protocol_of, select
from errata.evaluation.runner import LaneState, Runner, UnitTiming
from errata.io import states

ROWS = 16
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FinishedUnit:
    """One finished unit: what `done.jsonl` holds."""

    unit: str
    length: int
    edit_seconds: float
    edits: int
    ask_seconds: float
    asked: int
    peak_mb: float
    searches: tuple[dict[str, Any], ...] = ()
    failed: tuple[str, ...] = ()
    demonstrations_dropped: int = 0


def bench(
    backbone: Backbone,
    editor: Editor,
    benchmark: str,
    protocol: str,
    out: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    rows: int = ROWS,
    root: Path | None = None,
    state: State | None = None,
    legacy: bool = False,
    metrics: Sequence[str] | None = None,
    keep_patches: bool = False,
    image_seeds: int = SEEDS,
    command: str = "",
    progress: Progress | None = None,
) -> Path:
    """Runs `editor` on `benchmark` under `protocol` into the folder `out`, and scores it.

    Resumes what is there. image_seeds: pictures per question, for a protocol that draws.
    """
    spec, order = BenchmarkSpec.parse(benchmark), protocol_of(protocol)
    editor = editor.for_backbone(backbone)
    started = time.perf_counter()
    selection = select(
        backbone,
        spec,
        seed=seed,
        limit=limit,
        root=root,
        draws=order.draws,
        legacy=legacy,
        progress=progress,
    )
    plan = make_plan(selection, spec, order, rows=rows, seed=seed)
    before_seconds = time.perf_counter() - started
    settings = _settings(
        backbone,
        editor,
        spec,
        order,
        state,
        seed=seed,
        limit=limit,
        rows=rows,
        legacy=legacy,
        data_sha256=plan.data,
        **({"image_seeds": image_seeds} if order.draws else {}),
    )
    _open(out, settings, plan, selection.before, command)
    done = _resume(out, plan)
    prepare_seconds = 0.0
    if len(done) < len(plan.units):
        started = time.perf_counter()
        state = (
            state if state is not None else prepared(backbone, editor, spec, seed=seed, root=root)
        )
        prepare_seconds = time.perf_counter() - started
    before = {(a.case, a.probe): a for a in selection.before}
    store = PictureStore(out, range(image_seeds)) if order.draws else None
    runner = Runner(
        backbone, editor, state, order, plan.panel, before, seed=seed, legacy=legacy, store=store
    )
    for unit in plan.units[len(done) :]:
        if progress is not None:
            progress("editing and asking", len(done), len(plan.units))
        answers, clock, tracks = runner.run(unit)
        if keep_patches:
            _keep(out, unit, tracks)
        done.append(_finish(out, unit, answers, clock))
    if progress is not None:
        progress("editing and asking", len(done), len(plan.units))
    _write_timing(out, done, before_seconds, prepare_seconds)
    if order.draws and (judge := own_judge(spec, plan.cases)):
        judging.judge_run(out, judge, progress=progress)
    score.score_run(out, list(metrics) if metrics else None)
    return out


def own_judge(spec: BenchmarkSpec, cases: Sequence[Case]) -> Judge | None:
    """The judge that the benchmark names for the tasks of these cases, if it is one for all."""
    benchmark = registry.load("benchmarks", spec.name)()
    names = {str(benchmark.judge(case.task)) for case in cases}
    name = names.pop() if len(names) == 1 else ""
    return registry.load("judges", name)() if name else None


def prepared(
    backbone: Backbone, editor: Editor, spec: BenchmarkSpec, *, seed: int, root: Path | None
) -> State | None:
    """The state of an editor that learns cheaply, from the train split of the same benchmark.

    Of an editor that must be prepared: the one that comes with the model, if any does.
    """
    if not editor.uses_state:
        return None
    if editor.needs_state:
        return editor.shipped_state(backbone)
    train = BenchmarkSpec(spec.name, spec.tasks, "train", spec.variant)
    loaded = registry.load("benchmarks", spec.name)().load(train, root=root, seed=seed)
    return states.learnt(editor, backbone, loaded.cases, seed=seed)


def _settings(
    backbone: Backbone,
    editor: Editor,
    spec: BenchmarkSpec,
    protocol: Protocol,
    state: State | None,
    **options: Any,
) -> dict[str, Any]:
    """What makes two runs the same run."""
    summary = editor.summary
    return {
        "schema": 1,
        "backbone": backbone.name,
        "revision": backbone.revision,
        "fingerprint": backbone.fingerprint(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "style": getattr(backbone, "style", ""),
        "editor": editor.name,
        "preset": summary["preset"],
        "arguments": summary["passed"],
        "config": summary["config"],
        "state": state.digest() if state is not None else "",
        "benchmark": str(spec),
        "protocol": protocol.spec,
        "versions": files.versions(),
        **options,
    }


def _open(
    out: Path, settings: Mapping[str, Any], plan: Plan, before: Sequence[Answer], command: str
) -> None:
    """Starts the folder, or checks that it holds the same run, unchanged. Raises BadRun."""
    path = out / "manifest.json"
    _sweep(out)
    planned = {
        "plan.json": (files.dumps(plan_json(plan), indent=1) + "\n").encode(),
        "before.jsonl": "".join(files.dumps(to_json(a)) + "\n" for a in before).encode(),
    }
    if path.exists():
        held = files.read_json(path)
        different = [k for k, v in settings.items() if held.get(k) != files.from_plain(v)]
        if different:
            what = ", ".join(f"{k} ({held.get(k)} there, {settings[k]} now)" for k in different[:3])
            raise BadRun(
                f"{out} holds another run: {what} differ. "
                "Choose another --out, or delete that folder."
            )
        for name, data in planned.items():
            if not (out / name).exists() or (out / name).read_bytes() != data:
                raise BadRun(
                    f"{out / name} is not what this run began with. "
                    "Delete the folder and run again."
                )
        return
    # a run killed before its manifest, which comes last, has only these
    if out.exists() and any(f.name not in planned for f in out.iterdir()):
        raise BadRun(f"{out} is not empty and holds no run. Choose another --out.")
    for name, data in planned.items():
        files.write_bytes(out / name, data)
    manifest = {
        **settings,
        "command": command,
        "git": _commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    files.write_json(path, manifest)


def _sweep(out: Path) -> None:
    """Temporary files of a run that was killed while it wrote one."""
    names = (
        "plan.json",
        "before.jsonl",
        "manifest.json",
        "done.jsonl",
        "scores.json",
        "timing.json",
        "judging.json",
    )
    for name in names:
        for left in out.glob(f".{name}.*"):
            left.unlink(missing_ok=True)
    for left in out.glob("images/*/.*.png.*"):
        left.unlink(missing_ok=True)


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _resume(out: Path, plan: Plan) -> list[FinishedUnit]:
    """Finished units; a half-written one is cut off."""
    done = files.read_lines(out / "done.jsonl", FinishedUnit)
    ids = [u.id for u in plan.units[: len(done)]]
    if [d.unit for d in done] != ids:
        raise BadRun(f"{out}/done.jsonl does not fit plan.json. Delete the folder and run again.")
    answers = out / "answers.jsonl"
    length = done[-1].length if done else 0
    have = answers.stat().st_size if answers.exists() else 0
    if have < length:
        raise BadRun(f"{answers} is shorter than done.jsonl says. Delete the folder and run again.")
    if have > length:
        os.truncate(answers, length)
    text = "".join(files.dumps(to_json(d)) + "\n" for d in done)
    if done:
        files.write_bytes(out / "done.jsonl", text.encode())
    elif (out / "done.jsonl").exists():
        (out / "done.jsonl").unlink()
    return done


def _finish(out: Path, unit: Unit, answers: Sequence[Answer], clock: UnitTiming) -> FinishedUnit:
    files.append_lines(out / "answers.jsonl", answers)
    done = FinishedUnit(
        unit.id,
        (out / "answers.jsonl").stat().st_size,
        clock.edit,
        clock.edits,
        clock.ask,
        clock.asked,
        _peak(),
        tuple(clock.searches),
        tuple(clock.failed),
        clock.demonstrations_dropped,
    )
    files.append_lines(out / "done.jsonl", [done])
    return done


def _peak() -> float:
    """Peak memory of the process in MB; on an accelerator, of the device."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _keep(out: Path, unit: Unit, tracks: Sequence[LaneState]) -> None:
    for lane, track in zip(unit.lanes, tracks, strict=True):
        if track.patch is not None:
            patches.save(track.patch, out / "patches" / lane.id)


def _write_timing(
    out: Path, done: Sequence[FinishedUnit], before_seconds: float, prepare_seconds: float
) -> None:
    """Kept apart from scores.json, which must not depend on how fast the machine was."""
    peak = max((d.peak_mb for d in done), default=0.0)
    edits, asked = sum(d.edits for d in done), sum(d.asked for d in done)
    phases = {
        "before": {"seconds": before_seconds, "count": 1, "peak_mb": peak},
        "prepare": {"seconds": prepare_seconds, "count": 1, "peak_mb": peak},
        "edit": {"seconds": sum(d.edit_seconds for d in done), "count": edits, "peak_mb": peak},
        "ask": {"seconds": sum(d.ask_seconds for d in done), "count": asked, "peak_mb": peak},
    }
    searches = [s for d in done for s in d.searches if s]
    files.write_json(
        out / "timing.json",
        {
            "phases": phases,
            "failed": [case for d in done for case in d.failed],
            "demonstrations_dropped": sum(d.demonstrations_dropped for d in done),
            "edit_seconds": [d.edit_seconds / d.edits for d in done for _ in range(d.edits)],
            "search": {
                "n": len(searches),
                "mean_steps": sum(s["steps"] for s in searches) / len(searches)
                if searches
                else None,
                "reached": sum(bool(s["reached"]) for s in searches) / len(searches)
                if searches
                else None,
            },
        },
    )
