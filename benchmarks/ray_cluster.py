"""What does a Ray cluster cost that only has the cores of two workers?

Hypothesis: `footnote ingest --ray` on two local nodes of one core each makes documents ready at the
rate of two processes `footnote worker` on the same two cores, or at 15 per cent less.

Control: benchmarks/workers.py's two workers, over the same documents. Rounds alternate; the
first of each finds nothing in the caches and is not counted.

How it is bound by parsing, and how a rate is measured: see benchmarks/race.py.

Caveats: Ray's own processes (a raylet per node, the global store, the driver) share the two cores,
as PostgreSQL does on both sides. Ray holds its nodes to no core. A cluster takes some seconds to
start and every process of it loads the tokenizer; that is not counted, and matters for short runs
only. Ray finishes documents in blocks of 32, which blurs its rate by about as many documents.

    python benchmarks/ray_cluster.py FOLDER [--documents 1200] [--rounds 3] [--record]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.db.schema import migrate
from app.embedding.loading import open_embedder, usable_cores
from benchmarks.race import Lap, Track, prepare, run_lap, run_workers

RESULTS = ROOT / "benchmarks" / "results" / "ray_cluster.json"


def run_ray(track: Track, collection: str) -> Lap:
    """A lap on a new cluster of two nodes; of its processor time only the driver's is counted."""
    environment = {**track.environment, "PYTHONPATH": str(ROOT)}
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_nodes"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert nodes.stdout is not None
        address = next(line for line in nodes.stdout if line.strip()[:1].isdigit()).strip()
        command = [sys.executable, "-m", "ingestion", str(track.folder), "--json"]
        run = subprocess.Popen(
            [*command, "--collection", collection, "--ray", address],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            return run_lap(track, collection, [run])
        finally:
            run.wait()
    finally:
        nodes.communicate()


def measure(folder: Path, documents: int, rounds: int, scratch: Path) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    load_average = round(os.getloadavg()[0], 2)
    embedder = open_embedder(Settings(home=scratch / "home"))
    with EmbeddedPostgres(scratch / "home") as url:
        migrate(url)
        track = prepare(scratch / "home", url, folder, scratch / "documents", documents)
        workers: list[float] = []
        ray: list[float] = []
        for number in range(rounds + 1):
            lap = run_workers(track, f"workers-{number}", cores, embedder)
            workers.append(lap.documents_per_second)
            ray.append(run_ray(track, f"ray-{number}").documents_per_second)
    workers, ray = workers[1:], ray[1:]
    ratios = [its / theirs for its, theirs in zip(ray, workers, strict=True)]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "documents": f"{folder.name}: {documents} documents",
        "documents_per_second": {
            "two_workers": [round(rate, 2) for rate in workers],
            "ray_on_two_nodes": [round(rate, 2) for rate in ray],
        },
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="documents that take long to parse, PDFs say")
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(
            arguments.folder.resolve(), arguments.documents, arguments.rounds, Path(scratch)
        )
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
