"""The thread that runs the model: answers grow together, and join and leave between two steps.

Accepted work is never lost: every job ends with `Finished`, `Drawn` or a `Refused`, unless it is
cancelled. Other threads may use the model meanwhile (an edit is searched); forwards alternate.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from errata.core.errors import UserError
from errata.core.model.generation import image_generator
from errata.core.patch import Patch
from errata.patches.stack import Stack
from errata.serve.decoding.jobs import AskJob, DrawJob, Drawn, Event, Job, Post
from errata.serve.decoding.rows import LoneRow, Row, SharedRows
from errata.serve.failures import Refused, refused
from errata.serve.settings import Limits

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone

TOGETHER = 8  # prompts that are read in one forward, between two steps of the other answers
PATCHES = 16  # patches that are kept ready in one row patch; more are put together anew
#: of the time that an answer takes, the part that the newest one counts
NEWEST = 0.1


@dataclass(frozen=True, slots=True)
class EngineWatch:
    """What the engine tells its observers. forward: how many rows one had. failed: a bug."""

    forward: Callable[[int], None]
    failed: Callable[[BaseException], None]


class Engine:
    """post: takes events, in the engine's thread. share_unedited: questions to the unedited model
    join the others; faster, and then equal to the last bits only.
    """

    def __init__(
        self, bb: Backbone, limits: Limits, post: Post, watch: EngineWatch, *,
        share_unedited: bool = False,
    ) -> None:  # fmt: skip
        self.bb, self.limits, self.post, self.watch = bb, limits, post, watch
        self.unedited = Stack([]) if share_unedited else None
        self.waiting: deque[Job] = deque()
        self.shared: list[SharedRows] = []
        self.lone: list[LoneRow] = []
        self.recent: list[Patch] = []
        self.changed = threading.Condition()
        self.closing = False
        self.joins = True
        self.seconds = 0.05  # of the engine's time per answer, a running mean
        self.thread = threading.Thread(target=self._run, name="errata-engine", daemon=True)

    # -- from other threads -------------------------------------------------------------------

    def start(self) -> None:
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Raises Refused: 429 when the queue is full, 503 when the server is closing."""
        with self.changed:
            if self.closing:
                raise Refused(503, "the server is closing. Ask again later.", retry_after=5)
            if len(self.waiting) >= self.limits.queue:
                self.waiting = deque(j for j in self.waiting if not j.cancelled)
            if len(self.waiting) >= self.limits.queue:
                pause = min(60, 1 + int(self.seconds * len(self.waiting)))
                raise Refused(
                    429,
                    f"{len(self.waiting)} requests wait already. Ask again in {pause} s.",
                    code="queue_full",
                    retry_after=pause,
                )
            if job.patch is None and isinstance(job, AskJob):
                job.patch = self.unedited
            self.waiting.append(job)
            self.changed.notify()

    def close(self, seconds: float | None = None) -> bool:
        """Finishes what was accepted, and ends. Whether it is done within so many seconds."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        if self.thread.ident is not None:
            self.thread.join(seconds)
        return not self.thread.is_alive()

    def forget(self, patches: Sequence[Patch]) -> None:
        """Lets go of patches; answers that grow with them end with them."""
        gone = {id(p) for p in patches}
        with self.changed:
            self.recent = [p for p in self.recent if id(p) not in gone]
            for rows in self.shared:
                rows.closed = rows.closed or any(id(p) in gone for p in rows.patches)
            self.changed.notify()

    @property
    def growing(self) -> int:
        return sum(len(s.rows) for s in self.shared) + len(self.lone)

    # -- in the engine's thread ---------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as e:
            self.watch.failed(e)
            self._give_up(e)
            raise

    def _give_up(self, error: BaseException) -> None:
        with self.changed:
            self.closing = True
            left = [*self.waiting, *(r.job for s in self.shared for r in s.rows)]
            self.waiting.clear()
        self._fail([*left, *(r.row.job for r in self.lone)], error)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.shared = [s for s in self.shared if s.rows or not s.closed]
                while not (self.waiting or self.growing or self.closing):
                    self.changed.wait()
                    self.shared = [s for s in self.shared if s.rows or not s.closed]
                if self.closing and not (self.waiting or self.growing):
                    return
                jobs = self._next()
            begun = time.monotonic()
            self._admit(jobs)
            self._step()
            share = (time.monotonic() - begun) / max(1, len(jobs) + self.growing)
            self.seconds += NEWEST * (share - self.seconds)

    def _next(self) -> list[Job]:
        """The jobs that begin now, in the order in which they came."""
        room, jobs = self.limits.batch - self.growing, list[Job]()
        while self.waiting and len(jobs) < min(room, TOGETHER):
            job = self.waiting.popleft()
            if not job.cancelled:
                jobs.append(job)
        return jobs

    def _admit(self, jobs: Sequence[Job]) -> None:
        together: list[AskJob] = []
        for job in jobs:
            if isinstance(job, AskJob):
                if job.patch is not None and self.joins:
                    together.append(job)
                else:
                    self._guarded([job], partial(self._alone, job))
            elif isinstance(job, DrawJob):
                self._guarded([job], partial(self._draw, job))
        if together:
            self._join(together)

    def _join(self, jobs: Sequence[AskJob]) -> None:
        rows = self._rows_for(jobs)
        if rows is None:
            self.joins = False
            for job in jobs:
                self._guarded([job], partial(self._alone, job))
            return
        try:
            self._say(rows.join(jobs, self.limits.prompt_tokens))
            self.watch.forward(len(jobs))
        except UserError:  # of one of them: each by itself
            if len(jobs) > 1:
                for job in jobs:
                    self._join([job])
            else:
                self._guarded(jobs, partial(self._alone, jobs[0]))
        except Exception as e:
            self._drop(rows, jobs, e)

    def _drop(self, rows: SharedRows, jobs: Sequence[AskJob], error: Exception) -> None:
        """Rows that failed together, and jobs that were about to join them."""
        with self.changed:
            self.shared.remove(rows)
        self._fail([*jobs, *(r.job for r in rows.rows if r.job not in jobs)], error)

    def _rows_for(self, jobs: Sequence[AskJob]) -> SharedRows | None:
        """Rows that hold the patches of all jobs; the last ones, or new ones."""
        wanted = [j.patch for j in jobs if j.patch is not None]
        with self.changed:
            for rows in self.shared:
                if not rows.closed and all(rows.serves(p) for p in wanted):
                    return rows
            new = list({id(p): p for p in reversed(wanted)}.values())
            older = [p for p in self.recent if not any(p is q for q in new)]
            self.recent = (new + older)[: max(PATCHES, len(new))]
            for rows in self.shared:
                rows.closed = True
            patches = list(self.recent)
        made = SharedRows.of(self.bb, patches)
        if made is not None:
            with self.changed:
                self.shared.append(made)
        return made

    def _alone(self, job: AskJob) -> None:
        row = LoneRow(self.bb, job, self.limits.prompt_tokens)
        self.watch.forward(1)
        self.post([(job, e) for e in row.begun])
        if not row.row.over:
            self.lone.append(row)

    def _draw(self, job: DrawJob) -> None:
        generator = image_generator(self.bb)
        patches = () if job.patch is None else (job.patch,)
        pictures = []
        with self.bb.merged_once(*patches)():
            for seed in job.seeds:  # one by one, as `errata draw` does
                rows = torch.zeros(1, dtype=torch.long)
                pictures += generator.draw([job.prompt], [seed], rows=rows)[0]
        self.post([(job, Drawn(tuple(pictures)))])

    def _step(self) -> None:
        for rows in list(self.shared):
            rows.sweep()
            if rows.rows:
                self.watch.forward(len(rows.rows))
                try:
                    self._say(rows.step())
                except Exception as e:
                    self._drop(rows, [], e)
        self.lone = [r for r in self.lone if not r.row.job.cancelled]
        for one in list(self.lone):
            self._guarded([one.row.job], partial(self._one_step, one))
            self.watch.forward(1)
            if one.row.over:
                self.lone.remove(one)

    def _one_step(self, one: LoneRow) -> None:
        self._say(one.step())

    def _say(self, said: Sequence[tuple[Row, list[Event]]]) -> None:
        self.post([(row.job, event) for row, events in said for event in events])

    def _guarded(self, jobs: Sequence[Job], run: Callable[[], None]) -> None:
        """A job that fails ends with its reason; the others go on."""
        try:
            run()
        except Exception as e:
            self.lone = [r for r in self.lone if r.row.job not in jobs]
            self._fail(jobs, e)

    def _fail(self, jobs: Sequence[Job], error: BaseException) -> None:
        reason = refused(error)
        if reason.status >= 500:
            self.watch.failed(error)
        self.post([(job, reason) for job in jobs])
