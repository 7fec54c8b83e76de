"""Queries in a language model's words: in time and usable, or as they were and said."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.costs.prices import Payer
from app.errors import NotFound
from app.llm.registry import generation_options, open_chat_model
from app.search.base import SearchRequest, SearchResult
from app.search.rewriting import (
    INSTRUCTIONS,
    MAX_TOKENS,
    NotRewritten,
    Rewriter,
    RewritingSearcher,
    usable,
)
from tests.doubles.ollama import OllamaDouble, running_ollama
from tests.searching import Index, open_index
from tests.service import Service, ingest, open_service, working

PAYER = Payer(LOCAL_OWNER.tenant_id, None, ("books",))

# --- pure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "written", "expected"),
    [
        ("hw 2 bok holidays", "how to book holidays 2", "how to book holidays 2"),
        ("trips", "\n Query: business trips\n", "business trips"),
        ("trips", '"business trips" -holiday tri*', "business trips holiday tri"),
        ("error in v2.3.1", "error in version V2.3.1", "error in version V2.3.1"),
        ("ERR_CONN_RESET why", "err_conn_reset connection", "err_conn_reset connection"),
        ("Reisekosten", "Erstattung von Reisekosten", "Erstattung von Reisekosten"),
    ],
)
def test_a_model_writes_a_query(query: str, written: str, expected: str) -> None:
    assert usable(query, written) == expected


@pytest.mark.parametrize(
    ("query", "written", "reason"),
    [
        ("trips", "", "something else"),
        ("trips", " \n…\n", "something else"),
        ("trips", "business trips\nand why", "something else"),
        ("trips", "word " * 200, "something else"),
        ("error in v2.3.1", "error in version two", r"left out v2\.3\.1"),
        ("holiday 2024", "holiday 2025", "left out 2024"),
    ],
)
def test_what_is_no_query_is_not_used(query: str, written: str, reason: str) -> None:
    with pytest.raises(NotRewritten, match=reason) as refused:
        usable(query, written)
    assert refused.value.kind == "unusable"


# --- a model over the wire ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started_ollama() -> Iterator[OllamaDouble]:
    with running_ollama() as double:
        yield double


@pytest.fixture
def ollama(started_ollama: OllamaDouble) -> Iterator[OllamaDouble]:
    started_ollama.reset()
    yield started_ollama
    started_ollama.reset()


@pytest.fixture
async def rewriter(ollama: OllamaDouble, settings: Settings) -> AsyncIterator[Rewriter]:
    changed = settings.model_copy(
        update={"ollama_urls": (ollama.url,), "rewrite_timeout_seconds": 5.0}
    )
    model = open_chat_model(changed)
    assert model is not None
    yield Rewriter(model, generation_options(changed), changed)
    await model.close()


async def test_a_model_is_asked_once_for_one_line(rewriter: Rewriter, ollama: OllamaDouble) -> None:
    ollama.set(answer="business trips reimbursement")
    rewritten = await rewriter.rewrite("how do trips get payed", PAYER)
    assert rewritten.query == "business trips reimbursement"
    assert rewritten.model == "llama3.1:8b"
    asked = ollama.stats().last_request or {}
    assert [one["content"] for one in asked["messages"]] == [INSTRUCTIONS, "how do trips get payed"]
    # The context is that of every other request: another one would load the model anew.
    assert asked["options"]["num_ctx"] == 4096
    assert asked["options"]["num_predict"] == MAX_TOKENS


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ({"fault": "status_500"}, "unavailable"),
        ({"fault": "cut", "fault_after_tokens": 2, "answer": "a b c d"}, "unavailable"),
        ({"model": "another"}, "unavailable"),
        ({"answer": "Sure! Here it is:\n\ntrips"}, "unusable"),
    ],
)
async def test_a_model_that_fails_is_a_reason(
    rewriter: Rewriter, ollama: OllamaDouble, behaviour: dict[str, Any], kind: str
) -> None:
    ollama.set(**behaviour)
    with pytest.raises(NotRewritten) as refused:
        await rewriter.rewrite("trips", PAYER)
    assert refused.value.kind == kind


async def test_a_slow_model_is_left(ollama: OllamaDouble, settings: Settings) -> None:
    changed = settings.model_copy(
        update={"ollama_urls": (ollama.url,), "rewrite_timeout_seconds": 0.2}
    )
    ollama.set(first_token_seconds=30)
    model = open_chat_model(changed)
    assert model is not None
    with pytest.raises(NotRewritten, match=r"more than 0\.2 s") as refused:
        await Rewriter(model, generation_options(changed), changed).rewrite("trips", PAYER)
    assert refused.value.kind == "late"
    await model.close()
    for _ in range(100):
        if ollama.stats().aborted:
            break
        await asyncio.sleep(0.05)
    assert ollama.stats().aborted == 1


async def test_operators_are_taken_at_their_word(rewriter: Rewriter, ollama: OllamaDouble) -> None:
    with pytest.raises(NotRewritten, match="operators"):
        await rewriter.rewrite('hotels "free cancellation"', PAYER)
    assert ollama.stats().requests == 0


async def test_without_a_model_nothing_is_rewritten(settings: Settings) -> None:
    with pytest.raises(NotRewritten, match="no language model"):
        await Rewriter(None, generation_options(settings), settings).rewrite("trips", PAYER)


# --- in a search ----------------------------------------------------------------------------------


class Watched:
    """A searcher that keeps what it was asked."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.asked: list[str] = []

    async def search(self, _caller: Any, request: SearchRequest) -> SearchResult:
        self.asked.append(request.query)
        return await self.index.search(request.query, *request.collections, explain=request.explain)


