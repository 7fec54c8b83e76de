"""Registered sources: brought in step by whichever worker takes their job."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.documents import delete_document, list_sources
from app.db.sources import StoredSource, change_source, drop_source, finish_sync, lock_source
from app.errors import DatabaseUnavailable, EmbeddingUnavailable, FootnoteError, StorageFull
from ingestion.pipeline import Tools
from ingestion.runner import Order, Report, sync
from ingestion.sources.base import Item, Source
from ingestion.sources.opening import open_source
from ingestion.sources.selection import Selection

FAILURES_KEPT = 100

log = structlog.get_logger(__name__)


class _Silence:
    """Nobody watches; the report tells in the end."""

    def begin(self, items_count: int, bytes_count: int) -> None: ...

    def advance(self, item: Item) -> None: ...


async def sync_source(tools: Tools, source_id: UUID) -> bool:
    """Bring a source's collection in step with it, or remove it with its documents, as it asks.

    False when it could not be done, which is noted with the source. Raises DatabaseUnavailable,
    EmbeddingUnavailable and StorageFull: those are none of the source's faults.
    """
    source = await tools.transaction(lambda connection: _begin(connection, source_id))
    if source is None:
        return True
    if source.status == "removing":
        await _remove(source, tools)
        return True
    reason, report = await _sync(source, tools)
    await tools.transaction(
        lambda connection: finish_sync(connection, source_id, reason=reason, report=report)
    )
    log.info("source_synced", source=str(source_id), reason=reason)
    return reason is None


async def _begin(connection: AsyncConnection, source_id: UUID) -> StoredSource | None:
    source = await lock_source(connection, source_id)
    if source is not None and source.status != "removing":
        await change_source(connection, source_id, status="syncing")
    return source


async def _sync(source: StoredSource, tools: Tools) -> tuple[str | None, Mapping[str, Any] | None]:
    """Why it could not be done, and what was done."""
    order = Order(
        [source.location],
        source.collection,
        Selection(tuple(source.include), tuple(source.exclude)),
        tenant_id=source.tenant_id,
    )
    try:
        return None, _described(await sync(order, tools, _Silence()))
    except (DatabaseUnavailable, EmbeddingUnavailable, StorageFull):
        raise
    except FootnoteError as error:
        return error.detail, None
    except Exception as error:
        log.exception("source_failed", source=str(source.id))
        return f"it could not be synced (internal error: {type(error).__name__})", None


def _described(report: Report) -> Mapping[str, Any]:
    return {
        **report.counts,
        "failures": [
            {"path": failure.path, "reason": failure.reason}
            for failure in report.failures[:FAILURES_KEPT]
        ],
        "took_ms": round(report.took_seconds * 1000, 1),
    }


async def _remove(source: StoredSource, tools: Tools) -> None:
    """Delete the documents that came from the source, one by one, then the source."""
    opened = open_source(source.location, Selection(), tools.settings)
    try:
        document_ids = await tools.transaction(
            lambda connection: _documents_of(connection, source, opened)
        )
    finally:
        await opened.close()
    for document_id in document_ids:
        await tools.transaction(
            lambda connection, doomed=document_id: delete_document(connection, doomed)
        )
    await tools.transaction(lambda connection: drop_source(connection, source.id))
    log.info("source_removed", source=str(source.id), documents=len(document_ids))


async def _documents_of(
    connection: AsyncConnection, source: StoredSource, opened: Source
) -> list[UUID]:
    """Those found through the source, or being it; what came some other way as well is not."""
    places = {opened.location, f"{opened.location.rstrip('/')}/"}
    return [
        state.id
        for prefix in opened.prefixes
        for state in await list_sources(connection, source.collection_id, prefix)
        if state.root in places or (state.root is None and state.uri == opened.location)
    ]
