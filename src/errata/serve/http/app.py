"""The routes as one application, and how their failures are answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import errata
from errata.core.errors import UserError
from errata.serve.failures import Refused, refused
from errata.serve.http import admin, chat, drawing
from errata.serve.http.common import FAILURES, service_of
from errata.serve.http.guard import Guard
from errata.serve.http.waiting import ClientGone, Mailbox
from errata.serve.logs import EventLog
from errata.serve.service import Service

router = APIRouter(responses=FAILURES)


class AsciiResponse(JSONResponse):
    """JSON in ASCII: a half of a surrogate pair in an error message is no error of its own."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    return service_of(request).health()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    text = service_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The model, and with each of its patches. Stacks are not listed: MODEL+PATCH+PATCH."""
    names = service_of(request).catalogue.models()
    data = [{"id": n, "object": "model", "created": 0, "owned_by": "errata"} for n in names]
    return {"object": "list", "data": data}


class ServeApp(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Without FastAPI's own 422, which is answered as 400."""
        schema = super().openapi()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        return schema


def application(service: Service, mailbox: Mailbox, log: EventLog) -> Guard:
    """The server as an ASGI application."""
    app = ServeApp(
        title="errata", version=errata.__version__, docs_url=None, redoc_url=None,
        default_response_class=AsciiResponse, redirect_slashes=False,
    )  # fmt: skip
    app.state.service, app.state.mailbox = service, mailbox
    for one in (router, chat.router, admin.router):
        app.include_router(one)
    app.include_router(drawing.router)
    app.add_exception_handler(Refused, _failed)
    app.add_exception_handler(UserError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(Exception, _failed)
    return Guard(app, service.setup.access, service.limits, service.metrics, log)


def _answer(failure: Refused, headers: Mapping[str, str] | None = None) -> Response:
    return AsciiResponse(
        failure.body, failure.status, headers={**failure.headers, **(headers or {})}
    )


async def _failed(request: Request, error: Exception) -> Response:
    return _answer(refused(error))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; it stands in the log


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is no such route", 405: "the route has not this method"}
    text = said.get(error.status_code, str(error.detail))
    return _answer(Refused(error.status_code, f"{text}."), error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong, without the value, which may be long or secret."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])[:200]
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = "this server does not know this field; leave it out"
    text = f"{where}: {said}" if where else said
    return _answer(Refused(400, f"{text}.", param=where or None, code=str(first["type"])))
