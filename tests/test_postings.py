import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.postings import (
    MERGED_ROW_BYTES,
    ChunkTerms,
    PostingList,
    add_postings,
    merge_postings,
    pack_posting,
    read_postings,
    remove_postings,
)
from app.db.vectors import register_model
from tests.passages import add_collection, reading

Contents = dict[str, list[tuple[int, int, int]]]


@pytest.fixture
async def collection_id(engine: AsyncEngine) -> int:
    async with engine.begin() as connection:
        model_id = await register_model(connection, name="m", digest="d", dimensions=3)
        return await add_collection(connection, "books", model_id)


async def contents(
    connection: AsyncConnection, collection_id: int, terms: Sequence[str]
) -> Contents:
    found = await read_postings(await reading(connection), np.array([collection_id]), terms)
    return {
        term: list(
            zip(
                postings.chunk_ids.tolist(),
                postings.occurrences.tolist(),
                postings.lengths.tolist(),
                strict=True,
            )
        )
        for term, postings in found.items()
    }


async def rows_count(connection: AsyncConnection, term: str) -> int:
    counted = await connection.execute(
        text("SELECT count(*) FROM postings WHERE term = :term"), {"term": term}
    )
    return int(counted.scalar_one())


@given(
    st.integers(0, 2**40 - 1),
    st.integers(1, 4095),
    st.integers(1, 4095),
)
def test_a_posting_unpacks_to_what_was_packed(chunk_id: int, occurrences: int, length: int) -> None:
    packed = PostingList(np.array([pack_posting(chunk_id, occurrences, length)], np.uint64))
    assert packed.chunk_ids.tolist() == [chunk_id]
    assert packed.occurrences.tolist() == [occurrences]
    assert packed.lengths.tolist() == [length]


def test_numbers_too_large_for_a_posting_stay_at_the_largest() -> None:
    packed = PostingList(np.array([pack_posting(7, 1_000_000, 1_000_000)], np.uint64))
    assert (packed.chunk_ids[0], packed.occurrences[0], packed.lengths[0]) == (7, 4095, 4095)


async def test_reads_what_was_added(connection: AsyncConnection, collection_id: int) -> None:
    chunks = [
        ChunkTerms(11, ["cat", "dog", "cat"]),
        ChunkTerms(10, ["dog"]),
        ChunkTerms(12, []),
    ]
    await add_postings(connection, collection_id, chunks)
    assert await contents(connection, collection_id, ["cat", "dog", "emu"]) == {
        "cat": [(11, 2, 3)],
        "dog": [(10, 1, 1), (11, 1, 3)],
    }


async def test_postings_are_written_in_the_callers_transaction(
    engine: AsyncEngine, collection_id: int
) -> None:
    async with engine.connect() as connection:
        await add_postings(connection, collection_id, [ChunkTerms(1, ["cat"])])
        await connection.rollback()
    async with engine.connect() as connection:
        assert await contents(connection, collection_id, ["cat"]) == {}


async def test_terms_of_any_script_are_kept_apart_exactly(
    connection: AsyncConnection, collection_id: int
) -> None:
    terms = ["straße", "strasse", "日本", "c++", "naïve", "naive", "😀"]
    await add_postings(connection, collection_id, [ChunkTerms(3, terms)])
    assert set(await contents(connection, collection_id, terms)) == set(terms)


async def test_collections_do_not_see_each_others_postings(
    connection: AsyncConnection, collection_id: int
) -> None:
    model_id = await register_model(connection, name="m", digest="d", dimensions=3)
    other_id = await add_collection(connection, "other", model_id)
    await add_postings(connection, collection_id, [ChunkTerms(1, ["cat"])])
    await add_postings(connection, other_id, [ChunkTerms(2, ["cat"])])
    assert await contents(connection, other_id, ["cat"]) == {"cat": [(2, 1, 1)]}
    both = await read_postings(
        await reading(connection), np.array([collection_id, other_id]), ["cat"]
    )
    assert both["cat"].chunk_ids.tolist() == [1, 2]


async def test_merging_changes_rows_but_not_contents(
    engine: AsyncEngine, collection_id: int
) -> None:
    for first in range(1, 100, 3):
        async with engine.begin() as connection:
            await add_postings(
                connection,
                collection_id,
                [
                    ChunkTerms(first, ["cat", "cat"]),
                    ChunkTerms(first + 1, ["cat", f"w{first}", "dog"]),
                ],
            )
    terms = ["cat", "dog", "w1", "w4"]
    async with engine.connect() as connection:
        before = await contents(connection, collection_id, terms)
        assert await rows_count(connection, "cat") == 33
    assert await merge_postings(engine, collection_id) == 2
    async with engine.connect() as connection:
        assert await contents(connection, collection_id, terms) == before
        assert await rows_count(connection, "cat") == 1
    assert await merge_postings(engine, collection_id) == 0


async def test_a_few_new_postings_do_not_rewrite_a_long_row(
    engine: AsyncEngine, collection_id: int
) -> None:
    async with engine.begin() as connection:
        await add_postings(
            connection, collection_id, [ChunkTerms(n, ["cat"]) for n in range(1, 101)]
        )
        await add_postings(connection, collection_id, [ChunkTerms(101, ["cat"])])
    assert await merge_postings(engine, collection_id) == 0


