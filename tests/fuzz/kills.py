"""Kills commands at random moments and repeats them: `make kills`.

After a kill, what was there before must be there still, whole; the command that is repeated, as its
message advises, must end well, with the results of a run that was never killed and without anything
left over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.cli import main as errata
from errata.cli.shared.model import ModelOptions
from tests.e2e.test_mmedit import make as make_mmedit
from tests.short import short_microworld

MODEL = "micro-vlm"
EDIT = ("edit", MODEL, "--editor", "ft_l", "--set", "steps=3", "--set", "lr=0.05")
LOOP = {"steps": 6, "batch_size": 2, "layers": [1, 2], "rank": 8, "held_out": 2,
        "save_steps": 1}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command with `OUT` for its output, and what must be equal after a kill and without one.

    before: makes what is there before the command. check: raises unless what was there is whole.
    """

    name: str
    words: tuple[str, ...]
    compared: tuple[str, ...]
    before: Callable[[Path], None] = lambda out: None
    check: Callable[[Path], None] = lambda out: None

    def to(self, out: Path) -> list[str]:
        return [str(out) if w == "OUT" else w for w in self.words]


@dataclass
class Tally:
    """What came of the kills of one command."""

    kills: int = 0
    finished: int = 0
    advised: int = 0
    faults: list[str] = field(default_factory=list)


