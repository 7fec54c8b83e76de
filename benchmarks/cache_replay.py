"""How much of a cache is left when nothing in it may be out of date?

Hypothesis: over a workload like people's (questions by Zipf's law, and before each round a
hundredth of the documents edited) the answer cache keeps 95 % of the hits that one would have which
knows questions only, and gives none of that one's stale answers. When nothing is edited and all was
asked before, 98 % of the questions are hits.

Control: a cache that is keyed by the normalised question alone, replayed beside in this process. A
hit of its is stale when the answer that it would give is not the one that the service gives now.

Caveats: answers are quoted from the passages, not written by a model, so that equal evidence gives
equal answers and staleness can be seen. An edit adds a sentence to a document. Questions are those of
a judged set in BEIR's form, and each passage of it is a document.

    python benchmarks/cache_replay.py SET --home /tmp/replay [--rounds 5] [--asks 300] [--record]
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.cache.keys import normalise
from benchmarks.search import RESULTS, Client
from benchmarks.search_corpus import running_service

COLLECTION = "replay"
EDITED = 0.01
ZIPF = 1.0


def write_documents(given: Path, folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths: list[Path] = []
    lines = (given / "corpus.jsonl").read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        document = json.loads(line)
        path = folder / f"{number:05}.md"
        path.write_text(f"# {document.get('title') or number}\n\n{document['text']}\n", "utf-8")
        paths.append(path)
    return paths


def ingest(folder: Path, home: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "ingest", str(folder), "--collection", COLLECTION]
    subprocess.run(
        command,
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={"FOOTNOTE_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)},
    )


class Replay:
    """Asks, and keeps what the other cache would have."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.times_ms: list[float] = []

    async def ask(self, question: str) -> None:
        body = {"question": question, "collection": COLLECTION, "model": "extractive"}
        reply = json.loads(
            await self._client.request("POST", "/api/chat", json.dumps(body).encode())
        )
        counts, cache = self.counts, reply["cache"]
        counts["asked"] += 1
        self.times_ms.append(reply["took_ms"])
        for layer in ("embedding", "chunks", "answer"):
            counts[f"{layer} hits"] += cache[layer] == "hit"
        answer = [reply["answer"], [one["quote"] for one in reply["citations"]]]
        key = normalise(question)
        is_written = cache["answer"] != "off"  # what nothing fits is declined, and asked of nobody
        counts["declined"] += not is_written
        if key in self._known:
            counts["other hits"] += 1
            is_stale = self._known[key] != answer
            counts["other stale"] += is_stale
            # A stale hit is no loss: there was nothing right to be kept.
            if not is_stale and is_written:
                counts["other right"] += 1
                counts["kept"] += cache["answer"] == "hit"
        self._known.setdefault(key, answer)

    def told(self) -> dict[str, Any]:
        counts = self.counts
        answerable = counts["asked"] - counts["declined"]
        return {
            "asked": counts["asked"],
            "declined": counts["declined"],
            "hit_rates": {
                "embedding": round(counts["embedding hits"] / counts["asked"], 4),
                "chunks": round(counts["chunks hits"] / counts["asked"], 4),
                "answer": round(counts["answer hits"] / max(1, answerable), 4),
                "unvalidated": round(counts["other hits"] / counts["asked"], 4),
            },
            "unvalidated_hits_that_were_right": counts["other right"],
            "of_those_kept": round(counts["kept"] / max(1, counts["other right"]), 4),
            "unvalidated_stale_answers": counts["other stale"],
            "p50_ms": round(median(self.times_ms), 2),
        }


async def measure(given: Path, home: Path, rounds: int, asks: int) -> dict[str, Any]:
    rng = random.Random(0)
    folder = home / "documents"
    paths = write_documents(given, folder)
    lines = (given / "queries.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line)["text"] for line in lines]
    rng.shuffle(questions)
    weights = [1 / (rank + 1) ** ZIPF for rank in range(len(questions))]
    footnote_home = home / "footnote"
    await asyncio.to_thread(ingest, folder, footnote_home)
    async with running_service(footnote_home, cached=True) as url:
        client = Client(url, "")
        await client.open()
        edited = Replay(client)
        for number in range(rounds):
            if number:
                for path in rng.sample(paths, max(1, round(EDITED * len(paths)))):
                    text = path.read_text("utf-8")
                    path.write_text(f"{text}\nThis was revised in round {number}.\n", "utf-8")
                await asyncio.to_thread(ingest, folder, footnote_home)
            for question in rng.choices(questions, weights, k=asks):
                await edited.ask(question)
        for question in questions:
            await edited.ask(question)
        warm = Replay(client)
        for question in rng.choices(questions, weights, k=asks):
            await warm.ask(question)
        client.close()
    return {
        "documents": len(paths),
        "questions": len(questions),
        "rounds": rounds,
        "with_edits": edited.told(),
        "warm_without_edits": warm.told(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", type=Path, help="a folder with corpus.jsonl and queries.jsonl")
    parser.add_argument("--home", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--asks", type=int, default=300)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.home.exists():
        parser.error(f"{arguments.home} is there already")
    measuring = measure(arguments.set, arguments.home, arguments.rounds, arguments.asks)
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "set": arguments.set.name,
        **asyncio.run(measuring),
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "cache_replay.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
