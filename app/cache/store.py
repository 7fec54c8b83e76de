"""Cached values in Redis. What happens when Redis fails is stated here, once: nothing happens.

A call that fails or takes longer than its time finds nothing and keeps nothing. After a failure
Redis is left alone for a while, so that being without it costs one request the time and no other.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from app.cache import scripts
from app.cache.base import LAYERS, Bounds, Held, LayerName
from app.cache.breaker import Breaker
from app.config import Settings
from app.patience import patience
from app.telemetry import CACHE_FAILURES, DEGRADED

PREFIX = b"fn:"
CONNECTIONS = 32
SOCKET_PATIENCE = 20
"""The sockets' own timeouts, in timeouts of the store: for what slips through those."""
JITTER = 0.1
"""Share of its time by which each value lives longer or shorter, so that not all go together."""
CLEARED_AT_ONCE = 500

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


def open_clients(settings: Settings) -> tuple[Redis, Redis] | None:
    """Clients of the two databases: of layers 1 and 2, and of layer 3. None without a Redis.

    The second one is the database after that of the URL.
    """
    if settings.redis_url is None:
        return None
    seconds = settings.redis_timeout_seconds
    pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.redis_url.get_secret_value(),
        max_connections=CONNECTIONS,
        timeout=seconds,
        socket_timeout=SOCKET_PATIENCE * seconds,
        socket_connect_timeout=SOCKET_PATIENCE * seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )
    options: dict[str, Any] = dict(pool.connection_kwargs)
    options["db"] = int(options.get("db") or 0) + 1
    second = BlockingConnectionPool(
        max_connections=CONNECTIONS,
        timeout=SOCKET_PATIENCE * seconds,
        connection_class=pool.connection_class,
        **options,
    )
    return Redis(connection_pool=pool), Redis(connection_pool=second)


