import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import bm25s
import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.db.session import open_engine
from app.errors import DatabaseUnavailable, EmbeddingUnavailable, InvalidInput, Overloaded
from app.search import hybrid, matching
from app.search.base import Mode
from app.terms import extract_terms
from tests.doubles.words_embedder import vector_of
from tests.passages import Source
from tests.searching import Index, open_index

PASSAGES = [
    "travel must be approved by the manager before booking",
    "the travel policy covers trains flights and hotels",
    "expenses are paid back within two weeks",
    "hotels near the office have a company rate",
    "incidents are escalated to the engineer on call",
    "the engineer on call answers within fifteen minutes",
    "error ERR_CONN_RESET means the proxy closed the connection",
    "new colleagues get a laptop and a badge on their first day",
]


@pytest.fixture
async def index(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Index]:
    async with open_index(engine, settings) as opened:
        yield opened


@pytest.fixture
async def filled(index: Index) -> Index:
    await index.fill(PASSAGES)
    return index


async def test_a_hit_says_all_that_is_known_of_the_passage(index: Index) -> None:
    [stored] = await index.fill([Source(["first words", "second thoughts"], uri="file:///a.md")])
    [hit] = (await index.search("second thoughts", limit=1)).hits
    assert hit.chunk_id == stored.chunk_ids[1]
    assert hit.document_id == stored.document_id
    assert (hit.collection, hit.uri, hit.title) == (
        "books",
        "file:///a.md",
        "Title of file:///a.md",
    )
    assert (hit.text, hit.start, hit.end) == ("second thoughts", 13, 28)
    assert (hit.heading, hit.page, len(hit.content_hash)) == ((), None, 32)
    assert hit.similarity == pytest.approx(1.0, abs=2e-3)
    assert hit.explanation is None


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
async def test_every_mode_puts_the_obvious_first(filled: Index, mode: Mode) -> None:
    texts = await filled.texts("which travel policy covers hotels", mode=mode)
    assert texts[0] == PASSAGES[1]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
async def test_scores_descend_and_ties_follow_the_ids(index: Index, mode: Mode) -> None:
    await index.fill([Source(["same words"] * 4), "other words entirely", "same words"])
    hits = (await index.search("same words", mode=mode)).hits
    keys = [(-hit.score, hit.chunk_id) for hit in hits]
    assert keys == sorted(keys)
    assert [hit.text for hit in hits[:5]] == ["same words"] * 5


@pytest.mark.parametrize(
    "query", ["travel hotels policy", "engineer escalated", "a proxy connection"]
)
async def test_keyword_mode_is_the_reference_bm25(filled: Index, query: str) -> None:
    reference = bm25s.BM25(method="lucene", k1=1.2, b=0.75, dtype="float64")
    reference.index([extract_terms(passage) for passage in PASSAGES], show_progress=False)
    scores = reference.get_scores(extract_terms(query))
    expected = [place for place in np.argsort(-scores.round(9), kind="stable") if scores[place] > 0]
    hits = (await filled.search(query, mode="keyword")).hits
    assert [hit.text for hit in hits] == [PASSAGES[place] for place in expected]
    assert [hit.score for hit in hits] == pytest.approx([scores[place] for place in expected])
    assert {hit.similarity for hit in hits} == {None}


async def test_vector_mode_is_cosine(filled: Index) -> None:
    query = "an engineer answers"
    hits = (await filled.search(query, mode="vector")).hits
    cosines = {passage: float(vector_of(passage) @ vector_of(query)) for passage in PASSAGES}
    assert [hit.text for hit in hits] == sorted(PASSAGES, key=lambda text: -cosines[text])
    assert [hit.score for hit in hits] == pytest.approx(
        [cosines[hit.text] for hit in hits], abs=2e-3
    )


async def test_both_scores_are_known_for_every_candidate(
    filled: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybrid, "CANDIDATES", 1)
    # Nearest to the query is one passage, the best match of words another.
    query = "laptop laptop badge policy policy travel"
    result = await filled.search(query, limit=1, explain=True)
    everything = {hit.text: hit for hit in (await filled.search(query, explain=True)).hits}
    [hit] = result.hits
    assert hit.explanation is not None
    told = everything[hit.text].explanation
    assert told is not None
    for leg in ("vector", "keyword"):
        assert hit.explanation[leg]["score"] == pytest.approx(told[leg]["score"])


