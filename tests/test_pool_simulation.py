"""The whole pool in virtual time, over simulated servers: scheduling, and nothing but scheduling."""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.session import open_sessions
from app.errors import (
    FootnoteError,
    GenerationInterrupted,
    InvalidInput,
    NotFound,
    Overloaded,
    RateLimited,
)
from app.llm import following
from app.llm.base import (
    UNHURRIED,
    Admission,
    ChatModel,
    GenerationOptions,
    Message,
    Queued,
    TextDelta,
)
from app.llm.following import ModelServers, ServerChange, wanted_servers
from app.llm.ollama import InstanceFailed, Patience
from app.llm.pool import GenerationPool, InstanceAddress, PoolLimits
from tests.doubles.simulated_ollama import CHARS_PER_TOKEN, Fault, SimulatedOllama
from tests.doubles.virtual_time import run_in_virtual_time

OPTIONS = GenerationOptions(max_tokens=512)
SPEEDS = (120, 90, 60, 45, 30, 24, 18, 12)
SLOTS = (4, 4, 4, 2, 2, 2, 1, 1)
READING_FACTOR = 20
MEDIAN_TOKENS, SIGMA = 40, 0.6
CHARGED_SECONDS = 30.0

Event = tuple[float, Callable[[list[SimulatedOllama]], None]]


def servers(
    speeds: Sequence[float] = SPEEDS, slots: Sequence[int] = SLOTS, **other: float
) -> list[SimulatedOllama]:
    return [
        SimulatedOllama(
            f"http://server-{number}",
            slots=count,
            tokens_per_second=speed,
            prompt_tokens_per_second=speed * READING_FACTOR,
            **other,
        )
        for number, (speed, count) in enumerate(zip(speeds, slots, strict=True))
    ]


def pool_of(
    simulated: Sequence[SimulatedOllama],
    slots: Sequence[int] | None = None,
    **limits: float,
) -> GenerationPool:
    by_address = {one.address: one for one in simulated}
    counts = slots or [one.slots for one in simulated]
    return GenerationPool(
        [InstanceAddress(one.address, count) for one, count in zip(simulated, counts, strict=True)],
        "model",
        OPTIONS,
        PoolLimits(**{"queue_size": 1000, "queue_timeout_seconds": 60.0} | limits),
        random=Random(1),
        connect=lambda url: by_address[url],
        clock=asyncio.get_running_loop().time,
    )


def question(tokens: int, prompt_tokens: int = 20, mark: str = "") -> list[Message]:
    content = f"[{tokens} tokens] {mark} ".ljust(prompt_tokens * CHARS_PER_TOKEN, ".")
    return [Message("user", content[: max(24, prompt_tokens * CHARS_PER_TOKEN)])]


async def ask(
    model: ChatModel, messages: Sequence[Message], admission: Admission = UNHURRIED
) -> list[str]:
    async with aclosing(model.stream(messages, OPTIONS, admission)) as events:
        return [event.text async for event in events if isinstance(event, TextDelta)]


# --- a day's traffic -----------------------------------------------------------------------------


@dataclass
class Outcome:
    seconds: list[float] = field(default_factory=list)
    failed: int = 0

    def percentile(self, share: float) -> float:
        return sorted(self.seconds)[int(share * len(self.seconds))]


def traffic(seed: int, count: int, load: float) -> list[tuple[float, int, int]]:
    """When each request comes, the tokens of its prompt and those of its answer."""
    random = Random(seed)
    mean = MEDIAN_TOKENS * exp(SIGMA**2 / 2) + 425 / READING_FACTOR
    rate = load * sum(speed * slots for speed, slots in zip(SPEEDS, SLOTS, strict=True)) / mean
    at, requests = 0.0, []
    for _ in range(count):
        at += random.expovariate(rate)
        tokens = round(random.lognormvariate(log(MEDIAN_TOKENS), SIGMA))
        requests.append((at, random.randint(50, 800), min(400, max(1, tokens))))
    return requests


