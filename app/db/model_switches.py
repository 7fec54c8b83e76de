"""The SQL of another embedding model: embedded beside the one that serves, then put in its place.

What is missing is found by looking, never remembered: a passage is due when it has no vector of the
model. So nothing is lost or done twice wherever a worker dies, and writers need not know of it. A
passage that is deleted takes its vectors of all models along.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray
from psycopg.errors import LockNotAvailable
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Integer, Uuid

from app.db.collections import enter_alone, enter_collection
from app.db.models.switches import SwitchStatus
from app.db.vector_partitions import partition_name
from app.db.vectors import add_vectors
from app.errors import DatabaseUnavailable, NotFound
from app.failpoints import reach

LOCK_TIMEOUT_SECONDS = 5.0
"""How long writers may queue behind a switch that waits for one of them."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A row of `model_switches`, with what is read of its collection."""

    collection_id: int
    collection: str
    tenant_id: int
    serving_id: int
    serving_name: str
    chunks_count: int
    generation: int
    switch_id: UUID
    model_id: int
    model_name: str
    model_digest: str
    status: SwitchStatus
    activates: bool
    keeps_old: bool
    embedded: int
    complete_at: int | None
    reason: str | None
    job_id: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DuePassage:
    """A passage without a vector; all that its embedded text is made of."""

    id: int
    title: str
    text: str
    context: str
    heading: Sequence[str]
    content_hash: bytes


# --- the rows -------------------------------------------------------------------------------------


async def find_switch(connection: AsyncConnection, collection_id: int) -> Switch | None:
    found = await connection.execute(_FIND, {"collection_id": collection_id})
    row = found.one_or_none()
    return Switch(*row) if row is not None else None


async def list_switches(connection: AsyncConnection, tenant_id: int) -> list[Switch]:
    """All of the tenant's, by collection."""
    return [Switch(*row) for row in await connection.execute(_LIST, {"tenant_id": tenant_id})]


async def begin_switch(
    connection: AsyncConnection,
    collection_ids: Sequence[int],
    model_id: int,
    *,
    activates: bool,
    keeps_old: bool,
) -> UUID:
    """Note that these collections are to get the model; one that has it beside already goes on.

    The caller has seen that none of them has another one beside, and holds the rows.
    """
    switch_id = uuid4()
    await connection.execute(
        _BEGIN,
        {
            "collection_ids": list(collection_ids),
            "switch_id": switch_id,
            "model_id": model_id,
            "activates": activates,
            "keeps_old": keeps_old,
        },
    )
    return switch_id


async def lock_switches(connection: AsyncConnection, collection_ids: Sequence[int]) -> list[Switch]:
    """Those of the collections, which nobody else changes until the transaction ends."""
    scope = {"collection_ids": sorted(collection_ids)}
    await connection.execute(_LOCK_COLLECTIONS, scope)
    return [Switch(*row) for row in await connection.execute(_LOCK, scope)]


async def activate_switches(connection: AsyncConnection, collection_ids: Sequence[int]) -> UUID:
    """Note that these models, complete or nearly, are to serve, all of them at once."""
    switch_id = uuid4()
    await connection.execute(
        _ACTIVATE, {"collection_ids": list(collection_ids), "switch_id": switch_id}
    )
    return switch_id


async def give_up_switches(connection: AsyncConnection, collection_ids: Sequence[int]) -> None:
    """Note that the vectors of these models are to go; what serves is not touched."""
    await connection.execute(_GIVE_UP, {"collection_ids": list(collection_ids)})


async def conclude(
    connection: AsyncConnection, switch: Switch, status: SwitchStatus, *, reason: str | None = None
) -> None:
    """Change the status as far as it is still what it was when the switch was read."""
    values = {**_seen(switch), "old_status": switch.status, "status": status, "reason": reason}
    await connection.execute(_CONCLUDE, values)


