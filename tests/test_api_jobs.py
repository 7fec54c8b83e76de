"""Jobs and ingestion over HTTP: listed, followed, cancelled, tried again."""

import asyncio
import json
from typing import Any

from sqlalchemy import text

from tests.service import Service, over_sockets


async def upload(service: Service, name: str, content: bytes = b"A text.", **fields: Any) -> Any:
    reply = await service.client.post(
        "/api/documents", files={"file": (name, content)}, data=fields
    )
    assert reply.status_code == 202, reply.text
    return reply.json()


async def run_sql(service: Service, statement: str, **values: Any) -> None:
    async with service.resources.engine.begin() as connection:
        await connection.execute(text(statement), values)


async def test_a_job_tells_its_place_and_how_far_it_is(service: Service) -> None:
    await upload(service, "first.txt")
    accepted = await upload(service, "second.txt")
    path = f"/api/jobs/{accepted['job_id']}"
    job = (await service.client.get(path)).json()
    assert job == {
        "id": accepted["job_id"],
        "status": "queued",
        "document_id": accepted["document_id"],
        "collection": "default",
        "title": "second.txt",
        "attempts": 0,
        "reason": None,
        "progress": None,
        "position": 1,
    }
    progress = {"stage": "embedding", "done": 120, "total": 400}
    await run_sql(
        service,
        "UPDATE documents SET status = 'processing', progress = cast(:progress AS jsonb)",
        progress=json.dumps(progress),
    )
    job = (await service.client.get(path)).json()
    assert (job["status"], job["progress"], job["position"]) == ("processing", progress, None)


async def test_what_is_sent_in_bulk_waits_behind_what_is_not(service: Service) -> None:
    bulk = [await upload(service, f"{number}.txt", priority="bulk") for number in range(3)]
    await upload(service, "urgent.txt")
    for number, accepted in enumerate(bulk, 1):
        job = (await service.client.get(f"/api/jobs/{accepted['job_id']}")).json()
        assert job["position"] == number
    refused = await service.client.post(
        "/api/documents", files={"file": ("a.txt", b"A")}, data={"priority": "background"}
    )
    assert refused.status_code == 422
    assert "priority" in refused.json()["detail"]


async def test_jobs_are_listed_in_pages(service: Service) -> None:
    sent = [(await upload(service, f"{number}.txt"))["job_id"] for number in range(5)]
    found: list[int] = []
    query = "/api/jobs?limit=2&status=queued&collection=default"
    cursor = ""
    while True:
        page = (await service.client.get(query + cursor)).json()
        found += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == sent[::-1]
    assert (await service.client.get("/api/jobs?collection=nothing")).status_code == 404
    for wrong in ("limit=0", "limit=1000000", "cursor=x", "cursor=0", "status=lost", "order=up"):
        assert (await service.client.get(f"/api/jobs?{wrong}")).status_code == 422, wrong


