"""Registered sources: places on the web and in buckets that collections are kept in step with.

The service only keeps them; a worker goes there. So nothing here says whether a place can be reached.
"""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from uuid import UUID

import pathspec
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import Caller
from app.config import Settings
from app.db.collections import find_collection
from app.db.models import Collection, RegisteredSource
from app.db.session import Sessions
from app.db.sources import (
    ACTIVE,
    SOURCES,
    StoredSource,
    add_source,
    change_source,
    drop_source,
    lock_source,
    queue_sync,
    stored,
)
from app.db.transactions import in_transaction
from app.documents.visibility import may_enter
from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.jobs import Jobs
from app.urls import Refused, checked_url

SITEMAP_SCHEME = "sitemap+"
PATTERNS_MAX = 100

_BUCKET_SCHEME = re.compile(r"(s3|gs|az)://")
_BUCKET = re.compile(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]{1,62}(/[^?#\x00-\x1f]*)?")


class Sources:
    def __init__(self, sessions: Sessions, jobs: Jobs, settings: Settings) -> None:
        self._sessions = sessions
        self._jobs = jobs
        self._buckets = settings.source_buckets

    async def add(
        self,
        caller: Caller,
        *,
        collection: str,
        location: str,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        every_minutes: int | None = None,
    ) -> StoredSource:
        """Register a source and queue its first sync.

        Raises InvalidInput, Forbidden for a bucket that the operator did not open, NotFound for the
        collection, and Conflict when it has this source already.
        """
        place = self._checked_location(location)
        options = {"include": checked_patterns(include), "exclude": checked_patterns(exclude)}

        async def work(connection: AsyncConnection) -> StoredSource:
            found = None
            if may_enter(caller, collection):
                found = await find_collection(connection, caller.tenant_id, collection)
            if found is None:
                raise NotFound(
                    "There is no such collection.",
                    hint="`GET /api/collections` lists them; `POST /api/collections` makes one.",
                )
            source_id = await add_source(
                connection,
                tenant_id=caller.tenant_id,
                collection_id=found.id,
                location=place,
                options=options,
                every_minutes=every_minutes,
            )
            if source_id is None:
                raise Conflict(f"The collection {collection} has this source already.")
            await self._queue(connection, source_id)
            return await self._locked(connection, caller, source_id)

        return await in_transaction(self._begin, work)

    async def list(self, caller: Caller) -> Sequence[StoredSource]:
        """Those that the caller may see, the oldest first."""

        async def work(connection: AsyncConnection) -> list[StoredSource]:
            rows = await connection.execute(
                SOURCES.where(*_visible(caller)).order_by(
                    RegisteredSource.created_at, RegisteredSource.id
                )
            )
            return [stored(row) for row in rows]

        return await in_transaction(self._begin, work)

    async def get(self, caller: Caller, source_id: UUID) -> StoredSource:
        async def work(connection: AsyncConnection) -> StoredSource:
            rows = await connection.execute(
                SOURCES.where(*_visible(caller), RegisteredSource.id == source_id)
            )
            return _found(stored(row) if (row := rows.one_or_none()) is not None else None)

        return await in_transaction(self._begin, work)

    async def sync(self, caller: Caller, source_id: UUID) -> StoredSource:
        """Queue a sync now; one that is queued or running already is as good."""

        async def work(connection: AsyncConnection) -> StoredSource:
            source = await self._locked(connection, caller, source_id)
            if source.status in ACTIVE:
                return source
            await self._queue(connection, source_id)
            return await self._locked(connection, caller, source_id)

        return await in_transaction(self._begin, work)

    async def remove(
        self, caller: Caller, source_id: UUID, *, with_documents: bool
    ) -> StoredSource | None:
        """Forget the source: at once (None), or when a worker has deleted its documents."""

        async def work(connection: AsyncConnection) -> StoredSource | None:
            await self._locked(connection, caller, source_id)
            if not with_documents:
                await drop_source(connection, source_id)
                return None
            await change_source(connection, source_id, status="removing")
            await self._queue(connection, source_id)
            return await self._locked(connection, caller, source_id)

        return await in_transaction(self._begin, work)

    # --- helpers ----------------------------------------------------------------------------------

    def _checked_location(self, location: str) -> str:
        """The location in its usual form."""
        if _BUCKET.fullmatch(location):
            if not any(fnmatchcase(location, pattern) for pattern in self._buckets):
                raise Forbidden(
                    "This bucket is not open to sources.",
                    hint="The operator opens buckets with FOOTNOTE_SOURCE_BUCKETS.",
                )
            return location
        if found := _BUCKET_SCHEME.match(location):
            raise InvalidInput(
                f"This location cannot be a source: what follows {found[0]} names no bucket.",
                hint="A bucket's name has 2 to 63 letters, digits, dots, hyphens and underscores,"
                " and a prefix after it no ? and no #. Credentials do not belong into a location.",
            )
        scheme = SITEMAP_SCHEME if location.startswith(SITEMAP_SCHEME) else ""
        try:
            return scheme + str(checked_url(location.removeprefix(SITEMAP_SCHEME)))
        except Refused as error:
            raise InvalidInput(
                f"This location cannot be a source: {error.reason}.",
                hint="Give an http or https URL, sitemap+https://…, or s3://BUCKET/PREFIX.",
            ) from error

    async def _queue(self, connection: AsyncConnection, source_id: UUID) -> None:
        await queue_sync(connection, source_id, await self._jobs.defer_sync(connection, source_id))

    async def _locked(
        self, connection: AsyncConnection, caller: Caller, source_id: UUID
    ) -> StoredSource:
        source = await lock_source(connection, source_id)
        if source is not None and (
            source.tenant_id != caller.tenant_id or not may_enter(caller, source.collection)
        ):
            source = None
        return _found(source)

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[AsyncConnection]:
        async with self._sessions.begin() as session:
            yield await session.connection()


def checked_patterns(patterns: Sequence[str]) -> list[str]:
    """Patterns as in .gitignore; raises InvalidInput for one that makes no sense."""
    if len(patterns) > PATTERNS_MAX:
        raise InvalidInput(f"A source has at most {PATTERNS_MAX} patterns of a kind.")
    try:
        pathspec.GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise InvalidInput(f"{error}", hint="Write patterns as in .gitignore.") from error
    return list(patterns)


def _visible(caller: Caller) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [RegisteredSource.tenant_id == caller.tenant_id]
    if caller.collections is not None:
        conditions.append(Collection.name.in_(caller.collections))
    return conditions


def _found(source: StoredSource | None) -> StoredSource:
    if source is None:
        raise NotFound("There is no such source.", hint="`GET /api/sources` lists them.")
    return source
