"""Every generation reaches the ledger once, however it ends."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.costs.budgets import Budgets
from app.costs.ledger import Ledger, Listing
from app.costs.prices import FREE, Payer, Price
from app.errors import (
    BudgetExhausted,
    GenerationInterrupted,
    GenerationUnavailable,
    Overloaded,
)
from app.llm.base import (
    UNHURRIED,
    Admission,
    Completion,
    Durations,
    GenerationEvent,
    GenerationOptions,
    Message,
    Queued,
    TextDelta,
)
from app.llm.metering import MeteredModel

PRICE = Price(prompt_per_million=Decimal(1), completion_per_million=Decimal(10))
CLOUD = Listing("gpt", PRICE, "orchestration", "openai")
LOCAL = Listing("llama", FREE, "interactive", "ollama", is_local=True)
RENTED = Listing("llama", Price(per_hour=Decimal("3.6")), "interactive", "ollama", is_local=True)
MESSAGES = (Message("system", "Be brief."), Message("user", "Who approves travel?"))
OPTIONS = GenerationOptions(max_tokens=100)
PAID = Admission(payer=Payer(1, None, ("default",)))
WHOLE = (
    Queued(1, 2.0),
    TextDelta("Ada "),
    TextDelta("does."),
    Completion("gpt-2026", "stop", 40, 2, cached_tokens=8, durations=Durations(3.0, 0.5, 1.0, 1.0)),
)


class Scripted:
    """A ChatModel that gives events and raises errors in their order."""

    name = "scripted"

    def __init__(self, *steps: GenerationEvent | Exception) -> None:
        self.steps = steps
        self.asked = 0

    async def digest(self) -> str | None:
        return "digest"

    async def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        self.asked += 1
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            yield step


@pytest.fixture
async def ledger(engine: AsyncEngine) -> AsyncIterator[Ledger]:
    opened = Ledger(engine, reference=FREE)
    yield opened
    await opened.close()


async def read(model: MeteredModel, admission: Admission = PAID) -> list[GenerationEvent]:
    async with aclosing(model.stream(MESSAGES, OPTIONS, admission)) as events:
        return [event async for event in events]


async def stored(ledger: Ledger, engine: AsyncEngine) -> list[Any]:
    await ledger.flush()
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT mode, prompt_tokens, completion_tokens, cached_tokens, cost FROM usage")
        )
        return [tuple(row) for row in found.all()]


async def held(engine: AsyncEngine) -> Decimal:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT coalesce(sum(reserved), 0) FROM spending"))
        return found.scalar_one()


async def test_a_whole_answer_passes_unchanged_and_says_what_it_cost(
    ledger: Ledger, engine: AsyncEngine
) -> None:
    *before, last = await read(MeteredModel(Scripted(*WHOLE), CLOUD, ledger))
    assert before == [*WHOLE[:-1]]
    assert isinstance(last, Completion)
    assert (last.model, last.cost) == ("gpt-2026", Decimal("0.00006"))
    assert await stored(ledger, engine) == [("generated", 40, 2, 8, Decimal("0.00006"))]
    assert await held(engine) == 0


async def test_a_slot_by_the_hour_costs_what_it_worked(ledger: Ledger) -> None:
    last = (await read(MeteredModel(Scripted(*WHOLE), RENTED, ledger)))[-1]
    assert isinstance(last, Completion)
    assert last.cost == Decimal("0.0025")  # 2.5 of the 3 seconds, the rest was waiting


async def test_a_free_model_without_a_payer_is_not_booked(
    ledger: Ledger, engine: AsyncEngine
) -> None:
    await read(MeteredModel(Scripted(*WHOLE), LOCAL, ledger), UNHURRIED)
    assert await stored(ledger, engine) == []


async def test_a_priced_model_without_a_payer_is_not_asked(ledger: Ledger) -> None:
    model = Scripted(*WHOLE)
    with pytest.raises(GenerationUnavailable, match="nobody pays"):
        await read(MeteredModel(model, CLOUD, ledger), UNHURRIED)
    assert model.asked == 0


async def test_what_the_budget_cannot_bear_is_not_asked_and_a_free_model_is(
    ledger: Ledger, engine: AsyncEngine
) -> None:
    await Budgets(engine, None).set(1, Decimal("0.0005"))  # a hundred tokens alone may cost 0.001
    model = Scripted(*WHOLE)
    with pytest.raises(BudgetExhausted):
        await read(MeteredModel(model, CLOUD, ledger))
    assert model.asked == 0
    assert len(await read(MeteredModel(model, LOCAL, ledger))) == len(WHOLE)


@pytest.mark.parametrize("error", [GenerationUnavailable("away"), Overloaded("busy")])
async def test_a_refusal_before_the_first_text_costs_nothing(
    ledger: Ledger, engine: AsyncEngine, error: Exception
) -> None:
    with pytest.raises(type(error)):
        await read(MeteredModel(Scripted(WHOLE[0], error), CLOUD, ledger))
    assert await stored(ledger, engine) == []
    assert await held(engine) == 0


async def test_a_broken_stream_is_booked_by_what_came(ledger: Ledger, engine: AsyncEngine) -> None:
    broken = Scripted(*WHOLE[:3], GenerationInterrupted("cut"))
    with pytest.raises(GenerationInterrupted):
        await read(MeteredModel(broken, CLOUD, ledger))
    [(mode, prompt_tokens, completion_tokens, _, cost)] = await stored(ledger, engine)
    assert (mode, prompt_tokens, completion_tokens) == ("interrupted", 9, 3)
    assert cost == PRICE.of(9, 3, took_ms=0)
    assert await held(engine) == 0


@pytest.mark.parametrize("read_count", [1, 2])
async def test_a_reader_that_leaves_pays_for_what_was_begun(
    ledger: Ledger, engine: AsyncEngine, read_count: int
) -> None:
    async with aclosing(
        MeteredModel(Scripted(*WHOLE), CLOUD, ledger).stream(MESSAGES, OPTIONS, PAID)
    ) as events:
        for _ in range(read_count):
            await anext(events)
    [(mode, prompt_tokens, _, _, cost)] = await stored(ledger, engine)
    assert (mode, prompt_tokens) == ("interrupted", 9)
    assert cost > 0
    assert await held(engine) == 0


async def test_no_generation_costs_more_than_was_held_back(
    ledger: Ledger, engine: AsyncEngine
) -> None:
    """A token is at least a byte, and no more are written than were allowed."""
    texts = ["word " * 50, "文" * 200, "🙂" * 100]
    for content in texts:
        messages = (Message("user", content),)
        all_tokens = len(content.encode())
        most = Scripted(TextDelta("x"), Completion("m", "length", all_tokens, 100))
        async with aclosing(
            MeteredModel(most, CLOUD, ledger).stream(messages, OPTIONS, PAID)
        ) as events:
            await anext(events)
            before = await held(engine)
            *_, last = [event async for event in events]
        assert isinstance(last, Completion)
        assert last.cost <= before
        await ledger.flush()


async def test_it_is_the_model_that_it_meters(ledger: Ledger) -> None:
    metered = MeteredModel(Scripted(), LOCAL, ledger)
    assert (metered.name, await metered.digest()) == ("scripted", "digest")
