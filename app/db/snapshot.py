"""Reading at one point in time, close to the driver: a search is a handful of such reads.

Searches have connections of their own; see `app/db/connections.py`.
"""

import asyncio
import select
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from app.config import Settings
from app.db import row_security
from app.db.connections import Connection, Connections
from app.db.transactions import translated_errors

AHEAD_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Snapshot:
    """Sees the database as it was at its first read, whatever is committed meanwhile."""

    def __init__(self, driver: Connection, *, guarded: bool = False) -> None:
        self._driver = driver
        self._guarded = guarded

    async def fetch(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a statement with psycopg's `%(name)s` parameters."""
        async with self._driver.cursor(binary=True) as cursor:
            await cursor.execute(statement.encode(), parameters)
            return await cursor.fetchall()

    async def fetch_as_owner(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """The same, where no policy keeps rows back; the statement's own conditions must."""
        if not self._guarded:
            return await self.fetch(statement, parameters)
        await self._driver.execute(row_security.LEAVE)
        rows = await self.fetch(statement, parameters)
        # After an error there is nothing to return to: the transaction takes no more statements.
        await self._driver.execute(row_security.RETURN)
        return rows


@dataclass(frozen=True, slots=True)
class _Begun:
    """A transaction that was begun ahead: `by` these statements, `at` a monotonic time in seconds."""

    by: str
    at: float


class Snapshots:
    """A pool of connections that only read; `close` it in the end.

    What ends one search also begins the next: its transaction, with its tenant and settings, is
    begun ahead. It has read nothing, so it sees what is committed until it reads, and keeps nothing
    from being cleaned up. One that nobody wants for AHEAD_SECONDS is ended.
    """

    def __init__(self, settings: Settings, url: str, *, pool_size: int | None = None) -> None:
        self.connections = Connections(settings, url, pool_size=pool_size)
        self._guarded = settings.row_level_security == "on"
        self._begun: WeakKeyDictionary[Connection, _Begun] = WeakKeyDictionary()
        self._ending: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    @asynccontextmanager
    async def open(self, tenant_id: int, settings: str = "") -> AsyncGenerator[Snapshot]:
        """A new snapshot of what this tenant has; `settings` are `SET LOCAL` statements for it.

        Raises DatabaseUnavailable and Overloaded in place of the driver's errors.
        """
        reader = row_security.enter(tenant_id) if self._guarded else ""
        begin = _BEGIN + reader + settings
        with translated_errors():
            connection = await self._take(begin)
            try:
                yield Snapshot(connection, guarded=self._guarded)
            finally:
                # Nobody waits for that round trip.
                self._in_background(self._end(connection, begin))

    async def close(self) -> None:
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)
        await self.connections.close()

    async def _take(self, begin: str) -> Connection:
        while True:
            connection, was_used = await self.connections.take()
            begun = self._begun.pop(connection, None)
            if was_used and _has_news(connection):
                # Only the end of the connection comes unasked: the server was restarted.
                await self.connections.drop(connection)
                continue
            if begun is not None and begun.by == begin:
                return connection
            try:
                await self._say(connection, begin if begun is None else _COMMIT + begin)
            except BaseException as error:
                await self.connections.drop(connection)
                # Of an old connection this too says that the server was restarted; try the next one.
                if not (was_used and isinstance(error, psycopg.OperationalError)):
                    raise
            else:
                return connection

    async def _end(self, connection: Connection, begin: str) -> None:
        if connection.info.transaction_status != TransactionStatus.INTRANS:
            # After an error the driver drops what it has prepared, by a statement that would read.
            await self._finish(connection)
            return
        try:
            await self._say(connection, _COMMIT + begin)
        except BaseException:
            await self.connections.drop(connection)
            raise
        self._begun[connection] = _Begun(begin, time.monotonic())
        await self.connections.give(connection)
        self._sweep_soon()

    def _sweep_soon(self) -> None:
        if self._sweep is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(
                AHEAD_SECONDS, lambda: self._in_background(self._end_unwanted())
            )

    async def _end_unwanted(self) -> None:
        self._sweep = None
        latest = time.monotonic() - AHEAD_SECONDS
        unwanted = await self.connections.take_idle(
            lambda one: one in self._begun and self._begun[one].at <= latest
        )
        for connection in unwanted:
            del self._begun[connection]
            self._in_background(self._finish(connection))
        if self._begun:
            self._sweep_soon()

    async def _finish(self, connection: Connection) -> None:
        is_whole = connection.info.transaction_status == TransactionStatus.INTRANS
        try:
            await (connection.commit() if is_whole else connection.rollback())
        except BaseException:
            await self.connections.drop(connection)
            raise
        await self.connections.give(connection)

    async def _say(self, connection: Connection, statements: str) -> None:
        # Several statements in one message: they cannot be prepared, nor have parameters.
        await connection.execute(statements.encode(), prepare=False)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, ending: "asyncio.Task[None]") -> None:
        self._ending.discard(ending)
        if not ending.cancelled() and (error := ending.exception()) is not None:
            log.info("snapshot_not_ended", reason=str(error))


def _has_news(connection: Connection) -> bool:
    """Whether there is something to read, though nothing was asked."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
_COMMIT = "COMMIT;"
"""Nothing was written. After a ROLLBACK the driver would drop all its prepared statements, and PostgreSQL plan
each of the next search anew."""
