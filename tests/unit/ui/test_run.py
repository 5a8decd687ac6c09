"""What stands in front of the page: other sites are refused, and nothing is loaded from outside."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from errata.cli import main
from errata.ui.run import POLICY, PageGuard

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def asked(headers: dict[str, str], hosts: frozenset[str] | None = HOSTS) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(PageGuard(_page, hosts))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/", headers=headers)

    return asyncio.run(once())


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:80", "localhost", "[::1]:7860"])
def test_its_own_address_is_answered(host):
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        reply = asked(headers)
        assert reply.status_code == 200
        assert reply.headers["content-security-policy"] == POLICY
    assert "http" not in POLICY


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost:7860", "origin": "https://evil.example"},
        {"host": "localhost:7860", "origin": "null"},
        {"host": "localhost:7860", "origin": "http://localhost:1"},
    ],
)
def test_other_sites_are_refused(headers):
    assert asked(headers).status_code == 403


def test_behind_a_password_any_name_will_do_but_no_other_site():
    assert asked({"host": "vlm.example"}, None).status_code == 200
    other = {"host": "vlm.example", "origin": "https://evil.example"}
    assert asked(other, None).status_code == 403


@pytest.mark.parametrize(
    ("options", "password", "why"),
    [
        (["--host", "0.0.0.0"], "", "would answer everybody. Set ERRATA_UI_PASSWORD"),
        (["--host", "0.0.0.0"], "short", "at least 12 characters"),
        (["--patches", "nowhere"], "", "there is no folder nowhere"),
        (["--preset", "paper"], "", "belong to an editor"),
        (["--editor", "ft_x"], "", "unknown editor 'ft_x'"),
        (["--port", "BUSY"], "", "cannot listen on"),
    ],
)
def test_mistakes_are_one_line(options, password, why, monkeypatch, capsys, tmp_path):
    pytest.importorskip("gradio", reason="no gradio: pip install 'errata[ui]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_UI_PASSWORD", password)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        with pytest.raises(SystemExit) as end:
            main(["ui", "micro-vlm", *(port if o == "BUSY" else o for o in options)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("errata: ") and why in line


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("errata.cli.ui.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main(["ui", "micro-vlm"])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == ("errata: ui needs gradio: pip install 'errata[ui]'.")
