"""Commands and scripts in processes of their own, with their CPU seconds and largest memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: runs a script or `-m module`, then writes what the process took as the last line of stderr
_CODE = """
import re, resource, runpy, sys
how, what = sys.argv[1:3]
sys.argv = [what, *sys.argv[3:]]
try:
    (runpy.run_module if how == "-m" else runpy.run_path)(what, run_name="__main__")
except SystemExit as e:
    if e.code: raise
used = resource.getrusage(resource.RUSAGE_SELF)
kb = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(used.ru_utime + used.ru_stime, kb / 1024, file=sys.stderr)
"""


@dataclass(frozen=True)
class Child:
    """What a process wrote and took."""

    stdout: str
    cpu_s: float
    peak_mb: float

    def json(self) -> Any:
        """The last line that it printed, as JSON."""
        return json.loads(self.stdout.strip().splitlines()[-1])


def run_child(script: str | Path, *words: object) -> Child:
    """Runs a Python file, as a process of its own."""
    return _run(str(script), "", *words)


def run_errata(*words: object) -> Child:
    """Runs a command of errata, as a process of its own."""
    return _run("errata", "-m", *words)


def _run(what: str, how: str, *words: object) -> Child:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{_CODE}"
    command = [sys.executable, "-c", code, how or "file", what, *map(str, words)]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{what} {' '.join(map(str, words))} failed: {done.stderr[-2000:]}")
    seconds, peak = map(float, done.stderr.strip().splitlines()[-1].split())
    return Child(done.stdout, seconds, peak)
