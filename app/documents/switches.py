"""Embedding models of collections: listed, switched, led back, dropped.

What takes long, a worker does; see ingestion/switching.py. A model is loaded here first, so that a
wrong name is told at once and the service can embed questions with it by the time it serves.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import Caller
from app.config import Settings
from app.db.collections import StoredCollection, list_collections
from app.db.model_switches import (
    Switch,
    activate_switches,
    begin_switch,
    find_switch,
    give_up_switches,
    list_switches,
    lock_switches,
    note_job,
    put_in_service,
)
from app.db.models.switches import SwitchStatus
from app.db.session import Sessions
from app.db.transactions import in_transaction
from app.db.vectors import register_model
from app.documents.visibility import may_enter
from app.embedding.query_models import QueryModels
from app.errors import Conflict, DatabaseUnavailable, InvalidInput, NotFound
from app.jobs import Jobs

ModelState = SwitchStatus | Literal["serving"]


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A collection that has vectors of a model; how many, and what for."""

    collection: str
    state: ModelState
    vectors: int


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that the caller's collections have, or that the service is configured with.

    `bytes` is the share of its tables and indexes that the caller's vectors come to.
    """

    name: str
    digest: str
    dimensions: int
    configured: bool
    bytes: int = 0
    uses: list[ModelUse] = field(default_factory=list[ModelUse])


class ModelSwitches:
    def __init__(
        self, sessions: Sessions, jobs: Jobs, settings: Settings, models: QueryModels
    ) -> None:
        self._sessions = sessions
        self._jobs = jobs
        self._settings = settings
        self._models = models

    # --- looking ----------------------------------------------------------------------------------

    async def models(self, caller: Caller) -> Sequence[ModelRecord]:
        """The configured model first, the others by name."""
        running = self._models.default.embedder

        async def work(connection: AsyncConnection) -> list[ModelRecord]:
            records = {
                running.digest: ModelRecord(running.name, running.digest, running.dimensions, True)
            }
            rows = await connection.execute(_USES, {"tenant_id": caller.tenant_id})
            for row in rows:
                if not may_enter(caller, row.collection):
                    continue
                known = records.get(row.digest)
                records[row.digest] = ModelRecord(
                    name=known.name if known else row.name,
                    digest=row.digest,
                    dimensions=row.dimensions,
                    configured=row.digest == running.digest,
                    bytes=(known.bytes if known else 0) + int(row.vectors * row.bytes_per_vector),
                    uses=[
                        *(known.uses if known else []),
                        ModelUse(row.collection, row.state, row.vectors),
                    ],
                )
            return sorted(records.values(), key=lambda one: (not one.configured, one.name))

        return await in_transaction(self._begin, work)

    async def switches(self, caller: Caller) -> Sequence[Switch]:
        """The models beside those that serve, by collection."""

        async def work(connection: AsyncConnection) -> list[Switch]:
            switches = await list_switches(connection, caller.tenant_id)
            return [one for one in switches if may_enter(caller, one.collection)]

        return await in_transaction(self._begin, work)

    # --- changing ---------------------------------------------------------------------------------

    async def begin(
        self,
        caller: Caller,
        model: str,
        names: Sequence[str] | None,
        *,
        activate: bool = True,
        keep_old: bool = True,
    ) -> Sequence[Switch]:
        """Give the collections (all, without names) another model; as soon as it is ready, if asked.

        Collections that have it already are left out. Raises EmbeddingUnavailable for a model that
        cannot be loaded, NotFound for a collection, Conflict where all have it or one has a
        different model beside the one that serves.
        """
        embedder = await self._models.load_named(model)

        async def register(connection: AsyncConnection) -> int:
            return await register_model(
                connection,
                name=model,
                digest=embedder.digest,
                dimensions=embedder.dimensions,
                location=embedder.location,
            )

        # A transaction of its own: a new model's tables keep writers out until it ends.
        model_id = await in_transaction(self._begin, register)

        async def work(connection: AsyncConnection) -> list[Switch]:
            collections = await self._chosen(connection, caller, names)
            before = {
                one.collection_id: one
                for one in await lock_switches(connection, [one.id for one in collections])
            }
            due = [one for one in collections if one.model_id != model_id]
            if not due:
                raise Conflict(f"The collections are served by {model} already.")
            for one in due:
                if (other := before.get(one.id)) and other.model_id != model_id:
                    raise Conflict(
                        f"The collection {one.name} has another model beside it:"
                        f" {other.model_name} ({other.status}).",
                        hint=f"Remove it: `footnote models drop-old --collection {one.name}`.",
                    )
                if other and other.status == "dropping":
                    raise Conflict(
                        f"The vectors of {model} in {one.name} are just being removed.",
                        hint="Try again in a moment.",
                    )
            collection_ids = [one.id for one in due]
            await begin_switch(
                connection, collection_ids, model_id, activates=activate, keeps_old=keep_old
            )
            return await self._queued(connection, collection_ids)

        return await in_transaction(self._begin, work)

    async def activate(self, caller: Caller, names: Sequence[str] | None) -> Sequence[Switch]:
        """Let the models that are prepared serve, all at once; a worker does it if not at once."""
        return await self._put_in_service(caller, names, "prepared")

    async def roll_back(self, caller: Caller, names: Sequence[str] | None) -> Sequence[Switch]:
        """The same with the models that served before."""
        return await self._put_in_service(caller, names, "retained")

    async def drop(self, caller: Caller, names: Sequence[str] | None) -> Sequence[Switch]:
        """Remove the vectors of the models that do not serve, also of one that is being prepared."""

        async def work(connection: AsyncConnection) -> list[Switch]:
            switches = await self._locked(connection, caller, names)
            if not switches:
                raise NotFound("There is no other model to remove.")
            collection_ids = [one.collection_id for one in switches]
            await give_up_switches(connection, collection_ids)
            return await self._queued(connection, collection_ids)

        return await in_transaction(self._begin, work)

    async def _put_in_service(
        self, caller: Caller, names: Sequence[str] | None, status: SwitchStatus
    ) -> Sequence[Switch]:
        async def order(connection: AsyncConnection) -> tuple[list[Switch], Switch]:
            found = await self._locked(connection, caller, names)
            switches = [one for one in found if one.status == status]
            if not switches or (names is not None and len(switches) < len(set(names))):
                raise Conflict(
                    f"Not every collection has a model that is {status}.",
                    hint="`footnote models status` says how far each one is.",
                )
            for model in {one.model_id: one.model_digest for one in switches}.items():
                await self._models.get(*model)
            collection_ids = [one.collection_id for one in switches]
            await activate_switches(connection, collection_ids)
            queued = await self._queued(connection, collection_ids)
            return queued, queued[0]

        queued, first = await in_transaction(self._begin, order)
        # Where a writer is in the way, the worker's job does it.
        with suppress(DatabaseUnavailable):
            await in_transaction(
                self._begin, lambda connection: put_in_service(connection, first.switch_id)
            )

        async def look(connection: AsyncConnection) -> list[Switch]:
            found = [await find_switch(connection, one.collection_id) for one in queued]
            return [one for one in found if one is not None]

        return await in_transaction(self._begin, look)

    # --- helpers ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[AsyncConnection]:
        async with self._sessions.begin() as session:
            yield await session.connection()

    async def _queued(
        self, connection: AsyncConnection, collection_ids: Sequence[int]
    ) -> list[Switch]:
        """The switches as they are now, each with a new job."""
        for collection_id in collection_ids:
            job_id = await self._jobs.defer_switch(connection, collection_id)
            await note_job(connection, collection_id, job_id)
        return await lock_switches(connection, collection_ids)

    async def _locked(
        self, connection: AsyncConnection, caller: Caller, names: Sequence[str] | None
    ) -> list[Switch]:
        collections = await self._chosen(connection, caller, names)
        return await lock_switches(connection, [one.id for one in collections])

    async def _chosen(
        self, connection: AsyncConnection, caller: Caller, names: Sequence[str] | None
    ) -> list[StoredCollection]:
        """Those that are named and the caller may enter, or all that he may."""
        stored = await list_collections(connection, caller.tenant_id)
        may = {one.name: one for one in stored if may_enter(caller, one.name)}
        if names is None:
            if not may:
                raise InvalidInput("There is no collection yet.", hint="Ingest something first.")
            return list(may.values())
        for name in names:
            if name not in may:
                raise NotFound(
                    "There is no such collection.",
                    hint="`GET /api/collections` lists them; `POST /api/collections` makes one.",
                )
        return [may[name] for name in dict.fromkeys(names)]


# The size of a partition, divided by the vectors in it by PostgreSQL's own estimate.
_USES = text(
    """
    WITH uses AS (
      SELECT tenant_id, name AS collection, embedding_model_id AS model_id, 'serving' AS state,
        chunks_count AS vectors FROM collections
      UNION ALL
      SELECT c.tenant_id, c.name, s.model_id, s.status, s.embedded
      FROM model_switches AS s JOIN collections AS c ON c.id = s.collection_id),
    held AS (SELECT model_id, sum(vectors) AS vectors FROM uses GROUP BY model_id)
    SELECT uses.collection, uses.state, uses.vectors, m.name, m.digest, m.dimensions,
      (SELECT coalesce(sum(pg_total_relation_size(leaf.relid)), 0)
        FROM pg_partition_tree(to_regclass('embeddings_m' || m.id)) AS leaf WHERE leaf.isleaf)
        / greatest(held.vectors, 1)::float AS bytes_per_vector
    FROM uses JOIN embedding_models AS m ON m.id = uses.model_id
    JOIN held ON held.model_id = uses.model_id
    WHERE uses.tenant_id = :tenant_id ORDER BY uses.collection
    """
)
