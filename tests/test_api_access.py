"""Every route × every kind of key; and what a key may not see is not there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import SecretStr
from sqlalchemy import text

from app.access import ALL_SCOPES
from app.api.doors import DOORS, Door, routes_without_a_door
from app.config import Settings
from app.errors import StartupError
from tests.service import Service, open_service

DUMMIES = {
    "name": "nothing",
    "document_id": str(uuid4()),
    "conversation_id": str(uuid4()),
    "job_id": "123456",
    "model_id": str(uuid4()),
    "source_id": str(uuid4()),
}


def path_of(door: Door) -> str:
    return door.path.format(**DUMMIES)


@pytest.fixture
async def guarded(service_settings: Settings, shared_embedder: None) -> AsyncIterator[Service]:
    """A service that asks for keys, and so has one; built as a loopback one would never be."""
    settings = service_settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104
    async with open_service(service_settings) as unguarded:
        await unguarded.key("admin")
    async with open_service(settings) as opened:
        yield opened


async def status_without_body(
    service: Service, door: Door, headers: dict[str, str], *, host: str = "127.0.0.1"
) -> int:
    """The status of a reply that must not have needed a byte of the body."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    path = path_of(door)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": door.method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", 8008),
        "client": ("127.0.0.1", 50000),
        "headers": [(b"host", host.encode()), (b"content-length", b"100")]
        + [(name.lower().encode(), value.encode("utf-8")) for name, value in headers.items()],
    }
    await service.app(scope, receive, send)
    return statuses[0]


# --- the table ------------------------------------------------------------------------------------


async def test_every_route_has_its_line_and_every_line_its_route(service: Service) -> None:
    assert routes_without_a_door(service.app) == []
    served = {
        (method, route.path)
        for route in iter_route_contexts(service.app.routes)
        for method in route.methods or ()
    }
    assert {(door.method, door.path) for door in DOORS} <= served

    documented = {
        (method.upper(), path)
        for path, operations in service.app.openapi()["paths"].items()
        for method in operations
    }
    assert documented <= {(door.method, door.path) for door in DOORS}


def test_a_route_without_a_line_is_found() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/api/new", lambda: None, methods=["POST"])
    assert routes_without_a_door(app) == ["POST /api/new"]


# --- keys -----------------------------------------------------------------------------------------


async def wrong_keys(service: Service) -> dict[str, dict[str, str]]:
    revoked, expired = await service.key(*ALL_SCOPES), await service.key(*ALL_SCOPES)
    async with service.resources.engine.begin() as connection:
        for header, change in ((revoked, "revoked_at"), (expired, "expires_at")):
            await connection.execute(
                text(f"UPDATE api_keys SET {change} = now() WHERE prefix = :prefix"),  # noqa: S608
                {"prefix": header["Authorization"].removeprefix("Bearer ")[:11]},
            )
    return {
        "unknown": {"Authorization": "Bearer fn_" + "a" * 43},
        "malformed": {"Authorization": "Bearer fn_short"},
        "not utf-8": {"X-API-Key": "fn_\u20ac" + "a" * 40},
        "empty": {"Authorization": ""},
        "other scheme": {"Authorization": "Basic dXNlcjpwYXNz"},
        "SQL": {"X-API-Key": "' OR 1=1 --"},
        "revoked": revoked,
        "expired": expired,
    }


async def test_without_a_key_every_door_is_closed(guarded: Service) -> None:
    for door in DOORS:
        if door.asks not in ("nobody", "visitor"):
            assert await status_without_body(guarded, door, {}) == 401, door


async def test_a_wrong_key_opens_nothing(guarded: Service) -> None:
    for kind, header in (await wrong_keys(guarded)).items():
        for door in DOORS:
            if door.asks != "nobody":
                assert await status_without_body(guarded, door, header) == 401, (kind, door)


async def test_a_key_opens_what_its_scopes_say_and_nothing_else(guarded: Service) -> None:
    for door in DOORS:
        if door.asks in ("nobody", "any key"):
            continue
        needed = "read" if door.asks == "visitor" else door.asks
        others = await guarded.key(*(ALL_SCOPES - {needed}))
        assert await status_without_body(guarded, door, others) == 403, door
        header = await guarded.key(needed)
        reply = await guarded.client.request(door.method, path_of(door), headers=header)
        assert reply.status_code not in (401, 403), door


async def test_without_keys_the_local_owner_needs_none_but_a_wrong_one_is_refused(
    service: Service,
) -> None:
    assert (await service.client.get("/api/collections")).status_code == 200
    for kind, header in (await wrong_keys(service)).items():
        for door in DOORS:
            if door.asks != "nobody":
                assert await status_without_body(service, door, header) == 401, (kind, door)


