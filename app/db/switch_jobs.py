"""The jobs of model switches, followed like those of documents."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.model_switches import Switch, find_switch


@dataclass(frozen=True, slots=True)
class SwitchJob:
    """A job that looks after a collection's other model; `status` and `attempts` are the job's own.

    `switch` is the row as it is now, None when a later job looks after it or it is done with.
    """

    id: int
    status: str
    attempts: int
    collection: str
    switch: Switch | None


async def find_switch_job(
    connection: AsyncConnection, tenant_id: int, job_id: int
) -> SwitchJob | None:
    found = await connection.execute(_FIND_JOB, {"tenant_id": tenant_id, "job_id": job_id})
    row = found.one_or_none()
    if row is None:
        return None
    switch = await find_switch(connection, row.collection_id)
    if switch is not None and switch.job_id != job_id:
        switch = None
    return SwitchJob(job_id, row.status, row.attempts, row.collection, switch)


_FIND_JOB = text(
    """
    SELECT c.id AS collection_id, c.name AS collection, j.status, j.attempts
    FROM procrastinate_jobs AS j
    JOIN collections AS c ON c.id = (j.args ->> 'collection_id')::integer
    WHERE j.id = :job_id AND c.tenant_id = :tenant_id
    """
)
