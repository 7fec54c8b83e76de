"""The service's way to an embedder: bounded, gathered, fair, and safe against its callers."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from app.embedding.query import MAX_TOGETHER, QueryEmbedder
from app.errors import EmbeddingUnavailable, Overloaded
from tests.doubles.embedder import GatedEmbedder, vector_of

PATIENCE_SECONDS = 10.0


@pytest.fixture
def gated() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture
async def one_thread(gated: GatedEmbedder) -> AsyncIterator[QueryEmbedder]:
    opened = QueryEmbedder(gated, threads=1, waiters=32)
    yield opened
    gated.open_gate()
    opened.close()


def ask(embedder: QueryEmbedder, *texts: str, kind: Any = "query") -> "asyncio.Task[Any]":
    async def answer() -> Any:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await embedder.embed(texts, kind)

    return asyncio.create_task(answer())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


async def occupy(embedder: QueryEmbedder, gated: GatedEmbedder) -> "asyncio.Task[Any]":
    """Fill the only thread, so that what comes next has to wait."""
    task = ask(embedder, "first")
    await until(lambda: len(gated.calls) == 1)
    return task


async def test_a_call_that_finds_a_thread_idle_starts_at_once_and_alone(
    gated: GatedEmbedder,
) -> None:
    embedder = QueryEmbedder(gated, threads=2, waiters=8)
    tasks = [ask(embedder, "a"), ask(embedder, "b")]
    await until(lambda: len(gated.calls) == 2)
    assert sorted(texts for texts, _ in gated.calls) == [["a"], ["b"]]
    gated.open_gate()
    await asyncio.gather(*tasks)
    embedder.close()


async def test_calls_that_wait_are_computed_together_and_each_gets_its_own(
    one_thread: QueryEmbedder, gated: GatedEmbedder
) -> None:
    first = await occupy(one_thread, gated)
    waiting = [ask(one_thread, f"text {number}") for number in range(5)]
    await asyncio.sleep(0)
    gated.open_gate()
    await first
    vectors = await asyncio.gather(*waiting)
    assert [texts for texts, _ in gated.calls] == [["first"], [f"text {n}" for n in range(5)]]
    for number, vector in enumerate(vectors):
        np.testing.assert_array_equal(vector, [vector_of(f"text {number}")])


async def test_threads_share_what_waits(gated: GatedEmbedder) -> None:
    embedder = QueryEmbedder(gated, threads=2, waiters=8)
    running = [ask(embedder, "a"), ask(embedder, "b")]
    waiting = [ask(embedder, str(number)) for number in range(4)]
    await until(lambda: len(gated.calls) == 2)
    gated.open_gate()
    await asyncio.gather(*running, *waiting)
    assert sorted(texts for texts, _ in gated.calls[2:]) == [["0", "1"], ["2"], ["3"]]
    embedder.close()


async def test_queries_and_documents_are_never_computed_together(
    one_thread: QueryEmbedder, gated: GatedEmbedder
) -> None:
    first = await occupy(one_thread, gated)
    tasks = [
        ask(one_thread, "q1"),
        ask(one_thread, "q2"),
        ask(one_thread, "d1", kind="document"),
        ask(one_thread, "q3"),
    ]
    await asyncio.sleep(0)
    gated.open_gate()
    await asyncio.gather(first, *tasks)
    assert gated.calls[1:] == [
        (["q1", "q2"], "query"),
        (["d1"], "document"),
        (["q3"], "query"),
    ]


async def test_a_run_never_grows_beyond_the_cap(
    one_thread: QueryEmbedder, gated: GatedEmbedder
) -> None:
    first = await occupy(one_thread, gated)
    tasks = [ask(one_thread, str(number)) for number in range(MAX_TOGETHER + 3)]
    await asyncio.sleep(0)
    gated.open_gate()
    await asyncio.gather(first, *tasks)
    assert [len(texts) for texts, _ in gated.calls] == [1, MAX_TOGETHER, 3]


async def test_a_call_with_many_texts_lets_single_queries_through(
    one_thread: QueryEmbedder, gated: GatedEmbedder
) -> None:
    texts = [f"document {number}" for number in range(3 * MAX_TOGETHER + 1)]
    bulk = ask(one_thread, *texts)
    await until(lambda: len(gated.calls) == 1)
    query = ask(one_thread, "a query")
    await asyncio.sleep(0)
    gated.open_gate(2)
    await query
    assert not bulk.done()
    assert (["a query"], "query") == gated.calls[1]
    gated.open_gate()
    np.testing.assert_array_equal(await bulk, np.stack([vector_of(text) for text in texts]))


async def test_a_call_is_refused_when_too_many_wait_and_taken_again_later(
    gated: GatedEmbedder,
) -> None:
    embedder = QueryEmbedder(gated, threads=1, waiters=2)
    first = await occupy(embedder, gated)
    waiting = [ask(embedder, "a"), ask(embedder, "b")]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await embedder.embed(["c"], "query")
    gated.open_gate()
    await asyncio.gather(first, *waiting)
    np.testing.assert_array_equal(await embedder.embed(["c"], "query"), [vector_of("c")])
    embedder.close()


async def test_without_waiters_only_the_threads_take_calls(gated: GatedEmbedder) -> None:
    embedder = QueryEmbedder(gated, threads=1, waiters=0)
    first = await occupy(embedder, gated)
    with pytest.raises(Overloaded):
        await embedder.embed(["second"], "query")
    gated.open_gate()
    np.testing.assert_array_equal(await first, [vector_of("first")])
    embedder.close()


async def test_a_caller_that_gives_up_waiting_costs_nothing(
    one_thread: QueryEmbedder, gated: GatedEmbedder
) -> None:
    first = await occupy(one_thread, gated)
    gone, stays = ask(one_thread, "gone"), ask(one_thread, "stays")
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    gated.open_gate()
    await first
    np.testing.assert_array_equal(await stays, [vector_of("stays")])
    assert gated.calls[1:] == [(["stays"], "query")]


async def test_a_caller_that_gives_up_during_a_run_does_not_break_it_for_others(
    one_thread: QueryEmbedder, gated: GatedEmbedder
) -> None:
    first = await occupy(one_thread, gated)
    before, gone, after = (ask(one_thread, text) for text in ("before", "gone", "after"))
    await asyncio.sleep(0)
    gated.open_gate(1)
    await first
    await until(lambda: len(gated.calls) == 2)
    gone.cancel()
    gated.open_gate()
    np.testing.assert_array_equal(await before, [vector_of("before")])
    np.testing.assert_array_equal(await after, [vector_of("after")])
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_failure_reaches_everyone_in_the_run_and_nobody_later(
    one_thread: QueryEmbedder, gated: GatedEmbedder
) -> None:
    first = await occupy(one_thread, gated)
    together = [ask(one_thread, "a"), ask(one_thread, "b")]
    await asyncio.sleep(0)
    gated.open_gate(1)
    await first
    gated.failure = EmbeddingUnavailable("broken")
    gated.open_gate(1)
    results = await asyncio.gather(*together, return_exceptions=True)
    assert [str(result) for result in results] == ["broken", "broken"]
    gated.failure = None
    gated.open_gate()
    np.testing.assert_array_equal(await one_thread.embed(["c"], "query"), [vector_of("c")])


async def test_closing_refuses_what_waits_and_finishes_what_runs(gated: GatedEmbedder) -> None:
    threads_before = threading.active_count()
    embedder = QueryEmbedder(gated, threads=1, waiters=8)
    running = await occupy(embedder, gated)
    waiting = ask(embedder, "waits")
    await asyncio.sleep(0)
    gated.open_gate()
    embedder.close()
    np.testing.assert_array_equal(await running, [vector_of("first")])
    with pytest.raises(EmbeddingUnavailable):
        await waiting
    with pytest.raises(EmbeddingUnavailable):
        await embedder.embed(["later"], "query")
    assert threading.active_count() == threads_before


async def test_no_texts_give_no_vectors(one_thread: QueryEmbedder, gated: GatedEmbedder) -> None:
    vectors = await one_thread.embed([], "query")
    assert vectors.shape == (0, gated.dimensions)
    assert vectors.dtype == np.float32
    assert gated.calls == []


async def test_many_concurrent_callers_get_the_vectors_of_a_serial_run(embedder: Any) -> None:
    texts = [f"what is written about {'room ' * (number % 7)}{number}" for number in range(64)]
    serial = embedder.embed(texts, "query")
    queries = QueryEmbedder(embedder, threads=2, waiters=64)

    async def caller(start: int) -> None:
        for index in range(start, len(texts), 16):
            (vector,) = await queries.embed([texts[index]], "query")
            assert float(vector @ serial[index]) > 0.99999

    await asyncio.gather(*(caller(start) for start in range(16)))
    queries.close()
