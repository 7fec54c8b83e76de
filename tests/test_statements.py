"""Single statements: shared by those who may share them, and on connections that may have died."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from app.config import Settings
from app.db.statements import Statements
from app.errors import Overloaded

COUNTED = "SELECT nextval('seen') FROM pg_sleep(0.05) WHERE %(one)s = 1"


@pytest.fixture
async def statements(settings: Settings, database_url: str) -> AsyncIterator[Statements]:
    impatient = settings.model_copy(update={"database_timeout_seconds": 0.2})
    opened = Statements(impatient, database_url, pool_size=2)
    await opened.fetch("CREATE SEQUENCE IF NOT EXISTS seen", {})
    yield opened
    await opened.close()


async def test_whoever_asks_meanwhile_shares_the_next_one(statements: Statements) -> None:
    """And gets nothing that was read before he asked."""

    async def ask() -> int:
        [(number,)] = await statements.fetch_together(COUNTED, {"one": 1})
        return number

    first = asyncio.create_task(ask())
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(ask()) for _ in range(5)]
    await asyncio.sleep(0)
    later[0].cancel()
    numbers = await asyncio.gather(*later[1:])
    assert set(numbers) == {await first + 1}
    assert await ask() == await first + 2


async def test_a_connection_that_died_is_not_noticed(
    statements: Statements, database_url: str
) -> None:
    [(pid,)] = await statements.fetch("SELECT pg_backend_pid()", {})
    await statements.fetch_together("SELECT %(one)s::int", {"one": 1})
    other = Statements(Settings(), database_url, pool_size=1)
    await other.fetch("SELECT pg_terminate_backend(%(pid)s)", {"pid": pid})
    await other.close()
    [(new,)] = await statements.fetch("SELECT pg_backend_pid()", {})
    assert new != pid


async def test_what_is_given_up_or_wrong_leaves_no_connection_in_use(
    statements: Statements,
) -> None:
    for _ in range(5):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await statements.fetch("SELECT 1 / 0", {})
        task = asyncio.create_task(statements.fetch("SELECT pg_sleep(5)", {}))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait({task})
    assert await statements.fetch("SELECT 1", {}) == [(1,)]


async def test_waiting_for_a_connection_ends(statements: Statements) -> None:
    busy = [asyncio.create_task(statements.fetch("SELECT pg_sleep(1)", {})) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await statements.fetch("SELECT 1", {})
    await asyncio.gather(*busy)
