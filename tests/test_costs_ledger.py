"""The ledger against a real database: exact, within the budget together, nobody kept waiting."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from app.config import Settings
from app.costs.budgets import Budgets
from app.costs.ledger import Ledger, Listing, Spent
from app.costs.prices import FREE, Payer, Price
from app.costs.reports import CostReports, Period, dimensions, written_as_csv
from app.db.session import open_engine
from app.errors import BudgetExhausted, GenerationUnavailable, InvalidInput
from app.telemetry import ROWS_LOST

PAYER = Payer(1, None, ("default",))
CLOUD = Listing("gpt", Price(completion_per_million=Decimal(10)), "orchestration", "openai")
LOCAL = Listing("llama", FREE, "interactive", "ollama", is_local=True)
REFERENCE = Price(prompt_per_million=Decimal(1), completion_per_million=Decimal(2))
ANSWER = Spent(prompt_tokens=100, completion_tokens=50, cached_tokens=40, took_ms=1200)
TODAY = datetime.now(UTC).date()
NOW = Period(TODAY - timedelta(days=1), TODAY + timedelta(days=1))


@pytest.fixture
async def ledger(engine: AsyncEngine) -> AsyncIterator[Ledger]:
    opened = Ledger(engine, reference=REFERENCE)
    yield opened
    await opened.close()


@pytest.fixture
def budgets(engine: AsyncEngine) -> Budgets:
    return Budgets(engine, None)


async def rows(engine: AsyncEngine, query: str) -> list[Any]:
    async with engine.connect() as connection:
        return [tuple(row) for row in (await connection.execute(text(query))).all()]


async def books_agree(engine: AsyncEngine) -> bool:
    """Whether what was spent and is reserved is what the ledger's rows add up to."""
    counted = await rows(engine, "SELECT sum(spent), sum(reserved) FROM spending")
    summed = await rows(
        engine,
        "SELECT coalesce(sum(cost) FILTER (WHERE mode <> 'reserved'), 0),"
        " coalesce(sum(cost) FILTER (WHERE mode = 'reserved'), 0) FROM usage",
    )
    return counted == summed


async def test_a_free_generation_is_one_row(ledger: Ledger, engine: AsyncEngine) -> None:
    assert ledger.book(PAYER, LOCAL, ANSWER) == 0
    await ledger.flush()
    stored = await rows(
        engine,
        "SELECT model, tier, provider, collections, mode, prompt_tokens, completion_tokens,"
        " cached_tokens, took_ms, cost, saved FROM usage",
    )
    saved = Decimal("0.0002")  # 100 at 1 and 50 at 2 a million
    assert stored == [
        ("llama", "interactive", "ollama", ["default"], "generated", 100, 50, 40, 1200, 0, saved)
    ]


async def test_a_priced_generation_is_held_back_then_settled(
    ledger: Ledger, engine: AsyncEngine, budgets: Budgets
) -> None:
    reservation = await ledger.reserve(PAYER, CLOUD, Decimal("0.01"))
    state = await budgets.state(1)
    assert (state.spent, state.reserved) == (0, Decimal("0.01"))
    assert await books_agree(engine)
    cost = ledger.book(PAYER, CLOUD, ANSWER, reservation=reservation)
    assert cost == Decimal("0.0005")
    await ledger.flush()
    state = await budgets.state(1)
    assert (state.spent, state.reserved) == (cost, 0)
    assert await books_agree(engine)


async def test_settling_twice_books_once(ledger: Ledger, engine: AsyncEngine) -> None:
    reservation = await ledger.reserve(PAYER, CLOUD, Decimal("0.01"))
    for _ in range(2):
        ledger.book(PAYER, CLOUD, ANSWER, reservation=reservation)
    ledger.release(reservation)
    await ledger.flush()
    assert await rows(engine, "SELECT spent, reserved FROM spending") == [(Decimal("0.0005"), 0)]
    assert await rows(engine, "SELECT count(*) FROM usage") == [(1,)]


async def test_what_did_not_happen_costs_nothing(ledger: Ledger, engine: AsyncEngine) -> None:
    ledger.release(await ledger.reserve(PAYER, CLOUD, Decimal("0.01")))
    await ledger.flush()
    assert await rows(engine, "SELECT spent, reserved FROM spending") == [(0, 0)]
    assert await rows(engine, "SELECT count(*) FROM usage") == [(0,)]


