# pyright: basic
"""Trains the reranker: `python -m reranker.training.train OUT SOURCE…` (see README.md beside it).

It learns what the fusion of BM25 and vectors does not know: the score of a passage is its fused
score plus what the network adds, so that no gradient is spent on what the words already tell.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import bm25s
import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reranker.fusion import fuse
from reranker.training.examples import Pool, Question, read_pool

CANDIDATES = 100
"""As many a leg as search takes."""
GROUP = 8
NEAR = 10
"""Wrong passages come mostly from among the best so many."""
PAIR_TOKENS = 160
QUERY_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Group:
    """A question with its candidates, the right one first, and their fused scores."""

    question: str
    places: Sequence[int]
    fused: Sequence[float]


def mine(pool: Pool, model: SentenceTransformer, cache: Path, chance: random.Random) -> list[Group]:
    """Each question with candidates as search would find them.

    Questions whose answer it does not find are left out, and most of the made ones that it answers
    first: there is little to be learnt from either.
    """
    if cache.is_file():
        vectors = np.load(cache)
    else:
        vectors = unit_vectors(model, pool.passages)
        np.save(cache, vectors)
    stop_words = bm25s.tokenize(pool.passages, stopwords="en", show_progress=False)
    index: Any = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(stop_words, show_progress=False)
    questions = unit_vectors(model, [question.text for question in pool.questions])
    groups: list[Group] = []
    for question, vector in zip(pool.questions, questions, strict=True):
        terms = bm25s.tokenize(question.text, stopwords="en", show_progress=False, return_ids=False)
        scores = np.asarray(index.get_scores(terms[0])) if terms[0] else np.zeros(len(vectors))
        group = _group(question, vectors @ vector, scores, chance)
        if group is not None:
            groups.append(group)
    return groups


def _group(
    question: Question, cosines: NDArray[Any], scores: NDArray[Any], chance: random.Random
) -> Group | None:
    best = [np.argpartition(-leg, CANDIDATES)[:CANDIDATES] for leg in (cosines, scores)]
    union = np.union1d(*best)
    fused = fuse([cosines[union].astype(float), scores[union].astype(float)], [1.0, 1.0])
    order = np.argsort(-fused)
    ranked = [int(place) for place in union[order]]
    values = dict(zip(ranked, fused[order].tolist(), strict=True))
    found = [place for place in ranked if place in question.answers]
    if not found or (question.is_made and ranked[0] in question.answers and chance.random() < 0.8):
        return None
    wrong = [place for place in ranked if place not in question.answers]
    near = chance.sample(wrong[:NEAR], min(GROUP - 3, len(wrong)))
    far = chance.sample(wrong[NEAR:60], GROUP - 1 - len(near))
    places = [found[0], *near, *far]
    return Group(question.text, places, [values[place] for place in places])


def unit_vectors(model: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    return np.asarray(
        model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    )


def train(
    groups: list[Group], passages: Sequence[str], base: str, out: Path, *, minutes: float, seed: int
) -> None:
    """Train until the groups or the minutes run out.

    The rate falls to zero with whichever is nearer, so a run that is cut short is a whole run of
    fewer steps.
    """
    torch.manual_seed(seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    weight = torch.nn.Parameter(torch.ones(()))
    head = [*model.classifier.parameters(), weight]
    inner = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
    optimizer = torch.optim.AdamW(
        [{"params": inner, "lr": 4e-5}, {"params": head, "lr": 1e-3}], weight_decay=0.01
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    started, losses = monotonic(), []
    together = 4
    steps = len(groups) // together
    model.train()
    for step in range(steps):
        done = max(step / steps, (monotonic() - started) / (60 * minutes))
        if done >= 1:
            break
        for parameters, rate in zip(optimizer.param_groups, rates, strict=True):
            parameters["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - done)
        batch = groups[step * together : (step + 1) * together]
        pairs = [(group.question, passages[place]) for group in batch for place in group.places]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**encoded(tokenizer, pairs)).logits
        fused = torch.tensor([group.fused for group in batch])
        totals = logits.float().view(len(batch), -1) + weight * fused
        loss = torch.nn.functional.cross_entropy(totals, torch.zeros(len(batch), dtype=torch.long))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            alone = torch.nn.functional.cross_entropy(
                weight * fused, torch.zeros(len(batch), dtype=torch.long)
            )
        losses.append((loss.item(), alone.item()))
        if (step + 1) % 50 == 0:
            recent = np.mean(losses[-200:], axis=0)
            print(
                f"{step + 1}/{steps}: loss {recent[0]:.4f}, of the fusion alone {recent[1]:.4f}, "
                f"its weight {weight.item():.2f}, {monotonic() - started:.0f} s",
                flush=True,
            )
        if (step + 1) % 500 == 0:
            _save(model, tokenizer, weight.item(), out)
    _save(model, tokenizer, weight.item(), out)


def encoded(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Any:
    """Pairs of question and passage as the network reads them, PAIR_TOKENS long at most."""
    return tokenizer(
        _shortened(tokenizer, [question for question, _ in pairs]),
        [passage for _, passage in pairs],
        truncation="only_second",
        max_length=PAIR_TOKENS,
        padding=True,
        return_tensors="pt",
    )


def _shortened(tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """Questions of at most QUERY_TOKENS: whatever is asked, there is room for the passage."""
    ids = tokenizer(questions, truncation=True, max_length=QUERY_TOKENS, add_special_tokens=False)
    return tokenizer.batch_decode(ids["input_ids"])


def _save(model: Any, tokenizer: Any, weight: float, out: Path) -> None:
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps({"fusion_weight": weight}) + "\n", "utf-8")
    model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reranker.")
    parser.add_argument("out", type=Path, help="Folder for the weights.")
    parser.add_argument("sources", nargs="+", type=Path, help="Folders and files of questions.")
    parser.add_argument("--base", required=True, help="The embedding model's weights.")
    parser.add_argument("--start", help="Weights to start from, where not those of --base.")
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    chance = random.Random(options.seed)
    pool = read_pool(options.sources, chance)
    made = sum(question.is_made for question in pool.questions)
    print(f"{len(pool.passages)} passages, {len(pool.questions)} questions, {made} of them made")
    model = SentenceTransformer(options.base, device="cpu")
    model.max_seq_length = 128  # enough to tell a near miss by
    print("mining", flush=True)
    groups = mine(pool, model, options.out / "passages.npy", chance)
    print(f"{len(groups)} questions to learn from", flush=True)
    # A run that goes on from another's weights begins with other questions.
    order = random.Random(f"{options.seed} {options.start}")
    epochs: list[Group] = []
    for _ in range(options.epochs):
        epochs += order.sample(groups, len(groups))
    train(
        epochs,
        pool.passages,
        options.start or options.base,
        options.out,
        minutes=options.minutes,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
