"""What a client is told when it does not get what it asked for: a status and the reason, as JSON."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"  # RFC 9457
_SHOWN = 5  # of the mistakes in a body


class ProblemError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        reason: Name of the reason, for programs and metrics.
        detail: The reason for people: what was expected, and what to do.
        headers: Further headers.
    """

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status, self.reason, self.detail, self.headers = status, reason, detail, dict(headers or {})

    def response(self) -> Response:
        """Return what the client gets."""
        content = orjson.dumps({"status": self.status, "reason": self.reason, "detail": self.detail})
        return Response(content, self.status, self.headers, MEDIA_TYPE)


def body_problem(errors: list[Any]) -> ProblemError:
    """Return the problem of a body or a query that does not fit, from what pydantic found.

    Args:
        errors: Mistakes, each with its place and a message. Their values are not repeated: they may be long.
    """
    if any(error["type"] == "json_invalid" for error in errors):
        (error, *_) = errors
        reason = error.get("ctx", {}).get("error", "")
        return ProblemError(422, "not_json", f"the body is not JSON ({reason}, at character {error['loc'][-1]})")
    if any(error["loc"] == ("body",) for error in errors):
        detail = 'expected a JSON object such as {"texts": ["a text"]}, with the header Content-Type: application/json'
        return ProblemError(422, "invalid", detail)
    shown = [f"{'.'.join(map(str, error['loc'][1:]))}: {error['msg']}" for error in errors[:_SHOWN]]
    if len(errors) > _SHOWN:
        shown.append(f"and {len(errors) - _SHOWN} more")
    return ProblemError(422, "invalid", "; ".join(shown))
