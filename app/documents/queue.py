"""The jobs that process documents: how far they are, and how they are stopped and tried again.

A job is seen by whoever may see its document. A document has one job that counts, its latest;
what an older one says is only how that one ended. A job that gives a collection another model can be
looked at as well; how it is stopped is that model's own business.
"""

import asyncio
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from time import monotonic
from urllib.parse import unquote
from uuid import UUID

from sqlalchemy import and_, case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import Caller
from app.config import Settings
from app.db.collections import find_collection
from app.db.documents import StoredDocument, lock_document, set_status
from app.db.models import Collection, Document, DocumentVersion
from app.db.models.documents import DocumentStatus
from app.db.queue import JOBS, position
from app.db.session import Sessions
from app.db.switch_jobs import SwitchJob, find_switch_job
from app.db.transactions import in_transaction
from app.documents.job_states import STATES, JobState, state_of, switch_state
from app.documents.library import UPLOAD_ROOT
from app.documents.records import Accepted
from app.documents.visibility import may_enter, visible
from app.errors import Conflict, InvalidInput, NotFound
from app.jobs import Jobs

EVENT_POLL_SECONDS = 0.5
EVENTS_MAX_SECONDS = 3600.0
RETRIED_AT_ONCE = 500

CANCELLED = "cancelled"
"""The reason of a document whose job was cancelled."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Newest first. `next_cursor` continues after the last one."""

    jobs: Sequence[JobState]
    next_cursor: int | None


@dataclass(frozen=True, slots=True)
class Retried:
    """How many failed documents were queued again; `skipped` are those whose original is not here."""

    queued: int
    skipped: int


