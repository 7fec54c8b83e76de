"""How fast does a running Footnote search, for one client and for many?

Hypothesis: over 100,000 passages, on two cores that the API, PostgreSQL and this program share and
with no cache, POST /api/search in hybrid mode answers one client in 10 ms (median) and 20 ms (95th
percentile), and sixteen clients at 150 searches a second together. The median of one client is at
most 2.5 times that of the two parts that cannot be done without: the embedding of the query, and the
vector leg as bare SQL. Over 1,000,000 passages the 95th percentile is at most 80 ms.

Control: GET /health/live by the same clients in the same run: what a request costs that finds
nothing. The modes `keyword` and `vector` say what each leg takes of the whole. The two parts are
measured before and after, by turns, in this process.

Caveats: the questions are headings of the documents, shorter and better matched than people's own.
Each is asked once per round, in one order; no cache is warm, and a reply from a cache ends the run.
With `--passages` the corpus is made as `benchmarks/corpus.py` says, once for a home, and the service
is started over it; without, a service must run that holds the folder. This program is one process
without threads that speaks HTTP itself, because a client library would take as long as the search.
Other work on the machine shows in the 95th percentile first.

    python benchmarks/search.py FOLDER… --passages 100000 --home /tmp/corpus-100k [--record]

    FOOTNOTE_RATE_LIMIT=1000000/minute FOOTNOTE_CACHE_EMBEDDINGS=false \
      FOOTNOTE_CACHE_CHUNKS=false footnote serve
    footnote ingest FOLDER --collection handbook
    python benchmarks/search.py FOLDER [--collection handbook] [--searches 400] [--record]
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CLIENTS = (1, 16)
MODES = ("hybrid", "keyword", "vector")
WARM_UP_SEARCHES = 50
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def read_questions(folders: Sequence[Path], count: int) -> list[str]:
    """Up to `count` different headings of at least three words."""
    found = {
        heading
        for folder in folders
        for path in folder.rglob("*.md")
        for heading in HEADING.findall(path.read_text("utf-8", "replace"))
        if len(heading.split()) >= 3
    }
    questions = sorted(found)
    random.Random(0).shuffle(questions)
    if not questions:
        raise SystemExit("There are no headings of three words in these folders.")
    return questions[:count]


class Client:
    """One connection that is kept, and one request on it at a time."""

    def __init__(self, url: str, api_key: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._headers = f"Host: {parts.netloc}\r\n"
        if api_key:
            self._headers += f"Authorization: Bearer {api_key}\r\n"

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._address)

    def close(self) -> None:
        self._writer.close()

    async def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the reply, which must be 200 and say how long it is."""
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n"
        kind = "Content-Type: application/json\r\n" if body else ""
        self._writer.write(f"{head}{kind}\r\n".encode() + body)
        reply = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", reply, re.IGNORECASE)
        content = await self._reader.readexactly(int(length[1])) if length else b""
        if b" 200 " not in reply[:20]:
            raise SystemExit(f"{method} {path} was answered {reply[:60]!r}: {content[:300]!r}")
        return content


async def ask(client: Client, question: str, collection: str, mode: str) -> None:
    body = {"query": question, "collection": collection, "mode": mode}
    reply = await client.request("POST", "/api/search", json.dumps(body).encode())
    # As bytes: reading the JSON would cost this process more than waiting for it.
    if b'"chunks":"hit"' in reply or b'"embedding":"hit"' in reply:
        raise SystemExit("A reply came from a cache; switch the caches off to measure search.")
    if b'"hits":[]' in reply and mode != "keyword":
        raise SystemExit(f"Nothing was found in {collection}: is it ingested?")


