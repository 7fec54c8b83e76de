"""What is known of answers that were shared by paraphrases: how many were judged, and how many wrong.

Of each tenant on its own: its documents and its questions decide, and its admins may begin anew.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from redis.asyncio import Redis

from app.cache.store import PREFIX, RedisStore
from app.experiments.intervals import Interval, Rate, of_rate_exactly

TOLERATED = 0.01
"""The share of shared answers that may be wrong."""
CONFIDENCE = 0.9
"""Of the interval between both bounds; so each bound by itself holds in 95 % of all cases."""
ENOUGH = 300
"""So many judgements, none of them wrong, bring the upper bound below TOLERATED: before, it says
nothing but that there were few."""


@dataclass(frozen=True, slots=True)
class Tally:
    """`is_stopped`: no answers are shared any more, until somebody begins anew."""

    judged: int = 0
    wrong: int = 0
    is_stopped: bool = False

    @property
    def bounds(self) -> Interval:
        """The share of wrong ones, all NaN while nothing was judged."""
        return of_rate_exactly(Rate(self.wrong, self.judged), CONFIDENCE)

    @property
    def is_too_bad(self) -> bool:
        """Whether it is shown to be worse than what is tolerated, or after ENOUGH not to be better."""
        bounds = self.bounds
        if bounds.low > TOLERATED:
            return True
        return self.judged >= ENOUGH and bounds.high > TOLERATED


class Tallies(Protocol):
    async def of(self, tenant_id: int) -> Tally | None:
        """None while nobody knows: then nothing is shared."""
        ...

    async def add(self, tenant_id: int, *, is_wrong: bool) -> Tally | None:
        """One more judgement; stops where that makes it too bad."""
        ...

    async def reset(self, tenant_id: int) -> None: ...


class InProcessTallies:
    """Implements Tallies for a process without a Redis, and is gone with it."""

    def __init__(self) -> None:
        self._tallies: dict[int, Tally] = {}

    async def of(self, tenant_id: int) -> Tally | None:
        return self._tallies.get(tenant_id, Tally())

    async def add(self, tenant_id: int, *, is_wrong: bool) -> Tally | None:
        before = self._tallies.get(tenant_id, Tally())
        after = replace(before, judged=before.judged + 1, wrong=before.wrong + is_wrong)
        after = replace(after, is_stopped=after.is_stopped or after.is_too_bad)
        self._tallies[tenant_id] = after
        return after

    async def reset(self, tenant_id: int) -> None:
        self._tallies.pop(tenant_id, None)


class RedisTallies:
    """Implements Tallies for all processes; they have no time to live."""

    def __init__(self, store: RedisStore, client: Redis) -> None:
        self._store = store
        self._client = client

    async def of(self, tenant_id: int) -> Tally | None:
        async def read() -> Tally:
            fields = ["judged", "wrong", "stopped"]
            reply: Any = self._client.hmget(_name(tenant_id), fields)
            return _tally(await cast("Awaitable[Sequence[bytes | None]]", reply))

        return await self._store.run("tally", read, None)

    async def add(self, tenant_id: int, *, is_wrong: bool) -> Tally | None:
        name = _name(tenant_id)

        async def count() -> Tally:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.hincrby(name, "judged", 1)
                pipeline.hincrby(name, "wrong", int(is_wrong))
                pipeline.hget(name, "stopped")
                tally = _tally(await pipeline.execute())
            if tally.is_too_bad and not tally.is_stopped:
                await self._client.hset(name, "stopped", "1")
                tally = replace(tally, is_stopped=True)
            return tally

        return await self._store.run("tally", count, None)

    async def reset(self, tenant_id: int) -> None:
        await self._store.run("tally", lambda: self._client.delete(_name(tenant_id)), 0)


def _name(tenant_id: int) -> str:
    return f"{PREFIX.decode()}paraphrases:{tenant_id}"


def _tally(fields: Sequence[Any]) -> Tally:
    judged, wrong, stopped = (int(one or 0) for one in fields)
    return Tally(judged, wrong, bool(stopped))
