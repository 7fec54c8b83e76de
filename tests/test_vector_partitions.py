"""The leaves of a model's vectors: indexed when it pays, begun for bulk loads, safe when cut short."""

import asyncio
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import vector_partitions
from app.db.documents import delete_document, reserve_chunk_ids
from app.db.session import sqlalchemy_url
from app.db.vector_partitions import (
    Leaf,
    begin_leaf,
    bulk_load,
    ensure_index,
    index_name,
    leaf_name,
    list_leaves,
)
from app.db.vectors import register_model
from tests.conftest import ROOT
from tests.passages import Source, Stored, add_collection, add_document, unit_vectors

DIMENSIONS = 8


@pytest.fixture
def from_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every leaf with a row is worth an index; changes that wait for locks give up soon."""
    monkeypatch.setattr(vector_partitions, "INDEX_FROM_ROWS", 1)
    monkeypatch.setattr(vector_partitions, "LOCK_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(vector_partitions, "LOCK_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(vector_partitions, "LOCK_ATTEMPTS", 3)


@pytest.fixture
async def model_id(engine: AsyncEngine) -> int:
    async with engine.begin() as connection:
        return await register_model(connection, name="m", digest="d", dimensions=DIMENSIONS)


async def fill(engine: AsyncEngine, model_id: int, count: int, seed: int = 2) -> Stored:
    """A collection with one document of so many passages."""
    async with engine.begin() as connection:
        collection_id = await add_collection(connection, f"books-{seed}", model_id)
        vectors = unit_vectors(seed, count, DIMENSIONS)
        return await add_document(connection, collection_id, Source(["x"] * count), vectors)


async def leaves(engine: AsyncEngine, model_id: int) -> list[Leaf]:
    async with engine.connect() as connection:
        return await list_leaves(connection, model_id)


async def rows_of(engine: AsyncEngine, table: str) -> list[int]:
    async with engine.connect() as connection:
        rows = await connection.execute(text(f"SELECT chunk_id FROM {table} ORDER BY chunk_id"))  # noqa: S608 - a table of ours
        return list(rows.scalars())


# --- indexes --------------------------------------------------------------------------------------


async def test_the_index_is_built_once_there_is_enough(
    engine: AsyncEngine, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_partitions, "INDEX_FROM_ROWS", 50)
    await fill(engine, model_id, 49)
    assert not await ensure_index(engine, model_id)
    await fill(engine, model_id, 1, seed=3)
    assert await ensure_index(engine, model_id)
    assert [leaf.is_indexed for leaf in await leaves(engine, model_id)] == [True]
    assert not await ensure_index(engine, model_id)


@pytest.mark.usefixtures("from_one_row")
async def test_the_leftover_of_an_interrupted_build_is_replaced(
    engine: AsyncEngine, model_id: int
) -> None:
    await fill(engine, model_id, 5)
    assert await ensure_index(engine, model_id)
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)"),
            {"name": index_name(leaf_name(model_id, 0))},
        )
    assert [leaf.is_indexed for leaf in await leaves(engine, model_id)] == [False]
    assert await ensure_index(engine, model_id)
    assert [leaf.is_indexed for leaf in await leaves(engine, model_id)] == [True]


@pytest.mark.usefixtures("from_one_row")
async def test_builders_at_once_build_one_index(engine: AsyncEngine, model_id: int) -> None:
    await fill(engine, model_id, 200)
    built = await asyncio.gather(*(ensure_index(engine, model_id) for _ in range(3)))
    assert sum(built) == 1


async def test_an_unknown_model_needs_no_index(engine: AsyncEngine) -> None:
    assert not await ensure_index(engine, 99)
    assert not await begin_leaf(engine, 99)


# --- bulk loads -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("from_one_row")
async def test_a_bulk_load_fills_a_leaf_of_its_own_and_indexes_it_afterwards(
    engine: AsyncEngine, model_id: int
) -> None:
    before = await fill(engine, model_id, 5)
    assert await ensure_index(engine, model_id)
    async with bulk_load(engine, model_id):
        assert await begin_leaf(engine, model_id)
        loaded = await fill(engine, model_id, 7, seed=3)
        assert not await ensure_index(engine, model_id)
        assert [leaf.is_indexed for leaf in await leaves(engine, model_id)] == [True, None]
    assert await rows_of(engine, leaf_name(model_id, 0)) == before.chunk_ids
    assert await rows_of(engine, leaf_name(model_id, 1)) == loaded.chunk_ids
    assert await ensure_index(engine, model_id)
    first, last = await leaves(engine, model_id)
    assert (first.is_indexed, last.is_indexed) == (True, True)
    assert not first.is_last
    assert last.is_last
    assert max(loaded.chunk_ids) < 2**40

    async with engine.begin() as connection:
        for stored in (before, loaded):
            await delete_document(connection, stored.document_id)
    assert await rows_of(engine, "embeddings") == []


@pytest.mark.usefixtures("from_one_row")
async def test_a_leaf_without_an_index_needs_no_successor(
    engine: AsyncEngine, model_id: int
) -> None:
    assert not await begin_leaf(engine, model_id)
    await fill(engine, model_id, 5)
    assert not await begin_leaf(engine, model_id)
    await ensure_index(engine, model_id)
    assert await begin_leaf(engine, model_id)
    assert not await begin_leaf(engine, model_id)
    assert len(await leaves(engine, model_id)) == 2
    # A load that has filled it goes on in another one all the same.
    assert await begin_leaf(engine, model_id, is_full=True)
    assert len(await leaves(engine, model_id)) == 3


@pytest.mark.usefixtures("from_one_row")
async def test_leaves_follow_each_other_and_keep_what_holds_for_their_rows(
    engine: AsyncEngine, model_id: int
) -> None:
    stored: list[Stored] = []
    for number in range(3):
        stored.append(await fill(engine, model_id, 5, seed=number))
        await ensure_index(engine, model_id)
        assert await begin_leaf(engine, model_id)
    found = await leaves(engine, model_id)
    assert [leaf.number for leaf in found] == [0, 1, 2, 3]
    for number, one in enumerate(stored):
        assert await rows_of(engine, leaf_name(model_id, number)) == one.chunk_ids
    assert await rows_of(engine, "embeddings") == [id_ for one in stored for id_ in one.chunk_ids]
    async with engine.begin() as connection:
        # The reference to the chunk, and what it does when the chunk goes, came along.
        first, second, _ = (one.chunk_ids for one in stored)
        await connection.execute(text("DELETE FROM chunks WHERE id = :id"), {"id": second[0]})
    assert await rows_of(engine, leaf_name(model_id, 1)) == second[1:]
    for number in range(4):
        with pytest.raises(psycopg.errors.CheckViolation):
            await _insert(engine, leaf_name(model_id, number), model_id, first[0], DIMENSIONS + 1)


async def _insert(
    engine: AsyncEngine, table: str, model_id: int, chunk_id: int, dimensions: int
) -> None:
    async with engine.begin() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute(
            f"INSERT INTO {table} VALUES (%s, %s, 1, 1, %s::text::halfvec)",  # noqa: S608 - a table of ours
            (chunk_id, model_id, str([0.5] * dimensions)),
        )


@pytest.mark.usefixtures("from_one_row")
async def test_closing_a_leaf_reads_it_only_while_nobody_is_kept_out(
    engine: AsyncEngine, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL says so in words when a check spares it from reading a table that is attached."""
    await fill(engine, model_id, 5)
    await ensure_index(engine, model_id)
    notices: list[str] = []
    locks_taken = vector_partitions._with_locks  # pyright: ignore[reportPrivateUsage]

    async def listening(connection: AsyncConnection, *statements: str) -> bool:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        driver.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        await driver.execute("SET client_min_messages = debug1")
        return await locks_taken(connection, *statements)

    monkeypatch.setattr(vector_partitions, "_with_locks", listening)
    assert await begin_leaf(engine, model_id)
    told = [notice for notice in notices if "is implied by existing constraints" in notice]
    assert any(leaf_name(model_id, 0) in notice for notice in told)


