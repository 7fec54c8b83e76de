"""The SQL of registered sources, for the service that keeps them and the worker that syncs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.models import Collection, RegisteredSource
from app.db.models.sources import SourceStatus

ACTIVE: frozenset[SourceStatus] = frozenset({"queued", "syncing", "removing"})
"""While a source is any of these, a job of its own looks after it."""


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A registered source, with the name of its collection."""

    id: UUID
    tenant_id: int
    collection_id: int
    collection: str
    location: str
    include: Sequence[str]
    exclude: Sequence[str]
    every_minutes: int | None
    status: SourceStatus
    reason: str | None
    report: Mapping[str, Any] | None
    synced_at: datetime | None
    next_at: datetime | None
    created_at: datetime


SOURCES = select(RegisteredSource, Collection.name.label("collection")).join(
    Collection, Collection.id == RegisteredSource.collection_id
)


def stored(row: Any) -> StoredSource:
    """A row of SOURCES."""
    return StoredSource(
        id=row.id,
        tenant_id=row.tenant_id,
        collection_id=row.collection_id,
        collection=row.collection,
        location=row.location,
        include=row.options.get("include", []),
        exclude=row.options.get("exclude", []),
        every_minutes=row.every_minutes,
        status=row.status,
        reason=row.reason,
        report=row.report,
        synced_at=row.synced_at,
        next_at=row.next_at,
        created_at=row.created_at,
    )


async def add_source(
    connection: AsyncConnection,
    *,
    tenant_id: int,
    collection_id: int,
    location: str,
    options: Mapping[str, Any],
    every_minutes: int | None,
) -> UUID | None:
    """The id of the new source; None when the collection has this location already."""
    added = await connection.execute(
        _ADD,
        {
            "id": uuid4(),
            "tenant_id": tenant_id,
            "collection_id": collection_id,
            "location": location,
            "options": dict(options),
            "every_minutes": every_minutes,
        },
    )
    return added.scalar()


async def lock_source(connection: AsyncConnection, source_id: UUID) -> StoredSource | None:
    """The source, which nobody else changes until this transaction ends; None if it is gone."""
    rows = await connection.execute(
        SOURCES.where(RegisteredSource.id == source_id).with_for_update(of=RegisteredSource)
    )
    row = rows.one_or_none()
    return stored(row) if row is not None else None


async def change_source(connection: AsyncConnection, source_id: UUID, **values: Any) -> None:
    await connection.execute(
        update(RegisteredSource).where(RegisteredSource.id == source_id).values(**values)
    )


async def queue_sync(connection: AsyncConnection, source_id: UUID, job_id: int) -> None:
    """Note the job that looks after the source from now on; one to be removed stays one."""
    await connection.execute(_QUEUE, {"id": source_id, "job_id": job_id})


async def finish_sync(
    connection: AsyncConnection,
    source_id: UUID,
    *,
    reason: str | None,
    report: Mapping[str, Any] | None,
) -> None:
    """Note how a sync ended, unless the source is to be removed meanwhile."""
    values: dict[str, Any] = {"status": "failed" if reason else "ready", "reason": reason}
    if report is not None:
        values |= {"report": dict(report), "synced_at": func.now()}
    await connection.execute(
        update(RegisteredSource)
        .where(RegisteredSource.id == source_id, RegisteredSource.status == "syncing")
        .values(next_at=_NEXT, **values)
    )


async def drop_source(connection: AsyncConnection, source_id: UUID) -> None:
    await connection.execute(_DROP, {"id": source_id})


async def lock_due(connection: AsyncConnection, limit: int) -> Sequence[UUID]:
    """Sources whose time has come, and those whose job got lost; held until the transaction ends."""
    return (await connection.execute(_DUE, {"limit": limit})).scalars().all()


_NEXT = text("now() + make_interval(mins => every_minutes)")
_ADD = text(
    """
    INSERT INTO sources (id, tenant_id, collection_id, location, options, every_minutes)
    VALUES (:id, :tenant_id, :collection_id, :location, :options, :every_minutes)
    ON CONFLICT (collection_id, location) DO NOTHING RETURNING id
    """
).bindparams(bindparam("options", type_=JSONB))
_QUEUE = text(
    """
    UPDATE sources SET job_id = :job_id, next_at = NULL,
      status = CASE status WHEN 'removing' THEN 'removing' ELSE 'queued' END
    WHERE id = :id
    """
)
_DROP = text("DELETE FROM sources WHERE id = :id")
_DUE = text(
    """
    SELECT s.id FROM sources AS s
    WHERE CASE WHEN s.status IN ('queued', 'syncing', 'removing')
      THEN NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs AS j
        WHERE j.id = s.job_id AND j.status IN ('todo', 'doing'))
      ELSE s.next_at <= now() END
    ORDER BY s.next_at NULLS FIRST LIMIT :limit FOR UPDATE OF s SKIP LOCKED
    """
)
