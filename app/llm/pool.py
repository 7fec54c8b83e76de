"""Any number of Ollama instances behind one ChatModel.

No instance ever gets more requests than it has slots: Ollama would queue the surplus without
bound, unseen and at the wrong place. The surplus waits here, in one bounded line, and each goes where
it is expected to be over first, as late as it can be decided. Until the first visible token a failed
request moves to another instance unnoticed; after it, it fails openly.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from random import Random
from time import monotonic

import structlog

from app.errors import FootnoteError, GenerationUnavailable, Overloaded, RateLimited
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
from app.llm.lanes import OwnerLimits
from app.llm.ollama import (
    PROBE_TIMEOUT_SECONDS,
    InstanceBroke,
    InstanceFailed,
    OllamaInstance,
    Patience,
)
from app.llm.pooled import PooledModel
from app.llm.roster import Connect, InstanceAddress, Roster, State
from app.llm.statistics import PoolStatistics, PoolTally, Shed, instance_statistics
from app.llm.supervision import Supervisor
from app.telemetry import GENERATION_FAILOVERS, GENERATION_SHED, STAGE_SECONDS

MAX_ATTEMPTS = 5
QUEUED_AFTER_SECONDS = 0.1
"""Whoever waits for less is not told."""
QUEUED_EVERY_SECONDS = 1.0
MAX_RETRY_AFTER_SECONDS = 60

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a request may wait for, how many may wait, and what one owner may have at once.

    `batch_timeout_seconds` is the patience of the batch lane. An owner's limits are off at zero.
    """

    queue_size: int = 64
    queue_timeout_seconds: float = 30.0
    batch_timeout_seconds: float = 300.0
    connect_timeout_seconds: float = 2.0
    first_token_timeout_seconds: float = 120.0
    stall_timeout_seconds: float = 30.0
    owner_concurrency: int = 0
    owner_tokens_per_minute: int = 0


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
        self._limits = limits
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
        self._owners = OwnerLimits(
            concurrency=limits.owner_concurrency,
            tokens_per_minute=limits.owner_tokens_per_minute,
        )
        self._digests = KnownDigests(lambda: (one.instance.digests() for one in self._members))
        self._dispatcher = Dispatcher(
            self._members, self._habits, self._unavailable, self._tally, clock
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

    def start(self) -> None:
        """From now on, load models before they are asked for, and probe servers that idle."""
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

    def configure(self, addresses: Sequence[InstanceAddress]) -> None:
        """From now on these servers, and no others."""
        self._roster.configure(addresses, self._supervisor)
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
        request = self._request(model, messages, options, admission)
        self._tally.requests += 1
        self._admit(request)
        owner, charged = admission.owner, request.prompt.tokens + request.expected_tokens
        self._owners.begin(owner)
        self._owners.charge(owner, charged, self._clock())
        try:
            async with aclosing(self._run(Asked(request, messages, options))) as events:
                async for event in events:
                    if isinstance(event, Completion):
                        used = event.prompt_tokens + event.completion_tokens
                        self._owners.charge(owner, used - charged, self._clock())
                    yield event
        finally:
            self._owners.end(owner)

    async def _run(self, asked: Asked) -> AsyncGenerator[GenerationEvent]:
        request = asked.request
        while True:
            async with aclosing(self._turn(request)) as places:
                async for place in places:
                    yield place
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
                    raise self._unavailable(request, failure) from None
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
                    raise self._overloaded(
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

    # --- being let in ----------------------------------------------------------------------------

    def _request(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission,
    ) -> Request:
        now = self._clock()
        is_batch = admission.lane == "batch"
        longest_seconds = (
            self._limits.batch_timeout_seconds if is_batch else self._limits.queue_timeout_seconds
        )
        if admission.wait_seconds is not None:
            longest_seconds = min(longest_seconds, admission.wait_seconds)
        prompt, expected_tokens = self._habits.expect(model, messages, options.max_tokens)
        return Request(
            model,
            prompt,
            expected_tokens,
            admission,
            arrived_at=now,
            deadline_at=now + longest_seconds,
        )

    def _admit(self, request: Request) -> None:
        """Raises what the request is refused with, at once."""
        owner = request.admission.owner
        if not self._owners.has_room(owner):
            self._count_shed("owner_limit")
            raise RateLimited(
                f"This key has {self._owners.concurrency} questions under way already.",
                retry_after_seconds=ceil(self._dispatcher.wait_seconds(request)) or 1,
            )
        seconds = self._owners.seconds_until_tokens(owner, request.arrived_at)
        if seconds:
            self._count_shed("owner_limit")
            raise RateLimited(
                "This key has used its tokens of this minute.", retry_after_seconds=ceil(seconds)
            )
        if not self._dispatcher.usable(request):
            raise self._unavailable(request)
        if self._dispatcher.is_free_for(request):
            return
        wait_seconds = self._dispatcher.wait_seconds(request)
        if len(self._dispatcher.lanes) >= self._limits.queue_size:
            raise self._overloaded(
                "queue_full", "Every model server is busy and the queue is full.", wait_seconds
            )
        longest_seconds = request.deadline_at - request.arrived_at
        if wait_seconds > longest_seconds and self._habits.knows(request.model):
            raise self._overloaded(
                "wait_too_long",
                f"A model server is expected to be free in {wait_seconds:.0f} seconds only; "
                f"the request waits for {longest_seconds:g}.",
                wait_seconds,
            )

    def _overloaded(self, why: Shed, detail: str, wait_seconds: float) -> Overloaded:
        self._count_shed(why)
        return Overloaded(
            detail,
            retry_after_seconds=min(MAX_RETRY_AFTER_SECONDS, max(1, ceil(wait_seconds))),
        )

    def _count_failover(self, phase: str) -> None:
        self._tally.failovers[phase] += 1
        GENERATION_FAILOVERS.labels(phase).inc()

    def _count_shed(self, why: Shed) -> None:
        self._tally.shed[why] += 1
        GENERATION_SHED.labels(why).inc()

    def _unavailable(self, request: Request, last: InstanceFailed | None = None) -> FootnoteError:
        """Why no instance is left for a request, and when to come again."""
        now = self._clock()
        serving = [one for one in self._members if not one.is_draining]
        if serving and all(one.served(request.model).missing_until > now for one in serving):
            return GenerationUnavailable(
                f"No model server has the model {request.model}.",
                hint=f"On the model server run `ollama pull {request.model}`.",
            )
        probes_at = [one.next_probe_at for one in serving if one.breaker.is_open]
        all_out = bool(probes_at) and len(probes_at) == len(serving)
        return GenerationUnavailable(
            last.detail if last else "Every model server that could answer has failed repeatedly.",
            hint=last.hint if last else None,
            retry_after_seconds=max(1, ceil(min(probes_at) - now)) if all_out else 1,
        )

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
        return PoolStatistics(
            model=self._model,
            waiting={"interactive": lanes.length("interactive"), "batch": lanes.length("batch")},
            requests=tally.requests,
            completed=tally.completed,
            expected_wait_seconds=self._next_wait_seconds(),
            queue_seconds=tally.queue_seconds.percentiles(),
            first_token_seconds=tally.first_token_seconds.percentiles(),
            gap_seconds=tally.gap_seconds.percentiles(),
            choice_seconds=tally.choice_seconds.percentiles(),
            prediction_ratio=tally.prediction_ratio.percentiles(),
            failovers=dict(tally.failovers),
            shed={str(why): count for why, count in tally.shed.items()},
            hedges=dict(tally.hedges),
            instances=[instance_statistics(member, now) for member in self._members],
        )

    def _next_wait_seconds(self) -> float:
        """What an interactive request of the usual size would wait if it came now."""
        typical = self._request(self._model, [], self._options, UNHURRIED)
        if self._dispatcher.is_free_for(typical):
            return 0.0
        return self._dispatcher.wait_seconds(typical)
