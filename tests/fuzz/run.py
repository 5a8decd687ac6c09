"""Gives damaged inputs to the real commands: `make fuzz`, `python -m tests.fuzz.run --help`.

Each must end with exit code 0, 2 or 3, without a traceback, with one line on stderr that says what
is wrong, and write nothing outside its output. Input number N of a kind is always the same one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.cli import main as errata
from errata.cli.shared.model import ModelOptions
from errata.synthetic.objects.world import SPLITS
from tests.endpoint import serving
from tests.fuzz import damage
from tests.fuzz.kinds import KINDS, MODEL, Input, Originals
from tests.short import short_microworld

CODES = (0, 2, 3)
SECONDS = 60
#: Bytes of memory that a command may need beyond what was needed before, and the process at all.
MEMORY, ALL_MEMORY = 2 * 2**30, 16 * 2**30
#: Lines that a command may print on stderr besides the line that says what is wrong.
ALLOWED = re.compile(r"errata: note: |Usage: |Try |\(cut off|\S.*: \d+/\d+|.* \d+/\d+$|\s*$")


@dataclass
class Outcome:
    """What one input gave; `faults` is empty if all is well."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    faults: list[str] = field(default_factory=list)


class Fuzzer:
    """Runs inputs in a folder of their own each; the originals and the model are made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.originals = Originals(folder / "originals")
        self._models: dict[str, Any] = {}

    def run(self, kind: str, number: int, keep: Path | None = None) -> Outcome:
        """Input `number` of a kind. keep: where the input is kept if it has faults."""
        rng = random.Random(f"{kind}|{number}")
        place = Path(tempfile.mkdtemp(dir=self.folder))
        at = place / "input"
        at.mkdir()
        made = KINDS[kind](rng, at, self.originals)
        before = damage.tree(place), damage.tree(self.originals.folder)
        if keep is not None:
            shutil.copytree(place, keep, symlinks=True, dirs_exist_ok=True)
        peak = _peak()
        with contextlib.chdir(place):
            outcome = self._command(made)
        outcome.faults += _faults(outcome, made)
        if _peak() - peak > MEMORY:
            outcome.faults.append(f"it took {(_peak() - peak) >> 20} MiB of memory")
        outcome.faults += _written(place, before[0], made.written)
        if damage.tree(self.originals.folder) != before[1]:
            outcome.faults.append("it changed files that it was not given to write to")
        if keep is not None and not outcome.faults:
            shutil.rmtree(keep)
        elif keep is not None:
            keep.joinpath("command.txt").write_text(
                "\n".join((*map(repr, outcome.words), "", *outcome.faults, outcome.err)),
                errors="backslashreplace",
            )
        shutil.rmtree(place)
        return outcome

    def _command(self, made: Input) -> Outcome:
        words, out, err = made.words, io.StringIO(), io.StringIO()
        started, code = time.monotonic(), 0
        with contextlib.ExitStack() as stack:
            if made.reply is not None:
                server = stack.enter_context(serving(made.reply))
                words = tuple(server.url if w == "URL" else w for w in words)
            if not made.loads:
                stack.enter_context(self._loaded())
            if made.home is not None:
                stack.enter_context(_variable("ERRATA_HOME", str(made.home)))
            stack.enter_context(short_microworld(**dict.fromkeys(SPLITS, 30)))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.enter_context(_time_limit(SECONDS))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning, module="errata")
            try:
                errata(words)
            except SystemExit as e:
                code = e.code if isinstance(e.code, int) else 0
            except BaseException as e:
                code = -1
                err.write(f"\nuncaught {type(e).__name__}: {e}\n")
        return Outcome(words, code, out.getvalue(), err.getvalue(), time.monotonic() - started)

    @contextmanager
    def _loaded(self) -> Iterator[None]:
        """Within it, the bundled model is loaded once for all commands."""
        real = ModelOptions.load

        def load(options: ModelOptions, *heads: Any) -> Any:
            if options.backbone != MODEL or any(heads):
                return real(options, *heads)
            if MODEL not in self._models:
                self._models[MODEL] = real(options)
            return self._models[MODEL]

        ModelOptions.load = load  # type: ignore[method-assign]
        try:
            yield
        finally:
            ModelOptions.load = real  # type: ignore[method-assign]


def _peak() -> int:
    """Most bytes of memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor: machines may be busy
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _faults(outcome: Outcome, made: Input) -> list[str]:
    faults = []
    if outcome.code not in CODES:
        faults.append(f"exit code {outcome.code}")
    if "Traceback" in outcome.err + outcome.out or "this is a bug" in outcome.err:
        faults.append("a traceback or a bug")
    if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", outcome.out + outcome.err):
        faults.append("control characters are printed")
    lines = [line for line in outcome.err.splitlines() if not ALLOWED.match(line)]
    if outcome.code == 2 and len(lines) != 1 and "Usage: " not in outcome.err:
        faults.append(f"{len(lines)} lines say what is wrong")
    return faults


