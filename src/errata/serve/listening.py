"""The socket that a server listens at."""

from __future__ import annotations

import ipaddress
import socket

from errata.core.errors import BadSpec


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any free one. Raises BadSpec."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise BadSpec(
            f"cannot listen on {host}, port {port} ({reason}). Give another --host or --port."
        ) from None


def is_this_machine(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
