"""How fast is a question that was asked before, and what happens when Redis dies?

Hypotheses: over 100,000 passages, on two cores that the API, PostgreSQL, Redis, a model server and
this program share, POST /api/chat with `stream` gives its first byte within 5 ms (95th percentile)
when all layers know it, and within 10 ms when the collection has changed and only the answer is
known. Two API processes serve 600 hits a second. A hundred identical questions at once are one
generation, in one process as in eight; where the process is killed that leads it, they are two at the
most, and whoever asked another process gets the answer. Redis killed in mid-load costs no reply, and no
more than 100 ms at the 99th percentile.

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
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.db.embedded import EmbeddedPostgres
from app.db.session import libpq_url
from benchmarks.search import RESULTS, Client, load, read_questions, rounds_of
from benchmarks.search_corpus import COLLECTION, Service, ensure_corpus, running_services
from tests.doubles.ollama import OllamaDouble, running_ollama

CLIENTS = 16
AT_ONCE = 100
PROCESSES = 8
HEAD_START_SECONDS = 0.2
"""So long before the others one asks, so that his process leads."""
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


async def at_once(urls: Sequence[str], double: OllamaDouble, question: str) -> dict[str, int]:
    """The same question from AT_ONCE clients, spread over the processes."""
    clients = await connected(urls, AT_ONCE)
    before = double.stats().requests
    double.set(token_seconds=0.02)
    await asyncio.gather(*(ask(client, question) for client in clients))
    double.set(token_seconds=0.0)
    return {"questions": AT_ONCE, "generations": double.stats().requests - before}


async def leader_killed(
    services: Sequence[Service], double: OllamaDouble, question: str
) -> dict[str, int]:
    """The same, and the process that leads is killed while the model writes."""
    leader, *others = services
    doomed = await connected([leader.url], 1 + AT_ONCE // len(services))
    clients = await connected([one.url for one in others], AT_ONCE - len(doomed))
    before = double.stats().requests
    double.set(token_seconds=0.1)
    asked = [asyncio.ensure_future(ask(doomed[0], question))]
    await asyncio.sleep(HEAD_START_SECONDS)
    asked += [asyncio.ensure_future(ask(one, question)) for one in doomed[1:]]
    following = [asyncio.ensure_future(ask(one, question)) for one in clients]
    await asyncio.sleep(2 * HEAD_START_SECONDS)
    leader.process.kill()
    # `request` ends the run at any reply that is not 200.
    replies = await asyncio.gather(*following)
    await asyncio.gather(*asked, return_exceptions=True)
    double.set(token_seconds=0.0)
    return {
        "asked_of_others": len(replies),
        "different_answers": len({json.loads(one)["answer"] for one in replies}),
        "generations": double.stats().requests - before,
    }


async def hear_of_the_model(urls: Sequence[str], question: str) -> None:
    """Let each process ask it something; one that has not heard of it for long sends a probe,
    which counts as a generation."""
    for number, client in enumerate(await connected(urls, len(urls))):
        await ask(client, f"{question} And then, {number}?")


async def connected(urls: Sequence[str], count: int) -> list[Client]:
    """Clients with a connection each, spread over the services."""
    clients = [Client(url, "") for url, _ in zip(cycle(urls), range(count), strict=False)]
    for client in clients:
        await client.open()
    return clients


async def outage(url: str, home: Path, questions: Sequence[str]) -> dict[str, Any]:
    """The same load twice; in the second one Redis is killed after a third of it."""
    clients = await connected([url], OUTAGE_CLIENTS)
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
    server = EmbeddedPostgres(home)
    with running_ollama() as double:
        double.set(slots=8)
        try:
            url = server.start()
            environment = {
                "FOOTNOTE_DATABASE_URL": url,
                "FOOTNOTE_OLLAMA_URLS": f"{double.url}#slots=8",
            }
            async with running_services(home, 2, cached=True, **environment) as services:
                urls = [one.url for one in services]
                with psycopg.connect(libpq_url(url), autocommit=True) as connection:
                    result = await measure_hits(urls, connection, folders, count)
                known = result.pop("known")
                await hear_of_the_model(urls, known[0])
                result["at_once"] = await at_once(urls[:1], double, f"{known[0]} once more?")
                result["outage"] = await outage(urls[0], home, known * 2)
            # So that all of them fit into the embedded server's 100 connections.
            environment["FOOTNOTE_DATABASE_POOL_SIZE"] = "3"
            async with running_services(home, PROCESSES, cached=True, **environment) as services:
                urls = [one.url for one in services]
                await hear_of_the_model(urls, known[3])
                result[f"at_once_in_{PROCESSES}_processes"] = {
                    **await at_once(urls, double, f"{known[1]} once more?"),
                    "leader_killed": await leader_killed(
                        services, double, f"{known[2]} once more?"
                    ),
                }
        finally:
            server.stop()
    return {"corpus": {"passages": corpus["passages"]}, **result}


async def measure_hits(
    urls: Sequence[str], connection: psycopg.Connection, folders: Sequence[Path], count: int
) -> dict[str, Any]:
    def change() -> None:
        connection.execute(
            "UPDATE collections SET generation = generation + 1 WHERE name = %s", [COLLECTION]
        )

    async def hits_of(urls: Sequence[str]) -> dict[str, Any]:
        asks = [lambda client, one=one: ask(client, one) for one in known * 4]
        control = [lambda client: client.request("GET", "/health/live")] * len(known)
        # What one process has read from Redis, the next one has still to read.
        await load(await connected(urls, CLIENTS), asks)
        return {
            "hits": await rounds_of(3, await connected(urls, CLIENTS), asks),
            "control": await load(await connected(urls, CLIENTS), control),
        }

    known = await known_questions(urls[0], read_questions(folders, 4 * count), count)
    if len(known) < count // 2:
        raise SystemExit(f"Only {len(known)} questions got a cited answer.")
    await first_bytes(urls[0], known)
    return {
        "known": known,
        "known_questions": len(known),
        "exact_hit_first_byte": await first_bytes(urls[0], known),
        "after_a_change_first_byte": await first_bytes(urls[0], known, change),
        # Else every question would be searched once more in what follows.
        "known_again_first_byte": await first_bytes(urls[0], [*known, *known]),
        f"{CLIENTS}_clients_of_one_process": await hits_of(urls[:1]),
        f"{CLIENTS}_clients_of_two_processes": await hits_of(urls),
    }


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