async def test_fused_scores_are_the_sum_of_the_standardised_ones(filled: Index) -> None:
    result = await filled.search("travel approved by an engineer", explain=True)
    for hit in result.hits:
        assert hit.explanation is not None
        parts = [hit.explanation[leg]["standardised"] for leg in ("vector", "keyword")]
        assert hit.score == pytest.approx(sum(parts))


async def test_an_explanation_names_ranks_terms_and_times(filled: Index) -> None:
    result = await filled.search("hotels zeppelin", explain=True)
    assert result.explanation is not None
    assert result.explanation["candidates"] == {"vector": 8, "keyword": 2}
    assert result.explanation["terms"]["hotel"]["passages"] == 2
    assert result.explanation["terms"]["zeppelin"]["passages"] == 0
    assert {"scope", "keyword", "embedding", "vector"} <= set(result.explanation["stages_ms"])
    ranks = [hit.explanation["keyword"]["rank"] for hit in result.hits if hit.explanation]
    assert sorted(rank for rank in ranks if rank is not None) == [1, 2]
    assert len(ranks) == 8


async def test_a_reranker_that_is_not_there_is_not_pretended(filled: Index) -> None:
    result = await filled.search("hotels", rerank=True)
    assert result.explanation == {"rerank": "not done: no reranker is configured"}
    assert (await filled.search("hotels")).explanation is None


@pytest.mark.parametrize("query", ["   ", "the of and", "?!"])
async def test_a_query_without_terms_has_only_meaning(filled: Index, query: str) -> None:
    assert len(await filled.texts(query)) == len(PASSAGES)
    assert await filled.texts(query, mode="keyword") == []


@pytest.mark.parametrize("query", ["travel \ud800 hotels", "x" * 100_000, "travel\0hotels"])
async def test_odd_queries_are_answered(filled: Index, query: str) -> None:
    assert (await filled.search(query)).hits


async def test_coverage_is_the_known_share_of_what_the_query_says(filled: Index) -> None:
    assert (await filled.search("travel hotels")).coverage == pytest.approx(1.0)
    assert (await filled.search("zeppelin")).coverage == 0.0
    half = await filled.search("laptop zeppelin")
    assert 0.3 < half.coverage < 0.5
    assert list(half.query_terms) == ["laptop", "zeppelin"]
    assert (await filled.search("the")).coverage == 0.0


async def test_limit_bounds_the_hits(filled: Index) -> None:
    for limit in (1, 3, 200):
        assert len(await filled.texts("travel", limit=limit)) == min(limit, len(PASSAGES))


async def test_an_empty_collection_gives_no_hits(index: Index) -> None:
    await index.fill([])
    for mode in ("hybrid", "vector", "keyword"):
        result = await index.search("anything", mode=mode, explain=True)
        assert list(result.hits) == []
        assert result.coverage == 0.0


async def test_several_collections_are_searched_as_one(index: Index) -> None:
    await index.fill(PASSAGES[:4], "first")
    await index.fill(PASSAGES[4:], "second")
    await index.fill(PASSAGES, "whole")
    apart = (await index.search("engineer travel", "first", "second")).hits
    whole = (await index.search("engineer travel", "whole")).hits
    assert [hit.text for hit in apart] == [hit.text for hit in whole]
    assert [hit.score for hit in apart] == pytest.approx([hit.score for hit in whole])
    assert {hit.collection for hit in apart} == {"first", "second"}


async def test_collections_of_different_models_cannot_be_searched_as_one(index: Index) -> None:
    await index.fill(PASSAGES[:4], "first")
    index.embedder.digest = "2" * 64
    await index.fill(PASSAGES[4:], "second")
    with pytest.raises(InvalidInput, match="different models"):
        await index.search("engineer", "first", "second")


async def test_vectors_of_another_model_are_not_compared(filled: Index) -> None:
    filled.embedder.digest = "2" * 64
    with pytest.raises(InvalidInput, match="embedded with words"):
        await filled.search("travel")
    assert await filled.texts("laptop", mode="keyword") == [PASSAGES[7]]


async def test_a_query_is_read_in_every_language_of_the_collection(index: Index) -> None:
    await index.fill(
        [
            Source(["Die Häuser stehen leer"], language="german"),
            Source(["houses stand empty"], language="english"),
        ]
    )
    assert await index.texts("Haus", mode="keyword") == ["Die Häuser stehen leer"]
    assert await index.texts("a house", mode="keyword") == ["houses stand empty"]


