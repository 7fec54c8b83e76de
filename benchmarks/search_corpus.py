"""A service over a made corpus, and the two parts that a search cannot be faster than."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import httpx
import psycopg

from app.config import Settings
from app.db import arrays
from app.db.embedded import EmbeddedPostgres
from app.db.session import libpq_url
from app.db.vector_partitions import partition_name
from app.embedding.base import Embedder
from app.embedding.loading import open_embedder, open_for_questions
from app.search.ranking import CANDIDATES
from app.search.vector import SETTINGS
from benchmarks.corpus import Corpus, read_sources
from benchmarks.corpus_loading import load_into_home

COLLECTION = "corpus"
READY_SECONDS = 120.0
LAYERS = ("EMBEDDINGS", "CHUNKS", "ANSWERS")


async def ensure_corpus(home: Path, folders: Sequence[Path], passages: int) -> dict[str, Any]:
    """What loading the corpus took, now or when it was loaded into this home, and its bytes."""
    note = home / "corpus.json"
    if note.exists():
        loaded: dict[str, Any] = json.loads(note.read_text("utf-8"))
        if loaded["passages"] != passages:
            raise SystemExit(f"{home} holds {loaded['passages']} passages; name another --home.")
        return loaded
    settings = Settings(home=home)
    embedder = open_embedder(settings)
    sources = read_sources(folders, embedder, home / "fragments")
    loaded = await load_into_home(settings, embedder, Corpus(sources, passages), COLLECTION)
    note.write_text(json.dumps(loaded, indent=2), "utf-8")
    return loaded


@asynccontextmanager
async def running_service(
    home: Path, *, cached: bool = False, **settings: str
) -> AsyncGenerator[str]:
    """`footnote serve` in this home on a port of its own, without worker, rate limit and caches."""
    async with running_services(home, 1, cached=cached, **settings) as [service]:
        yield service.url


@dataclass(frozen=True, slots=True)
class Service:
    url: str
    process: "subprocess.Popen[bytes]"


@asynccontextmanager
async def running_services(
    home: Path, count: int, *, cached: bool = False, **settings: str
) -> AsyncGenerator[list[Service]]:
    """So many; more than one need `FOOTNOTE_DATABASE_URL` among the settings."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FOOTNOTE_")},
        "FOOTNOTE_HOME": str(home),
        "FOOTNOTE_RATE_LIMIT": "100000000/minute",
        "FOOTNOTE_LOG_LEVEL": "warning",
        **{f"FOOTNOTE_CACHE_{layer}": str(cached).lower() for layer in LAYERS},
        **settings,
    }
    services: list[Service] = []
    try:
        for _ in range(count):
            services.append(_start(home, environment))
        for service in services:
            await _until_ready(service.url, service.process)
        yield services
    finally:
        for service in services:
            service.process.terminate()
        for service in services:
            service.process.wait(60)


def _start(home: Path, environment: Mapping[str, str]) -> Service:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--no-worker", "--port", str(port)]
    with (home / "service.log").open("ab") as log:
        process = subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log)
    return Service(f"http://127.0.0.1:{port}", process)


async def _until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if (await client.get(f"{url}/health/ready")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
    raise SystemExit("The service did not become ready; see service.log in its home.")


class RawParts:
    """The embedding of a query, and the vector leg as bare SQL: nothing of Footnote around them.

    Both by turns for the same questions, in this process, with the service at rest.
    """

    def __init__(self, home: Path) -> None:
        self._server = EmbeddedPostgres(home)
        # As in the service: in integers, and one thread, because several only help longer texts.
        self._embedder: Embedder = open_for_questions(Settings(home=home), threads=1)

    def __enter__(self) -> Self:
        arrays.register()
        self._connection = psycopg.connect(libpq_url(self._server.start()), autocommit=True)
        for statement in SETTINGS.replace("SET LOCAL", "SET").split(";"):
            self._connection.execute(statement.strip().encode())
        row = self._connection.execute(
            "SELECT embedding_model_id, id FROM collections WHERE name = %s", [COLLECTION]
        ).fetchone()
        assert row is not None
        self._statement = (
            f"SELECT chunk_id FROM {partition_name(row[0])}"  # noqa: S608 - numbers
            f" ORDER BY (vector::halfvec({self._embedder.dimensions}))"
            f" <#> %s::halfvec({self._embedder.dimensions}) LIMIT {CANDIDATES}"
        ).encode()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._server.stop()

    def measure(self, questions: Sequence[str]) -> dict[str, float]:
        """Medians over the questions."""
        embedding_ms: list[float] = []
        statement_ms: list[float] = []
        for question in questions:
            started = time.perf_counter()
            [vector] = self._embedder.embed([question], "query")
            embedded = time.perf_counter()
            rows = self._connection.execute(
                self._statement, [arrays.HalfVector(vector)], binary=True
            ).fetchall()
            statement_ms.append((time.perf_counter() - embedded) * 1000)
            embedding_ms.append((embedded - started) * 1000)
            assert len(rows) == CANDIDATES
        return {
            "query_embedding_ms": round(median(embedding_ms), 2),
            "vector_sql_ms": round(median(statement_ms), 2),
        }