async def test_a_job_is_cancelled_and_tried_again(service: Service) -> None:
    accepted = await upload(service, "a.txt")
    path = f"/api/jobs/{accepted['job_id']}"
    too_early = await service.client.post(f"{path}/retry")
    assert too_early.status_code == 409
    assert too_early.json()["hint"]

    cancelled = await service.client.post(f"{path}/cancel")
    assert cancelled.status_code == 200
    assert (cancelled.json()["status"], cancelled.json()["reason"]) == ("failed", "cancelled")
    again = await service.client.post(f"{path}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    document = (await service.client.get(f"/api/documents/{accepted['document_id']}")).json()
    assert (document["status"], document["reason"]) == ("failed", "cancelled")

    retried = await service.client.post(f"/api/documents/{accepted['document_id']}/retry")
    assert retried.status_code == 202
    assert retried.json()["document_id"] == accepted["document_id"]
    assert retried.json()["job_id"] > accepted["job_id"]
    assert retried.json()["status"] == "queued"
    superseded = await service.client.post(f"{path}/retry")
    assert superseded.status_code == 409
    told = (await service.client.get(path)).json()
    assert told["reason"] == f"job {retried.json()['job_id']} has taken its place"


async def test_all_that_failed_is_tried_again_with_one_request(service: Service) -> None:
    for number in range(3):
        await upload(service, f"{number}.txt")
    await run_sql(service, "UPDATE documents SET status = 'failed', reason = 'no text'")
    for wrong in ({"status": "ready"}, {"collection": 7}, {"all": True}):
        reply = await service.client.post("/api/jobs/retry", json=wrong)
        assert reply.status_code == 422, wrong
    missing = await service.client.post("/api/jobs/retry", json={"collection": "nothing"})
    assert missing.status_code == 404
    body = {"collection": "default", "status": "failed"}
    reply = await service.client.post("/api/jobs/retry", json=body)
    assert reply.json() == {"queued": 3, "skipped": 0}
    assert (await service.client.post("/api/jobs/retry", json=body)).json()["queued"] == 0


async def test_ingestion_at_a_glance(service: Service) -> None:
    for number in range(3):
        await upload(service, f"{number}.txt")
    await run_sql(
        service,
        "UPDATE documents SET status = 'failed', reason = 'it is encrypted' WHERE title = '0.txt'",
    )
    await run_sql(service, "INSERT INTO procrastinate_workers DEFAULT VALUES")
    found = (await service.client.get("/api/ingestion")).json()
    assert (found["queued"], found["processing"], found["failed"]) == (2, 0, 1)
    assert (found["rate_per_minute"], found["eta_seconds"]) == (0, None)
    assert found["collections"] == [{"name": "default", "queued": 2, "processing": 0, "failed": 1}]
    assert found["failures"][0]["reason"] == "it is encrypted"
    assert found["workers"][0]["alive"] is True
    assert found["workers"][0]["heartbeat_age_seconds"] < 10


async def test_a_reader_may_look_and_not_touch(service: Service) -> None:
    accepted = await upload(service, "a.txt")
    reader = await service.key("read", groups=None)
    for path in ("/api/jobs", f"/api/jobs/{accepted['job_id']}", "/api/ingestion"):
        assert (await service.client.get(path, headers=reader)).status_code == 200, path
    for path in (
        f"/api/jobs/{accepted['job_id']}/cancel",
        f"/api/jobs/{accepted['job_id']}/retry",
        f"/api/documents/{accepted['document_id']}/retry",
        "/api/jobs/retry",
    ):
        reply = await service.client.post(path, headers=reader, json={})
        assert reply.status_code == 403, path


async def test_fifty_uploads_at_once_with_one_key_are_one(service: Service) -> None:
    one = {"Idempotency-Key": "order-66"}

    async with over_sockets(service) as client:

        async def send(content: bytes, headers: dict[str, str]) -> tuple[int, Any]:
            reply = await client.post(
                "/api/documents", files={"file": ("a.txt", content)}, headers=headers
            )
            return reply.status_code, reply.json()

        replies = await asyncio.gather(*(send(b"The same text.", one) for _ in range(50)))
        first = replies[0][1]
        assert replies == [(202, first)] * 50
        status, problem = await send(b"Another text.", one)
        assert (status, problem["code"]) == (422, "idempotency_mismatch")

        await run_sql(service, "INSERT INTO tenants (id, name) VALUES (2, 'other')")
        _, token = await service.resources.keyring.create(
            "theirs", scopes=["read", "write"], tenant_id=2
        )
        status, theirs = await send(b"Another text.", {**one, "X-API-Key": token})
        assert status == 202
        assert theirs["document_id"] != first["document_id"]

    documents = (await service.client.get("/api/documents")).json()["documents"]
    assert [document["id"] for document in documents] == [first["document_id"]]
    jobs = (await service.client.get("/api/jobs")).json()["jobs"]
    assert [job["id"] for job in jobs] == [first["job_id"]]
