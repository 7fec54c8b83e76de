"""How much of the time of `footnote ingest` is not embedding?

Hypothesis: reading, chunking and writing hide behind the model: a folder is ingested at 0.85 or more
of the speed at which the same passages are embedded alone.

Control: the same passages, read back from the database, through the same embedder with the same
settings, in a process of its own. Rounds alternate, each ingestion into an empty database.

Caveats: the whole command is timed, with its start, the model's loading and the index built at the
end; the control's model is loaded before its clock starts. Exporting the model and creating the
database cluster happen once per home and are not counted. Two cores that both sides fill: anything
else on the machine counts against both.

    python benchmarks/ingest.py FOLDER [--files 300] [--rounds 3] [--record]
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.embedding.loading import open_embedder, usable_cores
from ingestion.types import Chunk, embedded_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ingest.json"
COLLECTION = "benchmark"


def copy_sample(folder: Path, target: Path, count: int) -> int:
    """Copy up to `count` files, the same ones each time; returns how many."""
    files = sorted(path for path in folder.rglob("*.md") if path.is_file())
    random.Random(0).shuffle(files)
    for path in files[:count]:
        copied = target / path.relative_to(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    return min(count, len(files))


def ingest(home: Path, folder: Path) -> float:
    """Seconds that the command takes."""
    command = [sys.executable, "-m", "ingestion", str(folder), "--collection", COLLECTION, "--json"]
    environment = {**os.environ, "FOOTNOTE_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    finished = subprocess.run(command, env=environment, capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if finished.returncode == 2:
        raise SystemExit(finished.stderr.decode())
    return seconds


def embedded_texts(url: str) -> list[str]:
    """What ingestion gave to the model, in its order."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT d.title, c.ordinal, c.text, c.start_char, c.end_char, c.heading, c.page,"
            " c.tokens, c.context FROM chunks AS c JOIN documents AS d ON d.id = c.document_id"
            " ORDER BY c.id"
        ).fetchall()
    return [
        embedded_text(title, Chunk(ordinal, text, start, end, tuple(path), page, tokens, context))
        for title, ordinal, text, start, end, path, page, tokens, context in rows
    ]


def embed_alone(home: Path, texts: Sequence[str]) -> float:
    """Seconds for all texts, measured in a process that does nothing else."""
    program = (
        "import json, sys, time; from pathlib import Path;"
        "from app.config import Settings; from app.embedding.loading import open_embedder;"
        "texts = json.load(sys.stdin);"
        f"model = open_embedder(Settings(home=Path({str(home)!r})));"
        "model.embed(texts[:16], 'document'); started = time.perf_counter();"
        "[model.embed(texts[i:i + 512], 'document') for i in range(0, len(texts), 512)];"
        "print(time.perf_counter() - started)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return float(finished.stdout)


def empty(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE collections, documents, blobs, postings CASCADE")


def measure(folder: Path, files: int, rounds: int, scratch: Path) -> dict[str, Any]:
    home, sample = scratch / "home", scratch / "documents"
    files_count = copy_sample(folder, sample, files)
    load_average = round(os.getloadavg()[0], 2)
    open_embedder(Settings(home=home))  # exports the model
    server = EmbeddedPostgres(home)
    url = server.start()
    try:
        ingest(home, sample)  # migrates the database, and tells the number of passages
        texts = embedded_texts(url)
        ingesting: list[float] = []
        embedding: list[float] = []
        for _ in range(rounds):
            empty(url)
            ingesting.append(ingest(home, sample))
            embedding.append(embed_alone(home, texts))
    finally:
        server.stop()
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "documents": f"{folder.name}: {files_count} files",
        "passages": len(texts),
        "ingest_seconds": [round(seconds, 1) for seconds in ingesting],
        "embedding_alone_seconds": [round(seconds, 1) for seconds in embedding],
        "passages_per_second": round(len(texts) / median(ingesting), 1),
        "ratio": round(
            median(alone / whole for alone, whole in zip(embedding, ingesting, strict=True)), 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs")
    parser.add_argument("--files", type=int, default=300, help="Markdown files to take")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(arguments.folder, arguments.files, arguments.rounds, Path(scratch))
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
