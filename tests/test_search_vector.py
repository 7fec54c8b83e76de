import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db import vector_partitions
from app.db.documents import delete_document
from app.db.snapshot import Snapshots
from app.db.vector_partitions import begin_leaf, ensure_index
from app.db.vectors import register_model
from app.search import vector
from app.search.scope import allowed_chunks, resolve
from app.search.vector import SETTINGS, find_neighbours
from tests.passages import Source, add_collection, add_document, unit_vectors
from tests.searching import url_of

DIMENSIONS = 24
CHUNKS = 3_000
DOCUMENTS = 60
LIMIT = 50

Query = NDArray[np.float32]


@pytest.fixture(scope="module")
def queries() -> Query:
    return unit_vectors(7, 20, DIMENSIONS)


@pytest.fixture
async def indexed(
    engine: AsyncEngine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Snapshots]:
    """60 documents of 50 passages in the collection `large`, 20 passages in `small`, one index.

    With a parameter, bulk loads have cut the vectors into as many leaves, the last without index.
    """
    monkeypatch.setattr(vector_partitions, "INDEX_FROM_ROWS", 1)
    drawn = unit_vectors(1, CHUNKS, DIMENSIONS)
    each = CHUNKS // DOCUMENTS
    leaves_count: int = getattr(request, "param", 1)
    async with engine.begin() as connection:
        model_id = await register_model(connection, name="m", digest="d", dimensions=DIMENSIONS)
        large = await add_collection(connection, "large", model_id)
    for leaf in range(leaves_count):
        if leaf:
            assert await ensure_index(engine, model_id)
            while not await begin_leaf(engine, model_id):  # an autovacuum may be in its way
                await asyncio.sleep(0.1)
        async with engine.begin() as connection:
            for number in range(leaf, DOCUMENTS, leaves_count):
                source = Source(["x"] * each, uri=f"{number:02}", metadata={"n": number})
                part = drawn[number * each : (number + 1) * each]
                await add_document(connection, large, source, part)
    async with engine.begin() as connection:
        small = await add_collection(connection, "small", model_id)
        await add_document(connection, small, Source(["y"] * 20), unit_vectors(2, 20, DIMENSIONS))
    if leaves_count == 1:
        assert await ensure_index(engine, model_id)
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(
            text("VACUUM ANALYZE")
        )
    snapshots = Snapshots(settings, url_of(engine))
    yield snapshots
    await snapshots.close()


async def nearest(
    snapshots: Snapshots,
    query: Query,
    filters: dict[str, Any],
    limit: int = LIMIT,
    **narrowing: NDArray[np.int64],
) -> list[int]:
    async with snapshots.open(1, SETTINGS) as snapshot:
        scope = await resolve(snapshot, LOCAL_OWNER, ["large"], filters)
        allowed = await allowed_chunks(snapshot, scope) if scope.condition else None
        found, _ = await find_neighbours(
            snapshot, scope, query, limit, allowed=allowed, **narrowing
        )
    return found.chunk_ids.tolist()


def force(monkeypatch: pytest.MonkeyPatch, *, index: bool) -> None:
    for name in ("COMPARED_CHUNKS", "PICKED_CHUNKS"):
        monkeypatch.setattr(vector, name, 0 if index else 10**9)