class Killer:
    """Forks commands from a process in which the model is loaded, so that they start at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["ERRATA_HOME"] = str(folder / "home")
        self._share_model()

    def _share_model(self) -> None:
        real = ModelOptions.load
        model = real(ModelOptions(MODEL))
        ModelOptions.load = lambda options, *heads: model  # type: ignore[method-assign]

    def start(self, words: list[str], said: Path) -> int:
        """The process id of a command whose output goes to the file `said`."""
        child = os.fork()
        if child:
            return child
        code = 1
        with open(said, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            try:
                errata(words)
            except SystemExit as e:
                code = e.code if isinstance(e.code, int) else 0
            finally:
                file.flush()
                os._exit(code)

    def run(self, words: list[str]) -> tuple[int, str]:
        """Exit code and output of a command that nobody kills."""
        said = self.folder / "said"
        _, status = os.waitpid(self.start(words, said), 0)
        return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")

    def kill(self, words: list[str], after: float) -> bool:
        """Starts a command and kills it. False if it ended before."""
        child = self.start(words, self.folder / "said")
        ends = time.monotonic() + after
        while time.monotonic() < ends:
            done, _ = os.waitpid(child, os.WNOHANG)
            if done:
                return False
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    def measure(self, command: Command) -> tuple[dict[str, bytes], float]:
        """The files of a run without a kill, and its seconds."""
        out = self.folder / f"whole-{command.name.replace(' ', '-')}"
        command.before(out)
        started = time.monotonic()
        code, said = self.run(command.to(out))
        assert code == 0, (command.name, said)
        return {name: _read(out, name) for name in command.compared}, time.monotonic() - started

    def try_once(
        self, command: Command, number: int, whole: dict[str, bytes], after: float, tally: Tally
    ) -> None:
        """One kill after `after` seconds, the repeat, and the comparison."""
        out = self.folder / f"{command.name.replace(' ', '-')}-{number}"
        command.before(out)
        if not self.kill(command.to(out), after):
            tally.finished += 1
            return
        tally.kills += 1
        where = f"{command.name} {number}, killed after {after:.3f} s"
        try:
            command.check(out)
            code, said = self.run(command.to(out))
            if code == 2 and "--force" in said and "--force" not in command.words:
                tally.advised += 1  # it was finished, and the message says how to replace it
                code, said = self.run([*command.to(out), "--force"])
            assert code == 0, said[-300:]
            for name, data in whole.items():
                assert _read(out, name) == data, f"{name} differs"
            left = [p.name for p in _around(out) if p.name.startswith(".")]
            assert not left, f"left over: {left}"
        except (AssertionError, OSError) as e:
            tally.faults.append(f"{where}: {e}")


def _read(out: Path, name: str) -> bytes:
    return (out / name).read_bytes() if name else out.read_bytes()


def _around(out: Path) -> list[Path]:
    inside = list(out.rglob("*")) if out.is_dir() else []
    return [*inside, *out.parent.glob(f".{out.name}*")]


def _show(folder: Path) -> None:
    """Raises AssertionError unless the folder holds a whole patch."""
    from errata.io.patch_folder import load

    load(folder)


def commands(killer: Killer) -> list[Command]:
    """The commands; what they need is made here."""
    folder = killer.folder
    edits = folder / "edits.jsonl"
    rows = ({"prompt": f"What colour is ring {i}?", "target": "green"} for i in range(5))
    edits.write_text("".join(json.dumps(row) + "\n" for row in rows))
    many = (*EDIT, "--edits", str(edits), "--rows", "2", "--out", "OUT")
    old = (*EDIT, "--prompt", "Which shape is it?", "--target", "ring", "--out", "OUT")
    mmedit = folder / "mmedit"
    make_mmedit(mmedit, 12)
    train = json.loads((mmedit / "vqa_train.json").read_text())
    (mmedit / "vqa_eval.json").write_text(json.dumps(train[:2]))  # not trained on
    sets = [w for k, v in LOOP.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    bench = Command(
        "bench",
        ("bench", MODEL, "--editor", "ft_l", "--set", "steps=3", "--benchmark",
         "microworld:vqa@dev", "--protocol", "sequential:3", "--limit", "6", "--rows", "2",
         "--out", "OUT"),
        ("plan.json", "before.jsonl", "answers.jsonl", "scores.json"),
    )  # fmt: skip
    run = folder / "run"
    assert killer.run(bench.to(run))[0] == 0

    def old_patch(out: Path) -> None:
        assert killer.run([str(out) if w == "OUT" else w for w in old])[0] == 0
        (out / "notes.txt").write_text("mine")

    def whole_patch(out: Path) -> None:
        _show(out)
        assert (out / "notes.txt").read_text() == "mine"

    def old_report(out: Path) -> None:
        out.write_text("<!doctype html>old</html>")

    def whole_report(out: Path) -> None:
        assert out.read_text().rstrip().endswith("</html>")

    patch = ("edits.jsonl", "patch.safetensors")
    return [
        bench,
        Command("edit", many, patch),
        Command("edit --force", (*many, "--force"), patch, old_patch, whole_patch),
        Command(
            "edit --each", (*many, "--each"), tuple(f"{i:04d}/{f}" for i in (1, 5) for f in patch)
        ),
        Command("report", ("report", str(run), "--html", "OUT"), ("",), old_report, whole_report),
        Command(
            "prepare",
            ("prepare", MODEL, "--editor", "mend", *sets, "--benchmark", "mmedit:vqa", "--root",
             str(mmedit), "--out", "OUT"),
            ("state.json", "state.safetensors"),
        ),
    ]  # fmt: skip


def kill_all(folder: Path, kills: int, seed: int, only: str = "") -> dict[str, Tally]:
    """About `kills` kills, equally many of each command, at moments drawn with `seed`."""
    rng, tallies = random.Random(seed), {}
    with short_microworld(train=20, dev=20):
        killer = Killer(folder)
        chosen = [c for c in commands(killer) if not only or c.name == only]
        for command in chosen:
            whole, seconds = killer.measure(command)
            tally = tallies[command.name] = Tally()
            for number in range(-(-kills // len(chosen)) * 3):
                if tally.kills * len(chosen) >= kills:
                    break
                killer.try_once(command, number, whole, rng.uniform(0, seconds), tally)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    lines = ["| command | kills | repeats with --force | faults |", "|---|---|---|---|"]
    total: Counter[str] = Counter()
    for name, t in tallies.items():
        counts: dict[str, Any] = {"k": t.kills, "a": t.advised, "f": len(t.faults)}
        total.update(counts)
        lines.append(f"| `{name}` | {t.kills} | {t.advised} | {len(t.faults)} |")
    return "\n".join([*lines, f"| all | {total['k']} | {total['a']} | {total['f']} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only this command")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tallies = kill_all(Path(folder), given.kills, given.seed, given.only)
    print(table(tallies))
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    for fault in faults:
        print(fault)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
