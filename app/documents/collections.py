"""Collections: made, listed, set up, rebuilt, deleted.

A collection is seen by every key of its tenant that is not limited to others.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from sqlalchemy import BigInteger, cast, func, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import Caller
from app.db.collection_settings import DEFAULTS, CollectionSettings
from app.db.collections import (
    DEFAULT_COLLECTION,
    Removed,
    StoredCollection,
    check_name,
    create_collection,
    delete_collection,
    ensure_collection,
    find_collection,
    list_collections,
)
from app.db.models import Collection, Document
from app.db.rebuilds import change_settings, count_outdated, lock_settings, note_rebuild
from app.db.session import Sessions
from app.db.transactions import in_transaction
from app.db.vectors import register_model
from app.documents.records import (
    CollectionOverview,
    CollectionRecord,
    EmbedderIdentity,
    PersonalDataCount,
)
from app.documents.visibility import may_enter, visible
from app.errors import Conflict, Forbidden, InvalidInput, NotFound, ScanUnavailable

SCAN_PACKAGES = ("phonenumbers", "stdnum")


ModelIsHere = Callable[[int], Awaitable[bool]]
"""Whether the model that the database knows by this id can be found on this machine."""


class Collections:
    """`embedder` is the model that new collections are made for, found at `location`.

    Without `model_is_here` no other model is.
    """

    def __init__(
        self,
        sessions: Sessions,
        embedder: EmbedderIdentity,
        *,
        location: str | None = None,
        model_is_here: ModelIsHere | None = None,
    ) -> None:
        self._sessions = sessions
        self._embedder = embedder
        self._location = location
        self._model_is_here = model_is_here

    async def create_collection(
        self, caller: Caller, name: str, change: Mapping[str, Any] | None = None
    ) -> CollectionOverview:
        """Make it, with settings that differ from the defaults.

        Raises InvalidInput for a bad name or setting, Conflict for a taken name.
        """
        check_name(name)
        if not may_enter(caller, name):
            raise Forbidden("This key is limited to other collections.")
        settings = DEFAULTS.changed(change or {})
        _check_scan(settings)

        async def work(connection: AsyncConnection) -> CollectionOverview:
            model_id = await self._model_id(connection)
            if not await create_collection(connection, caller.tenant_id, name, model_id, settings):
                raise Conflict(f"There is a collection {name} already.")
            return await self._overview(connection, caller, name)

        return await in_transaction(self._begin, work)

    async def list_collections(self, caller: Caller) -> Sequence[CollectionRecord]:
        """By name."""

        async def work(connection: AsyncConnection) -> list[CollectionRecord]:
            stored = await list_collections(connection, caller.tenant_id)
            return [_record(one) for one in stored if may_enter(caller, one.name)]

        return await in_transaction(self._begin, work)

    async def get_collection(self, caller: Caller, name: str) -> CollectionOverview:
        return await in_transaction(
            self._begin, lambda connection: self._overview(connection, caller, name)
        )

    async def change_collection(
        self, caller: Caller, name: str, change: Mapping[str, Any]
    ) -> CollectionOverview:
        """Change the settings that are named, in which None resets.

        Documents are brought to those that shape them in the background; until then the versions
        of before go on serving. Those of search count at once. Raises NotFound or InvalidInput.
        """

        async def work(connection: AsyncConnection) -> CollectionOverview:
            collection = await self._collection(connection, caller, name)
            # Whoever changes them at the same time waits, and changes what this leaves.
            before = await lock_settings(connection, collection.id)
            if before is None:
                raise _no_collection()
            after = before.changed(change)
            if after != before:
                _check_scan(after)
                await change_settings(connection, collection.id, before, after)
            return await self._overview(connection, caller, name)

        return await in_transaction(self._begin, work)

    async def rebuild_collection(self, caller: Caller, name: str) -> CollectionOverview:
        """Bring what an older version of the pipeline made to the present one."""

        async def work(connection: AsyncConnection) -> CollectionOverview:
            collection = await self._collection(connection, caller, name)
            await note_rebuild(connection, collection.id)
            return await self._overview(connection, caller, name)

        return await in_transaction(self._begin, work)

    async def delete_collection(self, caller: Caller, name: str) -> Removed:
        """Remove a collection and everything in it."""

        async def work(connection: AsyncConnection) -> Removed:
            return await delete_collection(
                connection, await self._collection(connection, caller, name)
            )

        return await in_transaction(self._begin, work)

    # --- helpers ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[AsyncConnection]:
        async with self._sessions.begin() as session:
            yield await session.connection()

    async def _overview(
        self, connection: AsyncConnection, caller: Caller, name: str
    ) -> CollectionOverview:
        stored = await self._collection(connection, caller, name)
        kinds = func.jsonb_each_text(Document.personal_data).table_valued("key", "value")
        counted = await connection.execute(
            select(kinds.c.key, func.count(), func.sum(cast(kinds.c.value, BigInteger)))
            .select_from(Document)
            .join(Collection, Collection.id == Document.collection_id)
            .join(kinds, true())
            .where(*visible(caller), Document.collection_id == stored.id)
            .group_by(kinds.c.key)
            .order_by(kinds.c.key)
        )
        return CollectionOverview(
            **_fields(stored),
            outdated=await count_outdated(connection, stored.id),
            personal_data={
                kind: PersonalDataCount(documents, int(found)) for kind, documents, found in counted
            },
        )

    async def _model_id(self, connection: AsyncConnection) -> int:
        return await register_model(
            connection,
            name=self._embedder.name,
            digest=self._embedder.digest,
            dimensions=self._embedder.dimensions,
            location=self._location,
        )

    async def _collection(
        self, connection: AsyncConnection, caller: Caller, name: str
    ) -> StoredCollection:
        found = None
        if may_enter(caller, name):
            found = await find_collection(connection, caller.tenant_id, name)
        if found is None:
            raise _no_collection()
        return found

    async def _collection_for_upload(
        self, connection: AsyncConnection, caller: Caller, name: str
    ) -> StoredCollection:
        """The named collection; the default one is made when it is first used."""
        model_id = await self._model_id(connection)
        if name == DEFAULT_COLLECTION and may_enter(caller, name):
            await ensure_collection(connection, caller.tenant_id, name, model_id)
        collection = await self._collection(connection, caller, name)
        is_other = collection.model_id != model_id
        if is_other and not (
            self._model_is_here and await self._model_is_here(collection.model_id)
        ):
            collection.check_model(model_id, self._embedder.name)
        return collection


def _no_collection() -> NotFound:
    return NotFound(
        "There is no such collection.",
        hint="`GET /api/collections` lists them; `POST /api/collections` makes one.",
    )


def _check_scan(settings: CollectionSettings) -> None:
    """Raise InvalidInput rather than let every document fail later."""
    if settings.personal_data != "off" and not all(map(find_spec, SCAN_PACKAGES)):
        raise InvalidInput(
            "settings.personal_data: the packages that look for personal data are not installed.",
            hint=ScanUnavailable.default_hint,
        )


def _record(stored: StoredCollection) -> CollectionRecord:
    return CollectionRecord(**_fields(stored))


def _fields(stored: StoredCollection) -> dict[str, Any]:
    return {
        "name": stored.name,
        "embedding_model": stored.model_name,
        "generation": stored.generation,
        "documents": stored.documents_count,
        "chunks": stored.chunks_count,
        "created_at": stored.created_at,
        "settings": stored.settings,
    }
