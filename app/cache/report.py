"""What the layers have done and hold, in numbers; told from memory."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from app.cache.base import Held, LayerName, Store
from app.cache.statistics import (
    HOUR_SLOTS,
    MINUTE_SLOTS,
    Counts,
    Statistics,
    percentile_ms,
    rates,
)

FRESH_SECONDS = 1.0

MISSED = ("new", "evidence_changed", "scope", "settings", "gone")


@dataclass(frozen=True, slots=True)
class LayerReport:
    """`rate_*` are shares of hits, None where nothing was looked up.

    `paraphrases` are answers that were shared with another wording, of what was missed otherwise;
    `intent_…` are kinds of questions, known and found out. `missed` says why, of what was asked
    before. `saved_seconds` is the time that hits did not take.
    """

    hits: int
    misses: int
    rate_minute: float | None
    rate_hour: float | None
    rate_all: float | None
    held: Held
    latency_mean_ms: float | None
    latency_p95_ms: float | None
    joined: int
    missed: Mapping[str, int]
    saved_seconds: float
    saved_tokens: int
    saved_cost: Decimal
    paraphrases: int
    intent_hits: int
    intent_misses: int


class Reports:
    """Asks what is held every FRESH_SECONDS at most, and behind the one who wants to know."""

    def __init__(self, store: Store, statistics: Statistics) -> None:
        self._store = store
        self._statistics = statistics
        self._held: Mapping[LayerName, Held] = {}
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def of(self, layer: LayerName) -> LayerReport:
        await self._look()
        counts = self._statistics.of(layer)
        minute = self._statistics.of(layer, slots=MINUTE_SLOTS)
        hour = self._statistics.of(layer, slots=HOUR_SLOTS)
        rate_minute, rate_hour, rate_all = rates([minute, hour, counts])
        lookups = counts["lookups"]
        return LayerReport(
            hits=counts["hits"],
            misses=counts["misses"],
            rate_minute=rate_minute,
            rate_hour=rate_hour,
            rate_all=rate_all,
            held=self._held.get(layer, Held()),
            latency_mean_ms=round(counts["lookup_us"] / lookups / 1000, 3) if lookups else None,
            latency_p95_ms=percentile_ms(counts, 0.95),
            joined=counts["joined"],
            missed={name: counts[f"missed:{name}"] for name in MISSED},
            saved_seconds=_saved_seconds(counts),
            saved_tokens=counts["saved_tokens"],
            saved_cost=Decimal(counts["saved_nanos"]) / 1_000_000_000,
            paraphrases=counts["paraphrases"],
            intent_hits=counts["intent_hits"],
            intent_misses=counts["intent_misses"],
        )

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    def forget(self) -> None:
        """What is held has just changed."""
        self._asked_at = float("-inf")

    async def _look(self) -> None:
        if time.monotonic() - self._asked_at < FRESH_SECONDS:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        if not self._held or self._asked_at == float("-inf"):
            await asyncio.wait({self._asking})

    async def _ask(self) -> None:
        self._held = await self._store.held()
        self._asked_at = time.monotonic()


def _saved_seconds(counts: Counts) -> float:
    """What is known of each hit, else the mean time of a miss for each; less the looking up."""
    if "saved_us" in counts or not counts["computed"]:
        saved_us = counts["saved_us"]
    else:
        saved_us = counts["hits"] * counts["computed_us"] / counts["computed"]
    return round(max(0.0, saved_us - counts["lookup_us"]) / 1_000_000, 3)
