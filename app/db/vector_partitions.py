"""The tables that hold the vectors: a partition per model, cut into leaves, and their indexes.

The partition `embeddings_m{model}` is cut by chunk id into leaves `embeddings_m{model}_{n}`, the
last of which has no end. Every leaf has an HNSW index of its own once that pays; a search sees all
leaves, those without an index compared row by row. A bulk load begins a leaf of its own, so that it
never inserts into an index: see docs/decisions/0020-bulk-leaves.md.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import bindparam, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import BigInteger, Integer

from app.db.documents import reserve_chunk_ids
from app.db.row_security import OWN_ROWS, grant, guard
from app.failpoints import reach

log = structlog.get_logger(__name__)

INDEX_FROM_ROWS = 5_000
"""Below this an exact scan is as fast as the index, and inserting is faster without one."""

BULK_FROM_CHUNKS = 20_000
"""A load that expects fewer does not begin a leaf: every search pays for every leaf."""

LEAF_CHUNKS = 2_000_000
"""When a load has put as many into one leaf it goes on in the next: an index that is built within
memory is built many times faster."""

BOUNDARY_MARGIN = 1_000_000
"""Chunk ids between the last one given out and the end that a leaf is about to get: more than all
writers together take while the end is checked."""

LOCK_TIMEOUT_SECONDS = 2.0
"""How long others may queue behind the change; longer than it takes autovacuum to step aside."""
LOCK_ATTEMPTS = 8
LOCK_PAUSE_SECONDS = 0.5

_INLINE_DIMENSIONS = 3_500
"""Up to here a vector fits into a page of the table itself, where a scan finds it sooner."""

LINKS = 16
BUILD_CANDIDATES = 256
"""How carefully an index is built: among 100,000 passages that resemble each other closely, a search of 120
candidates finds 0.988 of the nearest ten. Built with 128 candidates it takes a search of more than 200, half
as long again, to find as many, and building takes 27 s in place of 40 s."""

_NODE_BYTES = 1024
"""What the graph needs for a row besides its vector while it is built, generously (m 16). Once it no
longer fits into memory, building goes on many times slower; half of what the operator says the
machine can cache (`effective_cache_size`) is the most that is taken."""

_BUILD_CLASS = 0x686E7377
_BULK_CLASS = 0x62756C6B
"""First halves of the advisory locks' keys; the second is the model."""


def partition_name(model_id: int) -> str:
    return f"embeddings_m{model_id:d}"


def leaf_name(model_id: int, number: int) -> str:
    return f"{partition_name(model_id)}_{number:d}"


def index_name(leaf: str) -> str:
    return f"{leaf}_hnsw"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A table of vectors, with `bounds` as PostgreSQL writes them.

    `is_indexed` is None without an index, and False while it is not valid: being built, or left
    over. `is_closing` when an end has been prepared.
    """

    number: int
    name: str
    bounds: str
    is_indexed: bool | None
    is_closing: bool

    @property
    def is_last(self) -> bool:
        return self.bounds.endswith(_NO_END)


async def make_partition(connection: AsyncConnection, model_id: int, dimensions: int) -> None:
    """The tables of a new model's vectors.

    They lock `chunks` against writers until the transaction ends.
    """
    partition = partition_name(model_id)
    await connection.execute(
        text(
            f"CREATE TABLE {partition} PARTITION OF embeddings"
            f" (CONSTRAINT dimensions CHECK (vector_dims(vector) = {dimensions:d}))"
            f" FOR VALUES IN ({model_id:d}) PARTITION BY RANGE (chunk_id)"
        )
    )
    # A search names the partition, whose own policy counts then and not its parent's.
    for statement in (*guard(partition, OWN_ROWS), grant(partition)):
        await connection.execute(text(statement))
    await _make_leaf(connection, model_id, 0, dimensions, "MINVALUE")


async def list_leaves(connection: AsyncConnection, model_id: int) -> list[Leaf]:
    """The model's leaves from the first to the last."""
    rows = await connection.execute(_LEAVES, {"partition": partition_name(model_id)})
    return sorted((Leaf(*row) for row in rows), key=lambda leaf: leaf.number)


# --- indexes --------------------------------------------------------------------------------------


async def ensure_index(engine: AsyncEngine, model_id: int) -> bool:
    """Build the HNSW indexes that are due and missing; True when this call built one.

    Reads and writes go on meanwhile. Leftovers of interrupted work are cleared first. When another
    process is at it, this returns at once. The leaf that a bulk load fills gets its index when the
    load is over.
    """
    lock = {"class": _BUILD_CLASS, "model_id": model_id}
    async with engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        if not (await connection.execute(_TRY_LOCK, lock)).scalar_one():
            return False
        try:
            dimensions = (await connection.execute(_DIMENSIONS, {"model_id": model_id})).scalar()
            if dimensions is None:
                return False
            is_loading = not await _can_lock(connection, _BULK_CLASS, model_id)
            has_built = False
            for leaf in await list_leaves(connection, model_id):
                if leaf.is_closing:
                    await _reopen(connection, leaf)
                if leaf.is_indexed or (leaf.is_last and is_loading):
                    continue
                if await _has_rows(connection, leaf, INDEX_FROM_ROWS):
                    await _build_index(connection, leaf, dimensions)
                    has_built = True
            return has_built
        finally:
            await _leave(connection)


