"""A timeout ends what hangs, and does not end what a busy event loop has not come to read."""

import asyncio
import time

import pytest

from app.patience import STEPS, patience

SECONDS = 0.05


async def test_what_hangs_is_given_up_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with patience(SECONDS):
            await asyncio.Event().wait()
    assert SECONDS <= time.monotonic() - started < SECONDS + 0.5


async def test_replies_that_came_while_the_loop_was_busy_are_read() -> None:
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()
        gone.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]

    async def busy() -> None:
        # As many requests at once are: work after work, and between two of them all is heard.
        while True:
            time.sleep(SECONDS)  # noqa: ASYNC251 - it is the loop that has no time
            await asyncio.sleep(0)

    working = asyncio.create_task(busy())
    try:
        async with patience(SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"here\n")
            assert await reader.readline() == b"here\n"
        writer.close()
        await gone.wait()
    finally:
        working.cancel()
        server.close()
        await asyncio.sleep(0)


async def test_nothing_is_left_behind() -> None:
    async with patience(SECONDS):
        await asyncio.sleep(SECONDS / STEPS * 1.5)
    await asyncio.sleep(2 * SECONDS)


async def test_a_cancellation_stays_one() -> None:
    async def wait() -> None:
        async with patience(SECONDS):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
