"""Images from URLs: what is not asked at all, and what an answer may look like."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from errata.serve.failures import Refused
from errata.serve.fetch import Fetcher, is_public

PUBLIC = "93.184.216.34"
PRIVATE = (
    *("127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"),
    *("64:ff9b::a9fe:a9fe", "not an address", ""),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


class World:
    """A fake network: names and their addresses, and one server that every connection leads to."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names, self.resolved, self.connected = names, [], []
        self.port = 0

    def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        if host not in self.names:
            raise socket.gaierror("unknown")
        return self.names[host]

    def connect(self, address: str, port: int, host: str, timeout: float) -> Any:
        self.connected.append((address, port, host))
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def fetcher(self, *hosts: str, most: int = 1000, seconds: float = 5.0) -> Fetcher:
        return Fetcher(frozenset(hosts), most, seconds, self.resolve, self.connect)


@contextmanager
def answering(world: World, answer: Any) -> Iterator[None]:
    """`answer(handler)` answers every GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    world.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(status: int, body: bytes = b"", **headers: str) -> Any:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_an_image_is_fetched_from_the_address_that_was_checked():
    world = World({"img.example.org": [PUBLIC, "8.8.8.8"]})
    with answering(world, says(200, b"pixels")):
        assert world.fetcher("img.example.org").fetch("https://img.example.org/a?b=c") == b"pixels"
    assert world.resolved == ["img.example.org"]  # once: a second answer could be another one
    assert world.connected == [(PUBLIC, 443, "img.example.org")]


@pytest.mark.parametrize(
    "url",
    [
        "http://img.example.org/a.png",
        "https://other.example.org/a.png",
        "https://img.example.org:8443/a.png",
        "https://user:secret@img.example.org/a.png",
        "https://img.example.org@other.example.org/a.png",
        "https://img.example.org.evil.test/a.png",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://2130706433/a.png",
        "https://localhost/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "microworld:shape=ring",
        "ftp://img.example.org/a",
        "https://img.example.org/a\r\nX: y",
        "https://img.example.org/\u00e9",
        "https://[broken/a",
        "https://img.example.org:port/a",
        "https:///a",
        "",
    ],
)
def test_other_urls_are_not_asked(url):
    world = World({"img.example.org": [PUBLIC], "other.example.org": [PUBLIC]})
    with pytest.raises(Refused) as e:
        world.fetcher("img.example.org").fetch(url)
    assert e.value.status == 400
    assert not world.resolved and not world.connected


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_leads_inside_is_not_connected(address):
    world = World({"img.example.org": [PUBLIC, address]})
    with pytest.raises(Refused, match="not public"):
        world.fetcher("img.example.org").fetch("https://img.example.org/a.png")
    assert not world.connected


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "localhost"])
def test_an_inner_address_is_refused_though_it_is_on_the_list(host):
    world = World({"127.0.0.1": ["127.0.0.1"], "169.254.169.254": ["169.254.169.254"]})
    world.names["localhost"] = ["127.0.0.1", "::1"]
    with pytest.raises(Refused, match="not public"):
        world.fetcher(host).fetch(f"https://{host}/a.png")
    assert not world.connected


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254/latest",
        "https://inner.example.org/a.png",
        "https://evil.test/a.png",
        "file:///etc/passwd",
        "//evil.test/a.png",
    ],
)
def test_a_redirect_passes_the_same_checks(location):
    world = World({"img.example.org": [PUBLIC], "inner.example.org": ["10.0.0.5"]})
    with answering(world, says(302, Location=location)), pytest.raises(Refused):
        world.fetcher("img.example.org", "inner.example.org").fetch("https://img.example.org/a")
    assert [host for _, _, host in world.connected] == ["img.example.org"]


def test_a_name_is_checked_again_when_a_redirect_leads_back_to_it():
    """The resolver answers otherwise the second time, as in DNS rebinding."""
    world = World({"img.example.org": [PUBLIC]})

    def turn(handler: BaseHTTPRequestHandler) -> None:
        world.names["img.example.org"] = ["127.0.0.1"]
        says(302, Location="https://img.example.org/b")(handler)

    with answering(world, turn), pytest.raises(Refused, match="not public"):
        world.fetcher("img.example.org").fetch("https://img.example.org/a")
    assert len(world.connected) == 1


def test_an_allowed_redirect_is_followed_but_not_for_ever():
    world = World({"img.example.org": [PUBLIC]})
    paths: list[str] = []

    def once(handler: BaseHTTPRequestHandler) -> None:
        paths.append(handler.path)
        says(*((200, b"x") if handler.path == "/b" else (302,)), Location="/b")(handler)

    with answering(world, once):
        assert world.fetcher("img.example.org").fetch("https://img.example.org/a") == b"x"
    assert paths == ["/a", "/b"]
    with answering(world, says(302, Location="/b")), pytest.raises(Refused, match="redirected"):
        world.fetcher("img.example.org").fetch("https://img.example.org/a")


@pytest.mark.parametrize("status", [404, 500, 204, 401])
def test_anything_but_an_image_is_refused(status):
    world = World({"img.example.org": [PUBLIC]})
    with answering(world, says(status)), pytest.raises(Refused, match=str(status)):
        world.fetcher("img.example.org").fetch("https://img.example.org/a")


@pytest.mark.parametrize("length", [True, False])
def test_a_large_answer_is_cut_off(length):
    world = World({"img.example.org": [PUBLIC]})

    def much(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(b"x" * 5000)

    with answering(world, much), pytest.raises(Refused, match="more than 1,000"):
        world.fetcher("img.example.org").fetch("https://img.example.org/a")


def test_a_slow_answer_is_given_up():
    world = World({"img.example.org": [PUBLIC]})

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):  # the reader is gone
            for _ in range(40):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.05)

    begun = time.monotonic()
    with answering(world, slow), pytest.raises(Refused, match="cannot be fetched"):
        world.fetcher("img.example.org", seconds=0.3).fetch("https://img.example.org/a")
    assert time.monotonic() - begun < 3


def test_a_host_that_is_down_is_an_error_of_the_request():
    world = World({"img.example.org": [PUBLIC]})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world.port = free.getsockname()[1]
        with pytest.raises(Refused, match="cannot be fetched"):
            world.fetcher("img.example.org").fetch("https://img.example.org/a")
    with pytest.raises(Refused, match="not known"):
        world.fetcher("nowhere.test").fetch("https://nowhere.test/a")
