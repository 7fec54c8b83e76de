"""What the database's refusals mean to whoever asked."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

from app.db.transactions import translated_errors, trouble_of
from app.errors import Overloaded


@pytest.fixture
def crowded(server_url: Callable[[str], str]) -> Iterator[Callable[[], psycopg.Connection]]:
    """Connects as a role that may have no connection."""
    url = server_url("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
        try:
            yield lambda: psycopg.connect(url, user="crowded")
        finally:
            connection.execute("DROP ROLE crowded")


def test_a_server_that_has_no_connection_left_is_busy(
    crowded: Callable[[], psycopg.Connection],
) -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        crowded()
    assert trouble_of(caught.value) == "busy"
    with pytest.raises(Overloaded), translated_errors():
        crowded()


def test_a_server_that_is_not_there_is_away() -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect("postgresql://127.0.0.1:1/none", connect_timeout=2)
    assert trouble_of(caught.value) == "away"
