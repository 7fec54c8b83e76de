"""Any number of Ollama instances behind one ChatModel.

No instance ever gets more requests than it has slots: Ollama would queue the surplus without
bound, unseen and at the wrong place. The surplus waits here, in one bounded queue with a
deadline, and goes to whichever instance has a free slot first. Until the first visible token a
failed request moves to another instance unnoticed; after it, it fails openly.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from random import Random
from time import perf_counter
from typing import NamedTuple

import structlog

from app.errors import GenerationUnavailable, Overloaded
from app.llm.base import (
    UNHURRIED,
    Admission,
    ChatModel,
    GenerationEvent,
    GenerationOptions,
    InstanceHealth,
    Message,
    Queued,
    TextDelta,
)
from app.llm.digests import Digests, KnownDigests
from app.llm.draining import Drain
from app.llm.endpoint_health import Breaker
from app.llm.ollama import InstanceBroke, InstanceFailed, OllamaInstance, Patience
from app.llm.pooled import PooledModel
from app.telemetry import (
    DEGRADED,
    EJECTIONS,
    GENERATION_FAILURES,
    GENERATIONS_IN_FLIGHT,
    GENERATIONS_WAITING,
    STAGE_SECONDS,
)

MAX_ATTEMPTS = 3
MODEL_MISSING_SECONDS = 30.0
"""How long an instance that lacks the model is asked last."""
TYPICAL_ANSWER_SECONDS = 10.0
"""Assumed until answers have been timed; only Retry-After depends on it."""
MAX_RETRY_AFTER_SECONDS = 60

log = structlog.get_logger(__name__)


class InstanceAddress(NamedTuple):
    """A server's URL, and how many requests it works on at once (its OLLAMA_NUM_PARALLEL)."""

    url: str
    slots: int = 1


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a request may wait for, and how many may wait."""

    queue_size: int = 64
    queue_timeout_seconds: float = 30.0
    connect_timeout_seconds: float = 2.0
    first_token_timeout_seconds: float = 120.0
    stall_timeout_seconds: float = 30.0


@dataclass(eq=False, slots=True)
class Member:
    """An instance with what the pool knows of it; times are on the event loop's clock."""

    instance: OllamaInstance
    slots: int
    breaker: Breaker
    in_flight: int = 0
    lacks_model_until: float = 0.0
    next_probe_at: float = 0.0

    @property
    def has_free_slot(self) -> bool:
        return self.in_flight < self.slots


@dataclass(eq=False, slots=True)
class _Waiter:
    granted: "asyncio.Future[Member]"
    tried: AbstractSet[Member]


