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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core import patch as patches
from errata.core import record, registry
from errata.core.backbone import Backbone
from errata.core.benchmark import BenchmarkSpec
from errata.core.editor import Editor, State
from errata.core.errors import BadRun
from errata.core.patch import Patch
from errata.core.protocol import Protocol, Step, Unit
from errata.core.types import Answer, Probe, to_json
from errata.patches.rows import Rows
from errata.runs import score
from errata.runs.asking import Asked, ask_all
from errata.runs.plan import Plan, make_plan, protocol_of, save_plan, select

ROWS = 16
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Done:
    """One finished unit: what `done.jsonl` holds."""

    unit: str
    length: int
    edit_seconds: float
    edits: int
    ask_seconds: float
    asked: int
    peak_mb: float
    searches: tuple[dict[str, Any], ...] = ()


@dataclass
class Track:
    """A lane while its unit runs: the patch and the editor's state so far."""

    patch: Patch | None = None
    state: State | None = None


@dataclass
class Clock:
    """Seconds and counts of a unit's phases."""

    edit: float = 0.0
    ask: float = 0.0
    edits: int = 0
    asked: int = 0
    searches: list[dict[str, Any]] = field(default_factory=list)


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
    command: str = "",
    progress: Progress | None = None,
) -> Path:
    """Runs `editor` on `benchmark` under `protocol` into the folder `out`, and scores it.

    Resumes what is there.
    """
    spec, order = BenchmarkSpec.parse(benchmark), protocol_of(protocol)
    editor = editor.for_backbone(backbone)
    started = time.perf_counter()
    selection = select(
        backbone, spec, seed=seed, limit=limit, root=root, legacy=legacy, progress=progress
    )
    plan = make_plan(selection, spec, order, rows=rows, seed=seed)
    before_seconds = time.perf_counter() - started
    settings = _settings(
        backbone, editor, spec, order, state, seed=seed, limit=limit, rows=rows, legacy=legacy
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
    runner = Runner(backbone, editor, state, order, plan.panel, before, seed=seed, legacy=legacy)
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
    score.score_run(out, list(metrics) if metrics else None)
    return out


def prepared(
    backbone: Backbone, editor: Editor, spec: BenchmarkSpec, *, seed: int, root: Path | None
) -> State | None:
    """The state of an editor that learns cheaply, from the train split of the same benchmark."""
    if editor.needs_state or type(editor).prepare is Editor.prepare:
        return None
    train = BenchmarkSpec(spec.name, spec.tasks, "train", spec.variant)
    loaded = registry.load("benchmarks", spec.name)().load(train, root=root, seed=seed)
    return editor.prepare(backbone, loaded.cases, seed=seed)


class Runner:
    """Runs units: all lanes of a unit are edited together and asked together."""

    def __init__(
        self,
        backbone: Backbone,
        editor: Editor,
        state: State | None,
        protocol: Protocol,
        panel: Sequence[Probe],
        before: Mapping[tuple[str, str], Answer],
        *,
        seed: int,
        legacy: bool = False,
    ) -> None:
        self.backbone, self.editor, self.state, self.protocol = backbone, editor, state, protocol
        self.panel, self.before, self.seed, self.legacy = panel, before, seed, legacy

    def run(self, unit: Unit) -> tuple[list[Answer], Clock, list[Track]]:
        tracks = [Track(state=self.state) for _ in unit.lanes]
        clock = Clock()
        everything: list[Answer] = []
        steps = self.protocol.steps(unit, self.panel)
        number = 0
        try:
            step = next(steps)
            while True:
                self._edit(step, tracks, clock)
                answers = self._ask(step, tracks, clock, number)
                everything += answers
                number += 1
                step = steps.send(answers)
        except StopIteration:
            return everything, clock, tracks

    def _edit(self, step: Step, tracks: Sequence[Track], clock: Clock) -> None:
        started = time.perf_counter()
        if step.on == "clean":
            for track in tracks:
                track.patch, track.state = None, self.state
        groups = [t.edits for t in step.turns]
        live = [t.patch for t in tracks]
        previous = (
            Rows([p for p in live if p is not None]) if all(p is not None for p in live) else None
        )
        assert previous is not None or not any(p is not None for p in live), (
            "lanes of a unit advance together"
        )
        with self.backbone.applied(previous):
            found = self.editor.edit_groups(
                self.backbone, groups, [t.state for t in tracks], seed=self.seed
            )
        for track, one in zip(tracks, found, strict=True):
            track.patch = one.patch if track.patch is None else track.patch.join(one.patch)
            track.state = one.state
            clock.searches.append(dict(getattr(one.patch, "search", {})))
        clock.edit += time.perf_counter() - started
        clock.edits += sum(len(g) for g in groups)

    def _ask(self, step: Step, tracks: Sequence[Track], clock: Clock, number: int) -> list[Answer]:
        started = time.perf_counter()
        asked = [Asked(a, row) for row, turn in enumerate(step.turns) for a in turn.asks]
        with self.backbone.applied(Rows([t.patch for t in tracks if t.patch is not None])):
            answers = ask_all(
                self.backbone, asked, step=number, before=self.before, legacy=self.legacy
            )
        clock.ask += time.perf_counter() - started
        clock.asked += len(asked)
        return answers


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
        **options,
    }


