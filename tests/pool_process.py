"""One of several processes before the same model servers: `python -m tests.pool_process`.

Asks as many questions as it is told, so many at a time, and prints a line for each answer.
"""

import argparse
import asyncio
import sys
from contextlib import aclosing

import structlog
from redis.asyncio import Redis

from app.llm.base import GenerationOptions, Message, TextDelta
from app.llm.pool import GenerationPool, InstanceAddress, PoolLimits

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


async def run(arguments: argparse.Namespace) -> None:
    redis = Redis.from_url(
        arguments.redis, socket_timeout=5.0, socket_connect_timeout=5.0, protocol=2
    )
    options = GenerationOptions(max_tokens=64)
    addresses = [InstanceAddress(*one) for one in arguments.instance]
    limits = PoolLimits(queue_size=1000, queue_timeout_seconds=120.0)
    pool = GenerationPool(addresses, arguments.model, options, limits)
    pool.start(redis)
    left = iter(range(arguments.questions))

    async def ask_on() -> None:
        for number in left:
            messages = [Message("user", f"Question {number}?")]
            async with aclosing(pool.stream(messages, options)) as events:
                texts = [event.text async for event in events if isinstance(event, TextDelta)]
            sys.stdout.write(f"{len(texts)}\n")
            sys.stdout.flush()

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.gather(*(ask_on() for _ in range(arguments.at_once)))
    await pool.close()
    await redis.aclose()


def _instance(given: str) -> tuple[str, int]:
    url, slots = given.split("#")
    return url, int(slots)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--instance", type=_instance, action="append", required=True)
    parser.add_argument("--questions", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    asyncio.run(run(parser.parse_args()))
