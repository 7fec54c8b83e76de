"""Server-sent events that always end explicitly: with the last event, or with `error`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import TypeVar

import anyio
from fastapi import Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

from app.api.problems import note, problem, to_footnote_error
from app.api.schemas import Problem
from app.errors import Unavailable

SEPARATOR = "\n"
PING_SECONDS = 15
STALLED_CLIENT_SECONDS = 30.0
FAREWELL_SECONDS = 2.0

# Not line ends of the protocol's, but many a client splits its lines at them.
_ESCAPED = {ord(separator): f"\\u{ord(separator):04x}" for separator in "\x85\u2028\u2029"}

Result = TypeVar("Result")
Events = AsyncGenerator[ServerSentEvent]


class ClientGone(Exception):
    """The client left; there is nobody to reply to."""


def event(name: str, data: BaseModel) -> ServerSentEvent:
    content = data.model_dump_json(exclude_unset=True).translate(_ESCAPED)
    return ServerSentEvent(data=content, event=name, sep=SEPARATOR)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of the work, which is cancelled when the client leaves: then raises ClientGone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def event_stream(
    request: Request, events: Events, *, grace_seconds: float
) -> EventSourceResponse:
    """A reply of these events, begun only once the first is there.

    What fails before the first event is raised, and so gets a status of its own; a later failure
    becomes the `error` event, always the last one. When the service stops, the stream has
    `grace_seconds` to end by itself; one that has not done so by then ends with `error`, too. When
    the client leaves, or reads nothing for a while, the generator is closed.
    """
    reader = _Reader(events)
    try:
        await unless_gone(request, reader.ready())
    except BaseException:
        await reader.close()
        raise
    stopping = anyio.Event()
    return EventSourceResponse(
        _explicit(reader, stopping, grace_seconds),
        sep=SEPARATOR,
        ping=PING_SECONDS,
        send_timeout=STALLED_CLIENT_SECONDS,
        shutdown_event=stopping,
        shutdown_grace_period=grace_seconds + FAREWELL_SECONDS,
    )


async def _explicit(reader: "_Reader", stopping: anyio.Event, grace_seconds: float) -> Events:
    async def stopped() -> None:
        await stopping.wait()
        await asyncio.sleep(grace_seconds)

    stop = asyncio.ensure_future(stopped())
    try:
        while (one := await reader.next(stop)) is not None:
            yield one
    except Exception as error:  # noqa: BLE001 - the status is sent: an event is all that is left
        told = to_footnote_error(error)
        note(error, told)
        yield event("error", Problem(**problem(told)))
    finally:
        stop.cancel()
        await reader.close()


class _Reader:
    """Reads events ahead by one, in one task from the first to the last.

    A generator that holds a timeout or a connection between two events must not wake up in
    another task.
    """

    def __init__(self, events: Events) -> None:
        self._waiting: asyncio.Queue[ServerSentEvent] = asyncio.Queue(maxsize=1)
        self._begun = asyncio.Event()
        self._task = asyncio.create_task(self._read(events))
        self._task.add_done_callback(lambda _: self._begun.set())

    async def _read(self, events: Events) -> None:
        async with aclosing(events):
            async for one in events:
                await self._waiting.put(one)
                self._begun.set()

    async def ready(self) -> None:
        """Returns when there is an event to give; raises what the generator raised instead."""
        await self._begun.wait()
        if self._waiting.empty():
            self._task.result()

    async def next(self, stop: "asyncio.Future[None]") -> ServerSentEvent | None:
        """The next event, None after the last; raises Unavailable when `stop` comes first."""
        upcoming = asyncio.ensure_future(self._waiting.get())
        await asyncio.wait({upcoming, self._task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if upcoming.done():
            return upcoming.result()
        upcoming.cancel()
        if not self._waiting.empty():
            return self._waiting.get_nowait()
        if not self._task.done():
            raise Unavailable("The service is stopping.", hint="Ask again in a moment.")
        self._task.result()
        return None

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._task
