"""A model that costs money, under a budget, over real connections from the question to the CSV."""

import csv
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from app.config import Settings
from tests.doubles.ollama import OllamaDouble
from tests.model_house import House, open_house
from tests.service import over_sockets

# Thirteen sentences of seven tokens: of a hundred that an answer may have, 91 at 0.001 each.
ANSWER = " ".join(["Ada approves travel above 500 euros. [1]"] * 13)
MAX_TOKENS, COST, WORST = 100, Decimal("0.091"), Decimal("0.1")
PRICED = {
    "name": "gpt",
    "provider": "openai",
    "served_as": "gpt-5",
    "tier": "orchestration",
    "completion_price_per_million": "1000",
}


@dataclass(frozen=True)
class Shop:
    house: House
    client: httpx.AsyncClient

    async def call(self, method: str, path: str, status: int = 200, **request: Any) -> Any:
        reply = await self.client.request(method, path, **request)
        assert reply.status_code == status, reply.text
        return reply.json()

    async def ask(self, number: int, status: int = 200, **more: Any) -> Any:
        """Each number is another question, so that no cache answers it."""
        question = f"Who approves travel above 500 euros in case {number}?"
        body = {"question": question, "model": "gpt", **more}
        return await self.call("POST", "/api/chat", status, json=body)

    async def costs(self, **query: str) -> Any:
        await self.house.service.resources.ledger.flush()
        return await self.call("GET", "/api/costs", params=query)

    async def rows(self) -> list[tuple[str, str, Decimal, int]]:
        """The ledger's rows of the priced model, oldest first."""
        await self.house.service.resources.ledger.flush()
        query = "SELECT mode, tier, cost, completion_tokens FROM usage WHERE model = 'gpt'"
        async with self.house.service.resources.engine.connect() as connection:
            found = await connection.execute(text(f"{query} ORDER BY created_at"))
            return [tuple(row) for row in found]


@pytest.fixture
async def shop(
    service_settings: Settings,
    shared_embedder: None,
    embedder: Any,
    double: OllamaDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Shop]:
    async with (
        open_house(
            service_settings,
            embedder,
            double,
            monkeypatch,
            generation_max_tokens=MAX_TOKENS,
            currency="EUR",
        ) as house,
        over_sockets(house.service) as client,
    ):
        house.hosted.answer = ANSWER
        shop = Shop(house, client)
        await shop.call("POST", "/api/models/chat", 201, json=PRICED)
        await shop.call("PATCH", "/api/tenant", json={"cloud_models": True})
        yield shop


async def test_from_the_price_to_the_hard_stop(shop: Shop) -> None:
    await shop.call("PUT", "/api/costs/budget", json={"monthly_limit": "0.4"})
    alerts: list[list[int]] = []
    with capture_logs() as logs:
        for number in range(4):
            answered = await shop.ask(number)
            assert (answered["mode"], answered["model"]) == ("generated", "gpt")
            assert (answered["usage"]["cost"], answered["usage"]["currency"]) == ("0.091", "EUR")
            assert answered["usage"]["completion_tokens"] == 91
            budget = (await shop.costs())["budget"]
            assert Decimal(budget["spent"]) == COST * (number + 1)
            alerts.append([one["percent"] for one in budget["alerts"]])
    assert alerts == [[], [25], [25, 50], [25, 50, 83]]
    told = [one for one in logs if one["event"] == "budget_alert"]
    assert [(one["percent"], one["spent"]) for one in told] == [
        (25, "0.182000000000"),
        (50, "0.273000000000"),
        (83, "0.364000000000"),
    ]

    asked = len(shop.house.hosted.requests)
    refused = await shop.ask(4, 402)
    assert (refused["code"], refused["status"]) == ("budget_exhausted", 402)
    assert "footnote costs budget" in refused["hint"]
    assert len(shop.house.hosted.requests) == asked
    assert await shop.rows() == [("generated", "orchestration", COST, 91)] * 4
    budget = (await shop.costs())["budget"]
    assert [one["percent"] for one in budget["alerts"]] == [25, 50, 83, 100]
    assert (budget["spent"], budget["reserved"]) == ("0.364", "0")

    # What costs nothing goes on, and the money of a larger budget is there at once.
    stood_in = await shop.ask(5, model="auto", tier="orchestration")
    assert (stood_in["model"], stood_in["usage"]["cost"]) == ("llama3.1:8b", "0")
    assert [one["model"] for one in stood_in["routing"]["tried"]] == ["gpt"]
    await shop.call("PUT", "/api/costs/budget", json={"monthly_limit": "10"})
    assert (await shop.ask(6))["model"] == "gpt"


async def test_costs_in_json_and_csv(shop: Shop) -> None:
    for number in (0, 1):
        await shop.ask(number)
    await shop.ask(2, model="llama3.1:8b")
    report = await shop.costs(by="model,provider,tier,collection")
    priced = next(row for row in report["rows"] if row["group"]["model"] == "gpt")
    assert priced["group"] == {
        "model": "gpt",
        "provider": "openai",
        "tier": "orchestration",
        "collection": "default",
    }
    assert (priced["cost"], priced["generations"]) == ("0.182", 2)
    assert (priced["prompt_tokens"], priced["cached_tokens"]) == (240, 40)
    assert report["total"]["cost"] == "0.182"
    reply = await shop.client.get("/api/costs?by=model&format=csv")
    assert reply.headers["Content-Type"].startswith("text/csv")
    assert "costs-" in reply.headers["Content-Disposition"]
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(reply.text))}
    assert (rows["gpt"]["cost"], rows["gpt"]["currency"]) == ("0.182", "EUR")
    assert (rows["gpt"]["generations"], rows["gpt"]["completion_tokens"]) == ("2", "182")
    assert rows["llama3.1:8b"]["cost"] == "0"


async def test_what_a_cache_answers_is_booked_as_saved(shop: Shop) -> None:
    first, again = await shop.ask(0), await shop.ask(0)
    assert (first["cache"]["answer"], again["cache"]["answer"]) == ("miss", "hit")
    assert again["usage"]["cost"] == "0"
    assert again["usage"]["saved_cost"] == "0.091"
    total = (await shop.costs())["total"]
    assert (total["cost"], total["saved_by_cache"], total["cache_hits"]) == ("0.091", "0.091", 1)


async def test_a_stream_that_breaks_is_booked_and_one_that_fails_costs_nothing(
    shop: Shop,
) -> None:
    shop.house.hosted.fault, shop.house.hosted.fault_after_tokens = "cut", 20
    question = "Who approves travel above 500 euros, and what else?"
    body = {"question": question, "model": "gpt", "stream": True}
    broken = (await shop.client.post("/api/chat", json=body)).text
    assert "event: error" in broken
    [(mode, _, cost, tokens)] = await shop.rows()
    assert mode == "interrupted"
    assert 0 < cost <= WORST
    assert tokens >= 20
    shop.house.hosted.fault = "status_500"
    await shop.ask(1, 503)
    assert len(await shop.rows()) == 1
    assert (await shop.costs())["budget"]["reserved"] == "0"


async def test_a_refused_stream_ends_with_the_same_error(shop: Shop) -> None:
    await shop.call("PUT", "/api/costs/budget", json={"monthly_limit": "0.05"})
    body = {"question": "Who approves travel?", "model": "gpt", "stream": True}
    reply = await shop.client.post("/api/chat", json=body)
    assert "budget_exhausted" in reply.text
    assert "event: token" not in reply.text
    assert shop.house.hosted.requests == []
