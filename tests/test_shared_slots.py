"""Slots shared by several processes through leases in Redis, and without it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from app.cache.embedded import EmbeddedRedis
from app.llm import shared_slots
from app.llm.endpoint_health import Breaker
from app.llm.members import Member
from app.llm.ollama import OllamaInstance
from app.llm.shared_slots import SharedSlots
from tests.doubles.ollama import OllamaDouble, running_ollama
from tests.test_ollama import MODEL

SLOTS = {"http://one:1": 3, "http://two:2": 2, "http://three:3": 1}
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    url = server.start()
    if url is None:
        pytest.skip("no Redis server on this machine")
    yield url
    server.stop()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, socket_timeout=2.0, protocol=2)
    await client.flushall()
    yield client
    await client.aclose()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Process:
    """What one process knows and has."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self.is_waiting = False
        self.members = {
            url: Member(slots, Breaker(Random(1)), OllamaInstance(url, connect_timeout_seconds=1))
            for url, slots in SLOTS.items()
        }
        self.slots = SharedSlots(
            redis,
            list(self.members.values()),
            changed=lambda: None,
            is_waiting=lambda: self.is_waiting,
            clock=clock,
        )

    async def sign(self) -> None:
        await self.slots.sync()

    async def take(self, url: str) -> bool:
        return await self.slots.take(self.members[url])

    async def take_all(self) -> dict[str, int]:
        """How many of each server's slots it gets."""
        taken = dict.fromkeys(SLOTS, 0)
        for url in SLOTS:
            while await self.take(url):
                taken[url] += 1
        return taken

    def held(self) -> dict[str, int]:
        return {url: self.slots._held[url] for url in SLOTS}

    async def lose_redis(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def away(*_: Any) -> Any:
            raise ConnectionError("Redis is away")

        monkeypatch.setattr(self.slots._redis, "eval", away)
        await self.sign()

    async def close(self) -> None:
        for member in self.members.values():
            await member.instance.close()


@pytest.fixture
async def processes(redis: Redis) -> AsyncIterator[tuple[Clock, list[Process]]]:
    clock = Clock()
    opened = [Process(redis, clock) for _ in range(4)]
    for one in opened:
        await one.sign()
    for one in opened:
        await one.sign()
    yield clock, opened
    for one in opened:
        await one.close()


Processes = tuple[Clock, list[Process]]


async def test_all_together_never_have_more_than_the_slots(processes: Processes) -> None:
    _, four = processes
    random = Random(5)
    urls = [url for url in SLOTS for _ in range(8)]
    random.shuffle(urls)
    granted = await asyncio.gather(*(random.choice(four).take(url) for url in urls))
    for url, slots in SLOTS.items():
        assert sum(ok for ok, at in zip(granted, urls, strict=True) if at == url) == slots


async def test_each_knows_what_the_others_have(processes: Processes) -> None:
    _, (one, two, *_) = processes
    assert await one.take("http://one:1")
    await two.sign()
    assert two.members["http://one:1"].held_by_others == 1
    assert two.members["http://one:1"].usable_slots(0) == 2
    one.slots.give_back(one.members["http://one:1"])
    await one.sign()
    await two.sign()
    assert two.members["http://one:1"].held_by_others == 0


async def test_the_slots_of_a_dead_process_are_free_when_its_lease_is_over(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (dead, alive, *_) = processes
    monkeypatch.setattr(shared_slots, "LEASE_SECONDS", 0.2)
    for one in (dead, alive):
        await one.sign()
    assert sum((await dead.take_all()).values()) == 6
    assert not await alive.take("http://two:2")
    monkeypatch.setattr(shared_slots, "LEASE_SECONDS", 5.0)
    await alive.sign()
    await asyncio.sleep(0.3)
    assert await alive.take_all() == SLOTS


async def test_who_was_taken_for_dead_says_first_what_it_has(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (asleep, awake, *_) = processes
    monkeypatch.setattr(shared_slots, "LEASE_SECONDS", 0.2)
    await asleep.sign()
    assert await asleep.take("http://two:2")
    monkeypatch.setattr(shared_slots, "LEASE_SECONDS", 5.0)
    await asyncio.sleep(0.3)
    await awake.sign()
    assert await awake.take("http://two:2")
    # Its request still runs, so together they have both slots, and it gets no third.
    assert not await asleep.take("http://two:2")
    await awake.sign()
    assert awake.members["http://two:2"].held_by_others == 1


async def test_a_redis_that_was_wiped_is_told_again(processes: Processes, redis: Redis) -> None:
    _, (one, two, *_) = processes
    assert await one.take("http://three:3")
    await redis.flushall()
    await one.sign()
    assert not await two.take("http://three:3")


async def test_without_redis_each_has_its_share_and_all_have_every_slot_once(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, four = processes
    for one in four:
        await one.lose_redis(monkeypatch)
    assert not any(one.slots.is_shared for one in four)
    clock.now += shared_slots.LEASE_SECONDS
    shares = [await one.take_all() for one in four]
    assert {url: sum(share[url] for share in shares) for url in SLOTS} == SLOTS
    assert {sum(share.values()) for share in shares} == {1, 2}


async def test_what_others_had_is_left_to_them_at_first(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, (one, two, *_) = processes
    assert sum((await one.take_all()).values()) == 6
    await two.sign()
    await two.lose_redis(monkeypatch)
    assert sum((await two.take_all()).values()) == 0
    clock.now += shared_slots.LEASE_SECONDS
    assert sum((await two.take_all()).values()) >= 1


@pytest.mark.parametrize("seed", range(20))
async def test_when_redis_goes_all_together_have_no_more_than_the_slots(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    clock, four = processes
    random = Random(seed)
    for one in random.sample(four, 3):
        for url in random.choices([*SLOTS], k=random.randrange(4)):
            await one.take(url)
    for one in four:
        await one.sign()
    for one in random.sample(four, 4):
        await one.lose_redis(monkeypatch)
        await one.take_all()
    for url, slots in SLOTS.items():
        assert sum(one.held()[url] for one in four) <= slots, url
    assert sum(sum(one.held().values()) for one in four) > 0
    clock.now += shared_slots.LEASE_SECONDS
    for one in four:
        for url, held in one.held().items():
            for _ in range(held):
                one.slots.give_back(one.members[url])
    shares = [await one.take_all() for one in four]
    assert {url: sum(share[url] for share in shares) for url in SLOTS} == SLOTS


async def test_where_slots_are_scarce_each_keeps_to_what_it_has(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, (one, two, *_) = processes
    assert await one.take("http://one:1")
    await two.sign()
    # What the other took since then it cannot know.
    assert await one.take("http://one:1")
    two.is_waiting = True
    await two.lose_redis(monkeypatch)
    assert sum((await two.take_all()).values()) == 0
    clock.now += shared_slots.LEASE_SECONDS
    assert sum((await two.take_all()).values()) >= 1


# --- four real processes -------------------------------------------------------------------------


@pytest.fixture
def doubles() -> Iterator[list[OllamaDouble]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(running_ollama(answer="a b c d", token_seconds=0.03, slots=100))
            for _ in SLOTS
        ]


def start(
    redis_url: str, doubles: list[OllamaDouble], *, questions: int, at_once: int = 6
) -> subprocess.Popen[str]:
    instances = [
        f"--instance={double.url}#{slots}"
        for double, slots in zip(doubles, SLOTS.values(), strict=True)
    ]
    command = [sys.executable, "-m", "tests.pool_process", "--redis", redis_url, "--model", MODEL]
    command += [*instances, "--questions", str(questions), "--at-once", str(at_once)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


async def test_four_processes_keep_to_the_slots_and_one_that_is_killed_leaves_its_own(
    redis: Redis, redis_url: str, doubles: list[OllamaDouble]
) -> None:
    started = [start(redis_url, doubles, questions=60) for _ in range(4)]
    try:
        for one in started:
            assert one.stdout is not None
            assert await asyncio.to_thread(one.stdout.readline) == "ready\n"
        victim, *others = started
        assert victim.stdout is not None
        for _ in range(5):
            assert await asyncio.to_thread(victim.stdout.readline) == "4\n"
        os.kill(victim.pid, signal.SIGKILL)
        told = await asyncio.gather(*(asyncio.to_thread(one.communicate) for one in others))
        assert [one.returncode for one in others] == [0, 0, 0]
        assert [text.split() for text, _ in told] == [["4"] * 60] * 3
    finally:
        for one in started:
            one.kill()
            one.wait(10)
            if one.stdout is not None:
                one.stdout.close()
    most = [double.stats().most_in_flight for double in doubles]
    assert all(seen <= slots for seen, slots in zip(most, SLOTS.values(), strict=True))
    assert most[0] == 3
    # The three have given all back; what the dead one had goes with its lease.
    assert len(await redis.keys("footnote:slots:*")) <= 1


async def test_four_processes_keep_to_the_slots_when_redis_is_killed(
    tmp_path: Path, doubles: list[OllamaDouble]
) -> None:
    server = EmbeddedRedis(tmp_path)
    url = server.start()
    if url is None:
        pytest.skip("no Redis server on this machine")
    started = [start(url, doubles, questions=60, at_once=12) for _ in range(4)]
    try:
        for one in started:
            assert one.stdout is not None
            for expected in ("ready\n", *["4\n"] * 5):
                assert await asyncio.to_thread(one.stdout.readline) == expected
        server.stop()
        told = await asyncio.gather(*(asyncio.to_thread(one.communicate) for one in started))
        assert [one.returncode for one in started] == [0] * 4
        assert [text.split() for text, _ in told] == [["4"] * 55] * 4
    finally:
        server.stop()
        for one in started:
            one.kill()
            one.wait(10)
            if one.stdout is not None:
                one.stdout.close()
    most = [double.stats().most_in_flight for double in doubles]
    assert all(seen <= slots for seen, slots in zip(most, SLOTS.values(), strict=True)), most
