"""Reading at one point in time, close to the driver: a search is a handful of such reads."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.transactions import translated_errors


class Snapshot:
    """Sees the database as it was at its first read, whatever is committed meanwhile."""

    def __init__(self, driver: AsyncConnection[Any]) -> None:
        self._driver = driver

    async def fetch(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a statement with psycopg's `%(name)s` parameters."""
        async with self._driver.cursor(binary=True) as cursor:
            await cursor.execute(statement.encode(), parameters)
            return await cursor.fetchall()


@asynccontextmanager
async def open_snapshot(engine: AsyncEngine, settings: str = "") -> AsyncGenerator[Snapshot]:
    """A read-only snapshot; `settings` are `SET LOCAL` statements for it.

    Raises DatabaseUnavailable and Overloaded in place of the driver's errors.
    """
    with translated_errors():
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            # Several statements in one message: they cannot be prepared, nor have parameters.
            await driver.execute(_BEGIN + settings, prepare=False)
            yield Snapshot(driver)


_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
