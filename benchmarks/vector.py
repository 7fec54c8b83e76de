"""Does the vector leg find what comparing every vector finds, whatever the scope, and how fast?

Hypothesis: over 100,000 passages the leg has a recall of 0.98 among the first 10; with filters that
leave 50, 10, 1 and 0.1 % of the documents, 0.95 or more, under row-level security; it gives as many
rows as are asked for or match; all that also when 75 % of the rows have been deleted.

Control: the same scope with every vector compared, in the same snapshot. Each scope is also measured
with the index forced and with comparing forced, which shows where one becomes faster than the other
(`app/search/vector.py` decides by COMPARED_CHUNKS and PICKED_CHUNKS). A sweep over `hnsw.ef_search`
shows recall against time; reading as the tables' owner shows the price of the policies.

Caveats: the corpus is made (see `benchmarks/corpus.py`), and the questions are headings of its sources.
Times are of one client in this process; `server_ms` is the processor time of the server's own process,
which other work on the machine disturbs less, and which leaves out helpers that read in parallel.

    python benchmarks/vector.py FOLDER… --passages 100000 --home /tmp/corpus-100k [--record]

`--delete` deletes 75 % of the documents of that home and measures again. It leaves documents, passages
and vectors as the product does, all in one transaction, and postings where they are: this leg does not
read them, and taking them out document by document would take longer than all the rest. The home is of no
use for other measurements afterwards.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from app.access import LOCAL_OWNER, Caller
from app.config import Settings
from app.db.embedded import EmbeddedPostgres
from app.db.session import open_engine
from app.db.snapshot import Snapshots
from app.embedding.loading import open_embedder, usable_cores
from app.search import vector
from app.search.ranking import CANDIDATES
from app.search.scope import allowed_chunks, resolve
from app.search.vector import SETTINGS, find_neighbours

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from benchmarks.search import read_questions
from benchmarks.search_corpus import COLLECTION, ensure_corpus

EF_SEARCH = (40, 100, 150, 200, 300)
DELETED_SHARE = 0.75
WARM_UP = 5
FAR = 10**12

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    name: str
    filters: dict[str, Any]
    collection: str = COLLECTION
    caller: Caller = LOCAL_OWNER


CASES = (
    Case("everything", {}),
    Case("a hundredth in a collection of its own", {}, f"{COLLECTION}-small"),
    Case("groups of a key, 55 %", {}, caller=replace(LOCAL_OWNER, groups=frozenset({"team-1"}))),
    Case("filter 50 %", {"half": True}),
    Case("filter 10 %", {"tenth": True}),
    Case("filter 1 %", {"hundredth": True}),
    Case("filter 0.1 %", {"thousandth": True}),
)


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Only the index, only comparing, or as the product decides."""
    kept = vector.COMPARED_CHUNKS, vector.PICKED_CHUNKS
    if way != "product":
        vector.COMPARED_CHUNKS = vector.PICKED_CHUNKS = 0 if way == "index" else FAR
    try:
        yield
    finally:
        vector.COMPARED_CHUNKS, vector.PICKED_CHUNKS = kept


@dataclass
class Found:
    """What the questions found, in their order; times in milliseconds."""

    chunk_ids: list[list[int]]
    matching: int
    wall_ms: list[float]
    server_ms: list[float]

    def summary(self, exact: "Found | None" = None) -> dict[str, Any]:
        told: dict[str, Any] = {
            "p50_ms": round(median(self.wall_ms), 2),
            "p95_ms": round(float(np.quantile(self.wall_ms, 0.95)), 2),
            "server_ms": round(median(self.server_ms), 2),
        }
        if exact is not None:
            wanted = min(CANDIDATES, exact.matching)
            told["recall_10"] = self._recall(exact, 10)
            told[f"recall_{CANDIDATES}"] = self._recall(exact, CANDIDATES)
            told["rows_as_many_as_match"] = all(len(one) == wanted for one in self.chunk_ids)
        return told

    def _recall(self, exact: "Found", depth: int) -> float:
        shares = [
            len(set(found[:depth]) & set(true[:depth])) / max(1, len(true[:depth]))
            for found, true in zip(self.chunk_ids, exact.chunk_ids, strict=True)
        ]
        return round(float(np.mean(shares)), 4)


