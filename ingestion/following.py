"""Ingesting again and again: folders whenever something in them changes, the rest by the clock."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import watchfiles

from app.errors import FootnoteError
from ingestion.runner import Order, Report
from ingestion.sources.opening import is_path

WATCH_TICK_MS = 1000
PAUSE_SECONDS = 5.0
"""Before what went wrong is tried again."""


class Follower:
    """Runs an order anew until it is cancelled; `sync` does one run.

    `tell` hears of runs that changed something or failed otherwise than the last one, `complain`
    of what keeps a run from being done at all, once. Nothing of that ends the following.
    """

    def __init__(
        self,
        sync: Callable[[Order], Awaitable[Report]],
        tell: Callable[[Report], None],
        complain: Callable[[FootnoteError], None],
    ) -> None:
        self._sync = sync
        self._tell = tell
        self._complain = complain
        self._one_at_a_time = asyncio.Lock()

    async def follow(self, order: Order, first: Report, every_seconds: float) -> None:
        """Follow all locations of an order, whose first report has been told already."""
        paths = [location for location in order.locations if is_path(str(location))]
        others = [location for location in order.locations if not is_path(str(location))]
        async with asyncio.TaskGroup() as group:
            if paths:
                group.create_task(self._watch(replace(order, locations=paths), first))
            if others:
                polled = replace(order, locations=others)
                group.create_task(self._poll(polled, first, every_seconds))

    async def _watch(self, order: Order, told: Report) -> None:
        complaint = ""
        is_due = True  # Something may have changed before the watcher stood.
        watching: AsyncGenerator[set[Any]] = watchfiles.awatch(  # pyright: ignore[reportUnknownMemberType]
            *order.locations, rust_timeout=WATCH_TICK_MS, yield_on_timeout=True
        )
        async for changes in watching:
            if changes or is_due:
                told, complaint = await self._run(order, told, complaint)
                is_due = bool(complaint)
                if is_due:
                    await asyncio.sleep(PAUSE_SECONDS)

    async def _poll(self, order: Order, told: Report, every_seconds: float) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(min(PAUSE_SECONDS, every_seconds) if complaint else every_seconds)
            told, complaint = await self._run(order, told, complaint)

    async def _run(self, order: Order, told: Report, complaint: str) -> tuple[Report, str]:
        """One run; gives the report that was told last, and what kept the run from being done."""
        try:
            async with self._one_at_a_time:
                report = await self._sync(order)
        except FootnoteError as error:
            if complaint != error.detail:
                self._complain(error)
            return told, error.detail
        if not report.has_changes and report.failures == told.failures:
            return told, ""
        self._tell(report)
        return report, ""
