"""What the pool has done, kept in memory in bounded space, and how it is told.

What is told goes over the wire as it stands here, so times are milliseconds there.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from app.llm.instance_model import InstanceModel
from app.llm.members import Member

KEPT = 512
"""Percentiles are of the latest so many."""

InstanceState = Literal["ready", "loading", "recovering", "ejected", "draining"]
Shed = Literal["queue_full", "wait_too_long", "timed_out", "owner_limit"]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of the latest 512 requests, in the unit that the name says."""

    p50: float
    p95: float
    p99: float


class Latest:
    """The latest values of something."""

    def __init__(self) -> None:
        self._values = deque[float](maxlen=KEPT)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentiles(self, *, times: float = 1) -> Percentiles | None:
        """Of the values `times` so much: seconds times 1000 are milliseconds."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        last = len(ordered) - 1
        places = (round(last * share) for share in (0.5, 0.95, 0.99))
        return Percentiles(*(round(ordered[place] * times, 3) for place in places))


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
    """What was learnt of one model on one server; None while nothing is.

    `slowdown_per_request` is by which share a token takes longer for each further answer that is
    written at the same time.
    """

    model: str
    resident: bool | None
    prompt_tokens_per_second: float | None
    completion_tokens_per_second: float | None
    slowdown_per_request: float
    load_ms: float | None


@dataclass(frozen=True, slots=True)
class InstanceStatistics:
    """One server.

    `slots` are those in use, fewer than `configured_slots` where waits inside the server show
    that it has fewer. `hidden_wait_ms` is the latest average of those waits. `prefix_hit_rate` is
    the share of prompt tokens that the server had cached, by its speed.
    """

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
    hidden_wait_ms: float
    prompt_tokens: int
    completion_tokens: int
    prefix_hit_rate: float
    models: list[ModelStatistics]


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    waiting_interactive: int
    waiting_batch: int
    expected_wait_ms: float


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """From memory; counts are since this process started.

    `prediction_ratio` is the actual over the predicted time of answers. `failovers` are attempts
    that moved on before the first token (`first_token`), and answers that ended in `stream`.
    `slots_shared`: the `processes` share the slots through Redis.
    """

    model: str
    requests: int
    completed: int
    queue: QueueStatistics
    queue_wait_ms: Percentiles | None
    first_token_ms: Percentiles | None
    token_gap_ms: Percentiles | None
    choice_ms: Percentiles | None
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
        hidden_wait_ms=milliseconds(tally.hidden_wait_seconds),
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        prefix_hit_rate=round(tally.cached_tokens / max(1, tally.prompt_tokens), 4),
        models=[
            _model_statistics(name, served.speed, served.is_resident)
            for name, served in member.models.items()
        ],
    )


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


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


def _model_statistics(name: str, speed: InstanceModel, is_resident: bool | None) -> ModelStatistics:
    return ModelStatistics(
        model=name,
        resident=is_resident,
        prompt_tokens_per_second=round(1 / speed.prompt_token_seconds, 2)
        if speed.knows_prompt
        else None,
        completion_tokens_per_second=round(1 / speed.token_seconds(1), 2)
        if speed.is_known
        else None,
        slowdown_per_request=round(speed.slowdown, 3),
        load_ms=milliseconds(speed.load_seconds) if speed.knows_load else None,
    )
