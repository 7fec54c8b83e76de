"""POST /v1/rerank: what clients of the common form send and get."""

from typing import Any

import pytest

from app.config import Settings
from app.search.reranking import Rerankers
from tests.doubles.rerank_server import rerank_server
from tests.service import Service, open_service

QUERY = "How many days of holiday does a new colleague get?"
DOCUMENTS = [
    "The canteen serves lunch from noon to two.",
    "Newcomers have 28 days of leave in their first year, as everybody has.",
    "Bicycles belong in the cellar.",
]


async def rerank(service: Service, **body: Any) -> dict[str, Any]:
    reply = await service.client.post(
        "/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **body}
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_without_a_reranker_the_embedding_model_reads(service: Service) -> None:
    reply = await rerank(service)
    assert reply["model"] == "late-interaction"
    assert reply["results"][0]["index"] == 1
    assert {one["index"] for one in reply["results"]} == {0, 1, 2}
    scores = [one["relevance_score"] for one in reply["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all("document" not in one for one in reply["results"])


async def test_takes_what_clients_of_others_send(service: Service) -> None:
    reply = await rerank(
        service,
        model="late-interaction",
        documents=[{"text": DOCUMENTS[0], "id": 7}, DOCUMENTS[1]],
        top_n=1,
        return_documents=True,
        truncation=True,
    )
    [best] = reply["results"]
    assert best["index"] == 1
    assert best["document"] == {"text": DOCUMENTS[1]}


async def test_the_services_own_comes_first_and_keeps_its_address(
    service_settings: Settings, shared_embedder: None
) -> None:
    with rerank_server() as server:
        changed = service_settings.model_copy(
            update={
                "reranker": server.url,
                "reranker_model": "some-model",
                "rerank_candidates": 2,
            }
        )
        async with open_service(changed) as service:
            reply = await rerank(service, query="days of holiday")
            assert reply["model"] == "some-model"
            # Two portions for three documents, put together in their order.
            assert [len(asked["documents"]) for asked in server.requests] == [2, 1]
            assert [one["index"] for one in reply["results"]] == [1, 0, 2]
            assert (await rerank(service, model="late-interaction"))["model"] == "late-interaction"
            reply = await service.client.post(
                "/v1/rerank", json={"query": "a", "documents": ["b"], "model": "other"}
            )
            assert reply.status_code == 422
            assert "some-model, late-interaction" in reply.json()["hint"]
            assert server.url not in reply.text
            server.status = 500
            reply = await service.client.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
            assert reply.status_code == 503
            assert reply.headers["Retry-After"]
            assert "some-model answered 500" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 1001}, "documents"),
        ({"documents": [7]}, "documents"),
        ({"query": "  "}, "query"),
        ({"query": "a" * 9000}, "query"),
        ({"top_n": 0}, "top_n"),
    ],
)
async def test_bad_input_is_named(service: Service, change: dict[str, Any], field: str) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, **change}
    reply = await service.client.post("/v1/rerank", json=body)
    assert reply.status_code == 422
    assert reply.json()["fields"][0]["field"].startswith(field)


async def test_a_model_that_reads_no_tokens_is_no_reranker(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rerankers, "models", lambda _: {})
    reply = await service.client.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
    assert reply.status_code == 503
    assert "FOOTNOTE_RERANKER" in reply.json()["hint"]