async def test_the_refusal_says_what_to_do(guarded: Service) -> None:
    missing = await guarded.client.post("/api/search", json={"query": "x"})
    assert missing.status_code == 401
    assert missing.headers["WWW-Authenticate"].startswith("Bearer")
    assert missing.headers["Content-Type"] == "application/problem+json"
    assert "footnote keys create" in missing.json()["hint"]

    forbidden = await guarded.client.delete("/api/collections/x", headers=await guarded.key("read"))
    assert forbidden.status_code == 403
    assert "`admin`" in forbidden.json()["detail"]


async def test_a_revoked_key_is_refused_from_the_next_request_on(guarded: Service) -> None:
    record, token = await guarded.resources.keyring.create("robot", scopes=["read"])
    header = {"X-API-Key": token}
    assert (await guarded.client.get("/api/collections", headers=header)).status_code == 200
    await guarded.resources.keyring.revoke(record.id)
    assert (await guarded.client.get("/api/collections", headers=header)).status_code == 401


async def test_unknown_addresses_ask_for_a_key_too(guarded: Service) -> None:
    assert (await guarded.client.get("/api/nothing")).status_code == 401
    header = await guarded.key("read")
    assert (await guarded.client.get("/api/nothing", headers=header)).status_code == 404
    assert (await guarded.client.put("/api/search", headers=header)).status_code == 405


async def test_a_visitor_without_a_key_sees_the_empty_page(guarded: Service) -> None:
    header = await guarded.key("read", "write")
    created = await guarded.client.post(
        "/api/collections", json={"name": "secret-plans"}, headers=header
    )
    assert created.status_code == 201

    page = await guarded.client.get("/")
    assert page.status_code == 200
    assert "secret-plans" not in page.text
    assert "secret-plans" in (await guarded.client.get("/", headers=header)).text


async def test_guesses_are_limited_by_the_address_they_come_from(
    service_settings: Settings, shared_embedder: None
) -> None:
    changes = {"host": "0.0.0.0", "rate_limit": "3/minute"}  # noqa: S104
    async with open_service(service_settings) as unguarded:
        header = await unguarded.key("read")
    async with open_service(service_settings.model_copy(update=changes)) as limited:
        wrong = {"X-API-Key": "fn_" + "b" * 43}
        statuses = [
            (await limited.client.get("/api/collections", headers=wrong)).status_code
            for _ in range(5)
        ]
        assert statuses == [401, 401, 401, 429, 429]
        # Those guesses do not cost the owner of a key anything.
        assert (await limited.client.get("/api/collections", headers=header)).status_code == 200


async def test_a_websocket_is_never_opened(service: Service) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/api/search", "headers": [], "query_string": b""}
    await service.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# --- the start ------------------------------------------------------------------------------------


async def test_a_service_that_asks_for_keys_does_not_start_without_any(
    service_settings: Settings, shared_embedder: None
) -> None:
    for changes in ({"host": "192.0.2.1"}, {"auth": "on"}):
        settings = service_settings.model_copy(update=changes)
        with pytest.raises(StartupError) as refused:
            async with open_service(settings):
                pass
        assert "footnote keys create" in refused.value.hint


def test_an_open_door_to_the_network_is_no_setting() -> None:
    with pytest.raises(ValueError, match="FOOTNOTE_AUTH=off"):
        Settings(host="0.0.0.0", auth="off", database_url=SecretStr("x"))  # noqa: S104


# --- the local owner's browser --------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8008"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
async def test_foreign_names_are_refused_without_keys(
    service: Service, headers: dict[str, str]
) -> None:
    for method, path in (("GET", "/api/collections"), ("GET", "/"), ("GET", "/health")):
        reply = await service.client.request(method, path, headers=headers)
        assert reply.status_code == 403
        assert reply.json()["code"] == "forbidden"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:8008"},
        {"Host": "[::1]:8008"},
        {"Host": "127.0.0.1", "Origin": "http://127.0.0.1:8008"},
    ],
    ids=str,
)
async def test_the_machines_own_names_are_answered(
    service: Service, headers: dict[str, str]
) -> None:
    assert (await service.client.get("/api/collections", headers=headers)).status_code == 200


async def test_with_keys_the_service_may_have_any_name(guarded: Service) -> None:
    headers = {**await guarded.key("read"), "Host": "kb.example", "Origin": "https://kb.example"}
    assert (await guarded.client.get("/api/collections", headers=headers)).status_code == 200


async def test_a_forged_address_does_not_change_the_limit(
    service_settings: Settings, shared_embedder: None
) -> None:
    settings = service_settings.model_copy(update={"rate_limit": "2/minute"})
    async with open_service(settings) as limited:
        statuses: list[int] = []
        for number in range(4):
            forged = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": f"for=192.0.2.{number}"}
            reply = await limited.client.get("/api/collections", headers=forged)
            statuses.append(reply.status_code)
        assert statuses == [200, 200, 429, 429]
        refused = await limited.client.get("/api/collections")
        assert refused.json()["code"] == "rate_limited"
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        # Whoever watches the service is not turned away.
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert (await limited.client.get(path)).status_code == 200


