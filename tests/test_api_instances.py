"""The model servers on the wire: statistics, a live check, and changes while the service runs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from app.llm.base import GenerationOptions
from app.llm.pool import GenerationPool, InstanceAddress, PoolLimits
from tests.doubles.ollama import OllamaDouble, running_ollama
from tests.service import Service
from tests.test_pool import ask

MODEL = "llama3.1:8b"


@pytest.fixture(scope="module")
def processes() -> Iterator[list[OllamaDouble]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running_ollama()) for _ in range(2)]


@pytest.fixture
def doubles(processes: list[OllamaDouble]) -> list[OllamaDouble]:
    for double in processes:
        double.reset()
    return processes


@pytest.fixture
async def pool(service: Service, doubles: list[OllamaDouble]) -> AsyncIterator[GenerationPool]:
    """A pool over the first double only, in the service."""
    opened = GenerationPool(
        [InstanceAddress(doubles[0].url, 2)], MODEL, GenerationOptions(), PoolLimits()
    )
    resources = service.resources
    service.app.state.resources = replace(resources, chat_model=opened)
    yield opened
    service.app.state.resources = resources
    await opened.close()


async def test_statistics_tell_what_each_server_has_done_and_can_do(
    service: Service, pool: GenerationPool, doubles: list[OllamaDouble]
) -> None:
    doubles[0].set(answer="a b c d e f", token_seconds=0.02, first_token_seconds=0.05)
    for _ in range(3):
        await ask(pool)
    told = (await service.client.get("/api/load-balancer-stats")).json()
    assert (told["model"], told["requests"], told["completed"]) == (MODEL, 3, 3)
    assert told["queue"] == {"waiting_interactive": 0, "waiting_batch": 0, "expected_wait_ms": 0}
    assert told["first_token_ms"]["p50"] >= 50
    assert told["token_gap_ms"]["p50"] == pytest.approx(20, abs=15)
    assert told["choice_ms"]["p50"] < 5
    [server] = told["instances"]
    assert (server["instance"], server["state"]) == (doubles[0].url, "ready")
    assert (server["slots"], server["in_flight"], server["served"]) == (2, 0, 3)
    [model] = server["models"]
    assert model["completion_tokens_per_second"] == pytest.approx(50, rel=0.5)
    assert model["resident"]


async def test_the_live_check_asks_all_servers_side_by_side(
    service: Service, pool: GenerationPool, doubles: list[OllamaDouble]
) -> None:
    doubles[1].set(refuses=True)
    pool.change(doubles[1].url)
    told = (await service.client.get("/api/ollama-health")).json()
    assert (told["status"], told["healthy"], told["total"]) == ("degraded", 1, 2)
    well, away = told["instances"]
    assert (well["status"], well["has_model"], well["version"]) == ("ok", True, "0.33.0")
    assert MODEL in well["models"]
    assert (away["status"], away["reason"]) == ("down", "no reply")


async def test_a_server_that_is_added_is_used_and_one_that_is_removed_is_forgotten(
    service: Service, pool: GenerationPool, doubles: list[OllamaDouble]
) -> None:
    change = {"instances": [{"url": doubles[1].url, "slots": 3}]}
    reply = await service.client.patch("/api/admin/instances", json=change)
    assert reply.status_code == 200
    assert [one["configured_slots"] for one in reply.json()["instances"]] == [2, 3]
    gone = {"instances": [{"url": doubles[0].url, "state": "removed"}]}
    reply = await service.client.patch("/api/admin/instances", json=gone)
    assert reply.json()["instances"][0]["state"] == "draining"
    await asyncio.sleep(0.3)
    assert (await ask(pool))[1] == doubles[1].url
    told = (await service.client.get("/api/load-balancer-stats")).json()
    assert [one["instance"] for one in told["instances"]] == [doubles[1].url]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"url": "nonsense"}, 422),
        ({"url": "http://gpu-9", "slots": 0}, 422),
        ({"url": "http://gpu-9", "state": "draining"}, 404),
        ({"url": "http://gpu-9", "state": "broken"}, 422),
    ],
)
async def test_a_wrong_change_is_refused(
    service: Service, pool: GenerationPool, change: dict[str, object], status: int
) -> None:
    reply = await service.client.patch("/api/admin/instances", json={"instances": [change]})
    assert reply.status_code == status
    assert reply.json()["hint"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/load-balancer-stats"),
        ("GET", "/api/ollama-health"),
        ("PATCH", "/api/admin/instances"),
    ],
)
async def test_without_model_servers_it_says_how_to_get_some(
    service: Service, method: str, path: str
) -> None:
    body = {"instances": [{"url": "http://gpu-9"}]} if method == "PATCH" else None
    reply = await service.client.request(method, path, json=body)
    assert reply.status_code == 404
    assert "FOOTNOTE_OLLAMA_URLS" in reply.json()["hint"]
