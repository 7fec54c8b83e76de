"""Single statements, each a transaction of its own: what most requests ask besides their search.

On connections of their own, close to the driver, because a session around a statement takes several
round trips and ten times as long as the statement itself.
"""

import asyncio
from collections.abc import Hashable, Mapping
from typing import Any

import psycopg

from app.config import Settings
from app.db.connections import Connection, Connections
from app.db.transactions import translated_errors

Rows = list[tuple[Any, ...]]


class Statements:
    """Connects when it is first asked; `close` it in the end. Belongs to one event loop."""

    def __init__(self, settings: Settings, url: str, *, pool_size: int | None = None) -> None:
        self._connections = Connections(settings, url, pool_size=pool_size)
        self._reading: dict[Hashable, asyncio.Task[Rows]] = {}
        self._next: dict[Hashable, asyncio.Task[Rows]] = {}

    async def fetch(self, statement: str, parameters: Mapping[str, Any]) -> Rows:
        """All rows of a statement with psycopg's `%(name)s` parameters.

        Done a second time where the connection was lost, so twice must be the same as once. Raises
        DatabaseUnavailable, Overloaded and StorageFull in place of the driver's errors.
        """
        with translated_errors():
            while True:
                connection, was_used = await self._connections.take()
                try:
                    return await self._execute(connection, statement, parameters)
                except psycopg.OperationalError:
                    # Of an old connection this says that the server was restarted.
                    if not (was_used and connection.closed):
                        raise

    async def fetch_together(self, statement: str, parameters: Mapping[str, Any]) -> Rows:
        """The same for a statement that only reads, once for all who ask while one is running.

        Nobody gets what was read before he asked. Nobody can end it for the others.
        """
        asked: Hashable = (statement, tuple(parameters.items()))
        waiting = self._next.get(asked)
        if waiting is None:
            before = self._reading.get(asked)
            waiting = asyncio.create_task(self._read(asked, before, statement, parameters))
            # Seen, also when nobody waits any more.
            waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._next[asked] = waiting
        return await asyncio.shield(waiting)

    async def close(self) -> None:
        reading = {*self._reading.values(), *self._next.values()}
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        await self._connections.close()

    async def _read(
        self,
        asked: Hashable,
        before: "asyncio.Task[Rows] | None",
        statement: str,
        parameters: Mapping[str, Any],
    ) -> Rows:
        if before is not None:
            await asyncio.wait({before})
        own = self._reading[asked] = self._next.pop(asked)
        try:
            return await self.fetch(statement, parameters)
        finally:
            if self._reading.get(asked) is own:
                del self._reading[asked]

    async def _execute(
        self, connection: Connection, statement: str, parameters: Mapping[str, Any]
    ) -> Rows:
        try:
            async with connection.cursor(binary=True) as cursor:
                await cursor.execute(statement.encode(), parameters)
                rows = await cursor.fetchall() if cursor.description else []
        except psycopg.Error:
            await self._connections.give(connection)
            raise
        except BaseException:
            # Given up in the middle.
            await self._connections.drop(connection)
            raise
        await self._connections.give(connection)
        return rows
