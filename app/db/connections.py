"""A pool of the driver's own connections, for what is asked so often that a session costs too much.

No round trip asks whether a connection still lives, and none sets it up: whoever uses one finds
out, and takes the next.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg

from app.config import Settings
from app.db import arrays
from app.db.session import libpq_url
from app.errors import Overloaded

Connection = psycopg.AsyncConnection[Any]


class Connections:
    """At most `pool_size`, each in autocommit; `close` them in the end. Of one event loop.

    Whoever has taken a connection gives it back or drops it, once.
    """

    def __init__(self, settings: Settings, url: str, *, pool_size: int | None = None) -> None:
        arrays.register()
        self._url = libpq_url(url)
        self._timeout_seconds = settings.database_timeout_seconds
        self._size = pool_size or settings.database_pool_size
        self._places = asyncio.Semaphore(self._size)
        self._idle: deque[Connection] = deque()
        self._closed = False
        self.in_use = 0

    async def take(self) -> tuple[Connection, bool]:
        """A connection, and whether it was used before: then it may be dead by now.

        Raises the driver's errors, and Overloaded when none is free in time.
        """
        if self._places.locked():
            await self._wait()
        else:
            await self._places.acquire()
        self.in_use += 1
        if self._idle:
            return self._idle.pop(), True
        try:
            return await self._connect(), False
        except BaseException:
            self._leave()
            raise

    async def take_idle(self, which: Callable[[Connection], bool]) -> list[Connection]:
        """Those that nobody uses and for which `which` is true."""
        chosen = [connection for connection in self._idle if which(connection)]
        for connection in chosen:
            self._idle.remove(connection)
            await self._places.acquire()  # there is one for each of them
            self.in_use += 1
        return chosen

    async def give(self, connection: Connection) -> None:
        """Give back one in which no transaction is open."""
        if self._closed or connection.closed:
            await connection.close()
        else:
            self._idle.append(connection)
        self._leave()

    async def drop(self, connection: Connection) -> None:
        """Give back one of which nobody knows what it would say next."""
        await connection.close()
        self._leave()

    async def close(self) -> None:
        """Close those that nobody uses; the others as they are given back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded("All database connections are in use.") from None

    def _leave(self) -> None:
        self.in_use -= 1
        self._places.release()

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=max(1, round(self._timeout_seconds)),
            application_name="footnote",
        )
