"""A server for tests: in a thread of the test's process, on a free port of this machine."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from errata.core.model.backbone import Backbone
from errata.serve.fetch import Fetcher
from errata.serve.listening import listening
from errata.serve.logs import EventLog
from errata.serve.run import built
from errata.serve.service import Service, Setup

TOKEN, ADMIN = "token-for-questions", "token-for-administrators"
CHAT = "/v1/chat/completions"


class TestServer:
    """url; service; `lines`: the log so far. `ask`: a question, as a user; `post`, as admin."""

    __test__ = False

    def __init__(self, url: str, service: Service, stream: io.StringIO) -> None:
        self.url, self.service, self.stream = url, service, stream
        self.http = httpx.Client(base_url=url, timeout=60, headers=bearer(TOKEN))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def ask(self, body: dict[str, Any], **options: Any) -> httpx.Response:
        return self.http.post(CHAT, json=body, **options)

    def send(self, text: str | bytes) -> httpx.Response:
        """A question as it is written, right or wrong."""
        return self.http.post(CHAT, content=text, headers={"Content-Type": "application/json"})

    def admin(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(method, path, headers=bearer(ADMIN), **options)

    def said(self, model: str, text: str, picture: str | None = None, **more: Any) -> str:
        reply = self.ask({"model": model, "messages": question(text, picture), **more})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["message"]["content"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def question(text: str, picture: str | None = None) -> list[dict[str, Any]]:
    """Messages of one question. picture: a URL."""
    if picture is None:
        return [{"role": "user", "content": text}]
    image = {"type": "image_url", "image_url": {"url": picture}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


@contextmanager
def served(bb: Backbone, setup: Setup, fetcher: Fetcher | None = None) -> Iterator[TestServer]:
    stream = io.StringIO()
    where = listening("127.0.0.1", 0)
    service, server = built(bb, setup, log=EventLog(stream), drain=20, fetcher=fetcher)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [where]})
    thread.start()
    running = TestServer(f"http://127.0.0.1:{where.getsockname()[1]}", service, stream)
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield running
    finally:
        running.http.close()
        server.should_exit = True
        thread.join(30)
        assert service.stop(30)
