"""Bringing a collection in step with its sources, on one machine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import structlog

from app.access import DEFAULT_TENANT_ID
from app.config import Settings
from app.db.collections import check_name
from app.db.documents import Sighting, SourceState
from app.errors import DocumentRejected, FootnoteError
from app.telemetry import DOCUMENTS
from ingestion.books import Books, open_books, source_of
from ingestion.estimate import Candidate, Estimate, estimate
from ingestion.personal_data import PersonalDataRefused
from ingestion.pipeline import Tools
from ingestion.sources.base import (
    Content,
    Item,
    ItemGone,
    ItemUnreadable,
    Listing,
    Source,
    too_large,
)
from ingestion.sources.files import shown
from ingestion.sources.opening import open_source
from ingestion.sources.selection import Selection
from ingestion.writing import Superseded

log = structlog.get_logger(__name__)

DOCUMENTS_IN_FLIGHT = 64
BYTES_IN_FLIGHT = 64 * 1024 * 1024
UNKNOWN_SIZE_BYTES = 1024 * 1024
"""The room that is kept for something whose size is known only when it was read."""

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Before a source that has trouble of its own is asked for an item again; then twice as long."""

Outcome = Literal["added", "updated", "unchanged", "deleted", "failed"]


@dataclass(frozen=True, slots=True)
class Order:
    """What to ingest, and how: paths, URLs and buckets, in any mixture.

    A rehearsal only finds out what would be done.
    """

    locations: Sequence[str | Path]
    collection: str
    selection: Selection = field(default_factory=Selection)
    retry_failed: bool = False
    is_rehearsal: bool = False
    tenant_id: int = DEFAULT_TENANT_ID


@dataclass(frozen=True, slots=True)
class Failure:
    """`path` names the thing as people do: a path or a URL."""

    path: str
    reason: str


@dataclass(slots=True)
class Report:
    """What a run did, or what a rehearsal found that a run would do.

    `chunks` were written, and of these `embedded` were new to the model: the others' vectors were
    known. A rehearsal has an `estimate` instead, of what it would write.
    """

    counts: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(get_args(Outcome), 0))
    failures: list[Failure] = field(default_factory=list[Failure])
    chunks: int = 0
    embedded: int = 0
    estimate: Estimate | None = None
    took_seconds: float = 0.0

    @property
    def has_changes(self) -> bool:
        return any(self.counts[outcome] for outcome in ("added", "updated", "deleted"))

    def count(self, outcome: Outcome, documents: int = 1) -> None:
        self.counts[outcome] += documents
        DOCUMENTS.labels(outcome).inc(documents)

    def fail(self, item: Item, reason: str) -> None:
        self.failures.append(Failure(shown(item.uri), reason))
        self.count("failed")


class Progress(Protocol):
    """Whoever shows how far a run is; what is unchanged at a glance is not counted."""

    def begin(self, items_count: int, bytes_count: int) -> None: ...

    def advance(self, item: Item) -> None: ...


async def sync(order: Order, tools: Tools, progress: Progress) -> Report:
    """Ingest what is new or changed, delete what is gone, leave the rest alone.

    Every document is a transaction of its own, so a run that is cut short loses nothing: the next
    one goes on from there. Raises InvalidInput or Unavailable for a location that cannot be listed
    at all, Conflict, and StorageFull.
    """
    started = time.monotonic()
    check_name(order.collection)
    async with _opened_sources(order, tools.settings) as sources:
        books = await open_books(
            order.collection,
            tools,
            is_rehearsal=order.is_rehearsal,
            tenant_id=order.tenant_id,
        )
        run = _Run(order, tools, books)
        await run.look(sources)
        await run.take(progress)
        await run.drop_lost()
        if order.is_rehearsal:
            run.report.estimate = await estimate(run.would_write, tools, books.shelf, run.retract)
    if run.report.has_changes:
        await books.tidy()
    run.report.failures.sort(key=lambda failure: failure.path)
    run.report.took_seconds = time.monotonic() - started
    return run.report


@asynccontextmanager
async def _opened_sources(order: Order, settings: Settings) -> AsyncGenerator[list[Source]]:
    async with AsyncExitStack() as opened:
        sources: list[Source] = []
        for location in order.locations:
            source = open_source(str(location), order.selection, settings)
            opened.push_async_callback(source.close)
            sources.append(source)
        yield sources


