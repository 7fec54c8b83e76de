"""Do two workers on two cores do the work of two?

Hypothesis: where parsing is what takes the time, two processes `footnote worker`, each held to a
core of its own, make documents ready at 1.7 times the rate of one, or more.

Control: one such process on one of these cores, over the same documents. And, because parsing,
embedding and writing of different documents overlap, so that one worker finds work for more than one
core: one process that may use both. Rounds alternate.

What is bound by parsing: every PDF of the folders that can be read, none left out. The rule is that
parsing takes more processor time than everything else together, PostgreSQL included; the share is
printed, and a run below a half says nothing about the hypothesis. Nothing is embedded, see
benchmarks/race.py, which also says how a rate is measured.

Caveats: PostgreSQL and this script are held to no core. With two cores in all, one worker leaves the
other core to them and two workers share with them. So one worker is given more than half of the
machine, and the ratio cannot reach 2: where a document costs w seconds of a worker with its parser and
p of PostgreSQL, one worker makes at most 1 / w per second and n cores make n / (w + p). The quotient
is printed as the ratio that the cores allow, from processor times measured in the same rounds; what is
above it is the spread of these.

    python benchmarks/workers.py FOLDER… [--copies 4] [--rounds 3] [--home HOME] [--record]
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.embedding.loading import usable_cores
from benchmarks.race import Lap, Track, add_arguments, open_track, run_workers

RESULTS = ROOT / "benchmarks" / "results" / "workers.json"


def measure(track: Track, rounds: int) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two cores are needed.")
    first, second = [cores[0]], [cores[1]]
    sides = {
        "one_worker": [first],
        "one_worker_on_both_cores": [cores],
        "two_workers": [first, second],
    }
    laps: dict[str, list[Lap]] = {name: [] for name in sides}
    # Whatever comes first finds nothing in the caches.
    run_workers(track, [first, second])
    for _ in range(rounds):
        for name, places in sides.items():
            laps[name].append(run_workers(track, places))
    one = laps["one_worker"]
    parser_ms, worker_ms, postgres_ms = (
        median(getattr(lap.spent, part) for lap in one)
        for part in ("parser_ms", "worker_ms", "postgres_ms")
    )
    ours_ms, all_ms = parser_ms + worker_ms, parser_ms + worker_ms + postgres_ms
    cores_allow = min(2.0, usable_cores() * ours_ms / all_ms)
    return {
        "documents": f"{len(track.files)} PDFs, {track.copies} times each",
        "passages_per_document": round(one[-1].passages_per_document, 1),
        "processor_ms_per_document": {
            "parser": round(parser_ms, 1),
            "worker": round(worker_ms, 1),
            "postgres": round(postgres_ms, 1),
        },
        "parsing_share": round(parser_ms / all_ms, 3),
        "documents_per_second": {
            name: [round(lap.documents_per_second, 2) for lap in of] for name, of in laps.items()
        },
        "two_workers_to_one": compared(laps["two_workers"], one),
        "two_workers_to_one_on_both_cores": compared(
            laps["two_workers"], laps["one_worker_on_both_cores"]
        ),
        "ratio_that_the_cores_allow": round(cores_allow, 3),
    }


def compared(these: Sequence[Lap], those: Sequence[Lap]) -> dict[str, Any]:
    """Round by round, and their median."""
    ratios = [
        more.documents_per_second / less.documents_per_second
        for more, less in zip(these, those, strict=True)
    ]
    return {"median": round(median(ratios), 3), "rounds": [round(ratio, 3) for ratio in ratios]}


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
