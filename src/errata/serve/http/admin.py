"""Routes of administrators: patches are listed, loaded and unloaded, and facts are edited."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from errata.core.types import Edit
from errata.serve.catalogue import NAME
from errata.serve.edits import UNRELATED, WantedEdit, rephrased
from errata.serve.http.common import FAILURES, in_thread, service_of
from errata.serve.http.schemas import EditBody
from errata.serve.service import Service

router = APIRouter(prefix="/v1", responses=FAILURES)
Name = Annotated[str, Path(pattern=f"^{NAME.pattern}$")]


@router.get("/patches")
async def listed(request: Request) -> dict[str, Any]:
    """All patches, loaded or not."""
    service = service_of(request)
    found = await in_thread(service.readers, service.catalogue.listed)
    return {"object": "list", "data": found}


@router.post("/patches/{name}/load")
async def load(name: Name, request: Request) -> dict[str, Any]:
    """Reads a patch of the server's folders; one that is loaded is read again."""
    service = service_of(request)
    replaced = await in_thread(service.readers, lambda: service.catalogue.load(name))
    service.engine.forget(replaced)
    return {"name": name, "loaded": True}


@router.post("/patches/{name}/unload")
async def unload(name: Name, request: Request) -> dict[str, Any]:
    """Forgets a patch. Answers that grow with it are finished with it."""
    service = service_of(request)
    service.engine.forget(service.catalogue.unload(name))
    return {"name": name, "loaded": False}


@router.post("/edits")
async def edit(body: EditBody, request: Request) -> dict[str, Any]:
    """Makes an edit, loads it as a patch, and says whether it holds and what else changed."""
    service = service_of(request)
    service.maker.enter()
    try:
        wanted = await in_thread(service.readers, lambda: _wanted(body, service))
        made = await in_thread(service.maker.pool, lambda: service.maker.make(wanted))
    finally:
        service.maker.leave()
    service.metrics.edits.labels(str(made["verification"]["holds"]).lower()).inc()
    request.state.facts = {"patch": made["patch"], "holds": made["verification"]["holds"]}
    request.state.texts = {"prompt": body.prompt, "target": body.target}
    return made


def _wanted(body: EditBody, service: Service) -> WantedEdit:
    below = None
    if body.model is not None:
        below = service.catalogue.resolve(body.model).patch
    prompt = service.prompt(_parts(body.prompt, body.image))
    fact = Edit(prompt, body.target, subject=body.subject, id=body.name or "0001")
    asked = rephrased(fact) if body.rephrase is None else prompt.with_text(body.rephrase)
    if body.unrelated is None:
        others = [service.prompt(_parts(text, None)) for text in UNRELATED]
    else:
        others = [service.prompt(_parts(q.prompt, q.image)) for q in body.unrelated]
    return WantedEdit(
        edit=fact, below=below, rephrase=asked, unrelated=tuple(others), editor=body.editor,
        scope=body.scope, name=body.name, seed=body.seed,
    )  # fmt: skip


def _parts(text: str, image: str | None) -> list[tuple[str, str]]:
    return [("text", text)] if image is None else [("image", image), ("text", text)]
