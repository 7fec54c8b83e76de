"""What an evaluation found, as tables in a terminal."""

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from evaluation.baseline import Change
from evaluation.metrics import MEASURES
from evaluation.records import latency, mode_estimates, mode_gains
from evaluation.run import Outcome
from evaluation.statistics import Estimate

LEADING = MEASURES[0]
OTHERS = ("R@10", "R@100", "RR")
"""The measures in the tables of a terminal, the first with its interval; files have all of all."""


def outcome_tables(outcome: Outcome) -> list[Table]:
    """A row for each mode, then one for each pair of modes."""
    given = f"{outcome.documents - outcome.failed} documents"
    failed = f" ({outcome.failed} failed)" if outcome.failed else ""
    title = f"{outcome.dataset}: {len(outcome.questions)} questions, {given}{failed}"
    values = _table(title, "mode", LEADING, "95 %", *OTHERS, "p50", "p95 ms")
    for mode, measures in mode_estimates(outcome).items():
        leading = measures[LEADING]
        times = outcome.times_ms.get(mode)
        speed = latency(times) if times else {}
        values.add_row(
            mode,
            f"{leading.mean:.3f}",
            f"{leading.low:.3f}–{leading.high:.3f}",
            *(f"{measures[name].mean:.3f}" for name in OTHERS),
            *(f"{speed[name]:.1f}" if speed else "" for name in ("p50", "p95")),
        )
    gains = mode_gains(outcome)
    if not gains:
        return [values]
    ahead = _table("Ahead of each other", "", LEADING, "95 %", *OTHERS)
    for (mode, other), gain in gains.items():
        ahead.add_row(f"{mode} − {other}", *_gain_cells(gain))
    return [values, ahead]


def change_table(changes: Iterable[Change]) -> Table:
    """What was gained or lost since the baseline."""
    table = _table("Since the baseline", "", "questions", LEADING, "95 %", *OTHERS)
    for change in changes:
        name = f"{change.dataset}, {change.mode}"
        table.add_row(name, str(len(change.questions)), *_gain_cells(change.values))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False,
        header_style="dim",
    )  # fmt: skip
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _gain_cells(gains: Mapping[str, Estimate]) -> list[Text]:
    """Differences; those whose interval holds 0, which may be chance, are dim."""
    leading = gains[LEADING]
    cells = [
        (f"{leading.mean:+.3f}", leading),
        (f"{leading.low:+.3f} to {leading.high:+.3f}", leading),
    ]
    cells += [(f"{gains[name].mean:+.3f}", gains[name]) for name in OTHERS]
    return [Text(words, "" if gain.excludes_zero else "dim") for words, gain in cells]
