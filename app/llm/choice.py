"""Which waiting request goes to which server, and which had better wait. Pure.

Requests are placed in their order, each where it would be over first: wait + load + reading + writing.
A busy, faster server may win; then the request is held, and the slot counts as its own for those
behind it. So a long line makes use of every slot by itself: who stands far behind is served
sooner by a slow server now than by a fast one later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Generic, TypeVar

HOLD_GAIN = 0.1
"""A request is held when that much of its time is saved."""
HOLD_AT_MOST = 0.5
"""Of the time that it would take at once, so much may be spent on being held."""

Request = TypeVar("Request")
Server = TypeVar("Server")


@dataclass(slots=True)
class Line(Generic[Server]):
    """A server's slots: when each is expected to be free, in seconds from now; 0 is free."""

    server: Server
    free_in_seconds: list[float]
    """A heap."""


@dataclass(frozen=True, slots=True)
class Demand(Generic[Request]):
    """`work_seconds`, by place of the server: what it costs there, None where it may not go."""

    request: Request
    work_seconds: Sequence[float | None]
    held_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan(Generic[Request, Server]):
    """`placed` go now; the others wait, and `waits_seconds` says of each how long it may be."""

    placed: list[tuple[Request, Server]]
    waits_seconds: list[tuple[Request, float]]
    has_held: bool


def plan(
    demands: Sequence[Demand[Request]], lines: Sequence[Line[Server]], *, may_hold: bool = True
) -> Plan[Request, Server]:
    """Place as many as there is room for. Of equals the first line wins: turn them round."""
    placed: list[tuple[Request, Server]] = []
    waits: list[tuple[Request, float]] = []
    has_held = False
    for demand in demands:
        best = best_free = None
        best_seconds = best_free_seconds = float("inf")
        for line, work_seconds in zip(lines, demand.work_seconds, strict=True):
            if work_seconds is None or not line.free_in_seconds:
                continue
            wait_seconds = line.free_in_seconds[0]
            total_seconds = wait_seconds + work_seconds
            if total_seconds < best_seconds:
                best, best_seconds = line, total_seconds
            if wait_seconds <= 0 and total_seconds < best_free_seconds:
                best_free, best_free_seconds = line, total_seconds
        if best is None:
            continue
        if best_free is not None:
            gains = best_seconds <= (1 - HOLD_GAIN) * best_free_seconds
            wait = best.free_in_seconds[0]
            short = demand.held_seconds + wait <= HOLD_AT_MOST * best_free_seconds
            if not (may_hold and gains and short):
                placed.append((demand.request, best_free.server))
                heapreplace(best_free.free_in_seconds, best_free_seconds)
                continue
            has_held = True
        waits.append((demand.request, best.free_in_seconds[0]))
        heapreplace(best.free_in_seconds, best_seconds)
    return Plan(placed, waits, has_held)