async def test_concurrent_calls_of_two_processes_stay_within_the_budget(
    settings: Settings, database_url: str, engine: AsyncEngine, budgets: Budgets
) -> None:
    await budgets.set(1, Decimal("0.10"))
    other = open_engine(settings, database_url)
    ledgers = [Ledger(engine, reference=FREE), Ledger(other, reference=FREE)]

    async def one(number: int) -> bool:
        ledger = ledgers[number % 2]
        try:
            reservation = await ledger.reserve(PAYER, CLOUD, Decimal("0.007"))
        except BudgetExhausted:
            return False
        await asyncio.sleep(0.01)
        # Two of three cost less than was held back; one of five does not happen.
        if number % 5 == 0:
            ledger.release(reservation)
        else:
            spent = Spent(0, 700 if number % 3 == 0 else 200, 0, 10)
            ledger.book(PAYER, CLOUD, spent, reservation=reservation)
        return True

    most = Decimal(0)

    async def watch() -> None:
        nonlocal most
        while True:
            for total in await rows(engine, "SELECT spent + reserved FROM spending"):
                most = max(most, total[0])
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    outcomes = [await asyncio.gather(*(one(n + 40 * turn) for n in range(40))) for turn in range(4)]
    for ledger in ledgers:
        await ledger.close()
    watching.cancel()
    await asyncio.wait({watching})
    await other.dispose()
    assert 0 < most <= Decimal("0.10")
    assert any(map(any, outcomes))
    assert not all(outcomes[-1])
    assert await books_agree(engine)


async def test_without_a_budget_nothing_is_refused(ledger: Ledger) -> None:
    await ledger.reserve(PAYER, CLOUD, Decimal(10_000))


async def test_a_budget_of_nothing_refuses_what_costs_and_says_so_once(
    ledger: Ledger, budgets: Budgets
) -> None:
    await budgets.set(1, Decimal(0))
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(BudgetExhausted):
                await ledger.reserve(PAYER, CLOUD, Decimal("0.000001"))
    assert [log["event"] for log in logs] == ["budget_exhausted"]
    assert [alert.percent for alert in (await budgets.state(1)).alerts] == [100]


async def test_the_settings_budget_holds_for_whoever_has_no_other(engine: AsyncEngine) -> None:
    ledger = Ledger(engine, reference=FREE, default_limit=Decimal(1))
    budgets = Budgets(engine, Decimal(1))
    with pytest.raises(BudgetExhausted):
        await ledger.reserve(PAYER, CLOUD, Decimal("1.01"))
    state = await budgets.set(1, Decimal(2))
    assert (state.monthly_limit, state.is_own) == (2, True)
    await ledger.reserve(PAYER, CLOUD, Decimal("1.01"))
    state = await budgets.set(1, None)
    assert (state.monthly_limit, state.is_own) == (1, False)
    await ledger.close()


async def test_alerts_come_once_each_as_the_money_goes(ledger: Ledger, budgets: Budgets) -> None:
    await budgets.set(1, Decimal(1))
    seen: list[list[int]] = []
    with capture_logs() as logs:
        for tokens in (24_000, 1_000, 20_000, 40_000, 1_000):  # 0.24, 0.25, 0.45, 0.85, 0.86
            reservation = await ledger.reserve(PAYER, CLOUD, Decimal("0.001"))
            spent = Spent(0, tokens, 0, 1)
            ledger.book(PAYER, CLOUD, spent, reservation=reservation)
            await ledger.flush()
            seen.append([alert.percent for alert in (await budgets.state(1)).alerts])
    assert seen == [[], [25], [25], [25, 50, 83], [25, 50, 83]]
    told = [(log["percent"], log["spent"]) for log in logs if log["event"] == "budget_alert"]
    assert [percent for percent, _ in told] == [25, 50, 83]
    # A larger budget is far from its thresholds again; a smaller one has passed them.
    assert [one.percent for one in (await budgets.set(1, Decimal(2))).alerts] == [25]
    assert [one.percent for one in (await budgets.set(1, Decimal(1))).alerts] == [25, 50, 83]


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity", "1e30"])
async def test_what_is_no_budget_is_refused(budgets: Budgets, wrong: str) -> None:
    with pytest.raises(InvalidInput):
        await budgets.set(1, Decimal(wrong))


def lost_rows() -> float:
    return ROWS_LOST.labels("usage")._value.get()


