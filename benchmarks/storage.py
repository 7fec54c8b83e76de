"""How many bytes does a passage take in PostgreSQL, and how fast is everything but embedding?

No hypothesis: docs/scaling.md calculates with these numbers.

The folder is ingested as `footnote ingest` does it, parsed, cut, written, its postings merged and its
vectors indexed; only the vectors are drawn at random, so that the rate is that of everything else.
Sizes are those of the tables with their indexes and their TOAST, after VACUUM, per passage.

The work is also told in seconds of processor, of this process, its parser and PostgreSQL together:
other work on the machine moves these less than the time on the clock.

Caveats: originals are counted as they are, and Markdown is small; a PDF of the same text is larger.
A random vector takes as many bytes as a real one. The index is built by two processes.

    python benchmarks/storage.py FOLDER [--record]
"""

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.db.schema import migrate
from app.db.session import open_engine
from app.embedding.base import Embedder, TextKind, Vectors
from app.embedding.loading import open_embedder, usable_cores
from ingestion.pipeline import open_tools
from ingestion.runner import Order, sync

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "storage.json"

SIZES = """
    SELECT 'passages', pg_total_relation_size('chunks') UNION ALL
    SELECT 'postings', pg_total_relation_size('postings') UNION ALL
    SELECT 'documents and texts',
      pg_total_relation_size('documents') + pg_total_relation_size('document_versions') UNION ALL
    SELECT 'originals', pg_total_relation_size('blobs') UNION ALL
    SELECT 'vector index', coalesce(sum(pg_relation_size(indexrelid)), 0) FROM pg_index
    WHERE indexrelid::regclass::text LIKE 'embeddings%hnsw' UNION ALL
    SELECT 'vectors', sum(pg_total_relation_size(inhrelid)) - (
      SELECT coalesce(sum(pg_relation_size(indexrelid)), 0) FROM pg_index
      WHERE indexrelid::regclass::text LIKE 'embeddings%hnsw')
    FROM pg_inherits WHERE inhparent = 'embeddings_m1'::regclass
"""


class Drawn:
    """The model's tokenizer and name, and vectors out of nothing."""

    def __init__(self, real: Embedder) -> None:
        self.name, self.digest, self.runtime = real.name, real.digest, real.runtime
        self.dimensions, self.max_tokens = real.dimensions, real.max_tokens
        self.tokenizer = real.tokenizer
        self._generator = np.random.default_rng(0)

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        vectors = self._generator.standard_normal((len(texts), self.dimensions), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Stopwatch:
    """Stands when the last document is done; what the indexes take comes after."""

    ended = 0.0

    def begin(self, items_count: int, bytes_count: int) -> None: ...

    def advance(self, item: Any) -> None:
        self.ended = time.perf_counter()


def processor_seconds(home: Path) -> float:
    """Of this process, of children that have ended, and of the server with all its processes."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    pid = int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    server = psutil.Process(pid)
    times = [one.cpu_times() for one in (server, *server.children())]
    return sum(one.ru_utime + one.ru_stime for one in own) + sum(map(sum, (t[:4] for t in times)))


async def measure(engine: AsyncEngine, settings: Settings, folder: Path) -> dict[str, Any]:
    load_average = round(os.getloadavg()[0], 2)
    watch = Stopwatch()
    embedder = Drawn(open_embedder(settings))
    used_before = processor_seconds(settings.home)
    async with open_tools(settings, engine, embedder) as tools:
        started = time.perf_counter()
        report = await sync(Order([folder], "default"), tools, watch)
        indexed = time.perf_counter()
    used = processor_seconds(settings.home) - used_before
    async with engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM FULL postings"))
        await connection.execute(text("VACUUM ANALYZE"))
        counted = (await connection.execute(text("SELECT count(*) FROM chunks"))).scalar_one()
        sizes = (await connection.execute(text(SIZES))).all()
    documents = report.counts["added"]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "documents": f"{folder.name}: {documents} files",
        "passages": counted,
        "bytes_per_passage": {name: round(int(size) / counted) for name, size in sizes},
        "without_embedding": {
            "documents_per_second": round(documents / (watch.ended - started), 1),
            "passages_per_second": round(counted / (watch.ended - started), 1),
        },
        "processor_seconds_per_1000_passages": round(1000 * used / counted, 2),
        "tidied_passages_per_second": round(counted / (indexed - watch.ended), 1),
    }


async def run(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home, EmbeddedPostgres(Path(home)) as url:
        migrate(url)
        settings = Settings(home=Path(home), log_level="warning")
        engine = open_engine(settings, url)
        try:
            return await measure(engine, settings, folder)
        finally:
            await engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    result = asyncio.run(run(arguments.folder))
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
