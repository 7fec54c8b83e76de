"""What an evaluation found, as values for files, pages and tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import MEASURES
from evaluation.run import Outcome
from evaluation.statistics import Estimate, estimates


def mode_estimates(outcome: Outcome) -> dict[str, dict[str, Estimate]]:
    """Each mode's measures with their intervals, of the same draws of questions."""
    columns = {
        f"{mode} {name}": values
        for mode, scores in outcome.scores.items()
        for name, values in scores.items()
    }
    found = estimates(columns, seed=outcome.seed)
    return {
        mode: {name: found[f"{mode} {name}"] for name in scores}
        for mode, scores in outcome.scores.items()
    }


def compared_modes(outcome: Outcome) -> list[tuple[str, str]]:
    """Pairs worth a difference: the fusion against its legs, models against the fusion."""
    pairs = [("hybrid", "keyword"), ("hybrid", "vector"), ("hybrid", "rrf"), ("rerank", "hybrid")]
    pairs.append(("rewrite", "hybrid"))
    return [pair for pair in pairs if set(pair) <= set(outcome.scores)]


def mode_gains(outcome: Outcome) -> dict[tuple[str, str], dict[str, Estimate]]:
    """By how much the first of each pair of modes is ahead of the second."""
    pairs = compared_modes(outcome)
    columns = {
        f"{pair} {name}": [
            mine - other
            for mine, other in zip(
                outcome.scores[pair[0]][name], outcome.scores[pair[1]][name], strict=True
            )
        ]
        for pair in pairs
        for name in MEASURES
    }
    found = estimates(columns, seed=outcome.seed)
    return {pair: {name: found[f"{pair} {name}"] for name in MEASURES} for pair in pairs}


def latency(times_ms: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.quantile(times_ms, [0.5, 0.95])
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """As JSON values; measures to four digits."""
    found = mode_estimates(outcome)
    return {
        "dataset": outcome.dataset,
        "documents": outcome.documents,
        "failed": outcome.failed,
        "passages": outcome.passages,
        "queries": len(outcome.questions),
        "embedding_model": outcome.embedding_model,
        "version": outcome.version,
        "setup": outcome.setup,
        "seed": outcome.seed,
        "metrics": {
            mode: {name: round(one.mean, 4) for name, one in measures.items()}
            for mode, measures in found.items()
        },
        "intervals": {
            mode: {name: [round(one.low, 4), round(one.high, 4)] for name, one in measures.items()}
            for mode, measures in found.items()
        },
        "gains": {
            f"{mode} - {other}": {name: one.record() for name, one in gains.items()}
            for (mode, other), gains in mode_gains(outcome).items()
        },
        "latency_ms": {
            mode: latency(times) | {"questions": len(times)}
            for mode, times in outcome.times_ms.items()
        },
    }


def write_record(outcome: Outcome, folder: Path) -> Path:
    """`folder/NAME.json`, for a dataset of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.dataset}.json"
    content = json.dumps(outcome_record(outcome), indent=2, ensure_ascii=False)
    path.write_text(content + "\n", "utf-8")
    return path
