"""Is anything lost, doubled or stuck when processes are killed at random, over and over?

Hypothesis: 200 times SIGKILL at random instants, while documents are uploaded, edited and deleted,
and afterwards the documents are exactly those that were acknowledged, their passages, offsets,
vectors and postings those of an ingestion that nobody disturbed; nothing is doubled, and whatever a
dead process had is worked on again within 60 s.

Control: the same final files, uploaded to an empty database and processed by one worker in peace.

Caveats: kills come at random times and not at random lines; the tests kill at every named line. The
seed repeats the choices, not the machine's timing. Work counts as abandoned from its worker's last
sign of life, which comes every three seconds, so those times are up to three seconds too long.
Vectors are compared to 0.002, because the batches that they are computed in differ. On a machine on
which a worker takes longer to start than it lives, nothing is ever finished: give it a longer `--pause`.

    python benchmarks/kills.py FOLDER [--what worker|postgres|api|command] [--kills 200] [--record]
"""

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.db.schema import migrate
from app.db.session import open_engine
from app.embedding.loading import open_embedder

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.kills_stage import (
    Driver,
    Program,
    Watch,
    free_port,
    kill_postgres,
    queue_length,
)
from tests.index_state import assert_consistent, contents

RESULTS = ROOT / "benchmarks" / "results"
BYTES_MAX = 1_000_000
READY_SECONDS = 90.0
DRAIN_SECONDS = 600.0
STUCK_SECONDS = 60.0
VECTOR_TOLERANCE = 0.002
PAUSE_SECONDS = {"worker": 2.6, "postgres": 8.0, "api": 1.5, "command": 4.0}
"""The mean time between one kill, with what it takes to come back, and the next."""


def read_files(folder: Path, count: int, choice: random.Random) -> dict[str, bytes]:
    """Some files of the folder by a name that is theirs alone."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and 0 < path.stat().st_size < BYTES_MAX
    )
    choice.shuffle(paths)
    return {
        f"{number:04}-{path.name}": path.read_bytes() for number, path in enumerate(paths[:count])
    }


class Stage:
    """An API and two workers on the embedded database of a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.server = EmbeddedPostgres(home)
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "FOOTNOTE_HOME": str(home),
            "FOOTNOTE_PORT": str(port),
            "FOOTNOTE_RATE_LIMIT": "1000000/minute",
            "FOOTNOTE_UPLOAD_RATE_LIMIT": "1000000/minute",
            "HF_HUB_OFFLINE": "1",
        }

        def program(name: str, *arguments: str) -> Program:
            return Program(name, arguments, environment, home.parent / f"{name}.log")

        self.api = program("api", "serve", "--no-worker")
        self.workers = [program(f"worker-{number}", "worker") for number in (1, 2)]
        self.command = program("command", "ingest")

    def open(self) -> str:
        url = self.server.start()
        migrate(url)
        return url

    def close(self) -> None:
        for program in (self.api, *self.workers, self.command):
            program.stop()
        self.server.stop()

    async def wait_until_ready(self) -> float:
        """Seconds until the API says that it can serve."""
        started = time.monotonic()
        async with httpx.AsyncClient(base_url=self.address, timeout=5) as client:
            while time.monotonic() - started < READY_SECONDS:
                try:
                    if (await client.get("/health/ready")).status_code == 200:
                        return time.monotonic() - started
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError("the API does not come back")


async def kill_again_and_again(
    stage: Stage, what: str, kills: int, choice: random.Random
) -> list[float]:
    """Seconds that each kill took until the killed one was back, as far as that is to be waited for."""
    back_seconds: list[float] = []
    for number in range(kills):
        await asyncio.sleep(choice.uniform(0, 2 * PAUSE_SECONDS[what]))
        if what == "postgres":
            kill_postgres(stage.home)
            await asyncio.sleep(0.5)
            back_seconds.append(0.5 + await stage.wait_until_ready())
        elif what == "api":
            stage.api.kill()
            stage.api.start()
            back_seconds.append(await stage.wait_until_ready())
        else:
            victim = choice.choice(stage.workers)
            victim.kill()
            victim.start()
        if (number + 1) % 10 == 0:
            print(f"{number + 1} kills", file=sys.stderr, flush=True)
    return back_seconds


