"""Is the kind of a question cheaper to remember than to find out?

Hypothesis: remembered in the process it takes less than half the time of finding it out; asked of
Redis, even one on this machine, it takes longer. So the cache of kinds is in the process.

Control: finding it out, a product of the question's vector with the classifier's weights.

Caveats: the vectors are random ones of the bundled model's width, since time does not depend on what
they say. Medians of rounds in turn; other work on the machine makes Redis look slower first.

    python benchmarks/intents.py [--record]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from redis.asyncio import Redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.answering.kinds import FittedKinds
from app.cache.base import LAYERS, Bounds
from app.cache.embedded import EmbeddedRedis
from app.cache.in_process import InProcessStore
from app.cache.intents import CachedKinds
from app.cache.layer import Layer
from app.cache.statistics import Statistics

RESULTS = ROOT / "benchmarks" / "results" / "intents.json"
DIMENSIONS = 384
CALLS = 2_000
ROUNDS = 7

Call = Callable[[], Awaitable[Any]]


class RandomEmbedding:
    """A QueryEmbedding of unit vectors that say nothing."""

    def __init__(self) -> None:
        self.embedder: Any = self
        self.digest = "random"
        self._random = np.random.default_rng(0)

    async def embed(self, texts: Any, _kind: str) -> Any:
        drawn = self._random.normal(size=(len(texts), DIMENSIONS)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


async def measure(url: str) -> dict[str, Any]:
    embedding: Any = RandomEmbedding()
    [vector] = await embedding.embed([""], "query")
    store = InProcessStore(dict.fromkeys(LAYERS, Bounds(60, 10**6, 10**6, 10**6)))
    found_out = FittedKinds()
    remembered = CachedKinds(found_out, Layer("embedding", store, Statistics()), ttl_seconds=60)
    redis = Redis.from_url(url, protocol=2)  # pyright: ignore[reportUnknownMemberType]
    await redis.set("kind", "fact")
    calls: dict[str, Call] = {
        "found_out": lambda: found_out.kind_of("", vector, embedding),
        "remembered": lambda: remembered.kind_of("", vector, embedding),
        "asked_of_redis": lambda: redis.get("kind"),
    }
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                await call()
            if number:  # the first round is for everything to be there
                rounds[name].append((time.perf_counter() - started) / CALLS * 1e6)
    await redis.aclose()
    medians = {name: median(taken) for name, taken in rounds.items()}
    return {
        "medians_us": {name: round(one, 2) for name, one in medians.items()},
        "over_found_out": {
            name: round(one / medians["found_out"], 3) for name, one in medians.items()
        },
        "rounds_us": {name: [round(one, 2) for one in taken] for name, taken in rounds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        server = EmbeddedRedis(Path(home))
        url = server.start()
        if url is None:
            raise SystemExit("There is no Redis on this machine to compare with.")
        try:
            told = asyncio.run(measure(url))
        finally:
            server.stop()
    report = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), **told}
    print(json.dumps(report, indent=2))
    if given.record:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
