"""Whether a database fits this code, and the migrations that make it fit."""

import importlib.util
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.errors import InsufficientPrivilege, LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.db.row_security import MAKE_READER
from app.db.session import sqlalchemy_url
from app.db.supervision import kept_running
from app.errors import DatabaseUnavailable, DatabaseUnsuitable

log = structlog.get_logger(__name__)

MINIMUM_POSTGRES = 15
MINIMUM_PGVECTOR = (0, 8, 4)

CONNECT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT = "5s"
MIGRATION_ATTEMPTS = 6
MIGRATION_RETRY_SECONDS = 2.0
MIGRATION_TURN_SECONDS = 300.0
MIGRATION_TURN_POLL_SECONDS = 0.2
ADVISORY_LOCK = 0x_F007_4073


@contextmanager
def ready_database(settings: Settings) -> Generator[str]:
    """The URL of a database that fits this code, for as long as the block runs.

    Without FOOTNOTE_DATABASE_URL the embedded PostgreSQL is started and migrated, started again
    whenever it dies, and left when the block ends. A given database is only checked: its owner decides when it is migrated.
    Raises StartupError or DatabaseUnavailable.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        try:
            with _connection(url) as connection:
                _check(connection)
        except OperationalError as error:
            raise _away(error) from error
        yield url
        return
    server = EmbeddedPostgres(settings.home)
    with server as url, kept_running(server):
        migrate(url)
        yield url


async def check_database(engine: AsyncEngine) -> None:
    """Raise DatabaseUnsuitable, saying what to do, unless the database fits this code."""
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_check)
    except (OperationalError, TimeoutError) as error:
        raise _away(error) from error


def migrate(url: str) -> None:
    """Bring the schema to this code's revision; several processes may ask at once.

    A migration gives up when it cannot have its locks soon, so that it never makes the others
    queue behind it; it is tried again a few times. Raises DatabaseUnsuitable or
    DatabaseUnavailable.
    """
    for attempt in range(1, MIGRATION_ATTEMPTS + 1):
        try:
            with _connection(url) as connection, _turn(connection):
                _upgrade(connection)
            return
        except DBAPIError as error:
            if isinstance(error.orig, InsufficientPrivilege):
                raise DatabaseUnsuitable(
                    f"The database refused the migration: {error.orig.diag.message_primary}.",
                    hint="Run `footnote migrate` as the database's owner; an administrator may"
                    " have to run `CREATE EXTENSION vector` in it first.",
                ) from error
            if not isinstance(error.orig, LockNotAvailable):
                raise
            log.warning("migration_waits_for_locks", attempt=attempt)
            if attempt == MIGRATION_ATTEMPTS:
                raise DatabaseUnsuitable(
                    "The database is too busy to be migrated: a lock could not be had.",
                    hint="End long transactions, then run `footnote migrate` again.",
                ) from error
        time.sleep(MIGRATION_RETRY_SECONDS)


def _upgrade(connection: Connection) -> None:
    _require_pgvector(connection)
    revision = _revision(connection)
    connection.rollback()
    if revision == _scripts().get_current_head():
        # An administrator may have granted meanwhile what was missing.
        connection.execute(text(MAKE_READER))
        connection.commit()
        return
    _refuse_newer(revision)
    config = Config(attributes={"connection": connection, "lock_timeout": LOCK_TIMEOUT})
    config.set_main_option("script_location", str(_scripts_folder()).replace("%", "%%"))
    command.upgrade(config, "head")
    log.info("database_migrated", revision=_scripts().get_current_head())


# --- checks ---------------------------------------------------------------------------------------


def _check(connection: Connection) -> None:
    _require_pgvector(connection)
    revision = _revision(connection)
    head = _scripts().get_current_head()
    if revision == head:
        return
    _refuse_newer(revision)
    raise DatabaseUnsuitable(
        "The database has no tables of Footnote's yet."
        if revision is None
        else f"The database's schema is older ({revision}) than this Footnote needs ({head}).",
        hint="Run `footnote migrate`.",
    )


def _refuse_newer(revision: str | None) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseUnsuitable(
            f"The database's schema ({revision}) is newer than this Footnote.",
            hint="Upgrade Footnote to the version that migrated it, or restore an older backup.",
        )


def _require_pgvector(connection: Connection) -> None:
    """Check the server and its pgvector: the installed one, or the one that could be."""
    major = int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000
    if major < MINIMUM_POSTGRES:
        raise DatabaseUnsuitable(
            f"The server is PostgreSQL {major}; Footnote needs {MINIMUM_POSTGRES} or later.",
            hint="Upgrade PostgreSQL, or leave FOOTNOTE_DATABASE_URL unset to use the embedded one.",
        )
    installed, available = connection.execute(
        text(
            "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
            " (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')"
        )
    ).one()
    needed = ".".join(map(str, MINIMUM_PGVECTOR))
    effective: str | None = installed or available
    if effective is None:
        raise DatabaseUnsuitable(
            "The PostgreSQL server does not have the extension pgvector.",
            hint=f"Install pgvector {needed} or later on the server.",
        )
    if _version(effective) >= MINIMUM_PGVECTOR:
        return
    can_update = available is not None and _version(available) >= MINIMUM_PGVECTOR
    raise DatabaseUnsuitable(
        f"The database has pgvector {effective}; Footnote needs {needed} or later,"
        " because filtered searches in earlier ones can miss passages.",
        hint="Run `ALTER EXTENSION vector UPDATE` in the database as its owner."
        if can_update
        else f"Install pgvector {needed} or later on the server, then run"
        " `ALTER EXTENSION vector UPDATE` in the database.",
    )


def _version(words: str) -> tuple[int, ...]:
    return tuple(int(part) for part in words.split(".") if part.isdigit())


def _revision(connection: Connection) -> str | None:
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@cache
def _scripts_folder() -> Path:
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseUnsuitable(
            "Footnote's migrations are not installed.", hint="Install Footnote again."
        )
    return Path(spec.submodule_search_locations[0])


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_scripts_folder()))


# --- connections ----------------------------------------------------------------------------------


@contextmanager
def _connection(url: str) -> Generator[Connection]:
    engine: Engine = create_engine(
        sqlalchemy_url(url),
        poolclass=NullPool,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "footnote-migrate",
        },
    )
    try:
        connection = engine.connect()
    except OperationalError as error:
        raise _away(error) from error
    with connection:
        connection.execute(
            text("SELECT set_config('lock_timeout', :wait, false)"), {"wait": LOCK_TIMEOUT}
        )
        connection.commit()
        yield connection


@contextmanager
def _turn(connection: Connection) -> Generator[None]:
    """One migration at a time.

    Asked for by polling: a statement that waits would hold a snapshot, and an index that is built
    concurrently waits for all snapshots.
    """
    deadline = time.monotonic() + MIGRATION_TURN_SECONDS
    lock = {"lock": ADVISORY_LOCK}
    while not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), lock).scalar():
        connection.rollback()
        if time.monotonic() >= deadline:
            raise DatabaseUnsuitable(
                "Another process has been migrating the database for"
                f" {MIGRATION_TURN_SECONDS:.0f} seconds.",
                hint="Wait for it, then start again.",
            )
        time.sleep(MIGRATION_TURN_POLL_SECONDS)
    try:
        yield
    finally:
        # The session's lock goes with the connection, which NullPool closes, if this fails.
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), lock)
        connection.rollback()


def _away(error: Exception) -> DatabaseUnavailable:
    reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return DatabaseUnavailable(
        f"The database cannot be reached: {' '.join(reason.split())}",
        hint="Check FOOTNOTE_DATABASE_URL and that the server runs.",
    )
