"""Chat with a server that speaks OpenAI's `chat/completions`: one request, one text. No torch.

Whatever keeps every request from being answered (no connection, no permission, no credit, a server
that stays busy) is the user's to mend: BadEndpoint. What concerns one request alone (refused
content, a reply of another shape) is NoReply, and the caller says what that means.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.core.errors import BadEndpoint

#: Of no use to ask again: the request or the permission is wrong.
_DENIED = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
#: Seconds: a server may ask for a longer pause than is worth waiting for.
_LONGEST = 60.0


class _Stay(urllib.request.HTTPRedirectHandler):
    """Another address would be shown the key: a redirection is an error."""

    def redirect_request(self, *args: Any) -> None:
        return None


class NoReply(Exception):
    """This request got no text, though the server works."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind a URL such as http://localhost:8000/v1.

    The key is read from the environment variable `key_env` at each request and kept nowhere; a
    server that wants none is asked without. `tries` counts requests, the first included; pauses
    between them double from one second, or are what the server asks for.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 180.0
    tries: int = 5
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
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
        for turn in range(self.tries):
            try:
                return _text(self._post(data))
            except urllib.error.HTTPError as e:
                with e:
                    why = f"it answers {e.code} ({_said(e)})"
                if e.code in _DENIED:
                    raise BadEndpoint(f"{self.url}: {why}. {self._mend(e.code)}") from None
                if e.code not in _BUSY:
                    raise NoReply(why) from None
                pause = _asked(e)
            except (OSError, http.client.HTTPException) as e:
                why, pause = f"it cannot be reached ({getattr(e, 'reason', e)})", None
            if turn + 1 < self.tries:
                self.sleep(min(_LONGEST, 2.0**turn if pause is None else pause))
        raise BadEndpoint(
            f"{self.url}: {why}, {self.tries} times. Start the server or wait, then repeat the "
            "same command: finished work is kept."
        )

    def _post(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env):
            headers["Authorization"] = f"Bearer {key}"
        where = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(where, data, headers)
        opener = urllib.request.build_opener(_Stay)
        with opener.open(request, timeout=self.timeout) as reply:
            got: bytes = reply.read()
        return got

    def _mend(self, code: int) -> str:
        if code < 400 or code in (404, 405):
            return f"Check the URL and that it serves the model '{self.model}'."
        if os.environ.get(self.key_env):
            return f"Check the key in {self.key_env} and its credit."
        return f"Put the key into the environment variable {self.key_env}."


def _asked(error: urllib.error.HTTPError) -> float | None:
    """The pause that the server asks for, in seconds; dates are not read."""
    text = error.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


def _said(error: urllib.error.HTTPError) -> str:
    text = error.read(2000).decode("utf-8", "replace")
    try:
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else str(found)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:200] or error.reason


def _text(data: bytes) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise NoReply(f"the reply is not a chat completion ({type(e).__name__}: {e})") from None
    if not isinstance(content, str):
        raise NoReply("the reply holds no text")
    return content


def json_object(text: str) -> dict[str, Any]:
    """The one JSON object that a reply is, a code fence around it apart.

    Nothing is guessed: text before or after it, or anything but an object, raises ValueError.
    """
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and len(text) > 6:
        first, _, rest = text[3:-3].partition("\n")
        text = rest if first.strip().lower() in ("", "json") else text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the reply is not JSON ({e})") from None
    if not isinstance(found, dict):
        raise ValueError("the reply is JSON, but no object")
    return found
