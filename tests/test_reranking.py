"""Putting the best passages in order once more: in time, or not at all and said."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from threading import Event
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.search.base import Hit
from app.search.reranking import Lane, Rerankers, Skipped, choose, merge, passage_text
from reranker.base import RerankerUnavailable, Scores
from tests.searching import Index, open_index


class LengthReranker:
    """Prefers long passages. Waits for `may_go` where a test holds it."""

    name = "length"
    digest = "2" * 64

    def __init__(self) -> None:
        self.began = Event()
        self.may_go = Event()
        self.may_go.set()
        self.failure: Exception | None = None
        self.calls: list[tuple[str, list[str]]] = []
        self.closed = False

    def score(self, query: str, passages: Sequence[str]) -> Scores:
        self.calls.append((query, list(passages)))
        self.began.set()
        assert self.may_go.wait(20)
        if self.failure is not None:
            raise self.failure
        return np.array([len(passage) for passage in passages], np.float32)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def length() -> LengthReranker:
    return LengthReranker()


def rerankers_with(reranker: LengthReranker, settings: Settings, **options: Any) -> Rerankers:
    changed = settings.model_copy(update={"rerank_timeout_seconds": 20, **options})
    return Rerankers({"length": Lane(lambda: reranker)}, changed, own="length")


def hit(chunk_id: int, score: float, text: str = "") -> Hit:
    return Hit(
        chunk_id=chunk_id,
        document_id=UUID(int=chunk_id),
        collection="books",
        title="Title",
        uri="file:///x",
        text=text,
        heading=("Title", "Part"),
        page=None,
        start=0,
        end=1,
        score=score,
        content_hash=b"",
        similarity=0.5,
        explanation={},
    )


# --- pure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "choices", "own", "expected"),
    [
        (None, {None}, "", ("", "")),
        (None, {None}, "own", ("own", "")),
        (None, {"late-interaction"}, "", ("late-interaction", "")),
        (None, {"off"}, "own", ("", "")),
        (None, {"off", None}, "own", ("", "the collections choose different rerankers")),
        (True, {None}, "", ("", "no reranker is configured")),
        (True, {"off"}, "own", ("own", "")),
        (True, {"off"}, "", ("", "no reranker is configured")),
        (True, {"late-interaction"}, "own", ("late-interaction", "")),
        (True, {None, "late-interaction"}, "own", ("own", "")),
        (False, {"late-interaction"}, "own", ("", "")),
        (False, {None, "off"}, "", ("", "")),
    ],
)
def test_who_chooses(
    asked: bool | None, choices: set[Any], own: str, expected: tuple[str, str]
) -> None:
    assert choose(asked, choices, own) == expected


def test_scores_follow_the_new_order_and_stay_above_the_rest() -> None:
    hits = [hit(1, 3.0), hit(2, 2.0), hit(3, 1.0), hit(4, 0.9), hit(5, -7.0)]
    merged = merge(hits, np.array([0.1, 0.2, 0.9], np.float32), 1.0)
    assert [one.chunk_id for one in merged] == [3, 2, 1, 4, 5]
    scores = [one.score for one in merged]
    assert scores == sorted(scores, reverse=True)
    assert scores[2] > 0.9
    assert scores[3:] == [0.9, -7.0]
    movement = (merged[0].explanation or {})["rerank"]
    assert (movement["from"], movement["to"]) == (3, 1)
    assert movement["score"] == pytest.approx(0.9)
    assert "rerank" not in (merged[3].explanation or {})


@pytest.mark.parametrize(
    ("share", "order"), [(0.0, [1, 2, 3]), (1.0, [3, 2, 1]), (0.4, [1, 2, 3]), (0.6, [3, 2, 1])]
)
def test_the_share_says_who_is_heard(share: float, order: list[int]) -> None:
    hits = [hit(1, 3.0), hit(2, 2.0), hit(3, 1.0)]
    merged = merge(hits, np.array([1, 2, 3], np.float32), share)
    assert [one.chunk_id for one in merged] == order


def test_equal_scores_keep_the_order_of_ids() -> None:
    hits = [hit(7, 1.0), hit(5, 1.0), hit(9, 1.0)]
    merged = merge(hits, np.zeros(3, np.float32), 0.5)
    assert [one.chunk_id for one in merged] == [5, 7, 9]
    assert [one.score for one in merge([hit(3, 2.0)], np.ones(1, np.float32), 0.5)] == [2.0]
    assert merge([], np.empty(0, np.float32), 0.5) == []


def test_a_reranker_reads_the_headings_too() -> None:
    assert passage_text(hit(1, 1.0, "The text.")) == "Title > Part\nThe text."


# --- in time, or not at all -----------------------------------------------------------------------


async def test_a_late_one_is_skipped_and_keeps_its_thread(
    length: LengthReranker, settings: Settings
) -> None:
    length.may_go.clear()
    rerankers = rerankers_with(length, settings, rerank_timeout_seconds=0.05, rerank_queue_size=1)
    hits = [hit(1, 2.0, "a"), hit(2, 1.0, "longer")]
    same, told = await rerankers.reorder("length", "query", hits)
    assert same == hits
    assert told == "not done: it would have taken more than 0.05 s"
    # The first still runs; the next waits for it in vain, and does not begin when it ends.
    with pytest.raises(Skipped, match="more than"):
        await rerankers.score("length", "query", ["b"])
    length.may_go.set()
    scores, name = await rerankers.score("length", "query", ["c", "cc"], timeout_seconds=10)
    assert (scores.tolist(), name) == ([1.0, 2.0], "length")
    assert [passages for _, passages in length.calls][1:] == [["c", "cc"]]
    rerankers.close()
    assert length.closed


async def test_too_many_are_skipped_at_once(length: LengthReranker, settings: Settings) -> None:
    length.may_go.clear()
    rerankers = rerankers_with(length, settings, rerank_timeout_seconds=20, rerank_queue_size=1)
    waiting = [asyncio.create_task(rerankers.score("length", "q", ["a"])) for _ in range(2)]
    await asyncio.to_thread(length.began.wait, 10)
    with pytest.raises(Skipped, match="too many") as skipped:
        await rerankers.score("length", "q", ["a"])
    assert skipped.value.kind == "busy"
    length.may_go.set()
    assert len(await asyncio.gather(*waiting)) == 2
    assert (await rerankers.score("length", "q", ["a"]))[0].tolist() == [1.0]
    rerankers.close()


async def test_whoever_goes_leaves_the_place_to_others(
    length: LengthReranker, settings: Settings
) -> None:
    length.may_go.clear()
    rerankers = rerankers_with(length, settings, rerank_timeout_seconds=20, rerank_queue_size=1)
    running = asyncio.create_task(rerankers.score("length", "q", ["running"]))
    await asyncio.to_thread(length.began.wait, 10)
    gone = asyncio.create_task(rerankers.score("length", "q", ["gone"]))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    behind = asyncio.create_task(rerankers.score("length", "q", ["behind"]))
    await asyncio.sleep(0)
    length.may_go.set()
    await asyncio.gather(running, behind)
    assert [passages for _, passages in length.calls] == [["running"], ["behind"]]
    rerankers.close()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(RerankerUnavailable("the server is away"), "server is away"), (ValueError("?"), "failed")],
)
async def test_a_failure_is_a_reason(
    length: LengthReranker, settings: Settings, failure: Exception, reason: str
) -> None:
    rerankers = rerankers_with(length, settings)
    length.failure = failure
    hits = [hit(1, 1.0, "a")]
    same, told = await rerankers.reorder("length", "q", hits)
    assert same == hits
    assert reason in str(told)
    _, told = await rerankers.reorder("nobody", "q", hits)
    assert told == "not done: there is no reranker nobody"
    rerankers.close()


async def test_closing_refuses_what_waits(length: LengthReranker, settings: Settings) -> None:
    length.may_go.clear()
    rerankers = rerankers_with(length, settings, rerank_timeout_seconds=20)
    running = asyncio.create_task(rerankers.score("length", "q", ["running"]))
    await asyncio.to_thread(length.began.wait, 10)
    waiting = asyncio.create_task(rerankers.score("length", "q", ["waiting"]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(rerankers.close))
    with pytest.raises(Skipped, match="stopping"):
        await waiting
    length.may_go.set()
    await closing
    assert (await running)[0].tolist() == [7.0]
    with pytest.raises(Skipped, match="stopping"):
        await rerankers.score("length", "q", ["later"])
    assert [passages for _, passages in length.calls] == [["running"]]


# --- in a search ----------------------------------------------------------------------------------

PASSAGES = [
    "travel hotels",
    "travel hotels and trains, of which there are many in this country",
    "cooking rice",
    "hotels near the station for travel",
]


@pytest.fixture
async def index(
    engine: AsyncEngine, settings: Settings, length: LengthReranker
) -> AsyncIterator[Index]:
    rerankers = rerankers_with(length, settings, rerank_share=1.0, rerank_candidates=3)
    async with open_index(engine, settings, rerankers=rerankers) as opened:
        await opened.fill(PASSAGES)
        yield opened


async def test_the_best_are_put_in_the_order_of_the_reranker(
    index: Index, length: LengthReranker
) -> None:
    before = await index.texts("travel hotels", rerank=False)
    assert length.calls == []
    found = await index.search("travel hotels", limit=2, explain=True)
    best = sorted(before[:3], key=len, reverse=True)
    assert [one.text for one in found.hits] == best[:2]
    [(query, read)] = length.calls
    assert query == "travel hotels"
    assert len(read) == 3
    explanation = found.explanation or {}
    assert explanation["rerank"] == {"model": "length", "passages": 3, "share": 1.0}
    assert explanation["models"] == {"embedding": "words", "reranker": "length"}
    assert "rerank" in explanation["stages_ms"]
    first = (found.hits[0].explanation or {})["rerank"]
    assert (first["from"], first["to"]) == (before.index(best[0]) + 1, 1)
    whole = await index.search("travel hotels")
    assert whole.explanation is None
    assert [one.text for one in whole.hits] == [*best, before[3]]
    scores = [one.score for one in whole.hits]
    assert scores == sorted(scores, reverse=True)
    assert {one.text: one.similarity for one in whole.hits} == {
        one.text: one.similarity for one in (await index.search("travel hotels", rerank=False)).hits
    }


async def test_a_reranker_that_fails_costs_nothing_but_time(
    index: Index, length: LengthReranker
) -> None:
    before = await index.texts("travel hotels", rerank=False)
    length.failure = RerankerUnavailable("it fell asleep")
    found = await index.search("travel hotels")
    assert [one.text for one in found.hits] == before
    assert found.explanation == {"rerank": "not done: it fell asleep"}


async def test_a_search_that_is_left_ends(index: Index, length: LengthReranker) -> None:
    length.may_go.clear()
    search = asyncio.create_task(index.search("travel hotels"))
    await asyncio.to_thread(length.began.wait, 10)
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    length.may_go.set()
    assert (await index.search("travel hotels")).hits
