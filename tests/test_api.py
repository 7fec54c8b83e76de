"""What every reply has, and the routes of documents, health and numbers."""

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from sqlalchemy import text
from structlog.testing import capture_logs

from app.api import health
from app.config import Settings
from app.errors import FootnoteError
from app.telemetry import request_id
from tests.doubles.ollama import running_ollama
from tests.doubles.socket_proxy import SocketProxy
from tests.service import HOME_URL, Service, open_service, over_sockets

# --- every reply ----------------------------------------------------------------------------------


async def test_a_request_keeps_its_id_from_end_to_end(service: Service) -> None:
    own = "order-66.a:b_c"
    reply = await service.client.get("/api/nothing", headers={"X-Request-ID": own})
    assert reply.headers["X-Request-ID"] == own == reply.json()["request_id"]
    assert request_id.get() is None


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "a\tb", "<script>", "ä", "%0d%0aX: y"])
async def test_an_id_that_could_do_harm_is_replaced(service: Service, given: str) -> None:
    reply = await service.client.get(
        "/health/live",
        headers={"X-Request-ID": given.encode("utf-8")},  # pyright: ignore[reportArgumentType]
    )
    assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["X-Request-ID"])


async def test_every_reply_tells_browsers_to_be_careful(service: Service) -> None:
    for path in ("/", "/api/collections", "/api/nothing", "/health", "/static/page.css"):
        headers = (await service.client.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert headers["X-Frame-Options"] == "DENY", path
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'"), path
        assert "unsafe" not in policy, path
        assert headers.get_list("X-Request-ID"), path
        assert "server" not in headers, path
    page = (await service.client.get("/")).headers["Content-Security-Policy"]
    assert "script-src 'self'" in page
    assert "frame-ancestors 'none'" in page


async def test_what_nobody_expected_is_a_500_that_tells_nothing(service: Service) -> None:
    class Broken:
        async def search(self, *_: object) -> None:
            raise RuntimeError("the password is swordfish")

    broken: Any = Broken()
    service.app.state.resources = replace(service.resources, searcher=broken)
    with capture_logs() as logged:
        reply = await service.client.post(
            "/api/search", json={"query": "x"}, headers={"X-Request-ID": "broken-1"}
        )

    assert reply.status_code == 500
    assert reply.headers["Content-Type"] == "application/problem+json"
    told = reply.json()
    assert told["code"] == "internal_error"
    assert told["detail"] == FootnoteError.title
    assert told["request_id"] == "broken-1"
    assert "swordfish" not in reply.text
    failure = next(entry for entry in logged if entry["log_level"] == "error")
    assert str(failure["exc_info"]) == "the password is swordfish"
    assert (await service.client.get("/health/live")).status_code == 200


async def test_requests_are_counted_by_route_and_never_by_id(service: Service) -> None:
    for number in range(3):
        await service.client.get(f"/api/jobs/{90_000 + number}")
        await service.client.get(f"/strange/{90_000 + number}")
    numbers = (await service.client.get("/metrics")).text

    name = "footnote_http_requests_total"
    counted = {
        labels: float(value)
        for labels, value in re.findall(rf"^{name}\{{(.*)\}} (.*)$", numbers, re.MULTILINE)
    }
    assert counted['method="GET",route="/api/jobs/{job_id}",status="404"'] >= 3
    assert counted['method="GET",route="unmatched",status="404"'] >= 3
    assert not re.search(r'route="[^"]*9000\d', numbers)
    assert 'footnote_http_request_seconds_count{method="GET",route="/api/jobs/{job_id}"}' in numbers


# --- overload and patience ------------------------------------------------------------------------


class Gate:
    """A searcher that answers nobody until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting_count = 0

    async def search(self, *_: object) -> Any:
        self.waiting_count += 1
        await self.opened.wait()
        raise FootnoteError


async def test_when_too_many_wait_the_next_is_refused_at_once(
    service_settings: Settings, shared_embedder: None
) -> None:
    few = {"database_pool_size": 1, "database_pool_waiters": 2}
    async with open_service(service_settings.model_copy(update=few)) as service:
        gate: Any = Gate()
        service.app.state.resources = replace(service.resources, searcher=gate)
        waiting = [
            asyncio.create_task(service.client.post("/api/search", json={"query": "x"}))
            for _ in range(3)
        ]
        while gate.waiting_count < 3:
            await asyncio.sleep(0.001)

        async with asyncio.timeout(1):
            refused = await service.client.post("/api/search", json={"query": "x"})
            alive = await service.client.get("/health/live")
        assert refused.status_code == 503
        assert refused.json()["code"] == "overloaded"
        assert int(refused.headers["Retry-After"]) >= 1
        assert alive.status_code == 200

        gate.opened.set()
        assert [reply.status_code for reply in await asyncio.gather(*waiting)] == [500] * 3
        assert (await service.client.get("/api/collections")).status_code == 200


async def test_nobody_waits_for_ever(service_settings: Settings, shared_embedder: None) -> None:
    brief = service_settings.model_copy(update={"request_timeout_seconds": 0.2})
    async with open_service(brief) as service:
        gate: Any = Gate()
        service.app.state.resources = replace(service.resources, searcher=gate)
        reply = await service.client.post("/api/search", json={"query": "x"})
        assert reply.status_code == 503
        assert reply.json()["code"] == "unavailable"


async def test_a_body_that_never_ends_is_not_waited_for(
    service_settings: Settings, shared_embedder: None
) -> None:
    brief = service_settings.model_copy(update={"request_timeout_seconds": 0.3})
    async with open_service(brief) as service, over_sockets(service) as client:
        for path, code in (("/api/search", b"408"), ("/api/chat", b"408")):
            reader, writer = await asyncio.open_connection(
                client.base_url.host, client.base_url.port
            )
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            writer.write(f'{head}Content-Length: 100\r\n\r\n{{"query": '.encode())
            # To its end: the connection is closed, too.
            reply = await asyncio.wait_for(reader.read(), timeout=5)
            assert reply.startswith(b"HTTP/1.1 " + code), reply
            assert b"request_timeout" in reply
            writer.close()


async def test_a_body_over_the_limit_gets_its_answer_on_a_real_connection(
    service: Service,
) -> None:
    async with over_sockets(service) as client:
        reply = await client.post(
            "/api/search",
            content=b'{"query": "' + b"x" * 5_000_000 + b'"}',
            headers={"Content-Type": "application/json"},
        )
        assert reply.status_code == 413
        assert reply.json()["code"] == "body_too_large"
        assert (await client.get("/health/live")).status_code == 200


# --- documents ------------------------------------------------------------------------------------


async def upload(service: Service, name: str, content: bytes, **fields: Any) -> dict[str, Any]:
    reply = await service.client.post(
        "/api/documents", files={"file": (name, content)}, data=fields
    )
    assert reply.status_code == 202, reply.text
    accepted: dict[str, Any] = reply.json()
    assert reply.headers["Location"] == f"/api/documents/{accepted['document_id']}"
    return accepted


async def test_a_document_is_kept_as_it_came(service: Service) -> None:
    content = bytes(range(256)) * 100
    accepted = await upload(
        service,
        "plan.bin",
        content,
        metadata='{"year": 2025, "tags": ["a", "b"]}',
        groups=["x", "y"],
    )
    assert accepted["status"] == "queued"

    document = (await service.client.get(f"/api/documents/{accepted['document_id']}")).json()
    assert document["title"] == "plan.bin"
    assert document["collection"] == "default"
    assert document["metadata"] == {"year": 2025, "tags": ["a", "b"]}
    assert document["groups"] == ["x", "y"]
    assert document["size_bytes"] == len(content)
    assert (document["status"], document["chunks"], document["version"]) == ("queued", 0, None)

    original = await service.client.get(f"/api/documents/{accepted['document_id']}/content")
    assert original.content == content


async def test_a_page_that_was_uploaded_never_runs_as_ours(service: Service) -> None:
    accepted = await upload(service, 'a"b\r\n.html', b"<script>alert(1)</script>")
    original = await service.client.get(f"/api/documents/{accepted['document_id']}/content")
    assert original.headers["Content-Disposition"].startswith("attachment;")
    assert 'filename="a_22b_0D_0A.html"; filename*=UTF-8' in original.headers["Content-Disposition"]
    assert "\n" not in original.headers["Content-Disposition"]
    assert "sandbox" in original.headers["Content-Security-Policy"]
    assert original.headers["X-Content-Type-Options"] == "nosniff"


async def test_documents_come_in_pages(service: Service) -> None:
    names = [f"{number}.txt" for number in range(5)]
    for name in names:
        await upload(service, name, name.encode())
    found: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await service.client.get("/api/documents", params=query)).json()
        found += [document["title"] for document in page["documents"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert found == names[::-1]
    queued = await service.client.get("/api/documents?status=queued&collection=default")
    assert len(queued.json()["documents"]) == 5
    assert (await service.client.get("/api/documents?status=ready")).json()["documents"] == []


async def test_deleting_says_what_is_gone(service: Service) -> None:
    accepted = await upload(service, "a.txt", b"Seven b")
    path = f"/api/documents/{accepted['document_id']}"
    gone = await service.client.delete(path)
    receipt = gone.json()
    assert datetime.fromisoformat(receipt.pop("deleted_at")).tzinfo is not None
    assert receipt == {
        "documents": 1,
        "chunks": 0,
        "vectors": 0,
        "token_vectors": 0,
        "postings": 0,
        "originals": 1,
        "bytes": 7,
    }
    assert (await service.client.get(path)).status_code == 404
    assert (await service.client.delete(path)).status_code == 404

    await upload(service, "b.txt", b"Eight by")
    gone = await service.client.delete("/api/collections/default")
    assert gone.json()["documents"] == 1
    assert (await service.client.get("/api/collections")).json() == {"collections": []}


async def test_a_job_can_be_followed(service: Service) -> None:
    accepted = await upload(service, "a.txt", b"A text.")
    job = f"/api/jobs/{accepted['job_id']}"
    state = (await service.client.get(job)).json()
    assert state["status"] == "queued"
    assert state["document_id"] == accepted["document_id"]

    async with (
        over_sockets(service) as client,
        client.stream("GET", f"{job}/events") as reply,
    ):
        lines = reply.aiter_lines()
        assert await anext(lines) == "event: progress"
        assert json.loads((await anext(lines)).removeprefix("data: "))["status"] == "queued"
        async with service.resources.engine.begin() as connection:
            await connection.execute(
                text("UPDATE documents SET status = 'failed', reason = 'It is encrypted.'")
            )
        rest = [line async for line in lines]
    assert rest[1] == "event: done"
    assert json.loads(rest[2].removeprefix("data: "))["reason"] == "It is encrypted."


# --- health ---------------------------------------------------------------------------------------


async def checks(service: Service) -> tuple[str, dict[str, Any]]:
    reply = (await service.client.get("/health")).json()
    return reply["status"], reply["checks"]


async def test_health_tells_of_every_part(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FRESH_SECONDS", 0.0)
    service.app.state.health = health.Health(service.resources)
    status, parts = await checks(service)
    assert status == "degraded"
    assert "footnote worker" in parts["queue"]["reason"]
    assert parts["database"]["status"] == "ok"
    assert (parts["redis"]["status"], parts["redis"]["kind"]) == ("off", "in-process")
    assert parts["ollama"]["status"] == "off"
    assert parts["embedding"]["model"] == "all-MiniLM-L6-v2"
    assert parts["embedding"]["runtime"] in ("onnx", "torch")

    async with service.resources.engine.begin() as connection:
        await connection.execute(text("INSERT INTO procrastinate_workers DEFAULT VALUES"))
    await upload(service, "a.txt", b"A text.")
    status, parts = await checks(service)
    assert status == "ok"
    assert (parts["queue"]["workers"], parts["queue"]["queued"]) == (1, 1)
    numbers = (await service.client.get("/metrics")).text
    assert 'footnote_degraded{part="queue"} 0.0' in numbers

    async with service.resources.engine.begin() as connection:
        await connection.execute(
            text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'")
        )
    assert (await checks(service))[1]["queue"]["workers"] == 0


async def test_a_redis_that_is_away_degrades_and_does_not_disturb(
    service_settings: Settings, shared_embedder: None
) -> None:
    async with SocketProxy(mode="hangs") as hanging:
        url = SecretStr(f"redis://127.0.0.1:{hanging.port}/0")
        settings = service_settings.model_copy(update={"redis_url": url})
        async with open_service(settings) as service:
            status, parts = await checks(service)
            assert status == "degraded"
            assert (parts["redis"]["status"], parts["redis"]["kind"]) == ("degraded", "external")
            assert (await service.client.get("/health/ready")).status_code == 200
            for _ in range(5):
                assert (await service.client.get("/api/collections")).status_code == 200


async def test_model_servers_are_counted(service_settings: Settings, shared_embedder: None) -> None:
    with running_ollama() as ollama:
        both = (ollama.url, "http://127.0.0.1:9")
        settings = service_settings.model_copy(update={"ollama_urls": both})
        async with open_service(settings) as service:
            part = (await checks(service))[1]["ollama"]
            assert (part["status"], part["servers"], part["usable"]) == ("degraded", 2, 1)
            assert "127.0.0.1:9" in part["reason"]


async def test_many_who_ask_for_health_cost_one_look(service: Service) -> None:
    replies = await asyncio.gather(*(service.client.get("/health") for _ in range(200)))
    assert {reply.status_code for reply in replies} == {200}
    assert service.resources.monitor.pool.checkedout() == 0  # pyright: ignore[reportAttributeAccessIssue]
    assert len({reply.json()["checks"]["database"]["latency_ms"] for reply in replies}) == 1


# --- the description ------------------------------------------------------------------------------


async def test_the_description_is_whole(service: Service) -> None:
    described = (await service.client.get("/openapi.json")).json()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["tags"], (method, path)
            if path.startswith("/api/"):
                problem = operation["responses"]["4XX"]["content"]
                assert "application/problem+json" in problem, (method, path)
    search = described["components"]["schemas"]["SearchBody"]
    assert search["additionalProperties"] is False
    Draft202012Validator.check_schema(search)
    chat = described["paths"]["/api/chat"]["post"]["responses"]["200"]["content"]
    assert {"application/json", "text/event-stream"} <= chat.keys()
    upload_form = described["paths"]["/api/documents"]["post"]["requestBody"]["content"]
    assert list(upload_form) == ["multipart/form-data"]


# --- what the process carries ---------------------------------------------------------------------


def test_the_service_runs_without_torch(service_settings: Settings, embedder: Any) -> None:
    """With the model exported, the API process never loads what takes hundreds of megabytes."""
    assert embedder.runtime == "onnx"
    assert service_settings.database_url is not None
    program = f"""
import asyncio, sys
from pathlib import Path
from app.config import Settings
from tests.service import open_service

async def main():
    settings = Settings(home=Path(sys.argv[1]), database_url=sys.argv[2])
    async with open_service(settings) as service:
        await service.client.post("/api/collections", json={{"name": "default"}})
        reply = await service.client.post("/api/search", json={{"query": "travel"}})
        assert reply.status_code == 200, reply.text
        assert (await service.client.get("{HOME_URL}/")).status_code == 200

asyncio.run(main())
heavy = {{"torch", "sentence_transformers", "transformers", "kreuzberg"}} & set(sys.modules)
assert not heavy, heavy
"""
    url = service_settings.database_url.get_secret_value()
    done = subprocess.run(
        [sys.executable, "-c", program, str(service_settings.home), url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
