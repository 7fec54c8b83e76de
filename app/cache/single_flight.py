"""Of identical questions at the same time one is answered; the others read along.

In this process and in others: whoever leads writes its lines into a run in Redis, and the others
read it as it grows. A leader that dies, or is not wanted any more in its own process, is replaced
by one of those that follow. What they have read already is not said twice: the new leader's text
must begin with it, or else the answer ends openly as one that was interrupted.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from app.cache.leases import Leases, Taken
from app.cache.transcript import CITATION, TEXT, Line, failed, is_end, unpacked
from app.errors import FootnoteError, GenerationInterrupted, GenerationUnavailable

POLL_SECONDS = 0.02
"""How far a follower in another process is behind, at most."""
SIGN_OF_LIFE_SECONDS = 0.5
CANCELLED_AGAIN_SECONDS = 0.5

Run = Callable[[], AsyncGenerator[Line]]

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Flight:
    """One run as this process sees it: lines so far, and who reads them."""

    lines: list[Line] = field(default_factory=list[Line])
    readers: int = 0
    is_led_here: bool = False
    is_over: bool = False
    error: Exception | None = None
    grew: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self.wake()

    def end(self, error: Exception | None = None) -> None:
        self.is_over, self.error = True, error
        self.wake()

    def wake(self) -> None:
        grew, self.grew = self.grew, asyncio.Event()
        grew.set()


@dataclass(frozen=True, slots=True)
class Seat:
    """What somebody reads, and whether he is the one for whom it is run."""

    lines: AsyncGenerator[Line]
    leads: bool


class Flights:
    """Belongs to one event loop; without leases it knows of this process alone."""

    def __init__(self, leases: Leases | None) -> None:
        self._leases = leases
        self._flights: dict[bytes, _Flight] = {}

    def join(self, key: bytes, run: Run) -> Seat:
        """A seat in the flight for this key, which is begun if there is none.

        The lines end with one that is an end, or with what the run raised: FootnoteError also
        from elsewhere. Closing them leaves the flight; it is ended when nobody anywhere is left.
        """
        flight = self._flights.get(key)
        leads = flight is None
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(self._fly(key, flight, run))
        flight.readers += 1
        return Seat(self._read(flight), leads)

    async def close(self) -> None:
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, flight: _Flight) -> AsyncGenerator[Line]:
        place = 0
        try:
            while True:
                grew = flight.grew
                for line in flight.lines[place:]:
                    place += 1
                    yield line
                if place < len(flight.lines):
                    continue
                if flight.is_over:
                    if flight.error is not None:
                        raise flight.error
                    if not (flight.lines and is_end(flight.lines[-1])):
                        raise GenerationUnavailable("The answer was given up.")
                    return
                await grew.wait()
        finally:
            flight.readers -= 1
            flight.wake()

    # --- the flight ------------------------------------------------------------------------------

    async def _fly(self, key: bytes, flight: _Flight, run: Run) -> None:
        """Lead or follow until the end, or until nobody reads."""
        try:
            flying = asyncio.ensure_future(self._reach_the_end(key, flight, run))
            try:
                while not flying.done():
                    grew = asyncio.ensure_future(flight.grew.wait())
                    await asyncio.wait({flying, grew}, return_when=asyncio.FIRST_COMPLETED)
                    grew.cancel()
                    # A leader asks for itself whether others read what nobody reads here.
                    if flight.readers == 0 and not flight.is_led_here:
                        self._abandon(key, flight)
                        break
            finally:
                await _end(flying)
            flight.end(None if flying.cancelled() else _told(flying.exception()))
        except BaseException:
            flight.end(GenerationUnavailable("The service is stopping."))
            raise
        finally:
            self._abandon(key, flight)

    async def _reach_the_end(self, key: bytes, flight: _Flight, run: Run) -> None:
        while True:
            taken = await self._leases.take(key) if self._leases is not None else None
            if taken is not None and taken.state == "known":
                self._say_what_is_known(flight, taken)
                return
            if taken is None or taken.state == "ours":
                await self._lead(key, flight, run, taken)
                return
            if await self._follow(key, flight, taken.token):
                return

    def _say_what_is_known(self, flight: _Flight, taken: Taken) -> None:
        known = unpacked(taken.value)
        rest = Rest(flight.lines)
        for line in known[1] if known is not None else ():
            for left in rest.of(line):
                flight.add(left)

    async def _lead(self, key: bytes, flight: _Flight, run: Run, taken: Taken | None) -> None:
        flight.is_led_here = True
        said: list[Line] = []
        publishing = None
        if taken is not None and self._leases is not None:
            publishing = _Publishing(self._leases, key, taken.token, said)
        rest = Rest(flight.lines)

        async def speak() -> None:
            async with aclosing(run()) as lines:
                async for line in lines:
                    said.append(line)
                    if publishing is not None:
                        publishing.wake()
                    for left in rest.of(line):
                        flight.add(left)
                    if is_end(line):
                        # Others elsewhere have still to be told, and whoever comes meanwhile has
                        # not asked at the same time.
                        self._abandon(key, flight)

        # One task from the first line to the last: what is held between two belongs to it.
        speaking = asyncio.create_task(speak())
        try:
            while not speaking.done():
                if flight.readers == 0 and not (publishing is not None and publishing.is_wanted):
                    self._abandon(key, flight)
                    return
                grew = asyncio.ensure_future(flight.grew.wait())
                await asyncio.wait(
                    {speaking, grew},
                    timeout=SIGN_OF_LIFE_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                grew.cancel()
            error = speaking.exception()
            if error is not None:
                if isinstance(error, FootnoteError):
                    said.append(failed(error))
                raise error
        finally:
            await _end(speaking)
            if publishing is not None:
                await publishing.finish()

    def _abandon(self, key: bytes, flight: _Flight) -> None:
        """Whoever comes from now on begins a flight of his own."""
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _follow(self, key: bytes, flight: _Flight, token: str) -> bool:
        """Read along; False when the leader is gone without an end."""
        assert self._leases is not None  # noqa: S101 - somebody else leads, so there are leases
        rest = Rest(flight.lines)
        place = 0
        while True:
            followed = await self._leases.follow(key, token, place)
            if followed is None:
                return False
            for line in followed.lines:
                for left in rest.of(line):
                    flight.add(left)
                if is_end(line):
                    return True
            place += len(followed.lines)
            if not followed.is_led and not followed.lines:
                log.info("flight_taken_over", token=token)
                return False
            await asyncio.sleep(POLL_SECONDS)


class _Publishing:
    """Sends the lines that were said to those who follow elsewhere, and keeps the lease."""

    def __init__(self, leases: Leases, key: bytes, token: str, said: list[Line]) -> None:
        self.is_wanted = False
        self._leases = leases
        self._key = key
        self._token = token
        self._said = said
        self._sent = 0
        self._is_over = False
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._keep_sending())

    def wake(self) -> None:
        self._news.set()

    async def finish(self) -> None:
        """Send what is left, and give the lease back."""
        self._is_over = True
        self.wake()
        await asyncio.wait({self._task})
        await self._send()
        await self._leases.release(self._key, self._token)

    async def _keep_sending(self) -> None:
        while not self._is_over:
            await self._send()
            news = asyncio.ensure_future(self._news.wait())
            await asyncio.wait({news}, timeout=SIGN_OF_LIFE_SECONDS)
            news.cancel()
            self._news.clear()

    async def _send(self) -> None:
        lines = self._said[self._sent :]
        wanted = await self._leases.publish(self._key, self._token, lines)
        self.is_wanted = bool(wanted)
        if wanted is not None:
            self._sent += len(lines)


class Rest:
    """What a new run has to say beyond lines that were said before."""

    def __init__(self, said: list[Line]) -> None:
        self._before = list(said)
        self._text = "".join(line[1] for line in said if line[0] == TEXT)
        self._told = ""

    def of(self, line: Line) -> list[Line]:
        """This line, or what of it is new; raises GenerationInterrupted where it contradicts."""
        if not self._before:
            return [line]
        if line[0] == TEXT:
            begun = len(self._told)
            self._told += line[1]
            if begun >= len(self._text):
                return [line]
            common = min(len(self._told), len(self._text))
            if self._told[:common] != self._text[:common]:
                raise GenerationInterrupted(
                    "The answer broke off, and another one began otherwise."
                )
            new = self._told[len(self._text) :]
            return [(TEXT, new)] if new else []
        if is_end(line):
            if len(self._told) < len(self._text):
                raise GenerationInterrupted("The answer broke off, and another one ended sooner.")
            return [line]
        if line[0] == CITATION:
            return [] if line in self._before else [line]
        # Sources and places in line were told, or come too late.
        return [] if self._text or line in self._before else [line]


async def _end(task: "asyncio.Future[None]") -> None:
    # Until Python 3.12 a timeout that ends as a cancellation comes can swallow it.
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCELLED_AGAIN_SECONDS)


def _told(error: BaseException | None) -> Exception | None:
    if error is None or isinstance(error, FootnoteError):
        return error
    log.error("flight_failed", exc_info=error)
    return error if isinstance(error, Exception) else GenerationUnavailable()
