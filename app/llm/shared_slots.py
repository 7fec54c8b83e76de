"""Slots that several API processes share, through leases in Redis that expire.

Each process says how many requests it has on each server; a script counts all of them before it grants
one more, so the cap holds for all together. A process that gives no sign of life for LEASE_SECONDS is
taken for dead and its slots are free. If it was only asleep, it is fenced: nothing is granted until it
has said anew what it has. Redis holds nothing that the processes do not know, so it may be wiped.

Redis away: each process takes its fair share, the slots of all servers being dealt out in turn. For the
first LEASE_SECONDS it takes no more than it had then and, where nobody stood in its line, its part
of what was free: what others had is left to them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.llm.members import Member
from app.patience import patience
from app.telemetry import DEGRADED

LEASE_SECONDS = 10.0
SIGN_SECONDS = 2.0
"""So often a process shows that it lives."""
WAITING_SECONDS = 0.05
"""So often it looks for slots that others gave back, while its own requests wait."""
RETRY_SECONDS = 1.0
ANSWERS_SECONDS = 0.05
"""A Redis that takes longer is away."""
KEY = "footnote:slots"

_COMMON = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function held_by(process) return KEYS[1] .. ':' .. process end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('DEL', held_by(dead))
  redis.call('ZREM', KEYS[1], dead)
end
local function seen(granted)
  local processes = redis.call('ZRANGE', KEYS[1], 0, -1)
  local reply = {granted, #processes}
  for _, process in ipairs(processes) do
    reply[#reply + 1] = process
    reply[#reply + 1] = redis.call('HGETALL', held_by(process))
  end
  return reply
end
"""

TAKE = (
    _COMMON
    + """
local me, server, slots, held = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if not redis.call('ZSCORE', KEYS[1], me) then return {-1, 0} end
redis.call('HSET', held_by(me), server, held)
local total = 0
for _, process in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  total = total + tonumber(redis.call('HGET', held_by(process), server) or 0)
end
if total >= slots then return seen(0) end
redis.call('HINCRBY', held_by(me), server, 1)
return seen(1)
"""
)

SYNC = (
    _COMMON
    + """
local me, lease = ARGV[1], tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], now + lease, me)
redis.call('PEXPIRE', KEYS[1], lease * 10)
redis.call('DEL', held_by(me))
for place = 3, #ARGV, 2 do redis.call('HSET', held_by(me), ARGV[place], ARGV[place + 1]) end
redis.call('PEXPIRE', held_by(me), lease * 10)
return seen(1)
"""
)

log = structlog.get_logger(__name__)


