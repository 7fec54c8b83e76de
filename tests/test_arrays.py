from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.db import arrays


@pytest.fixture(scope="module")
def connection(server_url: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    arrays.register()
    with psycopg.connect(server_url("postgres")) as opened:
        yield opened


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers_arrive_as_they_are(connection: psycopg.Connection, items: list[int]) -> None:
    assert sent(connection, np.array(items, np.int64)) == ("bigint[]", items)


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_reals_arrive_as_they_are(connection: psycopg.Connection, items: list[float]) -> None:
    assert sent(connection, np.array(items, np.float32)) == ("real[]", items)


def sent(connection: psycopg.Connection, array: NDArray[np.generic]) -> tuple[str, list[object]]:
    cursor = connection.cursor(binary=True)
    row = cursor.execute("SELECT pg_typeof(%(a)s)::text, %(a)s", {"a": array}).fetchone()
    assert row is not None
    return row


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_texts_arrive_as_they_are(connection: psycopg.Connection, items: list[str]) -> None:
    cursor = connection.cursor(binary=True)
    row = cursor.execute("SELECT %(a)s::text[]", {"a": arrays.Texts(items)}).fetchone()
    assert row == (items,)


def test_lists_are_copied_as_before(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TEMP TABLE listed (names text[])")
    with connection.cursor().copy("COPY listed FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text[]"])
        copy.write_row([["a", "b"]])
    assert connection.execute("SELECT names FROM listed").fetchone() == (["a", "b"],)


def test_a_vector_is_stored_from_an_array(connection: psycopg.Connection) -> None:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    vector = np.array([1, -0.5, 0.25], np.float32)
    for given_as in (vector, arrays.HalfVector(vector)):
        found = connection.execute("SELECT %s::halfvec(3)::text", (given_as,)).fetchone()
        assert found == ("[1,-0.5,0.25]",)
    connection.rollback()