async def drive(
    ask_one: Callable[[Sequence[Message]], "asyncio.Future[list[str]]"],
    requests: Sequence[tuple[float, int, int]],
    simulated: list[SimulatedOllama],
    events: Sequence[Event] = (),
) -> Outcome:
    loop, outcome = asyncio.get_running_loop(), Outcome()
    began = loop.time()

    async def one(number: int, at: float, prompt_tokens: int, tokens: int) -> None:
        await asyncio.sleep(began + at - loop.time())
        asked_at = loop.time()
        try:
            texts = await ask_one(question(tokens, prompt_tokens, mark=str(number)))
            assert texts == [f"{count} " for count in range(tokens)]
            outcome.seconds.append(loop.time() - asked_at)
        except FootnoteError:
            outcome.failed += 1
            outcome.seconds.append(CHARGED_SECONDS)

    for at, change in events:
        loop.call_later(at, change, simulated)
    await asyncio.gather(*(one(number, *each) for number, each in enumerate(requests)))
    assert all(server.most_in_flight <= server.slots for server in simulated)
    return outcome


async def through_the_pool(
    requests: Sequence[tuple[float, int, int]], events: Sequence[Event] = ()
) -> Outcome:
    simulated = servers()
    pool = pool_of(simulated)
    pool.start()
    await asyncio.sleep(2)
    outcome = await drive(lambda messages: ask(pool, messages), requests, simulated, events)
    await pool.close()
    return outcome


async def by_least_connections(requests: Sequence[tuple[float, int, int]]) -> Outcome:
    """The control: the least loaded server for its slots, which are never exceeded."""
    simulated = servers()
    taken = dict.fromkeys(range(len(simulated)), 0)
    freed = asyncio.Condition()
    patience = Patience(first_token_seconds=60, stall_seconds=60)

    async def ask_one(messages: Sequence[Message]) -> list[str]:
        def free() -> list[int]:
            return [one for one, count in taken.items() if count < simulated[one].slots]

        async with freed:
            await freed.wait_for(free)
            chosen = min(free(), key=lambda one: taken[one] / simulated[one].slots)
            taken[chosen] += 1
        events = simulated[chosen].stream("model", messages, OPTIONS, patience)
        texts = [event.text async for event in events if isinstance(event, TextDelta)]
        async with freed:
            taken[chosen] -= 1
            freed.notify_all()
        return texts

    return await drive(ask_one, requests, simulated)


def fault(kind: Fault | None) -> Callable[[list[SimulatedOllama]], None]:
    return lambda simulated: simulated[0].set(fault=kind)


def slowed(factor: float) -> Callable[[list[SimulatedOllama]], None]:
    return lambda simulated: setattr(simulated[0], "slow_factor", factor)


def test_healthy_it_is_far_ahead_of_least_connections_weighted_by_slots() -> None:
    requests = traffic(seed=1, count=400, load=0.7)
    ours = run_in_virtual_time(through_the_pool(requests))
    control = run_in_virtual_time(by_least_connections(requests))
    assert ours.failed == control.failed == 0
    assert fmean(ours.seconds) < 0.85 * fmean(control.seconds)
    assert ours.percentile(0.95) < 0.75 * control.percentile(0.95)


def test_when_the_fastest_server_hangs_for_a_while_nothing_is_lost() -> None:
    requests = traffic(seed=1, count=300, load=0.5)
    events = [(8.0, fault("hang")), (15.0, fault(None))]
    hung = run_in_virtual_time(through_the_pool(requests, events))
    assert hung.failed == 0
    assert sorted(hung.seconds)[-1 - SLOTS[0]] < CHARGED_SECONDS / 2


def test_when_the_fastest_server_dies_only_what_it_had_begun_is_lost() -> None:
    requests = traffic(seed=2, count=300, load=0.5)
    killed = run_in_virtual_time(
        through_the_pool(requests, [(8.0, fault("dead")), (12.0, fault(None))])
    )
    assert killed.failed <= SLOTS[0]


def test_a_server_that_becomes_ten_times_slower_loses_nothing() -> None:
    requests = traffic(seed=3, count=300, load=0.5)
    slow = run_in_virtual_time(
        through_the_pool(requests, [(8.0, slowed(10.0)), (16.0, slowed(1.0))])
    )
    assert slow.failed == 0
    assert slow.percentile(0.95) < 8


def test_a_server_that_cuts_its_streams_spoils_few() -> None:
    requests = traffic(seed=4, count=400, load=0.5)
    cut = run_in_virtual_time(through_the_pool(requests, [(5.0, fault("cut"))]))
    assert cut.failed <= 0.02 * len(requests)


# --- one behaviour each --------------------------------------------------------------------------


