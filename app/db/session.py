"""The engine, and the sessions that services get."""

from typing import Any

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from app.config import Settings
from app.db import arrays

Sessions = async_sessionmaker[AsyncSession]

WRITERS_IDLE_SECONDS = 30.0
"""For whoever writes documents; its own pauses inside a transaction are far shorter."""


def sqlalchemy_url(url: str) -> str:
    """The same database through psycopg 3, whatever driver the URL names or leaves out."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def libpq_url(url: str) -> str:
    """The same database for libpq itself (psycopg's own pools, pg_dump)."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def open_engine(
    settings: Settings,
    url: str,
    *,
    pool_size: int | None = None,
    idle_seconds: float | None = None,
    pre_ping: bool = True,
) -> AsyncEngine:
    """An engine whose waiting is bounded: connecting, and getting a connection.

    The server ends a transaction in
    which nothing is asked for `idle_seconds`: a process that stands still, or whose host is cut
    off, must not hold its locks against those who take over its work. Whoever repeats its
    transactions while the database is away need not try each connection before (`pre_ping`).
    """
    arrays.register()
    timeout_seconds = settings.database_timeout_seconds
    arguments: dict[str, Any] = {
        "connect_timeout": max(1, round(timeout_seconds)),
        "application_name": "footnote",
    }
    if idle_seconds is not None:
        given = make_url(url).query.get("options", "")
        arguments["options"] = (
            f"{given} -c idle_in_transaction_session_timeout={round(idle_seconds * 1000)}"
        )
    return create_async_engine(
        sqlalchemy_url(url),
        pool_size=pool_size or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=timeout_seconds,
        pool_pre_ping=pre_ping,
        connect_args=arguments,
    )


def open_sessions(engine: AsyncEngine) -> Sessions:
    return async_sessionmaker(engine, expire_on_commit=False)