async def test_merged_rows_are_bounded(engine: AsyncEngine, collection_id: int) -> None:
    step = 1_000
    async with engine.begin() as connection:
        for first in range(1, 30_000, step):
            await add_postings(
                connection,
                collection_id,
                [ChunkTerms(n, ["cat"]) for n in range(first, first + step)],
            )
    await merge_postings(engine, collection_id)
    async with engine.connect() as connection:
        sizes = await connection.execute(text("SELECT octet_length(payload) FROM postings"))
        lengths = list(sizes.scalars())
        assert sum(lengths) == 30_000 * 8
        assert max(lengths) <= MERGED_ROW_BYTES + 8 * step
        assert len(lengths) <= 5
        found = await read_postings(await reading(connection), np.array([collection_id]), ["cat"])
        assert found["cat"].chunk_ids.tolist() == list(range(1, 30_001))


async def test_versions_that_commit_out_of_order_are_read_in_order(
    engine: AsyncEngine, collection_id: int
) -> None:
    async with engine.connect() as slow, engine.connect() as quick:
        await add_postings(slow, collection_id, [ChunkTerms(2, ["cat"]), ChunkTerms(3, ["cat"])])
        await add_postings(quick, collection_id, [ChunkTerms(1, ["cat"])])
        await quick.commit()
        await add_postings(quick, collection_id, [ChunkTerms(4, ["cat"])])
        await quick.commit()
        await merge_postings(engine, collection_id)
        await slow.commit()
        found = await read_postings(await reading(quick), np.array([collection_id]), ["cat"])
        assert found["cat"].chunk_ids.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("merged", [False, True])
async def test_removal_takes_out_one_version_only(
    engine: AsyncEngine, collection_id: int, merged: bool
) -> None:
    async with engine.begin() as connection:
        for first in (1, 3, 5):
            await add_postings(
                connection,
                collection_id,
                [ChunkTerms(first, ["cat", "dog"]), ChunkTerms(first + 1, ["cat", f"only{first}"])],
            )
    if merged:
        assert await merge_postings(engine, collection_id) == 2
    async with engine.begin() as connection:
        await remove_postings(connection, collection_id, ["cat", "dog", "only3"], 3, 4)
        assert await contents(connection, collection_id, ["cat", "dog", "only1", "only3"]) == {
            "cat": [(1, 1, 2), (2, 1, 2), (5, 1, 2), (6, 1, 2)],
            "dog": [(1, 1, 2), (5, 1, 2)],
            "only1": [(2, 1, 2)],
        }
        for first in (1, 5):
            terms = ["cat", "dog", f"only{first}"]
            await remove_postings(connection, collection_id, terms, first, first + 1)
        left = await connection.execute(text("SELECT count(*) FROM postings"))
        assert left.scalar_one() == 0


async def test_removal_keeps_the_bounds_of_a_merged_row_true(
    engine: AsyncEngine, collection_id: int
) -> None:
    async with engine.begin() as connection:
        for chunk_id in (1, 2, 3):
            await add_postings(connection, collection_id, [ChunkTerms(chunk_id, ["cat"])])
    await merge_postings(engine, collection_id)
    async with engine.begin() as connection:
        await remove_postings(connection, collection_id, ["cat"], 1, 1)
        await remove_postings(connection, collection_id, ["cat"], 3, 3)
        rows = await connection.execute(text("SELECT first_chunk_id, last_chunk_id FROM postings"))
        assert [tuple(row) for row in rows] == [(2, 2)]


async def test_merging_gives_way_to_a_removal_under_way(
    engine: AsyncEngine, collection_id: int
) -> None:
    async with engine.begin() as connection:
        for chunk_id in (1, 2):
            await add_postings(connection, collection_id, [ChunkTerms(chunk_id, ["cat"])])
    async with engine.connect() as removing:
        await remove_postings(removing, collection_id, ["cat"], 1, 1)
        assert await merge_postings(engine, collection_id) == 0
        await removing.commit()
        assert await contents(removing, collection_id, ["cat"]) == {"cat": [(2, 1, 1)]}


async def test_writes_removals_and_merges_at_once_lose_and_double_nothing(
    engine: AsyncEngine, collection_id: int
) -> None:
    terms = [f"t{n}" for n in range(20)]

    async def write(writer: int) -> None:
        for version in range(12):
            first = 1 + (writer * 12 + version) * 10
            async with engine.begin() as connection:
                await add_postings(
                    connection, collection_id, [ChunkTerms(first + n, terms) for n in range(10)]
                )
            if version % 2:
                async with engine.begin() as connection:
                    await remove_postings(connection, collection_id, terms, first, first + 9)

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    while not all(writer.done() for writer in writers):
        await merge_postings(engine, collection_id)
        await asyncio.sleep(0)
    await asyncio.gather(*writers)
    await merge_postings(engine, collection_id)
    expected = [
        1 + (writer * 12 + version) * 10 + n
        for writer in range(4)
        for version in range(0, 12, 2)
        for n in range(10)
    ]
    async with engine.connect() as connection:
        found = await read_postings(await reading(connection), np.array([collection_id]), terms)
    assert {term: found[term].chunk_ids.tolist() for term in terms} == dict.fromkeys(
        terms, expected
    )


async def test_terms_of_title_and_headings_count_twice_but_make_no_chunk_longer(
    connection: AsyncConnection, collection_id: int
) -> None:
    await add_postings(
        connection, collection_id, [ChunkTerms(1, ["cat", "dog", "cat"], ["cat", "emu"])]
    )
    assert await contents(connection, collection_id, ["cat", "dog", "emu"]) == {
        "cat": [(1, 3, 3)],
        "dog": [(1, 1, 3)],
    }