def _open(
    out: Path, settings: Mapping[str, Any], plan: Plan, before: Sequence[Answer], command: str
) -> None:
    """Starts the folder, or checks that it holds the same run. Raises BadRun."""
    path = out / "manifest.json"
    _sweep(out)
    if path.exists():
        held = record.read_json(path)
        different = [k for k, v in settings.items() if held.get(k) != from_plain(v)]
        if different or held.get("data_sha256") != plan.data:
            what = (
                ", ".join(f"{k} ({held.get(k)} there, {settings[k]} now)" for k in different[:3])
                or "the benchmark's data"
            )
            raise BadRun(
                f"{out} holds another run: {what} differ. "
                "Choose another --out, or delete that folder."
            )
        return
    started = {"plan.json", "before.jsonl"}  # a run killed before its manifest, which comes last
    if out.exists() and any(f.name not in started for f in out.iterdir()):
        raise BadRun(f"{out} is not empty and holds no run. Choose another --out.")
    save_plan(plan, out)
    (out / "before.jsonl").unlink(missing_ok=True)
    record.append_lines(out / "before.jsonl", before)
    manifest = {
        **settings,
        "command": command,
        "data_sha256": plan.data,
        "git": _commit(),
        "versions": patches.versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    record.write_json(path, manifest)


def _sweep(out: Path) -> None:
    """Temporary files of a run that was killed while it wrote one."""
    for name in ("plan.json", "manifest.json", "done.jsonl", "scores.json", "timing.json"):
        for left in out.glob(f".{name}.*"):
            left.unlink(missing_ok=True)


def from_plain(value: Any) -> Any:
    """The value as it comes back from JSON."""
    import json

    return json.loads(record.dumps(value))


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


def _resume(out: Path, plan: Plan) -> list[Done]:
    """Finished units; a half-written one is cut off."""
    done = record.read_lines(out / "done.jsonl", Done)
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
    text = "".join(record.dumps(to_json(d)) + "\n" for d in done)
    if done:
        record.write_bytes(out / "done.jsonl", text.encode())
    elif (out / "done.jsonl").exists():
        (out / "done.jsonl").unlink()
    return done


def _finish(out: Path, unit: Unit, answers: Sequence[Answer], clock: Clock) -> Done:
    record.append_lines(out / "answers.jsonl", answers)
    done = Done(
        unit.id,
        (out / "answers.jsonl").stat().st_size,
        clock.edit,
        clock.edits,
        clock.ask,
        clock.asked,
        _peak(),
        tuple(clock.searches),
    )
    record.append_lines(out / "done.jsonl", [done])
    return done


def _peak() -> float:
    """Peak memory of the process in MB; on an accelerator, of the device."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _keep(out: Path, unit: Unit, tracks: Sequence[Track]) -> None:
    for lane, track in zip(unit.lanes, tracks, strict=True):
        if track.patch is not None:
            patches.save(track.patch, out / "patches" / lane.id)


def _write_timing(
    out: Path, done: Sequence[Done], before_seconds: float, prepare_seconds: float
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
    record.write_json(
        out / "timing.json",
        {
            "phases": phases,
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
