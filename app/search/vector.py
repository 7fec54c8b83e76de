"""The vector leg: which passages lie nearest to the question."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.db.arrays import HalfVector
from app.db.snapshot import Snapshot
from app.db.vector_partitions import partition_name
from app.search.scope import AllowedChunks, Scope

ChunkIds = NDArray[np.int64]
Similarities = NDArray[np.float64]

COMPARED_CHUNKS = 4_000
"""Finding the nearest in the index takes as long as comparing this many chunks of a collection one by
one. Where a tenth of the index is to be found it takes ten times as long."""

PICKED_CHUNKS = 2_300
"""The same of chunks that are picked by their ids, as those of a restricted scope are: reading one
takes longer then, and so does testing one that the index yields. Of 100,000 chunks a tenth takes 18 ms
from the index and 8 ms picked, a half 5 and 29 ms."""

SETTINGS = """
    SET LOCAL hnsw.ef_search = 150;
    SET LOCAL hnsw.iterative_scan = relaxed_order;
    SET LOCAL jit = off
"""
"""For the transaction of a search. Among 100,000 passages that resemble each other closely, with
headings for questions, 150 found 0.9845 of the nearest 10 in each of two builds of the index, and 120
0.978 in one. Compiling a plan would take longer than running it. (`benchmarks/vector.py`)"""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Chunks and their cosine to the question; nearest first, ties in the order of the chunks."""

    chunk_ids: ChunkIds
    similarities: Similarities


async def find_neighbours(
    snapshot: Snapshot,
    scope: Scope,
    query: NDArray[np.float32],
    limit: int,
    *,
    allowed: AllowedChunks | None = None,
    others: ChunkIds | None = None,
    among: ChunkIds | None = None,
    without: ChunkIds | None = None,
) -> tuple[Neighbours, Neighbours]:
    """The `limit` nearest chunks of the scope, and `others`, which are chunks of it, likewise.

    `allowed` are the chunks of a restricted scope. With `among` the nearest are sought among these
    chunks only, and never are they one of `without`, which are chunks of the scope. The nearest
    are as many as there are, up to `limit`: where the index finds too few, all are compared.
    """
    parameters = {**scope.parameters, "query": HalfVector(query)}
    narrowing = ""
    if among is not None:
        parameters["among"] = among
        narrowing += " AND e.chunk_id = ANY(%(among)s)"
    if without is not None:
        parameters["without"] = without
        # A subquery is hashed, so that each row is looked up once, however many there are.
        narrowing += " AND e.chunk_id NOT IN (SELECT unnest(%(without)s))"
    chunks_count = _reachable_count(scope, allowed, without)
    worth = COMPARED_CHUNKS if allowed is None else PICKED_CHUNKS
    if among is None and chunks_count**2 > worth * scope.model.chunks_count:
        source = _indexed(scope) + narrowing
        nearest, asked = await _fetch(snapshot, scope, source, parameters, limit, others)
        if len(nearest.chunk_ids) >= min(limit, chunks_count):
            return nearest, asked
    source = _compared(scope) + narrowing
    if allowed is not None:
        # By their ids, which stand side by side: documents and passages are not read again.
        source += " AND e.chunk_id = ANY(%(allowed)s)"
        parameters["allowed"] = allowed.chunk_ids
    return await _fetch(snapshot, scope, source, parameters, limit, others)


def _reachable_count(scope: Scope, allowed: AllowedChunks | None, without: ChunkIds | None) -> int:
    """How many chunks can be found."""
    count = scope.chunks_count if allowed is None else len(allowed)
    if without is None:
        return count
    return count - (len(without) if allowed is None else int(allowed.holds(without).sum()))


def _compared(scope: Scope) -> str:
    """Of the collections, each compared: `vector` itself is not what the index is on."""
    distance = f"e.vector <#> %(query)s::halfvec({scope.model.dimensions:d})"
    partition = partition_name(scope.model.id)
    return f"SELECT e.chunk_id, {distance} AS distance FROM {partition} AS e WHERE {_OWN}"  # noqa: S608 - made of numbers


def _indexed(scope: Scope) -> str:
    """What is visible as the index yields it, most of it nearest first."""
    dimensions = scope.model.dimensions
    seen = _OWN
    if scope.condition is not None:
        # The OFFSET keeps it a test of each row that the index yields, never a join of all.
        seen += f"""
            AND EXISTS (
              SELECT FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
              WHERE c.id = e.chunk_id AND {scope.visible_documents} OFFSET 0
            )
        """
    return f"""
        SELECT e.chunk_id, (e.vector::halfvec({dimensions:d}))
          <#> %(query)s::halfvec({dimensions:d}) AS distance
        FROM {partition_name(scope.model.id)} AS e WHERE {seen}
    """  # noqa: S608 - made of numbers and of the scope's conditions


_OWN = "e.tenant_id = %(tenant_id)s AND e.collection_id = ANY(%(collection_ids)s)"


async def _fetch(
    snapshot: Snapshot,
    scope: Scope,
    source: str,
    parameters: Mapping[str, Any],
    limit: int,
    others: ChunkIds | None,
) -> tuple[Neighbours, Neighbours]:
    # The limit is written out: with one that it does not know, PostgreSQL would plan every time.
    found = [f"SELECT * FROM ({source}) ORDER BY distance LIMIT {limit:d}"]  # noqa: S608 - see above
    if others is not None and len(others):
        parameters = {**parameters, "others": others}
        found.append(f"{_compared(scope)} AND e.chunk_id = ANY(%(others)s)")
    # Hundreds of rows in two values: reading them one by one takes as long as finding them.
    packed = ", ".join(
        f"(SELECT string_agg(int8send(chunk_id) || float8send(distance), '') FROM ({one}))"  # noqa: S608 - see above
        for one in found
    )
    [values] = await snapshot.fetch(f"SELECT {packed}", parameters)
    nearest, *asked = map(_neighbours, values)
    return nearest, asked[0] if asked else _neighbours(None)


_FOUND = np.dtype([("chunk_id", ">i8"), ("distance", ">f8")])


def _neighbours(packed: bytes | None) -> Neighbours:
    found = np.frombuffer(packed or b"", _FOUND)
    chunk_ids = found["chunk_id"].astype(np.int64)
    similarities = -found["distance"].astype(np.float64)
    order = np.lexsort((chunk_ids, -similarities))
    return Neighbours(chunk_ids[order], similarities[order])