class _Run:
    """One comparison of what there is with what is known, and what follows from it."""

    def __init__(self, order: Order, tools: Tools, books: Books) -> None:
        self.report = Report()
        self.would_write: dict[Candidate, Outcome] = {}
        self._order = order
        self._tools = tools
        self._books = books
        self._known: dict[str, SourceState] = {}
        self._listings: list[Listing] = []
        self._found: dict[str, Candidate] = {}
        self._sightings: list[Sighting] = []
        self._room = _Room(BYTES_IN_FLIGHT)
        self._chunks_before = tools.chunks_count
        self._embedded_before = tools.embedded_count

    # --- looking ----------------------------------------------------------------------------------

    async def look(self, sources: Sequence[Source]) -> None:
        """Find out what there is, and what is known of it."""
        self._known = await self._books.known(
            [prefix for source in sources for prefix in source.prefixes]
        )
        self._listings = await _all_of(source.changes(self._known) for source in sources)
        for source, listing in zip(sources, self._listings, strict=True):
            for item in listing.items:
                # Where locations overlap, the first that has something is the one it comes from.
                if item.uri not in self._found:
                    self._found[item.uri] = Candidate(item, source)

    def _sort_out(self) -> list[Candidate]:
        """Settle what is unchanged at a glance; gives what must be looked into.

        Most of a second run goes through here, so a document costs a few microseconds.
        """
        digest = self._books.pipeline_digest
        due: list[Candidate] = []
        unchanged = 0
        for uri, found in self._found.items():
            state = self._known.get(uri)
            if (
                state is None
                or state.pipeline_digest != digest
                or not found.item.is_as_noted(state)
            ):
                due.append(found)
            elif state.status == "ready":
                unchanged += 1
                self._note(found.item, state, found.item.changed_ns, found.item.tag)
            elif state.status == "failed" and not self._order.retry_failed:
                self.report.fail(found.item, state.reason or "")
            else:
                due.append(found)
        self.report.count("unchanged", unchanged)
        return due

    # --- taking -----------------------------------------------------------------------------------

    async def take(self, progress: Progress) -> None:
        """Ingest what is new or changed, and note what was seen of the rest."""
        for unlisted in (one for listing in self._listings for one in listing.unlisted):
            if not unlisted.is_container:
                state = self._known.get(unlisted.item.uri)
                await self._books.fail(source_of(unlisted.item, state), unlisted.reason, None)
            self.report.fail(unlisted.item, unlisted.reason)
        due = self._sort_out()
        progress.begin(len(due), sum(found.item.size_bytes or 0 for found in due))
        remaining = iter(due)
        await _all_of(
            self._take_each(remaining, progress) for _ in range(min(DOCUMENTS_IN_FLIGHT, len(due)))
        )
        await self._books.note(self._sightings)
        self.report.chunks = self._tools.chunks_count - self._chunks_before
        self.report.embedded = self._tools.embedded_count - self._embedded_before

    async def drop_lost(self) -> None:
        """Delete the documents that are gone from the places that they came from."""
        present = set(self._found)
        for listing in self._listings:
            present.update(unlisted.item.uri for unlisted in listing.unlisted)
        for uri, state in self._known.items():
            if (
                state.root is not None
                and uri not in present
                and any(listing.has_lost(state) for listing in self._listings)
            ):
                await self._delete(state)

    async def _take_each(self, remaining: Iterator[Candidate], progress: Progress) -> None:
        for found in remaining:
            size_bytes = found.item.size_bytes
            async with self._room.taken(UNKNOWN_SIZE_BYTES if size_bytes is None else size_bytes):
                await self._take(found)
            progress.advance(found.item)

    async def _take(self, found: Candidate) -> None:
        """Read and compare; only then work."""
        item, content, reason, is_final = found.item, None, "", False
        refused: Mapping[str, int] | None = None
        for attempt in range(ATTEMPTS):
            try:
                if self._order.is_rehearsal and item.uri not in self._known:
                    return self._foresee(found)
                known = self._settled(item)
                content = await self._read(found, known)
                if content is not None:
                    return await self._take_content(found, content)
                return self._leave(item, known)
            except ItemGone as error:
                return await self._take_leave_of(item, str(error))
            except ItemUnreadable as error:
                reason = error.reason
                if not error.is_transient:
                    break
                if attempt < ATTEMPTS - 1:
                    await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
            except DocumentRejected as error:
                reason, is_final = error.reason, not error.retryable
                refused = error.counts if isinstance(error, PersonalDataRefused) else None
                if is_final:
                    break
            except Superseded:
                reason = "it was changed by others while it was being ingested"
                self._known |= await self._books.known([item.uri])
            except FootnoteError:
                raise
            except Exception as error:
                log.exception("document_failed", path=shown(item.uri))
                reason = f"it could not be processed (internal error: {type(error).__name__})"
                break
        await self._books.fail(
            source_of(item, self._known.get(item.uri), content),
            reason,
            self._books.pipeline_digest if is_final else None,
            refused,
        )
        return self.report.fail(item, reason)

    def _settled(self, item: Item) -> SourceState | None:
        """What is known of the item, where finding it unchanged would settle it."""
        state = self._known.get(item.uri)
        if state is None or state.pipeline_digest != self._books.pipeline_digest:
            return None
        is_done = state.status == "failed" and not self._order.retry_failed
        return state if is_done or state.status == "ready" else None

    def _foresee(self, found: Candidate) -> None:
        """What is new would be added; a rehearsal does not read it for that."""
        self._check_size(found.item)
        self.would_write[found] = "added"
        self.report.count("added")

    def retract(self, found: Candidate, reason: str) -> None:
        """What was foreseen to be written turned out to be unreadable."""
        self.report.counts[self.would_write[found]] -= 1
        self.report.fail(found.item, reason)

    async def _read(self, found: Candidate, known: SourceState | None) -> Content | None:
        self._check_size(found.item)
        return await found.source.read(found.item, known, self._tools.settings.max_upload_bytes)

    def _check_size(self, item: Item) -> None:
        max_bytes = self._tools.settings.max_upload_bytes
        if (item.size_bytes or 0) > max_bytes:
            raise ItemUnreadable(too_large(max_bytes))

    async def _take_content(self, found: Candidate, content: Content) -> None:
        item = found.item
        state = self._known.get(item.uri)
        if state is None or not state.serves(content.sha256, self._books.pipeline_digest):
            outcome = await self._books.write(source_of(item, state, content))
            self.report.count(outcome)
            if self._order.is_rehearsal:
                self.would_write[found] = outcome
        elif state.status == "ready":
            self.report.count("unchanged")
            self._note(item, state, content.changed_ns, content.tag)
        else:
            await self._books.restore(source_of(item, state, content))
            self.report.count("updated")

    def _leave(self, item: Item, known: SourceState | None) -> None:
        """The source says that nothing changed since the state that it was told."""
        if known is None:
            raise RuntimeError("a source that was told of no state left an item unread")
        if known.status == "failed":
            return self.report.fail(item, known.reason or "")
        self.report.count("unchanged")
        changed_ns = known.modified_ns if item.changed_ns is None else item.changed_ns
        return self._note(item, known, changed_ns, item.tag or known.source_tag)

    async def _take_leave_of(self, item: Item, reason: str) -> None:
        """It is gone: from the collection too, if it was there."""
        state = self._known.get(item.uri)
        if state is None:
            return self.report.fail(item, reason)
        return await self._delete(state)

    async def _delete(self, state: SourceState) -> None:
        await self._books.delete(state.id)
        self.report.count("deleted")

    def _note(
        self, item: Item, state: SourceState, changed_ns: int | None, tag: str | None
    ) -> None:
        """Have it remembered how an unchanged document was found, if that is news."""
        is_adopted = state.root is None and item.root is not None
        if is_adopted or (changed_ns, tag) != (state.modified_ns, state.source_tag):
            self._sightings.append(Sighting(state.id, changed_ns, tag, item.root))


class _Room:
    """Lets documents in while their bytes fit; one that is larger than all the room comes alone."""

    def __init__(self, size_bytes: int) -> None:
        self._free_bytes = self._size_bytes = size_bytes
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size_bytes: int) -> AsyncGenerator[None]:
        taken_bytes = min(size_bytes, self._size_bytes)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free_bytes >= taken_bytes)
            self._free_bytes -= taken_bytes
        try:
            yield
        finally:
            async with self._changed:
                self._free_bytes += taken_bytes
                self._changed.notify_all()


Result = TypeVar("Result")


async def _all_of(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results in order, computed side by side; one of the errors ends them all."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as group:
        raise _first(group) from None
    return [task.result() for task in tasks]


def _first(error: BaseException) -> BaseException:
    """One of the errors that ended a group of tasks; the others say the same of other items."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
