"""Any number of Ollama instances behind one ChatModel.

No instance ever gets more requests than it has slots: Ollama would queue the surplus without
bound, unseen and at the wrong place. The surplus waits here, in one bounded line, and each goes where
it is expected to be over first, as late as it can be decided. Until the first visible token a failed
request moves to another instance unnoticed; after it, it fails openly.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from random import Random
from time import monotonic

import structlog
from redis.asyncio import Redis

from app.llm.admission import Gate, PoolLimits
from app.llm.attempts import Asked, Attempts
from app.llm.base import (
    UNHURRIED,
    Admission,
    ChatModel,
    Completion,
    GenerationEvent,
    GenerationOptions,
    InstanceHealth,
    Message,
    Queued,
)
from app.llm.digests import KnownDigests
from app.llm.dispatch import Dispatcher, Request
from app.llm.habits import Habits
from app.llm.ollama import (
    PROBE_TIMEOUT_SECONDS,
    InstanceBroke,
    InstanceFailed,
    OllamaInstance,
    Patience,
)
from app.llm.pooled import PooledModel
from app.llm.roster import Connect, InstanceAddress, Roster, State
from app.llm.shared_slots import ANSWERS_SECONDS, SharedSlots
from app.llm.statistics import (
    PoolStatistics,
    PoolTally,
    QueueStatistics,
    instance_statistics,
    milliseconds,
)
from app.llm.supervision import Supervisor
from app.telemetry import GENERATION_FAILOVERS, STAGE_SECONDS

MAX_ATTEMPTS = 5
QUEUED_AFTER_SECONDS = 0.1
"""Whoever waits for less is not told."""
QUEUED_EVERY_SECONDS = 1.0
MAX_RETRY_AFTER_SECONDS = 60

log = structlog.get_logger(__name__)


class GenerationPool:
    """A ChatModel of `model`; `for_model` gives others on the same servers and slots.

    Of `options`, what would make a server load its model again holds for every request, probes
    included. `preloaded` are further models that every server is to have in memory.
    """

    def __init__(
        self,
        addresses: Sequence[InstanceAddress],
        model: str,
        options: GenerationOptions,
        limits: PoolLimits,
        *,
        preloaded: Sequence[str] = (),
        random: Random | None = None,
        connect: Connect | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._model = model
        self._options = options
        self._roster = Roster(
            addresses,
            connect
            or partial(OllamaInstance, connect_timeout_seconds=limits.connect_timeout_seconds),
            random,
        )
        self._members = self._roster.members
        self._clock = clock
        self._tally = PoolTally()
        self._habits = Habits()
        self._digests = KnownDigests(lambda: (one.instance.digests() for one in self._members))
        self._gate = Gate(limits, self._members, self._habits, self._tally, clock)
        self._dispatcher = Dispatcher(
            self._members, self._habits, self._gate.unavailable, self._tally, clock
        )
        patience = Patience(
            first_token_seconds=limits.first_token_timeout_seconds,
            stall_seconds=limits.stall_timeout_seconds,
        )
        self._supervisor = Supervisor(
            self._members,
            [model, *preloaded],
            options,
            patience,
            self._dispatcher.dispatch,
            clock=clock,
            random=random,
        )
        self._attempts = Attempts(
            self._members,
            self._dispatcher,
            self._supervisor,
            self._habits,
            patience,
            self._tally,
            clock,
        )

    @property
    def name(self) -> str:
        return self._model

    async def digest(self) -> str | None:
        return await self.digest_of(self._model)

    async def digest_of(self, model: str) -> str | None:
        return await self._digests.get(model)

    def start(
        self, redis: Redis | None = None, *, answers_seconds: float = ANSWERS_SECONDS
    ) -> None:
        """From now on, load models before they are asked for, and probe servers that idle.

        With `redis`, slots are shared with all processes that have the same one, as long as it
        answers within `answers_seconds`.
        """
        if redis is not None:
            shared = SharedSlots(
                redis,
                self._members,
                changed=self._heard_of_others,
                is_waiting=lambda: len(self._dispatcher.lanes) > 0,
                clock=self._clock,
                answers_seconds=answers_seconds,
            )
            self._dispatcher.shared = self._supervisor.shared = shared
            self._supervisor.spawn(shared.run())
        self._supervisor.watch()

    async def close(self) -> None:
        await self._supervisor.close()
        await self._digests.close()
        for member in self._members:
            await member.instance.close()

    def change(self, url: str, *, slots: int | None = None, state: State = "serving") -> None:
        """Add a server, change its slots, drain it or let it go; see Roster.change."""
        self._roster.change(url, slots, state, self._supervisor)
        self._dispatcher.dispatch()

    def configure(self, wanted: Sequence[InstanceAddress]) -> None:
        """From now on these servers, and no others."""
        if self._roster.configure(wanted, self._supervisor):
            self._dispatcher.dispatch()

    # --- answering -------------------------------------------------------------------------------

    def for_model(self, model: str) -> ChatModel:
        """Another model on the same servers: it shares their slots and the line before them."""
        return PooledModel(self, model)

    def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        """See ChatModel; raises RateLimited as well, when the owner is over a limit."""
        return self.generate(self._model, messages, options, admission)

    async def generate(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission,
    ) -> AsyncGenerator[GenerationEvent]:
        """As `stream`, with any model that the servers have."""
        options = replace(options, context_tokens=self._options.context_tokens)
        request = self._gate.request(model, messages, options, admission)
        self._tally.requests += 1
        self._gate.admit(request, self._dispatcher)
        owner, charged = admission.owner, request.prompt.tokens + request.expected_tokens
        self._gate.owners.begin(owner)
        self._gate.owners.charge(owner, charged, self._clock())
        try:
            async with aclosing(self._run(Asked(request, messages, options))) as events:
                async for event in events:
                    if isinstance(event, Completion):
                        used = event.prompt_tokens + event.completion_tokens
                        self._gate.owners.charge(owner, used - charged, self._clock())
                    yield event
        finally:
            self._gate.owners.end(owner)

    async def _run(self, asked: Asked) -> AsyncGenerator[GenerationEvent]:
        request = asked.request
        while True:
            async with aclosing(self._turn(request)) as places:
                async for place in places:
                    yield place
            if not await self._dispatcher.confirm(*request.server()):
                request.had_its_turn = True
                continue
            request.had_its_turn = True
            try:
                async with aclosing(self._attempts.stream(asked, *request.server())) as events:
                    async for event in events:
                        yield event
                return
            except InstanceBroke:
                self._count_failover("stream")
                raise
            except InstanceFailed as failure:
                if failure.cause == "refused":
                    raise
                usable = self._dispatcher.usable(request)
                if len(request.tried) >= MAX_ATTEMPTS or not usable:
                    raise self._gate.unavailable(request, failure) from None
                self._count_failover("first_token")
                log.info("generation_moves_on", why=failure.cause)

    async def _turn(self, request: Request) -> AsyncGenerator[Queued]:
        """Where the request stands, until it has been granted a server."""
        joined_at = self._clock()
        granted = self._dispatcher.join(request)
        pause_seconds = QUEUED_AFTER_SECONDS
        try:
            while not granted.done():
                left_seconds = max(0.0, request.deadline_at - self._clock())
                await asyncio.wait({granted}, timeout=min(pause_seconds, left_seconds))
                if granted.done():
                    break
                if left_seconds <= pause_seconds:
                    raise self._gate.overloaded(
                        "timed_out",
                        "No model server was free within "
                        f"{request.deadline_at - request.arrived_at:g} seconds.",
                        request.expected_wait_seconds,
                    )
                yield Queued(self._dispatcher.position(request), request.expected_wait_seconds)
                pause_seconds = QUEUED_EVERY_SECONDS
            granted.result()
        except BaseException:
            self._dispatcher.leave(request)
            raise
        waited_seconds = self._clock() - joined_at
        self._tally.queue_seconds.add(waited_seconds)
        STAGE_SECONDS.labels("chat", "queue").observe(waited_seconds)

    def _count_failover(self, phase: str) -> None:
        self._tally.failovers[phase] += 1
        GENERATION_FAILOVERS.labels(phase).inc()

    # --- what is known ---------------------------------------------------------------------------

    async def health(
        self, *, timeout_seconds: float = PROBE_TIMEOUT_SECONDS
    ) -> list[InstanceHealth]:
        """Every instance, asked in parallel."""
        members = list(self._members)
        asked = (
            one.instance.health(self._model, timeout_seconds=timeout_seconds) for one in members
        )
        return [
            replace(
                health,
                slots=member.slots,
                in_flight=member.in_flight,
                ejected=member.breaker.is_open,
                reason=health.reason or ("failed repeatedly" if member.breaker.is_open else None),
            )
            for member, health in zip(members, await asyncio.gather(*asked), strict=True)
        ]

    def statistics(self) -> PoolStatistics:
        """From memory: nobody is asked."""
        now = self._clock()
        tally = self._tally
        lanes = self._dispatcher.lanes
        shared = self._dispatcher.shared
        return PoolStatistics(
            model=self._model,
            requests=tally.requests,
            completed=tally.completed,
            queue=QueueStatistics(
                waiting_interactive=lanes.length("interactive"),
                waiting_batch=lanes.length("batch"),
                expected_wait_ms=milliseconds(self._next_wait_seconds()),
            ),
            queue_wait_ms=tally.queue_seconds.percentiles(times=1000),
            first_token_ms=tally.first_token_seconds.percentiles(times=1000),
            token_gap_ms=tally.gap_seconds.percentiles(times=1000),
            choice_ms=tally.choice_seconds.percentiles(times=1000),
            prediction_ratio=tally.prediction_ratio.percentiles(),
            failovers=dict(tally.failovers),
            shed={str(why): count for why, count in tally.shed.items()},
            hedges=dict(tally.hedges),
            processes=1 if shared is None else shared.processes,
            slots_shared=shared is not None and shared.is_shared,
            instances=[instance_statistics(member, now) for member in self._members],
        )

    def _heard_of_others(self) -> None:
        if self._dispatcher.shared is not None:
            self._gate.owners.processes = self._dispatcher.shared.processes
        self._dispatcher.dispatch()

    def _next_wait_seconds(self) -> float:
        """What an interactive request of the usual size would wait if it came now."""
        typical = self._gate.request(self._model, [], self._options, UNHURRIED)
        if self._dispatcher.is_free_for(typical):
            return 0.0
        return self._dispatcher.wait_seconds(typical)