def test_what_is_not_in_memory_is_loaded_before_it_is_asked_for() -> None:
    async def run() -> None:
        simulated = servers((50, 50), (1, 1), load_seconds=5.0)
        simulated[0].is_loaded = False
        pool = pool_of(simulated)
        pool.start()
        await asyncio.sleep(1)
        assert [one.state for one in pool.statistics().instances] == ["loading", "ready"]
        await ask(pool, question(10))
        assert [one.requests for one in simulated] == [0, 2]
        await asyncio.sleep(6)
        first = pool.statistics().instances[0]
        assert (first.state, first.loads, first.models[0].resident) == ("ready", 1, True)
        assert first.models[0].load_ms == pytest.approx(5000.0)
        await pool.close()

    run_in_virtual_time(run())


def test_the_speed_of_every_server_is_measured_at_the_start() -> None:
    async def run() -> None:
        simulated = servers((100, 10), (1, 1))
        pool = pool_of(simulated)
        pool.start()
        await asyncio.sleep(5)
        await ask(pool, question(10))
        learnt = [one.models[0].completion_tokens_per_second for one in pool.statistics().instances]
        assert learnt == [pytest.approx(100, rel=0.05), pytest.approx(10, rel=0.05)]
        assert [one.requests for one in simulated] == [2, 1]
        await pool.close()

    run_in_virtual_time(run())


def test_slots_are_lowered_when_requests_wait_inside_the_server() -> None:
    async def run() -> None:
        [server] = simulated = servers((50,), (1,))
        pool = pool_of(simulated, slots=[3])
        for _ in range(12):
            await asyncio.gather(*(ask(pool, question(30)) for _ in range(3)))
        [known] = pool.statistics().instances
        assert (known.configured_slots, known.slots) == (3, 1)
        before = server.most_in_flight
        server.most_in_flight = 0
        await asyncio.gather(*(ask(pool, question(30)) for _ in range(3)))
        assert (before, server.most_in_flight) == (3, 1)
        await pool.close()

    run_in_virtual_time(run())


def test_a_hung_server_is_out_a_second_after_its_first_token_was_due() -> None:
    async def run() -> None:
        simulated = servers((50, 40), (2, 2))
        pool = pool_of(simulated)
        for _ in range(30):
            await asyncio.gather(*(ask(pool, question(20)) for _ in range(2)))
        simulated[0].set(fault="hang")
        loop = asyncio.get_running_loop()
        hung_at = loop.time()
        texts = await ask(pool, question(20))
        assert len(texts) == 20
        await asyncio.sleep(1)
        ejected = pool.statistics().instances[0]
        assert (ejected.state, ejected.ejections) == ("ejected", {"silent": 1})
        assert loop.time() - hung_at < 20 / 40 + 1.6
        # Longer than the first probe waits: the next one was sent as soon as that gave up.
        await asyncio.sleep(27)
        simulated[0].set(fault=None)
        await asyncio.sleep(1)
        known = pool.statistics().instances[0]
        assert known.state == "recovering"
        assert known.models[0].prompt_tokens_per_second == pytest.approx(50 * READING_FACTOR)
        await pool.close()

    run_in_virtual_time(run())


def test_a_server_that_comes_back_slower_is_not_judged_by_what_it_has_cached() -> None:
    async def run() -> None:
        simulated = servers((50, 50), (1, 1))
        pool = pool_of(simulated)
        pool.start()
        await asyncio.sleep(1)
        simulated[0].set(fault="hang")
        await asyncio.gather(*(ask(pool, question(20, mark=str(n))) for n in range(2)))
        assert pool.statistics().instances[0].state == "ejected"
        simulated[0].slow_factor = 10.0
        simulated[0].set(fault=None)
        await asyncio.sleep(30)
        [model] = pool.statistics().instances[0].models
        assert model.prompt_tokens_per_second == pytest.approx(50 * READING_FACTOR / 10, rel=0.1)
        # It is known to be slow, so that nobody takes it for silent.
        await asyncio.gather(*(ask(pool, question(20, 800, str(n))) for n in range(4)))
        assert pool.statistics().instances[0].ejections == {"silent": 1}
        await pool.close()

    run_in_virtual_time(run())


