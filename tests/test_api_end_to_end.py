"""A document's whole way over HTTP: sent, processed by a real worker, found, cited, deleted."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from app.config import Settings
from tests.doubles.ollama import OllamaDouble, running_ollama
from tests.service import Service, ingest, open_service, working

TRAVEL = """# Travel

## Approval

Every trip abroad is approved by Ada Lovelace, the head of operations. She answers within two days.

## Hotels

A hotel may cost at most 140 euros per night. Breakfast is paid for by the company.
"""
SECURITY = """# Security

Lost laptops are reported to the security desk within one hour. The desk is open day and night.
"""


@pytest.fixture
async def service(
    service_settings: Settings, shared_embedder: None, embedder: Any
) -> AsyncIterator[Service]:
    async with open_service(service_settings) as opened, working(service_settings, embedder):
        yield opened


async def find(service: Service, query: str, **more: Any) -> list[dict[str, Any]]:
    reply = await service.client.post("/api/search", json={"query": query, **more})
    assert reply.status_code == 200, reply.text
    hits: list[dict[str, Any]] = reply.json()["hits"]
    return hits


async def test_from_upload_to_cited_answer_to_nothing_left(service: Service) -> None:
    travel = await ingest(service, "travel.md", TRAVEL, metadata='{"year": 2025}')
    security = await ingest(service, "security.md", SECURITY, metadata='{"year": 2023}')
    assert travel["chunks"] > 0
    assert (travel["version"], travel["title"]) == (1, "Travel")

    for mode in ("hybrid", "vector", "keyword"):
        hits = await find(service, "Who approves trips abroad?", mode=mode)
        assert hits[0]["document_id"] == travel["id"], mode
        assert "Ada Lovelace" in hits[0]["text"]
        assert hits[0]["end"] - hits[0]["start"] == len(hits[0]["text"])
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert hits == await find(service, "Who approves trips abroad?", mode=mode)
    assert hits[0]["heading"][0] == "Travel"

    old = await find(service, "Who approves trips abroad?", filters={"year": {"$lt": 2025}})
    assert {hit["document_id"] for hit in old} <= {security["id"]}
    assert len(await find(service, "desk hotel trip", limit=1)) == 1
    reply = await service.client.post("/api/search", json={"query": "hotel", "explain": True})
    explained = reply.json()
    assert {"weights", "stages_ms"} <= explained["explanation"].keys()
    assert explained["hits"][0]["explanation"]

    chat = await service.client.post("/api/chat", json={"question": "Who approves trips abroad?"})
    answer = chat.json()
    assert answer["mode"] == "extractive"
    assert answer["notice"]
    assert answer["grounded"] is True
    assert "Ada Lovelace" in answer["answer"]
    assert "[1]" in answer["answer"]
    citation = answer["citations"][0]
    assert citation["document_id"] == travel["id"]
    assert citation["quote"] in TRAVEL
    assert citation["end"] - citation["start"] == len(citation["quote"])

    streamed = await service.client.post(
        "/api/chat", json={"question": "Who approves trips abroad?", "stream": True}
    )
    names = [
        line.removeprefix("event: ")
        for line in streamed.text.split("\n")
        if line.startswith("event: ")
    ]
    assert names[0] == "sources"
    assert names[-1] == "done"
    assert {"token", "citation"} <= set(names)

    nothing = await service.client.post(
        "/api/chat", json={"question": "What is the boiling point of tungsten in kelvin?"}
    )
    assert nothing.json()["mode"] == "declined"
    assert nothing.json()["citations"] == []

    removed = (await service.client.delete(f"/api/documents/{travel['id']}")).json()
    assert removed["chunks"] == removed["vectors"] == travel["chunks"]
    assert removed["postings"] > removed["chunks"]
    assert (removed["originals"], removed["bytes"]) == (1, len(TRAVEL.encode()))
    hits = await find(service, "Who approves trips abroad?")
    assert travel["id"] not in {hit["document_id"] for hit in hits}
    assert (await service.client.delete("/api/collections/default")).json()["documents"] == 1


async def test_a_file_of_the_same_name_takes_the_place_of_the_old_one(service: Service) -> None:
    first = await ingest(service, "travel.md", TRAVEL)
    second = await ingest(service, "travel.md", TRAVEL.replace("Ada Lovelace", "Grace Hopper"))
    assert second["id"] == first["id"]
    assert second["version"] == 2
    hits = await find(service, "Who approves trips abroad?")
    assert "Grace Hopper" in hits[0]["text"]
    assert not any("Ada Lovelace" in hit["text"] for hit in hits)


async def test_what_cannot_be_read_says_why(service: Service) -> None:
    reply = await service.client.post(
        "/api/documents", files={"file": ("broken.pdf", b"%PDF-1.7 and then nothing")}
    )
    accepted = reply.json()
    followed = await service.client.get(f"/api/jobs/{accepted['job_id']}/events", timeout=60)
    last = json.loads(followed.text.strip().split("data: ")[-1])
    assert last["status"] == "failed"
    assert len(last["reason"]) > 10
    document = (await service.client.get(f"/api/documents/{accepted['document_id']}")).json()
    assert (document["status"], document["chunks"]) == ("failed", 0)
    assert document["reason"] == last["reason"]


async def test_groups_and_collections_bound_what_a_key_finds(service: Service) -> None:
    await service.client.post("/api/collections", json={"name": "board"})
    await ingest(service, "travel.md", TRAVEL, groups=["staff"])
    await ingest(service, "secret.md", SECURITY, collection="board")
    keys = {
        "staff": await service.key("read", groups=["staff"], collections=["default"]),
        "guest": await service.key("read", collections=["default"]),
        "board": await service.key("read", collections=["board"]),
    }

    async def found(key: str, collection: str) -> tuple[int, set[str]]:
        reply = await service.client.post(
            "/api/search",
            json={"query": "laptops trips hotel desk", "collection": collection},
            headers=keys[key],
        )
        return reply.status_code, {hit["title"] for hit in reply.json().get("hits", [])}

    assert await found("staff", "default") == (200, {"Travel"})
    assert await found("guest", "default") == (200, set())
    assert await found("board", "board") == (200, {"Security"})
    assert (await found("board", "default"))[0] == 404
    assert (await found("staff", "board"))[0] == 404

    asked = {"question": "Who approves trips abroad?"}
    guest = await service.client.post("/api/chat", json=asked, headers=keys["guest"])
    assert "Lovelace" not in guest.text
    staff = await service.client.post("/api/chat", json=asked, headers=keys["staff"])
    assert "Lovelace" in staff.json()["answer"]


@pytest.fixture(scope="module")
def ollama() -> Iterator[OllamaDouble]:
    with running_ollama() as double:
        yield double


class TestWithModel:
    @pytest.fixture
    def service_settings(self, service_settings: Settings, ollama: OllamaDouble) -> Settings:
        return service_settings.model_copy(update={"ollama_urls": (ollama.url,)})

    async def test_a_model_answers_from_the_sources_and_cites_them(
        self, service: Service, ollama: OllamaDouble
    ) -> None:
        travel = await ingest(service, "travel.md", TRAVEL)
        reply = await service.client.post(
            "/api/chat", json={"question": "Who approves trips abroad?"}
        )
        answer = reply.json()
        assert answer["mode"] == "generated"
        assert answer["model"]
        assert answer["grounded"] is True
        assert answer["citations"][0]["document_id"] == travel["id"]
        assert answer["citations"][0]["quote"] in TRAVEL
        assert answer["usage"]["completion_tokens"] > 0
        assert ollama.stats().completed >= 1
