"""The service's processes, made to be killed: real ones, forked from a parent that has imported all.

A child is armed with failpoints (`app/failpoints.py`) and has short pauses and a quick model, so
that dying and being replaced takes a second. What time would do to it is done by `bury`.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import app.db.vector_partitions
import app.embedding.lazy
import app.jobs
import app.resources
import ingestion.pipeline
import ingestion.worker
from app import failpoints
from app.config import load_settings
from app.embedding.base import TextKind, Vectors
from app.main import create_app
from app.telemetry import configure_logging
from ingestion import cli
from tests.doubles.word_embedder import WordEmbedder

WAIT_SECONDS = 60.0
PRELOADED = ["tests.crashing", "app.db.schema", "ingestion.progress", "ingestion.runner"]


class AnyEmbedder(WordEmbedder):
    """Quick, for questions and passages alike; a vector depends on its text alone."""

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        return super().embed(texts, "document")


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Child:
    """A process of the service; `signal` it, and wait for its `end`."""

    def __init__(
        self,
        main: Callable[..., None],
        *arguments: Any,
        traps: str = "",
        index_from_rows: int = 1,
    ) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="footnote-child-", suffix=".log")  # noqa: SIM115 - closed with the child
        self.process: ForkServerProcess = _context().Process(
            target=_run,
            args=(main, arguments, traps, index_from_rows, self._log.name),
            daemon=True,
        )
        self.process.start()

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text("utf-8", "replace")

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    async def end(self) -> int:
        """The exit status, negative for a signal."""
        await asyncio.to_thread(self.process.join, WAIT_SECONDS)
        assert self.process.exitcode is not None, f"it does not end:\n{self.output}"
        return self.process.exitcode

    async def dies(self) -> None:
        """Wait until a failpoint has killed it."""
        status = await self.end()
        assert status == -signal.SIGKILL, f"it ended with {status}:\n{self.output}"

    async def stands_still(self) -> None:
        """Wait until a failpoint has stopped it."""
        process = psutil.Process(self.process.pid)
        await until(lambda: process.status() == psutil.STATUS_STOPPED)

    async def stop(self) -> None:
        self.signal(signal.SIGTERM)
        assert await self.end() == 0, self.output

    def remove(self) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._log.close()


@asynccontextmanager
async def child(main: Callable[..., None], *arguments: Any, **options: Any) -> AsyncIterator[Child]:
    started = Child(main, *arguments, **options)
    try:
        yield started
    finally:
        started.remove()


def _run(
    main: Callable[..., None], arguments: Sequence[Any], traps: str, index_from_rows: int, log: str
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    failpoints.arm(traps)
    # What a test would only wait for is made short.
    app.jobs.POLL_SECONDS = 0.05
    ingestion.worker.RESCUE_SECONDS = 0.1
    ingestion.worker.TIDY_SECONDS = 0.1
    ingestion.worker.RETRY_PAUSES_SECONDS = (0.0,)
    ingestion.worker.WRITERS_IDLE_SECONDS = 1.0
    ingestion.worker.RECONNECT_PAUSES_SECONDS = (0.05,)
    app.db.vector_partitions.INDEX_FROM_ROWS = index_from_rows
    ingestion.pipeline.open_embedder = lambda _: AnyEmbedder()
    app.embedding.lazy.LazyEmbedder = lambda _: AnyEmbedder()
    app.resources.open_for_questions = lambda *_, **__: AnyEmbedder()
    main(*arguments)


# --- what the children do -------------------------------------------------------------------------


def work(database_url: str, concurrency: int = 1) -> None:
    """`footnote worker`."""
    _command(database_url, "worker", "--concurrency", str(concurrency))


def ingest(database_url: str, *arguments: str) -> None:
    """`footnote ingest …`."""
    _command(database_url, "ingest", *arguments)


def _command(database_url: str, *arguments: str) -> None:
    os.environ["FOOTNOTE_DATABASE_URL"] = database_url
    os.environ["FOOTNOTE_LOG_FORMAT"] = "console"
    cli.app(list(arguments))


def serve(database_url: str, socket_path: str) -> None:
    """The API, on a unix socket."""
    os.environ["FOOTNOTE_DATABASE_URL"] = database_url
    settings = load_settings()
    configure_logging(settings)
    service = create_app(settings)
    config = uvicorn.Config(
        service, uds=socket_path, lifespan="off", log_config=None, access_log=False
    )

    async def run() -> None:
        async with service.router.lifespan_context(service):
            await uvicorn.Server(config).serve()

    asyncio.run(run())


@asynccontextmanager
async def api(database_url: str, traps: str = "") -> AsyncIterator[tuple[Child, httpx.AsyncClient]]:
    """The API as a process, and a client of it."""
    with tempfile.TemporaryDirectory() as folder:
        socket_path = str(Path(folder) / "api.sock")
        async with (
            child(serve, database_url, socket_path, traps=traps) as process,
            httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=socket_path),
                base_url="http://127.0.0.1",
                timeout=WAIT_SECONDS,
            ) as client,
        ):
            await until(lambda: _listens(socket_path) or not process.is_alive)
            assert process.is_alive, process.output
            yield process, client


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


# --- waiting, and what happens meanwhile ----------------------------------------------------------


async def until(
    condition: Callable[[], Awaitable[bool] | bool], *, seconds: float = WAIT_SECONDS
) -> None:
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.02)


async def bury(engine: AsyncEngine) -> None:
    """Let the time pass after which workers without a sign of life count as dead."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'")
        )


async def is_settled(engine: AsyncEngine) -> bool:
    """Whether no job is left, and no document waits for one."""
    async with engine.connect() as connection:
        left = await connection.scalar(
            text(
                """
                SELECT (SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))
                  + (SELECT count(*) FROM documents WHERE status IN ('queued', 'processing'))
                """
            )
        )
        return left == 0


async def documents(engine: AsyncEngine) -> dict[str, tuple[str, int | None]]:
    """Every document's status and number of versions so far, by the last part of its URI."""
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                """
                SELECT d.uri, d.status, v.number FROM documents AS d
                LEFT JOIN document_versions AS v ON v.id = d.current_version_id
                """
            )
        )
        return {row.uri.rsplit("/", 1)[-1]: (row.status, row.number) for row in rows}