def test_a_stream_that_a_hang_interrupts_goes_on_and_brings_its_server_back() -> None:
    async def run() -> None:
        [server] = simulated = servers((50,), (2,))
        pool = pool_of(simulated)
        asked = [asyncio.ensure_future(ask(pool, question(100, mark=str(n)))) for n in range(2)]
        await asyncio.sleep(1)
        server.set(fault="hang")
        await asyncio.sleep(20)
        [known] = pool.statistics().instances
        assert (known.state, known.ejections, known.failed) == ("ejected", {"stalled": 1}, 0)
        server.set(fault=None)
        await asyncio.sleep(0.06)
        # No probe has seen it, for it has no slot free.
        [known] = pool.statistics().instances
        assert known.state == "recovering"
        learnt = known.models[0].completion_tokens_per_second
        assert learnt == pytest.approx(50, rel=0.2), "the pause was taken for slowness"
        for texts in await asyncio.gather(*asked):
            assert texts == [f"{count} " for count in range(100)]
        assert len(await ask(pool, question(10))) == 10
        await pool.close()

    run_in_virtual_time(run())


def test_a_stream_that_stays_silent_is_given_up_and_blamed_once() -> None:
    async def run() -> None:
        [server] = simulated = servers((50,), (1,))
        pool = pool_of(simulated, stall_timeout_seconds=30)
        loop = asyncio.get_running_loop()
        asked = asyncio.ensure_future(ask(pool, question(100)))
        await asyncio.sleep(1)
        server.set(fault="hang")
        hung_at = loop.time()
        with pytest.raises(GenerationInterrupted):
            await asked
        assert loop.time() - hung_at == pytest.approx(30, abs=0.1)
        [known] = pool.statistics().instances
        assert (known.ejections, known.failed, known.in_flight) == ({"stalled": 1}, 1, 0)
        await pool.close()

    run_in_virtual_time(run())


async def no_reply() -> frozenset[str]:
    raise InstanceFailed("unreachable", "no reply")


def test_a_stream_that_flows_is_left_alone_though_its_server_answers_no_probe() -> None:
    async def run() -> None:
        [server] = simulated = servers((10,), (4,))
        pool = pool_of(simulated)
        asked = asyncio.ensure_future(ask(pool, question(300)))
        await asyncio.sleep(2)
        server.resident_models = no_reply
        server.set(fault="cut")
        server.cut_after_tokens = 1
        for _ in range(2):
            with pytest.raises(FootnoteError):
                await ask(pool, question(20))
        assert pool.statistics().instances[0].state == "ejected"
        assert len(await asked) == 300
        await pool.close()

    run_in_virtual_time(run())


def test_a_stream_whose_server_cannot_be_reached_any_more_is_not_waited_for() -> None:
    async def run() -> None:
        [server] = simulated = servers((50,), (1,))
        pool = pool_of(simulated)
        loop = asyncio.get_running_loop()
        asked = asyncio.ensure_future(ask(pool, question(100)))
        await asyncio.sleep(1)
        server.set(fault="hang")
        server.resident_models = no_reply
        hung_at = loop.time()
        with pytest.raises(GenerationInterrupted):
            await asked
        assert loop.time() - hung_at < 10
        await pool.close()

    run_in_virtual_time(run())


def test_an_idle_server_that_hangs_is_found_by_a_probe() -> None:
    async def run() -> None:
        simulated = servers((50, 40), (1, 1))
        pool = pool_of(simulated)
        pool.start()
        await asyncio.sleep(5)
        simulated[1].set(fault="hang")
        await asyncio.sleep(100)
        assert pool.statistics().instances[1].ejections == {"canary": 1}
        await pool.close()

    run_in_virtual_time(run())


def test_a_late_first_token_is_asked_for_twice_where_a_warm_server_idles() -> None:
    async def run() -> None:
        simulated = servers((50, 40), (2, 2))
        pool = pool_of(simulated, first_token_timeout_seconds=30)
        for number in range(60):
            await asyncio.gather(*(ask(pool, question(20, mark=f"{number} {n}")) for n in (1, 2)))
        for server in simulated:
            server.is_loaded = True
        pool.start()
        await asyncio.sleep(2)
        simulated[0].set(fault="hang")
        assert len(await ask(pool, question(20))) == 20
        hedges = pool.statistics().hedges
        assert hedges == {"launched": 1, "won": 1}
        await pool.close()

    run_in_virtual_time(run())