async def load(clients: Sequence[Client], requests: Sequence[Any]) -> dict[str, float]:
    """Times of requests that the clients share out among themselves, each asking when answered."""
    times_ms: list[float] = []
    waiting = iter(requests)

    async def work(client: Client) -> None:
        for make in waiting:
            started = time.perf_counter()
            await make(client)
            times_ms.append((time.perf_counter() - started) * 1000)

    started = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    seconds = time.perf_counter() - started
    cuts = quantiles(times_ms, n=20)
    return {
        "p50_ms": round(median(times_ms), 2),
        "p95_ms": round(cuts[18], 2),
        "per_second": round(len(times_ms) / seconds, 1),
    }


async def measure(
    url: str, api_key: str, collection: str, questions: Sequence[str], rounds: int
) -> dict[str, Any]:
    def searches(mode: str) -> list[Any]:
        return [
            lambda client, question=question: ask(client, question, collection, mode)
            for question in questions
        ]

    results: dict[str, Any] = {}
    for count in CLIENTS:
        connected = [Client(url, api_key) for _ in range(count)]
        for client in connected:
            await client.open()
        await load(connected, searches("hybrid")[:WARM_UP_SEARCHES])
        control = [lambda client: client.request("GET", "/health/live")] * len(questions)
        results[f"{count} clients"] = {
            "hybrid": await rounds_of(rounds, connected, searches("hybrid")),
            **{mode: await load(connected, searches(mode)) for mode in MODES[1:]},
            "control": await load(connected, control),
        }
        for client in connected:
            client.close()
    return results


async def rounds_of(rounds: int, clients: Sequence[Client], requests: Sequence[Any]) -> Any:
    """Every round, and the median of each number over them."""
    found = [await load(clients, requests) for _ in range(rounds)]
    middle = {name: median(one[name] for one in found) for name in found[0]}
    return {**middle, "rounds": found}


async def measure_corpus(
    folders: Sequence[Path], home: Path, passages: int, questions: Sequence[str], rounds: int
) -> dict[str, Any]:
    """The same over a made corpus, and how it compares with the two parts."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.search_corpus import (  # noqa: PLC0415 - found only now
        COLLECTION,
        RawParts,
        ensure_corpus,
        running_service,
    )

    corpus = await ensure_corpus(home, folders, passages)
    with RawParts(home) as parts:
        parts.measure(questions[:WARM_UP_SEARCHES])
        async with running_service(home) as url:
            before = parts.measure(questions)
            results = await measure(url, "", COLLECTION, questions, rounds)
            after = parts.measure(questions)
    raw = {name: (before[name] + after[name]) / 2 for name in before}
    p50_ms = results["1 clients"]["hybrid"]["p50_ms"]
    return {
        "corpus": corpus,
        **results,
        "parts": {"before": before, "after": after},
        "p50_over_parts": round(p50_ms / sum(raw.values()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        help="the documents that the collection holds or is made of",
    )
    parser.add_argument("--passages", type=int, help="make a corpus of so many, and serve it")
    parser.add_argument("--home", type=Path, help="where that corpus is, or is to be made")
    parser.add_argument("--url", default="http://127.0.0.1:8008")
    parser.add_argument("--collection", default="handbook")
    parser.add_argument("--searches", type=int, default=400, help="different questions in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--record", action="store_true", help=f"write to {RESULTS.relative_to(ROOT)}"
    )
    arguments = parser.parse_args()
    if (arguments.passages is None) != (arguments.home is None):
        parser.error("--passages and --home go together")
    questions = read_questions(arguments.folders, arguments.searches)
    load_average = round(os.getloadavg()[0], 2)
    if arguments.passages is None:
        measuring = measure(
            arguments.url,
            os.environ.get("FOOTNOTE_API_KEY", ""),
            arguments.collection,
            questions,
            arguments.rounds,
        )
    else:
        measuring = measure_corpus(
            arguments.folders, arguments.home, arguments.passages, questions, arguments.rounds
        )
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average_before": load_average,
        },
        "documents": " ".join(folder.name for folder in arguments.folders),
        "questions": len(questions),
        **asyncio.run(measuring),
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        name = "search" if arguments.passages is None else f"search_{arguments.passages}"
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