class RedisStore:
    """Implements Store. What a bucket holds is accounted for beside its values."""

    def __init__(
        self,
        clients: tuple[Redis, Redis],
        bounds: Mapping[LayerName, Bounds],
        *,
        timeout_seconds: float,
    ) -> None:
        first, second = clients
        self._clients: dict[LayerName, Redis] = {
            "embedding": first,
            "answer": first,
            "chunks": second,
        }
        self._bounds = bounds
        self._timeout_seconds = timeout_seconds
        self._breaker = Breaker()
        self._problem: str | None = None
        self._refusal: str | None = None
        self._keep = first.register_script(scripts.KEEP)
        self._drop = first.register_script(scripts.DROP)

    @property
    def problem(self) -> str | None:
        return self._problem or self._refusal

    @property
    def is_away(self) -> bool:
        return self._breaker.is_open

    async def get(self, layer: LayerName, keys: Sequence[bytes]) -> list[bytes | None]:
        names = [name_of(layer, key) for key in keys]
        nothing: list[bytes | None] = [None] * len(names)
        if not names:
            return nothing
        client = self._clients[layer]
        if len(names) == 1:
            return [await self.run("get", lambda: client.get(names[0]), None)]
        return await self.run("get", lambda: client.mget(names), nothing)

    async def put(self, layer: LayerName, bucket: str, values: Mapping[bytes, bytes]) -> None:
        bounds = self._bounds[layer]
        small = {key: one for key, one in values.items() if len(one) <= bounds.entry_bytes}
        if not small:
            return

        async def keep(key: bytes, value: bytes, client: Redis) -> None:
            lives = bounds.ttl_seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
            await self._keep(
                keys=[name_of(layer, key), *_accounts(layer, bucket)],
                args=[
                    value,
                    max(1, int(lives * 1000)),
                    key,
                    bounds.bucket_bytes,
                    bounds.layer_bytes,
                    prefix_of(layer),
                    bucket,
                ],
                client=client,
            )

        async def write() -> bool:
            client = self._clients[layer]
            if len(small) == 1:
                [(key, value)] = small.items()
                await keep(key, value, client)
                return True
            async with client.pipeline(transaction=False) as pipeline:
                for key, value in small.items():
                    await keep(key, value, pipeline)
                await pipeline.execute()
            return True

        await self.run("put", write, False)

    async def clear(self, layer: LayerName, bucket: str | None = None) -> int:
        client = self._clients[layer]
        removed = 0
        buckets = [bucket] if bucket is not None else await self._buckets(layer)
        for one in buckets:
            while True:
                gone: int = await self.run(
                    "clear",
                    lambda one=one: self._drop(
                        keys=_accounts(layer, one),
                        args=[prefix_of(layer), one, CLEARED_AT_ONCE],
                        client=client,
                    ),
                    0,
                )
                removed += gone
                if gone < CLEARED_AT_ONCE:
                    break
        return removed

    async def held(self) -> Mapping[LayerName, Held]:
        async def read() -> dict[LayerName, Held]:
            found: dict[LayerName, Held] = {}
            for layer in LAYERS:
                reply: Any = self._clients[layer].hgetall(_totals(layer))  # pyright: ignore[reportArgumentType]
                totals = cast("dict[bytes, bytes]", await reply)
                numbers = {name: int(value) for name, value in totals.items()}
                found[layer] = Held(
                    entries=max(0, numbers.get(b"entries", 0)),
                    bytes=max(0, numbers.get(b"bytes", 0)),
                    evictions=numbers.get(b"evictions", 0),
                )
            return found

        return await self.run("held", read, {})

    async def run(
        self, what: str, command: Callable[[], Awaitable[Any]], otherwise: Result
    ) -> Result:
        """What the command gives; `otherwise` when Redis is away, too slow, or refuses."""
        if not self._breaker.lets_through():
            CACHE_FAILURES.labels("skipped").inc()
            return otherwise
        started = time.monotonic()
        try:
            async with patience(self._timeout_seconds):
                result = cast("Result", await command())
        except ResponseError as error:
            # It answers: its memory is full, or it takes no writes.
            self._note_refusal(what, error)
            return otherwise
        except (RedisError, OSError, TimeoutError) as error:
            if time.monotonic() - started > 2 * self._timeout_seconds:
                # This process was too busy to hear the reply; Redis is not to blame.
                CACHE_FAILURES.labels("late").inc()
            else:
                self._note_failure(what, error)
            return otherwise
        if self._breaker.is_open:
            log.info("cache_back")
        self._breaker.succeeded()
        self._problem = None
        if what == "put":
            self._refusal = None
        self._show()
        return result

    async def _buckets(self, layer: LayerName) -> list[str]:
        pattern = prefix_of(layer) + b"held:*"

        async def scan() -> list[str]:
            return [
                cast("bytes", name)[len(pattern) - 1 :].decode()
                async for name in self._clients[layer].scan_iter(pattern, count=1000)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            ]

        return await self.run("clear", scan, [])

    def _note_failure(self, what: str, error: Exception) -> None:
        CACHE_FAILURES.labels(what).inc()
        if not self._breaker.is_open:
            log.warning("cache_away", why=repr(error))
        self._breaker.failed()
        self._problem = f"no answer ({type(error).__name__}): answers are found without it"
        self._show()

    def _note_refusal(self, what: str, error: Exception) -> None:
        CACHE_FAILURES.labels("refused").inc()
        if self._refusal is None:
            log.warning("cache_refuses", what=what, why=repr(error))
        self._refusal = f"it keeps nothing new ({type(error).__name__})"
        self._show()

    def _show(self) -> None:
        DEGRADED.labels("cache").set(self.problem is not None)


def prefix_of(layer: LayerName) -> bytes:
    return PREFIX + layer.encode() + b":"


def name_of(layer: LayerName, key: bytes) -> bytes:
    return prefix_of(layer) + key


def _totals(layer: LayerName) -> bytes:
    return prefix_of(layer) + b"totals"


def _accounts(layer: LayerName, bucket: str) -> list[bytes]:
    """Names of the sizes of a bucket's values, and of the layer's totals."""
    return [prefix_of(layer) + b"held:" + bucket.encode(), _totals(layer)]