class SharedSlots:
    """The leases of one process. Fails open into fair shares: no request fails because of Redis."""

    def __init__(
        self,
        redis: Redis,
        members: Sequence[Member],
        *,
        changed: Callable[[], None],
        is_waiting: Callable[[], bool],
        clock: Callable[[], float],
        answers_seconds: float = ANSWERS_SECONDS,
        key: str = KEY,
    ) -> None:
        self._redis = redis
        self._answers_seconds = answers_seconds
        self._key = key
        self._members = members
        self._changed = changed
        self._is_waiting = is_waiting
        self._clock = clock
        self._me = uuid4().hex
        self._held = Counter[str]()
        self._others = Counter[str]()
        self._processes: list[str] = [self._me]
        self._lost_at: float | None = None
        self._had_when_lost = Counter[str]()
        self._was_scarce = False
        self._news = asyncio.Event()
        # One command at a time: what is said of all slots must not overtake what was granted.
        self._turn = asyncio.Lock()

    @property
    def processes(self) -> int:
        return len(self._processes)

    @property
    def is_shared(self) -> bool:
        """Whether Redis counts, and not each process for itself."""
        return self._lost_at is None

    async def take(self, member: Member) -> bool:
        """Whether the server has a slot for this process, which then holds it."""
        async with self._turn:
            slots = member.real_slots(self._clock())
            if self.is_shared:
                granted = await self._take(member.address, slots)
                if granted is not None:
                    self._held[member.address] += granted
                    return granted
            if self._held[member.address] >= self._share(member, slots):
                return False
            self._held[member.address] += 1
            return True

    def give_back(self, member: Member) -> None:
        self._held[member.address] = max(0, self._held[member.address] - 1)
        self._news.set()

    async def run(self) -> None:
        """Show that this process lives and what it has, until cancelled; then give all back."""
        try:
            while True:
                await self.sync()
                await self._pause()
        finally:
            self._held.clear()
            with suppress(RedisError, OSError, TimeoutError):
                await self._redis.zrem(self._key, self._me)  # pyright: ignore[reportUnknownMemberType]
                await self._redis.delete(f"{self._key}:{self._me}")  # pyright: ignore[reportUnknownMemberType]

    async def _pause(self) -> None:
        seconds = RETRY_SECONDS if not self.is_shared else SIGN_SECONDS
        if self.is_shared and self._is_waiting() and self._others.total():
            seconds = WAITING_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()

    async def _take(self, address: str, slots: int) -> bool | None:
        """None when Redis does not answer."""
        for _ in range(2):
            told = await self._ask(TAKE, self._me, address, slots, self._held[address])
            if told is None:
                return None
            if told[0] >= 0:
                return told[0] == 1
            log.warning("slots_fenced", process=self._me)
            await self._ask(SYNC, *self._all_held())
        return False

    async def sync(self) -> None:
        """Say what this process has, and hear what the others have."""
        async with self._turn:
            await self._ask(SYNC, *self._all_held())
        self._changed()

    def _all_held(self) -> list[str | int]:
        held = [part for address, count in self._held.items() if count for part in (address, count)]
        return [self._me, round(LEASE_SECONDS * 1000), *held]

    async def _ask(self, script: str, *arguments: str | int) -> list[Any] | None:
        try:
            async with patience(self._answers_seconds):
                told: Any = await self._redis.eval(script, 1, self._key, *arguments)  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues]
        except (RedisError, OSError, TimeoutError) as error:
            self._lose(error)
            return None
        if told[0] >= 0:
            self._read(told)
        return told

    def _read(self, told: list[Any]) -> None:
        """Who else lives, and what he has."""
        if self._lost_at is not None:
            log.info("slots_shared_again", processes=told[1])
        self._lost_at = None
        self._others.clear()
        listed = told[2:]
        names = [_text(name) for name in listed[::2]]
        for name, held in zip(names, listed[1::2], strict=True):
            if name != self._me:
                pairs = cast("list[Any]", held)
                for address, count in zip(pairs[::2], pairs[1::2], strict=True):
                    self._others[_text(address)] += int(count)
        self._processes = sorted({*names, self._me})
        self._apply()

    def _lose(self, error: Exception) -> None:
        if self._lost_at is None:
            self._lost_at = self._clock()
            self._had_when_lost = self._held.copy()
            self._was_scarce = self._is_waiting()
            log.warning("slots_not_shared", reason=type(error).__name__, share_of=self.processes)
        self._apply()

    def _apply(self) -> None:
        DEGRADED.labels("slots").set(not self.is_shared)
        now = self._clock()
        for member in self._members:
            slots = member.real_slots(now)
            member.held_by_others = self._others[member.address] if self.is_shared else 0
            member.allowed_slots = slots if self.is_shared else self._share(member, slots)

    def _share(self, member: Member, slots: int) -> int:
        """How many of the server's slots this process may use while it cannot ask."""
        share = self._part(member, slots)
        if self._lost_at is None or self._clock() - self._lost_at >= LEASE_SECONDS:
            return share
        had = self._had_when_lost[member.address]
        # Where requests wait, a slot that was free a moment ago is somebody's by now.
        free = 0 if self._was_scarce else slots - had - self._others[member.address]
        return min(share, had + self._part(member, max(0, free)))

    def _part(self, member: Member, slots: int) -> int:
        """Of so many slots of the server, those that fall to this process; all parts are the whole.

        The slots of all servers are dealt out in turn, so that none gets all its slots elsewhere.
        """
        rank, count = self._processes.index(self._me), len(self._processes)
        ordered = sorted(self._members, key=lambda one: one.address)
        before = sum(one.slots for one in ordered[: ordered.index(member)])
        return sum((before + slot) % count == rank for slot in range(slots))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
