"""What every test may use: a real PostgreSQL with a migrated database, and the real model."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import structlog
from alembic import command
from alembic.config import Config
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.db.session import open_engine, sqlalchemy_url
from tests.doubles.ollama import OllamaDouble, running_ollama
from tests.redis_server import RedisServer, running_redis

for name in [name for name in os.environ if name.startswith("FOOTNOTE_")]:
    if not name.startswith("FOOTNOTE_LIVE_"):
        del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell starts its background jobs with interrupts ignored, and whatever the tests start would
# inherit that; with a handler of our own, a child begins with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
TEMPLATE = "footnote_template"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FOOTNOTE_HOME that lives as long as the session; exported models are kept in it.

    Test processes that run side by side export them once.
    """
    made = tmp_path_factory.mktemp("home")
    if "PYTEST_XDIST_WORKER" in os.environ:
        models = tmp_path_factory.getbasetemp().parent / "models"
        models.mkdir(exist_ok=True)
        (made / "models").symlink_to(models)
    return made


@pytest.fixture(scope="session")
def settings(home: Path) -> Settings:
    return Settings(home=home)


@pytest.fixture(scope="session")
def server_url() -> Iterator[Callable[[str], str]]:
    """A PostgreSQL of this test process; call it with a database's name for its URL.

    Its home is not one of pytest's folders, which another run closes to the server's account.
    """
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as started:
        address = make_url(started)

        def url(name: str) -> str:
            return address.set(database=name).render_as_string(hide_password=False)

        with psycopg.connect(url("postgres"), autocommit=True) as connection:
            # Nothing here has to outlive a crash.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        migrate(url(TEMPLATE))
        yield url


def migrate(url: str, revision: str = "head") -> None:
    config = Config(ROOT / "alembic.ini")
    engine = create_engine(sqlalchemy_url(url))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        if revision == "base":
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
    engine.dispose()


@contextmanager
def new_database(server_url: Callable[[str], str]) -> Iterator[str]:
    """The URL of a migrated database, which is dropped at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server_url("postgres"), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(TEMPLATE)
            )
        )
        yield server_url(name)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(server_url: Callable[[str], str]) -> Iterator[str]:
    """A migrated database of the test's own."""
    with new_database(server_url) as url:
        yield url


@pytest.fixture
async def engine(settings: Settings, database_url: str) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(settings, database_url)
    yield opened
    await opened.dispose()


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that is rolled back."""
    async with engine.connect() as opened:
        yield opened
        await opened.rollback()


@pytest.fixture(scope="session")
def embedder(settings: Settings) -> Any:
    """The bundled model, loaded once per test process."""
    from app.embedding.loading import open_embedder  # noqa: PLC0415 - heavy, and not every test

    return open_embedder(settings)


@pytest.fixture
def service_settings(settings: Settings, database_url: str) -> Settings:
    """Settings of a service on the test's own database, without Redis and without a model."""
    return settings.model_copy(update={"database_url": SecretStr(database_url)})


@pytest.fixture
def shared_embedder(embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services opened in the test share the model that is loaded already."""
    monkeypatch.setattr("app.resources.open_for_questions", lambda *_args, **_options: embedder)


@pytest.fixture
async def service(service_settings: Settings, shared_embedder: None) -> AsyncIterator[Any]:
    """The whole application, in this process; see tests/service.py."""
    from tests.service import open_service  # noqa: PLC0415 - heavy, and not every test

    async with open_service(service_settings) as opened:
        yield opened


@pytest.fixture
async def address(service: Any) -> AsyncIterator[str]:
    """Where the service answers over real connections."""
    from tests.service import over_sockets  # noqa: PLC0415 - heavy, and not every test

    async with over_sockets(service) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def ollama_process() -> Iterator[OllamaDouble]:
    with running_ollama() as running:
        yield running


@pytest.fixture
def double(ollama_process: OllamaDouble) -> OllamaDouble:
    """An Ollama server without faults, whose process the tests of a module share."""
    ollama_process.reset()
    return ollama_process


@pytest.fixture(scope="module")
def redis_process() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """An empty Redis, whose process the tests of a module share; they need `needs_redis`."""
    redis_process.client().flushall()
    return redis_process


@pytest.fixture
def cached_settings(
    service_settings: Settings, double: OllamaDouble, redis_server: RedisServer
) -> Settings:
    """A service with a language model, whose caches are in Redis."""
    update = {
        "ollama_urls": (double.url,),
        "redis_url": SecretStr(redis_server.url),
        # Beside other work this process may hear Redis late; what that does is tested apart.
        "redis_timeout_seconds": 2.0,
    }
    return service_settings.model_copy(update=update)


@pytest.fixture
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command sets up logging for its whole process, which here is the tests'."""
    configure = structlog.configure
    monkeypatch.setattr(
        structlog,
        "configure",
        lambda **options: configure(**{**options, "cache_logger_on_first_use": False}),
    )
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands: no settings but the test's, and no service at the usual address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOOTNOTE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FOOTNOTE_PORT", "9")  # nobody listens there
