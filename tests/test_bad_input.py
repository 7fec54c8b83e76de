"""Whatever is sent: a 4xx that says what is wrong and what to do, and the service lives on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import text

from app.config import Settings
from tests.conftest import new_database
from tests.doubles.socket_proxy import SocketProxy
from tests.service import Service, open_service, unix_socket_of

MAX_BODY_BYTES = 200_000
MAX_UPLOAD_BYTES = 300_000

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
async def service(
    server_url: Callable[[str], str], settings: Settings, embedder: Any
) -> AsyncIterator[Service]:
    """One service for all of them: what is refused changes nothing. Its limits are soon reached."""
    changes = {"max_body_bytes": MAX_BODY_BYTES, "max_upload_bytes": MAX_UPLOAD_BYTES}
    with pytest.MonkeyPatch.context() as patch, new_database(server_url) as url:
        patch.setattr("app.resources.open_for_questions", lambda *_args, **_options: embedder)
        changes = {**changes, "database_url": SecretStr(url)}
        async with open_service(settings.model_copy(update=changes)) as opened:
            created = await opened.client.post("/api/collections", json={"name": "default"})
            assert created.status_code == 201
            yield opened


def check(reply: httpx.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    """The reply is this problem, tells what to do, and says nothing of our insides."""
    assert reply.status_code == status, reply.text
    assert reply.headers["Content-Type"] == "application/problem+json"
    told = reply.json()
    assert told["code"] == code
    assert told["status"] == status
    assert told["request_id"] == reply.headers["X-Request-ID"]
    assert {"type", "title", "detail"} <= told.keys()
    assert len(told["hint"]) > 10
    for word in words:
        assert word in f"{told['detail']} {told['hint']}", told
    assert "Traceback" not in reply.text
    assert len(reply.content) < 4000
    return told


async def documents_count(service: Service) -> int:
    return len((await service.client.get("/api/documents?limit=200")).json()["documents"])


async def check_alive(service: Service) -> None:
    reply = await service.client.post("/api/search", json={"query": "anything"})
    assert reply.status_code == 200, reply.text


def body(**changes: Any) -> dict[str, Any]:
    return {"query": "who approves travel", **changes}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# --- search ---------------------------------------------------------------------------------------

INVALID_SEARCHES: dict[str, tuple[dict[str, Any], str]] = {
    "limit 0": (body(limit=0), "limit"),
    "limit -1": (body(limit=-1), "limit"),
    "limit 10**9": (body(limit=10**9), "limit"),
    "limit 10**30": (body(limit=10**30), "limit"),
    "limit as text": (body(limit="10"), "limit"),
    "limit as fraction": (body(limit=1.5), "limit"),
    "limit as truth": (body(limit=True), "limit"),
    "limit null": (body(limit=None), "limit"),
    "100,000 characters": (body(query="why " * 25_000), "query"),
    "one word of 100,000": (body(query="w" * 100_000), "query"),
    "empty query": (body(query=""), "query"),
    "blank query": (body(query=" \n\t "), "query"),
    "NUL in query": (body(query="travel\0policy"), "query"),
    "no query": ({}, "query"),
    "query of another kind": (body(query={"text": "x"}), "query"),
    "unknown field": (body(qurey="x"), "qurey"),
    "unknown mode": (body(mode="semantic"), "mode"),
    "rerank as text": (body(rerank="yes"), "rerank"),
    "both ways to name collections": (body(collection="a", collections=["b"]), "not both"),
    "no collection": (body(collections=[]), "collections"),
    "too many collections": (body(collections=[f"c{n}" for n in range(51)]), "collections"),
    "NUL in collection": (body(collection="a\0b"), "collection"),
    "endless collection": (body(collection="c" * 10_000), "collection"),
    "filters of another kind": (body(filters=["year"]), "filters"),
    "unknown filter": (body(filters={"year": {"$near": 2020}}), "$near"),
    "empty filter": (body(filters={"year": {}}), "year"),
    "filter by object": (body(filters={"year": {"$in": [{"a": 1}]}}), "year"),
    "filter without choices": (body(filters={"year": {"$in": []}}), "year"),
    "NUL in filter": (body(filters={"year": "20\x0020"}), "NUL"),
    "NUL in filter's name": (body(filters={"ye\0ar": 2020}), "NUL"),
    "too many filters": (body(filters={f"f{n}": n for n in range(51)}), "filters"),
    "an array": ([1, 2], "object"),  # pyright: ignore[reportAssignmentType]
    "a number": (42, "object"),  # pyright: ignore[reportAssignmentType]
}


@pytest.mark.parametrize("case", INVALID_SEARCHES)
async def test_a_search_that_makes_no_sense(service: Service, case: str) -> None:
    sent, named = INVALID_SEARCHES[case]
    reply = await service.client.post(
        "/api/search", content=json.dumps(sent).encode(), headers=JSON
    )
    check(reply, 422, "invalid_input", named)
    await check_alive(service)


async def test_an_unknown_collection(service: Service) -> None:
    for names in ({"collection": "nowhere"}, {"collections": ["default", "nowhere"]}):
        reply = await service.client.post("/api/search", json=body(**names))
        check(reply, 404, "not_found", "collection")


@pytest.mark.parametrize(
    "query",
    ["\u200b\u200c\u200d", "🤷" * 500, "' OR 1=1; DROP TABLE chunks; --", "%s %(x)s {} :name"],
    ids=["zero width", "emoji", "SQL", "placeholders"],
)
async def test_odd_but_honest_queries_are_answered(service: Service, query: str) -> None:
    for mode in ("hybrid", "vector", "keyword"):
        reply = await service.client.post("/api/search", json=body(query=query, mode=mode))
        assert reply.status_code == 200, reply.text
        assert reply.json()["hits"] == []


# --- anything at all ------------------------------------------------------------------------------

TEXTS = st.text(max_size=20) | st.sampled_from(["$in", "$gte", "$uri", "default", "\0", "\ud800"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, -(10**30), 2**63])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS: dict[str, dict[str, Any]] = {
    "/api/search": {"query": "x", "limit": 3, "mode": "keyword", "filters": {}, "explain": True},
    "/api/chat": {"question": "x", "filters": {}, "model": "auto", "collection": "default"},
    "/api/feedback": {"message_id": str(uuid4()), "rating": 1, "comment": "x"},
}


@hypothesis.given(path=st.sampled_from(sorted(FIELDS)), data=st.data())
@hypothesis.settings(max_examples=100, deadline=None)
async def test_no_json_breaks_anything(service: Service, path: str, data: st.DataObject) -> None:
    sent = dict(FIELDS[path])
    for name in data.draw(st.sets(st.sampled_from([*sent, "more"]), min_size=1, max_size=2)):
        sent[name] = data.draw(ANYTHING)
    reply = await service.client.post(path, content=json.dumps(sent).encode(), headers=JSON)
    assert reply.status_code < 500, (sent, reply.text)
    if reply.status_code >= 400:
        check(reply, reply.status_code, reply.json()["code"])


# --- what is no JSON, or not what was announced ---------------------------------------------------

MALFORMED: dict[str, bytes] = {
    "cut off": b'{"query": "x"',
    "no JSON": b"query=x",
    "single quotes": b"{'query': 'x'}",
    "NaN": b'{"query": "x", "filters": {"year": NaN}}',
    "Infinity": b'{"query": "x", "filters": {"year": -Infinity}}',
    "lone surrogate": b'{"query": "\\ud800"}',
    "lone low surrogate": b'{"query": "a\\udc00b"}',
    "no UTF-8": b'{"query": "\xff\xfe"}',
    "UTF-16": '{"query": "x"}'.encode("utf-16"),
    "too deep": b'{"query": "x", "filters": {"a": ' + nested(5_000).encode() + b"}}",
    "endless number": b'{"query": "x", "limit": ' + b"9" * 5_000 + b"}",
    "two values": b'{"query": "x"} {"query": "y"}',
}


@pytest.mark.parametrize("path", ["/api/search", "/api/chat", "/api/collections", "/api/feedback"])
@pytest.mark.parametrize("case", MALFORMED)
async def test_a_body_that_is_no_json(service: Service, case: str, path: str) -> None:
    reply = await service.client.post(path, content=MALFORMED[case], headers=JSON)
    check(reply, 400, "malformed_request", "JSON")


async def test_a_number_beyond_all_numbers(service: Service) -> None:
    content = b'{"query": "x", "filters": {"year": {"$gt": 1e999}}}'
    reply = await service.client.post("/api/search", content=content, headers=JSON)
    check(reply, 422, "invalid_input", "finite")


async def test_no_body_at_all(service: Service) -> None:
    check(await service.client.post("/api/search", headers=JSON), 422, "invalid_input", "body")


@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"],
)
async def test_a_body_of_another_kind(service: Service, media_type: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    reply = await service.client.post("/api/search", content=b'{"query":"x"}', headers=headers)
    check(reply, 415, "unsupported_media_type", "application/json")


async def test_json_by_any_of_its_names(service: Service) -> None:
    for media_type in ("application/json; charset=utf-8", "Application/JSON"):
        reply = await service.client.post(
            "/api/search", content=b'{"query":"x"}', headers={"Content-Type": media_type}
        )
        assert reply.status_code == 200, reply.text


# --- bodies that are too large --------------------------------------------------------------------


async def test_a_body_over_the_limit(service: Service) -> None:
    content = json.dumps(body(query="x" * MAX_BODY_BYTES)).encode()
    reply = await service.client.post("/api/search", content=content, headers=JSON)
    check(reply, 413, "body_too_large", f"{MAX_BODY_BYTES:,}")
    await check_alive(service)


async def test_a_body_over_the_limit_that_hides_its_length(service: Service) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"query": "'
        for _ in range(100):
            yield b"x" * 10_000

    reply = await service.client.post("/api/search", content=pieces(), headers=JSON)
    check(reply, 413, "body_too_large")


async def test_a_file_over_the_limit(service: Service) -> None:
    files = {"file": ("large.txt", b"x" * (MAX_UPLOAD_BYTES + 1))}
    check(await service.client.post("/api/documents", files=files), 413, "body_too_large", "bytes")
    files = {"file": ("huge.txt", b"x" * (3 * MAX_UPLOAD_BYTES))}
    check(await service.client.post("/api/documents", files=files), 413, "body_too_large", "bytes")

    files = {"file": ("fits.txt", b"x" * MAX_UPLOAD_BYTES)}
    assert (await service.client.post("/api/documents", files=files)).status_code == 202


@pytest.mark.parametrize("length", ["-5", "ten", "1e3", "9" * 30])
async def test_a_length_that_is_none(service: Service, length: str) -> None:
    request = service.client.build_request("POST", "/api/search", json=body())
    request.headers["Content-Length"] = length
    reply = await service.client.send(request)
    assert reply.status_code in (400, 413)
    check(reply, reply.status_code, reply.json()["code"])


# --- chat -----------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Who?"}
INVALID_CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing asked": ({}, "question or messages"),
    "asked twice": ({"question": "x", "messages": [USER]}, "question or messages"),
    "blank": ({"question": "  "}, "question"),
    "no messages": ({"messages": []}, "messages"),
    "last one not the user's": (
        {"messages": [USER, {"role": "assistant", "content": "Me."}]},
        "the user's",
    ),
    "unknown role": ({"messages": [{"role": "system", "content": "Obey."}]}, "role"),
    "message with more in it": ({"messages": [{**USER, "name": "x"}]}, "name"),
    "message of another kind": ({"messages": ["Who?"]}, "messages"),
    "two histories": (
        {"messages": [USER], "conversation_id": str(uuid4())},
        "its own history",
    ),
    "conversation that is no id": ({"question": "x", "conversation_id": "7"}, "conversation_id"),
    "unknown field": ({"question": "x", "temperature": 2}, "temperature"),
    "unknown tier": ({"question": "x", "tier": "whenever"}, "tier"),
    "unknown model": ({"question": "x", "model": "gpt-99"}, "gpt-99"),
    "stream as text": ({"question": "x", "stream": "yes"}, "stream"),
    "100,000 characters": ({"question": "w" * 100_000}, "characters"),
    "100,000 characters in messages": (
        {"messages": [{"role": "user", "content": "w" * 100_000}]},
        "characters",
    ),
    "NUL": ({"question": "a\0b"}, "NUL"),
    "unknown filter": ({"question": "x", "filters": {"a": {"$no": 1}}}, "$no"),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("case", INVALID_CHATS)
async def test_a_question_that_makes_no_sense(service: Service, case: str, streamed: bool) -> None:
    sent, named = INVALID_CHATS[case]
    reply = await service.client.post("/api/chat", json={"stream": streamed, **sent})
    check(reply, 422, "invalid_input", named)


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
async def test_a_question_to_what_is_not_there(service: Service, streamed: bool) -> None:
    asked = {"question": "x", "stream": streamed}
    reply = await service.client.post("/api/chat", json={**asked, "collection": "nowhere"})
    check(reply, 404, "not_found", "collection")
    reply = await service.client.post("/api/chat", json={**asked, "conversation_id": str(uuid4())})
    check(reply, 404, "not_found", "conversation")


@pytest.mark.parametrize(
    "changes",
    [{"rating": 0}, {"rating": 2}, {"rating": "good"}, {"comment": "c" * 4001}, {"stars": 5}],
    ids=str,
)
async def test_feedback_that_makes_no_sense(service: Service, changes: dict[str, Any]) -> None:
    sent = {"message_id": str(uuid4()), "rating": 1, **changes}
    reply = await service.client.post("/api/feedback", json=sent)
    check(reply, 422, "invalid_input", next(iter(changes)))


async def test_feedback_on_nothing(service: Service) -> None:
    sent = {"message_id": str(uuid4()), "rating": 1}
    check(await service.client.post("/api/feedback", json=sent), 404, "not_found")


# --- collections and documents --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", " ", "Handbook", "my books", "a/b", "../etc", "a\0b", "n" * 1000, "-a", "ä", None, 7],
    ids=repr,
)
async def test_a_collection_that_cannot_be_called_so(service: Service, name: Any) -> None:
    reply = await service.client.post("/api/collections", json={"name": name})
    check(reply, 422, "invalid_input", "name")


async def test_a_collection_that_is_there_already(service: Service) -> None:
    reply = await service.client.post("/api/collections", json={"name": "default"})
    check(reply, 409, "conflict", "default")


async def test_deleting_a_collection_that_is_not_there(service: Service) -> None:
    for name in ("nowhere", "n" * 5000, "%2e%2e", "a%00b"):
        reply = await service.client.delete(f"/api/collections/{name}")
        assert reply.status_code in (404, 422)
        check(reply, reply.status_code, reply.json()["code"])


FILE = ("a.txt", b"A text.")
INVALID_UPLOADS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "empty file": ({"files": {"file": ("a.txt", b"")}}, 422, "invalid_input", "empty"),
    "no file": ({"data": {"collection": "default"}, "files": {"x": FILE}}, 422, "invalid_input", "file"),
    "file as a field": ({"files": {"file": (None, b"text")}}, 422, "invalid_input", "file"),
    "file without a name": ({"files": {"file": ("..", b"x")}}, 422, "invalid_input", "name"),
    "two files": ({"files": [("file", FILE), ("file", FILE)]}, 400, "malformed_request", "files"),
    "unknown field": ({"data": {"colection": "a"}, "files": {"file": FILE}}, 422, "invalid_input", "colection"),
    "unknown collection": ({"data": {"collection": "nowhere"}, "files": {"file": FILE}}, 404, "not_found", "collection"),
    "metadata no JSON": ({"data": {"metadata": "{year: 1}"}, "files": {"file": FILE}}, 400, "malformed_request", "JSON"),
    "metadata no object": ({"data": {"metadata": "[1]"}, "files": {"file": FILE}}, 422, "invalid_input", "metadata"),
    "metadata NaN": ({"data": {"metadata": '{"a": NaN}'}, "files": {"file": FILE}}, 400, "malformed_request", "JSON"),
    "metadata 1e999": ({"data": {"metadata": '{"a": 1e999}'}, "files": {"file": FILE}}, 422, "invalid_input", "metadata"),
    "metadata with NUL": ({"data": {"metadata": '{"a": "\\u0000"}'}, "files": {"file": FILE}}, 422, "invalid_input", "NUL"),
    "metadata with surrogate": ({"data": {"metadata": '{"a": "\\ud800"}'}, "files": {"file": FILE}}, 400, "malformed_request", "JSON"),
    "metadata too deep": ({"data": {"metadata": '{"a": ' + nested(100) + "}"}, "files": {"file": FILE}}, 422, "invalid_input", "deep"),
    "metadata too long": ({"data": {"metadata": json.dumps({"a": "x" * 70_000})}, "files": {"file": FILE}}, 422, "invalid_input", "metadata"),
    "a field too long": ({"data": {"metadata": "x" * 150_000}, "files": {"file": FILE}}, 400, "malformed_request", "size"),
    "endless group": ({"data": {"groups": ["g" * 101]}, "files": {"file": FILE}}, 422, "invalid_input", "groups"),
    "too many groups": ({"data": {"groups": [f"g{n}" for n in range(101)]}, "files": {"file": FILE}}, 422, "invalid_input", "groups"),
    "too many fields": ({"data": {"groups": [f"g{n}" for n in range(300)]}, "files": {"file": FILE}}, 400, "malformed_request", "fields"),
    "JSON": ({"json": {"file": "x"}}, 415, "unsupported_media_type", "multipart/form-data"),
    "no boundary": ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed_request", "boundary"),
    "broken multipart": ({"content": b"--x\r\nContent", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400, "malformed_request", "multipart"),
    "idempotency key too long": ({"files": {"file": FILE}, "headers": {"Idempotency-Key": "k" * 256}}, 422, "invalid_input", "Idempotency-Key"),
    "idempotency key empty": ({"files": {"file": FILE}, "headers": {"Idempotency-Key": ""}}, 422, "invalid_input", "Idempotency-Key"),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID_UPLOADS)
async def test_an_upload_that_makes_no_sense(service: Service, case: str) -> None:
    sent, status, code, named = INVALID_UPLOADS[case]
    before = await documents_count(service)
    check(await service.client.post("/api/documents", **sent), status, code, named)
    assert await documents_count(service) == before
    await check_alive(service)


async def test_an_idempotency_key_belongs_to_one_request(service: Service) -> None:
    before = await documents_count(service)
    headers = {"Idempotency-Key": "one"}
    file = {"file": ("idempotent.txt", b"A text.")}
    first, again = [
        await service.client.post("/api/documents", files=file, headers=headers) for _ in range(2)
    ]
    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    other = await service.client.post(
        "/api/documents", files={"file": ("b.txt", b"Another text.")}, headers=headers
    )
    check(other, 422, "idempotency_mismatch", "Idempotency-Key")
    assert await documents_count(service) == before + 1


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Users\\me\\plan.txt", "plan.txt"),
        ("C:plan.txt", "plan.txt"),
        ("a\u202etxt.exe", "atxt.exe"),
        ("n" * 500 + ".txt", "n" * 196 + ".txt"),
    ],
    ids=["upwards", "absolute", "windows", "drive", "disguised", "endless"],
)
async def test_the_name_of_a_file_leads_nowhere(service: Service, sent: str, kept: str) -> None:
    reply = await service.client.post("/api/documents", files={"file": (sent, b"A text.")})
    assert reply.status_code == 202, reply.text
    document = await service.client.get(f"/api/documents/{reply.json()['document_id']}")
    assert document.json()["title"] == kept


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=1000000000", "limit=nan", "limit=1.5", "limit=",
     "status=lost", "cursor=garbage", "cursor=%00", "cursor=" + "c" * 1000, "page=2",
     "collection=a%00b", "limit=1&limit=2x"],
)  # fmt: skip
async def test_a_listing_that_makes_no_sense(service: Service, query: str) -> None:
    reply = await service.client.get(f"/api/documents?{query}")
    check(reply, 422, "invalid_input", query.partition("=")[0])


async def test_a_listing_of_what_is_not_there(service: Service) -> None:
    reply = await service.client.get("/api/documents?collection=nowhere")
    check(reply, 404, "not_found", "collection")


@pytest.mark.parametrize(
    "path",
    ["/api/documents/7", "/api/documents/None/content", "/api/jobs/0", "/api/jobs/-1",
     "/api/jobs/nine", "/api/jobs/9223372036854775808", "/api/jobs/nine/events",
     "/api/conversations/%27%20OR%201=1"],
)  # fmt: skip
async def test_an_id_that_is_none(service: Service, path: str) -> None:
    check(await service.client.get(path), 422, "invalid_input", "_id")


async def test_ids_of_nothing(service: Service) -> None:
    for path in (
        f"/api/documents/{uuid4()}",
        f"/api/documents/{uuid4()}/content",
        "/api/jobs/9223372036854775807",
        "/api/jobs/9223372036854775807/events",
        f"/api/conversations/{uuid4()}",
    ):
        check(await service.client.get(path), 404, "not_found")
    check(await service.client.delete(f"/api/documents/{uuid4()}"), 404, "not_found")


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/api/search/", "/api//chat", "/static/../main.py", "/static/%2e%2e",
     "/static/..%2fpages.py", "/static/none.js", "/static/a%00b", "/docs", "/redoc"],
)  # fmt: skip
async def test_an_address_of_nothing(service: Service, path: str) -> None:
    check(await service.client.get(path), 404, "not_found")


async def test_a_method_that_is_not_taken(service: Service) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        reply = await service.client.request(method, "/api/search")
        check(reply, 405, "method_not_allowed", "Allow")
        assert reply.headers["Allow"] == "POST"


# --- the database, away ---------------------------------------------------------------------------


async def test_the_database_is_away_at_start_and_comes_back(
    service_settings: Settings, shared_embedder: None
) -> None:
    async with SocketProxy(unix_socket_of(service_settings), mode="refuses") as proxy:
        settings = through(proxy, service_settings)
        async with open_service(settings) as service:
            assert (await service.client.get("/health/live")).status_code == 200
            ready = await service.client.get("/health/ready")
            assert (ready.status_code, ready.json()["ready"]) == (503, False)
            health = await service.client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "down")
            await check_all_refused(service)

            proxy.mode = "passes"
            await until_ready(service)
            assert (await service.client.get("/api/collections")).status_code == 200
            health = (await service.client.get("/health")).json()
            assert health["checks"]["database"]["status"] == "ok"


async def test_the_database_goes_away_and_comes_back(
    service_settings: Settings, shared_embedder: None
) -> None:
    async with (
        SocketProxy(unix_socket_of(service_settings)) as proxy,
        open_service(through(proxy, service_settings)) as service,
    ):
        await service.client.post("/api/collections", json={"name": "default"})
        await check_alive(service)

        proxy.mode = "refuses"
        proxy.cut()
        await check_all_refused(service)
        assert (await service.client.get("/health/live")).status_code == 200
        assert (await service.client.get("/health/ready")).status_code == 503

        proxy.mode = "passes"
        await until_ready(service)
        await check_alive(service)


async def test_a_database_that_hangs_keeps_nobody_for_ever(
    service_settings: Settings, shared_embedder: None
) -> None:
    async with (
        SocketProxy(unix_socket_of(service_settings)) as proxy,
        open_service(through(proxy, service_settings)) as service,
    ):
        await service.client.post("/api/collections", json={"name": "default"})
        proxy.mode = "hangs"
        refused, live, ready = await asyncio.gather(
            service.client.get("/api/collections"),
            service.client.get("/health/live"),
            service.client.get("/health/ready"),
        )
        check(refused, 503, "unavailable", "in time")
        assert (live.status_code, ready.status_code) == (200, 503)

        proxy.mode = "passes"
        proxy.cut()
        await until_ready(service)
        await check_alive(service)


async def test_a_database_without_the_schema_is_refused_in_words(
    service_settings: Settings, shared_embedder: None
) -> None:
    async with open_service(service_settings) as service:
        async with service.resources.engine.begin() as connection:
            await connection.execute(text("DROP TABLE chunks CASCADE"))
        reply = await service.client.post("/api/collections", json={"name": "default"})
        assert reply.status_code == 201
        files = {"file": FILE}
        assert (await service.client.post("/api/documents", files=files)).status_code == 202
        reply = await service.client.delete("/api/collections/default")
        check(reply, 503, "database_unavailable", "footnote migrate")


def through(proxy: SocketProxy, settings: Settings) -> Settings:
    assert settings.database_url is not None
    url = httpx.URL(settings.database_url.get_secret_value())
    proxied = f"postgresql://{url.username}@127.0.0.1:{proxy.port}{url.path}"
    changes = {
        "database_url": SecretStr(proxied),
        "request_timeout_seconds": 1.0,
        "database_timeout_seconds": 1.0,
    }
    return settings.model_copy(update=changes)


async def check_all_refused(service: Service) -> None:
    file = {"file": FILE}
    for reply in (
        await service.client.post("/api/search", json=body()),
        await service.client.post("/api/chat", json={"question": "Who?"}),
        await service.client.post("/api/chat", json={"question": "Who?", "stream": True}),
        await service.client.get("/api/collections"),
        await service.client.post("/api/documents", files=file),
        await service.client.get(f"/api/documents/{uuid4()}"),
    ):
        assert reply.status_code == 503, reply.text
        check(reply, 503, reply.json()["code"])
        assert int(reply.headers["Retry-After"]) >= 1


async def until_ready(service: Service) -> None:
    for _ in range(100):
        if (await service.client.get("/health/ready")).status_code == 200:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the service did not become ready")
