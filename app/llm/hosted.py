"""What all models at a provider have in common: patience, retries, limits, and how errors are told.

An adapter only speaks its provider's protocol (a `Wire`); everything that must not differ between
providers stands here.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from random import Random
from time import monotonic, perf_counter
from typing import Literal, Protocol

from app.errors import GenerationInterrupted, GenerationUnavailable
from app.llm.base import (
    UNHURRIED,
    Admission,
    Completion,
    GenerationEvent,
    GenerationOptions,
    Message,
    TextDelta,
)

Cause = Literal[
    "busy", "cut", "failed", "garbage", "missing", "no_key", "no_package", "refused", "silent",
    "stalled", "unreachable",
]  # fmt: skip

FAULTS = frozenset[Cause]({"cut", "failed", "garbage", "silent", "stalled", "unreachable"})
"""Causes that speak against the provider; the others are answers of one that is well."""

NOT_A_PROTOCOL = (AttributeError, KeyError, TypeError, ValueError)
"""What an SDK raises, beside its own errors, that reads something it does not expect."""

MAX_RETRIES = 1
RETRY_SECONDS = 0.5
RETRIES_SHARE = 0.1
"""So many retries each request allows: a provider that is down gets a tenth more, not twice as
many."""
RETRIES_SAVED = 3.0
MAX_IN_FLIGHT = 32
"""Requests to one provider at a time, in each process."""
MAX_CHARS_PER_TOKEN = 64
THINKING_TOKENS = 4096
"""Room for what a thinking model writes for itself."""
FAULTS_TO_REST = 3
FIRST_REST_SECONDS = 5.0
MAX_REST_SECONDS = 60.0
HEALTH_TIMEOUT_SECONDS = 3.0
MAX_ERROR_CHARS = 300


class Fault(Exception):
    """What went wrong, before it is known whether the reader already has some text."""

    def __init__(
        self, cause: Cause, detail: str, *, hint: str | None = None, is_transient: bool = False
    ) -> None:
        super().__init__(detail)
        self.cause: Cause = cause
        self.detail = detail
        self.hint = hint
        self.is_transient = is_transient


class ProviderFailed(GenerationUnavailable):
    """The provider gave no text; another model may answer the same request."""

    def __init__(self, cause: Cause, detail: str, *, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint or "GET /health says which provider is ill, and why.")
        self.cause: Cause = cause


class ProviderBroke(GenerationInterrupted):
    """The provider stopped after its first text."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause: Cause = cause


class Wire(Protocol):
    """A provider's protocol. Whatever goes wrong is raised as Fault."""

    def chat(
        self, model: str, messages: Sequence[Message], options: GenerationOptions, *, thinks: bool
    ) -> AsyncGenerator[TextDelta | Completion]:
        """Text as it comes, empty for a sign of life without text, then one Completion."""
        ...

    async def models(self) -> list[str]:
        """The models that the key may use, sorted."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a provider may be silent: before the first text, and between two signs of life."""

    first_token_seconds: float
    stall_seconds: float


@dataclass(frozen=True, slots=True)
class ProviderHealth:
    """`models` is None where the provider did not say; `reason` is None when all is well."""

    provider: str
    kind: str
    healthy: bool
    latency_ms: float | None = None
    models: tuple[str, ...] | None = None
    reason: str | None = None


