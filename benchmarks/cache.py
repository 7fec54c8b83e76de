"""How fast is a question that was asked before, and what happens when Redis dies?

Hypotheses: over 100,000 passages, on two cores that the API, PostgreSQL, Redis, a model server and
this program share, POST /api/chat with `stream` gives its first byte within 5 ms (95th percentile)
when all layers know it, and within 10 ms when the collection has changed and only the answer is
known. Hits are served at 600 a second. A hundred identical questions at once are one generation.
Redis killed in mid-load costs no reply, and no more than 100 ms at the 99th percentile.

Control: GET /health/live by the same clients in the same run. A change of the collection is one
statement that raises its generation, as every write does at its end.

Caveats: the model server is a double that answers at once, with the first sentence of a source, so
misses are not measured. Each question stores a turn of a conversation, as all do. Questions are
headings of the documents. Other work on the machine shows in the 95th percentile first.

    python benchmarks/cache.py FOLDER… --home /tmp/corpus-100k [--passages 100000] [--record]
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.db.embedded import EmbeddedPostgres
from app.db.session import libpq_url
from benchmarks.search import RESULTS, Client, load, read_questions
from benchmarks.search_corpus import COLLECTION, ensure_corpus, running_service
from tests.doubles.ollama import OllamaDouble, running_ollama

CLIENTS = 16
AT_ONCE = 100
OUTAGE_CLIENTS = 8


class StreamClient(Client):
    """Reads a streamed reply, and notes when its first byte was there."""

    async def first_byte_ms(self, question: str) -> float:
        body = _body(question, stream=True)
        head = f"POST /api/chat HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n"
        started = time.perf_counter()
        self._writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        reply = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in reply[:20]:
            raise SystemExit(f"A question was answered {reply[:60]!r}")
        size = await self._reader.readuntil(b"\r\n")
        first_ms = (time.perf_counter() - started) * 1000
        while int(size, 16):
            await self._reader.readexactly(int(size, 16) + 2)
            size = await self._reader.readuntil(b"\r\n")
        await self._reader.readexactly(2)
        return first_ms


def _body(question: str, *, stream: bool = False) -> bytes:
    body = {"question": question, "collection": COLLECTION, "stream": stream}
    return json.dumps(body).encode()


async def ask(client: Client, question: str) -> bytes:
    return await client.request("POST", "/api/chat", _body(question))


async def known_questions(url: str, questions: Sequence[str], wanted: int) -> list[str]:
    """Ask them until so many have been written by the model, and are known therefore."""
    client = Client(url, "")
    await client.open()
    known: list[str] = []
    for question in questions:
        reply = json.loads(await ask(client, question))
        if reply["cache"]["answer"] == "miss" and reply["citations"]:
            known.append(question)
        if len(known) == wanted:
            break
    client.close()
    return known


async def first_bytes(url: str, questions: Sequence[str], before: Any = None) -> dict[str, float]:
    client = StreamClient(url, "")
    await client.open()
    times_ms: list[float] = []
    for question in questions:
        if before is not None:
            before()
        times_ms.append(await client.first_byte_ms(question))
    client.close()
    return {
        "p50_ms": round(median(times_ms), 2),
        "p95_ms": round(quantiles(times_ms, n=20)[18], 2),
    }


async def at_once(url: str, double: OllamaDouble, question: str) -> dict[str, int]:
    clients = [Client(url, "") for _ in range(AT_ONCE)]
    for client in clients:
        await client.open()
    before = double.stats().requests
    double.set(token_seconds=0.02)
    await asyncio.gather(*(ask(client, question) for client in clients))
    double.set(token_seconds=0.0)
    for client in clients:
        client.close()
    return {"questions": AT_ONCE, "generations": double.stats().requests - before}


async def outage(url: str, home: Path, questions: Sequence[str]) -> dict[str, Any]:
    """The same load twice; in the second one Redis is killed after a third of it."""
    clients = [Client(url, "") for _ in range(OUTAGE_CLIENTS)]
    for client in clients:
        await client.open()
    times_ms: list[float] = []
    waiting: Any = iter(())

    async def work(client: Client) -> None:
        for place, question in waiting:
            if place == len(questions) // 3 and killing:
                os.kill(int((home / "run" / "redis.pid").read_text()), signal.SIGKILL)
            started = time.perf_counter()
            await ask(client, question)
            times_ms.append((time.perf_counter() - started) * 1000)

    results: dict[str, float] = {}
    for killing in (False, True):
        times_ms.clear()
        waiting = iter(list(enumerate(questions)))
        # `request` ends the run at any reply that is not 200.
        await asyncio.gather(*(work(client) for client in clients))
        name = "redis_killed" if killing else "redis_well"
        results[f"{name}_p99_ms"] = round(quantiles(times_ms, n=100)[98], 2)
    for client in clients:
        client.close()
    added_ms = results["redis_killed_p99_ms"] - results["redis_well_p99_ms"]
    return {**results, "added_p99_ms": round(added_ms, 2), "not_200": 0}


async def measure(folders: Sequence[Path], home: Path, passages: int, count: int) -> Any:
    corpus = await ensure_corpus(home, folders, passages)
    with running_ollama() as double:
        environment = {"FOOTNOTE_OLLAMA_URLS": f"{double.url}#slots=8"}
        double.set(slots=8)
        server = EmbeddedPostgres(home)
        connection = psycopg.connect(libpq_url(server.start()), autocommit=True)

        def change() -> None:
            connection.execute(
                "UPDATE collections SET generation = generation + 1 WHERE name = %s", [COLLECTION]
            )

        try:
            async with running_service(home, cached=True, **environment) as url:
                asked = read_questions(folders, 4 * count)
                known = await known_questions(url, asked, count)
                if len(known) < count // 2:
                    raise SystemExit(f"Only {len(known)} questions got a cited answer.")
                clients = [Client(url, "") for _ in range(CLIENTS)]
                for client in clients:
                    await client.open()
                asks = [lambda client, one=one: ask(client, one) for one in known * 4]
                control = [lambda client: client.request("GET", "/health/live")] * len(known)
                await first_bytes(url, known)
                result = {
                    "known_questions": len(known),
                    "exact_hit_first_byte": await first_bytes(url, known),
                    "after_a_change_first_byte": await first_bytes(url, known, change),
                    # Else every question would be searched once more in what follows.
                    "known_again_first_byte": await first_bytes(url, [*known, *known]),
                    "hits_with_16_clients": await load(clients, asks),
                    "control_with_16_clients": await load(clients, control),
                    "at_once": await at_once(url, double, f"{known[0]} once more?"),
                    "outage": await outage(url, home, known * 2),
                }
                for client in clients:
                    client.close()
        finally:
            connection.close()
            server.stop()
    return {"corpus": {"passages": corpus["passages"]}, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="the corpus is made of these")
    parser.add_argument("--home", type=Path, required=True, help="where the corpus is, or will be")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    load_average = round(os.getloadavg()[0], 2)
    measuring = measure(arguments.folders, arguments.home, arguments.passages, arguments.questions)
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average_before": load_average,
        },
        **asyncio.run(measuring),
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "cache.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
