"""Following what cannot be watched: by the clock, through trouble, one run at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.errors import FootnoteError, Unavailable
from ingestion import following
from ingestion.following import Follower
from ingestion.runner import Failure, Order, Report

EVERY_SECONDS = 0.01


def report(updated: int = 0, *failures: str) -> Report:
    made = Report(failures=[Failure(path, "why") for path in failures])
    made.counts["updated"] = updated
    return made


class Runs:
    """Gives reports and errors in turn, then nothing new; `done` is set when they are used up."""

    def __init__(self, *outcomes: Report | FootnoteError) -> None:
        self.outcomes = list(outcomes)
        self.orders: list[Order] = []
        self.told: list[Report] = []
        self.complaints: list[str] = []
        self.done = asyncio.Event()
        self.running = 0

    async def sync(self, order: Order) -> Report:
        self.orders.append(order)
        self.running += 1
        assert self.running == 1, "two runs at once"
        await asyncio.sleep(0)
        self.running -= 1
        if not self.outcomes:
            self.done.set()
            return report()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, FootnoteError):
            raise outcome
        return outcome

    @asynccontextmanager
    async def following(self, order: Order, first: Report) -> AsyncIterator[None]:
        follower = Follower(
            self.sync, self.told.append, lambda error: self.complaints.append(error.detail)
        )
        task = asyncio.create_task(follower.follow(order, first, EVERY_SECONDS))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "WATCH_TICK_MS", 50)
    monkeypatch.setattr(following, "PAUSE_SECONDS", EVERY_SECONDS)


async def within(awaited: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not awaited():
            await asyncio.sleep(0.005)


async def test_urls_and_buckets_are_looked_at_again_and_again() -> None:
    runs = Runs(report(), report(2), report(), report(0, "a"), report(0, "a"))
    async with runs.following(Order(["https://a.test", "s3://b"], "default"), report()):
        await asyncio.wait_for(runs.done.wait(), 30)
    # Told is what changed something or failed otherwise than before; at last nothing failed.
    assert [(one.counts["updated"], len(one.failures)) for one in runs.told] == [
        *((2, 0), (0, 1), (0, 0)),
    ]
    assert {tuple(order.locations) for order in runs.orders} == {("https://a.test", "s3://b")}


async def test_what_keeps_a_run_from_being_done_is_said_once_and_tried_again() -> None:
    away, other = Unavailable("It is away."), Unavailable("It is elsewhere.")
    runs = Runs(away, away, other, report(1), away)
    async with runs.following(Order(["https://a.test"], "default"), report()):
        await asyncio.wait_for(runs.done.wait(), 30)
    assert runs.complaints == ["It is away.", "It is elsewhere.", "It is away."]
    assert len(runs.told) == 1


async def test_folders_are_watched_while_the_rest_is_polled(tmp_path: Path) -> None:
    runs = Runs()
    order = Order([tmp_path, "https://a.test"], "default")
    async with runs.following(order, report()):
        await within(lambda: {len(order.locations) for order in runs.orders} == {1})
        await within(lambda: [tmp_path] in [order.locations for order in runs.orders])
        await within(lambda: ["https://a.test"] in [order.locations for order in runs.orders])
        watched = [order.locations for order in runs.orders].count([tmp_path])
        (tmp_path / "new.md").write_text("new")
        await within(lambda: [order.locations for order in runs.orders].count([tmp_path]) > watched)
