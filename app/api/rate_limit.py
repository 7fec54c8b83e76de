"""How often one key, or one address without a key, may call.

The limits are slowapi's. Its own check is synchronous, so with Redis it would stop the event loop
for as long as Redis is slow; here the counts in Redis are taken through the asyncio side of
`limits`, the library beneath slowapi, and slowapi's in-memory storage steps in while Redis is away.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import structlog
from limits import RateLimitItem, parse_many
from limits.aio.storage import RedisStorage
from redis.asyncio import Redis
from redis.exceptions import RedisError
from slowapi import Limiter
from slowapi.util import get_remote_address
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import Caller
from app.api.doors import door_of
from app.config import Settings
from app.errors import RateLimited, StartupError
from app.patience import patience
from app.telemetry import DEGRADED

Kind = Literal["requests", "uploads"]

RETRY_REDIS_SECONDS = 5.0
MAX_BLOCKS = 10_000

BLOCKS = 1_000
"""Calls are counted in Redis by blocks of which so many make up the limit; one by one below that."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of the tightest limit; `reset_at` is in seconds since the epoch."""

    limit: int
    remaining: int
    reset_at: float

    @property
    def headers(self) -> Mapping[str, str]:
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(ceil(self.reset_at)),
        }


class TooMany(RateLimited):
    def __init__(self, allowance: Allowance) -> None:
        super().__init__(
            f"The limit of {allowance.limit} is used up.",
            retry_after_seconds=max(1, ceil(allowance.reset_at - time.time())),
        )
        self._allowance = allowance

    @property
    def headers(self) -> Mapping[str, str]:
        return {**super().headers, **self._allowance.headers}


@dataclass(slots=True)
class _Block:
    """Calls of one window that are counted already and have yet to come.

    `last` is the count with all of them, `left` how many they are.
    """

    last: int
    left: int
    reset_at: float


class RateLimits:
    """Fixed windows, counted in Redis for all processes together, else in this process alone.

    Of a large limit a process takes a thousandth at a time, so that few calls wait for Redis. What
    it has not used by the end of the window nobody else could.

    A Redis that fails or takes longer than `redis_timeout_seconds` costs one request that long;
    the next ones are counted here until it is tried again, RETRY_REDIS_SECONDS later.
    """

    def __init__(self, settings: Settings, redis: "Redis | None") -> None:
        limiter = Limiter(key_func=get_remote_address)
        self._local = limiter.limiter.storage
        self._shared = _redis_storage(redis) if redis is not None else None
        self._timeout_seconds = settings.redis_timeout_seconds
        self._retry_at = 0.0
        self._degraded: bool = False
        self._blocks: dict[str, _Block] = {}
        self._limits: Mapping[Kind, list[RateLimitItem]] = {
            "requests": _parse("FOOTNOTE_RATE_LIMIT", settings.rate_limit),
            "uploads": _parse("FOOTNOTE_UPLOAD_RATE_LIMIT", settings.upload_rate_limit),
        }

    async def take(self, kind: Kind, who: str) -> Allowance:
        """Count one call; raises RateLimited when it is one too many."""
        tightest: Allowance | None = None
        for item in self._limits[kind]:
            count, reset_at = await self._count(item.key_for(kind, who), item)
            allowance = Allowance(item.amount, max(0, item.amount - count), reset_at)
            if count > item.amount:
                raise TooMany(allowance)
            if tightest is None or allowance.remaining < tightest.remaining:
                tightest = allowance
        assert tightest is not None  # noqa: S101 - parse_many refuses an empty limit
        return tightest

    async def _count(self, key: str, item: RateLimitItem) -> tuple[int, float]:
        now = time.monotonic()
        if (block := self._block(key)) is not None and block.left:
            block.left -= 1
            return block.last - block.left, block.reset_at
        if self._shared is not None and now >= self._retry_at:
            # Moved on first, so that of many requests one alone tries a Redis that was away.
            if self._degraded:
                self._retry_at = now + RETRY_REDIS_SECONDS
            try:
                async with patience(self._timeout_seconds):
                    counted = await self._count_shared(self._shared, key, item)
            except (RedisError, OSError, TimeoutError) as error:
                self._note(degraded=True, cause=error)
            else:
                self._note(degraded=False)
                return counted
        return self._local.incr(key, item.get_expiry()), self._local.get_expiry(key)

    async def _count_shared(
        self, storage: RedisStorage, key: str, item: RateLimitItem
    ) -> tuple[int, float]:
        size = max(1, item.amount // BLOCKS)
        last = await storage.incr(key, item.get_expiry(), size)
        reset_at = time.time() + item.get_expiry()
        if last > size and self._block(key) is None:
            reset_at = await storage.get_expiry(key)
        # Others may have taken one of this window meanwhile.
        block = self._block(key) or _Block(last, 0, reset_at)
        block.last = max(block.last, last)
        block.left += size - 1
        if len(self._blocks) >= MAX_BLOCKS:
            self._blocks.clear()
        self._blocks[key] = block
        return last - size + 1, block.reset_at

    def _block(self, key: str) -> _Block | None:
        """The one of the window that runs."""
        block = self._blocks.get(key)
        return block if block is not None and block.reset_at > time.time() else None

    def _note(self, *, degraded: bool, cause: Exception | None = None) -> None:
        if degraded:
            self._retry_at = time.monotonic() + RETRY_REDIS_SECONDS
        if degraded != self._degraded:
            self._degraded = degraded
            self._retry_at = self._retry_at if degraded else 0.0
            DEGRADED.labels("rate_limit").set(degraded)
            if degraded:
                log.warning("rate limits are counted per process", cause=repr(cause))
            else:
                log.info("rate limits are counted in Redis again")


def _parse(setting: str, limits: str) -> list[RateLimitItem]:
    try:
        return parse_many(limits)
    except ValueError:
        raise StartupError(
            f"{setting} is no rate limit: {limits!r}.", hint="Write it as 600/minute;20/second."
        ) from None


def _redis_storage(redis: "Redis") -> RedisStorage:
    options: dict[str, Any] = {"connection_pool": redis.connection_pool}
    return RedisStorage("async+redis://", implementation="redispy", **options)


class RateLimitMiddleware:
    """Counts each call against its key or address, and says in headers what is left."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = door_of(scope).limit
        if kind is None:
            await self.app(scope, receive, send)
            return
        limits: RateLimits = scope["app"].state.rate_limits
        allowance = await limits.take(kind, who_calls(scope))

        async def send_with_allowance(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"]).update(allowance.headers)
            await send(message)

        await self.app(scope, receive, send_with_allowance)


def who_calls(scope: Scope) -> str:
    """The key's id, else the address of the connection: no header can change it."""
    caller: Caller | None = scope["state"].get("caller")
    if caller is not None and caller.key_id is not None:
        return f"key:{caller.key_id}"
    return f"address:{scope['client'][0]}" if scope.get("client") else "address:local"
