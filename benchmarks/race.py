"""What the benchmarks of several processes share: a database, documents, and a clock on both.

Every file is ingested once beforehand, into another collection: documents whose passages are known to
the tenant are parsed, cut and written, and not embedded again. A passage is known by its text with its
title above it, and the title may be the file's name; so files keep their names, and what makes more
documents of them is that they come into several collections.

The clock runs while the documents between START and END of all become ready, so neither the start of
processes nor the last documents, when some have nothing to do any more, count. Processor time is
counted between the same two instants.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.db.schema import migrate
from app.db.session import libpq_url, open_engine, open_sessions
from app.documents.library import Library
from app.documents.records import Upload
from app.embedding.lazy import LazyEmbedder
from app.jobs import Jobs

START, END = 0.2, 0.95
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 300.0
END_SECONDS = 60.0
"""For a worker to put down its work, or for a cluster to go down."""

COUNT = """
    SELECT count(*), count(*) FILTER (WHERE d.status = 'failed'),
      coalesce(sum(v.chunks_count), 0)::int
    FROM documents AS d JOIN collections AS c ON c.id = d.collection_id
    LEFT JOIN document_versions AS v ON v.id = d.current_version_id
    WHERE starts_with(c.name, %s) AND d.status IN ('ready', 'failed')
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="where PDFs are")
    parser.add_argument("--copies", type=int, default=4, help="documents that each PDF makes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--home", type=Path, help="where model and database are kept")


@dataclass(frozen=True)
class Track:
    """A database, and files in `folder` that are known to it; each makes `copies` documents."""

    home: Path
    url: str
    folder: Path
    copies: int

    @cached_property
    def files(self) -> Sequence[Path]:
        return sorted(self.folder.iterdir())

    @property
    def documents_count(self) -> int:
        return self.copies * len(self.files)

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
class Spent:
    """Processor time in milliseconds: of the workers, of the parsers they start, of PostgreSQL."""

    worker_ms: float
    parser_ms: float
    postgres_ms: float

    @property
    def all_ms(self) -> float:
        return self.worker_ms + self.parser_ms + self.postgres_ms

    def per_document(self, before: "Spent", count: int) -> "Spent":
        return Spent(
            (self.worker_ms - before.worker_ms) / count,
            (self.parser_ms - before.parser_ms) / count,
            (self.postgres_ms - before.postgres_ms) / count,
        )


@dataclass(frozen=True)
class Lap:
    """How fast documents became ready, their passages, and the processor time of each document."""

    documents_per_second: float
    passages_per_document: float
    spent: Spent


@contextmanager
def open_track(home: Path, sources: Sequence[Path], copies: int) -> Generator[Track]:
    """Embeds every PDF of the sources that can be read, once; files of one name count once.

    What is in `home` from a run before, the exported model and the database, is used again.
    """
    folder = home / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted(path for source in sources for path in source.rglob("*.pdf")):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    with EmbeddedPostgres(home) as url:
        migrate(url)
        track = Track(home, url, folder, copies)
        command = [sys.executable, "-m", "ingestion", str(folder), "--collection", "known"]
        finished = subprocess.run(
            [*command, "--json"], env=track.environment, capture_output=True, check=False
        )
        if finished.returncode == 2:
            raise SystemExit(finished.stderr.decode())
        for failure in json.loads(finished.stdout)["failures"]:
            Path(failure["path"]).unlink()
        yield track


def new_name() -> str:
    """Begins the names of a lap's collections, and of no other's."""
    return f"lap-{uuid4().hex[:8]}"


async def upload(track: Track, name: str) -> None:
    """Queue every document, while no worker is there, in new collections of this name."""
    settings = Settings(home=track.home)
    engine, jobs = open_engine(settings, track.url), Jobs(track.url)
    await jobs.open()
    library = Library(open_sessions(engine), jobs, settings, LazyEmbedder(settings))
    for copy in range(track.copies):
        collection = f"{name}-{copy}"
        await library.create_collection(LOCAL_OWNER, collection)
        for path in track.files:
            await library.register_upload(
                LOCAL_OWNER, Upload(path.name, path.read_bytes(), collection=collection)
            )
    await jobs.close()
    await engine.dispose()


def run_lap(track: Track, name: str, running: Sequence[subprocess.Popen]) -> Lap:
    """From START to END of the documents in collections of this name.

    Raises SystemExit when a process or a document fails.
    """
    first, last = int(track.documents_count * START), int(track.documents_count * END)
    begun: tuple[int, float, Spent] | None = None
    deadline = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(libpq_url(track.url), autocommit=True) as connection:
        while time.monotonic() < deadline:
            [(done, failed, passages)] = connection.execute(COUNT, [name])
            if failed:
                raise SystemExit(f"{failed} documents of {name} failed.")
            now = time.perf_counter()
            if begun is None and done >= first:
                begun = done, now, _spent(track, running)
            if begun is not None and done >= last:
                count = done - begun[0]
                spent = _spent(track, running).per_document(begun[2], count)
                return Lap(count / (now - begun[1]), passages / done, spent)
            for process in running:
                if process.poll() not in (None, 0):
                    raise SystemExit(f"{process.args} ended with {process.returncode}")
            time.sleep(POLL_SECONDS)
    raise SystemExit(f"{name}: {done} of {track.documents_count} in {PATIENCE_SECONDS} s")


def _spent(track: Track, running: Sequence[subprocess.Popen]) -> Spent:
    workers = [psutil.Process(process.pid) for process in running]
    own = sum(map(_own_seconds, workers))
    children = sum(_seconds_of_children(worker) for worker in workers)
    server = track.postgres
    return Spent(
        worker_ms=1000 * own,
        parser_ms=1000 * children,
        postgres_ms=1000 * (_own_seconds(server) + _seconds_of_children(server)),
    )


def _own_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _seconds_of_children(root: psutil.Process) -> float:
    """A child that ended is counted by whoever waited for it."""
    times = root.cpu_times()
    total = times.children_user + times.children_system
    for child in root.children():
        with suppress(psutil.NoSuchProcess):
            total += _own_seconds(child) + _seconds_of_children(child)
    return total


def start_worker(track: Track, cores: Sequence[int]) -> subprocess.Popen:
    """A worker that has these cores, which its parser shares with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "worker"],
        env=track.environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, set(cores)),  # noqa: PLW1509 - this process has no threads that hold locks
    )


def end(running: Sequence[subprocess.Popen]) -> None:
    for process in running:
        process.terminate()
    for process in running:
        process.wait(END_SECONDS)


def run_workers(track: Track, places: Sequence[Sequence[int]]) -> Lap:
    """A lap of as many workers as there are places, which are the cores that each may use."""
    name = new_name()
    asyncio.run(upload(track, name))
    running = [start_worker(track, cores) for cores in places]
    try:
        return run_lap(track, name, running)
    finally:
        end(running)
