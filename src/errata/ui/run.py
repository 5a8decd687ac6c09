"""The page's server: on this machine, closed to other sites, with nothing loaded from elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Mapping
from typing import Any

import fastapi
import uvicorn

from errata.ui.workbench import Workbench

USER = "errata"
#: scripts and styles of gradio stand in the page itself
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}


class PageGuard:
    """Refuses requests that another site's page makes, and lets the page load nothing from outside.

    hosts: names that the page is reached by; None: any, where a password stands in front of it.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if not self._allowed(headers):
            await _refuse(send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = (
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                )
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, guarded)

    def _allowed(self, headers: Mapping[str, str]) -> bool:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return False
        origin = headers.get("origin")
        return origin is None or origin.partition("://")[2] == host


def _name(host: str) -> str:
    """A host without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


async def _refuse(send: Any) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": b"this page answers its own address only."})


def application(workbench: Workbench, *, host: str, password: str | None) -> Any:
    """What answers. password: None = whoever reaches it may use it."""
    os.environ.update(_QUIET)  # before gradio is imported: it reads them then
    import gradio

    from errata.ui.html import style
    from errata.ui.page import page_of, theme

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(
        app, page_of(workbench), "/", server_name=host, footer_links=[], run_history=False,
        auth=None if password is None else (USER, password), show_error=False,
        max_file_size=workbench.limits.image, ssr_mode=False, pwa=False, mcp_server=False,
        theme=theme(), css=style(),
    )  # fmt: skip
    names = {"127.0.0.1", "localhost", "[::1]", host, f"[{host}]"}
    return PageGuard(app, frozenset(names) if password is None else None)


def built(workbench: Workbench, *, host: str, password: str | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        application(workbench, host=host, password=password), log_level="critical",
        access_log=False, server_header=False, ws="none", loop="asyncio", proxy_headers=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    return uvicorn.Server(config)


def serve(workbench: Workbench, where: socket.socket, *, host: str, password: str | None) -> None:
    """Answers until it is interrupted. Uploaded files lie in a folder that is removed then."""
    # uvicorn ends at SIGTERM, and then sends the signal on to the handler of before
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with tempfile.TemporaryDirectory(prefix="errata-ui-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            built(workbench, host=host, password=password).run(sockets=[where])
    finally:
        signal.signal(signal.SIGTERM, before)
