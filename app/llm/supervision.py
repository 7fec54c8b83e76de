"""Looking after the servers behind the requests' backs: loading, measuring, probing, readmitting.

Whether a server generates is known from traffic first. Only where there is none it is asked for a
token: everything else that Ollama answers, it also answers while generation is wedged.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from random import Random

import structlog

from app.llm.base import Completion, GenerationOptions, Message
from app.llm.digests import with_tag
from app.llm.members import Member
from app.llm.ollama import InstanceBroke, InstanceFailed, Patience
from app.llm.shared_slots import SharedSlots
from app.telemetry import DEGRADED, EJECTIONS, MODEL_LOADS

PROBE_SECONDS = 30.0
UNREACHABLE_REST_SECONDS = 2.0
"""A refused connection costs nothing, so a server that comes back is found soon."""
CANARY_SECONDS = 20.0
"""A server that takes longer for one token of a tiny prompt, with its model loaded, is wedged."""
RETIRE_SECONDS = 0.1
CANCELLED_AGAIN_SECONDS = 0.2
MEASURED_TOKENS = 8
MOST_CANARY_TOKENS = 64
PAUSE_SECONDS = 2.0
"""A probe that waited longer before its answer began may have been held up by what is over now."""
CANARY = "{first}: count on from this number to {last}, with a space between the numbers."
"""Long enough an answer to see whether a server that cut its streams still does. It never begins
the same: of a prompt that the server has cached it says the time of one token as that of all."""

log = structlog.get_logger(__name__)


class Supervisor:
    """A background task per server that needs it, and one that probes all now and then.

    `freed` is called whenever a server may have become usable.
    """

    def __init__(
        self,
        members: list[Member],
        models: Sequence[str],
        options: GenerationOptions,
        patience: Patience,
        freed: Callable[[], None],
        *,
        clock: Callable[[], float],
        random: Random | None,
    ) -> None:
        self._members = members
        self._models = models
        self._options = options
        self._patience = patience
        self._freed = freed
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - only spreads the probes
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovering: set[Member] = set()
        self.shared: SharedSlots | None = None

    def watch(self) -> None:
        """Make all servers ready, then probe them every PROBE_SECONDS."""
        for member in self._members:
            self.meet(member)
        self.spawn(self._probe_all())

    def meet(self, member: Member) -> None:
        """Load what is not resident and measure the speed once, while it has nothing else to do."""
        self.spawn(self._meet(member))

    def eject(self, member: Member, cause: str, detail: str) -> None:
        """Its breaker has opened: probe it until it generates again."""
        member.tally.ejections[cause] += 1
        EJECTIONS.labels(member.address, cause).inc()
        log.warning("instance_ejected", instance=member.address, why=detail)
        for served in member.models.values():
            served.speed.doubt()
        member.was_silent = cause in ("silent", "stalled")
        self._show_degradation()
        if member not in self._recovering:
            self._recovering.add(member)
            self.spawn(self._recover(member))

    def hear(self, member: Member) -> None:
        """A stream that had stalled goes on: its server was ejected for silence, and is back."""
        if member.breaker.is_open and member.was_silent:
            self._readmit(member)

    def retire(self, member: Member) -> None:
        """Forget the server when its last request is over."""
        member.is_removed = True
        self.spawn(self._retire(member))

    async def close(self) -> None:
        # Until Python 3.12 wait_for, in Redis's client, swallows a cancellation that comes as it
        # ends.
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CANCELLED_AGAIN_SECONDS)

    def _show_degradation(self) -> None:
        DEGRADED.labels("ollama").set(any(one.breaker.is_open for one in self._members))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the first time --------------------------------------------------------------------------

    async def _meet(self, member: Member) -> None:
        try:
            await self.look(member)
            for model in self._models:
                if member.served(model).is_resident is False:
                    await self._load(member, model)
            model = self._models[0]
            if not member.works and not member.breaker.is_open:
                await self._generates(member, model, MEASURED_TOKENS)
        except InstanceFailed as failure:
            # Requests will show whether it is a fault; whoever is away now may be there by then.
            log.info("instance_not_met", instance=member.address, why=failure.detail)

    async def look(self, member: Member) -> None:
        """Which models are resident; raises InstanceFailed when the server does not say."""
        resident = await member.instance.resident_models()
        member.is_unreachable = False
        for model in self._models:
            served = member.served(model)
            was_resident = served.is_resident
            served.is_resident = with_tag(model) in resident
            if served.is_resident:
                served.loading_since = None
            elif was_resident:
                served.prefixes.forget()

    async def _load(self, member: Member, model: str) -> None:
        served = member.served(model)
        served.loading_since = started = self._clock()
        try:
            # Nobody may leave while it loads: Ollama gives up a load whose caller is gone.
            await _run(member, model, [], self._options, self._patience)
            served.is_resident = True
            served.speed.add_load(self._clock() - started)
            member.tally.loads += 1
            MODEL_LOADS.labels(member.address).inc()
            log.info("model_loaded", instance=member.address, model=model)
        finally:
            served.loading_since = None

    async def _retire(self, member: Member) -> None:
        while member.in_flight:
            await asyncio.sleep(RETIRE_SECONDS)
        if not member.is_removed or member not in self._members:
            # It was asked to stay after all, or has gone already.
            return
        self._members.remove(member)
        await member.instance.close()
        self._freed()

    # --- now and then ----------------------------------------------------------------------------

    async def _probe_all(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS * self._random.uniform(0.9, 1.1))
            probed = [one for one in self._members if not (one.breaker.is_open or one.is_draining)]
            await asyncio.gather(*map(self._probe, probed))

    async def _probe(self, member: Member) -> None:
        try:
            await self.look(member)
            for model in self._models:
                served = member.served(model)
                if served.is_resident is False and served.loading_since is None:
                    await self._load(member, model)
            is_idle = self._clock() - member.last_sign_at >= PROBE_SECONDS and not member.works
            if is_idle and not await self._generates(member, self._models[0], 1):
                self._eject_idle(member)
        except InstanceFailed as failure:
            log.info("instance_not_probed", instance=member.address, why=failure.detail)

    def _eject_idle(self, member: Member) -> None:
        if member.breaker.record_fault(weight=2):
            self.eject(member, "canary", "The idle server gave no token when it was asked for one.")

    # --- the way back ----------------------------------------------------------------------------

    async def _recover(self, member: Member) -> None:
        probed_at = self._clock()
        while member.breaker.is_open and member in self._members:
            rest_seconds = member.breaker.next_rest_seconds()
            if member.is_unreachable:
                rest_seconds = min(rest_seconds, UNREACHABLE_REST_SECONDS)
            # A probe that waited in silence was a rest for the server, and the next one waits for
            # its first sign of life in turn.
            member.next_probe_at = max(self._clock(), probed_at + rest_seconds)
            await asyncio.sleep(member.next_probe_at - self._clock())
            probed_at = self._clock()
            try:
                if await self._is_well(member) and member.breaker.is_open:
                    self._readmit(member)
            except InstanceFailed as failure:
                member.is_unreachable = failure.cause == "unreachable"
                if member.is_unreachable:
                    member.give_up_stalled(InstanceBroke(failure.cause, failure.detail))
        self._recovering.discard(member)
        self._show_degradation()

    def _readmit(self, member: Member) -> None:
        member.breaker.close()
        self._freed()
        self._show_degradation()
        log.info("instance_readmitted", instance=member.address)

    async def _is_well(self, member: Member) -> bool:
        await self.look(member)
        model = self._models[0]
        if member.served(model).is_resident is False:
            await self._load(member, model)
        # As many as measure its speed anew, and more than it gave before it failed.
        tokens = min(MOST_CANARY_TOKENS, MEASURED_TOKENS + member.last_fault_tokens)
        return await self._generates(member, model, tokens)

    async def _generates(self, member: Member, model: str, tokens: int) -> bool:
        """Whether it writes so many tokens; a server without a free slot is busy, not well."""
        if not await self._take(member):
            return False
        options = replace(self._options, max_tokens=tokens)
        patience = Patience(
            first_token_seconds=min(CANARY_SECONDS, self._patience.first_token_seconds),
            stall_seconds=min(CANARY_SECONDS, self._patience.stall_seconds),
        )
        if not member.served(model).is_resident:
            patience = self._patience
        measures = tokens >= MEASURED_TOKENS
        try:
            completion = await _run(member, model, self._canary(), options, patience)
            waited_seconds = completion.durations.total_seconds
            waited_seconds -= completion.durations.completion_seconds
            if measures and waited_seconds > PAUSE_SECONDS:
                # A pause says nothing of its speed; the same again does.
                options = replace(options, max_tokens=MEASURED_TOKENS)
                completion = await _run(member, model, self._canary(), options, patience)
        except InstanceBroke:
            return False
        except InstanceFailed as failure:
            if failure.cause in ("missing", "unreachable"):
                raise
            return failure.cause == "refused"
        finally:
            self._give_back(member)
        self._learn(member, model, completion, measures=measures)
        return True

    def _canary(self) -> list[Message]:
        first = self._random.randrange(1_000, 1_000_000)
        return [Message("user", CANARY.format(first=first, last=first + 100))]

    async def _take(self, member: Member) -> bool:
        """A slot for a probe: the cap holds for the pool's own requests, too."""
        slots = member.real_slots(self._clock()) - member.held_by_others
        if member.in_flight >= slots:
            return False
        member.probes += 1
        if self.shared is None or await self.shared.take(member):
            return True
        member.probes -= 1
        return False

    def _give_back(self, member: Member) -> None:
        member.probes -= 1
        if self.shared is not None:
            self.shared.give_back(member)
        self._freed()

    def _learn(self, member: Member, model: str, completion: Completion, *, measures: bool) -> None:
        member.last_sign_at = self._clock()
        served = member.served(model)
        served.is_resident = True
        if measures:
            # However short the answer was: what was known before says less.
            durations = completion.durations
            served.speed.add_completion(completion, expected_cached=0.0)
            if completion.completion_tokens > 1 and durations.completion_seconds > 0:
                seconds = durations.completion_seconds / completion.completion_tokens
                served.speed.add_tokens(seconds, 1)


async def _run(
    member: Member,
    model: str,
    messages: Sequence[Message],
    options: GenerationOptions,
    patience: Patience,
) -> Completion:
    """A request of the pool's own, from its beginning to its end."""
    async with aclosing(member.instance.stream(model, messages, options, patience)) as events:
        async for event in events:
            if isinstance(event, Completion):
                return event
    raise AssertionError("a stream ends with a completion")  # pragma: no cover
