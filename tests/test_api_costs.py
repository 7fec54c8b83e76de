"""Costs over HTTP: what was generated, in JSON and in CSV; budgets."""

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from app.config import Settings
from app.costs.ledger import Listing, Spent
from app.costs.prices import FREE, Payer, Price
from tests.service import Service, open_service

CLOUD = Listing("gpt", Price(completion_per_million=Decimal(10)), "orchestration", "openai")
LOCAL = Listing("llama", FREE, "interactive", "ollama", is_local=True)
ANSWER = Spent(prompt_tokens=100, completion_tokens=50, cached_tokens=40, took_ms=1200)


async def book(service: Service, *collections: str) -> None:
    ledger = service.resources.ledger
    payer = Payer(1, None, collections)
    ledger.book(payer, LOCAL, ANSWER)
    reservation = await ledger.reserve(payer, CLOUD, Decimal("0.01"))
    ledger.book(payer, CLOUD, ANSWER, reservation=reservation)
    ledger.book_cached(payer, "gpt", Decimal("0.0005"))
    await ledger.flush()


async def test_costs_by_model_in_json(service: Service) -> None:
    await book(service, "default")
    reply = (await service.client.get("/api/costs", params={"by": "model"})).json()
    assert reply["by"] == ["model"]
    cloud, local = reply["rows"]
    assert (cloud["group"], local["group"]) == ({"model": "gpt"}, {"model": "llama"})
    assert (cloud["cost"], cloud["saved_by_cache"], cloud["cache_hits"]) == ("0.0005", "0.0005", 1)
    assert (local["cost"], local["seconds"], local["cached_tokens"]) == ("0", 1.2, 40)
    assert reply["total"]["generations"] == 2
    assert reply["currency"] == "USD"
    today = datetime.now(UTC).date()
    assert (reply["from"], reply["to"]) == (f"{today:%Y-%m-01}", f"{today}")
    assert reply["budget"]["monthly_limit"] is None
    assert reply["budget"]["spent"] == "0.0005"


async def test_costs_in_csv_by_format_and_by_accept(service: Service) -> None:
    await book(service, "default", "more")
    by_format = await service.client.get("/api/costs?by=day,collection&format=csv")
    by_accept = await service.client.get(
        "/api/costs?by=day,collection", headers={"Accept": "text/csv"}
    )
    assert by_format.headers["Content-Type"].startswith("text/csv")
    assert by_format.text == by_accept.text
    [row] = csv.DictReader(io.StringIO(by_format.text))
    assert (row["collection"], row["cost"], row["currency"]) == ("default + more", "0.0005", "USD")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("by=colour", "grouped by colour"),
        ("from=yesterday", "from"),
        ("from=2026-02-30", "from"),
        ("from=2026-03-02&to=2026-03-01", "is after"),
        ("from=1990-01-01&to=2026-01-01", "at the most"),
        ("format=xml", "json or csv"),
        ("until=2026-01-01", "until"),
        ("by=%00", "NUL"),
    ],
)
async def test_what_makes_no_sense_is_refused(service: Service, query: str, said: str) -> None:
    reply = await service.client.get(f"/api/costs?{query}")
    assert reply.status_code == 422, reply.text
    assert said in reply.json()["detail"]


async def test_costs_are_for_admins_and_of_their_collections(
    service_settings: Settings, shared_embedder: None
) -> None:
    async with open_service(service_settings) as unguarded:
        whole = await unguarded.key("admin")
        limited = await unguarded.key("admin", collections=["default"])
        reader = await unguarded.key("read")
    guarded = service_settings.model_copy(update={"auth": "on"})
    async with open_service(guarded) as service:
        await book(service, "default")
        await book(service, "secret")
        assert (await service.client.get("/api/costs", headers=reader)).status_code == 403
        counts = [
            (await service.client.get("/api/costs", headers=key)).json()["total"]["generations"]
            for key in (whole, limited)
        ]
        assert counts == [4, 2]
        body = {"monthly_limit": "5"}
        for key, status in ((whole, 200), (limited, 403), (reader, 403)):
            reply = await service.client.put("/api/costs/budget", json=body, headers=key)
            assert reply.status_code == status


async def test_a_budget_is_set_seen_and_taken_away(service: Service) -> None:
    await book(service, "default")
    reply = await service.client.put("/api/costs/budget", json={"monthly_limit": "0.001"})
    assert reply.status_code == 200, reply.text
    budget = reply.json()
    assert (budget["monthly_limit"], budget["source"]) == ("0.001", "own")
    assert [alert["percent"] for alert in budget["alerts"]] == [25, 50]
    seen = (await service.client.get("/api/costs")).json()["budget"]
    assert seen == budget
    reply = await service.client.put("/api/costs/budget", json={"monthly_limit": None})
    assert reply.json()["monthly_limit"] is None
    assert reply.json()["alerts"] == []


@pytest.mark.parametrize("wrong", ["-1", "1e12", "NaN", "much", "0.0000001", True])
async def test_what_is_no_budget_is_refused(service: Service, wrong: Any) -> None:
    reply = await service.client.put("/api/costs/budget", json={"monthly_limit": wrong})
    assert reply.status_code == 422, reply.text
