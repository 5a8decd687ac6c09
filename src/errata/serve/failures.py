"""A request that fails, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from errata.core.errors import (
    BadImage,
    FingerprintMismatch,
    MissingState,
    TooLong,
    UnknownName,
    UserError,
)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}
#: errors of errata -> OpenAI's `code`
_CODES: tuple[tuple[type[UserError], str], ...] = (
    (TooLong, "context_length_exceeded"),
    (BadImage, "invalid_image"),
    (UnknownName, "unknown_name"),
    (MissingState, "missing_state"),
    (FingerprintMismatch, "patch_of_another_model"),
)


class Refused(Exception):
    """A request that is answered with a status of 4xx or 5xx.

    retry_after: seconds, for a client that may come again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers


def refused(error: BaseException) -> Refused:
    """Any error as one of these: the user's own are 400, all others are a bug, without details."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UserError):
        code = next((c for cls, c in _CODES if isinstance(error, cls)), "bad_request")
        return Refused(400, str(error), code=code)
    if isinstance(error, MemoryError):
        return Refused(503, "the server is out of memory. Ask again later.", retry_after=30)
    return Refused(500, "this is a bug of the server; its log says more.", code="internal_error")
