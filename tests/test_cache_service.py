"""The layers in the running service: what is asked twice, and what has changed in between."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from app.access import LOCAL_OWNER, Caller
from app.config import Settings
from app.llm import digests
from app.search.base import SearchRequest
from tests.doubles.ollama import OllamaDouble
from tests.redis_server import RedisServer, needs_redis, running_redis
from tests.service import Service, ingest, open_service, working
from tests.test_api_end_to_end import SECURITY, TRAVEL

pytestmark = needs_redis

ASKED = "Who approves trips abroad?"


@pytest.fixture
async def service(
    cached_settings: Settings,
    shared_embedder: None,
    embedder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Service]:
    monkeypatch.setattr(digests, "FRESH_SECONDS", 0.0)
    async with open_service(cached_settings) as opened, working(cached_settings, embedder):
        await ingest(opened, "travel.md", TRAVEL)
        yield opened


async def ask(service: Service, question: str = ASKED, **more: Any) -> dict[str, Any]:
    reply = await service.client.post("/api/chat", json={"question": question, **more})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def streamed(service: Service, question: str = ASKED) -> list[tuple[str, Any]]:
    body = {"question": question, "stream": True}
    reply = await service.client.post("/api/chat", json=body)
    events: list[tuple[str, Any]] = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def in_whole_pieces(events: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """With pieces of text that follow each other as one."""
    joined: list[tuple[str, Any]] = []
    for name, data in events:
        if name == "token" and joined and joined[-1][0] == "token":
            joined[-1] = (name, {"text": joined[-1][1]["text"] + data["text"]})
        else:
            joined.append((name, data))
    return joined


def what_was_said(answer: dict[str, Any]) -> dict[str, Any]:
    names = ("answer", "citations", "sentences", "grounded", "mode", "model", "notice")
    return {name: answer[name] for name in names}


async def test_asked_twice_written_once_and_told_the_same(
    service: Service, double: OllamaDouble
) -> None:
    before = double.stats().completed
    first, second = await ask(service), await ask(service)
    assert first["cache"] == {"embedding": "miss", "chunks": "miss", "answer": "miss"}
    assert second["cache"] == {"embedding": "hit", "chunks": "hit", "answer": "hit"}
    assert what_was_said(second) == what_was_said(first)
    assert first["mode"] == "generated"
    assert first["citations"]
    spent, saved = first["usage"], second["usage"]
    assert (saved["prompt_tokens"], saved["completion_tokens"]) == (0, 0)
    assert saved["saved_prompt_tokens"] == spent["prompt_tokens"] > 0
    assert saved["saved_completion_tokens"] == spent["completion_tokens"] > 0
    assert first["conversation_id"] != second["conversation_id"]
    assert double.stats().completed - before == 1


async def test_a_hit_is_streamed_as_the_first_time(service: Service) -> None:
    first, second = await streamed(service), await streamed(service)
    assert [name for name, _ in first][-1] == "done"
    assert second[:-1] == in_whole_pieces(first)[:-1]
    assert len(second) < len(first)
    assert what_was_said(second[-1][1]) == what_was_said(first[-1][1])
    assert second[-1][1]["cache"]["answer"] == "hit"


async def test_case_and_space_make_no_difference_and_words_do(service: Service) -> None:
    await ask(service)
    assert (await ask(service, "  who APPROVES trips\tabroad? "))["cache"] == {
        "embedding": "hit",
        "chunks": "hit",
        "answer": "hit",
    }
    assert (await ask(service, "Who approved trips abroad?"))["cache"]["answer"] == "miss"


async def test_an_unrelated_document_costs_a_retrieval_and_moves_no_citation(
    service: Service, double: OllamaDouble
) -> None:
    first = await ask(service, collection="default")
    await service.client.post("/api/collections", json={"name": "zoo"})
    await ingest(service, "zebra.md", "Zebras graze on open grassland in herds.", collection="zoo")
    assert (await ask(service))["cache"]["chunks"] == "hit"
    longer = TRAVEL.replace("# Travel\n", "# Travel\n\n## Trains\n\nTrains are first class.\n")
    before = double.stats().requests
    await ingest(service, "travel.md", longer)
    second = await ask(service)
    assert second["cache"]["chunks"] == "miss"
    for citation in second["citations"]:
        document = await service.client.get(f"/api/documents/{citation['document_id']}/content")
        assert citation["quote"] in document.text
    found = (await service.client.post("/api/search", json={"query": ASKED})).json()["hits"]
    ids = {hit["chunk_id"] for hit in found}
    assert {one["chunk_id"] for one in second["citations"]} <= ids
    assert first["citations"][0]["start"] != second["citations"][0]["start"]
    assert double.stats().requests - before <= 1


async def test_an_edit_of_the_evidence_is_answered_anew(
    service: Service, double: OllamaDouble
) -> None:
    assert "Ada" in (await ask(service))["answer"]
    await ingest(service, "travel.md", TRAVEL.replace("Ada Lovelace", "Grace Hopper"))
    answer = await ask(service)
    assert answer["cache"]["answer"] == "miss"
    assert "Grace" in answer["answer"]
    assert "Ada" not in answer["answer"]


async def test_a_deleted_document_is_gone_at_once(service: Service) -> None:
    await ingest(service, "security.md", SECURITY)
    await ask(service)
    [travel] = [
        one
        for one in (await service.client.get("/api/documents")).json()["documents"]
        if one["title"] == "Travel"
    ]
    assert (await service.client.delete(f"/api/documents/{travel['id']}")).status_code == 200
    answer = await ask(service)
    assert answer["cache"]["chunks"] == "miss"
    assert all(one["document_id"] != travel["id"] for one in answer["citations"])
    assert "Ada" not in answer["answer"]


async def test_groups_that_change_close_the_passage_at_once(service: Service) -> None:
    searcher = service.resources.searcher
    staff = Caller(1, frozenset({"read"}), groups=frozenset({"staff"}))
    request = SearchRequest(ASKED, ("default",))
    assert (await searcher.search(staff, request)).hits
    assert (await searcher.search(staff, request)).cache["chunks"] == "hit"
    await ingest(service, "travel.md", TRAVEL, groups="board")
    closed = await searcher.search(staff, request)
    assert (closed.cache["chunks"], list(closed.hits)) == ("miss", [])
    board = Caller(1, frozenset({"read"}), groups=frozenset({"board"}))
    seen = await searcher.search(board, request)
    assert seen.hits
    assert list((await searcher.search(staff, request)).hits) == []


async def test_who_leaves_ends_a_search_for_nobody_and_keeps_no_connection(
    service: Service, cached_settings: Settings
) -> None:
    searcher = service.resources.searcher
    for number in range(3 * cached_settings.database_pool_size):
        request = SearchRequest(f"{ASKED} {number}", ("default",))
        leaving = asyncio.create_task(searcher.search(LOCAL_OWNER, request))
        staying = asyncio.create_task(searcher.search(LOCAL_OWNER, request))
        # At one moment after the other: before the scope is known, while it is searched, at the end.
        await asyncio.sleep(number / 2000)
        leaving.cancel()
        assert (await staying).hits
        await asyncio.wait([leaving])
        assert leaving.cancelled() or leaving.result().hits
    assert (await searcher.search(LOCAL_OWNER, request)).cache["chunks"] == "hit"


async def test_other_weights_under_the_same_name_answer_anew(
    service: Service, double: OllamaDouble
) -> None:
    await ask(service)
    double.set(digest="ab" * 32)
    async with asyncio.timeout(5):
        while (await ask(service))["cache"]["answer"] == "hit":
            await asyncio.sleep(0.05)
    assert (await ask(service))["cache"]["answer"] == "hit"


async def test_an_answer_that_was_cut_off_is_not_kept(
    service: Service, double: OllamaDouble
) -> None:
    double.set(done_reason="length")
    for _ in range(2):
        answer = await ask(service)
        assert answer["cache"]["answer"] == "miss"
        assert "cut off" in answer["notice"]


async def test_an_answer_that_cites_nothing_is_not_kept(
    service: Service, double: OllamaDouble
) -> None:
    double.set(answer="I believe it is somebody from operations.")
    assert [(await ask(service))["cache"]["answer"] for _ in range(2)] == ["miss", "miss"]


async def test_quoted_answers_are_kept_too(service: Service) -> None:
    answers = [await ask(service, model="extractive") for _ in range(2)]
    assert [one["cache"]["answer"] for one in answers] == ["miss", "hit"]
    assert what_was_said(answers[0]) == what_was_said(answers[1])


async def test_an_explained_search_is_made_anew(service: Service) -> None:
    body = {"query": ASKED, "explain": True}
    for embedding in ("miss", "hit"):
        reply = (await service.client.post("/api/search", json=body)).json()
        assert reply["cache"] == {"embedding": embedding, "chunks": "off"}
        assert reply["explanation"]["cache"] == reply["cache"]


async def test_hits_of_a_search_are_equal_to_the_last_digit(service: Service) -> None:
    body = {"query": ASKED, "collapse_duplicates": True, "limit": 3}
    first = (await service.client.post("/api/search", json=body)).json()
    second = (await service.client.post("/api/search", json=body)).json()
    assert second["cache"] == {"embedding": "hit", "chunks": "hit"}
    assert second["hits"] == first["hits"]


async def test_a_hundred_at_once_are_one_generation(service: Service, double: OllamaDouble) -> None:
    double.set(first_token_seconds=0.5)
    before = double.stats().completed
    answers = await asyncio.gather(*(ask(service) for _ in range(100)))
    assert double.stats().completed - before == 1
    assert len({one["answer"] for one in answers}) == 1
    assert len([one for one in answers if one["usage"]["completion_tokens"]]) == 1


async def test_layers_are_switched_off_one_by_one(
    cached_settings: Settings, shared_embedder: None, embedder: Any
) -> None:
    off = {"cache_embeddings": False, "cache_answers": False}
    settings = cached_settings.model_copy(update=off)
    async with open_service(settings) as service, working(settings, embedder):
        await ingest(service, "travel.md", TRAVEL)
        assert [(await ask(service))["cache"] for _ in range(2)][1] == {
            "embedding": "off",
            "chunks": "hit",
            "answer": "off",
        }


# --- the store in trouble --------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["kill", "pause"])
async def test_without_redis_it_answers_and_says_so(
    trouble: str, cached_settings: Settings, shared_embedder: None, embedder: Any
) -> None:
    with running_redis() as server:
        update = {"redis_url": SecretStr(server.url), "redis_timeout_seconds": 0.05}
        settings = cached_settings.model_copy(update=update)
        async with open_service(settings) as service, working(settings, embedder):
            await ingest(service, "travel.md", TRAVEL)
            await ask(service)
            server.kill() if trouble == "kill" else server.pause()
            answers = await asyncio.gather(*(ask(service) for _ in range(10)))
            assert all("Ada" in one["answer"] for one in answers)
            health = (await service.client.get("/health")).json()
            assert health["status"] == "degraded"
            assert health["checks"]["redis"]["status"] == "degraded"
            stats = (await service.client.get("/api/advanced-cache-stats")).json()
            assert stats["status"] == "degraded"
            metrics = (await service.client.get("/metrics")).text
            assert 'footnote_degraded{part="cache"} 1.0' in metrics


# --- numbers, and forgetting ------------------------------------------------------------------------


async def test_numbers_of_each_layer(service: Service) -> None:
    for _ in range(3):
        await ask(service)
    stats = (await service.client.get("/api/advanced-cache-stats")).json()
    assert (stats["store"], stats["status"]) == ("redis", "ok")
    for name in ("chunks", "answer"):
        layer = stats["layers"][name]
        assert (layer["hits"], layer["misses"]) == (2, 1), name
        assert layer["hit_rate"]["all"] == pytest.approx(2 / 3, abs=0.001)
        assert layer["hit_rate"]["last_minute"] == layer["hit_rate"]["all"]
        assert layer["missed"]["new"] == 1
        assert layer["entries"] == 1
        assert layer["bytes"] > 100
        assert layer["latency"]["mean_ms"] > 0
        assert layer["latency"]["p95_ms"] > 0
    assert stats["layers"]["answer"]["saved"]["tokens"] > 0


async def test_reasons_of_misses(service: Service) -> None:
    await ask(service)
    await ingest(service, "travel.md", TRAVEL.replace("Ada Lovelace", "Grace Hopper"))
    await ask(service)
    await ask(service, model="extractive")
    stats = (await service.client.get("/api/advanced-cache-stats")).json()["layers"]
    assert stats["chunks"]["missed"]["evidence_changed"] == 1
    answer = stats["answer"]["missed"]
    assert (answer["new"], answer["evidence_changed"], answer["settings"]) == (1, 1, 1)


async def test_numbers_are_those_of_all_processes(
    service: Service, cached_settings: Settings
) -> None:
    await ask(service)
    await ask(service)
    async with open_service(cached_settings) as other:
        async with asyncio.timeout(10):
            while True:
                stats = (await other.client.get("/api/advanced-cache-stats")).json()
                if stats["layers"]["answer"]["hits"] == 1:
                    break
                await asyncio.sleep(0.2)


async def test_a_layer_is_emptied_for_the_own_tenant(
    service: Service, redis_server: RedisServer
) -> None:
    await ask(service)
    removed = (await service.client.delete("/api/admin/cache?layer=answer")).json()
    assert removed == {"embedding": 0, "chunks": 0, "answer": 1}
    assert (await ask(service))["cache"] == {"embedding": "hit", "chunks": "hit", "answer": "miss"}
    removed = (await service.client.delete("/api/admin/cache")).json()
    assert all(removed.values())
    assert (await ask(service))["cache"]["embedding"] == "miss"
    assert (await service.client.delete("/api/admin/cache?layer=all")).status_code == 200
    assert (await service.client.delete("/api/admin/cache?layer=some")).status_code == 422
