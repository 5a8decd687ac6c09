"""What stands in front of the routes, and what they are told of a failure."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from errata.core.errors import BadImage, TooLong
from errata.serve.failures import Refused, refused
from errata.serve.http.guard import Guard
from errata.serve.logs import EventLog
from errata.serve.metrics import ServeMetrics
from errata.serve.settings import Access, Limits


def request(
    app: Any, *, limits: Limits | None = None, send: Any = None, path: str = "/x",
    body: bytes = b"",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """(what was sent, the log) of one request."""
    sent: list[dict[str, Any]] = []
    stream = io.StringIO()

    async def keep(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    guard = Guard(app, Access(), limits or Limits(), ServeMetrics(), EventLog(stream))
    scope = {"type": "http", "path": path, "method": "POST", "headers": []}
    asyncio.run(guard(scope, receive, send or keep))
    return sent, [json.loads(line) for line in stream.getvalue().splitlines()]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"all", "more_body": False})


def test_a_client_that_takes_nothing_is_given_up():
    async def never(message: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        request(answer, limits=Limits(send_seconds=0.05), send=never)


def test_a_failure_of_a_route_is_a_500_without_details():
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError(f"the prompt was: {'-'.join('secret')}")

    sent, log = request(broken)
    assert sent[0]["status"] == 500 and b"s-e-c-r-e-t" not in sent[1]["body"]
    assert [e["event"] for e in log] == ["bug", "request"]
    assert log[0]["kind"] == "RuntimeError" and "s-e-c-r-e-t" not in json.dumps(log)
    assert log[1]["status"] == 500


def test_too_many_open_requests():
    sent, _ = request(answer, limits=Limits(requests=0))
    assert sent[0]["status"] == 429
    assert dict(sent[0]["headers"])[b"retry-after"] == b"2"


def test_prompts_are_logged_only_if_asked():
    for prompts in (False, True):
        stream = io.StringIO()
        EventLog(stream, prompts=prompts).write("request", texts={"prompt": "a secret"}, status=200)
        assert ("a secret" in stream.getvalue()) == prompts
        assert json.loads(stream.getvalue())["status"] == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TooLong("too long"), 400, "context_length_exceeded"),
        (BadImage("broken"), 400, "invalid_image"),
        (ValueError("a secret"), 500, "internal_error"),
        (MemoryError(), 503, None),
        (Refused(409, "taken", code="name_taken"), 409, "name_taken"),
    ],
)
def test_errors_as_failures(error, status, code):
    failure = refused(error)
    assert (failure.status, failure.code) == (status, code)
    assert "secret" not in failure.message
    assert set(failure.body["error"]) == {"message", "type", "param", "code"}