def _written(
    place: Path, before: dict[str, tuple[int, int]], allowed: tuple[Path, ...]
) -> list[str]:
    """The files that were changed, though no output of the command."""
    after = damage.tree(place)
    changed = [n for n in {*before, *after} if before.get(n) != after.get(n)]
    roots = [Path(os.path.abspath(path)) for path in allowed]
    return [
        f"written or removed: {name!r}"
        for name in sorted(changed)
        if not any((place / name).is_relative_to(root) for root in roots)
    ]


def fuzz(
    fuzzer: Fuzzer, kinds: list[str], inputs: int, first: int, failures: Path | None
) -> dict[str, list[Outcome]]:
    """`inputs` inputs, equally many of each kind, numbered from `first`."""
    outcomes: dict[str, list[Outcome]] = {}
    for kind in kinds:
        for number in range(first, first + max(1, inputs // len(kinds))):
            keep = failures / f"{kind}-{number}" if failures is not None else None
            outcome = fuzzer.run(kind, number, keep)
            outcomes.setdefault(kind, []).append(outcome)
            if outcome.faults:
                sys.stderr.write(
                    f"{kind} {number}: {'; '.join(outcome.faults)[:200]}\n    "
                    f"{outcome.err.strip()[-300:]!a}\n"
                )
    return outcomes


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """A row per kind: inputs, exit codes, faults, seconds."""
    lines = ["| kind | inputs | exit 0 | exit 2 | exit 3 | faults | seconds |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    total: Counter[str] = Counter()
    for kind, of_kind in outcomes.items():
        codes = Counter(str(o.code) for o in of_kind)
        counts = {"inputs": len(of_kind), **codes, "faults": sum(bool(o.faults) for o in of_kind)}
        counts["seconds"] = round(sum(o.seconds for o in of_kind))
        total.update(counts)
        lines.append(_row(kind, counts))
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, counts: dict[str, int]) -> str:
    cells = (counts.get(k, 0) for k in ("inputs", "0", "2", "3", "faults", "seconds"))
    return f"| {name} | {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, help="only this input, with its output")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ALL_MEMORY, ALL_MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ERRATA_HOME"] = str(Path(folder) / "home")
        fuzzer = Fuzzer(Path(folder))
        kinds = [given.kind] if given.kind else list(KINDS)
        if given.seed is not None:
            failed = False
            for kind in kinds:
                outcome = fuzzer.run(kind, given.seed, given.failures / f"{kind}-{given.seed}")
                failed |= bool(outcome.faults)
                print(kind, *map(ascii, outcome.words))
                print(f"exit {outcome.code}\n{outcome.out[:2000]!a}\n{outcome.err}")
                print("faults:", outcome.faults or "none")
            return int(failed)
        outcomes = fuzz(fuzzer, kinds, given.inputs, given.first, given.failures)
    print(table(outcomes))
    faults = sum(bool(o.faults) for of_kind in outcomes.values() for o in of_kind)
    if faults:
        print(f"{faults} inputs with faults, kept in {given.failures}. Again: make fuzz FUZZ_ARGS="
              "'--kind KIND --seed NUMBER'")  # fmt: skip
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
