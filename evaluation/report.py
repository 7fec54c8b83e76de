"""What an evaluation found, for people and for files."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from evaluation.metrics import MEASURES
from evaluation.run import Outcome


def outcome_table(outcomes: Iterable[Outcome]) -> Table:
    """A row for each dataset and mode."""
    table = Table("dataset", "documents", "passages", "queries", "mode", *MEASURES)
    for outcome in outcomes:
        given = outcome.documents - outcome.failed
        for mode, values in outcome.metrics.items():
            table.add_row(
                outcome.dataset,
                str(given) if not outcome.failed else f"{given} ({outcome.failed} failed)",
                str(outcome.passages),
                str(outcome.queries),
                mode,
                *(f"{values[name]:.4f}" for name in MEASURES),
            )
        table.add_section()
    return table


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """As JSON values; measures to four digits."""
    record = asdict(outcome)
    record["metrics"] = {
        mode: {name: round(value, 4) for name, value in values.items()}
        for mode, values in outcome.metrics.items()
    }
    return record


def write_record(outcome: Outcome, folder: Path) -> Path:
    """`folder/NAME.json`, for a dataset of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.dataset}.json"
    path.write_text(json.dumps(outcome_record(outcome), indent=2) + "\n", "utf-8")
    return path
