"""Waits for a job in the event loop, as long as the client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request

from errata.serve.decoding.engine import Engine
from errata.serve.decoding.jobs import AskJob, DrawJob, Drawn, Event, Finished, Job
from errata.serve.failures import Refused


class ClientGone(Exception):
    """Nobody reads the answer any more."""


class Mailbox:
    """Carries events from the engine's thread to the coroutines that wait for them."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.queues: dict[Job, asyncio.Queue[Event]] = {}

    def post(self, events: list[tuple[Job, Event]]) -> None:
        """From the engine's thread; one wake-up for all events of a step."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._hand_out, events)

    def _hand_out(self, events: list[tuple[Job, Event]]) -> None:
        for job, event in events:
            queue = self.queues.get(job)
            if queue is not None:
                queue.put_nowait(event)

    async def answered(
        self, engine: Engine, job: AskJob | DrawJob, request: Request
    ) -> AsyncIterator[Event]:
        """The events of a job, up to its last. Raises Refused, or ClientGone, which cancels it."""
        self.loop = asyncio.get_running_loop()
        queue = self.queues[job] = asyncio.Queue[Event]()
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            engine.submit(job)
            while True:
                event = await _next(queue, gone)
                if isinstance(event, Refused):
                    raise event
                yield event
                if isinstance(event, (Finished, Drawn)):
                    return
        finally:
            job.cancelled = True  # without effect on a job that is done
            del self.queues[job]
            gone.cancel()


async def _next(queue: asyncio.Queue[Event], gone: asyncio.Future[None]) -> Event:
    if not queue.empty():
        return queue.get_nowait()
    wanted = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        raise ClientGone
    finally:
        wanted.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