@pytest.fixture
async def watched(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Watched]:
    async with open_index(engine, settings) as index:
        await index.fill(["business travel is paid", "the kitchen is closed"])
        yield Watched(index)


async def test_the_rewritten_query_is_searched(
    watched: Watched, rewriter: Rewriter, ollama: OllamaDouble
) -> None:
    ollama.set(answer="business travel")
    searcher = RewritingSearcher(watched, rewriter)
    request = SearchRequest("who pays for a kitchn trip", ("books",), rewrite=True, explain=True)
    found = await searcher.search(LOCAL_OWNER, request)
    assert watched.asked == ["who pays for a kitchn trip", "business travel"]
    assert found.hits[0].text == "business travel is paid"
    explanation = found.explanation or {}
    assert explanation["rewrite"] == {"query": "business travel", "model": "llama3.1:8b"}
    assert "rewrite" in explanation["stages_ms"]


async def test_what_cannot_be_rewritten_is_searched_as_it_is(
    watched: Watched, rewriter: Rewriter, ollama: OllamaDouble
) -> None:
    ollama.set(fault="status_500")
    searcher = RewritingSearcher(watched, rewriter)
    request = SearchRequest("kitchen", ("books",), rewrite=True)
    found = await searcher.search(LOCAL_OWNER, request)
    assert found.hits[0].text == "the kitchen is closed"
    assert found.explanation == {"rewrite": "not done: no model could answer"}
    assert watched.asked == ["kitchen"]


async def test_nobody_asks_a_model_without_being_asked_or_let_in(
    watched: Watched, rewriter: Rewriter, ollama: OllamaDouble
) -> None:
    searcher = RewritingSearcher(watched, rewriter)
    await searcher.search(LOCAL_OWNER, SearchRequest("kitchen", ("books",)))
    with pytest.raises(NotFound):
        await searcher.search(LOCAL_OWNER, SearchRequest("kitchen", ("secret",), rewrite=True))
    assert ollama.stats().requests == 0


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture
async def service(
    service_settings: Settings, shared_embedder: None, embedder: Any, ollama: OllamaDouble
) -> AsyncIterator[Service]:
    changed = service_settings.model_copy(
        update={"ollama_urls": (ollama.url,), "rewrite_timeout_seconds": 10.0}
    )
    async with open_service(changed) as opened, working(changed, embedder):
        await ingest(opened, "travel.txt", "Journeys by train are paid by the firm.")
        yield opened


async def test_a_collection_asks_for_it_and_a_request_forbids_it(
    service: Service, ollama: OllamaDouble
) -> None:
    ollama.set(answer="journeys by train")

    async def rewritten(**options: Any) -> Any:
        body = {"query": "trips on rails", "explain": True, **options}
        reply = await service.client.post("/api/search", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()["explanation"].get("rewrite")

    assert await rewritten() is None
    done = {"query": "journeys by train", "model": "llama3.1:8b"}
    assert await rewritten(rewrite=True) == done
    settings = {"search": {"rewrite": True}}
    reply = await service.client.patch("/api/collections/default", json={"settings": settings})
    assert reply.json()["settings"]["search"]["rewrite"] is True
    assert await rewritten() == done
    assert await rewritten(rewrite=False) is None
    ollama.set(fault="status_503")
    reply = await service.client.post("/api/search", json={"query": "trips"})
    assert reply.json()["hits"]
    assert reply.json()["explanation"]["rewrite"].startswith("not done: ")
