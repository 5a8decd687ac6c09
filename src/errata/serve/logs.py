"""One JSON object per line on stderr. No prompt, answer or token stands in it unless asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO


class EventLog:
    """Writes events. stream: where to; prompts: whether texts of requests are written."""

    def __init__(
        self, stream: TextIO | None = None, *, prompts: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.stream, self.prompts, self.clock = stream or sys.stderr, prompts, clock

    def write(self, event: str, *, texts: dict[str, Any] | None = None, **fields: Any) -> None:
        """texts: fields that hold what a user wrote or was answered."""
        entry = {"time": round(self.clock(), 3), "event": event, **fields}
        if texts and self.prompts:
            entry.update(texts)
        line = json.dumps(entry, default=str)
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads the log any more; answers go on
            return

    def bug(self, error: BaseException, **fields: Any) -> None:
        """The traceback without the error's own message, which may quote a prompt."""
        frames = traceback.format_tb(error.__traceback__)
        self.write(
            "bug", kind=type(error).__name__, where="".join(frames),
            texts={"message": str(error)}, **fields,
        )  # fmt: skip


class LogHandler(logging.Handler):
    """Lines of uvicorn's own logger as events."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.INFO)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.log.bug(error, logger=record.name)
        else:
            self.log.write("server", level=record.levelname.lower(), message=record.getMessage())
