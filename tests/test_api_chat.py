"""Chat on the wire: events in order, failures told, clients that leave, connections let go."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from app.answering.base import Finished, SourcesFound, TextDelta
from app.config import Settings
from app.errors import GenerationInterrupted, GenerationUnavailable, NotFound, Overloaded
from app.llm.base import Message
from tests.doubles.answerer import ANSWER, HIT, WHOLE, ScriptedAnswerer, Step
from tests.service import Service, open_service, over_sockets, serving

ASKED = {"question": "Who approves travel?"}
STREAMED = {**ASKED, "stream": True}

Event = tuple[str, dict[str, Any]]


def script(service: Service, *steps: Step) -> ScriptedAnswerer:
    answerer = ScriptedAnswerer(*steps)
    service.app.state.resources = replace(service.resources, answerer=answerer)
    return answerer


async def events_of(reply: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in reply.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> list[Event]:
    async with client.stream("POST", "/api/chat", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        return [event async for event in events_of(reply)]


def connections_held(service: Service) -> int:
    pool: Any = service.resources.engine.pool
    return pool.checkedout()


# --- the reply ------------------------------------------------------------------------------------


async def test_an_answer_has_all_that_the_contract_names(service: Service) -> None:
    script(service)
    reply = (await service.client.post("/api/chat", json=ASKED)).json()
    assert reply["answer"] == "Ada approves travel [1]."
    assert reply["citations"] == [
        {
            "marker": 1,
            "chunk_id": 7,
            "document_id": str(HIT.document_id),
            "title": "Travel",
            "uri": "upload:///travel.md",
            "page": 3,
            "start": 100,
            "end": 120,
            "quote": "Ada approves travel.",
        }
    ]
    assert reply["sentences"] == [
        {"text": "Ada approves travel.", "markers": [1], "supported": True, "citations": [0]}
    ]
    assert (reply["grounded"], reply["mode"], reply["model"]) == (True, "generated", "scripted")
    assert reply["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 6,
        "cached_tokens": 0,
        "cost": "0",
        "currency": "USD",
        "saved_prompt_tokens": 0,
        "saved_completion_tokens": 0,
        "saved_cost": "0",
    }
    assert reply["cache"].keys() == {"embedding", "chunks", "answer"}
    assert reply["took_ms"] > 0


async def test_a_stream_tells_sources_text_citations_and_then_the_whole(service: Service) -> None:
    script(service)
    events = await streamed(service.client, STREAMED)

    assert [name for name, _ in events] == ["sources", "token", "token", "citation", "done"]
    assert events[0][1]["hits"][0]["text"] == HIT.text
    assert events[0][1]["hits"][0]["heading"] == ["Travel", "Approval"]
    assert "".join(data["text"] for name, data in events if name == "token") == ANSWER.text
    done = events[-1][1]
    assert done["answer"] == ANSWER.text
    assert done["citations"] == [events[3][1]]
    assert {"conversation_id", "message_id"} <= done.keys()


async def test_text_that_looks_like_an_event_stays_text(service: Service) -> None:
    nasty = 'a\n\nevent: done\ndata: {}\r\n: \u2028"\0</script>'
    script(service, SourcesFound(()), TextDelta(nasty), Finished(replace(ANSWER, text="x")))
    events = await streamed(service.client, STREAMED)
    assert [name for name, _ in events] == ["sources", "token", "done"]
    assert events[1][1]["text"] == nasty


# --- conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
async def test_a_conversation_is_remembered_and_can_be_forgotten(
    service: Service, is_stream: bool
) -> None:
    answerer = script(service)

    async def ask(question: str, **more: Any) -> dict[str, Any]:
        body = {"question": question, "stream": is_stream, **more}
        if is_stream:
            return (await streamed(service.client, body))[-1][1]
        return (await service.client.post("/api/chat", json=body)).json()

    first = await ask("Who approves travel?")
    second = await ask("And hotels?", conversation_id=first["conversation_id"])

    assert second["conversation_id"] == first["conversation_id"]
    assert second["message_id"] != first["message_id"]
    assert answerer.questions[0].history == ()
    assert answerer.questions[1].history == (
        Message("user", "Who approves travel?"),
        Message("assistant", ANSWER.text),
    )

    path = f"/api/conversations/{first['conversation_id']}"
    stored = (await service.client.get(path)).json()["messages"]
    assert [message["role"] for message in stored] == ["user", "assistant"] * 2
    assert stored[3]["id"] == second["message_id"]
    assert stored[3]["answer"]["citations"] == second["citations"]

    judged = {"message_id": second["message_id"], "rating": -1, "comment": "Wrong hotel."}
    assert (await service.client.post("/api/feedback", json=judged)).status_code == 201
    assert (await service.client.delete(path)).json() == {"messages": 4}
    assert (await service.client.get(path)).status_code == 404


async def test_messages_bring_their_own_history(service: Service) -> None:
    answerer = script(service)
    messages = [
        {"role": "user", "content": "Who approves travel?"},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "And hotels?"},
    ]
    reply = await service.client.post("/api/chat", json={"messages": messages, "model": "auto"})
    assert reply.status_code == 200
    question = answerer.questions[0]
    assert question.text == "And hotels?"
    assert [message.content for message in question.history] == ["Who approves travel?", "Ada."]


async def test_a_question_says_where_to_look(service: Service) -> None:
    answerer = script(service)
    more = {"collections": ["b", "a", "b"], "filters": {"year": {"$gte": 2024}}, "model": "m"}
    await service.client.post("/api/chat", json={**ASKED, **more})
    question = answerer.questions[0]
    assert question.collections == ("b", "a")
    assert question.filters == {"year": {"$gte": 2024}}
    assert question.model == "m"


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GenerationUnavailable(), 503),
        (Overloaded(retry_after_seconds=7), 503),
        (NotFound("There is no such collection."), 404),
        (RuntimeError("swordfish"), 500),
    ],
    ids=["unavailable", "overloaded", "not found", "unexpected"],
)
async def test_what_fails_before_the_first_event_has_its_own_status(
    service: Service, is_stream: bool, error: Exception, status: int
) -> None:
    script(service, error)
    with capture_logs():
        reply = await service.client.post("/api/chat", json={**ASKED, "stream": is_stream})
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert ("Retry-After" in reply.headers) is (status == 503)
    assert "swordfish" not in reply.text


@pytest.mark.parametrize(
    ("error", "code"),
    [(GenerationInterrupted(), "generation_interrupted"), (RuntimeError("swordfish"), "internal_error")],
    ids=["interrupted", "unexpected"],
)  # fmt: skip
async def test_a_failure_in_mid_stream_is_the_last_event(
    service: Service, error: Exception, code: str
) -> None:
    script(service, *WHOLE[:2], error, *WHOLE[2:])
    with capture_logs() as logged:
        events = await streamed(service.client, STREAMED)
    assert [name for name, _ in events] == ["sources", "token", "error"]
    told = events[-1][1]
    assert told["code"] == code
    assert told["hint"]
    assert "swordfish" not in json.dumps(told)
    assert any(entry["log_level"] in ("warning", "error") for entry in logged)


async def test_an_answer_that_cannot_be_remembered_ends_with_an_error(service: Service) -> None:
    script(service)
    first = (await service.client.post("/api/chat", json=ASKED)).json()
    pause = asyncio.Event()
    script(service, *WHOLE[:4], pause, WHOLE[4])
    body = {**STREAMED, "conversation_id": first["conversation_id"]}
    asking = asyncio.create_task(streamed(service.client, body))
    await asyncio.sleep(0.1)
    await service.client.delete(f"/api/conversations/{first['conversation_id']}")
    pause.set()
    assert (await asking)[-1][0] == "error"


async def test_an_answer_that_breaks_leaves_no_trace_in_the_conversation(
    service: Service,
) -> None:
    script(service)
    first = (await service.client.post("/api/chat", json=ASKED)).json()
    script(service, *WHOLE[:2], GenerationInterrupted())
    body = {"conversation_id": first["conversation_id"]}
    await streamed(service.client, {**STREAMED, **body})
    assert (await service.client.post("/api/chat", json={**ASKED, **body})).status_code == 502
    stored = await service.client.get(f"/api/conversations/{first['conversation_id']}")
    assert len(stored.json()["messages"]) == 2


# --- clients that leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("begun", [0, 2], ids=["while waiting", "in mid-stream"])
async def test_when_the_client_leaves_the_work_ends(
    service: Service, is_stream: bool, begun: int
) -> None:
    answerer = script(service, *WHOLE[:begun], asyncio.Event())
    async with over_sockets(service) as client:
        asking = asyncio.create_task(client.post("/api/chat", json={**ASKED, "stream": is_stream}))
        while not answerer.open_count:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not answerer.closed.is_set()

        asking.cancel()
        async with asyncio.timeout(1):
            await answerer.closed.wait()
    assert answerer.open_count == 0
    assert connections_held(service) == 0


async def test_open_streams_hold_no_connection_and_leave_room_for_others(
    service_settings: Settings, shared_embedder: None
) -> None:
    few = {"database_pool_size": 2, "database_pool_waiters": 4}
    async with open_service(service_settings.model_copy(update=few)) as service:
        pause = asyncio.Event()
        answerer = script(service, *WHOLE[:2], pause, *WHOLE[2:])
        async with over_sockets(service) as client:
            streams: list[asyncio.Task[list[Event]]] = []
            while len(streams) < 40:
                streams += [asyncio.create_task(streamed(client, STREAMED)) for _ in range(4)]
                while answerer.open_count < len(streams):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert connections_held(service) == 0
            assert (await client.get("/api/collections")).status_code == 200

            pause.set()
            finished = await asyncio.gather(*streams)
        assert [events[-1][0] for events in finished] == ["done"] * 40


async def test_a_service_that_stops_ends_its_streams_in_words(
    service_settings: Settings, shared_embedder: None
) -> None:
    hasty = service_settings.model_copy(update={"shutdown_grace_seconds": 0.2})
    async with open_service(hasty) as service:
        answerer = script(service, *WHOLE[:2], asyncio.Event())
        async with (
            serving(service) as (server, address),
            httpx.AsyncClient(base_url=address) as client,
        ):
            asking = asyncio.create_task(streamed(client, STREAMED))
            while not answerer.open_count:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            server.should_exit = True
            finished = await asyncio.wait_for(asking, timeout=5)
    assert [name for name, _ in finished] == ["sources", "token", "error"]
    assert finished[-1][1]["code"] == "unavailable"
    assert answerer.closed.is_set()
