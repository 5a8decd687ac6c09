"""Client for servers with OpenAI's `chat/completions`: one request, one text. No torch.

What makes every request fail (no connection, no permission, no credit, a server that stays busy)
raises BadEndpoint, which the user can fix. What makes one request fail (refused content, a reply of
another form) raises NoReply, which the caller handles.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.core.errors import BadEndpoint, one_line
from errata.core.formats.json_value import parse_json

#: No retry: the request or the permission is wrong.
_DENIED = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
#: The longest pause in seconds, also if the server asks for a longer one.
_LONGEST = 60.0


#: Most bytes of a reply. A text of 100,000 tokens has less than one million.
MOST = 16 * 2**20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would send the key to another address."""

    def redirect_request(self, *args: Any) -> None:
        return None


class NoReply(Exception):
    """This request got no text, but the server works."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind a URL such as http://localhost:8000/v1.

    The key is read from the environment variable `key_env` at each request and never stored; if the
    variable is not set, no key is sent. `tries` counts requests, the first included. The pause
    between them doubles from one second, or is what the server asks for.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 180.0
    tries: int = 5
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or not _is_url(self.url):
            raise BadEndpoint(
                f"'{self.url}' is no endpoint. Give its URL up to the version, for example "
                "http://localhost:8000/v1."
            )

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, temperature: float = 0.0
    ) -> str:
        """The reply's text. Raises BadEndpoint or NoReply."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        data = json.dumps(body).encode()
        for attempt in range(self.tries):
            try:
                return _text(self._post(data))
            except urllib.error.HTTPError as e:
                with e:
                    why = f"it answers {e.code} ({_reason(e)})"
                if e.code in _DENIED:
                    raise BadEndpoint(f"{self.url}: {why}. {self._advice(e.code)}") from None
                if e.code not in _BUSY:
                    raise NoReply(why) from None
                pause = _retry_after(e)
            except (OSError, http.client.HTTPException) as e:
                why, pause = f"it cannot be reached ({getattr(e, 'reason', e)})", None
            if attempt + 1 < self.tries:
                self.sleep(min(_LONGEST, 2.0**attempt if pause is None else pause))
        raise BadEndpoint(
            f"{self.url}: {why}, {self.tries} times. Start the server or wait, then repeat the "
            "same command: finished work is kept."
        )

    def _post(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env, "").strip():
            if not key.isascii() or not key.isprintable():
                raise BadEndpoint(
                    f"the key in {self.key_env} is no key: it holds other characters "
                    "than printable ASCII. Set it again."
                )
            headers["Authorization"] = f"Bearer {key}"
        where = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(where, data, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout) as reply:
            body: bytes = reply.read(MOST + 1)
        if len(body) > MOST:
            raise NoReply(f"the reply has more than {MOST:,} bytes")
        return body

    def _advice(self, code: int) -> str:
        if code < 400 or code in (404, 405):
            return f"Check the URL and that it serves the model '{self.model}'."
        if os.environ.get(self.key_env):
            return f"Check the key in {self.key_env} and its credit."
        return f"Put the key into the environment variable {self.key_env}."


def _is_url(text: str) -> bool:
    """Whether it names a host, and a port that exists if any."""
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return bool(parts.hostname) and text.isascii() and not re.search(r"[\s\x00-\x1f]", text)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """The pause that the server asks for, in seconds; None for a date or nothing."""
    text = error.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() and len(text) < 10 else None


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read(2000).decode("utf-8", "replace")
    try:
        details = json.loads(text)["error"]
        text = details["message"] if isinstance(details, dict) else str(details)
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    return one_line(str(text).strip() or error.reason)


def _text(data: bytes) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError) as e:
        raise NoReply(f"the reply is not a chat completion ({type(e).__name__})") from None
    if not isinstance(content, str):
        raise NoReply("the reply holds no text")
    return content.encode("utf-8", "replace").decode()  # halves of surrogate pairs are no text


def json_object(text: str) -> dict[str, Any]:
    """Parses a reply that is one JSON object, with or without a code fence around it.

    Other text before or after it, or JSON that is no object, raises ValueError.
    """
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and len(text) > 6:
        first, _, rest = text[3:-3].partition("\n")
        text = rest if first.strip().lower() in ("", "json") else text
    try:
        value = parse_json(text)
    except ValueError as e:
        raise ValueError(f"the reply is not JSON ({e})") from None
    if not isinstance(value, dict):
        raise ValueError("the reply is JSON, but no object")
    return value