class Queue:
    def __init__(self, sessions: Sessions, jobs: Jobs, settings: Settings) -> None:
        self._sessions = sessions
        self._jobs = jobs
        self._settings = settings

    # --- reading ----------------------------------------------------------------------------------

    async def job(self, caller: Caller, job_id: int) -> JobState:
        """The state of a job on what the caller may see; else raises NotFound."""

        async def work(connection: AsyncConnection) -> JobState:
            rows = await connection.execute(STATES.where(*visible(caller), JOBS.c.id == job_id))
            row = rows.one_or_none()
            state = (
                state_of(row)
                if row is not None
                else switch_state(await self._switch_job(connection, caller, job_id))
            )
            if state.status != "queued":
                return state
            return replace(state, position=await position(connection, job_id))

        return await in_transaction(self._begin, work)

    async def events(self, caller: Caller, job_id: int) -> AsyncIterator[JobState]:
        """The state now and whenever it changes, the final one last.

        Raises NotFound, also when the job is removed meanwhile. Ends early after an hour. No
        connection is held in between.
        """
        deadline = monotonic() + EVENTS_MAX_SECONDS
        last: JobState | None = None
        while monotonic() < deadline:
            state = await self.job(caller, job_id)
            if state != last:
                yield state
            if state.is_final:
                return
            last = state
            await asyncio.sleep(EVENT_POLL_SECONDS)

    async def list(
        self,
        caller: Caller,
        *,
        collection: str | None = None,
        status: DocumentStatus | None = None,
        limit: int = 50,
        cursor: int | None = None,
    ) -> JobPage:
        """A page of the latest jobs of the documents that the caller may see, newest first.

        Raises NotFound for an unknown collection and InvalidInput for a bad limit.
        """
        if not 1 <= limit <= self._settings.max_limit:
            raise InvalidInput(f"limit must be between 1 and {self._settings.max_limit}.")
        wanted = [*visible(caller), _IS_LATEST]
        if status is not None:
            wanted.append(Document.status == status)
        if cursor is not None:
            wanted.append(JOBS.c.id < cursor)

        async def work(connection: AsyncConnection) -> JobPage:
            if collection is not None:
                collection_id = await self._collection_id(connection, caller, collection)
                wanted.append(Document.collection_id == collection_id)
            rows = await connection.execute(
                STATES.where(*wanted).order_by(JOBS.c.id.desc()).limit(limit + 1)
            )
            states = [state_of(row) for row in rows]
            page = states[:limit]
            return JobPage(page, page[-1].id if len(states) > limit else None)

        return await in_transaction(self._begin, work)

    # --- stopping ---------------------------------------------------------------------------------

    async def cancel(self, caller: Caller, job_id: int) -> JobState:
        """Keep a job from being done, or from having been done.

        A version that serves goes on serving. Raises NotFound, or Conflict when the job has ended.
        """

        async def work(connection: AsyncConnection) -> None:
            document = await self._lock(connection, caller, job_id)
            if document.job_id != job_id or document.status not in ("queued", "processing"):
                raise Conflict(
                    "This job has ended already.",
                    hint="`DELETE /api/documents/{id}` removes what it made.",
                )
            await self._jobs.cancel(connection, job_id)
            version = document.version
            if version and version.blob_sha256 == document.blob_sha256 and not document.pending:
                # It was to be made anew from the same original: nothing that was sent is missing.
                await set_status(connection, document.id, "ready", claim=None)
            else:
                await set_status(connection, document.id, "failed", CANCELLED, claim=None)

        await in_transaction(self._begin, work)
        return await self.job(caller, job_id)

    # --- trying again -----------------------------------------------------------------------------

    async def retry(self, caller: Caller, job_id: int) -> Accepted:
        """Queue the document of a failed job again, under a new job.

        Raises NotFound, or Conflict when it has not failed or its original is not here.
        """

        async def work(connection: AsyncConnection) -> Accepted:
            document = await self._lock(connection, caller, job_id)
            if document.job_id != job_id:
                raise Conflict(
                    f"A later job, {document.job_id}, has taken this one's place.",
                    hint="Look at that one.",
                )
            return await self._queue_again(connection, document)

        return await in_transaction(self._begin, work)

    async def retry_document(self, caller: Caller, document_id: UUID) -> Accepted:
        """Queue a failed document again; raises what `retry` raises."""

        async def work(connection: AsyncConnection) -> Accepted:
            rows = await connection.execute(
                _DOCUMENT_IDS.where(*visible(caller), Document.id == document_id)
            )
            found = rows.scalar()
            document = await lock_document(connection, found) if found else None
            if document is None:
                raise NotFound("There is no such document.")
            return await self._queue_again(connection, document)

        return await in_transaction(self._begin, work)

    async def retry_failed(self, caller: Caller, *, collection: str | None = None) -> Retried:
        """Queue all failed documents again that the caller may see, behind interactive uploads.

        Raises NotFound for an unknown collection.
        """
        wanted = [*visible(caller), Document.status == "failed"]
        last = UUID(int=0)

        async def narrow(connection: AsyncConnection) -> int:
            if collection is not None:
                collection_id = await self._collection_id(connection, caller, collection)
                wanted.append(Document.collection_id == collection_id)
            rows = await connection.execute(_DOCUMENT_IDS.where(*wanted, ~_IS_KEPT))
            return len(rows.all())

        async def work(connection: AsyncConnection) -> Sequence[tuple[UUID, int]]:
            rows = await connection.execute(
                _DOCUMENT_IDS.where(*wanted, _IS_KEPT, Document.id > last)
                .order_by(Document.id)
                .limit(RETRIED_AT_ONCE)
                .with_for_update(of=Document, skip_locked=True)
            )
            found = [(row.id, row.collection_id) for row in rows]
            by_collection = sorted(found, key=lambda document: document[1])
            await self._jobs.requeue(connection, by_collection, priority="bulk")
            return found

        skipped = await in_transaction(self._begin, narrow)
        queued = 0
        while batch := await in_transaction(self._begin, work):
            queued += len(batch)
            # Those before it may have failed anew by now: once is what was asked for.
            last = batch[-1][0]
        return Retried(queued, skipped)

    # --- helpers ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[AsyncConnection]:
        async with self._sessions.begin() as session:
            yield await session.connection()

    async def _lock(
        self, connection: AsyncConnection, caller: Caller, job_id: int
    ) -> StoredDocument:
        """The document of a job, locked; raises NotFound, and Conflict for a job on a model."""
        rows = await connection.execute(STATES.where(*visible(caller), JOBS.c.id == job_id))
        row = rows.one_or_none()
        if row is None:
            job = await self._switch_job(connection, caller, job_id)
            raise Conflict(
                f"This job gives the collection {job.collection} another embedding model.",
                hint=f"`footnote models drop-old --collection {job.collection}` gives that up;"
                " `footnote models switch` begins it again.",
            )
        document = await lock_document(connection, row.document_id)
        if document is None:
            raise NotFound("There is no such job.")
        return document

    async def _switch_job(
        self, connection: AsyncConnection, caller: Caller, job_id: int
    ) -> SwitchJob:
        job = await find_switch_job(connection, caller.tenant_id, job_id)
        if job is None or not may_enter(caller, job.collection):
            raise NotFound("There is no such job.")
        return job

    async def _queue_again(self, connection: AsyncConnection, document: StoredDocument) -> Accepted:
        if document.status != "failed":
            raise Conflict(
                f"The document has not failed: it is {document.status}.",
                hint="Only what has failed can be tried again; upload a file anew to replace it.",
            )
        kept = await connection.execute(
            select(_IS_KEPT, Collection.name)
            .join(Collection, Collection.id == Document.collection_id)
            .where(Document.id == document.id)
        )
        is_kept, collection = kept.one()
        if not document.uri.startswith(UPLOAD_ROOT):
            place = document.root or document.uri
            if place.startswith("file://"):
                place = unquote(place.removeprefix("file://"))
            command = shlex.join(
                ["footnote", "ingest", "--retry-failed", "--collection", collection, place]
            )
            raise Conflict(
                "The original of this document is not here, but where it was ingested from.",
                hint=f"Run `{command}` on that machine.",
            )
        if not is_kept:
            raise Conflict(
                "The file that was refused is not kept, so it cannot be tried again.",
                hint="Change the file, or what its collection does with personal data, and upload"
                " it again.",
            )
        job_id = await self._jobs.defer_document(connection, document.id)
        await set_status(connection, document.id, "queued", claim=None, job_id=job_id)
        return Accepted(document.id, job_id)

    async def _collection_id(self, connection: AsyncConnection, caller: Caller, name: str) -> int:
        found = None
        if may_enter(caller, name):
            found = await find_collection(connection, caller.tenant_id, name)
        if found is None:
            raise NotFound(
                "There is no such collection.", hint="`GET /api/collections` lists them."
            )
        return found.id


# A planner that saw the comparison would think that next to no job is the latest, and sort them all.
_IS_LATEST = case((Document.job_id == JOBS.c.id, True), else_=False)
_SERVES_ALREADY = (
    select(DocumentVersion.id)
    .where(
        DocumentVersion.id == Document.current_version_id,
        DocumentVersion.blob_sha256 == Document.blob_sha256,
        DocumentVersion.pipeline_digest == Document.pipeline_digest,
        Document.pending.is_(None),
    )
    .exists()
)
# Of a file that was refused nothing is kept; if a version of before serves, its original is there.
_IS_KEPT = and_(
    Document.uri.startswith(UPLOAD_ROOT), Document.blob_sha256.is_not(None), ~_SERVES_ALREADY
)
_DOCUMENT_IDS = select(Document.id, Document.collection_id).join(
    Collection, Collection.id == Document.collection_id
)