async def note_job(connection: AsyncConnection, collection_id: int, job_id: int) -> None:
    """The job that looks after the switch from now on."""
    await connection.execute(_NOTE_JOB, {"collection_id": collection_id, "job_id": job_id})


async def lock_unattended(connection: AsyncConnection, limit: int) -> Sequence[int]:
    """Collections whose switch has something to do and no job for it; held by this transaction."""
    return (await connection.execute(_UNATTENDED, {"limit": limit})).scalars().all()


# --- vectors --------------------------------------------------------------------------------------


async def due_passages(
    connection: AsyncConnection, switch: Switch, *, after: int, limit: int
) -> list[DuePassage]:
    """The next passages without a vector of the model, by id."""
    rows = await connection.execute(
        text(_DUE.format(partition=partition_name(switch.model_id))),
        {"collection_id": switch.collection_id, "after": after, "limit": limit},
    )
    return [DuePassage(*row) for row in rows]


async def add_missing_vectors(
    connection: AsyncConnection,
    switch: Switch,
    chunk_ids: Sequence[int],
    vectors: NDArray[np.float32],
) -> int:
    """Store vectors of those passages that are still there; how many that were.

    Raises NotFound when the collection is gone, or does not want the model any more.
    """
    # Writers begin with a document; who holds anything else never waits for that.
    await connection.execute(_BEGIN_LIKE_A_WRITER)
    await enter_collection(connection, switch.collection_id)
    # One that is being deleted just now is not waited for: its vector would go with it anyway.
    kept = await connection.execute(
        text(_KEEP.format(partition=partition_name(switch.model_id))),
        {"chunk_ids": list(chunk_ids)},
    )
    rows = {chunk_id: row for row, chunk_id in enumerate(chunk_ids)}
    kept_ids = list(kept.scalars())
    await add_vectors(
        connection,
        switch.model_id,
        switch.tenant_id,
        switch.collection_id,
        kept_ids,
        vectors[[rows[chunk_id] for chunk_id in kept_ids]],
    )
    counted = await connection.execute(_COUNT, {**_seen(switch), "added": len(kept_ids)})
    if not counted.rowcount:
        raise NotFound("The switch was given up.")
    reach("switch.vectors_written")
    return len(kept_ids)


async def recount(connection: AsyncConnection, switch: Switch) -> None:
    """Deletions took vectors along without telling; say again how many there are."""
    await connection.execute(
        text(_RECOUNT.format(partition=partition_name(switch.model_id))),
        {"collection_id": switch.collection_id},
    )


async def is_complete(connection: AsyncConnection, switch: Switch) -> bool:
    """Whether every passage has a vector of the model; noted with the generation if so."""
    done = await connection.execute(
        text(_COMPLETE.format(partition=partition_name(switch.model_id))),
        {"collection_id": switch.collection_id},
    )
    return bool(done.rowcount)


async def drop_vectors(connection: AsyncConnection, switch: Switch, limit: int) -> int:
    """Remove some vectors of a model that does not serve; how many. The row goes with the last."""
    await connection.execute(_BEGIN_LIKE_A_WRITER)
    await enter_collection(connection, switch.collection_id)
    scope = {"collection_id": switch.collection_id, "model_id": switch.model_id}
    # Held, so that nobody puts the model in service meanwhile.
    if (await connection.execute(_LOCK_DROPPING, scope)).scalar() is None:
        return 0
    dropped = await connection.execute(
        text(_DROP_VECTORS.format(partition=partition_name(switch.model_id))),
        {"collection_id": switch.collection_id, "limit": limit},
    )
    if dropped.rowcount < limit:
        await connection.execute(_FORGET, scope)
    else:
        await recount(connection, switch)
    reach("switch.vectors_dropped")
    return dropped.rowcount


# --- the switch itself ----------------------------------------------------------------------------


