"""Merges the shards of a run into one run folder, which equals that of a single process.

Only the times differ: `timing.json` sums up what all shards took.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun
from errata.core.files import read_bytes, read_json, read_lines, write_bytes, write_json
from errata.core.formats.counts import counted
from errata.core.formats.run_files import read_manifest, read_stored_plan
from errata.core.locks import locked
from errata.evaluation.distribute.shards import RunShard
from errata.evaluation.limits import same_answers
from errata.evaluation.run_folder import FinishedUnit, Phase, RunWriter, UnitTiming, check_out

#: of a manifest: what may differ between the shards of one run
OWN = ("shard", "command", "root", "git", "created")


@dataclass(frozen=True)
class ShardFolder:
    """A finished shard: its folder, which one it is, and its units in the plan's order."""

    path: Path
    shard: RunShard
    manifest: Mapping[str, Any]
    done: tuple[FinishedUnit, ...]

    def units(self) -> Iterator[tuple[FinishedUnit, bytes]]:
        """Each unit with its lines of answers.jsonl."""
        data, start = read_bytes(self.path / "answers.jsonl") if self.done else b"", 0
        for unit in self.done:
            yield unit, data[start : unit.length]
            start = unit.length

    def phase(self, name: str) -> Phase:
        phase = read_json(self.path / "timing.json")["phases"][name]
        return Phase(phase["seconds"], phase["peak_mb"])


def merge_shards(runs: Sequence[Path], out: Path) -> Path:
    """Writes the run of all shards to `out`, without scores. Raises BadRun, BadOutput, InUse.

    The order of `runs` does not matter. A merge that was killed is repeated by the same call.
    """
    shards = _checked(runs)
    first = shards[0]
    settings = {k: v for k, v in first.manifest.items() if k not in OWN}
    check_out(out, **settings)
    with locked(out):
        writer = RunWriter(out)
        plan = read_json(first.path / "plan.json")
        planned = [unit["id"] for unit in plan["units"]]
        _start(writer, first, settings)
        finished = writer.resume(planned)
        units = {unit.unit: (unit, lines) for shard in shards for unit, lines in shard.units()}
        for shard in shards:
            for folder in ("images", "patches"):
                _copy(shard.path / folder, out / folder)
        for name in planned[finished:]:
            unit, lines = units[name]
            writer.add_lines(name, lines, _timing(unit))
        writer.write_timing(*(_sum([s.phase(p) for s in shards]) for p in ("before", "prepare")))
    return out


def _start(writer: RunWriter, first: ShardFolder, settings: Mapping[str, Any]) -> None:
    """The files that are fixed before any edit, as the shard with number 1 has them."""
    for name in ("plan.json", "before.jsonl"):
        data, file = read_bytes(first.path / name), writer.path / name
        if not file.exists():
            write_bytes(file, data)
        elif read_bytes(file) != data:
            raise BadRun(f"{writer.path} holds another run. Choose another --out.")
    own = {k: first.manifest[k] for k in OWN if k != "shard" and k in first.manifest}
    manifest = writer.path / "manifest.json"
    if not manifest.exists():
        write_json(manifest, {**settings, **own})


def _checked(runs: Sequence[Path]) -> list[ShardFolder]:
    """The shards by number. Raises BadRun if they are not those of one run, all and finished."""
    shards = sorted((_read(run) for run in runs), key=lambda s: s.shard.index)
    first = shards[0]
    for other in shards[1:]:
        _check_same(first, other)
    found = [s.shard.index for s in shards]
    twice = sorted({i for i in found if found.count(i) > 1})
    if twice:
        names = [str(s.path) for s in shards if s.shard.index == twice[0]]
        raise BadRun(f"{' and '.join(names)} are the same shard. Give each shard once.")
    missing = [i for i in range(1, first.shard.count + 1) if i not in found]
    if missing:
        listed = ", ".join(f"{i}/{first.shard.count}" for i in missing[:5])
        raise BadRun(
            f"{counted(len(missing), 'shard')} of this run not given, first {listed}. Run "
            "`errata bench` with that --shard, or give its folder too."
        )
    return shards


def _read(run: Path) -> ShardFolder:
    manifest = read_manifest(run)
    if "shard" not in manifest:
        raise BadRun(f"{run} is a whole run, not a shard (`errata bench --shard i/n`).")
    shard = RunShard.parse(str(manifest["shard"]))
    planned = [unit.id for unit in read_stored_plan(run)[1].units]
    done = read_lines(run / "done.jsonl", FinishedUnit)
    wanted = list(shard.of(planned))
    if [unit.unit for unit in done] != wanted or not (run / "timing.json").exists():
        raise BadRun(
            f"{run} is not finished: {len(done)} of {counted(len(wanted), 'unit')}. Repeat its "
            "`errata bench` command to resume it."
        )
    return ShardFolder(run, shard, manifest, tuple(done))


def _check_same(one: ShardFolder, other: ShardFolder) -> None:
    """Raises BadRun if these are not shards of one run."""
    keys = [k for k in {**one.manifest, **other.manifest} if k not in OWN]
    different = [k for k in keys if one.manifest.get(k) != other.manifest.get(k)]
    if one.shard.count != other.shard.count:
        different.append("the number of shards")
    if different:
        raise BadRun(
            f"{one.path} and {other.path} are not of one run: {', '.join(different[:3])} differ."
        )
    plans = [read_bytes(s.path / "plan.json") for s in (one, other)]
    before = [read_bytes(s.path / "before.jsonl") for s in (one, other)]
    if plans[0] != plans[1] or not (before[0] == before[1] or same_answers(*before)):
        raise BadRun(
            f"the unedited model answered otherwise in {one.path} than in {other.path}, so their "
            "plans differ. Run all shards on machines of one kind, or with one ERRATA_HOME, which "
            "keeps these answers."
        )


def _copy(source: Path, target: Path) -> None:
    """Copies the files of a folder that are not there yet, a file at a time under its own name."""
    for file in sorted(f for f in source.rglob("*") if f.is_file()):
        to = target / file.relative_to(source)
        if not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            part = to.with_name(f".{to.name}.part")
            shutil.copyfile(file, part)
            part.replace(to)


def _timing(unit: FinishedUnit) -> UnitTiming:
    return UnitTiming(**{f.name: getattr(unit, f.name) for f in fields(UnitTiming)})


def _sum(phases: Sequence[Phase]) -> Phase:
    peaks = [p.peak_mb for p in phases if p.peak_mb is not None]
    return Phase(sum(p.seconds for p in phases), max(peaks, default=None))
