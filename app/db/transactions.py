"""Transactions that survive what databases do: deadlocks, restarts, full disks.

The only place that knows which database errors mean what.
"""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Literal, TypeVar

import psycopg
import structlog
from procrastinate.exceptions import ConnectorException
from psycopg_pool import PoolTimeout
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import DatabaseUnavailable, Overloaded, StorageFull

log = structlog.get_logger(__name__)

Result = TypeVar("Result")
Begin = Callable[[], AbstractAsyncContextManager[AsyncConnection]]

Trouble = Literal["away", "busy", "collision", "full"]

COLLISION_ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0

_COLLISIONS = frozenset({"40001", "40P01"})
_FULL = frozenset({"53100"})
_BUSY = frozenset({"53300"})
_NO_CONNECTION_LEFT = re.compile("too many clients|remaining connection slots|too many connections")
# Classes 08 (connection) and 57P (operator intervention); 58030 is an I/O error of the server, and
# 25P03 ends the transaction of a process that stood still.
_AWAY_PREFIXES = ("08", "57P", "58030", "25P03")


def trouble_of(error: BaseException) -> Trouble | None:
    """What a database error means to us; None when it is none, or a mistake of our own."""
    if isinstance(error, PoolTimeoutError):
        return "busy"
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        wrapped = error.__cause__
        return trouble_of(wrapped) if isinstance(wrapped, psycopg.Error) else None
    state = cause.sqlstate
    if state is None:
        if not isinstance(cause, psycopg.OperationalError):
            return None
        # Refused, reset, or gone in the middle. What refuses a connection has no code, only words.
        return "busy" if _NO_CONNECTION_LEFT.search(str(cause)) else "away"
    if state in _COLLISIONS:
        return "collision"
    if state in _FULL:
        return "full"
    if state in _BUSY:
        return "busy"
    return "away" if state.startswith(_AWAY_PREFIXES) else None


@contextmanager
def translated_errors() -> Generator[None]:
    """Raise DatabaseUnavailable, Overloaded or StorageFull in place of the driver's errors."""
    try:
        yield
    except Exception as error:
        # The driver's own words name hosts and users; they stay in the cause.
        match trouble_of(error):
            case "away":
                raise DatabaseUnavailable from error
            case "collision":
                raise DatabaseUnavailable("The database is too busy to finish this.") from error
            case "busy":
                raise Overloaded("All database connections are in use.") from error
            case "full":
                raise StorageFull("The database has no space left.") from error
            case None:
                raise


@contextmanager
def translated_queue_errors() -> Generator[None]:
    """The same for what the queue's own pool and procrastinate raise."""
    try:
        with translated_errors():
            yield
    except (ConnectorException, PoolTimeout) as error:
        raise DatabaseUnavailable from error


async def in_transaction(
    begin: Begin,
    work: Callable[[AsyncConnection], Awaitable[Result]],
    *,
    patience_seconds: float = 0.0,
) -> Result:
    """Do `work` in one transaction, again from the start if it collides with another one.

    While the database is away it is tried again for `patience_seconds`. A connection lost at
    COMMIT leaves open whether the work was done, so work that is given patience must find out by
    itself that it was done already. Raises what `translated_errors` raises.
    """
    deadline = time.monotonic() + patience_seconds
    attempt = 0
    with translated_errors():
        while True:
            attempt += 1
            try:
                async with begin() as connection:
                    return await work(connection)
            except Exception as error:
                trouble = trouble_of(error)
                may_repeat = (trouble == "collision" and attempt < COLLISION_ATTEMPTS) or (
                    trouble in ("away", "busy") and time.monotonic() < deadline
                )
                if not may_repeat:
                    raise
                log.info("transaction_repeated", trouble=trouble, attempt=attempt)
            pause_seconds = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1))  # noqa: S311 - not a secret
