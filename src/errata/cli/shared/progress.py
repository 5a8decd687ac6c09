"""Shows progress on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
EVERY = 10.0  # seconds between plain lines


@contextmanager
def reporting(label: str = "") -> Iterator[Progress]:
    """Yields a function of (what, done, total)."""
    prefix = f"{label}: " if label else ""
    if not sys.stderr.isatty():
        yield ProgressLines(prefix)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = int(bars.add_task(prefix + what, total=total))
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield show


class ProgressLines:
    """One line when a phase begins or ends, and at most one every ten seconds in between.

    A line in between says about how long the rest takes, at the pace of the phase so far.
    """

    def __init__(self, prefix: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.prefix, self.clock = prefix, clock
        self.what, self.last = "", 0.0
        self.begun, self.first = 0.0, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self.clock()
        if what == self.what and done < total and now - self.last < EVERY:
            return
        if what != self.what:
            self.begun, self.first = now, done
        self.what, self.last = what, now
        left = self._left(now, done, total)
        print(f"{self.prefix}{what} {done}/{total}{left}", file=sys.stderr, flush=True)

    def _left(self, now: float, done: int, total: int) -> str:
        if not self.first < done < total:
            return ""
        return f", {duration((now - self.begun) / (done - self.first) * (total - done))} left"


def duration(seconds: float) -> str:
    """`about 40 s`, `about 3 min`, `about 2.5 h`."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
