"""Fetching from the web: politely, within bounds, and only from where anybody may.

What a server sends is never trusted: every redirect is judged like the first URL, bodies are
counted as they are unpacked, and each wait has an end.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version
from ssl import SSLContext
from typing import Self

import httpcore
import httpx

from app.config import Settings
from app.urls import Refused, checked_url
from ingestion.sources.base import ItemUnreadable, too_large
from ingestion.sources.guard import GuardedTransport, Resolve, resolve_host
from ingestion.sources.inflating import Broken, Inflater, TooMuch

REDIRECTS_MAX = 5
CONNECT_SECONDS = 10.0
READ_SECONDS = 20.0
CONNECTIONS_PER_HOST = 2
ATTEMPTS = 3
RETRY_AFTER_SECONDS_MAX = 60.0
RETRY_PAUSES_SECONDS = (1.0, 4.0)
HOSTS_KEPT = 1000

BUSY = frozenset({429, 503})
REDIRECTS = frozenset({301, 302, 303, 307, 308})

Permit = Callable[[httpx.URL], Awaitable[None]]
"""Asked before every hop; raises ItemUnreadable for a URL that is not to be fetched."""
Conditions = Callable[[httpx.URL], Mapping[str, str]]
"""The headers that make a request to this URL conditional."""


def _unconditional(_url: httpx.URL) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered in the end. `url` is where; `content` is unpacked."""

    url: httpx.URL
    status: int
    headers: httpx.Headers
    content: bytes = field(repr=False)


@dataclass(slots=True)
class _Host:
    """How busy a host may be kept by us."""

    pause_seconds: float
    turns: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(CONNECTIONS_PER_HOST)
    )
    free_at: float = 0.0


class WebClient:
    """One for a whole run: what it knows of hosts holds for all of it."""

    def __init__(
        self, settings: Settings, *, resolve: Resolve = resolve_host, tls: SSLContext | None = None
    ) -> None:
        self._timeout_seconds = settings.source_timeout_seconds
        self._pause_seconds = settings.source_pause_seconds
        self._hosts: dict[str, _Host] = {}
        self._client = httpx.AsyncClient(
            transport=GuardedTransport(settings.source_allow_networks, resolve=resolve, tls=tls),
            headers={
                "User-Agent": user_agent(settings.source_contact),
                "Accept": "*/*",
                "Accept-Encoding": "gzip",
            },
            # Nobody is recognised from one request to the next.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=None),
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.aclose()

    async def get(
        self,
        url: httpx.URL,
        *,
        max_bytes: int,
        permit: Permit | None = None,
        conditions: Conditions = _unconditional,
        is_cut: bool = False,
    ) -> Reply:
        """The reply after all redirects, whatever its status; only one with 200 has a body.

        With `is_cut` a body that is too long ends at `max_bytes`. Raises ItemUnreadable.
        """
        try:
            for _ in range(REDIRECTS_MAX + 1):
                if permit is not None:
                    await permit(url)
                reply = await self._patiently(url, max_bytes, conditions(url), is_cut=is_cut)
                if reply.status not in REDIRECTS or "Location" not in reply.headers:
                    return reply
                url = checked_url(str(url.join(reply.headers["Location"])))
        except Refused as error:
            raise ItemUnreadable(error.reason) from error
        except httpx.InvalidURL as error:
            raise ItemUnreadable("it redirects to what is no URL") from error
        raise ItemUnreadable(f"it redirects more than {REDIRECTS_MAX} times")

    def slow_down(self, host: str, pause_seconds: float) -> None:
        """Leave at least this long between the requests to a host."""
        known = self._host(host)
        known.pause_seconds = max(known.pause_seconds, pause_seconds)

    async def _patiently(
        self, url: httpx.URL, max_bytes: int, headers: Mapping[str, str], *, is_cut: bool
    ) -> Reply:
        """Ask again, when the server says that it is busy, after as long as it says."""
        for pause_seconds in RETRY_PAUSES_SECONDS:
            reply = await self._once(url, max_bytes, headers, is_cut=is_cut)
            if reply.status not in BUSY:
                return reply
            asked_seconds = retry_after_seconds(reply.headers)
            if asked_seconds is not None and asked_seconds > RETRY_AFTER_SECONDS_MAX:
                return reply
            await asyncio.sleep(pause_seconds if asked_seconds is None else asked_seconds)
        return await self._once(url, max_bytes, headers, is_cut=is_cut)

    async def _once(
        self, url: httpx.URL, max_bytes: int, headers: Mapping[str, str], *, is_cut: bool
    ) -> Reply:
        async with self._turn(url.host):
            try:
                async with (
                    asyncio.timeout(self._timeout_seconds),
                    self._client.stream("GET", url, headers=headers) as response,
                ):
                    content = b""
                    if response.status_code == 200:
                        content = await _body(response, max_bytes, is_cut=is_cut)
                    return Reply(url, response.status_code, response.headers, content)
            except (TimeoutError, httpcore.TimeoutException, httpx.TimeoutException) as error:
                raise ItemUnreadable("the server took too long") from error
            except (httpcore.NetworkError, httpx.NetworkError) as error:
                raise ItemUnreadable(
                    f"the server cannot be reached: {error or type(error).__name__}",
                    is_transient=True,
                ) from error
            except (httpcore.ProtocolError, httpx.HTTPError) as error:
                raise ItemUnreadable(f"the server's reply cannot be read: {error}") from error

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncGenerator[None]:
        host = self._host(name)
        async with host.turns:
            starts_at = max(host.free_at, time.monotonic())
            host.free_at = starts_at + host.pause_seconds
            await asyncio.sleep(starts_at - time.monotonic())
            yield

    def _host(self, name: str) -> _Host:
        if name not in self._hosts and len(self._hosts) >= HOSTS_KEPT:
            raise ItemUnreadable(f"one run reads from {HOSTS_KEPT} hosts at most")
        return self._hosts.setdefault(name, _Host(self._pause_seconds))


def user_agent(contact: str) -> str:
    """How Footnote introduces itself; `contact` is where its operator can be reached."""
    return f"Footnote/{version('footnote')} (+{contact or 'self-hosted knowledge base'})"


def retry_after_seconds(headers: httpx.Headers) -> float | None:
    """What the server asks for: seconds, or a date; None when it says nothing sensible."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


async def _body(response: httpx.Response, max_bytes: int, *, is_cut: bool) -> bytes:
    pieces: list[bytes] = []
    free_bytes = max_bytes
    try:
        async for piece in _unpacked(response, max_bytes):
            pieces.append(piece[:free_bytes])
            free_bytes -= len(piece)
            if free_bytes < 0:
                raise TooMuch
    except TooMuch:
        if not is_cut:
            raise ItemUnreadable(too_large(max_bytes)) from None
    except Broken as error:
        raise ItemUnreadable(f"its compression is broken: {error}", is_transient=True) from error
    return b"".join(pieces)


async def _unpacked(response: httpx.Response, max_bytes: int) -> AsyncIterator[bytes]:
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding in ("", "identity"):
        async for raw in response.aiter_raw():
            yield raw
    elif coding in ("gzip", "x-gzip", "deflate"):
        inflater = Inflater(max_bytes, is_gzip=coding != "deflate")
        async for raw in response.aiter_raw():
            for piece in inflater.feed(raw):
                yield piece
        inflater.finish()
    else:
        raise ItemUnreadable(f"it comes in an encoding that was not asked for ({coding[:40]})")
