"""Do two workers on two cores do the work of two?

Hypothesis: where parsing is what takes the time, two processes `footnote worker`, each held to a
core of its own, make documents ready at 1.7 times the rate of one, or more.

Control: one such process on one of these cores, over the same queue. Rounds alternate.

How it is bound by parsing: the passages of all documents are known (see benchmarks/race.py), so
nothing is embedded. How a rate is measured: from 20 to 95 per cent of the documents.

Caveats: PostgreSQL and this script are held to no core. With two cores in all, one worker leaves the
other core to them and two workers share with them, so the ratio is lower than with cores to spare.

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
from benchmarks.race import prepare, workers_rate

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
        one: list[float] = []
        two: list[float] = []
        for number in range(rounds):
            one.append(workers_rate(track, f"one-{number}", cores[:1], embedder))
            two.append(workers_rate(track, f"two-{number}", cores, embedder))
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "documents": f"{folder.name}: {documents} documents",
        "documents_per_second": {
            "one_worker": [round(rate, 2) for rate in one],
            "two_workers": [round(rate, 2) for rate in two],
        },
        "ratio": round(median(more / less for more, less in zip(two, one, strict=True)), 3),
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
