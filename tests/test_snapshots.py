"""Snapshots begin their transactions ahead, and are none the older for it."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.db import snapshot as snapshots_module
from app.db.snapshot import Snapshots
from app.db.vectors import register_model
from tests.passages import add_collection
from tests.searching import url_of

NAMES = "SELECT name FROM collections ORDER BY name"
TENANT = "SELECT current_setting('footnote.tenant_id')"
STATES = """
    SELECT state FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture
async def snapshots(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Snapshots]:
    opened = Snapshots(settings, url_of(engine), pool_size=2)
    yield opened
    await opened.close()


async def read(snapshots: Snapshots, statement: str, tenant_id: int = 1) -> list[object]:
    async with snapshots.open(tenant_id) as snapshot:
        rows = [row[0] for row in await snapshot.fetch(statement)]
    await settled(snapshots)
    return rows


async def settled(snapshots: Snapshots) -> None:
    while snapshots.connections.in_use:
        await asyncio.sleep(0.001)


async def states(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set((await connection.execute(text(STATES))).scalars())


async def test_what_is_committed_until_it_reads_is_seen_and_nothing_later(
    snapshots: Snapshots, engine: AsyncEngine
) -> None:
    before = await read(snapshots, NAMES)
    assert await states(engine) == {"idle in transaction"}
    async with engine.begin() as connection:
        model_id = await register_model(connection, name="m", digest="d", dimensions=3)
        await add_collection(connection, "newest", model_id)
    async with snapshots.open(1) as snapshot:
        assert {row[0] for row in await snapshot.fetch(NAMES)} == {*before, "newest"}
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM collections WHERE name = 'newest'"))
        assert {row[0] for row in await snapshot.fetch(NAMES)} == {*before, "newest"}
    await settled(snapshots)
    assert await read(snapshots, NAMES) == before


async def test_what_is_read_again_and_again_stays_prepared(snapshots: Snapshots) -> None:
    prepared = "SELECT count(*) FROM pg_prepared_statements"
    for _ in range(10):
        await read(snapshots, NAMES)
    assert (await read(snapshots, prepared))[0] == 1
    with pytest.raises(psycopg.errors.DivisionByZero):
        await read(snapshots, "SELECT 1 / 0")
    await settled(snapshots)
    assert (await read(snapshots, prepared))[0] == 0


async def test_an_error_leaves_nothing_that_was_read_before(
    snapshots: Snapshots, engine: AsyncEngine
) -> None:
    for _ in range(10):
        before = await read(snapshots, NAMES)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await read(snapshots, "SELECT 1 / 0")
    await settled(snapshots)
    async with engine.begin() as connection:
        model_id = await register_model(connection, name="m", digest="d", dimensions=3)
        await add_collection(connection, "newest", model_id)
    assert set(await read(snapshots, NAMES)) == {*before, "newest"}


async def test_every_tenant_has_its_own_transaction(snapshots: Snapshots) -> None:
    for tenant_id in (1, 2, 2, 1, 3):
        assert await read(snapshots, TENANT, tenant_id) == [str(tenant_id)]


async def test_one_that_nobody_wants_is_ended(
    snapshots: Snapshots, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots_module, "AHEAD_SECONDS", 0.1)
    await asyncio.gather(*(read(snapshots, NAMES) for _ in range(2)))
    assert await states(engine) == {"idle in transaction"}
    async with asyncio.timeout(10):
        while await states(engine) != {"idle"}:
            await asyncio.sleep(0.05)
    assert await read(snapshots, TENANT) == ["1"]


async def test_a_server_that_was_restarted_meanwhile_is_not_noticed(
    snapshots: Snapshots, engine: AsyncEngine
) -> None:
    before = await read(snapshots, NAMES)
    async with engine.connect() as connection:
        ended = f"SELECT pg_terminate_backend(pid, 5000) FROM ({STATES.replace('state', 'pid')})"  # noqa: S608
        await connection.execute(text(ended))
    assert await read(snapshots, NAMES) == before


async def test_closing_leaves_no_transaction_and_no_connection(
    engine: AsyncEngine, settings: Settings
) -> None:
    opened = Snapshots(settings, url_of(engine), pool_size=2)
    async with opened.open(1) as snapshot:
        await snapshot.fetch(NAMES)
    await opened.close()
    async with asyncio.timeout(10):
        while await states(engine):
            await asyncio.sleep(0.05)