def test_interactive_requests_overtake_batch_ones() -> None:
    async def run() -> None:
        pool = pool_of(servers((50,), (1,)))
        order: list[str] = []

        async def ask_as(name: str, admission: Admission) -> None:
            await ask(pool, question(10), admission)
            order.append(name)

        batch = Admission(lane="batch")
        work = [("b0", batch), ("b1", batch), ("i0", UNHURRIED), ("b2", batch), ("i1", UNHURRIED)]
        await asyncio.gather(*(ask_as(*each) for each in work))
        assert order == ["b0", "i0", "i1", "b1", "b2"]
        await pool.close()

    run_in_virtual_time(run())


def test_the_wait_that_is_told_is_about_the_wait_that_comes() -> None:
    async def run() -> None:
        pool = pool_of(servers((50,), (1,)))
        for _ in range(10):
            await ask(pool, question(50))
        first = [asyncio.create_task(ask(pool, question(50))) for _ in range(3)]
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        asked_at, told, begun_at = loop.time(), [], 0.0
        async with aclosing(pool.stream(question(50), OPTIONS)) as events:
            async for event in events:
                if isinstance(event, Queued):
                    told.append(event)
                elif isinstance(event, TextDelta):
                    begun_at = begun_at or loop.time()
        await asyncio.gather(*first)
        assert [place.position for place in told] == sorted(
            (place.position for place in told), reverse=True
        )
        assert told[0].position == 3
        assert told[0].wait_seconds == pytest.approx(begun_at - asked_at, rel=0.5)
        await pool.close()

    run_in_virtual_time(run())


def test_a_wait_longer_than_the_request_allows_is_refused_at_once() -> None:
    async def run() -> None:
        pool = pool_of(servers((50,), (1,)))
        for _ in range(10):
            await ask(pool, question(50))
        waiting = [asyncio.create_task(ask(pool, question(50))) for _ in range(6)]
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        with pytest.raises(Overloaded) as raised:
            await ask(pool, question(50), Admission(wait_seconds=2.0))
        assert loop.time() == asked_at
        assert 4 <= raised.value.retry_after_seconds <= 10
        await asyncio.gather(*waiting)
        assert pool.statistics().shed == {"wait_too_long": 1}
        await pool.close()

    run_in_virtual_time(run())


