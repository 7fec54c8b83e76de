"""Is Footnote's embedding faster than the library whose models it runs?

Hypothesis: on a CPU, bulk embedding of passages is at least 1.5 times as fast as
sentence-transformers' own `encode` on torch, with vectors that agree to a cosine of 0.9999, and a
single query, which a service computes in 8-bit integers, takes at most about 3 ms. In 8-bit integers
(`#int8` behind the model's name) passages are embedded at least 2.5 times as fast, and nDCG@10 of a
search by vectors alone falls by at most 0.5 % of itself.

Control: the same weights, the same texts, the same process and the same cores; both are warm, and
their rounds alternate, so that whatever else the machine does meets both. torch runs as its authors
ship it: its own number of threads, batches of 32, texts sorted by length.

Caveats: one model and the texts of one folder; a GPU is not used. Other work on the machine slows
torch more, because its threads wait for each other within every operation: compare recorded numbers
only when they come from an idle machine. Start-up and the one export of a model are not counted.
What integers gain depends on the processor: one without VNNI instructions gains less. nDCG is of
whole documents, cut where the model stops reading, each pair of models over all of a set's queries;
it does not depend on the machine, so a recorded run without `--sets` keeps what is recorded of it.

    python benchmarks/embedding.py [FOLDER] [--texts 256] [--rounds 5] [--sets SET…] [--record]
"""

import argparse
import asyncio
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from app.config import Settings
from app.embedding.base import Embedder
from app.embedding.loading import (
    open_embedder,
    open_for_questions,
    open_model,
    query_threads,
    usable_cores,
)
from app.embedding.model_folder import INT8, identify, locate_model
from app.embedding.query import QueryEmbedder
from evaluation import metrics
from evaluation.datasets import load_dataset
from ingestion.chunking import split
from ingestion.types import Chunking, ParsedDocument, embedded_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "embedding.json"
CALLERS = 16
QUERIES = (
    "how do I request time off",
    "what happens after a severity one incident",
    "who owns the search product",
    "how to set up a local development environment on a laptop",
    "expense policy",
    "where are the on-call rotations and schedules defined",
)


def read_passages(folder: Path, embedder: Embedder, chunk_tokens: int, count: int) -> list[str]:
    """Up to `count` passages of the folder's Markdown files, as ingestion would embed them."""
    passages: list[str] = []
    for path in sorted(folder.rglob("*.md")):
        parsed = ParsedDocument(path.read_text("utf-8", "replace"), path.stem, "text/markdown")
        chunks = split(parsed, embedder.tokenizer, Chunking(chunk_tokens))
        passages += [embedded_text(parsed.title, chunk) for chunk in chunks]
    if not passages:
        raise SystemExit(f"There are no Markdown files in {folder}.")
    random.Random(0).shuffle(passages)
    return passages[:count]


def per_second(count: int, work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def query_ms(embed: Callable[[list[str]], Any], repeats: int = 20) -> dict[str, float]:
    times: list[float] = []
    for query in QUERIES * repeats:
        started = time.perf_counter()
        embed([query])
        times.append((time.perf_counter() - started) * 1000)
    cuts = quantiles(times, n=20)
    return {"p50_ms": round(median(times), 2), "p95_ms": round(cuts[18], 2)}


async def queries_per_second(embedder: Embedder, threads: int, repeats: int = 25) -> float:
    """What CALLERS callers get from the service's embedder, each asking again when answered."""
    queries = QueryEmbedder(embedder, threads=threads, waiters=CALLERS)

    async def caller(number: int) -> None:
        for turn in range(repeats):
            await queries.embed([QUERIES[(number + turn) % len(QUERIES)]], "query")

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    seconds = time.perf_counter() - started
    queries.close()
    return CALLERS * repeats / seconds


def spread(rates: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(median(rates), 1),
        "lowest": round(min(rates), 1),
        "highest": round(max(rates), 1),
    }


def ndcg_of_pairs(
    folder: Path, exact: Embedder, rounded: Embedder
) -> dict[str, float | dict[str, float]]:
    """nDCG@10 of a judged set by vectors alone: both models for both sides, and one for each."""
    dataset = load_dataset(folder)
    models = {"fp32": exact, "int8": rounded}
    texts = [f"{one.title}\n{one.text}".strip() for one in dataset.documents]
    documents = {name: model.embed(texts, "document") for name, model in models.items()}
    asked = list(dataset.queries)
    queries = {
        name: model.embed([dataset.queries[one] for one in asked], "query")
        for name, model in models.items()
    }

    def ndcg(query_model: str, document_model: str) -> float:
        similarities = queries[query_model] @ documents[document_model].T
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :10]
        run = {
            query_id: [dataset.documents[place].id for place in places]
            for query_id, places in zip(asked, best.tolist(), strict=True)
        }
        judged = {query_id: dataset.judgements[query_id] for query_id in asked}
        return metrics.measure(judged, run, ["nDCG@10"])["nDCG@10"]

    both = {"fp32": ndcg("fp32", "fp32"), "int8": ndcg("int8", "int8")}
    return {
        **{name: round(value, 4) for name, value in both.items()},
        "int8_documents_fp32_queries": round(ndcg("fp32", "int8"), 4),
        "fp32_documents_int8_queries": round(ndcg("int8", "fp32"), 4),
        "change_percent": round(100 * (both["int8"] / both["fp32"] - 1), 2),
    }


