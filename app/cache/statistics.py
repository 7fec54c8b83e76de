"""What the layers did: counted here, added up over all processes in Redis, told from memory."""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis

from app.cache.base import LayerName
from app.cache.store import PREFIX, RedisStore
from app.telemetry import CACHE_LOOKUPS

SLOT_SECONDS = 10
MINUTE_SLOTS = 60 // SLOT_SECONDS
HOUR_SLOTS = 3600 // SLOT_SECONDS
SYNC_SECONDS = 1.0

ALL = PREFIX + b"count:all"
SLOT = PREFIX + b"count:slot:"

LATENCY_BOUNDS_US = tuple(int(50 * 1.25**step) for step in range(40))
"""Up to 0.3 s; each a quarter wider than the one before, which bounds the error of a percentile."""

log = structlog.get_logger(__name__)

Counts = Counter[str]


class Statistics:
    """Counts by layer and name. What is not yet in Redis counts here all the same."""

    def __init__(self) -> None:
        self.total: Counts = Counter()
        self.slots: dict[int, Counts] = {}
        self._pending: Counts = Counter()

    def add(self, layer: LayerName, name: str, amount: int = 1) -> None:
        if amount:
            self._pending[f"{layer}:{name}"] += amount

    def looked_up(self, layer: LayerName, *, hits: int, misses: int, seconds: float) -> None:
        """Note one look-up, which may have asked for several values."""
        self.add(layer, "hits", hits)
        self.add(layer, "misses", misses)
        if hits:
            CACHE_LOOKUPS.labels(layer, "hit").inc(hits)
        if misses:
            CACHE_LOOKUPS.labels(layer, "miss").inc(misses)
        microseconds = int(seconds * 1_000_000)
        self.add(layer, "lookups")
        self.add(layer, "lookup_us", microseconds)
        self.add(layer, f"within:{bisect_left(LATENCY_BOUNDS_US, microseconds)}")

    def settle(self) -> Counts:
        """What was counted since the last time, now part of the totals."""
        pending, self._pending = self._pending, Counter()
        self.total += pending
        self.slots.setdefault(slot_now(), Counter()).update(pending)
        self._forget_old()
        return pending

    def take_over(self, total: Counts, slots: Mapping[int, Counts]) -> None:
        """The totals of all processes, in place of this one's."""
        self.total = total
        self.slots.update(slots)
        self._forget_old()

    def of(self, layer: LayerName, *, slots: int | None = None) -> Counts:
        """The counts of one layer, of the last slots or of all time."""
        if slots is None:
            sources = [self.total, self._pending]
        else:
            first = slot_now() - slots
            sources = [one for slot, one in self.slots.items() if slot > first]
            sources.append(self._pending)
        prefix = f"{layer}:"
        found: Counts = Counter()
        for source in sources:
            for name, amount in source.items():
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] += amount
        return found

    def _forget_old(self) -> None:
        first = slot_now() - HOUR_SLOTS
        for slot in [slot for slot in self.slots if slot < first]:
            del self.slots[slot]


async def keep_settling(statistics: Statistics) -> None:
    """For a process that counts for itself alone; until cancelled."""
    while True:
        await asyncio.sleep(SYNC_SECONDS)
        statistics.settle()


class SharedStatistics:
    """Adds this process's counts to those in Redis, every SYNC_SECONDS, and reads their sum."""

    def __init__(self, statistics: Statistics, store: RedisStore, client: Redis) -> None:
        self._statistics = statistics
        self._store = store
        self._client = client
        self._unsent: Counts = Counter()
        self._knows_slots = False

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                await self.sync()
            except Exception:
                log.exception("cache_statistics_not_shared")

    async def sync(self) -> None:
        self._unsent.update(self._statistics.settle())
        now = slot_now()
        wanted = range(now - 1, now + 1) if self._knows_slots else range(now - HOUR_SLOTS, now + 1)
        sent = Counter(self._unsent)

        async def exchange() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for name, amount in sent.items():
                    pipeline.hincrby(ALL.decode(), name, amount)
                    pipeline.hincrby((SLOT + b"%d" % now).decode(), name, amount)
                if sent:
                    pipeline.expire(SLOT + b"%d" % now, 2 * 3600)
                pipeline.hgetall(ALL.decode())
                for slot in wanted:
                    pipeline.hgetall((SLOT + b"%d" % slot).decode())
                return await pipeline.execute()

        nothing: list[Any] = []
        replies = await self._store.run("count", exchange, nothing)
        if not replies:
            return
        self._unsent -= sent
        self._knows_slots = True
        total, *slots = replies[-len(wanted) - 1 :]
        self._statistics.take_over(
            _counts(total), dict(zip(wanted, map(_counts, slots), strict=True))
        )


def percentile_ms(counts: Counts, share: float) -> float | None:
    """Of the look-ups, from their histogram; the upper bound of the bin that it is in."""
    wanted = share * counts["lookups"]
    seen = 0
    for place, bound in enumerate(LATENCY_BOUNDS_US):
        seen += counts[f"within:{place}"]
        if seen >= wanted > 0:
            return bound / 1000
    return None


def rates(counts: Sequence[Counts]) -> list[float | None]:
    """Share of hits in each, None where nothing was looked up."""
    return [
        round(one["hits"] / asked, 4) if (asked := one["hits"] + one["misses"]) else None
        for one in counts
    ]


def slot_now() -> int:
    return int(time.time() // SLOT_SECONDS)


def _counts(reply: Mapping[bytes, bytes]) -> Counts:
    return Counter({name.decode(): int(amount) for name, amount in reply.items()})
