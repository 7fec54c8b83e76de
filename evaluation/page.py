"""The report of an evaluation: one page that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from evaluation.baseline import Change
from evaluation.charts import (
    forest_row,
    interval_bar,
    round_up,
    sorted_differences,
    time_strip,
)
from evaluation.metrics import MEASURES
from evaluation.records import latency, mode_estimates, mode_gains
from evaluation.run import RRF, Found, Outcome
from evaluation.statistics import Estimate, difference

WORST_SHOWN = 20
EXPECTED_SHOWN = 3
TEXT_SHOWN = 240
TIMES_SHOWN = 0.99

MEASURE_WORDS = {
    "nDCG@10": "nDCG@10: how good the order of the first ten is",
    "R@5": "Recall at 5: share of what is relevant among the first five",
    "R@10": "Recall at 10",
    "R@20": "Recall at 20",
    "R@100": "Recall at 100",
    "RR": "Reciprocal rank (MRR): 1 ÷ the place of the first that is relevant",
}
MODE_WORDS = {
    "keyword": "keyword (BM25)",
    "vector": "vector",
    RRF: "RRF of both",
    "hybrid": "hybrid",
    "rewrite": "hybrid, query rewritten",
    "rerank": "hybrid, reranked",
}
LEADING = MEASURES[0]


@dataclass(frozen=True, slots=True)
class _Row:
    """A label, its plot, and the value in words; `main` is what the eye should find."""

    label: str
    plot: Markup
    value: str
    interval: str = ""
    main: bool = False


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    rows: list[_Row]


@dataclass(frozen=True, slots=True)
class _Differences:
    title: str
    reach: str
    plot: Markup
    words: str


@dataclass(frozen=True, slots=True)
class _Worst:
    question: str
    score: float
    first: str
    expected: list[str]
    more_expected: int
    found: list[Found]


def write_page(outcomes: Sequence[Outcome], since: Sequence[Sequence[Change]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(outcomes, since), "utf-8")


def render(outcomes: Sequence[Outcome], since: Sequence[Sequence[Change]]) -> str:
    """The page as HTML; every text of documents and questions is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evaluation"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sections = [_section(one, list(change)) for one, change in zip(outcomes, since, strict=True)]
    return environment.get_template("report.html").render(
        sections=sections, written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    )


def _section(outcome: Outcome, since: list[Change]) -> dict[str, Any]:
    found = mode_estimates(outcome)
    main = outcome.main_mode
    order = [mode for mode in MODE_WORDS if mode in found]
    return {
        "name": outcome.dataset,
        "questions": len(outcome.questions),
        "documents": outcome.documents - outcome.failed,
        "failed": outcome.failed,
        "passages": outcome.passages,
        "main": MODE_WORDS[main],
        "leading": found[main][LEADING],
        "measures": [
            _Panel(
                MEASURE_WORDS[name],
                [_measure_row(mode, name, found[mode][name], mode == main) for mode in order],
            )
            for name in MEASURES
        ],
        "gains": _gain_panel("Differences in nDCG@10, question by question", _pairs(outcome)),
        "since": _since_panels(since),
        "differences": _differences(outcome, since),
        "times": _times(outcome, order),
        "worst": _worst(outcome),
        "setup": _setup(outcome),
    }


def _measure_row(mode: str, name: str, value: Estimate, is_main: bool) -> _Row:
    words = MODE_WORDS[mode]
    interval = f"{value.low:.3f}–{value.high:.3f}"
    label = f"{words}: {name} {value.mean:.3f}, 95 % interval {interval}"
    return _Row(words, interval_bar(value, label), f"{value.mean:.3f}", interval, is_main)


def _pairs(outcome: Outcome) -> dict[str, Estimate]:
    return {
        f"{MODE_WORDS[mode]} − {MODE_WORDS[other]}": gains[LEADING]
        for (mode, other), gains in mode_gains(outcome).items()
    }


def _gain_panel(title: str, gains: Mapping[str, Estimate]) -> _Panel | None:
    if not gains:
        return None
    reach = round_up(max(max(abs(one.low), abs(one.high)) for one in gains.values()))
    rows = [
        _Row(
            label,
            forest_row(gain, reach, f"{label}: {signed(gain.mean)}, 95 % {_span(gain)}"),
            signed(gain.mean),
            _span(gain),
            gain.excludes_zero,
        )
        for label, gain in gains.items()
    ]
    return _Panel(f"{title} (from {signed(-reach, 2)} to {signed(reach, 2)})", rows)


