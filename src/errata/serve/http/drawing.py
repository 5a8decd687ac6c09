"""`POST /v1/images/generations`, for models that draw."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from errata.core.types import Prompt
from errata.serve.decoding.jobs import DrawJob, Drawn
from errata.serve.failures import Refused
from errata.serve.http.common import FAILURES, in_thread, service_of
from errata.serve.http.schemas import DrawBody
from errata.serve.http.waiting import Mailbox

router = APIRouter(prefix="/v1/images", responses=FAILURES)


@router.post("/generations")
async def draw(body: DrawBody, request: Request) -> dict[str, Any]:
    """Draws pictures, with the patches that the model name says."""
    service = service_of(request)
    chosen = service.catalogue.resolve(body.model)
    if "draw" not in service.bb.capabilities:
        raise Refused(400, f"{service.catalogue.name} draws no pictures.", param="model")
    seeds = tuple(range(body.seed, body.seed + body.n))
    job = DrawJob(patch=chosen.patch, prompt=Prompt.of(body.prompt), seeds=seeds)
    mailbox: Mailbox = request.app.state.mailbox
    request.state.facts = {"model": body.model, "pictures": body.n}
    request.state.texts = {"prompt": body.prompt}
    async for event in mailbox.answered(service.engine, job, request):
        if isinstance(event, Drawn):
            drawn = await in_thread(service.readers, partial(_png, event.pictures))
            return {"created": int(time.time()), "data": [{"b64_json": p} for p in drawn]}
    raise AssertionError("a drawing ends with `Drawn` or raises")


def _png(pictures: Sequence[Any]) -> list[str]:
    out = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        out.append(base64.b64encode(buffer.getvalue()).decode())
    return out
