"""Reading at one point in time, close to the driver: a search is a handful of such reads.

Searches have connections of their own; see `app/db/connections.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import structlog

from app.config import Settings
from app.db import row_security
from app.db.connections import Connection, Connections
from app.db.transactions import translated_errors

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


class Snapshots:
    """A pool of connections that only read; `close` it in the end."""

    def __init__(self, settings: Settings, url: str, *, pool_size: int | None = None) -> None:
        self.connections = Connections(settings, url, pool_size=pool_size)
        self._guarded = settings.row_level_security == "on"
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self, tenant_id: int, settings: str = "") -> AsyncGenerator[Snapshot]:
        """A new snapshot of what this tenant has; `settings` are `SET LOCAL` statements for it.

        Raises DatabaseUnavailable and Overloaded in place of the driver's errors.
        """
        reader = row_security.enter(tenant_id) if self._guarded else ""
        with translated_errors():
            connection = await self._begin(reader + settings)
            try:
                yield Snapshot(connection, guarded=self._guarded)
            finally:
                self._end(connection)

    async def close(self) -> None:
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self.connections.close()

    def _end(self, connection: Connection) -> None:
        """End the transaction and give the connection back; nobody waits for that round trip."""
        ending = asyncio.create_task(self._roll_back(connection))
        self._ending.add(ending)
        ending.add_done_callback(self._ended)

    async def _roll_back(self, connection: Connection) -> None:
        try:
            await connection.rollback()
        except BaseException:
            await self.connections.drop(connection)
            raise
        await self.connections.give(connection)

    def _ended(self, ending: "asyncio.Task[None]") -> None:
        self._ending.discard(ending)
        if not ending.cancelled() and (error := ending.exception()) is not None:
            log.info("snapshot_not_ended", reason=str(error))

    async def _begin(self, settings: str) -> Connection:
        while True:
            connection, was_used = await self.connections.take()
            try:
                # Several statements in one message: they cannot be prepared, nor have parameters.
                await connection.execute((_BEGIN + settings).encode(), prepare=False)
            except BaseException as error:
                await self.connections.drop(connection)
                # Of an old connection this says that the server was restarted; try the next one.
                if not (was_used and isinstance(error, psycopg.OperationalError)):
                    raise
            else:
                return connection


_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