async def put_in_service(connection: AsyncConnection, switch_id: UUID) -> bool:
    """Let the model serve in all collections of the switch at once; False if one is not ready.

    The model that served until now takes its place beside, so that the same call leads back. No
    writer is in any of the collections meanwhile: whoever comes after finds the new model. Raises
    NotFound when a collection is gone, and DatabaseUnavailable when a writer does not leave it.
    """
    await connection.execute(_LOCK_TIMEOUT)
    members = (await connection.execute(_MEMBERS, {"switch_id": switch_id})).scalars().all()
    try:
        for collection_id in members:
            await enter_alone(connection, collection_id)
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise DatabaseUnavailable("Somebody is writing to the collection.") from error
        raise
    switches = await lock_switches(connection, members)
    if not switches or any(one.status != "prepared" or not one.activates for one in switches):
        return False
    for one in switches:
        if one.switch_id != switch_id or not await is_complete(connection, one):
            return False
    await connection.execute(_PUT_IN_SERVICE, {"collection_ids": list(members)})
    reach("switch.before_commit")
    return True


def _seen(switch: Switch) -> dict[str, object]:
    return {
        "collection_id": switch.collection_id,
        "model_id": switch.model_id,
        "switch_id": switch.switch_id,
    }


_COLUMNS = """
    s.collection_id, c.name, c.tenant_id, c.embedding_model_id, serving.name, c.chunks_count,
    c.generation, s.switch_id, s.model_id, m.name, m.digest, s.status, s.activates, s.keeps_old,
    s.embedded, s.complete_at, s.reason, s.job_id, s.created_at
    FROM model_switches AS s
    JOIN collections AS c ON c.id = s.collection_id
    JOIN embedding_models AS m ON m.id = s.model_id
    JOIN embedding_models AS serving ON serving.id = c.embedding_model_id
"""
_IDS = bindparam("collection_ids", type_=ARRAY(Integer))
_FIND = text(f"SELECT {_COLUMNS} WHERE s.collection_id = :collection_id")
_LIST = text(f"SELECT {_COLUMNS} WHERE c.tenant_id = :tenant_id ORDER BY c.name")
# The collection's row stands for a switch that is not there yet.
_LOCK_COLLECTIONS = text(
    "SELECT id FROM collections WHERE id = ANY(:collection_ids) ORDER BY id FOR NO KEY UPDATE"
).bindparams(_IDS)
_LOCK = text(
    f"SELECT {_COLUMNS} WHERE s.collection_id = ANY(:collection_ids)"
    " ORDER BY s.collection_id FOR UPDATE OF s"
).bindparams(_IDS)
_BEGIN = text(
    """
    INSERT INTO model_switches (collection_id, switch_id, model_id, activates, keeps_old)
    SELECT id, :switch_id, :model_id, :activates, :keeps_old FROM unnest(:collection_ids) AS f (id)
    ON CONFLICT (collection_id) DO UPDATE SET switch_id = :switch_id, status = 'preparing',
      activates = :activates, keeps_old = :keeps_old, reason = NULL, job_id = NULL,
      created_at = now()
    """
).bindparams(_IDS, bindparam("switch_id", type_=Uuid), bindparam("model_id", type_=Integer))
_ACTIVATE = text(
    """
    UPDATE model_switches
    SET activates = true, keeps_old = keeps_old OR status = 'retained', status = 'prepared',
      switch_id = :switch_id, reason = NULL
    WHERE collection_id = ANY(:collection_ids)
    """
).bindparams(_IDS, bindparam("switch_id", type_=Uuid))
_GIVE_UP = text(
    """
    UPDATE model_switches SET status = 'dropping', activates = false, reason = NULL
    WHERE collection_id = ANY(:collection_ids)
    """
).bindparams(_IDS)
_NOTE_JOB = text("UPDATE model_switches SET job_id = :job_id WHERE collection_id = :collection_id")
_UNATTENDED = text(
    """
    SELECT s.collection_id FROM model_switches AS s JOIN collections AS c ON c.id = s.collection_id
    WHERE (s.status IN ('preparing', 'dropping') OR (s.status = 'prepared' AND s.activates)
        OR (s.status IN ('prepared', 'retained') AND s.reason IS NULL
          AND s.complete_at IS DISTINCT FROM c.generation))
      AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs AS j
        WHERE j.id = s.job_id AND j.status IN ('todo', 'doing'))
    ORDER BY s.created_at LIMIT :limit FOR UPDATE OF s SKIP LOCKED
    """
)
_MISSING = "NOT EXISTS (SELECT FROM {partition} AS e WHERE e.chunk_id = c.id)"
_DUE = f"""
    SELECT c.id, d.title, c.text, c.context, c.heading, c.content_hash
    FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
    WHERE c.collection_id = :collection_id AND c.id > :after AND {_MISSING}
    ORDER BY c.id LIMIT :limit
"""  # noqa: S608 - constants, and the partition's name, which is made of a number
_BEGIN_LIKE_A_WRITER = text("LOCK TABLE documents IN ROW SHARE MODE")
_KEEP = f"""
    SELECT c.id FROM chunks AS c WHERE c.id = ANY(:chunk_ids) AND {_MISSING}
    ORDER BY c.id FOR KEY SHARE SKIP LOCKED
"""  # noqa: S608
_COUNT = text(
    """
    UPDATE model_switches SET embedded = embedded + :added
    WHERE collection_id = :collection_id AND model_id = :model_id AND status <> 'dropping'
    """
)
_CONCLUDE = text(
    """
    UPDATE model_switches SET status = :status, reason = :reason
    WHERE collection_id = :collection_id AND model_id = :model_id AND switch_id = :switch_id
      AND status = :old_status
    """
).bindparams(bindparam("switch_id", type_=Uuid))
_RECOUNT = """
    UPDATE model_switches SET embedded = (
      SELECT count(*) FROM {partition} AS e WHERE e.collection_id = :collection_id)
    WHERE collection_id = :collection_id
"""
# Of the generation that this statement sees, in which it looks for passages too.
_COMPLETE = f"""
    UPDATE model_switches AS s SET complete_at = own.generation
    FROM collections AS own WHERE own.id = s.collection_id AND s.collection_id = :collection_id
      AND NOT EXISTS (
        SELECT FROM chunks AS c WHERE c.collection_id = :collection_id AND {_MISSING})
"""  # noqa: S608
_LOCK_DROPPING = text(
    """
    SELECT 1 FROM model_switches AS s JOIN collections AS c ON c.id = s.collection_id
    WHERE s.collection_id = :collection_id AND s.model_id = :model_id AND s.status = 'dropping'
      AND c.embedding_model_id <> :model_id FOR UPDATE OF s
    """
)
_DROP_VECTORS = """
    DELETE FROM {partition} WHERE chunk_id IN (
      SELECT chunk_id FROM {partition} WHERE collection_id = :collection_id LIMIT :limit)
"""
_FORGET = text("DELETE FROM model_switches WHERE collection_id = :collection_id")
_LOCK_TIMEOUT = text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms'")
_MEMBERS = text(
    "SELECT collection_id FROM model_switches WHERE switch_id = :switch_id ORDER BY 1"
).bindparams(bindparam("switch_id", type_=Uuid))
_PUT_IN_SERVICE = text(
    """
    WITH before AS (
      SELECT id, embedding_model_id FROM collections WHERE id = ANY(:collection_ids)),
    served AS (
      UPDATE collections AS c
      SET embedding_model_id = s.model_id, generation = c.generation + 1
      FROM model_switches AS s WHERE s.collection_id = c.id AND c.id = ANY(:collection_ids))
    UPDATE model_switches AS s SET model_id = before.embedding_model_id, activates = false,
      status = CASE WHEN keeps_old THEN 'retained' ELSE 'dropping' END,
      embedded = c.chunks_count, complete_at = c.generation + 1
    FROM before JOIN collections AS c ON c.id = before.id WHERE s.collection_id = before.id
    """
).bindparams(_IDS)
