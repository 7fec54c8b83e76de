"""Several instances behind one ChatModel, each a double over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from random import Random

import pytest

from app.errors import GenerationInterrupted, GenerationUnavailable, Overloaded
from app.llm import digests, endpoint_health
from app.llm.base import Completion, Queued, TextDelta
from app.llm.endpoint_health import (
    FIRST_REST_SECONDS,
    MAX_REST_SECONDS,
    SUCCESSES_TO_FORGET,
    Breaker,
)
from app.llm.pool import GenerationPool, InstanceAddress, PoolLimits
from tests.doubles.ollama import Behaviour, OllamaDouble, running_ollama
from tests.test_ollama import MODEL, OPTIONS, QUESTION, eventually


@pytest.fixture(scope="module")
def processes() -> Iterator[list[OllamaDouble]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running_ollama()) for _ in range(3)]


@pytest.fixture
def doubles(processes: list[OllamaDouble]) -> list[OllamaDouble]:
    for double in processes:
        double.reset()
    return processes


class Pools:
    """Opens pools and closes them after the test."""

    def __init__(self) -> None:
        self.opened: list[GenerationPool] = []

    def open(
        self,
        doubles: list[OllamaDouble],
        slots: tuple[int, ...] = (1, 1, 1),
        *,
        queue_size: int = 8,
        queue_timeout_seconds: float = 5.0,
        first_token_timeout_seconds: float = 5.0,
        model: str = MODEL,
    ) -> GenerationPool:
        used = doubles[: len(slots)]
        for double, slots_count in zip(used, slots, strict=False):
            double.set(slots=slots_count)
        pool = GenerationPool(
            [InstanceAddress(one.url, count) for one, count in zip(used, slots, strict=False)],
            model,
            OPTIONS,
            PoolLimits(
                queue_size=queue_size,
                queue_timeout_seconds=queue_timeout_seconds,
                connect_timeout_seconds=1.0,
                first_token_timeout_seconds=first_token_timeout_seconds,
                stall_timeout_seconds=0.5,
            ),
            random=Random(7),
        )
        self.opened.append(pool)
        return pool


@pytest.fixture
async def pools() -> AsyncIterator[Pools]:
    kept = Pools()
    yield kept
    for pool in kept.opened:
        await pool.close()


@pytest.fixture
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_health, "FIRST_REST_SECONDS", 0.2)
    monkeypatch.setattr(endpoint_health, "MAX_REST_SECONDS", 0.4)


async def ask(pool: GenerationPool) -> tuple[str, str]:
    """The text and the address of the instance that gave it."""
    async with aclosing(pool.stream(QUESTION, OPTIONS)) as stream:
        *texts, completion = [event async for event in stream]
    assert isinstance(completion, Completion)
    return "".join(each.text for each in texts if isinstance(each, TextDelta)), completion.instance


async def test_slots_are_never_exceeded_and_everyone_is_served(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles, (2, 1, 1), queue_size=40)
    for double in doubles:
        double.set(answer="a b c", token_seconds=0.01, slots=100)
    answers = await asyncio.gather(*(ask(pool) for _ in range(40)))
    assert {text for text, _ in answers} == {"a b c"}
    stats = [double.stats() for double in doubles]
    assert [each.most_generating for each in stats] == [2, 1, 1]
    assert sum(each.requests for each in stats) == 40


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:1], queue_size=1)
    doubles[0].set(answer="a b c d e f", token_seconds=0.1)
    first, second = asyncio.create_task(ask(pool)), asyncio.create_task(ask(pool))
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded, match="queue is full") as raised:
        await asyncio.wait_for(ask(pool), 0.1)
    assert 1 <= raised.value.retry_after_seconds <= 60
    await asyncio.gather(first, second)


async def test_waiting_in_the_queue_has_an_end(doubles: list[OllamaDouble], pools: Pools) -> None:
    pool = pools.open(doubles[:1], queue_timeout_seconds=0.1)
    doubles[0].set(answer="a b c d e f", token_seconds=0.1)
    first = asyncio.create_task(ask(pool))
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded, match=r"within 0\.1 seconds"):
        await ask(pool)
    await first
    assert doubles[0].stats().requests == 1


async def test_who_waits_longest_is_served_first(doubles: list[OllamaDouble], pools: Pools) -> None:
    pool = pools.open(doubles[:1])
    doubles[0].set(first_token_seconds=0.05)
    order: list[int] = []

    async def ask_as(number: int) -> None:
        await ask(pool)
        order.append(number)

    await asyncio.gather(*(ask_as(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]


async def test_who_waits_is_told_the_place_in_line(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:1], (1,))
    doubles[0].set(answer="a b c", token_seconds=0.1)
    first = asyncio.create_task(ask(pool))
    await asyncio.sleep(0.05)
    places = [event async for event in pool.stream(QUESTION, OPTIONS) if isinstance(event, Queued)]
    await first
    assert [place.position for place in places] == [1]
    assert places[0].wait_seconds > 0


@pytest.mark.parametrize(
    "fault", ["hang", "cut", "no_done", "error_line", "garbage", "status_500", "status_503"]
)
async def test_a_fault_before_the_first_token_is_invisible(
    doubles: list[OllamaDouble], pools: Pools, fault: str
) -> None:
    pool = pools.open(doubles, first_token_timeout_seconds=0.5)
    for double in doubles:
        double.set(answer="the whole answer")
    doubles[0].set(fault=fault)
    for _ in range(3):
        text, instance = await ask(pool)
        assert text == "the whole answer"
        assert instance != doubles[0].url
    assert doubles[0].stats().requests >= 1


async def test_a_refused_connection_is_invisible(doubles: list[OllamaDouble], pools: Pools) -> None:
    pool = pools.open(doubles)
    doubles[0].set(refuses=True)
    answers = [await ask(pool) for _ in range(4)]
    assert doubles[0].url not in {instance for _, instance in answers}


@pytest.mark.parametrize("fault", ["hang", "cut", "no_done", "error_line", "garbage"])
async def test_a_stream_cut_in_the_middle_is_never_spliced(
    doubles: list[OllamaDouble], pools: Pools, fault: str
) -> None:
    pool = pools.open(doubles[:2])
    for double in doubles[:2]:
        double.set(answer="one two three four", fault=fault, fault_after_tokens=2, faults_left=1)
    seen: list[str] = []

    async def consume() -> None:
        async for event in pool.stream(QUESTION, OPTIONS):
            assert isinstance(event, TextDelta)
            seen.append(event.text)

    with pytest.raises(GenerationInterrupted):
        await consume()
    assert seen == ["one", " two"]
    assert sum(double.stats().requests for double in doubles[:2]) == 1


async def test_a_client_that_leaves_in_mid_stream_frees_the_slot(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:1])
    doubles[0].set(answer="word " * 60, token_seconds=0.2)
    async with aclosing(pool.stream(QUESTION, OPTIONS)) as events:
        await anext(events)
    doubles[0].set(answer="short")
    text, _ = await asyncio.wait_for(ask(pool), 1.0)
    assert text == "short"
    assert doubles[0].stats().aborted == 1


async def test_a_client_that_leaves_before_the_first_token_frees_the_slot(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:1])
    doubles[0].set(first_token_seconds=30)
    asked = asyncio.create_task(ask(pool))
    await eventually(lambda: doubles[0].stats().generating == 1)
    asked.cancel()
    await eventually(lambda: doubles[0].stats().aborted == 1, within_seconds=1.0)
    [health] = await pool.health()
    assert (health.in_flight, health.ejected) == (0, False)


async def test_a_client_that_leaves_the_queue_takes_no_slot_with_it(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:1])
    doubles[0].set(answer="a b c d e f", token_seconds=0.1)
    first = asyncio.create_task(ask(pool))
    waiting = [asyncio.create_task(ask(pool)) for _ in range(3)]
    await asyncio.sleep(0.05)
    for task in waiting[:2]:
        task.cancel()
    await asyncio.gather(first, waiting[2])
    assert doubles[0].stats().requests == 2
    assert (await pool.health())[0].in_flight == 0


async def test_random_leaving_loses_no_slot(doubles: list[OllamaDouble], pools: Pools) -> None:
    pool = pools.open(doubles, (2, 1, 1), queue_size=100)
    for double in doubles:
        double.set(answer="a b c d", token_seconds=0.01, slots=100)
    random = Random(11)

    async def ask_for_a_while() -> None:
        try:
            async with asyncio.timeout(random.uniform(0, 0.2)):
                await ask(pool)
        except TimeoutError:
            pass

    await asyncio.gather(*(ask_for_a_while() for _ in range(60)))
    await asyncio.sleep(0.1)
    health = await pool.health()
    assert [each.in_flight for each in health] == [0, 0, 0]
    assert not any(each.ejected for each in health)


async def test_a_slow_reader_keeps_neither_slot_nor_server(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:1])
    doubles[0].set(answer="one two three")
    async with aclosing(pool.stream(QUESTION, OPTIONS)) as slow:
        await anext(slow)
        assert (await asyncio.wait_for(ask(pool), 1.0))[0] == "one two three"
        rest = [event async for event in slow]
    assert [event.text for event in rest if isinstance(event, TextDelta)] == [" two", " three"]
    assert isinstance(rest[-1], Completion)


async def test_two_faults_in_a_row_eject_and_a_probe_readmits(
    doubles: list[OllamaDouble], pools: Pools, short_rests: None
) -> None:
    pool = pools.open(doubles[:2], first_token_timeout_seconds=0.5)
    doubles[0].set(fault="status_500")
    for _ in range(3):
        # Two at a time, so that one of them needs the slot of the first.
        await asyncio.gather(ask(pool), ask(pool))
    assert doubles[0].stats().requests == 2
    assert [each.ejected for each in await pool.health()] == [True, False]
    # A server that answers everything but generation stays out.
    doubles[0].set(fault="hang")
    await eventually(lambda: doubles[0].stats().requests >= 4, within_seconds=3.0)
    assert [each.ejected for each in await pool.health()] == [True, False]
    doubles[0].set(fault=None)
    before = doubles[0].stats().requests
    await eventually(lambda: doubles[0].stats().completed >= 1, within_seconds=3.0)
    for _ in range(4):
        await ask(pool)
    assert [each.ejected for each in await pool.health()] == [False, False]
    assert doubles[0].stats().requests >= before + 2


async def test_a_probe_shows_how_slow_a_server_has_become_however_little_it_says(
    doubles: list[OllamaDouble], pools: Pools, short_rests: None
) -> None:
    pool = pools.open(doubles, (1, 1))
    for double in doubles[:2]:
        double.set(answer="Two words", token_seconds=0.01, prefill_token_seconds=0.001)
    pool.start()
    await asyncio.gather(ask(pool), ask(pool))
    doubles[0].set(fault="status_500", slowness=10.0)
    while not pool.statistics().instances[0].ejections:
        await asyncio.gather(ask(pool), ask(pool))
    doubles[0].set(fault=None)
    await eventually(lambda: pool.statistics().instances[0].state == "recovering")
    [known] = pool.statistics().instances[0].models
    assert known.prompt_tokens_per_second == pytest.approx(100, rel=0.3)
    assert known.completion_tokens_per_second == pytest.approx(10, rel=0.3)


async def test_when_every_instance_is_out_the_answer_is_no_at_once(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles)
    for double in doubles:
        double.set(fault="status_500")
    for _ in range(2):
        with pytest.raises(GenerationUnavailable):
            await ask(pool)
    requests = [double.stats().requests for double in doubles]
    with pytest.raises(GenerationUnavailable, match="failed repeatedly") as raised:
        await asyncio.wait_for(ask(pool), 0.1)
    assert 1 <= raised.value.retry_after_seconds <= FIRST_REST_SECONDS
    assert [double.stats().requests for double in doubles] == requests


async def test_who_waits_is_sent_away_when_the_last_instance_goes(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:1], first_token_timeout_seconds=0.5)
    doubles[0].set(fault="hang")
    asked = [asyncio.create_task(ask(pool)) for _ in range(4)]
    ended = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 3.0)
    assert all(isinstance(each, GenerationUnavailable) for each in ended)
    # Nothing came from the whole server until the deadline: that is proof enough.
    assert doubles[0].stats().requests == 1


async def test_an_instance_without_the_model_is_passed_over(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:2])
    doubles[0].set(model="another")
    for _ in range(4):
        assert (await ask(pool))[1] == doubles[1].url
    assert doubles[0].stats().requests == 1
    assert [each.ejected for each in await pool.health()] == [False, False]
    assert [each.has_model for each in await pool.health()] == [False, True]


async def test_a_model_that_nobody_has_is_named_and_tried_again(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    pool = pools.open(doubles[:2], model="mistral")
    for _ in range(2):
        with pytest.raises(GenerationUnavailable) as raised:
            await ask(pool)
        assert "`ollama pull mistral`" in raised.value.hint
    doubles[0].set(model="mistral")
    assert (await ask(pool))[1] == doubles[0].url


async def test_probes_use_the_options_of_the_requests(
    doubles: list[OllamaDouble], pools: Pools, short_rests: None
) -> None:
    pool = pools.open(doubles[:1])
    doubles[0].set(fault="error_line", faults_left=2)
    for _ in range(2):
        with pytest.raises(GenerationUnavailable):
            await ask(pool)
    await eventually(lambda: doubles[0].stats().completed == 1, within_seconds=2.0)
    await asyncio.sleep(0.05)
    await ask(pool)
    assert doubles[0].stats().loads == 1


async def test_health_is_asked_in_parallel(doubles: list[OllamaDouble], pools: Pools) -> None:
    pool = pools.open(doubles, (2, 1, 1))
    doubles[1].set(refuses=True)
    first, second, third = await asyncio.wait_for(pool.health(), 2.0)
    assert (first.reachable, first.slots) == (True, 2)
    assert (second.reachable, second.reason) == (False, "no reply")
    assert third.reachable


def test_each_rest_is_longer_until_answers_succeed() -> None:
    breaker = Breaker(Random(3))
    assert [breaker.record_fault(), breaker.record_fault()] == [False, True]
    rests = [breaker.next_rest_seconds() for _ in range(5)]
    assert rests[0] <= FIRST_REST_SECONDS < rests[1] < rests[2] <= MAX_REST_SECONDS
    assert max(rests) <= MAX_REST_SECONDS
    breaker.close()
    assert breaker.record_fault()
    assert breaker.next_rest_seconds() > FIRST_REST_SECONDS
    breaker.close()
    for _ in range(SUCCESSES_TO_FORGET * 6):
        breaker.record_success(slots=4)
    assert [breaker.record_fault(), breaker.record_fault()] == [False, True]
    assert breaker.next_rest_seconds() <= FIRST_REST_SECONDS


def test_silence_of_the_whole_server_opens_the_breaker_alone() -> None:
    assert Breaker().record_fault(weight=2)


def test_a_server_comes_back_slot_by_slot() -> None:
    breaker = Breaker()
    breaker.record_fault(weight=2)
    assert breaker.slots(4) == 0
    breaker.close()
    assert (breaker.slots(4), breaker.is_trusted) == (1, False)
    breaker.record_success(slots=4)
    assert breaker.slots(4) == 2
    for _ in range(2):
        breaker.record_success(slots=4)
    assert (breaker.slots(4), breaker.is_trusted) == (4, True)


def test_a_success_between_faults_keeps_the_breaker_closed() -> None:
    breaker = Breaker()
    for _ in range(5):
        assert not breaker.record_fault()
        breaker.record_success(slots=4)
    assert not breaker.is_open


async def test_the_digest_is_that_of_the_weights_and_follows_a_pull(
    doubles: list[OllamaDouble], pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "FRESH_SECONDS", 0.0)
    pool = pools.open(doubles[:2])
    before = await pool.digest()
    assert before == Behaviour().digest
    assert await pool.for_model(MODEL).digest() == before
    doubles[1].set(digest="ab" * 32)
    await eventually_digest(pool, "+".join(sorted([before, "ab" * 32])))
    doubles[0].set(digest="ab" * 32)
    await eventually_digest(pool, "ab" * 32)


async def test_the_digest_is_not_known_while_nobody_has_the_model(
    doubles: list[OllamaDouble], pools: Pools
) -> None:
    assert await pools.open(doubles[:1], model="other:1b").digest() is None


async def eventually_digest(pool: GenerationPool, expected: str) -> None:
    async with asyncio.timeout(5):
        while await pool.digest() != expected:
            await asyncio.sleep(0.01)
