"""Requests that schemathesis makes from the server's own OpenAPI document, right and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import errata
from errata.serve.service import Setup
from errata.serve.settings import Access, Limits
from tests import tiny
from tests.serving import ADMIN, TOKEN, TestServer, bearer, served

CHECKS: list[Any] = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 15
OPERATIONS = {
    *("GET /health", "GET /metrics", "GET /v1/models", "GET /v1/patches"),
    *("POST /v1/chat/completions", "POST /v1/images/generations", "POST /v1/edits"),
    *("POST /v1/patches/{name}/load", "POST /v1/patches/{name}/unload"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    limits = Limits(tokens=4, prompt_tokens=300, patches=20)
    access = Access(token=TOKEN, admin=ADMIN)
    editor = errata.editor("say")
    setup = Setup(name="tiny", folder=folder, limits=limits, access=access, editor=editor)
    with served(tiny.llava(), setup) as running:
        yield running


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda m: m.value)
def test_no_request_breaks_the_server(server: TestServer, mode: GenerationMode) -> None:
    document = server.http.get("/openapi.json").json()
    seen = set()
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        seen.add(f"{operation.method.upper()} {operation.path}")
        # a GET without parameters cannot be asked wrongly
        if mode is GenerationMode.POSITIVE or operation.body or operation.path_parameters:
            _try(operation, mode, server)
    assert seen == OPERATIONS
    assert not [e for e in server.lines if e["event"] == "bug"]
    assert server.http.get("/health").status_code == 200


def _try(operation: Any, mode: GenerationMode, server: TestServer) -> None:
    statuses = []

    @settings(
        max_examples=EXAMPLES if operation.body else 3,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        reply = case.call(base_url=server.url, headers=bearer(ADMIN), timeout=30)
        case.validate_response(reply, checks=CHECKS)
        statuses.append(reply.status_code)
        if mode is GenerationMode.NEGATIVE:
            assert reply.status_code >= 400, case.body

    one()
    assert statuses
