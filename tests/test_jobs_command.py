"""`footnote jobs …` and `footnote status`, beside a service."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE

import pytest
from sqlalchemy import text

from app.api.health import Health
from app.api.schemas import EmbeddingCheck
from tests.commands import against, printed
from tests.conftest import ROOT
from tests.service import Service

pytestmark = pytest.mark.usefixtures("own_logging", "own_home")


async def upload(service: Service, name: str) -> int:
    reply = await service.client.post("/api/documents", files={"file": (name, b"A text.")})
    assert reply.status_code == 202, reply.text
    job_id: int = reply.json()["job_id"]
    return job_id


async def run_sql(service: Service, statement: str) -> None:
    async with service.resources.engine.begin() as connection:
        await connection.execute(text(statement))


async def test_jobs_are_listed_shown_cancelled_and_retried(service: Service, address: str) -> None:
    assert "no such jobs" in (await against(address, "jobs", "list")).stdout
    first, second = await upload(service, "first.txt"), await upload(service, "second.txt")
    await run_sql(
        service,
        "UPDATE documents SET status = 'processing', progress ="
        """ '{"stage": "embedding", "done": 1200, "total": 4000}' WHERE title = 'first.txt'""",
    )
    listed = printed(await against(address, "jobs", "list", "--json"))["jobs"]
    assert [one["id"] for one in listed] == [second, first]
    shown = (await against(address, "jobs", "list", "--status", "processing")).stdout
    assert "embedding 1,200/4,000" in shown
    assert "second.txt" not in shown
    assert printed(await against(address, "jobs", "show", str(second), "--json"))["position"] == 1

    cancelled = await against(address, "jobs", "cancel", str(second))
    assert cancelled.exit_code == 0
    assert "cancelled" in cancelled.stdout
    again = await against(address, "jobs", "cancel", str(second))
    assert again.exit_code == 2
    assert "What to do:" in again.stderr

    retried = printed(await against(address, "jobs", "retry", str(second), "--json"))
    assert retried["job_id"] > second
    await run_sql(service, "UPDATE documents SET status = 'failed'")
    both = await against(address, "jobs", "retry", "--collection", "default")
    assert both.stdout == "Queued again: 2 documents.\n"
    await run_sql(service, "UPDATE documents SET status = 'failed', uri = 'file:///' || title")
    assert "--retry-failed PATH" in (await against(address, "jobs", "retry", "--all")).stdout
    for unclear in ([], ["7", "--all"]):
        assert (await against(address, "jobs", "retry", *unclear)).exit_code == 2


async def test_a_job_is_watched_to_its_end(service: Service, address: str) -> None:
    job_id = await upload(service, "a.txt")
    await run_sql(service, "UPDATE documents SET status = 'ready'")
    watched = await against(address, "jobs", "watch", str(job_id))
    assert (watched.exit_code, watched.stdout) == (0, "ready\n")
    await run_sql(service, "UPDATE documents SET status = 'failed', reason = 'it is encrypted'")
    failed = await against(address, "jobs", "watch", str(job_id), "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["reason"] == "it is encrypted"
    assert (await against(address, "jobs", "watch", "999999")).exit_code == 2


async def test_status_draws_the_queue_and_the_service(service: Service, address: str) -> None:
    idle = await against(address, "status")
    assert idle.exit_code == 0, idle.stderr
    assert "nothing waits" in idle.stdout
    assert "`footnote worker` starts one" in idle.stdout

    for name in ("a.txt", "b.txt", "c.txt"):
        await upload(service, name)
    await run_sql(
        service,
        "UPDATE documents SET status = 'failed', reason = 'it is encrypted' WHERE title = 'a.txt'",
    )
    await run_sql(
        service,
        # Of each process two.
        "INSERT INTO procrastinate_workers (last_heartbeat) SELECT now() - silence"
        " FROM unnest(ARRAY[interval '0', '0', '1 minute', '1 minute']) AS silence",
    )
    drawn = (await against(address, "status")).stdout
    assert "2 queued, 0 processing, 1 failed" in drawn
    assert "nobody can say" in drawn
    assert "it is encrypted" in drawn
    assert "heard" in drawn
    assert "silent for 60 s" in drawn
    async with asyncio.timeout(20):
        # The service remembers its health for a moment.
        while (state := printed(await against(address, "status", "--json")))["health"][
            "status"
        ] != "ok":
            await asyncio.sleep(0.1)
    assert (state["ingestion"]["queued"], state["health"]["version"]) == (2, service.app.version)


async def test_status_of_a_service_that_is_down_says_what_is_missing(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = EmbeddingCheck(
        status="down", reason="the model is gone", model="m", runtime="onnx", dimensions=4
    )
    monkeypatch.setattr(Health, "_embedding", lambda _: down)
    drawn = await against(address, "status")
    assert drawn.exit_code == 0, drawn.stderr
    assert "embedding: the model is gone" in drawn.stdout


async def test_status_is_drawn_until_it_is_enough(address: str) -> None:
    command = (sys.executable, "-m", "app.cli", "status", "--watch", "--json", "--url", address)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        for _ in range(2):
            assert json.loads(await process.stdout.readline())["ingestion"]["queued"] == 0
        process.send_signal(signal.SIGINT)
        _, complaint = await process.communicate()
    assert (process.returncode, complaint) == (130, b"")
