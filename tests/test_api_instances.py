"""The model servers on the wire: statistics, a live check, and changes while the service runs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import Settings
from app.db.session import open_sessions
from app.errors import DatabaseUnavailable
from app.llm import following
from app.llm.base import GenerationOptions
from app.llm.following import ModelServers
from app.llm.pool import GenerationPool, InstanceAddress, PoolLimits
from tests.doubles.ollama import OllamaDouble, running_ollama
from tests.service import Service, open_service
from tests.test_ollama import eventually
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
    configured = [InstanceAddress(doubles[0].url, 2)]
    opened = GenerationPool(configured, MODEL, GenerationOptions(), PoolLimits())
    resources = service.resources
    servers = ModelServers(opened, configured, open_sessions(resources.engine))
    service.app.state.resources = replace(resources, chat_model=opened, model_servers=servers)
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
        ({"url": "http://gpu-9", "state": "configured"}, 404),
        ({"url": "http://user:word@gpu-9"}, 422),
        ({"url": "http://gpu-9", "state": "broken"}, 422),
    ],
)
async def test_a_wrong_change_is_refused(
    service: Service, pool: GenerationPool, change: dict[str, object], status: int
) -> None:
    both = {"instances": [{"url": "http://gpu-8"}, change]}
    reply = await service.client.patch("/api/admin/instances", json=both)
    assert reply.status_code == status
    assert reply.json()["hint"]
    told = (await service.client.get("/api/admin/instances")).json()
    assert (len(told["instances"]), told["changes"]) == (1, [])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/load-balancer-stats"),
        ("GET", "/api/ollama-health"),
        ("GET", "/api/admin/instances"),
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


# --- several processes --------------------------------------------------------------------------


class Several:
    """Services on one database that follow each other; there is no Redis."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack

    async def open(self) -> Service:
        return await self._stack.enter_async_context(open_service(self._settings))


@pytest.fixture
async def several(
    service_settings: Settings,
    shared_embedder: None,
    doubles: list[OllamaDouble],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Several]:
    """Configured with the first double, of two slots, and with a Redis that is away."""
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.1)
    changed = {
        "ollama_urls": (f"{doubles[0].url}#slots=2",),
        "redis_url": SecretStr("redis://127.0.0.1:9"),
    }
    async with AsyncExitStack() as stack:
        yield Several(service_settings.model_copy(update=changed), stack)


def pool_in(service: Service) -> GenerationPool:
    assert service.resources.chat_model is not None
    return service.resources.chat_model


def slots_in(service: Service) -> dict[str, int]:
    """Of the servers that take requests."""
    known = pool_in(service).statistics().instances
    return {one.instance: one.configured_slots for one in known if one.state != "draining"}


async def change(service: Service, *changes: dict[str, Any], status: int = 200) -> Any:
    body = {"instances": [*changes]}
    reply = await service.client.patch("/api/admin/instances", json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


async def test_all_processes_follow_and_no_stream_is_cut(
    several: Several, doubles: list[OllamaDouble]
) -> None:
    asked, other = await several.open(), await several.open()
    first, second = (one.url for one in doubles)
    words = " ".join(map(str, range(40)))
    doubles[0].set(answer=words, token_seconds=0.03)
    running = asyncio.create_task(ask(pool_in(other)))
    await eventually(lambda: doubles[0].stats().requests > 0)
    told = await change(asked, {"url": second, "slots": 3}, {"url": first, "state": "removed"})
    assert {one["url"]: one["state"] for one in told["changes"]} == {
        first: "removed",
        second: "serving",
    }
    assert slots_in(asked) == {second: 3}
    await eventually(lambda: slots_in(other) == {second: 3})
    assert (await ask(pool_in(other)))[1] == second
    assert not running.done()
    assert await running == (words, first)
    await eventually(lambda: len(pool_in(other).statistics().instances) == 1)


async def test_a_change_holds_over_restarts_until_it_is_taken_back(
    several: Several, doubles: list[OllamaDouble]
) -> None:
    first, second = (one.url for one in doubles)
    asked = await several.open()
    await change(asked, {"url": first, "slots": 4}, {"url": second})
    await change(asked, {"url": first, "state": "draining"})
    later = await several.open()
    await eventually(lambda: slots_in(later) == {second: 1})
    # Its slots were left as they had been changed.
    await change(later, {"url": first})
    await eventually(lambda: slots_in(asked) == {first: 4, second: 1})
    taken_back = [{"url": url, "state": "configured"} for url in (first, second)]
    assert (await change(later, *taken_back))["changes"] == []
    await eventually(lambda: slots_in(asked) == {first: 2} == slots_in(later))
    # Of its own the configuration knows nothing of the second.
    await change(asked, {"url": second, "state": "removed"}, status=404)


async def test_while_the_database_is_away_the_servers_stay(
    several: Several, doubles: list[OllamaDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (one.url for one in doubles)
    asked, other = await several.open(), await several.open()
    await change(asked, {"url": second})
    await eventually(lambda: slots_in(other) == {first: 2, second: 1})

    def away() -> Any:
        raise DatabaseUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(following, "translated_errors", away)
        await change(asked, {"url": second, "state": "removed"}, status=503)
        await asyncio.sleep(0.5)
        assert slots_in(other) == slots_in(asked) == {first: 2, second: 1}
    await change(asked, {"url": second, "state": "removed"})
    await eventually(lambda: slots_in(other) == {first: 2})
