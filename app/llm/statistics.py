"""What the pool has done, kept in memory in bounded space."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from app.llm.members import Member

KEPT = 512
"""Percentiles are of the latest so many."""

InstanceState = Literal["ready", "loading", "recovering", "ejected", "draining"]
Shed = Literal["queue_full", "wait_too_long", "timed_out", "owner_limit"]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of the latest requests, in the unit of what was added."""

    p50: float
    p95: float
    p99: float


class Latest:
    """The latest values of something."""

    def __init__(self) -> None:
        self._values = deque[float](maxlen=KEPT)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentiles(self) -> Percentiles | None:
        if not self._values:
            return None
        ordered = sorted(self._values)
        last = len(ordered) - 1
        return Percentiles(*(ordered[round(last * share)] for share in (0.5, 0.95, 0.99)))


@dataclass(slots=True)
class PoolTally:
    requests: int = 0
    completed: int = 0
    failovers: Counter[str] = field(default_factory=Counter[str])
    """By phase: before the first token the request moved on, after it the stream ended."""
    shed: Counter[Shed] = field(default_factory=Counter[Shed])
    hedges: Counter[str] = field(default_factory=Counter[str])
    """`launched`, and of those `won`; the others were wasted."""
    queue_seconds: Latest = field(default_factory=Latest)
    first_token_seconds: Latest = field(default_factory=Latest)
    gap_seconds: Latest = field(default_factory=Latest)
    choice_seconds: Latest = field(default_factory=Latest)
    prediction_ratio: Latest = field(default_factory=Latest)
    """Actual over predicted time of whole answers."""


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Learnt speeds in tokens per second; None while nothing is learnt."""

    model: str
    resident: bool | None
    prompt_tokens_per_second: float | None
    completion_tokens_per_second: float | None
    slowdown_per_request: float
    load_seconds: float | None


@dataclass(frozen=True, slots=True)
class InstanceStatistics:
    """`slots` are those in use: fewer than configured where waits inside the server show so."""

    instance: str
    state: InstanceState
    slots: int
    configured_slots: int
    in_flight: int
    in_flight_elsewhere: int
    served: int
    failed: int
    abandoned: int
    loads: int
    ejections: dict[str, int]
    hidden_wait_seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    models: list[ModelStatistics]


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    model: str
    waiting: dict[str, int]
    requests: int
    completed: int
    expected_wait_seconds: float
    queue_seconds: Percentiles | None
    first_token_seconds: Percentiles | None
    gap_seconds: Percentiles | None
    choice_seconds: Percentiles | None
    prediction_ratio: Percentiles | None
    failovers: dict[str, int]
    shed: dict[str, int]
    hedges: dict[str, int]
    processes: int
    slots_shared: bool
    instances: list[InstanceStatistics]


def instance_statistics(member: Member, now: float) -> InstanceStatistics:
    tally = member.tally
    return InstanceStatistics(
        instance=member.address,
        state=state_of(member),
        slots=member.real_slots(now),
        configured_slots=member.slots,
        in_flight=member.in_flight,
        in_flight_elsewhere=member.held_by_others,
        served=tally.served,
        failed=tally.failed,
        abandoned=tally.abandoned,
        loads=tally.loads,
        ejections=dict(tally.ejections),
        hidden_wait_seconds=tally.hidden_wait_seconds,
        prompt_tokens=tally.prompt_tokens,
        cached_tokens=tally.cached_tokens,
        completion_tokens=tally.completion_tokens,
        models=_models(member),
    )


def state_of(member: Member) -> InstanceState:
    """`draining`, `ejected`, `recovering` (back in part), `loading` or `ready`."""
    if member.is_draining:
        return "draining"
    if member.breaker.is_open:
        return "ejected"
    if not member.breaker.is_trusted:
        return "recovering"
    if any(one.loading_since is not None for one in member.models.values()):
        return "loading"
    return "ready"


def _models(member: Member) -> list[ModelStatistics]:
    found: list[ModelStatistics] = []
    for name, served in member.models.items():
        speed = served.speed
        found.append(
            ModelStatistics(
                model=name,
                resident=served.is_resident,
                prompt_tokens_per_second=1 / speed.prompt_token_seconds
                if speed.knows_prompt
                else None,
                completion_tokens_per_second=1 / speed.token_seconds(1) if speed.is_known else None,
                slowdown_per_request=speed.slowdown,
                load_seconds=speed.load_seconds if speed.knows_load else None,
            )
        )
    return found
