"""Judges a trained reranker: `python -m reranker.training.judge MODEL SET… --base BASE`.

The best twenty of the fusion are ordered anew: by the network alone, and by their fused scores times the
weight that was learnt plus shares of what the network says. Sets are folders in BEIR's form.
"""

# pyright: basic
import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import ir_measures
import numpy as np
import torch
from ir_measures import nDCG
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reranker.fusion import fuse
from reranker.training.examples import read_lines
from reranker.training.train import CANDIDATES, encoded, unit_vectors

RERANKED = 20
SHARES = (0.25, 0.5, 1.0, 2.0)


def judge(
    folder: Path, model: Any, tokenizer: Any, base: SentenceTransformer, weight: float, limit: int
) -> dict[str, float]:
    """NDCG@10 in per cent of each way to order, over the first `limit` judged questions."""
    documents = read_lines(folder / "corpus.jsonl")
    texts = [f"{one.get('title') or ''}\n{one['text']}".strip() for one in documents]
    ids = [str(one["_id"]) for one in documents]
    asked = {str(one["_id"]): one["text"] for one in read_lines(folder / "queries.jsonl")}
    judgements = _judgements(folder, asked, limit)
    vectors = unit_vectors(base, texts)
    questions = unit_vectors(base, [asked[one] for one in judgements])
    index: Any = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for question_id, vector in zip(judgements, questions, strict=True):
        question = asked[question_id]
        terms: Any = bm25s.tokenize(question, stopwords="en", show_progress=False, return_ids=False)
        scores = np.asarray(index.get_scores(terms[0])) if terms[0] else np.zeros(len(ids))
        places, fused = _best(vectors @ vector, scores)
        said = _said(model, tokenizer, question, [texts[place] for place in places])
        orders = {"fusion": fused, "network alone": said}
        orders |= {f"+ {share} of it": weight * fused + share * said for share in SHARES}
        for name, totals in orders.items():
            ranked = places[np.argsort(-totals, kind="stable")]
            found = {ids[place]: float(-rank) for rank, place in enumerate(ranked)}
            runs.setdefault(name, {})[question_id] = found
    return {
        name: 100 * ir_measures.calc_aggregate([nDCG @ 10], judgements, run)[nDCG @ 10]
        for name, run in runs.items()
    }


def _best(cosines: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The places of the fusion's best, and their fused scores."""
    most = min(CANDIDATES, len(scores) - 1)
    union = np.union1d(*(np.argpartition(-leg, most)[:most] for leg in (cosines, scores)))
    fused = fuse([cosines[union].astype(float), scores[union].astype(float)], [1.0, 1.0])
    order = np.argsort(-fused, kind="stable")[:RERANKED]
    return union[order], fused[order]


def _said(model: Any, tokenizer: Any, question: str, texts: Sequence[str]) -> NDArray[Any]:
    with torch.no_grad():
        pairs = encoded(tokenizer, [(question, text) for text in texts])
        return model(**pairs).logits[:, 0].numpy().astype(float)


def _judgements(folder: Path, asked: dict[str, str], limit: int) -> dict[str, dict[str, int]]:
    judgements: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in list(csv.reader(file, delimiter="\t"))[1:]:
            if row[0] in asked:
                judgements.setdefault(row[0], {})[row[1]] = int(float(row[2]))
    return dict(list(judgements.items())[:limit])


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a trained reranker.")
    parser.add_argument("model", type=Path, help="What train.py wrote.")
    parser.add_argument("sets", nargs="+", type=Path, help="Folders of judged questions.")
    parser.add_argument("--base", required=True, help="The embedding model's weights.")
    parser.add_argument("--limit", type=int, default=200, help="Questions of a set, at most.")
    options = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    weight = json.loads((options.model / "training.json").read_text("utf-8"))["fusion_weight"]
    base = SentenceTransformer(options.base, device="cpu")
    means: dict[str, list[float]] = {}
    for folder in options.sets:
        values = judge(folder, model, tokenizer, base, weight, options.limit)
        for name, value in values.items():
            means.setdefault(name, []).append(value)
        print(folder.name, {name: round(value, 1) for name, value in values.items()}, flush=True)
    print("mean", {name: round(float(np.mean(values)), 1) for name, values in means.items()})


if __name__ == "__main__":
    main()
