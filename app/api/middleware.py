"""What every request passes before its route, outermost first. All of it is plain ASGI.

RequestContext → HostGuard → AccessControl → (rate limit) → Admission → BodyLimit → the routes.
"""

import asyncio
import re
from functools import cache
from time import perf_counter
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import LOCAL_OWNER, Caller
from app.api.doors import DOORS, Doorway, door_of
from app.api.events import ClientGone
from app.api.problems import note, problem_response, to_footnote_error
from app.api.rate_limit import RateLimits, who_calls
from app.config import LOOPBACK_HOSTS, Settings
from app.errors import (
    BodyTooLarge,
    DatabaseUnavailable,
    Forbidden,
    MalformedRequest,
    Overloaded,
    RequestTimeout,
    Unauthenticated,
)
from app.telemetry import REQUEST_SECONDS, REQUESTS, request_id

CLIENT_GONE_STATUS = 499
FORM_OVERHEAD_BYTES = 128 * 1024
MAX_LENGTH_DIGITS = 18

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

log = structlog.get_logger(__name__)


class RequestContext:
    """Gives each request its id, its reply whatever happens, its headers, its line and numbers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.doorway = Doorway(DOORS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _SANE_ID.fullmatch(given) else uuid4().hex
        door = self.doorway.find(scope["method"], scope["path"])
        scope["state"] = {**scope.get("state", {}), "door": door}
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(MutableHeaders(raw=message["headers"]), name)
            await send(message)

        token = request_id.set(name)
        try:
            try:
                await self.app(scope, receive, send_with_headers)
            except ClientGone:
                status = CLIENT_GONE_STATUS
            except Exception as error:  # noqa: BLE001 - the last place that can reply
                told = to_footnote_error(error)
                note(error, told)
                if status == 0:
                    await problem_response(told)(scope, receive, send_with_headers)
                # Else the reply has begun: leaving it incomplete makes the server cut it off.
        finally:
            seconds = perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            _requests(method, door.path, status or CLIENT_GONE_STATUS).inc()
            _request_seconds(method, door.path).observe(seconds)
            write = log.debug if door.limit is None else log.info
            write(
                "request",
                method=method,
                path=scope.get("raw_path", b"").decode("ascii", "backslashreplace"),
                status=status or CLIENT_GONE_STATUS,
                took_ms=round(seconds * 1000, 1),
            )
            request_id.reset(token)


@cache
def _requests(method: str, path: str, status: int) -> Counter:
    return REQUESTS.labels(method, path, str(status))


@cache
def _request_seconds(method: str, path: str) -> Histogram:
    return REQUEST_SECONDS.labels(method, path)


def _complete(headers: MutableHeaders, name: str) -> None:
    headers["X-Request-ID"] = name
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("X-Frame-Options", "DENY")
    headers.setdefault("Referrer-Policy", "no-referrer")
    is_page = headers.get("content-type", "").startswith("text/html")
    headers.setdefault("Content-Security-Policy", _PAGE_POLICY if is_page else _API_POLICY)


class HostGuard:
    """Without keys, only this machine's own names are answered.

    Else a web page anywhere could point a name of its own at 127.0.0.1 and read every document.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.active = not settings.auth_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.active and scope["type"] == "http":
            headers = Headers(scope=scope)
            _refuse_foreign("Host", f"//{headers.get('host', '')}")
            if "origin" in headers:
                _refuse_foreign("Origin", headers["origin"])
        await self.app(scope, receive, send)


def _refuse_foreign(header: str, address: str) -> None:
    try:
        name = urlsplit(address).hostname
    except ValueError:
        name = None
    if name not in LOOPBACK_HOSTS:
        raise Forbidden(
            f"The header {header} does not name this machine.",
            hint="Call http://127.0.0.1 directly, or set FOOTNOTE_AUTH=on and use API keys.",
        )


class AccessControl:
    """Knows the caller before a byte of the body is read, and what his key allows."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.auth_required = settings.auth_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["caller"] = await self._caller(scope)
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller | None:
        asks = door_of(scope).asks
        if asks == "nobody":
            return None
        try:
            token = _token(Headers(scope=scope))
            if token is None and self.auth_required:
                if asks == "visitor":
                    return None
                raise Unauthenticated()
            caller = (
                LOCAL_OWNER
                if token is None
                else await scope["app"].state.resources.keyring.authenticate(token)
            )
        except Unauthenticated:
            # Guesses are counted against the address that they come from.
            limits: RateLimits = scope["app"].state.rate_limits
            await limits.take("requests", who_calls(scope))
            raise
        needed = "read" if asks == "visitor" else asks
        if needed != "any key" and needed not in caller.scopes:
            raise Forbidden(
                f"This needs the scope `{needed}`; the key has "
                f"{', '.join(f'`{one}`' for one in sorted(caller.scopes))}."
            )
        return caller


def _token(headers: Headers) -> str | None:
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("x-api-key")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("The header Authorization must say `Bearer fn_…`.")
    return token.strip()


class Admission:
    """Refuses at once when too many requests wait already, and lets none wait for ever.

    A request counts until its reply begins: an open stream holds nothing that others need.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.places = settings.database_pool_size + settings.database_pool_waiters
        self.timeout_seconds = settings.request_timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or door_of(scope).limit is None:
            await self.app(scope, receive, send)
            return
        problem = scope["app"].state.resources.database.problem
        if problem is not None and door_of(scope).asks != "visitor":
            raise DatabaseUnavailable(problem.detail, hint=problem.hint)
        if self.places <= 0:
            raise Overloaded("Too many requests are waiting already.")
        self.places -= 1
        waiting = True

        def leave() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                self.places += 1

        try:
            patient = door_of(scope).patient
            async with asyncio.timeout(None if patient else self.timeout_seconds) as deadline:

                async def send_and_leave(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        leave()
                        if not deadline.expired():
                            deadline.reschedule(None)
                    await send(message)

                await self.app(scope, receive, send_and_leave)
        finally:
            leave()


class BodyLimit:
    """Counts the body as it comes, whatever Content-Length says, and does not wait for ever."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.small_bytes = settings.max_body_bytes
        self.upload_bytes = settings.max_upload_bytes + FORM_OVERHEAD_BYTES
        # Before the whole request's time is up, so that the reply says what was slow.
        self.stall_seconds = settings.request_timeout_seconds / 2

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit_bytes = self.upload_bytes if door_of(scope).body == "upload" else self.small_bytes
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal():
            raise MalformedRequest("The header Content-Length is not a number.")
        if len(declared) > MAX_LENGTH_DIGITS or int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        received_bytes = 0
        complete = False

        async def receive_within_limit() -> Message:
            nonlocal received_bytes, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(self.stall_seconds):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout() from None
            received_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            return message

        await self.app(scope, receive_within_limit, send)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body may have at most {limit_bytes:,} bytes.")
