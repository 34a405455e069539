"""What stands before every route: host, key, origin, size and time of the body, room for one more request, and the client's departure.

Plain ASGI, outside of the framework, so no route can be reached around it. Everything but /health/live is refused without the key where
there is one. It is taken from `Authorization: Bearer KEY`, from `X-API-Key: KEY`, or as the password of HTTP Basic, which is how a
browser opens the page and how a trainer that takes nothing but a URL sends it (http://any:KEY@host:8000/get_reward). Never from the
query: that would be written to logs on the way.

Without a key, only this machine is meant to call. A hostile page in a browser here could try: so `Host` has to be an address, a loopback
name or an allowed one (against DNS rebinding), and `Origin` and `Sec-Fetch-Site` must not name another site (against forged requests).
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dmoerm.serving.metrics import Metrics
from dmoerm.serving.problems import Problem, problem_body
from dmoerm.serving.settings import LOOPBACK_NAMES, ServerSettings

__all__ = ["Guard"]

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health/live",)
UNCOUNTED_PATHS = ("/health/live", "/health/ready", "/metrics")
"""Answered even when there is no room for another request."""

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_LOG = logging.getLogger(__name__)


class _Gone(Exception):
    """The client has left; nobody reads an answer."""


class Guard:
    """Wraps the application.

    Args:
        app: what is guarded.
        settings: key, hosts and limits.
        metrics: where requests are counted.
        routes: the paths that metrics may name; others count as "other".
    """

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._routes = routes
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, status = time.monotonic(), 0

        async def counted_send(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                event["headers"] = [*event.get("headers", []), *((k.encode(), v.encode()) for k, v in SECURITY_HEADERS.items())]
            await send(event)

        counted = scope["path"] not in UNCOUNTED_PATHS
        self._open += counted
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope, headers)
            body = await self._body(headers, receive)
            await self._while_connected(scope, body, receive, counted_send)
        except Problem as problem:
            if problem.status in (401, 403, 408, 413, 421, 429):
                self._metrics.add("dmoerm_refused_total", _REASONS[problem.status])
            await _send_problem(problem, counted_send)
        except _Gone:
            status = 499
        except Exception as error:
            # Its message may quote a request, so only its type is told.
            _LOG.error("a request failed: %s", type(error).__name__)
            if not status:
                await _send_problem(Problem(500, "something is wrong in the server; its log says what"), counted_send)
        finally:
            self._open -= counted
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.add("dmoerm_requests_total", route, str(status or 499))
            self._metrics.observe("dmoerm_request_seconds", time.monotonic() - begin, route)

    # --- who may ask ----------------------------------------------------------------------------------------------------------------

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        if scope["path"] in OPEN_PATHS:
            return
        if self._settings.api_key is None:
            self._check_host(headers.get("host", ""))
        elif not _has_key(headers, self._settings.api_key):
            raise Problem(401, "no valid API key; send it as Authorization: Bearer KEY, as X-API-Key, or as the password of HTTP Basic")
        self._check_origin(scope, headers)
        if scope["path"] not in UNCOUNTED_PATHS and self._open > self._settings.limits.open_requests:
            limit = self._settings.limits.open_requests
            raise Problem(
                429, f"{limit} requests are open already; come back in a moment", retry_after_s=1, field="open_requests", limit=limit
            )

    def _check_host(self, host: str) -> None:
        name = host.rsplit(":", 1)[0] if host.rsplit(":", 1)[-1].isdigit() else host
        name = name.strip("[]").lower()
        if name in (*LOOPBACK_NAMES, self._settings.host.lower(), *map(str.lower, self._settings.allowed_hosts)):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise Problem(421, "the server does not go by the name in Host; start it with --allow-host NAME, or with an API key") from None

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
        site = headers.get("sec-fetch-site", "none")
        visit = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
        if not own or (site not in ("none", "same-origin") and not visit):
            raise Problem(403, "a page of another site may not call this server")

    # --- the body -------------------------------------------------------------------------------------------------------------------

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self._settings.limits.body_bytes
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.limits.body_seconds):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(event.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise self._too_large()
                    if not event.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            seconds = self._settings.limits.body_seconds
            raise Problem(408, f"the body was not complete after {seconds:g} seconds", field="body_seconds", limit=seconds) from None

    def _too_large(self) -> Problem:
        limit = self._settings.limits.body_bytes
        return Problem(413, f"the body is larger than {limit} bytes; send fewer or shorter texts", field="body_bytes", limit=limit)

    async def _while_connected(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application on a body that is here already, and stop it when the client leaves."""
        given = False

        async def replay() -> Event:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()  # whoever waits for a departure is cancelled by it
            raise AssertionError

        work = asyncio.ensure_future(self._app(scope, replay, send))
        departure = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({work, departure}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise _Gone
            await work
        finally:
            for task in (work, departure):
                task.cancel()
            await asyncio.gather(work, departure, return_exceptions=True)


_REASONS = {401: "no_key", 403: "origin", 408: "slow_body", 413: "too_large", 421: "host", 429: "open_requests"}


def _has_key(headers: dict[str, str], key: str) -> bool:
    kind, _, value = headers.get("authorization", "").partition(" ")
    sent = [headers.get("x-api-key", "")]
    if kind.lower() == "bearer":
        sent.append(value.strip())
    elif kind.lower() == "basic":
        try:
            sent.append(base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2])
        except (binascii.Error, UnicodeDecodeError):
            sent.append("")
    # Every candidate is compared, whole, whatever came before.
    return any([hmac.compare_digest(one.encode("utf-8"), key.encode("utf-8")) for one in sent])


async def _send_problem(problem: Problem, send: Send) -> None:
    body = json.dumps(problem_body(problem.status, problem.message, **problem.details)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    if problem.status == 401:
        headers["www-authenticate"] = 'Basic realm="dmoerm", charset="UTF-8"'
    if problem.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    await send({"type": "http.response.start", "status": problem.status, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": body})
