from collections.abc import Callable
from uuid import uuid4

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from app.db.session import sqlalchemy_url
from tests.conftest import ROOT, migrate


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
    return {name for (name,) in rows}


def test_up_down_and_up_again(server_url: Callable[[str], str]) -> None:
    name = f"migrations_{uuid4().hex}"
    with psycopg.connect(server_url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = server_url(name)
    migrate(url)
    complete = tables(url)
    assert {"documents", "chunks", "embeddings", "postings", "procrastinate_jobs"} <= complete
    migrate(url, "base")
    assert tables(url) == {"alembic_version"}
    migrate(url)
    assert tables(url) == complete


def test_models_and_migrations_agree(database_url: str) -> None:
    config = Config(ROOT / "alembic.ini")
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.check(config)
    engine.dispose()
