"""What `kills.py` kills, and who works against it: the service's processes, a driver, a watch."""

import asyncio
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

PATIENCE_SECONDS = 180.0
CALL_SECONDS = 20.0
LOOK_SECONDS = 0.25
QUEUE_MAX = 24
DELETED = 0.3
"""How often a file that is there is deleted, not edited."""
TEXTS = {".md", ".txt", ".html", ".rst"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Program:
    """A `footnote …` that is started again whenever it was killed."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", *self.arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


def kill_postgres(home: Path) -> int:
    """Kill the embedded server's first process; the others notice and end by themselves."""
    pid = int((home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
    os.kill(pid, signal.SIGKILL)
    return pid


@dataclass
class Acknowledged:
    """The last thing that the service said yes to, for one file name."""

    content: bytes | None = None
    document_id: str = ""


@dataclass
class Driver:
    """Uploads, edits and deletes files by HTTP, and keeps what was acknowledged.

    A call that gets no answer is made again until it does, an upload under the same
    Idempotency-Key: that is what a client does that must know.
    """

    client: httpx.AsyncClient
    database_url: str
    originals: dict[str, bytes]
    choice: random.Random
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    files: dict[str, Acknowledged] = field(default_factory=dict[str, Acknowledged])
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("uploads", "edits", "deletes", "unanswered"), 0)
    )
    partial: list[str] = field(default_factory=list[str])
    slowest_answer_seconds: float = 0.0

    async def run(self, workers: int = 4) -> None:
        names = sorted(self.originals)
        self.choice.shuffle(names)
        self.files = {name: Acknowledged() for name in names}
        # Each name belongs to one task, so that its calls follow each other.
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._take_turns(names[number::workers]))

    async def _take_turns(self, names: list[str]) -> None:
        choice = random.Random(self.choice.random())
        while not self.stopping.is_set():
            name = choice.choice(names)
            known = self.files[name]
            if known.content is not None and choice.random() < DELETED:
                await self._delete(name)
                continue
            await self._room()
            if known.content is None or Path(name).suffix not in TEXTS:
                await self._upload(name, self.originals[name], "uploads")
            else:
                words = f"\n\nEdited {choice.randrange(10**9)} of these.\n".encode()
                await self._upload(name, self.originals[name] + words, "edits")

    async def _room(self) -> None:
        """Wait while the queue is long: the workers are killed all the time."""
        while not self.stopping.is_set():
            await asyncio.sleep(0.1)
            try:
                if await asyncio.to_thread(queue_length, self.database_url) < QUEUE_MAX:
                    return
            except psycopg.Error:
                continue

    async def _upload(self, name: str, content: bytes, kind: str) -> None:
        key = hashlib.sha256(f"{name}{self.counts}".encode() + content).hexdigest()

        async def call() -> httpx.Response:
            return await self.client.post(
                "/api/documents", files={"file": (name, content)}, headers={"Idempotency-Key": key}
            )

        reply = await self._until_answered(call, name)
        assert reply.status_code == 202, reply.text
        self.files[name] = Acknowledged(content, reply.json()["document_id"])
        self.counts[kind] += 1

    async def _delete(self, name: str) -> None:
        address = f"/api/documents/{self.files[name].document_id}"
        reply = await self._until_answered(lambda: self.client.delete(address), name)
        # Not found: the call that got no answer had done it.
        assert reply.status_code in (200, 404), reply.text
        self.files[name] = Acknowledged()
        self.counts["deletes"] += 1

    async def _until_answered(self, call: Any, name: str) -> httpx.Response:
        started = time.monotonic()
        while True:
            try:
                reply: httpx.Response = await call()
                if reply.status_code < 500:
                    waited_seconds = time.monotonic() - started
                    self.slowest_answer_seconds = max(self.slowest_answer_seconds, waited_seconds)
                    return reply
            except httpx.TransportError:
                pass
            self.counts["unanswered"] += 1
            assert time.monotonic() - started < PATIENCE_SECONDS, f"no answer about {name}"
            try:
                self.partial += await asyncio.to_thread(incomplete, self.database_url)
            except psycopg.OperationalError:
                pass  # it is the database that is away
            await asyncio.sleep(0.2)


def query(url: str, statement: str) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row, connect_timeout=5) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


def queue_length(url: str) -> int:
    rows = query(url, "SELECT count(*) FROM documents WHERE status IN ('queued', 'processing')")
    return int(rows[0]["count"])


def incomplete(url: str) -> list[str]:
    """Documents that anybody can see but nobody could finish: without original or without job."""
    rows = query(
        url,
        """
        SELECT d.uri FROM documents AS d
        WHERE d.status IN ('queued', 'processing') AND (
          NOT EXISTS (SELECT FROM blobs AS b
            WHERE b.tenant_id = d.tenant_id AND b.sha256 = d.blob_sha256)
          OR NOT EXISTS (SELECT FROM procrastinate_jobs AS j WHERE j.id = d.job_id))
        """,
    )
    return [row["uri"] for row in rows]


@dataclass
class Orphan:
    """A job whose worker gives no sign of life, since that worker's last one."""

    owner: int
    since: float
    put_back_at: float | None = None


@dataclass
class Watch:
    """How long work stays with the dead, and how long the database is away."""

    url: str
    put_back_seconds: list[float] = field(default_factory=list[float])
    resumed_seconds: list[float] = field(default_factory=list[float])
    waited_again_seconds: list[float] = field(default_factory=list[float])
    away_seconds: list[float] = field(default_factory=list[float])
    _orphans: dict[int, Orphan] = field(default_factory=dict[int, Orphan])

    async def run(self) -> None:
        away_since: float | None = None
        while True:
            try:
                rows = await asyncio.to_thread(query, self.url, _JOBS)
            except psycopg.OperationalError:
                away_since = away_since or time.monotonic()
            else:
                if away_since is not None:
                    self.away_seconds.append(time.monotonic() - away_since)
                    away_since = None
                self._look({row["id"]: row for row in rows})
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, jobs: dict[int, dict[str, Any]]) -> None:
        now = time.monotonic()
        for job, orphan in list(self._orphans.items()):
            row = jobs.get(job)
            has_owner = row is not None and row["status"] == "doing"
            is_with_the_dead = has_owner and row and row["worker_id"] in (orphan.owner, None)
            if not is_with_the_dead and orphan.put_back_at is None:
                orphan.put_back_at = now
                self.put_back_seconds.append(now - orphan.since)
            if row is None or (has_owner and not is_with_the_dead):
                self.resumed_seconds.append(now - orphan.since)
                self.waited_again_seconds.append(now - (orphan.put_back_at or now))
                del self._orphans[job]
        for job, row in jobs.items():
            silent_seconds = float(row["silent_seconds"] or 0)
            if row["status"] == "doing" and silent_seconds > SILENT_SECONDS:
                self._orphans.setdefault(job, Orphan(row["worker_id"], now - silent_seconds))


SILENT_SECONDS = 6.0
"""Two signs of life of a living worker."""
_JOBS = """
    SELECT j.id, j.status::text, j.worker_id,
      extract(epoch FROM now() - w.last_heartbeat) AS silent_seconds
    FROM procrastinate_jobs AS j LEFT JOIN procrastinate_workers AS w ON w.id = j.worker_id
    WHERE j.status IN ('todo', 'doing')
"""