@pytest.mark.usefixtures("from_one_row")
async def test_whoever_holds_a_lock_too_long_is_left_alone(
    engine: AsyncEngine, model_id: int
) -> None:
    await fill(engine, model_id, 5)
    await ensure_index(engine, model_id)
    async with engine.begin() as reader:
        await reader.execute(text("SELECT count(*) FROM embeddings"))
        assert not await begin_leaf(engine, model_id)
    [only] = await leaves(engine, model_id)
    assert only.is_last
    # Its end was taken back as soon as that was possible, at the latest by who keeps the indexes.
    await ensure_index(engine, model_id)
    [only] = await leaves(engine, model_id)
    assert not only.is_closing
    assert await begin_leaf(engine, model_id)


class Killed(BaseException):
    """Ends the work at once, as the death of the process would."""


@pytest.mark.usefixtures("from_one_row")
@pytest.mark.parametrize("moment", [1, 2, 3])
async def test_cut_short_anywhere_the_rest_goes_on(
    engine: AsyncEngine, model_id: int, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """After the end was prepared; before it was given; before the ids jump over it."""
    before = await fill(engine, model_id, 5)
    await ensure_index(engine, model_id)
    locks_taken = vector_partitions._with_locks  # pyright: ignore[reportPrivateUsage]
    calls = 0

    async def dying(connection: AsyncConnection, *statements: str) -> bool:
        nonlocal calls
        calls += 1
        if calls == 2 and moment == 2:
            raise Killed
        done = await locks_taken(connection, *statements)
        if calls == 1 and moment == 1:
            raise Killed
        return done

    async def dead(connection: AsyncConnection, count: int) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(vector_partitions, "_with_locks", dying)
        patch.setattr(vector_partitions, "reserve_chunk_ids", dead)
        with pytest.raises(Killed):
            await begin_leaf(engine, model_id)
    after = await fill(engine, model_id, 5, seed=3)
    assert await rows_of(engine, "embeddings") == before.chunk_ids + after.chunk_ids
    await ensure_index(engine, model_id)
    assert not any(leaf.is_closing for leaf in await leaves(engine, model_id))
    # Beyond the end that was prepared, chunks are welcome again.
    async with engine.begin() as connection:
        await reserve_chunk_ids(connection, 2 * vector_partitions.BOUNDARY_MARGIN)
    late = await fill(engine, model_id, 5, seed=4)
    await ensure_index(engine, model_id)
    assert await begin_leaf(engine, model_id)
    assert await rows_of(engine, "embeddings") == [
        *before.chunk_ids, *after.chunk_ids, *late.chunk_ids
    ]  # fmt: skip


@pytest.mark.usefixtures("from_one_row")
async def test_writers_and_deleters_go_on_while_leaves_are_begun(
    engine: AsyncEngine, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_partitions, "LOCK_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(vector_partitions, "LOCK_ATTEMPTS", 20)
    await fill(engine, model_id, 5)
    await ensure_index(engine, model_id)
    async with engine.begin() as connection:
        collection_id = await add_collection(connection, "busy", model_id)
    kept: list[int] = []
    stop = asyncio.Event()

    async def write(seed: int) -> None:
        while not stop.is_set():
            async with engine.begin() as connection:
                vectors = unit_vectors(seed, 3, DIMENSIONS)
                one = await add_document(connection, collection_id, Source(["z"] * 3), vectors)
            if seed % 2:
                kept.extend(one.chunk_ids)
            else:
                async with engine.begin() as connection:
                    await delete_document(connection, one.document_id)

    writers = [asyncio.create_task(write(seed)) for seed in range(4)]
    for _ in range(3):
        assert await begin_leaf(engine, model_id)
        count = len(kept)
        while len(kept) == count:
            await asyncio.sleep(0.01)
        await ensure_index(engine, model_id)
    stop.set()
    await asyncio.gather(*writers)
    assert len(await leaves(engine, model_id)) == 4
    assert set(await rows_of(engine, "embeddings")) >= set(kept)
    assert len(await rows_of(engine, "embeddings")) == 5 + len(kept)


# --- the migration --------------------------------------------------------------------------------


async def test_partitions_become_leaves_and_leaves_partitions(
    engine: AsyncEngine, model_id: int, database_url: str, from_one_row: None
) -> None:
    stored = await fill(engine, model_id, 5)
    await ensure_index(engine, model_id)
    objects = await objects_of(engine)
    await to_revision(engine, database_url, "0002")
    assert "embeddings_m1_0" not in await objects_of(engine)
    assert await rows_of(engine, "embeddings_m1") == stored.chunk_ids
    await to_revision(engine, database_url, "head")
    assert await objects_of(engine) == objects
    [leaf] = await leaves(engine, model_id)
    assert leaf.is_indexed
    assert await rows_of(engine, leaf.name) == stored.chunk_ids

    assert await begin_leaf(engine, model_id)
    later = await fill(engine, model_id, 3, seed=3)
    await to_revision(engine, database_url, "0002")
    assert await rows_of(engine, "embeddings_m1") == stored.chunk_ids + later.chunk_ids
    await to_revision(engine, database_url, "head")
    assert await ensure_index(engine, model_id)
    assert await objects_of(engine) == objects
    assert await begin_leaf(engine, model_id)
    assert await rows_of(engine, "embeddings") == stored.chunk_ids + later.chunk_ids


async def to_revision(engine: AsyncEngine, url: str, revision: str) -> None:
    """Down or up to it, with no connection of ours in the way."""
    await engine.dispose()
    migrated = create_engine(sqlalchemy_url(url))
    config = Config(ROOT / "alembic.ini")
    move = command.downgrade if revision == "0002" else command.upgrade
    with migrated.connect() as connection:
        config.attributes["connection"] = connection
        move(config, revision)
    migrated.dispose()


async def objects_of(engine: AsyncEngine) -> dict[str, str]:
    """Every table and index of vectors, and every condition on them, in PostgreSQL's words."""
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                """
                SELECT relname, relkind::text || coalesce(pg_get_indexdef(i.indexrelid), '')
                  || coalesce(pg_get_expr(relpartbound, c.oid), '')
                FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
                WHERE relname LIKE 'embeddings%'
                UNION ALL
                SELECT conrelid::regclass || ' ' || conname,
                  pg_get_constraintdef(oid) || convalidated || coninhcount
                FROM pg_constraint WHERE conrelid::regclass::text LIKE 'embeddings%'
                """
            )
        )
        return {row[0]: row[1] for row in rows}
