"""What the routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from starlette.requests import Request

from errata.serve.http.schemas import FailureBody
from errata.serve.service import Service

T = TypeVar("T")

#: how a route may fail, for the OpenAPI document
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": FailureBody, "description": what}
    for status, what in (
        (400, "The request cannot be answered; the message says why"),
        (401, "The token is missing or wrong"),
        (403, "The token has not this right"),
        (404, "There is no such model, patch or route"),
        (405, "The route has not this method"),
        (408, "The request did not arrive in time"),
        (409, "The name is taken, or there are too many patches"),
        (413, "The request is too large"),
        (429, "Too many requests; Retry-After says when to come again"),
        (500, "A bug of the server"),
        (503, "The server is closing"),
    )
}


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def in_thread(pool: Executor, run: Callable[[], T]) -> T:
    """Runs what would hold up the event loop."""
    return await asyncio.get_running_loop().run_in_executor(pool, run)