async def _build_index(connection: AsyncConnection, leaf: Leaf, dimensions: int) -> None:
    index = index_name(leaf.name)
    if leaf.is_indexed is False:
        await connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {index}"))
    reach("vectors.before_index")
    rows = await connection.execute(text(f"SELECT count(*) FROM {leaf.name}"))  # noqa: S608 - the name is made of numbers
    graph_bytes = rows.scalar_one() * (2 * dimensions + _NODE_BYTES)
    await connection.execute(_BUILD_SETTINGS, {"graph_bytes": graph_bytes})
    await connection.execute(
        text(
            f"CREATE INDEX CONCURRENTLY {index} ON {leaf.name}"
            f" USING hnsw ((vector::halfvec({dimensions:d})) halfvec_ip_ops)"
            f" WITH (m = {LINKS}, ef_construction = {BUILD_CANDIDATES})"
        )
    )
    reach("vectors.index_built")


async def _has_rows(connection: AsyncConnection, leaf: Leaf, count: int) -> bool:
    found = await connection.execute(
        text(f"SELECT count(*) FROM (SELECT FROM {leaf.name} LIMIT :rows)"),  # noqa: S608 - the name is made of numbers
        {"rows": count},
    )
    return found.scalar_one() >= count


# --- bulk loads -----------------------------------------------------------------------------------


@asynccontextmanager
async def bulk_load(engine: AsyncEngine, model_id: int) -> AsyncGenerator[None]:
    """For as long as this is open nobody builds an index on the last leaf; others may load too.

    Whoever opened it calls `ensure_index` afterwards. If it dies, the next one who does builds it.
    """
    async with engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(_SHARE_LOCK, {"class": _BULK_CLASS, "model_id": model_id})
        try:
            yield
        finally:
            await _leave(connection)


async def begin_leaf(engine: AsyncEngine, model_id: int, *, is_full: bool = False) -> bool:
    """Give the last leaf an end, so that the chunks from now on go into a new one without an index.

    False when the last leaf has no index either, and is not full, or when the change has to wait for others too
    long: then the rows go where they always went. Nobody else waits for longer than
    LOCK_TIMEOUT_SECONDS. Killed at any point this leaves what works as before; `ensure_index`
    clears it away.
    """
    lock = {"class": _BUILD_CLASS, "model_id": model_id}
    async with engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        if not (await connection.execute(_TRY_LOCK, lock)).scalar_one():
            return False
        try:
            dimensions = (await connection.execute(_DIMENSIONS, {"model_id": model_id})).scalar()
            leaves = await list_leaves(connection, model_id)
            if dimensions is None or not (is_full or leaves[-1].is_indexed):
                return False
            return await _begin_leaf(connection, model_id, leaves[-1], dimensions)
        finally:
            await _leave(connection)


async def _begin_leaf(
    connection: AsyncConnection, model_id: int, last: Leaf, dimensions: int
) -> bool:
    if last.is_closing and not await _reopen(connection, last):
        return False
    given_out = (await connection.execute(_LAST_CHUNK_ID)).scalar_one()
    end = given_out + BOUNDARY_MARGIN
    closing = f"ALTER TABLE {last.name} ADD CONSTRAINT {_CLOSING} CHECK (chunk_id < {end:d})"
    if not await _with_locks(connection, f"{closing} NOT VALID"):
        return False
    # Takes as long as reading the leaf, and keeps nobody from it. With this check valid, the leaf
    # is attached without being read again.
    await connection.execute(text(f"ALTER TABLE {last.name} VALIDATE CONSTRAINT {_CLOSING}"))
    partition = partition_name(model_id)
    was_closed = await _with_locks(
        connection,
        # Writers begin with the row of a document. Waiting for them there, and nowhere else, no
        # writer can hold one of the other tables and want a second one.
        "LOCK TABLE documents IN EXCLUSIVE MODE",
        "LOCK TABLE chunks IN SHARE ROW EXCLUSIVE MODE",
        f"LOCK TABLE ONLY {partition} IN ACCESS EXCLUSIVE MODE",
        f"ALTER TABLE {partition} DETACH PARTITION {last.name}",
        f"ALTER TABLE {partition} ATTACH PARTITION {last.name}"
        f" {last.bounds.removesuffix(_NO_END)}({end:d})",
        f"ALTER TABLE {last.name} DROP CONSTRAINT {_CLOSING}",
        *_leaf_statements(model_id, last.number + 1, dimensions, str(end)),
    )
    if not was_closed:
        await _reopen(connection, last)
        return False
    # Until here new chunks fall below the end, wherever this is killed; from here on, above it.
    await reserve_chunk_ids(connection, BOUNDARY_MARGIN)
    log.info("vector_leaf_begun", leaf=leaf_name(model_id, last.number + 1), first_chunk_id=end)
    return True


