"""What does a Ray cluster cost that only has the cores of two workers?

Hypothesis: `footnote ingest --ray` on two local nodes of one core each makes documents ready at the
rate of two processes `footnote worker` on the same two cores, or at 15 per cent less.

Control: benchmarks/workers.py's two workers, over the same documents, which are bound by parsing as it
says. Rounds alternate; the first of each finds nothing in the caches and is not counted.

How a rate is measured: see benchmarks/race.py.

Caveats: Ray's own processes (a raylet per node, the global store, the driver) share the two cores,
as PostgreSQL does on both sides; the processor time of all of them is printed for each document, which
moves less than rates with what else a machine does. Ray holds its nodes to no core. A cluster takes some seconds to
start and every process of it loads the tokenizer; that is not counted, and matters for short runs
only. Ray finishes documents in blocks of 32, which blurs its rate by about as many documents: there
must be some hundreds. It ends the processes of a stage that has had all its work, and where that is
before the clock stops, their processor time is missing from a round. Workers take documents from a
queue, one job each, which the ordinary run and Ray's do without.

    python benchmarks/ray_cluster.py FOLDER… --copies 8 [--rounds 3] [--home HOME] [--record]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.embedding.loading import usable_cores
from benchmarks.race import (
    END_SECONDS,
    Lap,
    Track,
    add_arguments,
    end,
    new_name,
    open_track,
    run_lap,
    run_workers,
)

RESULTS = ROOT / "benchmarks" / "results" / "ray_cluster.json"


def run_ray(track: Track) -> Lap:
    """A lap on a new cluster of two nodes, whose every process is counted."""
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
        name = new_name()
        command = [sys.executable, "-m", "ingestion", str(copied(track)), "--json"]
        run = subprocess.Popen(
            [*command, "--collection", name, "--ray", address],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            lap = run_lap(track, name, [run, nodes])
            run.wait(END_SECONDS)
            return lap
        finally:
            end([run])
    finally:
        nodes.communicate(timeout=END_SECONDS)


def copied(track: Track) -> Path:
    """A folder with as many copies of every file as the track has documents, by their own names."""
    copies = track.home / "copies"
    for number in range(track.copies):
        if not (copies / str(number)).exists():
            shutil.copytree(track.folder, copies / str(number))
    return copies


def measure(track: Track, rounds: int) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    laps: dict[str, list[Lap]] = {"two_workers": [], "ray_on_two_nodes": []}
    for _ in range(rounds + 1):
        laps["two_workers"].append(run_workers(track, [[core] for core in cores]))
        laps["ray_on_two_nodes"].append(run_ray(track))
    counted = {name: of[1:] for name, of in laps.items()}
    ratios = [
        ray.documents_per_second / workers.documents_per_second
        for workers, ray in zip(*counted.values(), strict=True)
    ]
    return {
        "documents": f"{len(track.files)} PDFs, {track.copies} times each",
        "documents_per_second": {
            name: [round(lap.documents_per_second, 2) for lap in of] for name, of in counted.items()
        },
        "processor_ms_per_document": {
            name: [round(lap.spent.all_ms, 1) for lap in of] for name, of in counted.items()
        },
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    load_average = round(os.getloadavg()[0], 2)
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_track(arguments.home or Path(scratch), arguments.folders, arguments.copies) as track,
    ):
        measured = measure(track, arguments.rounds)
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "folders": [folder.resolve().name for folder in arguments.folders],
        **measured,
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
