"""Identical questions at once: one run, whoever asks, wherever, and whoever of them dies."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import SecretStr

from app.cache import leases as leases_module
from app.cache.leases import Leases
from app.cache.single_flight import Flights, Rest
from app.cache.store import RedisStore, open_clients
from app.cache.transcript import FAILED, FINISHED, SOURCES, TEXT, Line, packed
from app.config import Settings
from app.errors import GenerationInterrupted, GenerationUnavailable, Overloaded
from tests.redis_server import RedisServer, needs_redis, running_redis
from tests.test_cache_store import bounds

pytestmark = needs_redis

KEY = b"k" * 20
END: Line = (FINISHED, "generated")
WHOLE: list[Line] = [(SOURCES, 2), (TEXT, "Ada "), (TEXT, "approves."), END]


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASE_SECONDS", 1.0)


class Processes:
    """Flights as several processes have them: each with clients and leases of its own."""

    def __init__(self, redis_server: RedisServer) -> None:
        self._server = redis_server
        self._stack = AsyncExitStack()

    async def open(self) -> Flights:
        settings = Settings(redis_url=SecretStr(self._server.url), redis_timeout_seconds=1.0)
        clients = open_clients(settings)
        assert clients is not None
        for client in clients:
            self._stack.push_async_callback(client.aclose, close_connection_pool=True)
        store = RedisStore(clients, bounds(), timeout_seconds=1.0)
        flights = Flights(Leases(store, clients[0]))
        self._stack.push_async_callback(flights.close)
        return flights

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def processes(redis_server: RedisServer) -> AsyncIterator[Processes]:
    opened = Processes(redis_server)
    yield opened
    await opened.close()


class Speaker:
    """A run that says its lines; before the one at `holds_at` it waits until it is let go."""

    def __init__(self, *lines: Line, holds_at: int | None = None) -> None:
        self.lines = lines or tuple(WHOLE)
        self.holds_at = holds_at
        self.may_go_on = asyncio.Event()
        self.runs = 0
        self.closed = 0

    async def __call__(self) -> AsyncGenerator[Line]:
        self.runs += 1
        try:
            for place, line in enumerate(self.lines):
                if place == self.holds_at:
                    await self.may_go_on.wait()
                if line[0] == FAILED:
                    raise Overloaded(line[1])
                yield line
        finally:
            self.closed += 1


async def read(flights: Flights, run: Any, key: bytes = KEY) -> list[Line]:
    return [line async for line in flights.join(key, run).lines]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


# --- in one process -------------------------------------------------------------------------------


@pytest.mark.parametrize("with_redis", [True, False])
async def test_a_hundred_at_once_are_one_run(with_redis: bool, processes: Processes) -> None:
    flights = await processes.open() if with_redis else Flights(None)
    speaker = Speaker(holds_at=2)
    asking = [asyncio.create_task(read(flights, speaker)) for _ in range(100)]
    await asyncio.sleep(0.1)
    speaker.may_go_on.set()
    assert await asyncio.gather(*asking) == [WHOLE] * 100
    assert speaker.runs == 1


async def test_who_comes_late_reads_from_the_beginning() -> None:
    flights, speaker = Flights(None), Speaker(holds_at=3)
    first = asyncio.create_task(read(flights, speaker))
    await asyncio.sleep(0.05)
    late = asyncio.create_task(read(flights, speaker))
    await asyncio.sleep(0.05)
    speaker.may_go_on.set()
    assert await first == await late == WHOLE
    assert speaker.runs == 1


async def test_the_next_one_after_the_end_is_a_run_of_its_own() -> None:
    flights, speaker = Flights(None), Speaker()
    assert await read(flights, speaker) == await read(flights, speaker) == WHOLE
    assert speaker.runs == 2


async def test_one_who_leaves_stops_nobody_and_the_last_one_stops_it() -> None:
    flights, speaker = Flights(None), Speaker(holds_at=2)
    asking = [asyncio.create_task(read(flights, speaker)) for _ in range(3)]
    await asyncio.sleep(0.05)
    asking[0].cancel()  # the one it was begun for
    await asyncio.sleep(0.05)
    assert speaker.closed == 0
    asking[1].cancel()
    asking[2].cancel()
    await until(lambda: speaker.closed == 1)
    after = asyncio.create_task(read(flights, speaker))
    await asyncio.sleep(0.05)
    speaker.may_go_on.set()
    assert await after == WHOLE


async def test_a_failure_is_everybodys() -> None:
    flights, speaker = Flights(None), Speaker((SOURCES, 1), (FAILED, "full"), holds_at=1)
    asking = [asyncio.create_task(read(flights, speaker)) for _ in range(3)]
    await asyncio.sleep(0.05)
    speaker.may_go_on.set()
    for told in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(told, Overloaded)


async def test_a_bug_of_the_run_is_no_hang() -> None:
    async def broken() -> AsyncGenerator[Line]:
        yield (SOURCES, 1)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await read(Flights(None), broken)


async def test_a_run_without_an_end_is_told_as_one() -> None:
    with pytest.raises(GenerationUnavailable):
        await read(Flights(None), Speaker((SOURCES, 1)))


# --- in several ------------------------------------------------------------------------------------


async def test_eight_processes_have_one_run(processes: Processes) -> None:
    speaker = Speaker(holds_at=2)
    everywhere = [await processes.open() for _ in range(8)]
    asking = [asyncio.create_task(read(one, speaker)) for one in everywhere for _ in range(12)]
    await asyncio.sleep(0.3)
    speaker.may_go_on.set()
    assert await asyncio.gather(*asking) == [WHOLE] * 96
    assert speaker.runs == 1


async def test_a_lease_whose_grant_was_not_heard_is_asked_for_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = open_clients(Settings(redis_url=SecretStr(redis_server.url)))
    assert clients is not None
    store = RedisStore(clients, bounds(), timeout_seconds=1.0)
    heard = store.run
    asked = 0

    async def run(what: str, command: Any, otherwise: Any) -> Any:
        nonlocal asked
        asked += 1
        reply = await heard(what, command, otherwise)
        return otherwise if asked == 1 else reply

    monkeypatch.setattr(store, "run", run)
    taken = await Leases(store, clients[0]).take(KEY)
    assert asked == 2
    assert taken is not None
    assert taken.state == "ours"
    others = await Leases(store, clients[0]).take(KEY)
    assert others is not None
    assert (others.state, others.token) == ("led", taken.token)
    for client in clients:
        await client.aclose(close_connection_pool=True)


async def test_followers_read_the_run_as_it_grows(processes: Processes) -> None:
    here, there = await processes.open(), await processes.open()
    speaker = Speaker(holds_at=2)
    leading = asyncio.create_task(read(here, speaker))
    await asyncio.sleep(0.1)
    lines = there.join(KEY, speaker).lines
    assert [await anext(lines), await anext(lines)] == WHOLE[:2]
    speaker.may_go_on.set()
    assert [line async for line in lines] == WHOLE[2:]
    assert await leading == WHOLE
    assert speaker.runs == 1


async def test_a_failure_reaches_other_processes(processes: Processes) -> None:
    here, there = await processes.open(), await processes.open()
    speaker = Speaker((SOURCES, 1), (FAILED, "full"), holds_at=1)
    leading = asyncio.create_task(read(here, speaker))
    await asyncio.sleep(0.1)
    following = asyncio.create_task(read(there, speaker))
    await asyncio.sleep(0.1)
    speaker.may_go_on.set()
    with pytest.raises(Overloaded):
        await leading
    line = (await following)[-1]
    assert line[:3] == (FAILED, "Overloaded", "full")


async def test_a_leader_whose_own_readers_left_goes_on_for_those_elsewhere(
    processes: Processes,
) -> None:
    here, there = await processes.open(), await processes.open()
    speaker = Speaker(holds_at=2)
    leading = asyncio.create_task(read(here, speaker))
    await asyncio.sleep(0.1)
    following = asyncio.create_task(read(there, speaker))
    await asyncio.sleep(0.8)  # a sign of life has told the leader of it
    leading.cancel()
    await asyncio.sleep(0.1)
    speaker.may_go_on.set()
    assert await following == WHOLE
    assert speaker.runs == 1


async def test_a_leader_that_nobody_wants_ends_and_leaves_the_lease(
    processes: Processes, redis_server: RedisServer
) -> None:
    here = await processes.open()
    speaker = Speaker(holds_at=2)
    leading = asyncio.create_task(read(here, speaker))
    await asyncio.sleep(0.1)
    leading.cancel()
    await until(lambda: speaker.closed == 1)
    await until(lambda: not redis_server.client().exists(b"fn:lease:" + KEY))


@pytest.mark.parametrize("after_lines", [1, 2])
async def test_a_leader_that_died_is_replaced_from_its_followers(
    after_lines: int, processes: Processes, redis_server: RedisServer
) -> None:
    redis_server.client().set(b"fn:lease:" + KEY, "dead", px=500)
    from app.cache.codec import pack  # noqa: PLC0415

    run = b"fn:run:" + KEY + b":dead"
    redis_server.client().rpush(run, *[pack(line) for line in WHOLE[:after_lines]])
    speaker = Speaker(holds_at=2)
    everywhere = [await processes.open() for _ in range(4)]
    asking = [asyncio.create_task(read(one, speaker)) for one in everywhere for _ in range(5)]
    await asyncio.sleep(1.0)
    speaker.may_go_on.set()
    for lines in await asyncio.gather(*asking):
        assert "".join(line[1] for line in lines if line[0] == TEXT) == "Ada approves."
        assert lines[0] == (SOURCES, 2)
        assert lines[-1] == END
        assert len([line for line in lines if line[0] == SOURCES]) == 1
    assert speaker.runs == 1


async def test_a_successor_that_says_something_else_interrupts(
    processes: Processes, redis_server: RedisServer
) -> None:
    from app.cache.codec import pack  # noqa: PLC0415

    redis_server.client().set(b"fn:lease:" + KEY, "dead", px=300)
    told = [pack((SOURCES, 2)), pack((TEXT, "Bob "))]
    redis_server.client().rpush(b"fn:run:" + KEY + b":dead", *told)
    with pytest.raises(GenerationInterrupted):
        await read(await processes.open(), Speaker())


async def test_a_leader_that_slept_past_its_lease_adds_nothing(
    processes: Processes, redis_server: RedisServer
) -> None:
    here = await processes.open()
    speaker = Speaker(holds_at=2)
    leading = asyncio.create_task(read(here, speaker))
    await asyncio.sleep(0.1)
    redis_server.client().set(b"fn:lease:" + KEY, "another")
    speaker.may_go_on.set()
    assert await leading == WHOLE  # its own readers have what it says
    [run] = redis_server.client().keys(b"fn:run:*")
    assert redis_server.client().llen(run) == 2
    assert redis_server.client().get(b"fn:lease:" + KEY) == b"another"


async def test_what_was_kept_meanwhile_is_not_run_again(
    processes: Processes, redis_server: RedisServer
) -> None:
    redis_server.client().set(b"fn:answer:" + KEY, packed(WHOLE, 10))
    speaker = Speaker()
    lines = await read(await processes.open(), speaker)
    assert [tuple(line) for line in lines] == [WHOLE[0], (TEXT, "Ada approves."), WHOLE[-1]]
    assert speaker.runs == 0


@pytest.mark.parametrize("trouble", ["kill", "flushall"])
async def test_redis_may_go_in_the_middle(trouble: str) -> None:
    with running_redis() as redis_server:
        processes = Processes(redis_server)
        here, there = await processes.open(), await processes.open()
        speaker = Speaker(holds_at=2)
        leading = asyncio.create_task(read(here, speaker))
        await asyncio.sleep(0.1)
        following = asyncio.create_task(read(there, speaker))
        await asyncio.sleep(0.1)
        redis_server.kill() if trouble == "kill" else redis_server.client().flushall()
        await asyncio.sleep(0.2)
        speaker.may_go_on.set()
        assert await leading == WHOLE
        lines = await following
        assert "".join(line[1] for line in lines if line[0] == TEXT) == "Ada approves."
        assert speaker.runs <= 2
        await processes.close()


# --- what is left to say ---------------------------------------------------------------------------


def test_rest_splits_a_line_that_was_half_said() -> None:
    rest = Rest([(SOURCES, 2), (TEXT, "Ada app")])
    said = [one for line in WHOLE for one in rest.of(line)]
    assert said == [(TEXT, "roves."), END]


def test_rest_of_nothing_is_all() -> None:
    rest = Rest([])
    assert [one for line in WHOLE for one in rest.of(line)] == WHOLE


def test_an_end_that_comes_too_soon_contradicts() -> None:
    rest = Rest([(SOURCES, 2), (TEXT, "Ada approves. And Bob.")])
    for line in WHOLE[:-1]:
        rest.of(line)
    with pytest.raises(GenerationInterrupted):
        rest.of(END)