async def test_a_word_is_not_rare_because_few_passages_are_in_another_language(
    index: Index,
) -> None:
    english = [f"The values of table {number} are known." for number in range(30)]
    best = "Values that validate a zeppelin."
    await index.fill([*english, best, Source(["values xyz"], language="simple")])
    found = await index.search("zeppelin values", mode="keyword", explain=True)
    assert found.hits[0].text == best
    scores = {hit.text: hit.score for hit in found.hits}
    assert scores["values xyz"] < 2 * scores[english[0]]
    assert list(found.query_terms) == ["zeppelin", "valu"]
    explained = (found.explanation or {})["terms"]["valu"]
    assert (explained["passages"], explained["stands_for"]) == (32, ["valu", "values"])


async def test_many_postings_are_scored_alike_in_a_thread(
    filled: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await filled.search("travel hotels engineer")
    monkeypatch.setattr(matching, "THREAD_FROM_POSTINGS", 0)
    after = await filled.search("travel hotels engineer")
    assert list(after.hits) == list(before.hits)


async def test_what_is_deleted_meanwhile_is_found_as_it_was(
    filled: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await filled.search("travel hotels engineer")
    find_neighbours = hybrid.find_neighbours

    async def delete_first(*arguments: Any, **options: Any) -> Any:
        async with filled.engine.begin() as connection:
            await connection.execute(text("DELETE FROM postings"))
            await connection.execute(text("DELETE FROM chunks"))
        return await find_neighbours(*arguments, **options)

    monkeypatch.setattr(hybrid, "find_neighbours", delete_first)
    assert list((await filled.search("travel hotels engineer")).hits) == list(before.hits)
    monkeypatch.undo()
    assert await filled.texts("travel hotels engineer") == []


async def test_an_embedding_that_fails_is_told(filled: Index) -> None:
    filled.embedder.failure = EmbeddingUnavailable("no model")
    with pytest.raises(EmbeddingUnavailable):
        await filled.search("travel")
    assert await filled.texts("laptop", mode="keyword") == [PASSAGES[7]]


async def test_searches_at_once_agree(filled: Index) -> None:
    alone = await filled.texts("travel engineer hotels")
    together = await asyncio.gather(*(filled.texts("travel engineer hotels") for _ in range(30)))
    assert together == [alone] * 30


async def test_searches_given_up_midway_leave_nothing_behind(
    filled: Index, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await filled.texts("travel engineer hotels")
    for moment_ms in range(25):
        search = asyncio.create_task(filled.texts("travel engineer hotels"))
        await asyncio.sleep(moment_ms / 1000)
        search.cancel()
        await asyncio.wait([search])
    assert filled.snapshots.connections.in_use == 0
    assert await filled.texts("travel engineer hotels") == expected
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_restarted_database_is_not_noticed(filled: Index) -> None:
    expected = await filled.texts("travel engineer hotels")
    await asyncio.gather(*(filled.texts("travel") for _ in range(5)))
    async with filled.engine.connect() as connection:
        await connection.execute(
            text(
                """
                SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                """
            )
        )
    assert await filled.texts("travel engineer hotels") == expected


async def test_a_collection_says_whether_it_may_be_quoted_while_models_are_busy(
    filled: Index, engine: AsyncEngine
) -> None:
    assert not (await filled.search("hotels")).quotes_when_busy
    async with engine.begin() as connection:
        settings = '{"answers": {"quote_when_busy": true}}'
        await connection.execute(
            text("UPDATE collections SET settings = CAST(:settings AS jsonb)"),
            {"settings": settings},
        )
    assert (await filled.search("hotels")).quotes_when_busy


async def test_no_database_is_told_as_such(settings: Settings) -> None:
    engine = open_engine(settings, "postgresql://nobody@127.0.0.1:9/nothing")
    async with open_index(engine, settings) as index:
        with pytest.raises(DatabaseUnavailable):
            await index.search("travel")
    await engine.dispose()


async def test_no_free_connection_is_told_as_such(database_url: str, settings: Settings) -> None:
    impatient = settings.model_copy(update={"database_timeout_seconds": 0.05})
    engine = open_engine(impatient, database_url)
    async with open_index(engine, impatient, pool_size=1) as index, index.snapshots.open(1):
        with pytest.raises(Overloaded):
            await index.search("travel")
    await engine.dispose()