async def _reopen(connection: AsyncConnection, leaf: Leaf) -> bool:
    """Take back the end that was prepared for a leaf and never given to it."""
    return await _with_locks(
        connection, f"ALTER TABLE {leaf.name} DROP CONSTRAINT IF EXISTS {_CLOSING}"
    )


async def _with_locks(connection: AsyncConnection, *statements: str) -> bool:
    """Do all of it in one transaction, again and again until its locks can be had soon."""
    together = "; ".join(
        [f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms'", *statements]
    )
    driver: Any = (await connection.get_raw_connection()).driver_connection
    for _ in range(LOCK_ATTEMPTS):
        try:
            # One message: a process that is stopped or killed in between holds no lock.
            await driver.execute(f"BEGIN; {together}; COMMIT", prepare=False)
        except (LockNotAvailable, DeadlockDetected):
            await driver.execute("ROLLBACK")
            await asyncio.sleep(LOCK_PAUSE_SECONDS)
        else:
            return True
    log.warning("vector_leaf_waits_for_locks", attempts=LOCK_ATTEMPTS)
    return False


async def _make_leaf(
    connection: AsyncConnection, model_id: int, number: int, dimensions: int, first: str
) -> None:
    for statement in _leaf_statements(model_id, number, dimensions, first):
        await connection.execute(text(statement))


def _leaf_statements(model_id: int, number: int, dimensions: int, first: str) -> list[str]:
    """Its checks say what its bounds say: PostgreSQL believes them when the bounds change."""
    leaf = leaf_name(model_id, number)
    checks = [f"CONSTRAINT model CHECK (model_id = {model_id:d}::smallint)"]
    if first != "MINVALUE":
        checks.append(f"CONSTRAINT begin CHECK (chunk_id >= {first})")
    create = f"CREATE TABLE {leaf} PARTITION OF {partition_name(model_id)}"
    statements = [f"{create} ({', '.join(checks)}) FOR VALUES FROM ({first}) TO (MAXVALUE)"]
    if dimensions <= _INLINE_DIMENSIONS:
        statements.append(f"ALTER TABLE {leaf} ALTER COLUMN vector SET STORAGE PLAIN")
    return statements


async def _leave(connection: AsyncConnection) -> None:
    """Give up a connection with the locks and settings that belong to it.

    The locks first: whoever comes next would meet them for as long as the server takes to notice
    that the connection is closed.
    """
    with suppress(SQLAlchemyError):
        await connection.execute(_UNLOCK_ALL)
    await connection.invalidate()


async def _can_lock(connection: AsyncConnection, lock_class: int, model_id: int) -> bool:
    """Whether nobody holds this lock."""
    lock = {"class": lock_class, "model_id": model_id}
    if not (await connection.execute(_TRY_LOCK, lock)).scalar_one():
        return False
    await connection.execute(_UNLOCK, lock)
    return True


_NO_END = "(MAXVALUE)"
_CLOSING = "closing"
_LEAVES = text(
    rf"""
    SELECT substring(leaf.relname FROM '\d+$')::int, leaf.relname,
      pg_get_expr(leaf.relpartbound, leaf.oid),
      (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(leaf.relname || '_hnsw')),
      EXISTS (SELECT FROM pg_constraint WHERE conrelid = leaf.oid AND conname = '{_CLOSING}')
    FROM pg_inherits JOIN pg_class AS leaf ON leaf.oid = inhrelid
    WHERE inhparent = to_regclass(:partition)
    """  # noqa: S608 - constants of this module
)
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:class, :model_id)")
_UNLOCK = text("SELECT pg_advisory_unlock(:class, :model_id)")
_UNLOCK_ALL = text("SELECT pg_advisory_unlock_all()")
_SHARE_LOCK = text("SELECT pg_advisory_lock_shared(:class, :model_id)")
_DIMENSIONS = text("SELECT dimensions FROM embedding_models WHERE id = :model_id").bindparams(
    bindparam("model_id", type_=Integer)
)
_LAST_CHUNK_ID = text(
    "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('chunks', 'id')::regclass), 0)"
)
_BUILD_SETTINGS = text(
    """
    SELECT set_config('statement_timeout', '0', false),
      set_config('maintenance_work_mem', greatest(
        pg_size_bytes('512MB'), pg_size_bytes(current_setting('maintenance_work_mem')),
        least(:graph_bytes, pg_size_bytes(current_setting('effective_cache_size')) / 2)
      ) / 1024 || 'kB', false),
      set_config('max_parallel_maintenance_workers', greatest(
        2, current_setting('max_parallel_maintenance_workers')::int
      )::text, false)
    """
).bindparams(bindparam("graph_bytes", type_=BigInteger))
