"""Rounds of texts, gathered across documents."""

import asyncio

import numpy as np
import pytest

from app.errors import EmbeddingUnavailable
from ingestion.embedding import ROUND_TEXTS, RoundEmbedder, assemble, new_texts
from tests.doubles.embedder import GatedEmbedder, vector_of


async def started(embedder: GatedEmbedder, calls: int) -> None:
    async with asyncio.timeout(10):
        while len(embedder.calls) < calls:
            await asyncio.sleep(0.001)


async def test_documents_share_rounds_and_get_their_own_vectors() -> None:
    embedder = GatedEmbedder()
    rounds = RoundEmbedder(embedder)
    first = asyncio.create_task(rounds.embed(["a"]))
    await started(embedder, 1)
    others = [asyncio.create_task(rounds.embed([f"{n} one", "same", "a"])) for n in range(5)]
    await asyncio.sleep(0.01)
    embedder.open_gate()
    assert np.array_equal(await first, [vector_of("a")])
    for n, vectors in enumerate(await asyncio.gather(*others)):
        assert np.array_equal(vectors, [vector_of(text) for text in (f"{n} one", "same", "a")])
    assert [len(texts) for texts, _ in embedder.calls] == [1, 6]
    assert {kind for _, kind in embedder.calls} == {"document"}
    assert (await rounds.embed([])).shape == (0, embedder.dimensions)
    await rounds.close()


async def test_a_huge_document_lets_the_small_ones_through() -> None:
    embedder = GatedEmbedder()
    rounds = RoundEmbedder(embedder)
    texts = [str(number) for number in range(3 * ROUND_TEXTS + 7)]
    huge = asyncio.create_task(rounds.embed(texts))
    await started(embedder, 1)
    small = asyncio.create_task(rounds.embed(["small"]))
    await asyncio.sleep(0.01)
    embedder.open_gate(2)
    await small
    assert not huge.done()
    embedder.open_gate()
    assert np.array_equal(await huge, [vector_of(text) for text in texts])
    await rounds.close()


async def test_a_failure_reaches_those_who_wait_and_nobody_after() -> None:
    embedder = GatedEmbedder()
    rounds = RoundEmbedder(embedder)
    embedder.failure = EmbeddingUnavailable("gone")
    embedder.open_gate()
    with pytest.raises(EmbeddingUnavailable):
        await rounds.embed(["a"])
    embedder.failure = None
    assert np.array_equal(await rounds.embed(["a"]), [vector_of("a")])
    await rounds.close()


async def test_who_gives_up_holds_nobody_up() -> None:
    embedder = GatedEmbedder()
    rounds = RoundEmbedder(embedder)
    busy = asyncio.create_task(rounds.embed(["busy"]))
    await started(embedder, 1)
    gone = asyncio.create_task(rounds.embed(["gone"]))
    stays = asyncio.create_task(rounds.embed(["stays"]))
    await asyncio.sleep(0.01)
    gone.cancel()
    embedder.open_gate()
    await asyncio.gather(busy, stays)
    assert [texts for texts, _ in embedder.calls] == [["busy"], ["stays"]]
    await rounds.close()


def test_only_new_texts_are_embedded_each_once() -> None:
    hashes = [b"1", b"2", b"1", b"3"]
    assert new_texts(hashes, ["a", "b", "a", "c"], {b"3": ...}) == {b"1": "a", b"2": "b"}
    vectors = {name: np.full(2, number, np.float32) for number, name in enumerate((b"1", b"2"))}
    assert assemble([b"2", b"1", b"2"], vectors, 2).tolist() == [[1, 1], [0, 0], [1, 1]]
