"""Rows that are written behind what they tell of: later, in batches, and never in anybody's way.

When the database is away, rows wait in a bounded queue and are written when it is back. What finds
no room is lost, counted and logged.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.transactions import in_transaction
from app.errors import FootnoteError
from app.telemetry import ROWS_LOST

CAPACITY = 10_000
"""Rows that may wait: twenty seconds of a service that gives 500 known answers a second."""
BATCH = 200
GATHER_SECONDS = 0.5
"""So long rows that may wait do so for others: a transaction for each would cost more than it."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
CLOSE_SECONDS = 5.0
"""How long rows that wait may still be written when the service stops."""

log = structlog.get_logger(__name__)

Row = TypeVar("Row")

Store = Callable[[AsyncConnection, Sequence[Row]], Awaitable[None]]
"""Writes a batch in the connection's transaction; done twice it must be the same as once."""


class WriteBehind(Generic[Row]):
    """One task that stores what is put; `table` names it in logs and metrics."""

    def __init__(
        self, engine: AsyncEngine, store: Store[Row], *, table: str, capacity: int = CAPACITY
    ) -> None:
        self._engine = engine
        self._store = store
        self._table = table
        self._waiting: asyncio.Queue[Row] = asyncio.Queue(capacity)
        self._unwritten = 0
        self._hurry = asyncio.Event()
        self._writer = asyncio.create_task(self._write_on())

    def put(self, row: Row, *, may_wait: bool = False) -> None:
        """Never waits and never raises. `may_wait`: nobody asks for the row in the next moment."""
        try:
            self._waiting.put_nowait(row)
        except asyncio.QueueFull:
            self._lose(1, "too many rows wait for the database")
        else:
            self._unwritten += 1
        if not may_wait or self._waiting.qsize() >= BATCH:
            self._hurry.set()

    async def flush(self) -> None:
        """Until everything put so far is written."""
        self._hurry.set()
        await self._waiting.join()

    async def close(self) -> None:
        """Write what waits, if that can be done soon."""
        self._hurry.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._waiting.join()
        self._writer.cancel()
        await asyncio.wait({self._writer})
        if self._unwritten:
            self._lose(self._unwritten, "the service stopped")

    async def _write_on(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            if self._waiting.qsize() < BATCH:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GATHER_SECONDS):
                        await self._hurry.wait()
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            if self._waiting.empty():
                self._hurry.clear()
            await self._write(batch)
            self._unwritten -= len(batch)
            for _ in batch:
                self._waiting.task_done()

    async def _write(self, batch: Sequence[Row]) -> None:
        """Until it is written; what the database will never take is lost."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                await in_transaction(
                    self._engine.begin, lambda connection: self._store(connection, batch)
                )
                return
            except FootnoteError as error:
                log.warning("rows_wait", table=self._table, rows=len(batch), reason=error.detail)
            except Exception as error:
                log.exception("rows_refused", table=self._table)
                self._lose(len(batch), type(error).__name__)
                return
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * pause_seconds)

    def _lose(self, rows: int, reason: str) -> None:
        ROWS_LOST.labels(self._table).inc(rows)
        log.error("rows_lost", table=self._table, rows=rows, reason=reason)
