"""Reading a stream as fast as it comes, however slowly its own reader reads.

Ollama has been seen to leak a slot when the reader of its stream is slow, so a task of its own
takes every event at once. What piles up is bounded by what the request may generate.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

Event = TypeVar("Event")

OnEnd = Callable[[BaseException | None], None]


class Drain(Generic[Event]):
    """Iterates over `source`, which runs ahead in a task of its own.

    `on_end` is called exactly once, when the source is closed: with None after its natural end,
    with the error that ended it, or with CancelledError when the reader left. Leaving is
    `close()`, which does not wait and so works in the middle of a cancellation.
    """

    def __init__(self, source: AsyncGenerator[Event], on_end: OnEnd) -> None:
        self._source = source
        self._arrived: list[Event] = []
        self._on_end = on_end
        self._given_up: Exception | None = None
        self._something_new = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    def __aiter__(self) -> AsyncGenerator[Event]:
        return self._events()

    async def begun(self) -> None:
        """Returns once there is an event to read; raises what ended the source before one came."""
        await self._something_new.wait()
        if not self._arrived:
            self._result()

    def close(self) -> None:
        self._task.cancel()

    def give_up(self, error: Exception) -> None:
        """End the source; its reader gets this error."""
        if not self._task.done():
            self._given_up = error
            self._task.cancel()

    async def _run(self) -> None:
        async with aclosing(self._source) as events:
            async for event in events:
                self._arrived.append(event)
                self._something_new.set()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._something_new.set()
        ended_by = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._on_end(self._given_up or ended_by)

    def _result(self) -> None:
        if self._given_up is not None:
            raise self._given_up
        self._task.result()

    async def _events(self) -> AsyncGenerator[Event]:
        while True:
            await self._something_new.wait()
            self._something_new.clear()
            arrived, self._arrived = self._arrived, []
            for event in arrived:
                yield event
            if self._task.done() and not self._arrived:
                # Raises what ended the source, after everything that it gave before.
                self._result()
                return
