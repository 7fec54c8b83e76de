"""Single statements, each a transaction of its own: what most requests ask besides their search.

On connections of their own, close to the driver, because a session around a statement takes several
round trips and ten times as long as the statement itself.
"""

import asyncio
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import psycopg

from app.config import Settings
from app.db.session import libpq_url
from app.db.transactions import translated_errors
from app.errors import Overloaded

Rows = list[tuple[Any, ...]]
Connection = psycopg.AsyncConnection[Any]


class Statements:
    """Connects when it is first asked; `close` it in the end. Belongs to one event loop."""

    def __init__(self, settings: Settings, url: str, *, pool_size: int | None = None) -> None:
        self._url = libpq_url(url)
        self._timeout_seconds = settings.database_timeout_seconds
        self._places = asyncio.Semaphore(pool_size or settings.database_pool_size)
        self._idle: deque[Connection] = deque()
        self._reading: dict[Hashable, asyncio.Task[Rows]] = {}
        self._next: dict[Hashable, asyncio.Task[Rows]] = {}

    async def fetch(self, statement: str, parameters: Mapping[str, Any]) -> Rows:
        """All rows of a statement with psycopg's `%(name)s` parameters.

        Done a second time where the connection was lost, so twice must be the same as once. Raises
        DatabaseUnavailable, Overloaded and StorageFull in place of the driver's errors.
        """
        with translated_errors():
            await self._enter()
            try:
                # Of an old connection an error says that the server was restarted.
                while self._idle:
                    try:
                        return await self._execute(self._idle.pop(), statement, parameters)
                    except psycopg.OperationalError as error:
                        if error.sqlstate is not None and not error.sqlstate.startswith("57P"):
                            raise
                return await self._execute(await self._connect(), statement, parameters)
            finally:
                self._places.release()

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
        while self._idle:
            await self._idle.pop().close()

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

    async def _enter(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded("All database connections are in use.") from None

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=max(1, round(self._timeout_seconds)),
            application_name="footnote",
        )

    async def _execute(
        self, connection: Connection, statement: str, parameters: Mapping[str, Any]
    ) -> Rows:
        try:
            async with connection.cursor(binary=True) as cursor:
                await cursor.execute(statement.encode(), parameters)
                rows = await cursor.fetchall() if cursor.description else []
        except psycopg.Error:
            if connection.broken:
                await connection.close()
            else:
                self._idle.append(connection)
            raise
        except BaseException:  # given up in the middle: nobody knows what it would say next
            await connection.close()
            raise
        self._idle.append(connection)
        return rows
