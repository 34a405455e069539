"""Answers that are no rewards: one error class, one shape on the wire.

    {"error": {"code": 413, "type": "too_large", "message": "…", "field": "…", "limit": 4194304}}

Never any text of the request: a prompt may be private, and an error body with an unpaired surrogate in it could not even be sent.
"""

from typing import Any

__all__ = ["Problem", "problem_body"]

_TYPES = {
    400: "bad_request",
    401: "no_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "not_json",
    421: "wrong_host",
    422: "invalid_request",
    429: "busy",
    503: "not_available",
}


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: what is wrong, what was expected and what to do; no text of the request.
        details: further keys of the answer, such as `field` and `limit`.
        retry_after_s: when to come back.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details
        self.headers: dict[str, str] = {} if retry_after_s is None else {"retry-after": str(max(1, round(retry_after_s)))}


def problem_body(status: int, message: str, **details: Any) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"code": status, "type": _TYPES.get(status, "error"), "message": message, **details}}
