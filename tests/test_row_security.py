"""The database keeps tenants apart by itself, whatever a search asks it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db import row_security
from app.db import snapshot as snapshot_module
from app.db.row_security import GUARDED, READER, check_reader
from app.db.schema import migrate
from app.db.session import open_engine
from app.db.snapshot import Snapshots
from app.errors import DatabaseUnsuitable
from app.search.scope import Scope
from tests.conftest import migrate as migrate_to
from tests.passages import add_tenant
from tests.searching import Index, open_index

TABLES = [*GUARDED, "embeddings_m1"]
SOME_TOKENS = """
    INSERT INTO token_vectors (chunk_id, model_id, tenant_id, collection_id, version, width, signs)
    SELECT chunk_id, model_id, tenant_id, collection_id, 1, 1, '\\x00' FROM embeddings
"""


@pytest.fixture
async def index(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Index]:
    """A passage of tenant 1, and two of tenant 2."""
    async with open_index(engine, settings, pool_size=1) as opened:
        async with engine.begin() as connection:
            await add_tenant(connection, 2)
        await opened.fill(["travel ours"])
        await opened.fill(["travel theirs", "travel secret"], tenant_id=2)
        async with engine.begin() as connection:
            await connection.execute(text(SOME_TOKENS))
        yield opened


async def counts(snapshots: Snapshots, tenant_id: int) -> dict[str, int]:
    async with snapshots.open(tenant_id) as snapshot:
        return {
            table: (await snapshot.fetch(f"SELECT count(*) FROM {table}"))[0][0]  # noqa: S608
            for table in TABLES
        }


async def test_a_query_without_any_condition_sees_one_tenant(index: Index) -> None:
    assert await counts(index.snapshots, 1) == dict.fromkeys(TABLES, 1)
    assert await counts(index.snapshots, 2) == dict.fromkeys(TABLES, 2) | {"postings": 3}
    assert await counts(index.snapshots, 3) == dict.fromkeys(TABLES, 0)


async def test_a_broken_condition_finds_nothing_of_others(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scope, "visible_documents", property(lambda _self: "true"))
    monkeypatch.setattr("app.search.vector._OWN", "true")
    for mode in ("hybrid", "vector", "keyword"):
        assert await index.texts("travel", mode=mode) == ["travel ours"], mode
        filtered = await index.texts("travel", mode=mode, filters={"$media_type": "text/plain"})
        assert filtered == ["travel ours"], mode
        theirs = await index.texts("travel", mode=mode, caller=replace(LOCAL_OWNER, tenant_id=2))
        assert set(theirs) == {"travel theirs", "travel secret"}, mode


async def test_without_a_tenant_there_is_nothing(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_security, "enter", lambda _tenant_id: f"SET LOCAL ROLE {READER};")
    for _ in range(2):
        # Unset at first, and empty once another transaction of the connection has set it.
        assert await counts(index.snapshots, 1) == dict.fromkeys(TABLES, 0)
        monkeypatch.undo()
        await counts(index.snapshots, 1)
        monkeypatch.setattr(row_security, "enter", lambda _tenant_id: f"SET LOCAL ROLE {READER};")


async def test_a_connection_forgets_its_tenant_even_after_an_error(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_module, "AHEAD_SECONDS", 0.0)
    async with index.snapshots.open(2) as snapshot:
        assert len(await snapshot.fetch("SELECT FROM chunks")) == 2
        with pytest.raises(psycopg.errors.DivisionByZero):
            await snapshot.fetch("SELECT 1 / 0")
    await asyncio.sleep(0.3)  # nobody waits for the end of a transaction, nor for the one ahead
    connection, was_used = await index.snapshots.connections.take()
    assert was_used
    cursor = await connection.execute(
        "SELECT current_user, current_setting('footnote.tenant_id', true)"
    )
    [(user, tenant)] = await cursor.fetchall()
    await index.snapshots.connections.give(connection)
    assert user != READER
    assert not tenant
    assert await index.texts("travel") == ["travel ours"]


async def test_a_reader_writes_nothing_and_reads_no_keys_and_no_leaves(index: Index) -> None:
    for statement in (
        "DELETE FROM chunks",
        "SELECT * FROM api_keys",
        "SELECT * FROM embeddings_m1_0",
    ):
        with pytest.raises(
            (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
        ):
            async with index.snapshots.open(1) as snapshot:
                await snapshot.fetch(statement)


async def test_switched_off_the_conditions_alone_decide(index: Index, settings: Settings) -> None:
    url = index.engine.url.render_as_string(hide_password=False)
    trusting = settings.model_copy(update={"row_level_security": "off"})
    snapshots = Snapshots(trusting, url, pool_size=1)
    try:
        assert (await counts(snapshots, 1))["chunks"] == 3
    finally:
        await snapshots.close()


# --- users that may not make roles ----------------------------------------------------------------


async def test_a_user_who_may_not_become_the_reader_is_told_what_to_do(
    server_url: Callable[[str], str], settings: Settings
) -> None:
    name = f"owner_{uuid4().hex[:12]}"
    password = uuid4().hex
    with psycopg.connect(server_url("postgres"), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(name), sql.Literal(password)
            )
        )
        admin.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
        with psycopg.connect(server_url(name), autocommit=True) as inside:
            inside.execute("CREATE EXTENSION vector")
        url = server_url(name).replace("//footnote", f"//{name}:{password}", 1)
        migrate(url)
        engine = open_engine(settings, url)
        try:
            async with engine.connect() as connection:
                with pytest.raises(DatabaseUnsuitable) as refused:
                    await check_reader(connection)
            assert f'GRANT {READER} TO "{name}"' in refused.value.hint
            admin.execute(
                sql.SQL("GRANT {} TO {}").format(sql.Identifier(READER), sql.Identifier(name))
            )
            migrate(url)
            async with engine.connect() as connection:
                await check_reader(connection)
        finally:
            await engine.dispose()
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_the_migration_can_be_taken_back(database_url: str) -> None:
    def guarded() -> set[str]:
        with psycopg.connect(database_url) as connection:
            rows = connection.execute("SELECT relname FROM pg_class WHERE relrowsecurity")
            return {relname for (relname,) in rows}

    assert guarded() == set(GUARDED)
    migrate_to(database_url, "base")
    assert guarded() == set()
    migrate_to(database_url)
    assert guarded() == set(GUARDED)
