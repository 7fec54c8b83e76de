"""The results of many sets in one table, in Markdown: for pages such as evaluation/README.md."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from app.errors import InvalidInput
from evaluation.metrics import MEASURES
from evaluation.run import RRF

COLUMNS = {
    "keyword": "BM25",
    "vector": "vectors",
    RRF: "RRF",
    "hybrid": "hybrid",
    "rewrite": "rewritten",
    "rerank": "reranked",
}
LEADING = MEASURES[0]


def load_records(folder: Path) -> list[dict[str, Any]]:
    """What `footnote eval run --results` wrote, by name; other files are left alone."""
    records: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            value: object = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{path} cannot be read: {error}.", hint="Name a folder of --results."
            ) from None
        if isinstance(value, dict) and {"metrics", "intervals"} <= set(
            cast("dict[str, Any]", value)
        ):
            records.append(cast("dict[str, Any]", value))
    if not records:
        raise InvalidInput(
            f"{folder} holds no results.",
            hint="Make some with `footnote eval run … --results DIR`.",
        )
    return records


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """nDCG@10 of each set and mode with its interval; the best of a set is bold."""
    modes = [mode for mode in COLUMNS if any(mode in one["metrics"] for one in records)]
    return "\n".join(_lines(records, modes))


def _lines(records: Sequence[dict[str, Any]], modes: Sequence[str]) -> Iterator[str]:
    yield f"| | documents | questions | {' | '.join(COLUMNS[mode] for mode in modes)} | hybrid p50 |"
    yield "|---" * (len(modes) + 4) + "|"
    for one in records:
        best = max(values[LEADING] for values in one["metrics"].values())
        cells = [_cell(one, mode, best) for mode in modes]
        speed = one["latency_ms"].get("hybrid")
        took = f"{speed['p50']:.0f} ms" if speed else ""
        given = one["documents"] - one["failed"]
        yield (
            f"| {one['dataset']} | {given:,} | {one['queries']:,} | {' | '.join(cells)} | {took} |"
        )
    means = [_mean(records, mode) for mode in modes]
    yield f"| mean of the sets | | | {' | '.join(means)} | |"


def _cell(record: dict[str, Any], mode: str, best: float) -> str:
    if mode not in record["metrics"]:
        return ""
    value = record["metrics"][mode][LEADING]
    low, high = record["intervals"][mode][LEADING]
    shown = f"**{value:.3f}**" if value == best else f"{value:.3f}"
    return f"{shown} <sub>{low:.3f}–{high:.3f}</sub>"


def _mean(records: Sequence[dict[str, Any]], mode: str) -> str:
    values = [one["metrics"][mode][LEADING] for one in records if mode in one["metrics"]]
    return f"{sum(values) / len(values):.3f}" if len(values) == len(records) else ""