class GenerationPool:
    """A ChatModel of `model`; `for_model` gives others on the same servers and slots.

    `options` are those of every request, probes included: others would reload the model.
    """

    def __init__(
        self,
        addresses: Sequence[InstanceAddress],
        model: str,
        options: GenerationOptions,
        limits: PoolLimits,
        *,
        random: Random | None = None,
    ) -> None:
        self._model = model
        self._options = options
        self._limits = limits
        self._patience = Patience(
            first_token_seconds=limits.first_token_timeout_seconds,
            stall_seconds=limits.stall_timeout_seconds,
        )
        connect_seconds = limits.connect_timeout_seconds
        self._members = [
            Member(
                OllamaInstance(url, connect_timeout_seconds=connect_seconds), slots, Breaker(random)
            )
            for url, slots in addresses
        ]
        self._queue: deque[_Waiter] = deque()
        self._turn = -1
        self._answer_seconds = TYPICAL_ANSWER_SECONDS
        self._probes: set[asyncio.Task[None]] = set()
        self._digests = KnownDigests(self._ask_digests)

    @property
    def name(self) -> str:
        return self._model

    async def digest(self) -> str | None:
        return await self.digest_of(self._model)

    async def digest_of(self, model: str) -> str | None:
        return await self._digests.get(model)

    def for_model(self, model: str) -> ChatModel:
        """Another model on the same servers: it shares their slots and the queue before them."""
        return PooledModel(self, model)

    def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        """See ChatModel; raises Overloaded when the queue is full or took too long."""
        return self.generate(self._model, messages, options, admission)

    async def generate(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission,
    ) -> AsyncGenerator[GenerationEvent]:
        """As `stream`, with any model that the servers have."""
        tried: set[Member] = set()
        while True:
            asked_at = perf_counter()
            member = self._choose(tried)
            if member is None:
                waiter = self._enqueue(tried)
                try:
                    yield Queued(len(self._queue), self._queue_seconds())
                    member = await self._granted(waiter, admission)
                except BaseException:
                    self._give_up(waiter)
                    raise
            _observe("queue", asked_at)
            tried.add(member)
            started = perf_counter()
            drain = Drain(
                member.instance.stream(model, messages, options, self._patience),
                partial(self._settle, member, started),
            )
            has_text = False
            try:
                async with aclosing(aiter(drain)) as events:
                    async for event in events:
                        if isinstance(event, TextDelta) and not has_text:
                            has_text = True
                            _observe("first_token", started)
                        yield event
                return
            except InstanceFailed as failure:
                if failure.cause == "refused":
                    raise
                if len(tried) >= MAX_ATTEMPTS or not self._usable(tried):
                    raise self._unavailable(failure) from None
                log.info("generation_moves_on", instance=member.instance.address, why=failure.cause)
            finally:
                drain.close()

    async def health(self) -> list[InstanceHealth]:
        """Every instance, asked in parallel."""
        known = await asyncio.gather(
            *(member.instance.health(self._model) for member in self._members)
        )
        return [
            replace(
                health,
                slots=member.slots,
                in_flight=member.in_flight,
                ejected=member.breaker.is_open,
                reason=health.reason or ("failed repeatedly" if member.breaker.is_open else None),
            )
            for member, health in zip(self._members, known, strict=True)
        ]

    async def close(self) -> None:
        probes = list(self._probes)
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        await self._digests.close()
        for member in self._members:
            await member.instance.close()

    async def _ask_digests(self) -> list[Digests]:
        return await asyncio.gather(*(member.instance.digests() for member in self._members))

    # --- the queue -------------------------------------------------------------------------------

    def _enqueue(self, tried: AbstractSet[Member]) -> _Waiter:
        """A place at the end of the line; whoever has one ends it with `_granted` or `_give_up`."""
        if not self._usable(tried):
            raise self._unavailable()
        if len(self._queue) >= self._limits.queue_size:
            raise Overloaded(
                "Every model server is busy and the queue is full.",
                retry_after_seconds=self._queue_seconds(),
            )
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tried)
        self._queue.append(waiter)
        GENERATIONS_WAITING.set(len(self._queue))
        return waiter

    async def _granted(self, waiter: _Waiter, admission: Admission) -> Member:
        """The slot when its turn comes; who gets it must settle it."""
        longest_seconds = self._limits.queue_timeout_seconds
        if admission.wait_seconds is not None:
            longest_seconds = min(longest_seconds, admission.wait_seconds)
        try:
            async with asyncio.timeout(longest_seconds):
                return await waiter.granted
        except TimeoutError:
            raise Overloaded(
                f"No model server was free within {longest_seconds:g} seconds.",
                retry_after_seconds=self._queue_seconds(),
            ) from None

    def _give_up(self, waiter: _Waiter) -> None:
        """Leave the queue; a slot that was granted in the same moment goes to the next one."""
        if waiter in self._queue:
            self._queue.remove(waiter)
            GENERATIONS_WAITING.set(len(self._queue))
        elif waiter.granted.done() and waiter.granted.exception() is None:
            self._release(waiter.granted.result())

    def _dispatch(self) -> None:
        """Hand free slots to who waits longest; send away whom no instance is left for."""
        for waiter in list(self._queue):
            if waiter.granted.done():
                continue
            member = self._choose(waiter.tried)
            if member is not None:
                waiter.granted.set_result(member)
            elif not self._usable(waiter.tried):
                waiter.granted.set_exception(self._unavailable())
            else:
                continue
            self._queue.remove(waiter)
        GENERATIONS_WAITING.set(len(self._queue))

    def _queue_seconds(self) -> int:
        """When the queue will probably have moved: what waits, over what works at once."""
        slots = sum(member.slots for member in self._members if not member.breaker.is_open)
        seconds = (len(self._queue) + 1) * self._answer_seconds / max(1, slots)
        return min(MAX_RETRY_AFTER_SECONDS, max(1, ceil(seconds)))

    # --- the choice ------------------------------------------------------------------------------

    def _usable(self, tried: AbstractSet[Member]) -> list[Member]:
        """Instances that this request could get, free or not."""
        now = asyncio.get_running_loop().time()
        left = [each for each in self._members if each not in tried and not each.breaker.is_open]
        return [each for each in left if each.lacks_model_until <= now] or left

    def _choose(self, tried: AbstractSet[Member]) -> Member | None:
        """The least loaded instance for its slots, taken; None when every slot is taken."""
        usable = self._usable(tried)
        free = [each for each in self._in_turn() if each.has_free_slot and each in usable]
        if not free:
            return None
        chosen = min(free, key=lambda each: each.in_flight / each.slots)
        self._take(chosen)
        return chosen

    def _in_turn(self) -> list[Member]:
        """All instances, each time from another one on: the first of equals is chosen.

        Otherwise the first instance would get all of a light load.
        """
        self._turn = (self._turn + 1) % len(self._members)
        return self._members[self._turn :] + self._members[: self._turn]

    def _take(self, member: Member) -> None:
        member.in_flight += 1
        GENERATIONS_IN_FLIGHT.labels(member.instance.address).set(member.in_flight)

    def _release(self, member: Member) -> None:
        member.in_flight -= 1
        GENERATIONS_IN_FLIGHT.labels(member.instance.address).set(member.in_flight)
        self._dispatch()

    # --- health ----------------------------------------------------------------------------------

    def _settle(self, member: Member, started: float, error: BaseException | None) -> None:
        """A request to the instance is over and its connection closed, whatever its reader does."""
        if error is None:
            seconds = perf_counter() - started
            self._answer_seconds += 0.1 * (seconds - self._answer_seconds)
            member.lacks_model_until = 0.0
            member.breaker.record_success()
        elif isinstance(error, InstanceFailed | InstanceBroke):
            phase = "first_token" if isinstance(error, InstanceFailed) else "stream"
            GENERATION_FAILURES.labels(member.instance.address, phase).inc()
            if error.cause == "missing":
                now = asyncio.get_running_loop().time()
                member.lacks_model_until = now + MODEL_MISSING_SECONDS
            elif error.cause != "refused" and member.breaker.record_fault():
                self._eject(member, error)
        elif not isinstance(error, asyncio.CancelledError):
            log.error("generation_ended_in_a_bug", exc_info=error)
        self._release(member)

    def _eject(self, member: Member, error: InstanceFailed | InstanceBroke) -> None:
        EJECTIONS.labels(member.instance.address, error.cause).inc()
        log.warning("instance_ejected", instance=member.instance.address, why=error.detail)
        probe = asyncio.create_task(self._probe_until_well(member))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)
        self._show_degradation()

    async def _probe_until_well(self, member: Member) -> None:
        clock = asyncio.get_running_loop().time
        while member.breaker.is_open:
            rest_seconds = member.breaker.next_rest_seconds()
            member.next_probe_at = clock() + rest_seconds
            await asyncio.sleep(rest_seconds)
            # A stream from before may still hold the slot; the cap holds for probes as well.
            if not member.has_free_slot:
                continue
            self._take(member)
            try:
                if await member.instance.is_generating(self._model, self._options, self._patience):
                    member.breaker.close()
                    log.info("instance_readmitted", instance=member.instance.address)
            finally:
                self._show_degradation()
                self._release(member)

    def _show_degradation(self) -> None:
        DEGRADED.labels("ollama").set(any(member.breaker.is_open for member in self._members))

    def _unavailable(self, last: InstanceFailed | None = None) -> GenerationUnavailable:
        """Why no instance is left for a request, and when to come again."""
        now = asyncio.get_running_loop().time()
        if all(member.lacks_model_until > now for member in self._members):
            return GenerationUnavailable(
                f"No model server has the model {self.name}.",
                hint=f"On the model server run `ollama pull {self.name}`.",
            )
        probes_at = [each.next_probe_at for each in self._members if each.breaker.is_open]
        wait_seconds = ceil(min(probes_at) - now) if len(probes_at) == len(self._members) else 1
        return GenerationUnavailable(
            last.detail if last else "Every model server that could answer has failed repeatedly.",
            hint=last.hint if last else None,
            retry_after_seconds=max(1, wait_seconds),
        )


def _observe(name: str, started: float) -> None:
    STAGE_SECONDS.labels("chat", name).observe(perf_counter() - started)