async def disturb(
    stage: Stage, url: str, what: str, kills: int, files: dict[str, bytes], choice: random.Random
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files that were acknowledged in the end, and what was seen on the way."""
    stage.api.start()
    await stage.wait_until_ready()
    for worker in stage.workers:
        worker.start()
    watch = Watch(url)
    watching = asyncio.create_task(watch.run())
    async with httpx.AsyncClient(base_url=stage.address, timeout=20) as client:
        driver = Driver(client, url, files, choice)
        driving = asyncio.create_task(driver.run())
        back_seconds = await kill_again_and_again(stage, what, kills, choice)
        driver.stopping.set()
        await driving
    drained_seconds = await drained(url)
    await asyncio.sleep(2)
    watching.cancel()
    acknowledged = {
        name: known.content for name, known in driver.files.items() if known.content is not None
    }
    return acknowledged, {
        "calls": driver.counts,
        "slowest_answer_seconds": round(driver.slowest_answer_seconds, 1),
        "visible_but_incomplete": len(driver.partial),
        "abandoned_jobs": len(watch.put_back_seconds),
        "put_back_seconds": spread(watch.put_back_seconds),
        "waited_again_seconds": spread(watch.waited_again_seconds),
        "resumed_seconds": spread(watch.resumed_seconds),
        "database_away_seconds": spread(watch.away_seconds),
        "back_seconds": spread(back_seconds),
        "queue_empty_after_seconds": round(drained_seconds, 1),
    }


async def disturb_command(
    stage: Stage, kills: int, files: dict[str, bytes], choice: random.Random, folder: Path
) -> dict[str, Any]:
    """Change a folder and ingest it, and kill the command, again and again; then let it finish."""
    folder.mkdir()
    names = sorted(files)
    stage.command.arguments = ("ingest", str(folder), "--json")
    counts = dict.fromkeys(("additions", "edits", "deletes", "ended_before"), 0)
    for number in range(kills):
        for name in choice.sample(names, min(8, len(names))):
            path = folder / name
            if not path.exists():
                path.write_bytes(files[name])
                counts["additions"] += 1
            elif choice.random() < 0.3:
                path.unlink()
                counts["deletes"] += 1
            else:
                path.write_bytes(files[name] + f"\n\nEdited {number}.\n".encode())
                counts["edits"] += 1
        stage.command.start()
        await asyncio.sleep(choice.uniform(0.5, 2 * PAUSE_SECONDS["command"]))
        counts["ended_before"] += not stage.command.is_alive
        stage.command.kill()
    stage.command.start()
    assert stage.command.process is not None
    await asyncio.to_thread(stage.command.process.wait)
    return {"changes": counts}


async def drained(url: str) -> float:
    started = time.monotonic()
    while await asyncio.to_thread(queue_length, url):
        assert time.monotonic() - started < DRAIN_SECONDS, "documents are stuck"
        await asyncio.sleep(0.25)
    return time.monotonic() - started


def spread(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"median": round(median(seconds), 1), "longest": round(max(seconds), 1)}


# --- judging --------------------------------------------------------------------------------------


async def judge(
    disturbed: AsyncEngine, clean: AsyncEngine, acknowledged: dict[str, bytes] | None
) -> dict[str, Any]:
    """How the two databases differ; every number but the first two has to be 0."""
    for engine in (disturbed, clean):
        await assert_consistent(engine)
    found, wanted = await documents_of(disturbed), await documents_of(clean)
    passages, clean_passages = await contents(disturbed), await contents(clean)
    differences, vector_difference = 0, 0.0
    for uri, rows in clean_passages.items():
        own = passages.get(uri, [])
        if [row[:-1] for row in own] != [row[:-1] for row in rows]:
            differences += 1
            continue
        for (*_, a), (*_, b) in zip(own, rows, strict=True):
            distance = np.abs(np.array(json.loads(a)) - np.array(json.loads(b))).max()
            vector_difference = max(vector_difference, float(distance))
    return {
        "documents": len(wanted),
        "passages": sum(map(len, clean_passages.values())),
        "not_acknowledged": len(wanted) - len(acknowledged) if acknowledged is not None else 0,
        "lost": len(wanted.keys() - found.keys()),
        "left_over": len(found.keys() - wanted.keys()),
        "other_status_or_original": sum(
            found[uri] != wanted[uri] for uri in found.keys() & wanted.keys()
        ),
        "other_passages": differences,
        "passages_of_nothing": len(passages.keys() - clean_passages.keys()),
        "doubled": await doubled(disturbed),
        "vectors_beyond_tolerance": int(vector_difference > VECTOR_TOLERANCE),
    }


async def documents_of(engine: AsyncEngine) -> dict[str, tuple[str, bytes | None]]:
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT uri, status, blob_sha256 FROM documents"))
        return {row.uri: (row.status, row.blob_sha256) for row in rows}


async def doubled(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                """
                SELECT (SELECT count(*) - count(DISTINCT document_id) FROM document_versions)
                  + (SELECT count(*) - count(DISTINCT (document_id, ordinal)) FROM chunks)
                  + (SELECT count(*) - count(DISTINCT chunk_id) FROM embeddings)
                """
            )
        )
        return int(rows.scalar_one())


async def in_peace(stage: Stage, url: str, files: dict[str, bytes]) -> None:
    """Upload the files and process them; nobody is killed."""
    stage.api.start()
    stage.workers[0].start()
    await stage.wait_until_ready()
    async with httpx.AsyncClient(base_url=stage.address, timeout=60) as client:
        for name, content in files.items():
            reply = await client.post("/api/documents", files={"file": (name, content)})
            assert reply.status_code == 202, reply.text
    await drained(url)


async def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    choice = random.Random(arguments.seed)
    files = read_files(arguments.folder, arguments.files, choice)
    settings = Settings(home=scratch / "disturbed")
    open_embedder(settings)  # exports the model
    (scratch / "clean").mkdir(mode=0o700)
    shutil.copytree(settings.model_cache, scratch / "clean" / "models")
    stages = [Stage(scratch / name) for name in ("disturbed", "clean")]
    started = time.monotonic()
    acknowledged: dict[str, bytes] | None = None
    try:
        urls = [stage.open() for stage in stages]
        folder = scratch / "documents"
        if arguments.what == "command":
            seen = await disturb_command(stages[0], arguments.kills, files, choice, folder)
        else:
            acknowledged, seen = await disturb(
                stages[0], urls[0], arguments.what, arguments.kills, files, choice
            )
        disturbed_seconds = time.monotonic() - started
        for program in (stages[0].api, *stages[0].workers):
            program.stop()
        if acknowledged is None:
            stages[1].command.arguments = ("ingest", str(folder), "--json")
            stages[1].command.start()
            assert stages[1].command.process is not None
            await asyncio.to_thread(stages[1].command.process.wait)
        else:
            await in_peace(stages[1], urls[1], acknowledged)
        engines = [open_engine(settings, url) for url in urls]
        found = await judge(engines[0], engines[1], acknowledged)
        statuses = Counter(status for status, _ in (await documents_of(engines[0])).values())
        for engine in engines:
            await engine.dispose()
    finally:
        for stage in stages:
            stage.close()
    stuck = (seen.get("resumed_seconds") or {}).get("longest", 0.0) > STUCK_SECONDS
    faults = sum(list(found.values())[2:]) + seen.get("visible_but_incomplete", 0) + stuck
    return {
        "killed": arguments.what,
        "kills": arguments.kills,
        "pause_seconds": PAUSE_SECONDS[arguments.what],
        "seed": arguments.seed,
        "took_minutes": round(disturbed_seconds / 60, 1),
        "statuses": dict(statuses),
        **seen,
        **found,
        "stuck": int(stuck),
        "verdict": "exact" if not faults else "NOT EXACT",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", choices=sorted(PAUSE_SECONDS), default="worker")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pause", type=float, help="mean seconds between kills, on a slow machine")
    parser.add_argument("--files", type=int, default=200, help="files to take of the folder")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--keep", type=Path, help="leave the homes and the logs in this new folder")
    parser.add_argument("--record", action="store_true", help="write results/kills_WHAT.json")
    arguments = parser.parse_args()
    if arguments.pause is not None:
        PAUSE_SECONDS[arguments.what] = arguments.pause
    print(f"seed {arguments.seed}", file=sys.stderr, flush=True)
    load_average = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory(prefix="footnote-kills-") as temporary:
        scratch = arguments.keep or Path(temporary)
        scratch.mkdir(exist_ok=True)
        measured = asyncio.run(measure(arguments, scratch))
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average_before": load_average,
        },
        "folder": arguments.folder.name,
        **measured,
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.mkdir(parents=True, exist_ok=True)
        target = RESULTS / f"kills_{arguments.what}.json"
        target.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    sys.exit(result["verdict"] != "exact")


if __name__ == "__main__":
    main()
