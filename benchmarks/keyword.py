"""What does the keyword leg cost at 100,000 and at 1,000,000 passages, and against ts_rank?

Hypothesis: exact BM25 over packed postings answers three common words among a million passages in
40 ms at the 95th percentile, and ten times as fast as ts_rank over a GIN index where both have
100,000; skipping by block maxima would save nothing.

Passages are those of benchmarks/corpus.py, made from the given folders; of them only the postings
are loaded (and for ts_rank the texts). Three kinds of queries of three words: `rare` (in at
most 0.02 % of the passages), `common` (of the 50 most frequent terms), `mixed` (one of each and one
between 0.1 and 1 %). Five common words and whole titles of the sources show where it grows to.
Timed is what a search does: read the postings, score all of them, take the best 100.

ts_rank gets the same words joined by OR, as BM25 takes them, the same connection and the best 100;
`all words` is its plain reading, where every word must occur. Update is an edit: the postings of a
document of ten passages out, and as many in, in one transaction.

`must be read` is what block maxima would leave at their best, with the hundredth score known before
the first posting is read: the share of a query's postings that lie in blocks of so many neighbouring
passages whose maxima add up to that score.

Processor time is that of this process and of PostgreSQL; other work on the machine moves it less
than the time on the clock. Caveats: the most frequent words are more even than in one subject's
documents; every word of the sources becomes more frequent with the size; all is in memory.

    python -m benchmarks.keyword FOLDER… --cache /tmp/cache [--passages 100000 1000000] [--record]
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import DEFAULT_TENANT_ID, LOCAL_OWNER
from app.config import Settings
from app.db.documents import reserve_chunk_ids
from app.db.embedded import EmbeddedPostgres
from app.db.postings import ChunkTerms, add_postings, remove_postings
from app.db.schema import migrate
from app.db.session import open_engine
from app.db.snapshot import Snapshot, Snapshots
from app.search.keyword import K1, B, inverse_document_frequency
from app.search.matching import Matches, find_matches
from app.search.query import ParsedQuery
from app.search.ranking import CANDIDATES
from app.search.scope import Scope, resolve
from app.search.vector import SETTINGS
from app.terms import extract_terms
from benchmarks.corpus import Corpus
from benchmarks.keyword_index import Index, load_index, made_corpus, texts_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "keyword.json"
QUERIES = 60
EDITS = 10
BLOCK_PASSAGES = (64, 512, 8192)


def make_queries(index: Index, corpus: Corpus) -> dict[str, list[str]]:
    """Words that are their own terms, so that BM25 and ts_rank are asked the same."""
    shares = index.frequencies / index.chunks_count
    order = np.argsort(-shares, kind="stable")
    words = [
        (term, shares[place])
        for place in order.tolist()
        if (term := index.terms[place]).isalpha()
        and len(term) > 2
        and extract_terms(term) == [term]
    ]
    common = [word for word, _ in words[:50]]
    middle = [word for word, share in words if 0.001 < share < 0.01]
    rare = [word for word, share in words if share <= 0.0002]
    random = np.random.default_rng(0)

    def drawn(*kinds: list[str]) -> list[str]:
        return [
            " ".join(dict.fromkeys(str(random.choice(kind)) for kind in kinds))
            for _ in range(QUERIES)
        ]

    titles = [title for title in corpus.sources.titles if len(title.split()) > 3]
    return {
        "rare": drawn(rare, rare, rare),
        "mixed": drawn(common, middle, rare),
        "common": drawn(common, common, common),
        "five common": drawn(*[common] * 5),
        "titles": [str(title) for title in random.choice(titles, QUERIES)],
    }


class Clock:
    """Time on the clock of each call, and of the processors over all."""

    def __init__(self, home: Path) -> None:
        server = int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        self._processes = [psutil.Process(), *psutil.Process(server).children()]
        self._before = self._used()
        self.times_ms: list[float] = []

    def _used(self) -> float:
        return sum(sum(one.cpu_times()[:2]) for one in self._processes if one.is_running())

    def figures(self) -> dict[str, float]:
        return {
            "p50_ms": round(median(self.times_ms), 1),
            "p95_ms": round(float(np.quantile(self.times_ms, 0.95)), 1),
            "processor_ms": round(1000 * (self._used() - self._before) / len(self.times_ms), 1),
        }


async def ask(snapshot: Snapshot, scope: Scope, query: str) -> Matches:
    matches = await find_matches(snapshot, scope, ParsedQuery(query), None)
    matches.scores.top(CANDIDATES)
    return matches


async def time_queries(
    snapshot: Snapshot, home: Path, queries: Sequence[str], rounds: int
) -> dict[str, Any]:
    scope = await resolve(snapshot, LOCAL_OWNER, ["corpus"], {})
    found = [await ask(snapshot, scope, query) for query in queries]  # the warm-up
    each: list[dict[str, float]] = []
    for _ in range(rounds):
        clock = Clock(home)
        for query in queries:
            started = time.perf_counter()
            await ask(snapshot, scope, query)
            clock.times_ms.append((time.perf_counter() - started) * 1000)
        each.append(clock.figures())
    read = [sum(map(len, matches.postings.values())) for matches in found]
    return {
        **{name: median(one[name] for one in each) for name in each[0]},
        "postings_read": round(float(np.mean(read))),
        "must_be_read": must_be_read(found[:10], scope),
        "rounds": each,
    }


def must_be_read(found: Sequence[Matches], scope: Scope) -> dict[str, float]:
    """What perfect block maxima would leave of the postings, by the blocks' size."""
    shares: dict[str, list[float]] = {f"blocks of {size}": [] for size in BLOCK_PASSAGES}
    for matches in found:
        best = matches.scores.top(CANDIDATES).scores
        if len(best) < CANDIDATES:
            continue
        lists = list(matches.postings.values())
        slope = K1 * B * scope.chunks_count / scope.terms_count
        impacts = [
            inverse_document_frequency(scope.chunks_count, len(listed))
            * listed.occurrences
            / (listed.occurrences + K1 * (1 - B) + slope * listed.lengths)
            for listed in lists
        ]
        first = int(matches.scores.chunk_ids[0])
        for size in BLOCK_PASSAGES:
            blocks = [(listed.chunk_ids - first) // size for listed in lists]
            bounds = np.zeros(1 + max(int(block[-1]) for block in blocks))
            for block, impact in zip(blocks, impacts, strict=True):
                most = np.zeros_like(bounds)
                np.maximum.at(most, block, impact)
                bounds += most
            kept = sum(int((bounds[block] >= best[-1]).sum()) for block in blocks)
            shares[f"blocks of {size}"].append(kept / sum(map(len, blocks)))
    return {name: round(float(np.mean(found)), 3) for name, found in shares.items() if found}


async def time_edits(
    engine: AsyncEngine, home: Path, collection_id: int, index: Index, corpus: Corpus
) -> dict[str, float]:
    """Of documents all over the collection: those of ten passages, and ten new ones for them."""
    first = int(index.packed.min()) >> 24
    documents: list[tuple[int, list[list[str]]]] = []
    for document in corpus:
        if len(document.passages) == 10:
            documents.append((first, document.terms))
        first += len(document.passages)
    clock = Clock(home)
    for place in np.linspace(0, len(documents) - 1, EDITS).astype(int).tolist():
        old, terms = documents[place]
        started = time.perf_counter()
        async with engine.begin() as connection:
            await remove_postings(
                connection, collection_id, sorted({t for one in terms for t in one}), old, old + 9
            )
            new = await reserve_chunk_ids(connection, 10)
            chunks = [ChunkTerms(new + n, one) for n, one in enumerate(terms)]
            await add_postings(connection, collection_id, chunks)
        clock.times_ms.append((time.perf_counter() - started) * 1000)
    return clock.figures()


async def time_ts_rank(
    engine: AsyncEngine, home: Path, corpus: Corpus, queries: Sequence[str]
) -> dict[str, Any]:
    started = time.perf_counter()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE UNLOGGED TABLE plain (id bigserial, t text)"))
        driver: Any = (await connection.get_raw_connection()).driver_connection
        async with driver.cursor() as cursor, cursor.copy("COPY plain (t) FROM STDIN") as copy:
            for one in texts_of(corpus):
                await copy.write_row((one,))
        await connection.execute(
            text("CREATE UNLOGGED TABLE texts AS SELECT id, to_tsvector('english', t) v FROM plain")
        )
        await connection.execute(text("CREATE INDEX texts_v ON texts USING gin (v)"))
    async with engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE texts"))
        size = await connection.execute(text("SELECT pg_total_relation_size('texts')"))
        result: dict[str, Any] = {
            "bytes_per_chunk": round(size.scalar_one() / corpus.count),
            "build_s": round(time.perf_counter() - started, 1),
        }
        driver = (await connection.get_raw_connection()).driver_connection
        snapshot = Snapshot(driver)
        for name, joint in (("any word", " | "), ("all words", " & ")):
            clock = Clock(home)
            for query in queries[:20]:
                asked = {"query": joint.join(query.split()), "limit": CANDIDATES}
                started = time.perf_counter()
                await snapshot.fetch(_TS_RANK, asked)
                clock.times_ms.append((time.perf_counter() - started) * 1000)
            result[name] = clock.figures()
    return result


_TS_RANK = """
    SELECT id, ts_rank(v, to_tsquery('english', %(query)s)) AS rank FROM texts
    WHERE v @@ to_tsquery('english', %(query)s) ORDER BY rank DESC LIMIT %(limit)s
"""


async def measure(
    folders: Sequence[Path], cache: Path, count: int, rounds: int, *, against: bool
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as url:
        home = Path(folder)
        migrate(url)
        settings = Settings(home=home, log_level="warning")
        engine, snapshots = open_engine(settings, url), Snapshots(settings, url)
        try:
            corpus = made_corpus(folders, cache, count)
            started = time.perf_counter()
            collection_id, index = await load_index(engine, corpus, "corpus")
            build_seconds = time.perf_counter() - started
            async with engine.connect() as opened:
                connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
                await connection.execute(text("VACUUM ANALYZE"))
                size = await connection.execute(text("SELECT pg_total_relation_size('postings')"))
                bytes_per_chunk = round(size.scalar_one() / index.chunks_count)
            queries = make_queries(index, corpus)
            result: dict[str, Any] = {
                "build_s": round(build_seconds, 1),
                "bytes_per_chunk": bytes_per_chunk,
                "postings_per_chunk": round(len(index.packed) / index.chunks_count, 1),
            }
            async with snapshots.open(DEFAULT_TENANT_ID, SETTINGS) as snapshot:
                for kind, asked in queries.items():
                    result[kind] = await time_queries(snapshot, home, asked, rounds)
            if against:
                plain = await time_ts_rank(engine, home, corpus, queries["common"])
                result["ts_rank, common"] = plain
                for reading in ("any word", "all words"):
                    result[f"times as fast as ts_rank, {reading}"] = {
                        name: round(plain[reading][name] / result["common"][name], 1)
                        for name in ("p50_ms", "p95_ms", "processor_ms")
                    }
            result["edit of ten passages"] = await time_edits(
                engine, home, collection_id, index, corpus
            )
            return result
        finally:
            await snapshots.close()
            await engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="documents to recombine")
    parser.add_argument("--cache", type=Path, required=True, help="keeps what is made of them")
    parser.add_argument("--passages", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ts-rank-up-to", type=int, default=100_000, help="compare at sizes up to this one"
    )
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "documents": [folder.name for folder in arguments.folders],
    }
    for count in arguments.passages:
        result[f"{count} passages"] = asyncio.run(
            measure(
                arguments.folders,
                arguments.cache,
                count,
                arguments.rounds,
                against=count <= arguments.ts_rank_up_to,
            )
        )
        print(json.dumps(result[f"{count} passages"], indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