@pytest.mark.parametrize(
    ("indexed", "filters", "matching"),
    [
        (1, {}, CHUNKS),
        (1, {"n": {"$lt": 30}}, CHUNKS // 2),
        (1, {"n": {"$lt": 6}}, CHUNKS // 10),
        (1, {"n": 6}, CHUNKS // DOCUMENTS),
        (3, {}, CHUNKS),
        (3, {"n": {"$lt": 6}}, CHUNKS // 10),
    ],
    ids=["all", "half", "a tenth", "a sixtieth", "leaves: all", "leaves: a tenth"],
    indirect=["indexed"],
)
async def test_the_index_finds_what_comparing_all_finds(
    indexed: Snapshots,
    queries: Query,
    monkeypatch: pytest.MonkeyPatch,
    filters: dict[str, Any],
    matching: int,
) -> None:
    found_both = 0
    for query in queries:
        force(monkeypatch, index=False)
        exact = await nearest(indexed, query, filters)
        force(monkeypatch, index=True)
        approximate = await nearest(indexed, query, filters)
        assert len(exact) == len(approximate) == min(LIMIT, matching)
        found_both += len(set(exact) & set(approximate))
    assert found_both / (len(queries) * min(LIMIT, matching)) >= 0.98


@pytest.mark.parametrize("indexed", [1, 3], indirect=True)
async def test_the_index_is_used_where_it_pays(indexed: Snapshots, queries: Query) -> None:
    async with indexed.open(1, SETTINGS) as snapshot:
        scope = await resolve(snapshot, LOCAL_OWNER, ["large"], {})
        plan = await snapshot.fetch(
            "EXPLAIN " + vector._indexed(scope) + " ORDER BY distance LIMIT 50",  # pyright: ignore[reportPrivateUsage]
            {**scope.parameters, "query": queries[0]},
        )
    assert "_hnsw" in str(plan)


async def test_nearest_first_and_as_similar_as_they_are(indexed: Snapshots, queries: Query) -> None:
    async with indexed.open(1, SETTINGS) as snapshot:
        scope = await resolve(snapshot, LOCAL_OWNER, ["small"], {})
        found, asked = await find_neighbours(
            snapshot, scope, queries[0], 5, others=np.array([CHUNKS + 1, CHUNKS + 20])
        )
    cosines = unit_vectors(2, 20, DIMENSIONS) @ queries[0]
    best = np.argsort(-cosines)[:5]
    assert (found.chunk_ids - CHUNKS - 1).tolist() == best.tolist()
    assert found.similarities == pytest.approx(cosines[best], abs=2e-3)
    by_id = dict(zip(asked.chunk_ids.tolist(), asked.similarities.tolist(), strict=True))
    assert by_id == pytest.approx({CHUNKS + 1: cosines[0], CHUNKS + 20: cosines[19]}, abs=2e-3)


async def test_others_outside_the_scope_have_no_similarity(
    indexed: Snapshots, queries: Query
) -> None:
    async with indexed.open(1, SETTINGS) as snapshot:
        scope = await resolve(snapshot, LOCAL_OWNER, ["small"], {})
        _, asked = await find_neighbours(
            snapshot, scope, queries[0], 5, others=np.array([1, CHUNKS + 1])
        )
    assert asked.chunk_ids.tolist() == [CHUNKS + 1]


async def test_where_the_index_gives_up_all_are_compared(
    indexed: Snapshots, queries: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        vector,
        "SETTINGS",
        "SET LOCAL hnsw.iterative_scan = off; SET LOCAL hnsw.ef_search = 10",
    )
    force(monkeypatch, index=True)
    async with indexed.open(1, vector.SETTINGS) as snapshot:
        scope = await resolve(snapshot, LOCAL_OWNER, ["large"], {"n": 6})
        allowed = await allowed_chunks(snapshot, scope)
        found, _ = await find_neighbours(snapshot, scope, queries[0], LIMIT, allowed=allowed)
    assert len(found.chunk_ids) == CHUNKS // DOCUMENTS


@pytest.mark.parametrize("index", [True, False], ids=["index", "compared"])
@pytest.mark.parametrize("filters", [{}, {"n": {"$lt": 30}}], ids=["all", "filtered"])
async def test_excluded_chunks_are_made_up_for(
    indexed: Snapshots,
    queries: Query,
    monkeypatch: pytest.MonkeyPatch,
    filters: dict[str, Any],
    index: bool,
) -> None:
    force(monkeypatch, index=False)
    first, second = np.split(np.array(await nearest(indexed, queries[0], filters, 2 * LIMIT)), 2)
    force(monkeypatch, index=index)
    # Most of those excluded lie beyond what the filter leaves.
    without = np.concatenate([first, np.arange(CHUNKS - 500, CHUNKS + 1)])
    found = await nearest(indexed, queries[0], filters, without=without)
    assert len(found) == LIMIT
    assert not set(found) & set(without.tolist())
    wanted = set(second.tolist()) - set(without.tolist())
    assert len(wanted & set(found)) >= 0.9 * len(wanted)


async def test_only_named_chunks_of_the_scope_are_compared(
    indexed: Snapshots, queries: Query
) -> None:
    cosines = unit_vectors(1, CHUNKS, DIMENSIONS) @ queries[0]
    among = np.array([5, 60, 2_999, CHUNKS + 1, 10**12])
    found = await nearest(indexed, queries[0], {}, among=among)
    assert found == sorted([5, 60, 2_999], key=lambda chunk_id: -cosines[chunk_id - 1])
    assert await nearest(indexed, queries[0], {"n": 0}, among=among) == [5]
    assert await nearest(indexed, queries[0], {}, among=among, without=np.array([60, 5])) == [2_999]
    assert await nearest(indexed, queries[0], {}, among=np.array([], np.int64)) == []


async def test_deleted_rows_cost_no_hits(
    indexed: Snapshots, engine: AsyncEngine, queries: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.begin() as connection:
        gone = await connection.execute(
            text("SELECT id FROM documents WHERE (metadata ->> 'n')::int % 4 > 0")
        )
        for document_id in gone.scalars():
            await delete_document(connection, document_id)
    found_both = wanted = 0
    for filters, matching in ({}, CHUNKS // 4), ({"n": {"$lt": 8}}, 2 * CHUNKS // DOCUMENTS):
        for query in queries[:10]:
            force(monkeypatch, index=False)
            exact = await nearest(indexed, query, filters)
            force(monkeypatch, index=True)
            approximate = await nearest(indexed, query, filters)
            assert len(exact) == len(approximate) == min(LIMIT, matching)
            found_both += len(set(exact) & set(approximate))
            wanted += len(exact)
    assert found_both / wanted >= 0.95
