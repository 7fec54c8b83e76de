import math
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.errors import InvalidInput, NotFound
from app.search.base import Mode
from app.search.filters import filter_conditions
from app.search.ranking import CANDIDATES
from app.search.scope import AllowedChunks
from tests.passages import Source, add_tenant
from tests.searching import Index, open_index

MODES: list[Mode] = ["hybrid", "vector", "keyword"]
READER = replace(LOCAL_OWNER, scopes=frozenset({"read"}))


@pytest.fixture
async def index(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Index]:
    async with open_index(engine, settings) as opened:
        yield opened


async def add_books(index: Index) -> None:
    await index.fill(
        [
            Source(["travel one"], uri="one", metadata={"team": "sales", "year": 2023, "ok": True}),
            Source(["travel two"], uri="two", metadata={"team": "support", "year": 2024.5}),
            Source(["travel three"], uri="three", metadata={"tags": ["a", "b"], "year": "2024"}),
            Source(["travel four"], uri="four", metadata={"team": "Sales", "day": "2024-05-01"}),
            Source(["travel five", "travel more"], uri="five"),
        ]
    )


# --- who may see what -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_another_tenants_passages_do_not_exist(index: Index, mode: Mode) -> None:
    async with index.engine.begin() as connection:
        await add_tenant(connection, 2)
    await index.fill(["travel ours"], "books")
    await index.fill(["travel theirs"], "books", tenant_id=2)
    await index.fill(["travel secret"], "secrets", tenant_id=2)
    assert await index.texts("travel", mode=mode) == ["travel ours"]
    theirs = replace(READER, tenant_id=2)
    assert await index.texts("travel", mode=mode, caller=theirs) == ["travel theirs"]
    with pytest.raises(NotFound):
        await index.search("travel", "secrets", mode=mode)


@pytest.mark.parametrize("mode", MODES)
async def test_a_key_limited_to_collections_has_no_others(index: Index, mode: Mode) -> None:
    await index.fill(["travel ours"], "books")
    await index.fill(["travel away"], "plans")
    limited = replace(READER, collections=frozenset({"books"}))
    assert await index.texts("travel", mode=mode, caller=limited) == ["travel ours"]
    with pytest.raises(NotFound) as refused:
        await index.search("travel", "plans", mode=mode, caller=limited)
    with pytest.raises(NotFound) as unknown:
        await index.search("travel", "nowhere", mode=mode, caller=limited)
    assert refused.value.detail.replace("plans", "nowhere") == unknown.value.detail


async def test_access_groups_decide_before_the_candidates_are_chosen(index: Index) -> None:
    hidden = [Source([f"travel travel {n}"], groups=["board"]) for n in range(CANDIDATES + 10)]
    await index.fill(
        [*hidden, "travel for all", Source(["travel of sales"], groups=["sales", "board"])]
    )
    sales = replace(READER, groups=frozenset({"sales"}))
    nobody = replace(READER, groups=frozenset[str]())
    for mode in MODES:
        found = await index.texts("travel", mode=mode, caller=sales)
        assert set(found) == {"travel for all", "travel of sales"}, mode
        assert await index.texts("travel", mode=mode, caller=nobody) == ["travel for all"], mode
        everything = await index.texts("travel", mode=mode, limit=2 * CANDIDATES)
        assert len(everything) == len(hidden) + 2, mode


async def test_an_explanation_counts_only_what_the_caller_may_see(index: Index) -> None:
    await index.fill(
        [Source(["travel open"]), Source(["travel closed"], groups=["board"], metadata={"n": 1})]
    )
    nobody = replace(READER, groups=frozenset[str]())
    result = await index.search("travel", caller=nobody, filters={"n": 1}, explain=True)
    assert list(result.hits) == []
    assert result.explanation is not None
    assert result.explanation["filtered"] == {"fields": ["n"], "left": 0}


@pytest.mark.parametrize("name", ["nowhere", "", "bo\0oks", "\ud800", "books' OR 1=1 --"])
async def test_a_collection_that_is_not_there_is_not_found(index: Index, name: str) -> None:
    await index.fill(["travel"])
    with pytest.raises(NotFound):
        await index.search("travel", "books", name)


async def test_how_many_collections_are_searched_is_bounded(index: Index) -> None:
    with pytest.raises(InvalidInput):
        await index.search("travel", *(f"c{n}" for n in range(51)))