def test_one_key_cannot_have_all_the_servers() -> None:
    async def run() -> None:
        pool = pool_of(servers((50,), (4,)), owner_concurrency=2, owner_tokens_per_minute=300)
        mine, yours = Admission(owner="mine"), Admission(owner="yours")
        running = [asyncio.create_task(ask(pool, question(50), mine)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimited, match="2 questions under way"):
            await ask(pool, question(50), mine)
        assert len(await ask(pool, question(50), yours)) == 50
        await asyncio.gather(*running)
        for _ in range(3):
            await ask(pool, question(50), mine)
        with pytest.raises(RateLimited, match="tokens") as raised:
            await ask(pool, question(50), mine)
        await asyncio.sleep(raised.value.retry_after_seconds)
        assert len(await ask(pool, question(50), mine)) == 50
        await pool.close()

    run_in_virtual_time(run())


def test_models_on_the_same_servers_share_their_slots() -> None:
    async def run() -> None:
        [server] = simulated = servers((50,), (1,))
        pool = pool_of(simulated)
        other = pool.for_model("other")
        await asyncio.gather(*(ask(model, question(10)) for model in (pool, other) for _ in "ab"))
        assert (server.requests, server.most_in_flight) == (4, 1)
        assert {one.model for one in pool.statistics().instances[0].models} == {"model", "other"}
        await pool.close()

    run_in_virtual_time(run())


# --- servers that come and go --------------------------------------------------------------------


def test_a_server_that_is_drained_finishes_what_it_has_and_gets_no_more() -> None:
    async def run() -> None:
        simulated = servers((50, 40), (1, 1))
        pool = pool_of(simulated)
        running = asyncio.create_task(ask(pool, question(50)))
        await asyncio.sleep(0.1)
        pool.change(simulated[0].address, state="draining")
        for _ in range(3):
            await ask(pool, question(10))
        assert len(await running) == 50
        assert [one.requests for one in simulated] == [1, 3]
        assert [one.state for one in pool.statistics().instances] == ["draining", "ready"]
        pool.change(simulated[0].address, state="serving", slots=2)
        await asyncio.gather(*(ask(pool, question(10)) for _ in range(3)))
        assert simulated[0].requests > 1
        await pool.close()

    run_in_virtual_time(run())


def test_a_server_that_is_removed_is_forgotten_after_its_last_stream() -> None:
    async def run() -> None:
        simulated = servers((50, 40), (1, 1))
        pool = pool_of(simulated)
        running = asyncio.create_task(ask(pool, question(50)))
        await asyncio.sleep(0.1)
        pool.change(simulated[0].address, state="removed")
        assert len(pool.statistics().instances) == 2
        assert len(await running) == 50
        await asyncio.sleep(1)
        assert [one.instance for one in pool.statistics().instances] == [simulated[1].address]
        with pytest.raises(NotFound):
            pool.change(simulated[0].address, state="draining")
        await pool.close()

    run_in_virtual_time(run())


def test_a_server_that_is_added_takes_from_the_line_at_once() -> None:
    async def run() -> None:
        simulated = servers((50, 50), (1, 1))
        pool = pool_of(simulated)
        pool.configure([InstanceAddress(simulated[0].address)])
        await asyncio.sleep(1)
        running = [asyncio.create_task(ask(pool, question(50))) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert len(pool.statistics().instances) == 1
        pool.configure([InstanceAddress(one.address) for one in simulated])
        await asyncio.sleep(0.5)
        assert [one.in_flight for one in pool.statistics().instances] == [1, 1]
        await asyncio.gather(*running)
        await pool.close()

    run_in_virtual_time(run())


@pytest.mark.parametrize("url", ["gpu-1:11434", "ftp://gpu-1", "http://"])
def test_what_is_no_url_is_no_server(url: str) -> None:
    async def run() -> None:
        pool = pool_of(servers((50,), (1,)))
        with pytest.raises(InvalidInput):
            pool.change(url)
        await pool.close()

    run_in_virtual_time(run())


def test_a_server_that_comes_back_before_its_last_stream_is_over_has_no_more_slots() -> None:
    async def run() -> None:
        simulated = servers((50,), (1,))
        pool = pool_of(simulated)
        running = asyncio.create_task(ask(pool, question(50)))
        await asyncio.sleep(0.1)
        for state in ("removed", "serving", "removed", "serving"):
            pool.change(simulated[0].address, state=state)
        assert len(await ask(pool, question(10))) == 10
        assert len(await running) == 50
        await asyncio.sleep(1)
        assert (simulated[0].requests, simulated[0].most_in_flight) == (2, 1)
        assert [one.state for one in pool.statistics().instances] == ["ready"]
        await pool.close()

    run_in_virtual_time(run())


def test_servers_are_as_configured_but_for_what_was_changed() -> None:
    now = datetime.now(UTC)
    configured = [InstanceAddress("http://user:word@one", 2), InstanceAddress("http://two/", 1)]
    changes = [
        ServerChange("http://one", None, "draining", now),
        ServerChange("http://three", 4, "serving", now),
        ServerChange("http://two", 1, "removed", now),
        ServerChange("http://gone", None, "removed", now),
    ]
    assert wanted_servers(configured, []) == configured
    assert wanted_servers(configured, changes) == [
        InstanceAddress("http://user:word@one", 2, is_draining=True),
        InstanceAddress("http://three", 4),
    ]


async def test_the_configuration_file_is_followed(
    engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.02)
    file = tmp_path / "config" / "dev.yaml"
    file.parent.mkdir()
    file.write_text("ollama_urls: http://server-0#slots=2\n")
    pool = pool_of(servers((50, 40), (2, 1)))

    def slots() -> dict[str, int]:
        known = pool.statistics().instances
        return {one.instance: one.configured_slots for one in known if one.state != "draining"}

    async def becomes(expected: dict[str, int], content: str) -> None:
        await asyncio.sleep(0.05)
        file.write_text(content)
        os.utime(file, (0, next(times)))
        for _ in range(200):
            if slots() == expected:
                return
            await asyncio.sleep(0.02)
        assert slots() == expected

    times = iter(range(1_000_000, 1_000_010))
    configured = [InstanceAddress("http://server-0", 2)]
    followed = ModelServers(pool, configured, open_sessions(engine))
    task = asyncio.create_task(followed.follow())
    await becomes({"http://server-1": 3}, "ollama_urls: http://server-1#slots=3\n")
    await becomes({"http://server-1": 3}, "ollama_urls: [")
    await becomes(
        {"http://server-1": 3, "http://server-0": 1},
        "ollama_urls: 'http://server-1#slots=3, http://server-0'\n",
    )
    task.cancel()
    await asyncio.wait({task})
    await pool.close()
