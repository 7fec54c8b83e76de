"""Who runs what several processes want at once, agreed upon in Redis.

A run is led by whoever holds its lease. Only the holder can add to its lines: one that slept past
its lease finds that out at its next line, and adds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from redis.asyncio import Redis

from app.cache import scripts
from app.cache.codec import pack, unpack
from app.cache.store import PREFIX, RedisStore, name_of

LEASE_SECONDS = 3.0
"""So long after its death a leader is still waited for."""
ATTEMPTS = 3
"""Where this process is too busy to hear the reply, Redis is there all the same: it asks again."""
RUN_KEPT_SECONDS = 60.0
WANTED_SECONDS = 2.0
"""So long after its last sign a follower is still written for."""


@dataclass(frozen=True, slots=True)
class Taken:
    """`ours`: this process leads. `led`: another one does. `known`: the value is there already."""

    state: Literal["ours", "led", "known"]
    token: str = ""
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Followed:
    is_led: bool
    lines: Sequence[Any]


class Leases:
    def __init__(self, store: RedisStore, client: Redis) -> None:
        self._store = store
        self._client = client
        self._take = client.register_script(scripts.TAKE)
        self._publish = client.register_script(scripts.PUBLISH)
        self._follow = client.register_script(scripts.FOLLOW)
        self._release = client.register_script(scripts.RELEASE)

    async def take(self, key: bytes) -> Taken | None:
        """None when Redis is away: then everybody runs for his own process."""
        token = uuid4().hex
        reply: Any = None
        for _ in range(ATTEMPTS):
            reply = await self._store.run(
                "lease",
                lambda: self._take(
                    keys=[name_of("answer", key), _lease(key)],
                    args=[token, int(LEASE_SECONDS * 1000)],
                ),
                None,
            )
            if reply is not None or self._store.is_away:
                break
        if reply is None:
            return None
        state, what = reply[0].decode(), reply[1]
        if state == "known":
            return Taken("known", value=what)
        return Taken(state, token=what.decode())

    async def publish(self, key: bytes, token: str, lines: Sequence[Any]) -> bool | None:
        """Add lines, none to keep the lease only: whether somebody elsewhere follows.

        None when the lease is lost, or nobody knows.
        """
        wanted: int = await self._store.run(
            "lease",
            lambda: self._publish(
                keys=[_lease(key), _run(key, token), _wanted(key)],
                args=[
                    token,
                    int(LEASE_SECONDS * 1000),
                    int(RUN_KEPT_SECONDS * 1000),
                    *map(pack, lines),
                ],
            ),
            -1,
        )
        return None if wanted < 0 else bool(wanted)

    async def follow(self, key: bytes, token: str, place: int) -> Followed | None:
        """Lines of the run from a place on; None when Redis is away."""
        reply: Any = await self._store.run(
            "lease",
            lambda: self._follow(
                keys=[_lease(key), _run(key, token), _wanted(key)],
                args=[token, place, int(WANTED_SECONDS * 1000)],
            ),
            None,
        )
        return None if reply is None else Followed(bool(reply[0]), [*map(unpack, reply[1])])

    async def release(self, key: bytes, token: str) -> None:
        await self._store.run(
            "lease", lambda: self._release(keys=[_lease(key)], args=[token]), None
        )


def _lease(key: bytes) -> bytes:
    return PREFIX + b"lease:" + key


def _run(key: bytes, token: str) -> bytes:
    return PREFIX + b"run:" + key + b":" + token.encode()


def _wanted(key: bytes) -> bytes:
    return PREFIX + b"wanted:" + key
