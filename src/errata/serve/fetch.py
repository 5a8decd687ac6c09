"""Fetches an image from an https URL, without letting the URL choose where the server connects.

Only hosts of a list are asked. A host is resolved once; if one of its addresses is not a public one
(private, loopback, link-local, multicast, reserved, or such an address inside an IPv6 one), nothing
is connected. The connection goes to the address that was checked, and the certificate must be that
of the host. Every redirect passes the same checks.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from errata.core.errors import one_line
from errata.serve.failures import Refused

REDIRECTS = 3
PIECE = 64 * 1024
_MOVED = (301, 302, 303, 307, 308)

#: host and port -> its addresses
Resolve = Callable[[str, int], Sequence[str]]
#: address, port, host (for its certificate), timeout -> a connected socket
Connect = Callable[[str, int, str, float], Any]


def resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def connect(address: str, port: int, host: str, timeout: float) -> Any:
    plain = socket.create_connection((address, port), timeout)
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, also after unpacking it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # an IPv4 address behind a NAT64
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if any(i is not None and not is_public(str(i)) for i in inside):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True)
class Fetcher:
    """hosts: that may be asked, as `name` (port 443) or `name:port`. most: bytes of an answer."""

    hosts: frozenset[str]
    most: int
    seconds: float
    resolve: Resolve = resolve
    connect: Connect = connect

    def fetch(self, url: str) -> bytes:
        """The bytes behind a URL. Raises Refused."""
        deadline = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            host, port, path = self._checked(url)
            address = self._address(host, port)
            try:
                status, location, data = self._get(address, host, port, path, deadline)
            except (OSError, http.client.HTTPException, ValueError) as e:
                raise _bad(f"the image at {host} cannot be fetched ({one_line(e)})") from None
            if status == 200:
                return data
            if status not in _MOVED or not location:
                raise _bad(f"{host} answers {status} instead of an image")
            url = urllib.parse.urljoin(url, location)
        raise _bad(f"the image at {host} is redirected more than {REDIRECTS} times")

    def _checked(self, url: str) -> tuple[str, int, str]:
        """Host, port and path of a URL that may be asked."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or 443
        except ValueError:
            raise _bad("an image has a URL that cannot be read") from None
        if parts.scheme != "https" or parts.username is not None or parts.password is not None:
            raise _bad("an image is given by something else than a data: or a plain https: URL")
        plain = url.isascii() and url.isprintable() and " " not in url
        if not host or not plain:
            raise _bad("an image has a URL that cannot be read")
        name = host if port == 443 else f"{host}:{port}"
        if name not in self.hosts:
            allowed = ", ".join(sorted(self.hosts)) or "none"
            raise _bad(f"images are not fetched from {name[:100]} (allowed hosts: {allowed})")
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        return host, port, path

    def _address(self, host: str, port: int) -> str:
        """The address to connect to, resolved once."""
        try:
            found = list(self.resolve(host, port))
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise _bad(f"the host {host} is not known")
        if not all(map(is_public, found)):
            raise _bad(f"the host {host} leads into a network that is not public")
        return found[0]

    def _get(
        self, address: str, host: str, port: int, path: str, deadline: float
    ) -> tuple[int, str, bytes]:
        """Status, `Location` and body of one request."""

        def left() -> float:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError(f"it took more than {self.seconds:g} s")
            return seconds

        asked = http.client.HTTPConnection(host, port)
        asked.sock = line = self.connect(address, port, host, left())
        try:
            asked.request("GET", path, headers={
                "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close",
            })  # fmt: skip
            line.settimeout(left())
            reply = asked.getresponse()
            if reply.status != 200:
                return reply.status, reply.getheader("Location", ""), b""
            data = bytearray()
            while piece := reply.read1(PIECE):
                data += piece
                if len(data) > self.most:
                    raise ValueError(f"it has more than {self.most:,} bytes")
                line.settimeout(left())
            return reply.status, "", bytes(data)
        finally:
            asked.close()


def _bad(what: str) -> Refused:
    return Refused(
        400, f"{what}. Give the image as a data: URL.", code="invalid_image_url", param="messages"
    )