# --- what is not there for others -----------------------------------------------------------------


@pytest.fixture
async def foreign(guarded: Service) -> dict[str, str]:
    """Paths of things that belong to somebody."""
    owner = await guarded.key("read", "write", "admin")
    client = guarded.client
    await client.post("/api/collections", json={"name": "mine"}, headers=owner)
    upload = await client.post(
        "/api/documents",
        files={"file": ("secret.txt", b"The canary sings at midnight.")},
        data={"collection": "mine", "groups": ["board"]},
        headers=owner,
    )
    assert upload.status_code == 403, "this key carries no group"
    board = await guarded.key("read", "write", groups=["board"])
    upload = await client.post(
        "/api/documents",
        files={"file": ("secret.txt", b"The canary sings at midnight.")},
        data={"collection": "mine", "groups": ["board"]},
        headers=board,
    )
    assert upload.status_code == 202, upload.text
    source = await client.post(
        "/api/sources",
        json={"location": "https://canary.example/", "collection": "mine"},
        headers=owner,
    )
    assert source.status_code == 202, source.text
    model = await client.post("/api/models/chat", json={"name": "canary"}, headers=owner)
    assert model.status_code == 201, model.text
    chat = await client.post(
        "/api/chat", json={"question": "Who sings?", "collection": "mine"}, headers=board
    )
    assert chat.status_code == 200, chat.text
    return {
        "document_id": upload.json()["document_id"],
        "job_id": str(upload.json()["job_id"]),
        "conversation_id": chat.json()["conversation_id"],
        "message_id": chat.json()["message_id"],
        "name": "mine",
        "source_id": source.json()["id"],
        "model_id": model.json()["id"],
    }


async def test_foreign_ids_answer_like_those_that_do_not_exist(
    guarded: Service, foreign: dict[str, str]
) -> None:
    async with guarded.resources.engine.begin() as connection:
        await connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
    _, token = await guarded.resources.keyring.create(
        "stranger", scopes=ALL_SCOPES, groups=None, tenant_id=2
    )
    strangers = [
        {"X-API-Key": token},
        await guarded.key(*ALL_SCOPES, collections=["elsewhere"], groups=None),
    ]
    doors = [door for door in DOORS if "{" in door.path and door.asks != "nobody"]
    assert len(doors) >= 8
    for stranger in strangers:
        for door in doors:
            theirs, nobodys = [
                await guarded.client.request(
                    door.method,
                    door.path.format(**ids),
                    json={"settings": {}} if door.method == "PATCH" else None,
                    headers=stranger,
                )
                for ids in (foreign, DUMMIES)
            ]
            assert theirs.status_code == nobodys.status_code == 404, door
            assert "canary" not in theirs.text
            if door.asks != "visitor":
                for reply in (theirs, nobodys):
                    assert reply.json()["code"] == "not_found"
                assert theirs.json()["detail"] == nobodys.json()["detail"], door
        feedback = {"message_id": foreign["message_id"], "rating": 1}
        given = await guarded.client.post("/api/feedback", json=feedback, headers=stranger)
        assert given.status_code == 404
        asked = {"question": "x", "conversation_id": foreign["conversation_id"]}
        continued = await guarded.client.post("/api/chat", json=asked, headers=stranger)
        assert continued.status_code == 404
        searched = await guarded.client.post(
            "/api/search", json={"query": "canary", "collection": "mine"}, headers=stranger
        )
        assert searched.status_code == 404


async def test_a_document_of_a_group_is_not_there_for_others_of_the_tenant(
    guarded: Service, foreign: dict[str, str]
) -> None:
    sales = await guarded.key(*ALL_SCOPES, groups=["sales"])
    for path in (
        f"/api/documents/{foreign['document_id']}",
        f"/api/documents/{foreign['document_id']}/content",
        f"/api/jobs/{foreign['job_id']}",
        f"/api/jobs/{foreign['job_id']}/events",
        f"/api/conversations/{foreign['conversation_id']}",
    ):
        reply = await guarded.client.get(path, headers=sales)
        assert reply.status_code == 404, path
    listed = await guarded.client.get("/api/documents", headers=sales)
    assert listed.json()["documents"] == []


async def test_concurrent_callers_do_not_get_each_others_identity(guarded: Service) -> None:
    names = [f"team-{number}" for number in range(8)]
    admin = await guarded.key("write")
    for name in names:
        await guarded.client.post("/api/collections", json={"name": name}, headers=admin)
    headers = [await guarded.key("read", collections=[name]) for name in names]

    async def seen(header: dict[str, str]) -> list[str]:
        reply = await guarded.client.get("/api/collections", headers=header)
        return [one["name"] for one in reply.json()["collections"]]

    found = await asyncio.gather(*(seen(header) for header in headers * 5))
    assert found == [[name] for name in names] * 5
