"""How fast is a second run over files that did not change?

Hypothesis: 10,000 unchanged files are settled at 5,000 files/s or more, measured as files divided by
the seconds that the run itself took: the walk, one query for what is known, the comparison.

Control: `os.walk` and a `stat` of each file over the same tree, the least that looking at files can
cost; rounds alternate. The ratio says how many times that the run takes.

Caveats: tiny files on a warm page cache, and a database beside the command. The whole command, with
the start of the interpreter, the imports and the digest of the model's weights, is timed as well and
given apart: it is the same for ten files and for a million. The files are two seconds old before
they are ingested, as younger ones would be read again; that is what a first second run does.

    python benchmarks/resync.py [--files 10000] [--rounds 5] [--record]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from app.db.embedded import EmbeddedPostgres
from app.embedding.loading import usable_cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "resync.json"
SETTLING_SECONDS = 2.5


def make_files(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"{number % 100:02}" / f"note {number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Note {number}: matter {number * 7919 % 10007} was settled.")


def ingest(home: Path, folder: Path) -> tuple[dict[str, Any], float]:
    """What the command reports, and the seconds that it takes as a whole."""
    command = [sys.executable, "-m", "ingestion", str(folder), "--json"]
    environment = {**os.environ, "FOOTNOTE_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    finished = subprocess.run(command, env=environment, capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if finished.returncode != 0:
        raise SystemExit(finished.stderr.decode())
    return json.loads(finished.stdout), seconds


def look_alone(folder: Path) -> float:
    """Seconds for the control."""
    started = time.perf_counter()
    for current, _, names in os.walk(folder):
        for name in names:
            os.stat(os.path.join(current, name))
    return time.perf_counter() - started


def measure(files: int, rounds: int, scratch: Path) -> dict[str, Any]:
    home, folder = scratch / "home", scratch / "documents"
    load_average = round(os.getloadavg()[0], 2)
    make_files(folder, files)
    time.sleep(SETTLING_SECONDS)
    server = EmbeddedPostgres(home)
    server.start()
    try:
        first, first_seconds = ingest(home, folder)
        running: list[float] = []
        commanding: list[float] = []
        looking: list[float] = []
        for _ in range(rounds):
            report, seconds = ingest(home, folder)
            if report["unchanged"] != files:
                raise SystemExit(f"not everything was unchanged: {report}")
            running.append(report["took_ms"] / 1000)
            commanding.append(seconds)
            looking.append(look_alone(folder))
    finally:
        server.stop()
    rates = sorted(round(files / seconds) for seconds in running)
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "files": files,
        "first_run": {"added": first["added"], "seconds": round(first_seconds, 1)},
        "run_seconds": [round(seconds, 3) for seconds in running],
        "command_seconds": [round(seconds, 2) for seconds in commanding],
        "control_seconds": [round(seconds, 3) for seconds in looking],
        "files_per_second": {"median": median(rates), "least": rates[0], "most": rates[-1]},
        "files_per_second_of_the_command": round(files / median(commanding)),
        "times_the_control": round(
            median(run / look for run, look in zip(running, looking, strict=True)), 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(arguments.files, arguments.rounds, Path(scratch))
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
