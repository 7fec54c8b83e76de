"""Which databases are refused, with what to do, and how one is migrated."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.db import schema
from app.db.schema import check_database, migrate, ready_database
from app.db.session import open_engine
from app.errors import DatabaseUnavailable, DatabaseUnsuitable

ServerUrl = Callable[[str], str]


@pytest.fixture
def empty_url(server_url: ServerUrl) -> Iterator[str]:
    name = f"schema_{uuid4().hex}"
    with psycopg.connect(server_url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield server_url(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


def revision(url: str) -> str | None:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT max(version_num) FROM alembic_version").fetchone()
    assert row is not None
    return row[0]


async def refusal(engine: AsyncEngine) -> DatabaseUnsuitable:
    with pytest.raises(DatabaseUnsuitable) as refused:
        await check_database(engine)
    return refused.value


async def test_a_migrated_database_is_accepted(engine: AsyncEngine) -> None:
    await check_database(engine)


async def test_an_empty_database_wants_migrating(settings: Settings, empty_url: str) -> None:
    engine = open_engine(settings, empty_url)
    refused = await refusal(engine)
    await engine.dispose()
    assert "no tables" in refused.detail
    assert "footnote migrate" in refused.hint


async def test_an_older_schema_wants_migrating(
    engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema._scripts(), "get_current_head", lambda: "9999")
    refused = await refusal(engine)
    assert "older" in refused.detail
    assert "footnote migrate" in refused.hint


async def test_a_newer_schema_is_refused_and_left_alone(
    engine: AsyncEngine, database_url: str
) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = 'from_tomorrow'")
    refused = await refusal(engine)
    assert "newer" in refused.detail
    assert "Upgrade Footnote" in refused.hint
    with pytest.raises(DatabaseUnsuitable, match="newer"):
        migrate(database_url)
    assert revision(database_url) == "from_tomorrow"


async def test_an_old_pgvector_is_refused(engine: AsyncEngine, database_url: str) -> None:
    # What the catalogue of a server with the old release says.
    execute(database_url, "UPDATE pg_extension SET extversion = '0.8.3' WHERE extname = 'vector'")
    refused = await refusal(engine)
    assert "0.8.3" in refused.detail
    assert "0.8.4" in refused.detail
    assert "ALTER EXTENSION vector UPDATE" in refused.hint


async def test_two_digit_versions_are_not_compared_as_text(
    engine: AsyncEngine, database_url: str
) -> None:
    execute(database_url, "UPDATE pg_extension SET extversion = '0.10.0' WHERE extname = 'vector'")
    await check_database(engine)


async def test_a_server_that_is_away(settings: Settings, tmp_path: Path) -> None:
    url = f"postgresql://footnote@/footnote?host={tmp_path}"
    engine = open_engine(settings, url)
    with pytest.raises(DatabaseUnavailable) as away:
        await check_database(engine)
    await engine.dispose()
    assert "FOOTNOTE_DATABASE_URL" in away.value.hint
    with (
        pytest.raises(DatabaseUnavailable),
        ready_database(settings.model_copy(update={"database_url": SecretStr(url)})),
    ):
        pass


def test_migrate_works_from_any_folder_and_twice(empty_url: str, tmp_path: Path) -> None:
    program = "import sys; from app.db.schema import migrate; migrate(sys.argv[1])"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, empty_url], cwd=tmp_path, check=True)
    assert revision(empty_url) == schema._scripts().get_current_head()


def test_several_may_migrate_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(migrate, empty_url) for _ in range(3)]:
            done.result(timeout=60)
    assert revision(empty_url) == schema._scripts().get_current_head()


def test_a_migration_waits_for_locks_by_trying_again(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MIGRATION_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", "100ms")
    execute(empty_url, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    tried = threading.Event()
    monkeypatch.setattr(schema.log, "warning", lambda *_args, **_kwargs: tried.set())
    with psycopg.connect(empty_url) as blocker, ThreadPoolExecutor(1) as pool:
        blocker.execute("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
        migrating = pool.submit(migrate, empty_url)
        assert tried.wait(30)
        blocker.rollback()
        migrating.result(timeout=60)
    assert revision(empty_url) == schema._scripts().get_current_head()
