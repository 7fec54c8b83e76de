"""Reading at one point in time, close to the driver: a search is a handful of such reads.

Searches have connections of their own, which are spared everything that a search can do without:
no round trip asks whether a connection still lives, and none sets it up.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import Settings
from app.db import row_security
from app.db.session import open_engine
from app.db.transactions import translated_errors

log = structlog.get_logger(__name__)


class Snapshot:
    """Sees the database as it was at its first read, whatever is committed meanwhile."""

    def __init__(self, driver: psycopg.AsyncConnection[Any], *, guarded: bool = False) -> None:
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
        self.engine = open_engine(settings, url, pool_size=pool_size, for_snapshots=True)
        self._guarded = settings.row_level_security == "on"
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self, tenant_id: int, settings: str = "") -> AsyncGenerator[Snapshot]:
        """A new snapshot of what this tenant has; `settings` are `SET LOCAL` statements for it.

        Raises DatabaseUnavailable and Overloaded in place of the driver's errors.
        """
        reader = row_security.enter(tenant_id) if self._guarded else ""
        with translated_errors():
            connection, driver = await self._begin(reader + settings)
            try:
                yield Snapshot(driver, guarded=self._guarded)
            finally:
                self._end(connection)

    async def close(self) -> None:
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self.engine.dispose()

    def _end(self, connection: AsyncConnection) -> None:
        """End the transaction and give the connection back; nobody waits for that round trip."""
        ending = asyncio.create_task(connection.close())
        self._ending.add(ending)
        ending.add_done_callback(self._ended)

    def _ended(self, ending: "asyncio.Task[None]") -> None:
        self._ending.discard(ending)
        if not ending.cancelled() and (error := ending.exception()) is not None:
            log.info("snapshot_not_ended", reason=str(error))

    async def _begin(self, settings: str) -> tuple[AsyncConnection, psycopg.AsyncConnection[Any]]:
        while True:
            connection = await self.engine.connect()
            pooled = await connection.get_raw_connection()
            driver: Any = pooled.driver_connection
            was_used = _USED in pooled.info
            try:
                # Several statements in one message: they cannot be prepared, nor have parameters.
                await driver.execute(_BEGIN + settings, prepare=False)
            except BaseException as error:
                await connection.invalidate()
                await connection.close()
                # Of an old connection this says that the server was restarted; try the next one.
                if not (was_used and isinstance(error, psycopg.OperationalError)):
                    raise
            else:
                pooled.info[_USED] = True
                return connection, driver


_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
_USED = "footnote_used"