async def ask(
    snapshots: Snapshots, case: Case, queries: Vectors, way: str, settings: str = SETTINGS
) -> Found:
    found = Found([], 0, [], [])
    with forced(way):
        for place, query in enumerate([*queries[:WARM_UP], *queries]):
            async with snapshots.open(case.caller.tenant_id, settings) as snapshot:
                scope = await resolve(snapshot, case.caller, [case.collection], case.filters)
                allowed = await allowed_chunks(snapshot, scope) if scope.condition else None
                [(pid,)] = await snapshot.fetch("SELECT pg_backend_pid()")
                before, started = processor_ms(pid), time.perf_counter()
                nearest, _ = await find_neighbours(
                    snapshot, scope, query, CANDIDATES, allowed=allowed
                )
                wall_ms = (time.perf_counter() - started) * 1000
                if place >= WARM_UP:
                    found.wall_ms.append(wall_ms)
                    found.server_ms.append(processor_ms(pid) - before)
                    found.chunk_ids.append(nearest.chunk_ids.tolist())
                found.matching = scope.chunks_count if allowed is None else len(allowed)
    return found


def processor_ms(pid: int) -> float:
    """Time that a process has computed so far (Linux)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


async def measure_cases(snapshots: Snapshots, queries: Vectors) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for case in CASES:
        exact = await ask(snapshots, case, queries, "compared")
        results[case.name] = {
            "matching": exact.matching,
            "product": (await ask(snapshots, case, queries, "product")).summary(exact),
            "index": (await ask(snapshots, case, queries, "index")).summary(exact),
            "compared": exact.summary(),
        }
    return results


async def sweep(snapshots: Snapshots, queries: Vectors) -> dict[str, Any]:
    exact = await ask(snapshots, CASES[0], queries, "compared")
    return {
        str(ef): (await ask(snapshots, CASES[0], queries, "index", with_ef(ef))).summary(exact)
        for ef in EF_SEARCH
    }


def with_ef(ef_search: int) -> str:
    return f"{SETTINGS}; SET LOCAL hnsw.ef_search = {ef_search:d}"


async def delete_most(home: Path, url: str) -> float:
    """Delete three of four documents, their passages and vectors; the seconds of it."""
    engine = open_engine(Settings(home=home), url)
    started = time.perf_counter()
    try:
        async with engine.begin() as connection:
            for statement in DELETIONS:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()
    return round(time.perf_counter() - started, 1)


DELETIONS = (
    f"""
    CREATE TEMPORARY TABLE doomed ON COMMIT DROP AS
    SELECT id FROM documents WHERE abs(hashtext(uri)) % 100 < {DELETED_SHARE * 100:.0f}
    """,  # noqa: S608 - a constant
    """
    DELETE FROM embeddings WHERE chunk_id IN (
      SELECT id FROM chunks WHERE document_id IN (SELECT id FROM doomed))
    """,
    "DELETE FROM chunks WHERE document_id IN (SELECT id FROM doomed)",
    "UPDATE documents SET current_version_id = NULL WHERE id IN (SELECT id FROM doomed)",
    "DELETE FROM document_versions WHERE document_id IN (SELECT id FROM doomed)",
    "DELETE FROM documents WHERE id IN (SELECT id FROM doomed)",
    """
    UPDATE collections AS c SET chunks_count = (
      SELECT count(*) FROM chunks WHERE collection_id = c.id)
    """,
)


async def measure(
    folders: Sequence[Path], home: Path, passages: int, questions: int, *, delete: bool
) -> dict[str, Any]:
    corpus = await ensure_corpus(home, folders, passages)
    settings = Settings(home=home)
    queries = open_embedder(settings).embed(read_questions(folders, questions), "query")
    with EmbeddedPostgres(home) as url:
        guarded = Snapshots(settings, url, pool_size=1)
        trusting = Snapshots(
            settings.model_copy(update={"row_level_security": "off"}), url, pool_size=1
        )
        try:
            results: dict[str, Any] = {
                "ef_search": await sweep(guarded, queries),
                "without_row_level_security": {
                    case.name: (await ask(trusting, case, queries, "product")).summary()
                    for case in CASES
                },
                "scopes": await measure_cases(guarded, queries),
            }
            if delete:
                results["deleted_seconds"] = await delete_most(home, url)
                results["scopes_after_deletion"] = await measure_cases(guarded, queries)
        finally:
            await guarded.close()
            await trusting.close()
    return {"corpus": corpus, **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="documents the corpus is made of")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--home", type=Path, required=True, help="where the corpus is, or is made")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--delete", action="store_true", help="delete 75 %% and measure again")
    parser.add_argument(
        "--record", action="store_true", help=f"write to {RESULTS.relative_to(ROOT)}"
    )
    arguments = parser.parse_args()
    load_average = round(os.getloadavg()[0], 2)
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "questions": arguments.questions,
        **asyncio.run(
            measure(
                arguments.folders,
                arguments.home,
                arguments.passages,
                arguments.questions,
                delete=arguments.delete,
            )
        ),
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"vector_{arguments.passages}.json").write_text(
            json.dumps(result, indent=2) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