def measure(
    folder: Path, texts_count: int, rounds: int, home: Path, sets: Sequence[Path]
) -> dict[str, Any]:
    settings = Settings(home=home, embedding_runtime="onnx")
    ours = open_embedder(settings)
    rounded = open_model(settings, identify(settings.embedding_model + INT8))
    theirs = SentenceTransformer(str(locate_model(settings.embedding_model)), device="cpu")
    texts = read_passages(folder, ours, settings.chunk_tokens, texts_count)
    lengths = [len(spans) for spans in ours.tokenizer.spans(texts)]

    def encode(some: list[str]) -> Any:
        return theirs.encode(some, show_progress_bar=False)

    cosines = np.sum(ours.embed(texts, "document") * encode(texts), axis=1)  # warms both up
    rounded_cosines = np.sum(
        ours.embed(texts, "document") * rounded.embed(texts, "document"), axis=1
    )
    our_rates: list[float] = []
    their_rates: list[float] = []
    rounded_rates: list[float] = []
    for _ in range(rounds):
        rounded_rates.append(per_second(len(texts), lambda: rounded.embed(texts, "document")))
        our_rates.append(per_second(len(texts), lambda: ours.embed(texts, "document")))
        their_rates.append(per_second(len(texts), lambda: encode(texts)))
    exact = open_embedder(settings, threads=1)
    service = open_for_questions(settings, threads=1)
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": usable_cores(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {
            name: version(name) for name in ("onnxruntime", "torch", "sentence-transformers")
        },
        "model": settings.embedding_model,
        "texts": len(texts),
        "tokens_median": median(lengths),
        "rounds": rounds,
        "footnote_texts_per_second": spread(our_rates),
        "sentence_transformers_texts_per_second": spread(their_rates),
        "ratio": round(median(our_rates) / median(their_rates), 2),
        "int8_texts_per_second": spread(rounded_rates),
        "int8_ratio": round(median(rounded_rates) / median(their_rates), 2),
        "int8_cosine_mean": round(float(rounded_cosines.mean()), 4),
        "int8_ndcg@10": {path.name: ndcg_of_pairs(path, ours, rounded) for path in sets},
        "max_cosine_deviation": float(f"{max(0.0, 1.0 - float(cosines.min())):.1e}"),
        "footnote_query": query_ms(lambda some: service.embed(some, "query")),
        "footnote_exact_query": query_ms(lambda some: exact.embed(some, "query")),
        "sentence_transformers_query": query_ms(encode),
        f"queries_per_second_with_{CALLERS}_callers": round(
            asyncio.run(queries_per_second(service, query_threads(settings))), 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs")
    parser.add_argument("--texts", type=int, default=256, help="passages to embed in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each, in turn")
    parser.add_argument("--sets", type=Path, nargs="*", default=[], help="judged sets, for nDCG")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = measure(
            arguments.folder, arguments.texts, arguments.rounds, Path(home), arguments.sets
        )
    print(json.dumps(result, indent=2))
    if arguments.record:
        if not arguments.sets and RESULTS.exists():
            recorded = json.loads(RESULTS.read_text("utf-8"))
            result["int8_ndcg@10"] = recorded.get("int8_ndcg@10", {})
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
