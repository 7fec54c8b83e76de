"""Rows that may wait do so for others, and never when there are enough of them or one is urgent."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.db import write_behind
from app.db.write_behind import BATCH, WriteBehind


class Engine:
    """Begins transactions on nothing."""

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[None]:
        yield


@pytest.fixture
async def written(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Any, list[int]]]:
    """A table whose rows would wait for a minute, and the sizes of the batches written to it."""
    monkeypatch.setattr(write_behind, "GATHER_SECONDS", 60.0)
    sizes: list[int] = []

    async def store(_connection: Any, batch: Sequence[int]) -> None:
        sizes.append(len(batch))

    engine: Any = Engine()
    rows = WriteBehind[int](engine, store, table="test")
    yield rows, sizes
    await rows.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_rows_that_may_wait_are_written_together(written: tuple[Any, list[int]]) -> None:
    rows, sizes = written
    for number in range(5):
        rows.put(number, may_wait=True)
    await asyncio.sleep(0.1)
    assert sizes == []
    rows.put(5)
    await until(lambda: sizes)
    assert sizes == [6]


async def test_more_rows_than_a_batch_do_not_wait(written: tuple[Any, list[int]]) -> None:
    rows, sizes = written
    for number in range(3 * BATCH):
        rows.put(number, may_wait=True)
    await until(lambda: sum(sizes) == 3 * BATCH)
    assert max(sizes) == BATCH


async def test_an_urgent_row_behind_a_full_batch_does_not_wait(
    written: tuple[Any, list[int]],
) -> None:
    rows, sizes = written
    for number in range(BATCH + 10):
        rows.put(number, may_wait=True)
    rows.put(-1)
    await until(lambda: sum(sizes) == BATCH + 11)
    assert len(sizes) == 2
