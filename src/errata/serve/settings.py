"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for, and how many may be there. Beyond: a 4xx (docs/serve.md).

    body, image: bytes of a request and of one image. images, pixels: of a prompt, of an image.
    prompt_tokens: None = the model's context. tokens: of an answer; also what it gets that names no
    maximum. queue: requests that wait. batch: answers that grow at the same time. stack: patches in
    one model name. patches: loaded ones. requests: open at the same time, the slow ones included.
    edits: facts that wait to be edited. body_seconds, send_seconds, fetch_seconds: for a request to
    arrive, for a client to take the next piece of its answer, for an image to be fetched.
    """

    body: int = 20 * MIB
    image: int = 10 * MIB
    images: int = 4
    pixels: int = 16_000_000
    prompt_tokens: int | None = None
    tokens: int = 512
    queue: int = 128
    batch: int = 32
    stack: int = 8
    patches: int = 1000
    requests: int = 512
    edits: int = 4
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    fetch_seconds: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may do what. token: for questions; None = everybody. admin: for edits and patches; None =
    nobody. image_hosts: where images may be fetched from.
    """

    token: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)
    image_hosts: frozenset[str] = frozenset()
