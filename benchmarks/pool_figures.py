"""What does the pool do when an instance dies, hangs or is left, and what does it cost?

Hypothesis: every request on an instance that is killed before the first token completes elsewhere,
and every one in mid-stream ends with an explicit error; in 10,000 streams among faults no token is
repeated, lost or from another answer; a hung instance is out within the first-token p99 + 1 s and
back within 40 s of its recovery; a client that leaves frees its slot within a second; the first
token comes at most 3 ms later (p50) than by a direct call, and a choice takes at most 1 ms (p99);
eight equal instances write at least 7.6 times as fast as one.

Control: a direct call by the cheapest client there is, in turn with the pool's, for the overhead;
one instance for eight. The others are counts and times, not comparisons.

Caveats: doubles of Ollama on this machine, in processes of their own; their times are told, not
computed. The time until an instance is out counts from the fault, with requests always under way.

    python -m benchmarks.pool_figures [--streams 10000] [--only NAME…] [--record]
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from app.config import Settings
from app.errors import GenerationInterrupted
from app.llm.base import Completion, Message, TextDelta
from app.llm.pool import GenerationPool
from app.llm.registry import generation_options, open_chat_model
from benchmarks.pool_systems import ask
from benchmarks.pool_trace import MODEL, Arrival
from tests.doubles.ollama import OllamaDouble, running_ollama

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pool_figures.json"
FAULTS = ("cut", "no_done", "error_line", "garbage")


class Setup:
    """Doubles with slots, and a pool before them."""

    def __init__(self, pool: GenerationPool, doubles: list[OllamaDouble], home: Path) -> None:
        self.pool = pool
        self.doubles = doubles
        self.options = generation_options(Settings(home=home))
        self._count = 0

    def arrival(self, tokens: int) -> Arrival:
        self._count += 1
        return Arrival(f"s{self._count}", 0.0, 20, tokens)

    async def ask(self, tokens: int, text_at: list[float] | None = None) -> str:
        """What became of it: `complete`, `interrupted`, `wrong`, or the name of an error.

        The times at which text came are added to `text_at`.
        """
        arrival = self.arrival(tokens)
        text, is_complete = "", False
        stream = self.pool.stream([Message("user", arrival.prompt)], self.options)
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        text += event.text
                        if text_at is not None:
                            text_at.append(perf_counter())
                    is_complete = isinstance(event, Completion)
        except GenerationInterrupted:
            return "interrupted" if arrival.answer.startswith(text) and text else "wrong"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            return "wrong" if text else type(error).__name__
        return "complete" if is_complete and text == arrival.answer else "wrong"


@asynccontextmanager
async def setup(count: int, slots: int, **behaviour: Any) -> AsyncIterator[Setup]:
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        more = {"slots": slots, **behaviour}
        doubles = [stack.enter_context(running_ollama(**more)) for _ in range(count)]
        urls = tuple(f"{double.url}#slots={slots}" for double in doubles)
        pool = open_chat_model(
            Settings(home=Path(home), ollama_urls=urls, model=MODEL, generation_queue_size=1000)
        )
        assert pool is not None
        pool.start()
        try:
            made = Setup(pool, doubles, Path(home))
            await asyncio.gather(*(made.ask(2) for _ in range(count * slots)))
            yield made
        finally:
            await pool.close()


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float) -> float | None:
    """After how many seconds it held; None when it did not in time."""
    started = perf_counter()
    while perf_counter() - started < seconds:
        if await condition():
            return perf_counter() - started
        await asyncio.sleep(0.005)
    return None


def percentile(values: list[float], part: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))]


# --- deaths --------------------------------------------------------------------------------------


async def killed(*, before_text: bool, rounds: int) -> dict[str, Any]:
    """Eight requests on four instances, of which one is killed while all are under way."""
    fates: Counter[str] = Counter()
    first, step = (1.0, 0.0) if before_text else (0.0, 0.05)
    for _ in range(rounds):
        async with setup(4, 2) as made:
            for double in made.doubles:
                double.set(first_token_seconds=first, token_seconds=step)
            asked = [asyncio.create_task(made.ask(30)) for _ in range(8)]
            await asyncio.sleep(0.5)
            held = made.doubles[0].stats().in_flight
            made.doubles[0].kill()
            fates.update(await asyncio.gather(*asked))
            fates["on the killed instance"] += held
    return dict(fates)


async def kill_before_text(given: argparse.Namespace) -> dict[str, Any]:
    return await killed(before_text=True, rounds=5)


async def kill_in_mid_stream(given: argparse.Namespace) -> dict[str, Any]:
    return await killed(before_text=False, rounds=5)


async def splices(given: argparse.Namespace) -> dict[str, Any]:
    """Short streams, while an instance somewhere fails after some tokens ten times a second."""
    chance = random.Random(1)
    fates: Counter[str] = Counter()
    left = iter(range(given.streams))

    async with setup(8, 4, token_seconds=0.002) as made:

        async def client() -> None:
            for _ in left:
                fates[await made.ask(chance.randint(5, 20))] += 1

        async def trouble() -> None:
            while True:
                await asyncio.sleep(0.1)
                double, after = chance.choice(made.doubles), chance.randrange(8)
                fault = {"fault": chance.choice(FAULTS), "fault_after_tokens": after}
                await asyncio.to_thread(double.set, **fault, faults_left=1)

        troubling = asyncio.create_task(trouble())
        await asyncio.gather(*(client() for _ in range(24)))
        troubling.cancel()
        await asyncio.gather(troubling, return_exceptions=True)
        over = max(double.stats().most_in_flight for double in made.doubles) - 4
    return dict(fates) | {"over_slots": max(0, over)}


# --- hanging -------------------------------------------------------------------------------------


async def hang(given: argparse.Namespace) -> dict[str, Any]:
    """An instance hangs under traffic, and is well again after 20 s."""
    first: list[float] = []
    fates: Counter[str] = Counter()
    async with setup(4, 2, first_token_seconds=0.2, token_seconds=0.02) as made:

        async def client() -> None:
            while True:
                started, seen = perf_counter(), []
                fates[await made.ask(20, seen)] += 1
                if seen and not is_hung:
                    first.append(seen[0] - started)

        async def is_out() -> bool:
            return any(each.ejected for each in await made.pool.health())

        async def is_back() -> bool:
            return not await is_out() and double.stats().completed > completed

        is_hung = False
        clients = [asyncio.create_task(client()) for _ in range(6)]
        await asyncio.sleep(10)
        double = made.doubles[0]
        is_hung = True
        double.set(hangs=True)
        out = await eventually(is_out, 60)
        await asyncio.sleep(20)
        completed = double.stats().completed
        double.set(hangs=False)
        back = await eventually(is_back, 90)
        for each in clients:
            each.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return {
        "first_text_p99_seconds": round(percentile(first, 0.99), 3),
        "out_after_seconds": out and round(out, 3),
        "back_after_seconds": back and round(back, 3),
        "fates": dict(fates),
    }


# --- leaving -------------------------------------------------------------------------------------


async def leaving(given: argparse.Namespace) -> dict[str, Any]:
    """How long a slot stays taken after its client left, before and after the first token."""
    found: dict[str, Any] = {}
    async with setup(1, 1) as made:
        [double] = made.doubles

        async def is_generating() -> bool:
            return double.stats().generating == 1

        async def is_free() -> bool:
            return double.stats().generating == 0

        for name, speed in (
            ("before_text", {"first_token_seconds": 30, "token_seconds": 0}),
            ("in_mid_stream", {"first_token_seconds": 0, "token_seconds": 0.05}),
        ):
            double.set(**speed)
            took: list[float] = []
            for _ in range(20):
                asked = asyncio.create_task(made.ask(400))
                assert await eventually(is_generating, 10)
                await asyncio.sleep(0.15)
                asked.cancel()
                free = await eventually(is_free, 10)
                took.append(10.0 if free is None else free)
                with suppress(asyncio.CancelledError):
                    await asked
            found[name] = {
                "p50_seconds": round(median(took), 4),
                "max_seconds": round(max(took), 4),
            }
    return found


# --- costs ---------------------------------------------------------------------------------------


async def overhead(given: argparse.Namespace) -> dict[str, Any]:
    """Time to the first text by the pool and by a direct call, in turn."""
    took: dict[str, list[float]] = {"pool": [], "direct": []}
    async with setup(8, 4, first_token_seconds=0.02) as made:
        ports = [int(double.url.rsplit(":", 1)[1]) for double in made.doubles]
        for number in range(300):
            arrival = made.arrival(1)
            started = perf_counter()
            async with aclosing(ask(ports[number % 8], arrival.prompt, 10.0)) as pieces:
                async for _ in pieces:
                    took["direct"].append(perf_counter() - started)
            started, seen = perf_counter(), []
            await made.ask(1, seen)
            took["pool"].append(seen[0] - started)
    p50 = {name: 1000 * median(values) for name, values in took.items()}
    return {f"{name}_p50_ms": round(value, 2) for name, value in p50.items()} | {
        "overhead_p50_ms": round(p50["pool"] - p50["direct"], 2)
    }


async def throughput(given: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of eight equal instances over those of one, always busy.

    The choice is that among eight with a line of up to 112.
    """
    rates: dict[int, float] = {}
    choice = None
    for count in (1, 8):
        async with setup(count, 2, first_token_seconds=0.1, token_seconds=0.02, slowdown=0.3) as m:
            requests = 16 * count
            started = perf_counter()
            fates = Counter(await asyncio.gather(*(m.ask(40) for _ in range(requests))))
            assert fates == {"complete": requests}, fates
            rates[count] = requests * 40 / (perf_counter() - started)
            choice = m.pool.statistics().choice_ms
    return {
        "one_tokens_per_second": round(rates[1], 1),
        "eight_tokens_per_second": round(rates[8], 1),
        "eight_over_one": round(rates[8] / rates[1], 2),
        "choice_p99_ms": choice and choice.p99,
    }


FIGURES: dict[str, Callable[[argparse.Namespace], Awaitable[dict[str, Any]]]] = {
    each.__name__: each
    for each in (kill_before_text, kill_in_mid_stream, splices, hang, leaving, overhead, throughput)
}


async def run(given: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in given.only:
        found[name] = await FIGURES[name](given)
        print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--record", action="store_true", help=f"into {RESULTS.relative_to(ROOT)}")
    given = parser.parse_args()
    found = asyncio.run(run(given))
    if given.record:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        load = round(os.getloadavg()[0], 2)
        for name, figure in found.items():
            known[name] = figure | {"measured_at": now, "machine_load": load}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
