"""The registry of language models over HTTP, and questions that go to them, all the way."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from app.access import ALL_SCOPES
from app.config import Settings
from app.language_models import ModelSpec
from tests.doubles.ollama import OllamaDouble
from tests.model_house import ASKED, CLAUDE, House, open_house
from tests.service import Service, open_service


@pytest.fixture
async def house(
    service_settings: Settings,
    shared_embedder: None,
    embedder: Any,
    double: OllamaDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[House]:
    async with open_house(service_settings, embedder, double, monkeypatch) as opened:
        yield opened


async def test_the_configured_model_is_listed(house: House) -> None:
    listed = await house.call("GET", "/api/models/chat")
    assert listed["cloud_models"] is False
    (model,) = listed["models"]
    assert model["id"] is None
    assert (model["name"], model["tier"], model["usable"]) == ("llama3.1:8b", "interactive", True)
    assert model["context_tokens"] == Settings().generation_context_tokens


async def test_from_registration_to_an_answer_and_back(house: House) -> None:
    added = await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    assert (added["cloud"], added["usable"]) == (True, False)
    assert "not allowed" in added["reason"]
    assert added["prompt_price_per_million"] == "3"

    refused = await house.ask(403, model="claude")
    assert "models chat cloud on" in refused["hint"]
    assert house.hosted.requests == []
    stayed = await house.ask(tier="orchestration")
    assert (stayed["mode"], stayed["model"]) == ("generated", "llama3.1:8b")
    assert stayed["routing"]["tried"][0]["model"] == "claude"
    assert house.hosted.requests == []

    allowed = await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    assert allowed == {"name": "default", "cloud_models": True}
    answered = await house.ask(model="claude")
    assert (answered["mode"], answered["model"]) == ("generated", "claude")
    assert answered["routing"] == {
        "tier": "orchestration",
        "model": "claude",
        "reason": "the request names it",
        "tried": [],
    }
    assert answered["grounded"]
    assert answered["usage"]["prompt_tokens"] == 120
    assert float(answered["usage"]["cost"]) > 0

    await house.call("PATCH", "/api/tenant", json={"cloud_models": False})
    await house.ask(403, model="claude")
    await house.call("DELETE", f"/api/models/chat/{added['id']}")
    unknown = await house.ask(422, model="claude")
    assert "llama3.1:8b" in unknown["hint"]


async def test_the_question_chooses_the_tier(house: House) -> None:
    await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    small = {"name": "phi3:mini", "tier": "realtime", "served_as": "llama3.1:8b"}
    await house.call("POST", "/api/models/chat", 201, json=small)
    fact = await house.ask()
    assert (fact["routing"]["tier"], fact["model"]) == ("realtime", "phi3:mini")
    assert "a fact" in fact["routing"]["reason"]
    how = await house.ask(question="How are travel receipts handled, and how do I send them?")
    assert how["routing"]["tier"] == "interactive"


async def test_a_provider_that_fails_is_stood_in_for_and_that_is_said(house: House) -> None:
    await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    house.hosted.fault = "status_500"
    answered = await house.ask(tier="orchestration")
    assert answered["model"] == "llama3.1:8b"
    (failed,) = answered["routing"]["tried"]
    assert failed["model"] == "claude"
    assert "status 500" in failed["reason"]
    assert house.hosted.key not in str(answered)
    alone = await house.ask(503, model="claude")
    assert alone["code"] == "generation_unavailable"


async def test_a_streamed_answer_says_in_its_end_who_gave_it(house: House) -> None:
    await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    body = {**ASKED, "stream": True, "model": "claude"}
    reply = await house.service.client.post("/api/chat", json=body)
    assert '"routing":{"tier":"orchestration","model":"claude"' in reply.text
    house.hosted.fault, house.hosted.fault_after_tokens = "cut", 2
    another = {**body, "question": "Who approves travel, and above how many euros?"}
    broken = await house.service.client.post("/api/chat", json=another)
    assert "event: error" in broken.text
    assert "generation_interrupted" in broken.text


async def test_a_variant_is_stood_in_for_by_its_baseline(house: House) -> None:
    legal = {"name": "legal", "variant": "lora", "baseline": "llama3.1:8b", "served_as": "legal:2"}
    await house.call("POST", "/api/models/chat", 201, json=legal)
    answered = await house.ask(model="legal")
    assert answered["model"] == "llama3.1:8b"
    assert answered["routing"]["tried"][0]["model"] == "legal"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"provider": "nobody"}, 422, "nobody"),
        ({"tier": "best"}, 422, "tier"),
        ({"name": "auto"}, 422, "meaning of its own"),
        ({"name": "a\nb"}, 422, "name"),
        ({"name": "llama3.1:8b"}, 409, "already"),
        ({"variant": "lora", "baseline": "nothing"}, 422, "no model here"),
        ({"variant": "lora"}, 422, "baseline"),
        ({"prompt_price_per_million": -1}, 422, "prompt_price"),
        ({"prompt_price_per_million": "NaN"}, 422, "prompt_price"),
        ({"api_key": "sk-secret"}, 422, "api_key"),
        ({"url": "http://169.254.169.254"}, 422, "url"),
        ({"context_tokens": 1}, 422, "context_tokens"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    house: House, change: dict[str, Any], status: int, said: str
) -> None:
    refused = await house.call("POST", "/api/models/chat", status, json={**CLAUDE, **change})
    assert said in refused["detail"] + refused["hint"]
    assert "sk-secret" not in str(refused)
    assert len((await house.call("GET", "/api/models/chat"))["models"]) == 1


async def test_a_baseline_stays_while_it_is_needed(house: House) -> None:
    base = {"name": "base", "served_as": "llama3.1:8b"}
    added = await house.call("POST", "/api/models/chat", 201, json=base)
    tuned = {"name": "tuned", "variant": "fine-tuned", "baseline": "base"}
    variant = await house.call("POST", "/api/models/chat", 201, json=tuned)
    refused = await house.call("DELETE", f"/api/models/chat/{added['id']}", 409)
    assert "tuned" in refused["detail"]
    await house.call("DELETE", f"/api/models/chat/{variant['id']}")
    await house.call("DELETE", f"/api/models/chat/{added['id']}")
    await house.call("DELETE", f"/api/models/chat/{added['id']}", 404)


async def test_a_model_without_a_key_says_which_one(house: House) -> None:
    azure = {"name": "azure-gpt", "provider": "azure-eu", "tier": "orchestration"}
    await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    added = await house.call("POST", "/api/models/chat", 201, json=azure)
    assert added["reason"] == "no key: FOOTNOTE_AZURE_EU_API_KEY is not set"
    refused = await house.ask(503, model="azure-gpt")
    assert "FOOTNOTE_AZURE_EU_API_KEY" in refused["detail"]


async def test_another_tenant_has_models_and_leave_of_its_own(house: House) -> None:
    added = await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    async with house.service.resources.engine.begin() as connection:
        await connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
    ring = house.service.resources.keyring
    _, token = await ring.create("other", scopes=ALL_SCOPES, tenant_id=2)
    other = {"Authorization": f"Bearer {token}"}
    listed = await house.call("GET", "/api/models/chat", headers=other)
    assert [one["name"] for one in listed["models"]] == ["llama3.1:8b"]
    assert listed["cloud_models"] is False
    tenant = await house.call("GET", "/api/tenant", headers=other)
    assert tenant == {"name": "other", "cloud_models": False}
    await house.call("DELETE", f"/api/models/chat/{added['id']}", 404, headers=other)
    same_name = await house.call("POST", "/api/models/chat", 201, json=CLAUDE, headers=other)
    assert same_name["id"] != added["id"]


async def test_a_key_limited_to_collections_changes_nothing_for_the_tenant(house: House) -> None:
    added = await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    limited = await house.service.key(*ALL_SCOPES, collections=["default"])
    allow = {"cloud_models": True}
    await house.call("PATCH", "/api/tenant", 403, json=allow, headers=limited)
    await house.call("POST", "/api/models/chat", 403, json={"name": "x"}, headers=limited)
    await house.call("DELETE", f"/api/models/chat/{added['id']}", 404, headers=limited)
    listed = await house.call("GET", "/api/models/chat")
    assert [one["name"] for one in listed["models"]] == ["llama3.1:8b", "claude"]
    assert listed["cloud_models"] is False


async def test_a_model_that_the_configuration_took_over_is_its(house: House) -> None:
    await house.call("POST", "/api/models/chat", 201, json={"name": "mistral:7b"})
    taken = (ModelSpec(name="mistral:7b", tier="realtime"),)
    settings = house.service.resources.settings.model_copy(update={"models": taken})
    async with open_service(settings) as later:
        listed = (await later.client.get("/api/models/chat")).json()["models"]
    assert [(one["name"], one["id"]) for one in listed] == [
        ("llama3.1:8b", None),
        ("mistral:7b", None),
    ]


# --- experiments ----------------------------------------------------------------------------------


async def begin(house: House, status: int = 201, *, model: str, name: str = "another") -> Any:
    body = {"name": name, "candidates": [{"name": "candidate", "model": model}]}
    return await house.call("POST", "/api/admin/experiments", status, json=body)


async def test_an_arm_may_ask_for_a_registered_model(house: House) -> None:
    unknown = await begin(house, 422, model="claude")
    assert "'claude', which is not there" in unknown["detail"]
    assert "llama3.1:8b" in unknown["hint"]
    added = await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    refused = await begin(house, 422, model="claude")
    assert "cannot be asked: models in the cloud are not allowed" in refused["detail"]
    await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    await begin(house, model="claude")
    for _ in range(4):
        step = await house.call("POST", "/api/admin/experiments/another/advance")
    assert step["percent"] == 100
    answered = await house.ask()
    assert answered["model"] == "claude"
    assert answered["experiment"]["arm"] == "candidate"

    kept = await house.call("DELETE", f"/api/models/chat/{added['id']}", 409)
    assert "another" in kept["detail"]
    await house.call("POST", "/api/admin/experiments/another/finish")
    await house.call("DELETE", f"/api/models/chat/{added['id']}")
    assert (await house.ask())["model"] == "llama3.1:8b"


async def test_an_arm_may_ask_for_a_configured_model(house: House) -> None:
    await begin(house, model="llama3.1:8b")
    await house.call("POST", "/api/admin/experiments/another/rollback")
    for number, other in enumerate(("gpt-9", "auto")):
        unknown = await begin(house, 422, model=other, name=f"other-{number}")
        assert other in unknown["detail"]


async def test_no_key_is_kept_anywhere(house: House) -> None:
    await house.call("POST", "/api/models/chat", 201, json=CLAUDE)
    await house.call("PATCH", "/api/tenant", json={"cloud_models": True})
    await house.ask(model="claude")
    async with house.service.resources.engine.connect() as connection:
        stored = (await connection.execute(text("SELECT spec::text FROM language_models"))).all()
        messages = (await connection.execute(text("SELECT answer::text FROM messages"))).all()
    assert stored
    assert messages
    assert house.hosted.key not in str([*stored, *messages])


# --- health ---------------------------------------------------------------------------------------


async def providers_of(house: House) -> Any:
    for _ in range(20):  # the first answer may come without what takes long to open
        check = (await house.call("GET", "/health"))["checks"]["providers"]
        if check["providers"]:
            return check
    raise AssertionError("no provider was ever asked")


async def test_health_asks_every_configured_provider(house: House) -> None:
    check = await providers_of(house)
    assert (check["healthy"], check["configured"], check["status"]) == (2, 3, "degraded")
    told = {one["provider"]: one for one in check["providers"]}
    assert told["anthropic"]["models"] == ["claude-sonnet", "gpt-5"]
    assert told["anthropic"]["latency_ms"] > 0
    assert told["azure-eu"]["reason"] == "no key: FOOTNOTE_AZURE_EU_API_KEY is not set"
    assert "azure-eu: no key" in check["reason"]


async def test_health_asks_for_what_is_registered(house: House) -> None:
    # Of these, the settings name no provider; everybody knows its address.
    deepseek = {"name": "deepseek-chat", "provider": "deepseek"}
    await house.call("POST", "/api/models/chat", 201, json=deepseek)
    await house.call("POST", "/api/models/chat", 201, json={"name": "legal", "served_as": "acme:2"})
    check = await providers_of(house)
    assert check["configured"] == 4
    told = {one["provider"]: one["reason"] for one in check["providers"]}
    assert told["deepseek"] == "no key: FOOTNOTE_DEEPSEEK_API_KEY is not set"
    servers = (await house.call("GET", "/health"))["checks"]["ollama"]
    assert (servers["status"], servers["usable"]) == ("degraded", 1)
    assert servers["reason"] == f"{house.ollama.url}: lacks 1 of 2 models in use"


async def test_without_providers_the_check_is_off(service: Service) -> None:
    check = (await service.client.get("/health")).json()["checks"]["providers"]
    assert (check["status"], check["configured"]) == ("off", 0)
