"""The machine behind the endpoints: models that are loaded and leave, slots, and their caches."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from tests.doubles.ollama.behaviour import Behaviour, Stats

Options = tuple[object, ...]

SIMILAR = 0.5
"""A slot that holds at least this part of a prompt is preferred to the one that rests longest."""


class ServerBusy(Exception):
    """More requests wait for a load than may."""


@dataclass(eq=False)
class Slot:
    cached: list[str] = field(default_factory=list)
    used_at: float = 0.0

    def cached_tokens(self, prompt: list[str]) -> int:
        """How many tokens at the beginning of `prompt` need not be read again: all but the last."""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.cached, prompt, strict=False))
        return min(sum(1 for _ in same), max(0, len(prompt) - 1))


@dataclass(eq=False)
class Turn:
    slot: "asyncio.Future[Slot]"
    prompt: list[str]


@dataclass(eq=False)
class Runner:
    """A model in memory. `users` counts requests that wait for a slot or have one."""

    model: str
    options: Options
    context_tokens: int
    free: list[Slot] = field(default_factory=list)
    slots: int = 0
    line: deque[Turn] = field(default_factory=deque)
    users: int = 0
    keep_seconds: float | None = 300.0
    expires_at: datetime | None = None
    leaving: asyncio.TimerHandle | None = None


class Engine:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.stats = Stats()
        self.runners: dict[str, Runner] = {}
        self.pending = 0
        self._load_turn = asyncio.Lock()
        self._something_ended = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()

    def change(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        if behaviour.hangs:
            self._awake.clear()
        else:
            self._awake.set()
        for runner in self.runners.values():
            self._resize(runner)

    def forget(self) -> None:
        """As after a start: nothing loaded, nothing counted. Nothing may be in flight."""
        for model in list(self.runners):
            self._unload(model)
        self.stats = Stats()

    # --- models ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def loaded(
        self, model: str, options: Options, context_tokens: int, keep_seconds: float | None
    ) -> AsyncGenerator[Runner]:
        """The model in memory with these options, which nobody unloads meanwhile."""
        runner = self.runners.get(model)
        if runner is None or runner.options != options:
            runner = await self._load(model, options, context_tokens)
        if runner.leaving is not None:
            runner.leaving.cancel()
        runner.users += 1
        runner.keep_seconds = keep_seconds
        try:
            yield runner
        finally:
            runner.users -= 1
            self._something_ended.set()
            if not runner.users:
                self._expire_later(runner)

    async def _load(self, model: str, options: Options, context_tokens: int) -> Runner:
        """Loads are serial, and a client that leaves takes the load that it waits for with it."""
        if self.pending >= self.behaviour.max_queue:
            raise ServerBusy
        self.pending += 1
        try:
            async with self._load_turn:
                runner = self.runners.get(model)
                if runner is not None and runner.options == options:
                    return runner
                await self._make_room(model)
                self.stats.loads += 1
                await asyncio.sleep(self.behaviour.load_seconds * self.behaviour.slowness)
                await self._awake.wait()
                runner = Runner(model, options, context_tokens)
                self._resize(runner)
                self.runners[model] = runner
                return runner
        finally:
            self.pending -= 1

    async def _make_room(self, model: str) -> None:
        """The model itself with other options goes, and the one that leaves first if need be."""
        while model in self.runners or len(self.runners) >= self.behaviour.max_loaded_models:
            here = [self.runners[model]] if model in self.runners else self.runners.values()
            idle = [each for each in here if not each.users]
            if idle:
                last = datetime.max.replace(tzinfo=UTC)
                self._unload(min(idle, key=lambda each: each.expires_at or last).model)
            else:
                self._something_ended.clear()
                await self._something_ended.wait()

    def _expire_later(self, runner: Runner) -> None:
        if runner.keep_seconds is None:
            runner.expires_at = None
            return
        runner.expires_at = datetime.now(UTC) + timedelta(seconds=runner.keep_seconds)
        if runner.keep_seconds:
            loop = asyncio.get_running_loop()
            runner.leaving = loop.call_later(runner.keep_seconds, self._unload, runner.model)
        else:
            self._unload(runner.model)

    def _unload(self, model: str) -> None:
        runner = self.runners.pop(model, None)
        if runner is not None and runner.leaving is not None:
            runner.leaving.cancel()

    # --- slots -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def arrival(self) -> AsyncGenerator[None]:
        stats = self.stats
        stats.in_flight += 1

        def count() -> None:
            stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)

        asyncio.get_running_loop().call_later(0.005, count)
        try:
            yield
        finally:
            stats.in_flight -= 1

    async def take_slot(self, runner: Runner, prompt: list[str]) -> Slot:
        """A slot when its turn comes, however long that takes; the one that knows the prompt."""
        if runner.free and not runner.line:
            return self._pick(runner, prompt)
        turn = Turn(asyncio.get_running_loop().create_future(), prompt)
        runner.line.append(turn)
        self.stats.waiting += 1
        try:
            return await turn.slot
        except asyncio.CancelledError:
            if turn in runner.line:
                runner.line.remove(turn)
            elif not turn.slot.cancelled():
                self.give_slot(runner, turn.slot.result())
            raise
        finally:
            self.stats.waiting -= 1

    def give_slot(self, runner: Runner, slot: Slot) -> None:
        self.stats.generating -= 1
        slot.used_at = asyncio.get_running_loop().time()
        runner.free.append(slot)
        self._resize(runner)

    def _pick(self, runner: Runner, prompt: list[str]) -> Slot:
        slot = max(runner.free, key=lambda each: (self._similarity(each, prompt), -each.used_at))
        runner.free.remove(slot)
        self.stats.generating += 1
        self.stats.most_generating = max(self.stats.most_generating, self.stats.generating)
        return slot

    def _similarity(self, slot: Slot, prompt: list[str]) -> float:
        similarity = slot.cached_tokens(prompt) / max(1, len(prompt))
        return similarity if similarity >= SIMILAR else 0.0

    def _resize(self, runner: Runner) -> None:
        """As many slots as the behaviour says, each for whoever waits longest."""
        while runner.slots < self.behaviour.slots:
            runner.slots += 1
            runner.free.append(Slot())
        while runner.slots > self.behaviour.slots and runner.free:
            runner.slots -= 1
            runner.free.pop()
        while runner.line and runner.free:
            turn = runner.line.popleft()
            if not turn.slot.done():  # its client may have left in this moment
                turn.slot.set_result(self._pick(runner, turn.prompt))

    # --- time ------------------------------------------------------------------------------------

    async def read(self, uncached_tokens: int) -> None:
        await asyncio.sleep(self.behaviour.prefill_seconds(uncached_tokens))
        await self._awake.wait()

    async def step(self, due: float) -> float:
        """Waits for the next token, which follows `due`, and returns when that one was due.

        Tokens keep to their times even when the process wakes up late: then several come at once.
        """
        loop = asyncio.get_running_loop()
        due += self.behaviour.step_seconds(self.stats.generating)
        await asyncio.sleep(max(0.0, due - loop.time()))
        if not self._awake.is_set():
            await self._awake.wait()
            due = loop.time()
        self.stats.tokens += 1
        self.stats.late_seconds += loop.time() - due
        return due
