"""The line before the servers, and who leaves it for which server at which moment."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from time import perf_counter

from app.llm.base import Admission
from app.llm.choice import Demand, plan
from app.llm.habits import Habits, Prompt
from app.llm.lanes import Lanes
from app.llm.members import Member, Work
from app.llm.shared_slots import SharedSlots
from app.llm.statistics import PoolTally
from app.telemetry import (
    GENERATION_SLOTS,
    GENERATIONS_IN_FLIGHT,
    GENERATIONS_WAITING,
    HIDDEN_WAIT_SECONDS,
)

PLANNED_AT_ONCE = 16
"""So many from the head of the line are placed together: the choice takes well under 1 ms."""
HOLD_CHECK_SECONDS = 0.02
"""Whoever is held is placed anew so often: what was predicted may not come."""


@dataclass(eq=False, slots=True)
class Request:
    """One request from its arrival to the end of its last attempt; times on the pool's clock."""

    model: str
    prompt: Prompt
    expected_tokens: float
    admission: Admission
    arrived_at: float
    deadline_at: float
    had_its_turn: bool = False
    tried: set[Member] = field(default_factory=set[Member])
    granted: "asyncio.Future[tuple[Member, Work]] | None" = None
    held_since: float | None = None
    expected_wait_seconds: float = 0.0

    def server(self) -> tuple[Member, Work]:
        """The server that was granted, and the work that has begun there."""
        if self.granted is None:
            raise AssertionError("no server was asked for")  # pragma: no cover
        return self.granted.result()


class Dispatcher:
    """`lost` says what becomes of a request for which no server is left."""

    def __init__(
        self,
        members: Sequence[Member],
        habits: Habits,
        lost: Callable[[Request], Exception],
        tally: PoolTally,
        clock: Callable[[], float],
    ) -> None:
        self.lanes = Lanes[Request]()
        self.shared: SharedSlots | None = None
        self._members = members
        self._habits = habits
        self._lost = lost
        self._tally = tally
        self._clock = clock
        self._turn = -1
        self._check: asyncio.TimerHandle | None = None

    def join(self, request: Request) -> "asyncio.Future[tuple[Member, Work]]":
        """Stand in line, in front if it had its turn before; the server comes with its work begun."""
        granted = request.granted = asyncio.get_running_loop().create_future()
        request.held_since = None
        self.lanes.join(request, request.admission.lane, in_front=request.had_its_turn)
        request.expected_wait_seconds = self.wait_seconds(request)
        self.dispatch()
        return granted

    def leave(self, request: Request) -> None:
        """Stand in line no more; a server that was granted in the same moment goes to the next."""
        granted = request.granted
        if self.lanes.leave(request, request.admission.lane):
            self._show_line()
        elif granted is not None and granted.done() and granted.exception() is None:
            self.release(*granted.result())

    def position(self, request: Request) -> int:
        """From 1."""
        ahead = takewhile(lambda one: one is not request, self.lanes)
        return 1 + sum(1 for _ in ahead)

    def begin(self, member: Member, request: Request, now: float) -> Work:
        """Take a slot of the server."""
        work = member.begin(request.model, request.prompt, request.expected_tokens, now)
        self._show(member)
        return work

    def release(self, member: Member, work: Work) -> None:
        """Free the slot; once is enough."""
        if work in member.works:
            member.works.remove(work)
            if work.has_lease and self.shared is not None:
                self.shared.give_back(member)
            self._show(member)
            self.dispatch()

    async def confirm(self, member: Member, work: Work) -> bool:
        """Whether the slot that was taken is free in the eyes of all processes; else it is not."""
        if self.shared is None:
            return True
        try:
            work.has_lease = await self.shared.take(member)
        finally:
            if not work.has_lease:
                self.release(member, work)
        return work.has_lease

    def usable(self, request: Request) -> list[Member]:
        """Servers that the request could get, free or not."""
        now = self._clock()
        left = [
            one
            for one in self._members
            if one not in request.tried and not one.breaker.is_open and not one.is_draining
        ]
        return [one for one in left if one.served(request.model).missing_until <= now] or left

    def is_free_for(self, request: Request) -> bool:
        """Whether nobody waits and a server has a slot."""
        now = self._clock()
        return not len(self.lanes) and any(one.has_free_slot(now) for one in self.usable(request))

    def work_seconds(self, member: Member, request: Request, now: float) -> float:
        return member.work_seconds(request.model, request.prompt, request.expected_tokens, now)

    def wait_seconds(self, request: Request) -> float:
        """How long it waits behind those before it, with every slot taken."""
        now = self._clock()
        per_second = sum(
            one.usable_slots(now) / self.work_seconds(one, request, now) for one in self._members
        )
        ahead = self.lanes.ahead(request.admission.lane)
        return (ahead + 1) / per_second if per_second else 0.0

    def dispatch(self) -> None:
        """Give every server that may have one more its request."""
        if not len(self.lanes):
            return
        started = perf_counter()
        now = self._clock()
        for request in list(self.lanes):
            if not self.usable(request):
                self._end(request, self._lost(request))
        in_turn = self._in_turn()
        slots = sum(one.usable_slots(now) for one in in_turn)
        if any(one.has_free_slot(now) for one in in_turn):
            # With more in line than there are slots, an idle slot is capacity lost.
            self._place(in_turn, now, may_hold=len(self.lanes) <= slots)
        self._tally.choice_seconds.add(perf_counter() - started)
        self._show_line()

    # --- placing ---------------------------------------------------------------------------------

    def _place(self, in_turn: Sequence[Member], now: float, *, may_hold: bool) -> None:
        lines = [member.line(now, self._habits) for member in in_turn]
        first = [request for request, _ in zip(self.lanes, range(PLANNED_AT_ONCE), strict=False)]
        demands = [self._demand(request, in_turn, now) for request in first]
        planned = plan(demands, lines, may_hold=may_hold)
        for request, member in planned.placed:
            self.lanes.leave(request, request.admission.lane)
            if request.granted is not None:
                request.granted.set_result((member, self.begin(member, request, now)))
        for request, wait_seconds in planned.waits_seconds:
            request.expected_wait_seconds = wait_seconds
            if planned.has_held and request.held_since is None:
                request.held_since = now
        if planned.has_held and self._check is None:
            loop = asyncio.get_running_loop()
            self._check = loop.call_later(HOLD_CHECK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._check = None
        self.dispatch()

    def _demand(self, request: Request, in_turn: Sequence[Member], now: float) -> Demand[Request]:
        usable = set(self.usable(request))
        held_seconds = 0.0 if request.held_since is None else now - request.held_since
        work = [self.work_seconds(one, request, now) if one in usable else None for one in in_turn]
        return Demand(request, work, held_seconds)

    def _in_turn(self) -> list[Member]:
        """All servers, each time from another one on: the first of equals is chosen."""
        self._turn = (self._turn + 1) % max(1, len(self._members))
        return [*self._members[self._turn :], *self._members[: self._turn]]

    def _end(self, request: Request, error: Exception) -> None:
        self.lanes.leave(request, request.admission.lane)
        if request.granted is not None and not request.granted.done():
            request.granted.set_exception(error)

    def _show(self, member: Member) -> None:
        GENERATIONS_IN_FLIGHT.labels(member.address).set(member.in_flight)
        GENERATION_SLOTS.labels(member.address).set(member.usable_slots(self._clock()))
        HIDDEN_WAIT_SECONDS.labels(member.address).set(member.tally.hidden_wait_seconds)

    def _show_line(self) -> None:
        GENERATIONS_WAITING.set(len(self.lanes))
