"""One contender of benchmarks/pool.py under one trace, in a process of its own.

Reads what to do as a line of JSON, says `ready`, reads when to begin, and prints what became of
each request as a line of JSON.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.pool_systems import SYSTEMS, Broken, Fleet, Refused, Stream, Unanswered
from benchmarks.pool_trace import Arrival, Machine

ANSWERS = os.fdopen(os.dup(sys.stdout.fileno()), "w")

Fate = Literal["answered", "refused", "unanswered", "broken", "timed_out", "wrong"]
"""`wrong`: text that is not the beginning of the answer, or a complete answer that is too short."""


@dataclass
class Outcome:
    """Seconds from when the request was due: how late it was sent, its first text, its end."""

    name: str
    fate: Fate
    lag: float
    first: float | None
    last: float
    why: str = ""


async def one(stream: Stream, arrival: Arrival, due: float, timeout_seconds: float) -> Outcome:
    clock = asyncio.get_running_loop().time
    lag = clock() - due
    first: float | None = None
    pieces: list[str] = []
    fate: Fate = "answered"
    why = ""
    try:
        async with asyncio.timeout_at(due + timeout_seconds):
            async with aclosing(stream(arrival.prompt)) as texts:
                async for text in texts:
                    first = first if first is not None else clock() - due
                    pieces.append(text)
    except Refused:
        fate = "refused"
    except Unanswered as error:
        fate, why = "unanswered", str(error)
    except Broken as error:
        fate, why = "broken", str(error)
    except TimeoutError:
        fate = "timed_out"
    text = "".join(pieces)
    is_whole = text == arrival.answer
    if not arrival.answer.startswith(text) or (fate == "answered" and not is_whole):
        fate, why = "wrong", text[:200]
    return Outcome(arrival.name, fate, lag, first, clock() - due, why)


async def drive(
    stream: Stream, arrivals: list[Arrival], begins: float, timeout_seconds: float
) -> list[Outcome]:
    """Open loop: a request is sent when it is due, whatever became of the ones before."""
    clock = asyncio.get_running_loop().time
    asked: list[asyncio.Task[Outcome]] = []
    for arrival in arrivals:
        await asyncio.sleep(max(0.0, begins + arrival.at - clock()))
        due = begins + arrival.at
        asked.append(asyncio.create_task(one(stream, arrival, due, timeout_seconds)))
    return list(await asyncio.gather(*asked))


@asynccontextmanager
async def watched_loop() -> AsyncIterator[list[float]]:
    """By how many seconds this process's event loop wakes up late, again and again."""
    late: list[float] = []

    async def watch() -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + 0.02
            await asyncio.sleep(0.02)
            late.append(clock() - due)

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()


async def run(order: dict[str, Any]) -> dict[str, Any]:
    machines = tuple(Machine(**each) for each in order["machines"])
    fleet = Fleet(tuple(order["urls"]), machines, order["scale"])
    arrivals = [Arrival(**each) for each in order["arrivals"]]
    with tempfile.TemporaryDirectory(prefix="footnote-pool-") as folder:
        async with SYSTEMS[order["system"]](fleet, Path(folder)) as stream:
            say("ready")
            begins_in = float(await asyncio.to_thread(sys.stdin.readline)) - time.time()
            begins = asyncio.get_running_loop().time() + begins_in
            before = time.process_time()
            async with watched_loop() as late:
                outcomes = await drive(stream, arrivals, begins, fleet.timeout_seconds)
            return {
                "outcomes": [asdict(each) for each in outcomes],
                "loop_late": late,
                "processor_seconds": time.process_time() - before,
            }


def say(line: str) -> None:
    ANSWERS.write(line + "\n")
    ANSWERS.flush()


def main() -> None:
    # Whatever a contender's library prints must not stand between our lines.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    order = json.loads(sys.stdin.readline())
    try:
        result = asyncio.run(run(order))
    except (FileNotFoundError, ImportError) as error:
        say(f"missing {error}")
        return
    say(json.dumps(result))


if __name__ == "__main__":
    main()
