"""How fast does a running Footnote search, for one client and for many?

Hypothesis: over a handbook of some ten thousand passages, POST /api/search in hybrid mode answers one
client in 10 ms (median) and 20 ms (95th percentile), and sixteen clients at 120 searches a second
together, on two cores that the API, PostgreSQL and this program share.

Control: GET /health/live by the same clients in the same run: what a request costs that finds
nothing. The modes `keyword` and `vector` say what each leg takes of the whole.

Caveats: the questions are headings of the documents, shorter and better matched than people's own.
Each is asked once per round, in one order; no cache is warm, and a reply from a cache ends the run.
This program is one process without threads that speaks HTTP itself, because a client library would
take as long as the search. Other work on the machine shows in the 95th percentile first.

    FOOTNOTE_RATE_LIMIT=1000000/minute footnote serve
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
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "search.json"
CLIENTS = (1, 16)
MODES = ("hybrid", "keyword", "vector")
WARM_UP_SEARCHES = 50
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def read_questions(folder: Path, count: int) -> list[str]:
    """Up to `count` different headings of at least three words."""
    found = {
        heading
        for path in folder.rglob("*.md")
        for heading in HEADING.findall(path.read_text("utf-8", "replace"))
        if len(heading.split()) >= 3
    }
    questions = sorted(found)
    random.Random(0).shuffle(questions)
    if not questions:
        raise SystemExit(f"There are no headings of three words in {folder}.")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the documents that the collection holds")
    parser.add_argument("--url", default="http://127.0.0.1:8008")
    parser.add_argument("--collection", default="handbook")
    parser.add_argument("--searches", type=int, default=400, help="different questions in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    questions = read_questions(arguments.folder, arguments.searches)
    load_average = round(os.getloadavg()[0], 2)
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average_before": load_average,
        },
        "documents": arguments.folder.name,
        "questions": len(questions),
        **asyncio.run(
            measure(
                arguments.url,
                os.environ.get("FOOTNOTE_API_KEY", ""),
                arguments.collection,
                questions,
                arguments.rounds,
            )
        ),
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
