"""What surrounds every request: measuring, headers of security, who may ask, and the size of the body."""

import asyncio
import hmac
import logging
import time
from collections.abc import Collection, Mapping
from http import HTTPMethod

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prime_xmc.serving.problems import ProblemError
from prime_xmc.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/", "/health", "/health/live", "/health/ready", "/openapi.json"})  # have no secrets
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_METHODS = frozenset(HTTPMethod)
_DRAINED = 2**26  # bytes that are read of a body that is too large: many clients send all before they read an answer


class Observed:
    """Counts and times requests, adds headers, and answers for defects.

    A defect is logged with its traceback, of which the client sees nothing.

    Args:
        app: What is inside.
        telemetry: The metrics.
        headers: Headers of every answer that does not set them itself.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, headers: Mapping[str, str] = SECURITY_HEADERS):
        self.app, self.telemetry, self.headers = app, telemetry, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        began = time.perf_counter()
        try:
            await self.app(scope, receive, send_on)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if status is None:
                problem = ProblemError(500, "defect", "the server failed on this request; its log says how")
                self.telemetry.errors.labels(problem.reason).inc()
                await problem.response()(scope, receive, send_on)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # a counter for each path would have no bound
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.telemetry.requests.labels(method, path, str(status)).inc()
            self.telemetry.latency.labels(path).observe(time.perf_counter() - began)


class Guarded:
    """Lets in who has the token; and only requests that are addressed to this server by name.

    Without the second, a page of any site could read the answers of a server on the reader's own machine, by a name of
    the site that leads there (DNS rebinding).

    Args:
        app: What is inside.
        telemetry: The metrics.
        token: Token; None: there is none.
        hosts: Names by which the server may be addressed; None: any.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, token: str | None, hosts: Collection[str] | None):
        self.app, self.telemetry, self.hosts = app, telemetry, hosts
        self.token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (problem := self._problem(scope)) is not None:
            self.telemetry.errors.labels(problem.reason).inc()
            await problem.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _problem(self, scope: Scope) -> ProblemError | None:
        headers = Headers(scope=scope)
        if self.hosts is not None and (host := _host_name(headers.get("host", ""))) not in self.hosts:
            detail = f"this server is not addressed as {host[:100]!r}; hosts= of its configuration names who it is"
            return ProblemError(421, "unknown_host", detail)
        if self.token is None or scope["path"] in OPEN_PATHS:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token):
            return None
        detail = "expected the header Authorization: Bearer <token>" + (", with another token" if given else "")
        return ProblemError(401, "token", detail, {"WWW-Authenticate": "Bearer"})


class BodyLimited:
    """Reads bodies before anything is done with them, up to a size and a time.

    Args:
        app: What is inside.
        telemetry: The metrics.
        max_bytes: Most bytes of a body.
        seconds: Time in which it has to arrive.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, max_bytes: int, seconds: float | int):
        self.app, self.telemetry, self.max_bytes, self.seconds = app, telemetry, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            messages = await self._read(scope, receive)
        except ProblemError as problem:
            self.telemetry.errors.labels(problem.reason).inc()
            await problem.response()(scope, receive, send)
            return
        if messages[-1]["type"] == "http.disconnect":
            self.telemetry.gone.inc()
            return
        await self.app(scope, _replay(messages, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message]:
        too_large = ProblemError(
            413,
            "body_too_large",
            f"expected a body of at most {self.max_bytes:,} bytes: send fewer texts at once",
            {"Connection": "close"},
        )
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        expected = int(declared) if declared.isdecimal() else 0
        reads_at_once = "expect" in headers  # it asks before it sends anything
        if expected > self.max_bytes and (expected > _DRAINED or reads_at_once):
            raise too_large
        messages: list[Message] = []
        size = 0
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    size += len(message.get("body", b""))
                    is_last = message["type"] != "http.request" or not message.get("more_body", False)
                    if size <= self.max_bytes:
                        messages.append(message)
                        if is_last:
                            return messages
                    elif is_last or size > _DRAINED:
                        raise too_large
        except TimeoutError as error:
            if size > self.max_bytes:
                raise too_large from error
            detail = f"the body did not arrive within {self.seconds:g} s"
            raise ProblemError(408, "body_too_slow", detail, {"Connection": "close"}) from error


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Return a channel that gives messages again before it goes on with a channel."""
    left = iter(messages)

    async def replay() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return replay


def _host_name(header: str) -> str:
    """Return the name in a Host header, without the port and the brackets of an IPv6 address."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
