"""What the benchmarks of several processes share: a database, documents, and a clock on both.

Documents whose passages are known to the tenant are parsed, cut and written, and not embedded again.
So every file is ingested once beforehand, into another collection, and what is measured is bound by
parsing. The clock runs while the documents between START and END of all become ready, so neither
the start of processes nor the last documents, when some have nothing to do any more, count. Processor
time is counted between the same two instants.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import psutil
import psycopg

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.session import libpq_url, open_engine, open_sessions
from app.documents.library import Library
from app.documents.records import Upload
from app.embedding.base import Embedder
from app.jobs import Jobs

START, END = 0.2, 0.95
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 900.0
COUNT = """
    SELECT count(*) FROM documents AS d JOIN collections AS c ON c.id = d.collection_id
    WHERE c.name = %s AND d.status = 'ready'
"""


@dataclass(frozen=True)
class Track:
    """A database, and documents in `folder` that are known to it."""

    home: Path
    url: str
    folder: Path
    count: int

    @property
    def postgres(self) -> psutil.Process:
        pid = (self.home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0]
        return psutil.Process(int(pid))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "FOOTNOTE_HOME": str(self.home),
            "FOOTNOTE_DATABASE_URL": self.url,
            "FOOTNOTE_LOG_LEVEL": "warning",
            "HF_HUB_OFFLINE": "1",
        }


@dataclass(frozen=True)
class Lap:
    """How fast documents became ready, and the processor time of each in milliseconds."""

    documents_per_second: float
    processes_ms: float
    """Of the processes that worked, with those that they started."""
    postgres_ms: float


def prepare(home: Path, url: str, source: Path, target: Path, count: int) -> Track:
    """Embed every file of `source` once; copies of those that can be read make `count` documents."""
    track = Track(home, url, target, count)
    command = [sys.executable, "-m", "ingestion", str(source), "--collection", "known", "--json"]
    finished = subprocess.run(command, env=track.environment, capture_output=True, check=False)
    if finished.returncode == 2:
        raise SystemExit(finished.stderr.decode())
    failed = {failure["path"] for failure in json.loads(finished.stdout)["failures"]}
    readable = sorted(
        path for path in source.rglob("*") if path.is_file() and str(path) not in failed
    )
    target.mkdir()
    with psycopg.connect(libpq_url(url)) as connection:
        known = {
            uri for (uri,) in connection.execute("SELECT uri FROM documents WHERE status = 'ready'")
        }
    taken = [path for path in readable if path.as_uri() in known]
    for number, path in enumerate(islice(cycle(taken), count)):
        shutil.copyfile(path, target / f"{number:05}{path.suffix}")
    return track


async def upload(track: Track, collection: str, embedder: Embedder) -> None:
    """Queue every document, while no worker is there."""
    settings = Settings(home=track.home)
    engine, jobs = open_engine(settings, track.url), Jobs(track.url)
    await jobs.open()
    library = Library(open_sessions(engine), jobs, settings, embedder)
    await library.create_collection(LOCAL_OWNER, collection)
    for path in sorted(track.folder.iterdir()):
        await library.register_upload(
            LOCAL_OWNER, Upload(path.name, path.read_bytes(), collection=collection)
        )
    await jobs.close()
    await engine.dispose()


def run_lap(track: Track, collection: str, running: Sequence[subprocess.Popen]) -> Lap:
    """From START to END of the documents; raises SystemExit when a process fails."""
    first, last = int(track.count * START), int(track.count * END)
    begun: tuple[int, float, float, float] | None = None
    deadline = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(libpq_url(track.url), autocommit=True) as connection:
        while time.monotonic() < deadline:
            [(done,)] = connection.execute(COUNT, [collection])
            now = time.perf_counter()
            if begun is None and done >= first:
                begun = done, now, *_processor_seconds(track, running)
            if begun is not None and done >= last:
                at_hand = done - begun[0]
                ours, servers = _processor_seconds(track, running)
                return Lap(
                    documents_per_second=at_hand / (now - begun[1]),
                    processes_ms=1000 * (ours - begun[2]) / at_hand,
                    postgres_ms=1000 * (servers - begun[3]) / at_hand,
                )
            for process in running:
                if process.poll() not in (None, 0):
                    raise SystemExit(f"{process.args} ended with {process.returncode}")
            time.sleep(POLL_SECONDS)
    raise SystemExit(f"{collection}: {done} of {track.count} documents in {PATIENCE_SECONDS} s")


def _processor_seconds(track: Track, running: Sequence[subprocess.Popen]) -> tuple[float, float]:
    """Spent so far by the processes, and by PostgreSQL."""
    ours = sum(_seconds_of(psutil.Process(process.pid)) for process in running)
    return ours, _seconds_of(track.postgres)


def _seconds_of(root: psutil.Process) -> float:
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        # A child that ended is counted by whoever waited for it.
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def start_worker(track: Track, core: int) -> subprocess.Popen:
    """A worker that has one core, which its parser shares with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "worker"],
        env=track.environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509 - this process has no threads that hold locks
    )


def end(running: Sequence[subprocess.Popen]) -> None:
    for process in running:
        process.terminate()
    for process in running:
        process.wait(60)


def run_workers(track: Track, collection: str, cores: Sequence[int], embedder: Embedder) -> Lap:
    """A lap of a worker on each of the cores."""
    asyncio.run(upload(track, collection, embedder))
    running = [start_worker(track, core) for core in cores]
    try:
        return run_lap(track, collection, running)
    finally:
        end(running)