# --- filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "uris"),
    [
        ({"team": "sales"}, {"one"}),
        ({"team": "SALES"}, set()),
        ({"team": {"$in": ["sales", "support", "none"]}}, {"one", "two"}),
        ({"tags": "b"}, {"three"}),
        ({"tags": {"$in": ["c", "a"]}}, {"three"}),
        ({"ok": True}, {"one"}),
        ({"ok": 1}, set()),
        ({"year": 2023.0}, {"one"}),
        ({"year": {"$gte": 2023, "$lt": 2024.5}}, {"one"}),
        ({"year": {"$gt": 2023}}, {"two"}),
        ({"year": {"$lte": 2024.5}}, {"one", "two"}),
        ({"year": {"$gte": "2024"}}, {"three"}),
        ({"day": {"$gte": "2024-01-01", "$lt": "2025-01-01"}}, {"four"}),
        ({"team": "sales", "year": {"$lt": 2000}}, set()),
        ({"nothing": "known"}, set()),
        ({"$uri": "two"}, {"two"}),
        ({"$uri": {"$gte": "one", "$lt": "three"}}, {"one"}),
        ({"$title": {"$in": ["Title of five"]}}, {"five"}),
        ({"$media_type": "text/plain", "team": "support"}, {"two"}),
        ({"team'; DROP TABLE documents; --": "x"}, set()),
        ({"%(team)s": "x"}, set()),
        ({}, {"one", "two", "three", "four", "five"}),
    ],
)
async def test_filters(books: Index, filters: dict[str, Any], uris: set[str]) -> None:
    for mode in MODES:
        hits = (await books.search("travel", mode=mode, filters=filters)).hits
        assert {hit.uri for hit in hits} == uris, mode


@pytest.fixture
async def books(index: Index) -> Index:
    await add_books(index)
    return index


async def test_documents_are_found_by_their_ids(books: Index) -> None:
    hits = (await books.search("travel")).hits
    wanted = next(hit for hit in hits if hit.uri == "five").document_id
    found = (await books.search("travel", filters={"$document_id": str(wanted)})).hits
    assert {hit.text for hit in found} == {"travel five", "travel more"}


async def test_as_many_come_back_as_match_the_filter(index: Index) -> None:
    await index.fill(
        Source([f"travel {n % 7} {n}"], metadata={"n": n, "rare": n % 40 == 0}) for n in range(240)
    )
    for filters, matching in (
        ({"rare": True}, 6),
        ({"n": {"$lt": 1}}, 1),
        ({"n": {"$gte": 120}}, 120),
    ):
        for mode in MODES:
            hits = (await index.search("travel", mode=mode, filters=filters, limit=100)).hits
            assert len(hits) == min(100, matching), mode


@pytest.mark.parametrize(
    "filters",
    [
        {"year": {}},
        {"year": {"$near": 5}},
        {"year": {"gte": 5}},
        {"year": {"$in": []}},
        {"year": {"$in": "2024"}},
        {"year": {"$in": list(range(201))}},
        {"year": {"$in": [[1]]}},
        {"year": None},
        {"year": [2024]},
        {"year": math.nan},
        {"year": {"$gte": math.inf}},
        {"year": {"$lt": 10**400}},
        {"year": {"$lt": True}},
        {"year": {"$lt": {"$gt": 1}}},
        {"team": "nul\0"},
        {"team": "\ud800"},
        {"team": "x" * 1001},
        {"": "x"},
        {"x" * 201: "x"},
        {"a\0b": "x"},
        {"$where": "1 = 1"},
        {"$uri": 5},
        {"$uri": {"$in": ["x", None]}},
        {"$document_id": "not-an-id"},
        {"$document_id": {"$gt": "00000000-0000-0000-0000-000000000000"}},
        {f"f{n}": 1 for n in range(51)},
    ],
    ids=lambda filters: ascii(filters)[:40],
)
def test_a_filter_that_makes_no_sense_is_refused(filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        filter_conditions(filters)
    assert refused.value.hint
    assert len(refused.value.detail) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=3))
def test_the_sql_of_a_filter_holds_nothing_of_the_request(filters: dict[str, Any]) -> None:
    try:
        conditions, values = filter_conditions(filters)
    except InvalidInput:
        return
    assert set(re.findall(r"%\((\w+)\)s", " ".join(conditions))) == set(values)
    others = {field if field[0] == "$" else f"'{field}": value for field, value in filters.items()}
    assert filter_conditions(others)[0] == conditions


# --- allowed chunks -------------------------------------------------------------------------------


def test_ranges_hold_their_chunks_and_no_others() -> None:
    allowed = AllowedChunks(np.array([3, 10, 11]), np.array([5, 10, 12]))
    asked = np.arange(15)
    assert asked[allowed.holds(asked)].tolist() == [3, 4, 5, 10, 11, 12]
    assert allowed.chunk_ids.tolist() == [3, 4, 5, 10, 11, 12]
    assert len(allowed) == 6
    nothing = AllowedChunks(np.empty(0, np.int64), np.empty(0, np.int64))
    assert not nothing.holds(asked).any()
    assert len(nothing) == 0
    assert nothing.chunk_ids.tolist() == []
