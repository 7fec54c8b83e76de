"""Bringing a collection in step with files and folders, on one machine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

import structlog

from app.db.collections import check_name
from app.db.documents import SourceState
from app.errors import DocumentRejected, FootnoteError
from app.telemetry import DOCUMENTS
from ingestion.books import Books, open_books, source_of
from ingestion.pipeline import Tools
from ingestion.sources.files import (
    FileContent,
    FileUnreadable,
    FoundFile,
    Selection,
    Walk,
    find_files,
    path_of,
    printable,
    read_file,
    too_large,
)
from ingestion.writing import Superseded

log = structlog.get_logger(__name__)

DOCUMENTS_IN_FLIGHT = 64
BYTES_IN_FLIGHT = 64 * 1024 * 1024
ATTEMPTS = 3

Outcome = Literal["added", "updated", "unchanged", "deleted", "failed"]


@dataclass(frozen=True, slots=True)
class Order:
    """What to ingest, and how. A rehearsal only finds out what would be done."""

    paths: Sequence[Path]
    collection: str
    selection: Selection = field(default_factory=Selection)
    retry_failed: bool = False
    is_rehearsal: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    path: str
    reason: str


@dataclass(slots=True)
class Report:
    """What a run did, or what a rehearsal found that a run would do."""

    counts: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(get_args(Outcome), 0))
    failures: list[Failure] = field(default_factory=list[Failure])
    took_seconds: float = 0.0

    @property
    def has_changes(self) -> bool:
        return any(self.counts[outcome] for outcome in ("added", "updated", "deleted"))

    def count(self, outcome: Outcome) -> None:
        self.counts[outcome] += 1
        DOCUMENTS.labels(outcome).inc()

    def fail(self, path: Path, reason: str) -> None:
        self.failures.append(Failure(printable(path), reason))
        self.count("failed")


class Progress(Protocol):
    """Whoever shows how far a run is."""

    def begin(self, files_count: int, bytes_count: int) -> None: ...

    def advance(self, file: FoundFile) -> None: ...


async def sync(order: Order, tools: Tools, progress: Progress) -> Report:
    """Ingest what is new or changed, delete what is gone, leave the rest alone.

    Every document is a transaction of its own, so a run that is cut short loses nothing: the next
    one goes on from there. Raises OSError for a path that cannot be read at all, and InvalidInput,
    Conflict, Unavailable or StorageFull.
    """
    started = time.monotonic()
    check_name(order.collection)
    walk = await asyncio.to_thread(find_files, order.paths, order.selection)
    books = await open_books(order.collection, tools, is_rehearsal=order.is_rehearsal)
    run = _Run(order, tools, walk, books, await books.known(order.paths))
    await run.take_files(progress)
    await run.drop_lost()
    if run.report.has_changes:
        await books.tidy()
    run.report.failures.sort(key=lambda failure: failure.path)
    run.report.took_seconds = time.monotonic() - started
    return run.report


class _Run:
    """One comparison of what there is with what is known, and what follows from it."""

    def __init__(
        self, order: Order, tools: Tools, walk: Walk, books: Books, known: dict[str, SourceState]
    ) -> None:
        self.report = Report()
        self._order = order
        self._tools = tools
        self._walk = walk
        self._books = books
        self._known = known
        self._room = _Room(BYTES_IN_FLIGHT)

    async def take_files(self, progress: Progress) -> None:
        for missing in self._walk.unreadable:
            if not missing.is_folder:
                file = FoundFile(missing.path, missing.root, 0, None)
                await self._books.fail(source_of(file, None), missing.reason, None)
            self.report.fail(missing.path, missing.reason)
        progress.begin(len(self._walk.files), sum(file.size_bytes for file in self._walk.files))
        remaining = iter(self._walk.files)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(DOCUMENTS_IN_FLIGHT):
                    group.create_task(self._take_each(remaining, progress))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        await self._books.write_notes()

    async def drop_lost(self) -> None:
        """Delete the documents whose files are gone from the folders that they came from."""
        present = {file.uri for file in self._walk.files}
        present.update(missing.path.as_uri() for missing in self._walk.unreadable)
        for uri, state in self._known.items():
            came_from_folder = state.root is not None
            if (
                came_from_folder
                and uri not in present
                and self._walk.has_lost(path_of(uri), self._order.selection)
            ):
                await self._books.delete(state.id)
                self.report.count("deleted")

    async def _take_each(self, remaining: Iterator[FoundFile], progress: Progress) -> None:
        for file in remaining:
            async with self._room.taken(file.size_bytes):
                await self._take(file)
            progress.advance(file)

    async def _take(self, file: FoundFile) -> None:
        """Judge by what is cheapest: the file's status, then its content; only then work."""
        state = self._known.get(file.uri)
        if state is not None and self._looks_as_noted(file, state):
            if state.status == "ready":
                return await self._leave(file, state, file.changed_ns)
            if state.status == "failed" and not self._order.retry_failed:
                return self.report.fail(file.path, state.reason or "")
        found, reason, is_final = None, "", False
        for _ in range(ATTEMPTS):
            try:
                found = await self._read(file)
                return await self._take_content(file, found)
            except FileUnreadable as error:
                reason = error.reason
                break
            except DocumentRejected as error:
                reason, is_final = error.reason, not error.retryable
                if is_final:
                    break
            except Superseded:
                reason = "it was changed by others while it was being ingested"
                self._known |= await self._books.known([file.path])
            except FootnoteError:
                raise
            except Exception as error:
                log.exception("document_failed", path=printable(file.path))
                reason = f"it could not be processed (internal error: {type(error).__name__})"
                break
        await self._books.fail(
            source_of(file, self._known.get(file.uri), found),
            reason,
            self._books.pipeline_digest if is_final else None,
        )
        return self.report.fail(file.path, reason)

    async def _take_content(self, file: FoundFile, found: FileContent) -> None:
        state = self._known.get(file.uri)
        if state is None or not state.serves(found.sha256, self._books.pipeline_digest):
            self.report.count(await self._books.write(source_of(file, state, found)))
        elif state.status == "ready":
            await self._leave(file, state, found.changed_ns)
        else:
            await self._books.restore(source_of(file, state, found))
            self.report.count("updated")

    async def _read(self, file: FoundFile) -> FileContent:
        max_bytes = self._tools.settings.max_upload_bytes
        if file.size_bytes > max_bytes:
            raise FileUnreadable(too_large(max_bytes))
        return await asyncio.to_thread(
            read_file, file.path, max_bytes=max_bytes, now_ns=time.time_ns()
        )

    async def _leave(self, file: FoundFile, state: SourceState, changed_ns: int | None) -> None:
        root = file.root.as_uri() if file.root else None
        if (changed_ns, root) != (state.modified_ns, state.root):
            await self._books.note(state.id, changed_ns, root)
        self.report.count("unchanged")

    def _looks_as_noted(self, file: FoundFile, state: SourceState) -> bool:
        return (
            state.modified_ns == file.changed_ns
            and state.size_bytes == file.size_bytes
            and state.pipeline_digest == self._books.pipeline_digest
        )


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


def _first(error: BaseException) -> BaseException:
    """One of the errors that ended a group of tasks; the others say the same of other files."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
