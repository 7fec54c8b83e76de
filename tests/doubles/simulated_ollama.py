"""An Ollama server without a socket, for the pool in virtual time: the protocol is not its concern.

It has what decides about scheduling: slots with an unbounded line before them, loading, reading
(of one token where the prompt was read before), writing that slows down with company, and faults. How
long an answer is stands in the message.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.llm.base import (
    Completion,
    Durations,
    GenerationOptions,
    InstanceHealth,
    Message,
    TextDelta,
)
from app.llm.ollama import Cause, InstanceBroke, InstanceFailed, Patience

Fault = Literal["hang", "dead", "cut"]
WANTED = re.compile(r"\[(\d+) tokens\]")
CHARS_PER_TOKEN = 4


@dataclass
class SimulatedOllama:
    """Speeds in tokens per second; `slow_factor` and `fault` may change at any time."""

    address: str
    slots: int = 1
    tokens_per_second: float = 50.0
    prompt_tokens_per_second: float = 1000.0
    slowdown: float = 0.0
    load_seconds: float = 5.0
    is_loaded: bool = True
    slow_factor: float = 1.0
    fault: Fault | None = None
    cut_after_tokens: int = 5
    in_flight: int = 0
    most_in_flight: int = 0
    requests: int = 0
    _waiting: asyncio.Condition = field(default_factory=asyncio.Condition)
    _writing: int = 0
    _read: set[str] = field(default_factory=set[str])
    _timeouts: dict[int, asyncio.Timeout] = field(default_factory=dict)
    _loading: "asyncio.Future[None] | None" = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, *, fault: Fault | None) -> None:
        self.fault = fault
        if fault == "dead":
            # Whoever waits for a token sees the connection break now.
            for timeout in self._timeouts.values():
                if timeout.when() is not None and not timeout.expired():
                    timeout.reschedule(0)
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        patience: Patience,
    ) -> AsyncGenerator[TextDelta | Completion]:
        if self.fault == "dead":
            raise _failure("unreachable", False)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience.first_token_seconds
        has_text = False
        # Loading alone takes no slot.
        counted = 1 if messages else 0
        self.in_flight += counted
        self.requests += counted
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        source = self._generate(model, messages, options)
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline) as self._timeouts[id(source)]:
                        event = await anext(source)
                except TimeoutError:
                    if self.fault == "dead":
                        raise _failure("cut" if has_text else "unreachable", has_text) from None
                    raise _failure("stalled" if has_text else "silent", has_text) from None
                if event is None:
                    raise _failure("cut", has_text)
                yield event
                if isinstance(event, Completion):
                    return
                has_text = True
                deadline = loop.time() + patience.stall_seconds
        finally:
            self.in_flight -= counted
            self._timeouts.pop(id(source), None)
            await source.aclose()

    async def resident_models(self) -> frozenset[str]:
        if self.fault == "dead":
            raise InstanceFailed("unreachable", "no reply")
        return frozenset({"model:latest"} if self.is_loaded else ())

    async def health(self, model: str, *, timeout_seconds: float) -> InstanceHealth:
        return InstanceHealth(self.address, reachable=self.fault != "dead", has_model=True)

    async def close(self) -> None:
        pass

    async def _until_well(self) -> None:
        while self.fault == "hang":
            await self._changed.wait()

    async def _load(self) -> float:
        if self.is_loaded:
            return 0.0
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        if self._loading is None:
            self._loading = asyncio.ensure_future(asyncio.sleep(self.load_seconds))
        await asyncio.shield(self._loading)
        self.is_loaded = True
        return loop.time() - asked_at

    async def _generate(
        self, model: str, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[TextDelta | Completion | None]:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        load_seconds = await self._load()
        if not messages:
            yield Completion(model, "load", 0, 0, self.address)
            return
        async with self._waiting:
            await self._waiting.wait_for(lambda: self._writing < self.slots)
            self._writing += 1
        try:
            content = messages[-1].content
            prompt_tokens = max(1, len(content) // CHARS_PER_TOKEN)
            wanted = WANTED.search(content)
            tokens = min(int(wanted.group(1)) if wanted else 100, options.max_tokens)
            uncached = 1 if content in self._read else prompt_tokens
            self._read.add(content)
            prompt_seconds = uncached / self.prompt_tokens_per_second * self.slow_factor
            reading_at = loop.time()
            await asyncio.sleep(prompt_seconds)
            await self._until_well()
            began_at = loop.time()
            for count in range(tokens):
                await self._until_well()
                if self.fault == "cut" and count == self.cut_after_tokens:
                    yield None
                    return
                slowed = 1 + self.slowdown * (self._writing - 1)
                await asyncio.sleep(self.slow_factor * slowed / self.tokens_per_second)
                await self._until_well()
                yield TextDelta(f"{count} ")
            now = loop.time()
            yield Completion(
                model,
                "stop",
                prompt_tokens,
                tokens,
                self.address,
                durations=Durations(
                    now - asked_at, load_seconds, began_at - reading_at, now - began_at
                ),
            )
        finally:
            self._writing -= 1
            async with self._waiting:
                self._waiting.notify_all()


def _failure(cause: Cause, has_text: bool) -> Exception:
    return (InstanceBroke if has_text else InstanceFailed)(cause, f"simulated: {cause}")
