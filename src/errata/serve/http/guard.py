"""What every request passes before a route sees it: token, sizes, times, an id, a line in the log.

A plain ASGI application around the routes.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from errata.serve.failures import Refused, refused
from errata.serve.logs import EventLog
from errata.serve.metrics import ServeMetrics
from errata.serve.settings import Access, Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ID = re.compile(r"[\w.-]{1,100}")
#: routes by the right that they need; any other needs that of `questions`
OPEN = ("/health",)
ADMIN = ("/v1/patches", "/v1/edits")


class Guard:
    def __init__(
        self, app: App, access: Access, limits: Limits, metrics: ServeMetrics, log: EventLog
    ) -> None:
        self.app, self.access, self.limits = app, access, limits
        self.metrics, self.log, self.open = metrics, log, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = _Seen(scope, send, self.limits.send_seconds)
        self.open += 1
        try:
            self._check(scope)
            body = await self._body(scope, receive)
            await self.app(scope, _replayed(body, receive), seen.send)
        except Refused as e:
            await seen.refuse(e)
        except TimeoutError:
            seen.status = seen.status or 408  # the connection ends without the rest
            if seen.status == 200:
                raise
        except Exception as e:
            self.metrics.bugs.inc()
            self.log.bug(e, id=seen.id)
            await seen.refuse(refused(e))
        finally:
            self.open -= 1
            self._note(scope, seen)

    def _note(self, scope: Scope, seen: _Seen) -> None:
        found = scope.get("route")
        route = "none" if found is None else found.path
        seconds = time.monotonic() - seen.begun
        self.metrics.requests.labels(route, str(seen.status or 499)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        self.log.write(
            "request", id=scope["state"]["id"], method=scope["method"], route=route,
            status=seen.status or 499, seconds=round(seconds, 4), complete=seen.complete,
            **scope["state"].get("facts", {}), texts=scope["state"].get("texts"),
        )  # fmt: skip

    # -- what is refused ------------------------------------------------------------------------

    def _check(self, scope: Scope) -> None:
        if self.open > self.limits.requests:
            raise Refused(
                429, f"{self.open - 1} requests are open already. Ask again in 2 s.",
                code="too_many_requests", retry_after=2,
            )  # fmt: skip
        path = scope["path"]
        if path in OPEN:
            return
        given = _header(scope, b"authorization")
        kind, _, token = given.partition(" ")
        token = token.strip() if kind.lower() == "bearer" else ""
        is_admin = _same(token, self.access.admin)
        if path.startswith(ADMIN):
            if self.access.admin is None:
                raise Refused(403, "this server was started without a token for administrators.")
            if not is_admin:
                raise Refused(
                    403 if _same(token, self.access.token) else 401,
                    "this needs the administrator's token: Authorization: Bearer TOKEN.",
                )
        elif self.access.token is not None and not (is_admin or _same(token, self.access.token)):
            raise Refused(401, "this needs a token: Authorization: Bearer TOKEN.")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises Refused: too large, or too slow."""
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > self.limits.body:
            raise self._too_large()
        body = bytearray()
        deadline = time.monotonic() + self.limits.body_seconds
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise Refused(
                    408, f"the request did not arrive within {self.limits.body_seconds:g} s."
                ) from None
            body += message.get("body", b"")
            if len(body) > self.limits.body:
                raise self._too_large()
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> Refused:
        return Refused(
            413, f"the request has more than {self.limits.body:,} bytes.", code="request_too_large"
        )


class _Seen:
    """Sends the answer, and remembers what was sent. Raises TimeoutError for a client that takes
    nothing for too long.
    """

    def __init__(self, scope: Scope, send: Send, seconds: float) -> None:
        self.begun = time.monotonic()
        self._send, self.seconds = send, seconds
        self.status, self.complete = 0, False
        asked = _header(scope, b"x-request-id")
        self.id = asked if _ID.fullmatch(asked) else f"req-{secrets.token_hex(8)}"
        scope["state"] = {**scope.get("state", {}), "id": self.id}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
        async with asyncio.timeout(self.seconds):
            await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.complete = True

    async def refuse(self, error: Refused) -> None:
        if self.status:
            return
        body = json.dumps(error.body).encode()
        headers = {**error.headers, "content-type": "application/json", "connection": "close"}
        headers["content-length"] = str(len(body))
        raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        start = {"type": "http.response.start", "status": error.status, "headers": raw}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def _header(scope: Scope, name: bytes) -> str:
    return next((v.decode("latin-1") for k, v in scope["headers"] if k == name), "")


def _same(given: str, wanted: str | None) -> bool:
    """Compared in a time that says nothing about where they differ."""
    return wanted is not None and hmac.compare_digest(given.encode(), wanted.encode())


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body once; then only says that the client is gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