def _since_panels(since: Sequence[Change]) -> list[_Panel]:
    panels = [
        _gain_panel(
            f"Since the baseline, {MODE_WORDS[change.mode]}, {len(change.questions)} questions",
            change.values,
        )
        for change in since
    ]
    return [panel for panel in panels if panel is not None]


def _differences(outcome: Outcome, since: Sequence[Change]) -> list[_Differences]:
    """The main mode against its baseline, and against the best of the legs."""
    plots = [
        _difference_plot(f"{MODE_WORDS[one.mode]} − the baseline", one.gains, outcome.seed)
        for one in since
        if one.mode == outcome.main_mode
    ]
    scores = {mode: values[LEADING] for mode, values in outcome.scores.items()}
    legs = [mode for mode in ("keyword", "vector") if mode in scores]
    main = outcome.main_mode
    if legs and main not in legs:
        best = max(legs, key=lambda leg: fmean(scores[leg]))
        gains = [mine - other for mine, other in zip(scores[main], scores[best], strict=True)]
        title = f"{MODE_WORDS[main]} − {MODE_WORDS[best]}, the better leg"
        plots.append(_difference_plot(title, gains, outcome.seed))
    return plots


def _difference_plot(title: str, gains: Sequence[float], seed: int) -> _Differences:
    ahead, behind = sum(one > 0 for one in gains), sum(one < 0 for one in gains)
    mean = difference(gains, [0.0] * len(gains), seed=seed)
    words = (
        f"ahead on {ahead}, behind on {behind}, equal on {len(gains) - ahead - behind};"
        f" on average {signed(mean.mean)} ({_span(mean)})"
    )
    reach = round_up(max(map(abs, gains)))
    plot = sorted_differences(gains, reach, f"{title}: {words}")
    return _Differences(title, f"{reach:g}", plot, words)


def _times(outcome: Outcome, order: Sequence[str]) -> dict[str, Any] | None:
    if not any(outcome.times_ms.values()):
        return None
    times = {mode: outcome.times_ms[mode] for mode in order if mode in outcome.times_ms}
    longest = max(float(np.quantile(one, TIMES_SHOWN)) for one in times.values())
    full = round_up(longest)
    rows: list[dict[str, Any]] = []
    for mode, taken in times.items():
        speed = latency(taken)
        words = MODE_WORDS[mode]
        label = f"{words}: p50 {speed['p50']} ms, p95 {speed['p95']} ms"
        rows.append({"label": words, "plot": time_strip(taken, full, label), **speed})
    return {"full": full, "rows": rows, "questions": max(map(len, times.values()))}


def _worst(outcome: Outcome) -> list[_Worst]:
    """The questions of the lowest nDCG@10 in the main mode; then by the first relevant place."""
    main = outcome.main_mode
    scores = outcome.scores[main]
    places = sorted(
        range(len(outcome.questions)),
        key=lambda place: (scores[LEADING][place], scores["RR"][place]),
    )
    query_ids = list(outcome.questions)
    worst: list[_Worst] = []
    for place in places[:WORST_SHOWN]:
        if scores[LEADING][place] >= 1:
            break
        query_id = query_ids[place]
        expected = outcome.expected.get(query_id, [])
        reciprocal = scores["RR"][place]
        worst.append(
            _Worst(
                question=_shortened(outcome.questions[query_id]),
                score=scores[LEADING][place],
                first=f"place {round(1 / reciprocal)}" if reciprocal else "not found",
                expected=[_shortened(one) for one in expected[:EXPECTED_SHOWN]],
                more_expected=max(0, len(expected) - EXPECTED_SHOWN),
                found=[
                    Found(_shortened(one.title), _shortened(one.text), one.relevant)
                    for one in outcome.found.get(query_id, [])
                ],
            )
        )
    return worst


def _setup(outcome: Outcome) -> dict[str, str]:
    told = {"embedding model": outcome.embedding_model, "version": outcome.version}
    told |= {key: _words(value) for key, value in outcome.setup.items() if value not in (None, {})}
    return told | {"seed": str(outcome.seed)}


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN].rstrip()}…"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _span(value: Estimate) -> str:
    return f"{signed(value.low)} to {signed(value.high)}"
