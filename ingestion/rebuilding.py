"""Bringing collections to their settings behind the versions that serve.

Nothing is kept of how far a rebuild is: the documents tell. So it can be cut short anywhere, and
several workers may walk at once.
"""

from collections.abc import Awaitable, Callable
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.collections import enter_collection
from app.db.rebuilds import (
    DueRebuild,
    count_queued,
    due_rebuilds,
    end_rebuild,
    is_any_due,
    lock_outdated,
    say_digest,
)
from app.db.transactions import in_transaction
from app.errors import NotFound
from app.jobs import Jobs
from ingestion.pipeline import Tools

log = structlog.get_logger(__name__)

DOCUMENTS_AT_ONCE = 500
DOCUMENTS_QUEUED = 2000
"""Enough for the workers until somebody looks again, few enough to stop soon."""

_FIRST = UUID(int=0)


class Rebuilder:
    """`tools` loads the model, so it is asked only when a rebuild is due."""

    def __init__(
        self, engine: AsyncEngine, jobs: Jobs, tools: Callable[[], Awaitable[Tools]]
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._tools = tools
        # Where to go on in each collection, so that a walk is not begun anew every time.
        self._places: dict[int, UUID] = {}

    async def queue_outdated(self) -> None:
        """Give jobs to the next outdated documents of each collection with a note."""
        if not await in_transaction(self._engine.begin, is_any_due):
            return
        tools = await self._tools()
        for due in await in_transaction(self._engine.begin, due_rebuilds):
            digest = tools.digest(due.settings)
            while await self._queue_some(due, digest):
                pass

    async def _queue_some(self, due: DueRebuild, digest: str) -> bool:
        """Whether there may be more to queue now."""
        after = self._places.get(due.collection_id, _FIRST)

        async def work(connection: AsyncConnection) -> list[UUID] | None:
            try:
                await enter_collection(connection, due.collection_id)
            except NotFound:
                return None
            room = DOCUMENTS_QUEUED - await count_queued(connection, due.collection_id)
            if room <= 0:
                return None
            await say_digest(connection, due, digest)
            document_ids = list(
                await lock_outdated(
                    connection, due, digest, after=after, limit=min(room, DOCUMENTS_AT_ONCE)
                )
            )
            documents = [(document_id, due.collection_id) for document_id in document_ids]
            await self._jobs.requeue(connection, documents, priority="background")
            return document_ids

        document_ids = await in_transaction(self._engine.begin, work)
        if document_ids is None:
            return False
        if document_ids:
            self._places[due.collection_id] = document_ids[-1]
            log.info("rebuild_queued", collection=due.name, documents=len(document_ids))
            return True
        self._places.pop(due.collection_id, None)
        if after != _FIRST:
            # Documents before this place may have become outdated since.
            return True
        if await in_transaction(
            self._engine.begin, lambda connection: end_rebuild(connection, due, digest)
        ):
            log.info("rebuild_ended", collection=due.name)
        return False
