"""What a run reads from the collection and writes into it; a rehearsal only reads."""

from collections.abc import Mapping, Sequence
from typing import Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import DEFAULT_TENANT_ID
from app.db.collection_settings import DEFAULTS
from app.db.collections import StoredCollection, ensure_collection, find_collection
from app.db.documents import Sighting, SourceState, delete_document, list_sources, note_unchanged
from app.db.postings import merge_postings
from app.db.transactions import translated_errors
from app.db.vector_partitions import ensure_index
from app.failpoints import reach
from app.telemetry import stage
from ingestion.pipeline import Original, Tools, process
from ingestion.sources.base import Content, Item
from ingestion.writing import (
    Change,
    NewVersion,
    Shelf,
    SourceFile,
    record_failed_file,
    restore_file,
    write_file,
)

NOTES_AT_ONCE = 500


class Books(Protocol):
    """The collection that a run works on; `pipeline_digest` names the pipeline as it asks for.

    `shelf` is None where a rehearsal finds no such collection yet.
    """

    pipeline_digest: str

    @property
    def shelf(self) -> Shelf | None: ...

    async def known(self, prefixes: Sequence[str]) -> dict[str, SourceState]:
        """The documents whose URI begins like one of these, by URI."""
        ...

    async def write(self, file: SourceFile) -> Change: ...

    async def restore(self, file: SourceFile) -> None: ...

    async def fail(
        self,
        file: SourceFile,
        reason: str,
        pipeline_digest: str | None,
        refused: Mapping[str, int] | None = None,
    ) -> None: ...

    async def delete(self, document_id: UUID) -> None: ...

    async def note(self, seen: Sequence[Sighting]) -> None:
        """Remember how unchanged documents were found."""
        ...

    async def tidy(self) -> None: ...


async def open_books(
    name: str, tools: Tools, *, is_rehearsal: bool, tenant_id: int = DEFAULT_TENANT_ID
) -> Books:
    """The collection of this name, made if it is new; a rehearsal changes nothing in it."""
    model_id = None if is_rehearsal else await tools.model_id()

    async def look(connection: AsyncConnection) -> Shelf | None:
        if model_id is None:
            found = await find_collection(connection, tenant_id, name)
            return _shelf(found) if found else None
        return _shelf(await ensure_collection(connection, tenant_id, name, model_id))

    shelf = await tools.transaction(look)
    if shelf is not None:
        await tools.check_model(shelf.model_id)
    if is_rehearsal or shelf is None:
        return _Rehearsal(shelf, tools)
    return _Collection(shelf, tools)


def _shelf(collection: StoredCollection) -> Shelf:
    return Shelf(collection.tenant_id, collection.id, collection.model_id, collection.settings)


class _Collection:
    def __init__(self, shelf: Shelf, tools: Tools) -> None:
        self.pipeline_digest = tools.digest(shelf.settings)
        self.shelf = shelf
        self._tools = tools

    async def known(self, prefixes: Sequence[str]) -> dict[str, SourceState]:
        return await _known(self.shelf, self._tools, prefixes)

    async def write(self, file: SourceFile) -> Change:
        async def write(connection: AsyncConnection, version: NewVersion) -> Change:
            return await write_file(connection, self.shelf, file, version)

        original = Original(file.name, file.sha256, file.content)
        return await process(original, self.shelf, self._tools, write)

    async def restore(self, file: SourceFile) -> None:
        await self._tools.transaction(lambda connection: restore_file(connection, self.shelf, file))

    async def fail(
        self,
        file: SourceFile,
        reason: str,
        pipeline_digest: str | None,
        refused: Mapping[str, int] | None = None,
    ) -> None:
        await self._tools.transaction(
            lambda connection: record_failed_file(
                connection, self.shelf, file, reason, pipeline_digest, refused
            )
        )

    async def delete(self, document_id: UUID) -> None:
        await self._tools.transaction(lambda connection: delete_document(connection, document_id))
        reach("folder.document_deleted")

    async def note(self, seen: Sequence[Sighting]) -> None:
        for start in range(0, len(seen), NOTES_AT_ONCE):
            some = seen[start : start + NOTES_AT_ONCE]
            await self._tools.transaction(lambda connection: note_unchanged(connection, some))  # noqa: B023 - awaited at once
            reach("folder.notes_written")

    async def tidy(self) -> None:
        """Leave the indexes as fast as they can be."""
        reach("folder.before_tidy")
        with stage("ingest", "tidy"), translated_errors():
            await merge_postings(self._tools.engine, self.shelf.collection_id)
            await ensure_index(self._tools.engine, self.shelf.model_id)


class _Rehearsal:
    def __init__(self, shelf: Shelf | None, tools: Tools) -> None:
        self.pipeline_digest = tools.digest(shelf.settings if shelf else DEFAULTS)
        self.shelf = shelf
        self._tools = tools

    async def known(self, prefixes: Sequence[str]) -> dict[str, SourceState]:
        return await _known(self.shelf, self._tools, prefixes) if self.shelf else {}

    async def write(self, file: SourceFile) -> Change:
        return "added" if file.seen_version_id is None else "updated"

    async def restore(self, file: SourceFile) -> None: ...

    async def fail(
        self,
        file: SourceFile,
        reason: str,
        pipeline_digest: str | None,
        refused: Mapping[str, int] | None = None,
    ) -> None: ...

    async def delete(self, document_id: UUID) -> None: ...

    async def note(self, seen: Sequence[Sighting]) -> None: ...

    async def tidy(self) -> None: ...


async def _known(shelf: Shelf, tools: Tools, prefixes: Sequence[str]) -> dict[str, SourceState]:
    async def look(connection: AsyncConnection) -> dict[str, SourceState]:
        states = await list_sources(connection, shelf.collection_id, prefixes)
        return {state.uri: state for state in states}

    return await tools.transaction(look)


def source_of(item: Item, state: SourceState | None, found: Content | None = None) -> SourceFile:
    """What is written of an item that was read, or that could not be."""
    return SourceFile(
        name=(found.name if found else None) or item.name,
        uri=item.uri,
        root=item.root,
        size_bytes=len(found.content) if found else item.size_bytes or 0,
        changed_ns=found.changed_ns if found else item.changed_ns,
        tag=found.tag if found else item.tag,
        seen_version_id=state.version_id if state else None,
        content=found.content if found else b"",
        sha256=found.sha256 if found else b"",
    )
