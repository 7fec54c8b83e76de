"""One request on one server after the other, and sometimes on two, until one of them speaks.

Before the first visible token a failed attempt is replaced unnoticed; after it, it fails openly:
text that somebody has read cannot be taken back, and another server would not go on with it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import structlog

from app.llm.base import Completion, GenerationOptions, Message, TextDelta
from app.llm.dispatch import Dispatcher, Request
from app.llm.draining import Drain
from app.llm.habits import Habits
from app.llm.hedging import NEAR_SATURATION, HedgeBudget
from app.llm.members import MODEL_MISSING_SECONDS, AnswerDrain, Member, Work
from app.llm.ollama import InstanceBroke, InstanceFailed, Patience
from app.llm.statistics import PoolTally
from app.llm.supervision import Supervisor
from app.telemetry import (
    GENERATION_FAILURES,
    HEDGES,
    PREDICTION_RATIO,
    PREFIX_TOKENS,
    STAGE_SECONDS,
    TOKEN_GAP_SECONDS,
)

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Asked:
    """What is sent to whichever server, and the attempts made so far."""

    request: Request
    messages: Sequence[Message]
    options: GenerationOptions


@dataclass(eq=False, slots=True)
class Attempt:
    """A request on one server."""

    member: Member
    work: Work
    drain: AnswerDrain


class Attempts:
    """Begins attempts, learns from what comes, and settles with the server when they are over."""

    def __init__(
        self,
        members: Sequence[Member],
        dispatcher: Dispatcher,
        supervisor: Supervisor,
        habits: Habits,
        patience: Patience,
        tally: PoolTally,
        clock: Callable[[], float],
    ) -> None:
        self._members = members
        self._dispatcher = dispatcher
        self._supervisor = supervisor
        self._habits = habits
        self._patience = patience
        self._tally = tally
        self._clock = clock
        self._hedges = HedgeBudget()

    async def stream(
        self, asked: Asked, member: Member, work: Work
    ) -> AsyncGenerator[TextDelta | Completion]:
        """What the first server to speak says.

        Raises InstanceFailed before the first text, when all that were asked have failed, and
        InstanceBroke after it.
        """
        self._hedges.earn()
        attempts = [self._begin(asked, member, work)]
        try:
            spoken = await self._first_to_speak(asked, attempts)
            async with aclosing(aiter(spoken.drain)) as events:
                async for event in events:
                    yield event
        finally:
            for attempt in attempts:
                attempt.drain.close()

    def _begin(self, asked: Asked, member: Member, work: Work) -> Attempt:
        request = asked.request
        request.tried.add(member)
        source = member.instance.stream(
            request.model, asked.messages, asked.options, self._patience
        )
        drain = Drain(self._watched(member, work, source), partial(self._settle, member, work))
        work.drain = drain
        self._watch_silence(member, work)
        return Attempt(member, work, drain)

    # --- the first to speak ----------------------------------------------------------------------

    async def _first_to_speak(self, asked: Asked, attempts: list[Attempt]) -> Attempt:
        """The attempt that gives text first; the others are closed.

        A second one joins `attempts` when the first is late and the budget allows it.
        """
        running = list(attempts)
        hedge_seconds = attempts[0].member.hedge_after_seconds(attempts[0].work)
        while True:
            begun = {asyncio.ensure_future(one.drain.begun()): one for one in running}
            try:
                done, _ = await asyncio.wait(
                    begun, timeout=hedge_seconds, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for task in begun:
                    task.cancel()
            for task in done:
                if task.exception() is None:
                    return self._winner(begun[task], attempts)
            for task in done:
                running.remove(begun[task])
                if not running:
                    task.result()
            if not done:
                running += await self._hedge(asked, attempts)
            hedge_seconds = None

    async def _hedge(self, asked: Asked, attempts: list[Attempt]) -> list[Attempt]:
        """A second attempt on a warm, idle server; none near saturation or over the budget."""
        now = self._clock()
        request = asked.request
        slots = sum(one.usable_slots(now) for one in self._members)
        taken = sum(one.in_flight for one in self._members)
        if self._hedges.is_spent or len(self._dispatcher.lanes) or taken >= NEAR_SATURATION * slots:
            return []
        warm = [
            one
            for one in self._dispatcher.usable(request)
            if one.is_warm(request.model) and one.has_free_slot(now)
        ]
        if not warm:
            return []
        member = min(warm, key=lambda one: self._dispatcher.work_seconds(one, request, now))
        work = self._dispatcher.begin(member, request, now)
        if not await self._dispatcher.confirm(member, work):
            return []
        self._hedges.spend()
        self._tally.hedges["launched"] += 1
        HEDGES.labels("launched").inc()
        hedge = self._begin(asked, member, work)
        attempts.append(hedge)
        return [hedge]

    def _winner(self, winner: Attempt, attempts: list[Attempt]) -> Attempt:
        if len(attempts) > 1:
            outcome = "wasted" if winner is attempts[0] else "won"
            self._tally.hedges[outcome] += 1
            HEDGES.labels(outcome).inc()
        for one in attempts:
            if one is not winner and one.member.last_sign_at > one.work.dispatched_at:
                one.drain.close()
            elif one is not winner:
                # Closed now, its silence would never be known for what it is.
                one.work.is_left_behind = True
        attempts[:] = [winner]
        return winner

    # --- what comes ------------------------------------------------------------------------------

    async def _watched(
        self, member: Member, work: Work, source: AsyncGenerator[TextDelta | Completion]
    ) -> AsyncGenerator[TextDelta | Completion]:
        """The same events; the server's speed is learnt from when they come."""
        async with aclosing(source) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    self._saw_token(member, work)
                    if work.is_left_behind and work.drain is not None:
                        work.drain.close()
                else:
                    self._saw_completion(member, work, event)
                yield event

    def _saw_token(self, member: Member, work: Work) -> None:
        now = self._clock()
        if work.has_stalled:
            self._supervisor.hear(member)
        gap_seconds = member.saw_token(work, now)
        if gap_seconds is None:
            seconds = now - work.dispatched_at
            self._tally.first_token_seconds.add(seconds)
            STAGE_SECONDS.labels("chat", "first_token").observe(seconds)
            if work.watch is not None:
                work.watch.cancel()
            self._watch_silence(member, work)
        else:
            self._tally.gap_seconds.add(gap_seconds)
            TOKEN_GAP_SECONDS.observe(gap_seconds)

    def _saw_completion(self, member: Member, work: Work, completion: Completion) -> None:
        now = self._clock()
        predicted_seconds = work.predicted_seconds(completion.completion_tokens)
        cached = member.saw_completion(work, completion, now)
        self._habits.add(work.model, work.prompt, completion)
        PREFIX_TOKENS.labels("expected").inc(work.expected_cached)
        PREFIX_TOKENS.labels("found").inc(cached)
        if work.has_begun and predicted_seconds > 0:
            ratio = (now - work.dispatched_at) / predicted_seconds
            self._tally.prediction_ratio.add(ratio)
            PREDICTION_RATIO.observe(ratio)

    def _watch_silence(self, member: Member, work: Work) -> None:
        """Give the work up when its server has been silent for too long; look again until then.

        In the midst of an answer the server is blamed first, and the stream is given up later.
        """
        left_seconds = member.silent_until(work, self._clock(), self._patience) - self._clock()
        if left_seconds > 0:
            loop = asyncio.get_running_loop()
            work.watch = loop.call_later(left_seconds, self._watch_silence, member, work)
        elif work.has_begun and not work.has_stalled:
            work.has_stalled = True
            self._suspect(member, work, _silence(work))
            self._watch_silence(member, work)
        elif work.drain is not None:
            work.drain.give_up(_silence(work))

    # --- the end ---------------------------------------------------------------------------------

    def _settle(self, member: Member, work: Work, error: BaseException | None) -> None:
        """A request to the server is over and its connection closed, whatever its reader does."""
        if work.watch is not None:
            work.watch.cancel()
        if error is None:
            member.tally.served += 1
            self._tally.completed += 1
            member.breaker.record_success(member.slots)
        elif isinstance(error, InstanceFailed | InstanceBroke):
            self._blame(member, work, error)
        elif isinstance(error, asyncio.CancelledError):
            member.tally.abandoned += 1
        else:
            log.error("generation_ended_in_a_bug", exc_info=error)
        self._dispatcher.release(member, work)

    def _blame(self, member: Member, work: Work, error: InstanceFailed | InstanceBroke) -> None:
        """A missing model, a refused request and a client that leaves are no faults."""
        member.tally.failed += 1
        phase = "stream" if work.has_begun else "first_token"
        GENERATION_FAILURES.labels(member.address, phase).inc()
        if error.cause == "missing":
            member.served(work.model).missing_until = self._clock() + MODEL_MISSING_SECONDS
        elif error.cause != "refused" and not work.has_stalled:
            self._suspect(member, work, error)

    def _suspect(self, member: Member, work: Work, error: InstanceFailed | InstanceBroke) -> None:
        member.last_fault_tokens = work.tokens
        member.is_unreachable = error.cause == "unreachable"
        if member.breaker.record_fault(member.weight_of(work, error.cause)):
            self._eject(member, error)

    def _eject(self, member: Member, error: InstanceFailed | InstanceBroke) -> None:
        self._supervisor.eject(member, error.cause, error.detail)
        if error.cause in ("silent", "stalled", "unreachable"):
            # Whoever waits there for a first token would wait for nothing.
            for work in list(member.works):
                if not work.has_begun and work.drain is not None:
                    work.drain.give_up(InstanceFailed(error.cause, error.detail))


def _silence(work: Work) -> InstanceFailed | InstanceBroke:
    detail = "The model sent nothing for too long."
    if work.has_begun:
        return InstanceBroke("stalled", detail)
    return InstanceFailed("silent", detail)