class RetryBudget:
    """Requests earn retries by tenths, so that an outage is not made worse."""

    def __init__(self) -> None:
        self._left = RETRIES_SAVED

    def earn(self) -> None:
        self._left = min(RETRIES_SAVED, self._left + RETRIES_SHARE)

    def spend(self) -> bool:
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Rest:
    """Leaves a provider alone after faults in a row, twice as long after each further one.

    When a rest is over requests go there again; the first answer ends it all.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._faults = 0
        self._until = 0.0

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - self._clock())

    def record(self, *, is_fault: bool) -> None:
        self._faults = self._faults + 1 if is_fault else 0
        if self._faults >= FAULTS_TO_REST:
            rest_seconds = FIRST_REST_SECONDS * 2 ** min(self._faults - FAULTS_TO_REST, 10)
            self._until = self._clock() + min(rest_seconds, MAX_REST_SECONDS)


class HostedProvider:
    """A provider and its models, which share its limits.

    `open_wire` may block (it imports a package); it is called in a thread, once. It raises Fault
    where there is no key or no package, and is asked again by the next request then.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        open_wire: Callable[[], Wire],
        patience: Patience,
        *,
        random: Random | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self._open_wire = open_wire
        self._patience = patience
        self._random = random or Random()  # noqa: S311 - only spreads the retries
        self._retries = RetryBudget()
        self._rest = Rest(monotonic)
        self._wire: Wire | None = None
        self._opening = asyncio.Lock()
        self._in_flight = 0

    def model(self, name: str, *, thinks: bool = False) -> "HostedModel":
        """The model that the provider calls `name`."""
        return HostedModel(self, name, thinks=thinks)

    async def stream(
        self, model: str, messages: Sequence[Message], options: GenerationOptions, *, thinks: bool
    ) -> AsyncGenerator[TextDelta | Completion]:
        """Raises ProviderFailed before the first text, ProviderBroke after it."""
        if self._in_flight >= MAX_IN_FLIGHT:
            raise ProviderFailed("busy", f"{MAX_IN_FLIGHT} requests to {self.name} are under way.")
        if self._rest.seconds_left:
            raise ProviderFailed("failed", f"{self.name} failed repeatedly and is left alone.")
        self._in_flight += 1
        try:
            async with aclosing(self._with_retries(model, messages, options, thinks)) as events:
                async for event in events:
                    yield event
        finally:
            self._in_flight -= 1

    async def health(self) -> ProviderHealth:
        """Whether the provider lists its models, within HEALTH_TIMEOUT_SECONDS."""
        try:
            wire = await self._opened()
            started = perf_counter()
            async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
                models = await wire.models()
            latency_ms = (perf_counter() - started) * 1000
        except Fault as fault:
            return ProviderHealth(self.name, self.kind, healthy=False, reason=fault.detail)
        except TimeoutError:
            return ProviderHealth(self.name, self.kind, healthy=False, reason="no reply")
        return ProviderHealth(self.name, self.kind, True, latency_ms, tuple(models))

    async def warm_up(self) -> None:
        """Open what the first request would have to wait for; what cannot be opened it will tell."""
        with suppress(Fault):
            await self._opened()

    async def close(self) -> None:
        if self._wire is not None:
            await self._wire.close()

    async def _opened(self) -> Wire:
        async with self._opening:
            if self._wire is None:
                self._wire = await asyncio.to_thread(self._open_wire)
            return self._wire

    async def _with_retries(
        self, model: str, messages: Sequence[Message], options: GenerationOptions, thinks: bool
    ) -> AsyncGenerator[TextDelta | Completion]:
        self._retries.earn()
        deadline = asyncio.get_running_loop().time() + self._patience.first_token_seconds
        retries_left, has_text = MAX_RETRIES, False
        while True:
            try:
                wire = await self._opened()
                asked = wire.chat(model, messages, options, thinks=thinks)
                async with aclosing(self._timed(asked, options, deadline)) as events:
                    async for event in events:
                        yield event
                        has_text = True
                self._rest.record(is_fault=False)
                return
            except Fault as fault:
                self._rest.record(is_fault=fault.cause in FAULTS)
                detail = f"{self.name}: {fault.detail}"
                if has_text:
                    raise ProviderBroke(fault.cause, detail) from None
                if not (fault.is_transient and retries_left and self._retries.spend()):
                    raise ProviderFailed(fault.cause, detail, hint=fault.hint) from None
                retries_left -= 1
            await asyncio.sleep(RETRY_SECONDS * self._random.uniform(0.5, 1))

    async def _timed(
        self,
        asked: AsyncGenerator[TextDelta | Completion],
        options: GenerationOptions,
        deadline: float,
    ) -> AsyncGenerator[TextDelta | Completion]:
        """What is asked for, as long as it comes in time and there is not too much of it."""
        chars_left = options.max_tokens * MAX_CHARS_PER_TOKEN
        clock = asyncio.get_running_loop().time
        silence: Cause = "silent"
        async with aclosing(asked) as events:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await anext(events, None)
                except TimeoutError:
                    raise Fault(silence, "The model sent nothing for too long.") from None
                if event is None:
                    raise Fault("cut", "The model's answer ended before it was complete.")
                if isinstance(event, Completion):
                    yield event
                    return
                if event.text:
                    chars_left -= len(event.text)
                    if chars_left < 0:
                        raise Fault("garbage", "The model sent more than it was asked for.")
                    yield event
                # Set after the reader took the event: its slowness is not the provider's.
                deadline = clock() + self._patience.stall_seconds
                silence = "stalled"


class HostedModel:
    """A ChatModel of one provider."""

    def __init__(self, provider: HostedProvider, name: str, *, thinks: bool) -> None:
        self._provider = provider
        self._name = name
        self._thinks = thinks

    @property
    def name(self) -> str:
        return self._name

    async def digest(self) -> str | None:
        """The name at its provider, who tells nothing more of the weights behind it."""
        return f"{self._provider.name}/{self._name}"

    async def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        """See ChatModel. Providers have lines of their own, so no place in one is told."""
        asked = self._provider.stream(self._name, messages, options, thinks=self._thinks)
        async with aclosing(asked) as events:
            async for event in events:
                yield event


def storable(text: str) -> str:
    """Without NUL and lone surrogates, which neither UTF-8 nor the database can hold."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def fault_of_status(status: int, said: str, *, model: str, key: str | None) -> Fault:
    """What an error reply means. Its words are told without the key, or not at all."""
    if status in (401, 403):
        return Fault(
            "no_key",
            f"The provider refuses the key (status {status}).",
            hint="Set a valid key in the environment and start the service again.",
        )
    if status == 404:
        return Fault("missing", f"The provider does not have the model {model}.")
    told = said.replace(key, "…") if key else said
    words = f"status {status}: {storable(told)[:MAX_ERROR_CHARS]}".rstrip(": ")
    if status == 429:
        return Fault("busy", f"The provider is at its limit ({words}).", is_transient=True)
    if status < 500 and status not in (408, 409):
        return Fault("refused", f"The provider refuses the request ({words}).")
    return Fault("failed", f"The provider failed ({words}).", is_transient=True)