class Cable:
    """The engine behind a cable that can be pulled."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.is_pulled = True

    def begin(self) -> Any:
        if self.is_pulled:
            raise psycopg.OperationalError("no route to the server")
        return self.engine.begin()


async def test_without_the_database_what_costs_is_refused_and_what_is_free_waits(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.write_behind.FIRST_PAUSE_SECONDS", 0.01)
    cable: Any = Cable(engine)
    ledger = Ledger(cable, reference=FREE, capacity=3)
    with pytest.raises(GenerationUnavailable, match="budget cannot be asked"):
        await ledger.reserve(PAYER, CLOUD, Decimal("0.01"))
    lost = lost_rows()
    ledger.book(PAYER, LOCAL, ANSWER)
    await asyncio.sleep(0.05)  # one is at hand, three wait, the fifth finds no room
    for _ in range(4):
        ledger.book(PAYER, LOCAL, ANSWER)
    assert lost_rows() == lost + 1
    cable.is_pulled = False
    await ledger.flush()
    assert await rows(engine, "SELECT count(*) FROM usage") == [(4,)]
    await ledger.close()


async def test_what_cannot_be_written_when_the_service_stops_is_counted(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.write_behind.CLOSE_SECONDS", 0.05)
    cable: Any = Cable(engine)
    ledger = Ledger(cable, reference=FREE)
    lost = lost_rows()
    for _ in range(3):
        ledger.book(PAYER, LOCAL, ANSWER)
    await ledger.close()
    assert lost_rows() == lost + 3


async def test_a_report_adds_up_by_what_is_asked(ledger: Ledger, engine: AsyncEngine) -> None:
    both = Payer(1, None, ("default", "=more"))
    ledger.book(PAYER, LOCAL, ANSWER)
    ledger.book(both, LOCAL, ANSWER, mode="interrupted")
    ledger.book_cached(PAYER, "gpt", Decimal("0.0005"))
    reservation = await ledger.reserve(PAYER, CLOUD, Decimal("0.01"))
    ledger.book(PAYER, CLOUD, ANSWER, reservation=reservation)
    await ledger.reserve(PAYER, CLOUD, Decimal("0.02"))
    await ledger.flush()
    reports = CostReports(engine)
    report = await reports.read(NOW, dimensions("tenant, model,collection"), tenant_id=1)
    found = {row.group: row for row in report.rows}
    assert set(found) == {
        ("default", "gpt", "default"),
        ("default", "llama", "default"),
        ("default", "llama", "default + =more"),
    }
    cloud = found["default", "gpt", "default"]
    assert (cloud.generations, cloud.cache_hits, cloud.completion_tokens) == (2, 1, 50)
    assert (cloud.cost, cloud.reserved) == (Decimal("0.0205"), Decimal("0.02"))
    assert (cloud.saved_by_cache, cloud.saved_by_local) == (Decimal("0.0005"), 0)
    assert report.total.saved_by_local == Decimal("0.0004")
    assert report.total.interrupted == 1
    assert (await reports.read(NOW, (), tenant_id=1)).rows[0].cost == report.total.cost
    assert (await reports.read(NOW, ("day",), tenant_id=2)).rows == []
    only = await reports.read(NOW, (), tenant_id=None, collections=frozenset({"default"}))
    assert only.total.generations == 3
    csv = written_as_csv(report, "EUR").splitlines()
    assert csv[0].startswith("tenant,model,collection,generations,")
    assert csv[1] == "default,gpt,default,2,1,0,100,50,40,1.2,0.0205,0.02,0.0005,0,EUR"


async def test_no_cell_begins_a_formula(ledger: Ledger, engine: AsyncEngine) -> None:
    ledger.book(Payer(1, None, ("=1+1",)), LOCAL, ANSWER)
    await ledger.flush()
    report = await CostReports(engine).read(NOW, ("collection",), tenant_id=1)
    assert written_as_csv(report, "USD").splitlines()[1].startswith("'=1+1,")


@pytest.mark.parametrize("wrong", ["days", "day,sql;--"])
def test_what_cannot_be_grouped_by_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be grouped"):
        dimensions(wrong)


def test_a_period_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(InvalidInput, match="is after"):
        Period(TODAY, TODAY - timedelta(days=1))
    with pytest.raises(InvalidInput, match="at the most"):
        Period(TODAY - timedelta(days=5000), TODAY)
