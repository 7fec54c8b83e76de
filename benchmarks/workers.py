"""Do two workers on two cores do the work of two?

Hypothesis: where parsing is what takes the time, two processes `footnote worker`, each held to a
core of its own, make documents ready at 1.7 times the rate of one, or more.

Control: one such process on one of these cores, over the same queue. Rounds alternate; the first of
each finds nothing in the caches and is not counted.

How it is bound by parsing: the passages of all documents are known (see benchmarks/race.py), so
nothing is embedded. How a rate is measured: from 20 to 95 per cent of the documents.

Caveats: PostgreSQL and this script are held to no core. With two cores in all, one worker leaves the
other core to them and two workers share with them. So one worker is given more than half of the
machine, and the ratio cannot reach 2: where a document costs w seconds of a worker with its parser and
p of PostgreSQL, one worker makes at most 1 / w per second and n cores make n / (w + p). The quotient
is printed as the ratio that the cores allow, from processor times measured in the same rounds.

    python benchmarks/workers.py FOLDER [--documents 600] [--rounds 3] [--record]
"""

import argparse
import json
import os
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
from benchmarks.race import Lap, prepare, run_workers

RESULTS = ROOT / "benchmarks" / "results" / "workers.json"


def measure(folder: Path, documents: int, rounds: int, scratch: Path) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two cores are needed.")
    load_average = round(os.getloadavg()[0], 2)
    embedder = open_embedder(Settings(home=scratch / "home"))
    with EmbeddedPostgres(scratch / "home") as url:
        migrate(url)
        track = prepare(scratch / "home", url, folder, scratch / "documents", documents)
        one: list[Lap] = []
        two: list[Lap] = []
        for number in range(rounds + 1):
            one.append(run_workers(track, f"one-{number}", cores[:1], embedder))
            two.append(run_workers(track, f"two-{number}", cores, embedder))
    one, two = one[1:], two[1:]
    ours_ms = median(lap.processes_ms for lap in one)
    postgres_ms = median(lap.postgres_ms for lap in one)
    ratios = [
        more.documents_per_second / less.documents_per_second
        for more, less in zip(two, one, strict=True)
    ]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "documents": f"{folder.name}: {documents} documents",
        "documents_per_second": {
            "one_worker": [round(lap.documents_per_second, 2) for lap in one],
            "two_workers": [round(lap.documents_per_second, 2) for lap in two],
        },
        "processor_ms_per_document": {
            "worker_and_parser": round(ours_ms, 1),
            "postgres": round(postgres_ms, 1),
        },
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(median(ratios), 3),
        "ratio_that_the_cores_allow": round(
            min(2.0, usable_cores() * ours_ms / (ours_ms + postgres_ms)), 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="documents that take long to parse, PDFs say")
    parser.add_argument("--documents", type=int, default=600)
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
