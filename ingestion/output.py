"""What the command `ingest` prints: its report for people or as JSON, and what went wrong."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta

import typer
from rich.console import Console
from rich.text import Text

from app.errors import FootnoteError
from ingestion.estimate import Estimate, Range
from ingestion.runner import Order, Report


def tell(report: Report, order: Order, *, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "collection": order.collection,
                    "dry_run": order.is_rehearsal,
                    **report.counts,
                    "chunks": report.chunks,
                    "embedded": report.embedded,
                    **({"estimate": asdict(report.estimate)} if report.estimate else {}),
                    "failures": [
                        {"path": failure.path, "reason": failure.reason}
                        for failure in report.failures
                    ],
                    "took_ms": round(report.took_seconds * 1000, 1),
                },
                ensure_ascii=False,
            )
        )
        return
    for failure in report.failures:
        typer.echo(f"failed: {failure.path}: {failure.reason}", err=True)
    counts: dict[str, int] = {**report.counts}
    if order.is_rehearsal:
        typer.echo("This is what would be done; nothing was changed.", err=True)
    else:
        counts |= {"chunks": report.chunks, "embedded": report.embedded}
    typer.echo(", ".join(f"{name} {count}" for name, count in counts.items()))
    if report.estimate is not None:
        for line in _told(report.estimate):
            typer.echo(line)


def _told(estimate: Estimate) -> Iterator[str]:
    def count(number: int) -> str:
        return f"{number:,}"

    def duration(seconds: int) -> str:
        return f"{timedelta(seconds=seconds)}"

    def size(size_bytes: int) -> str:
        return f"{size_bytes / 1024**2:,.1f} MiB"

    yield (
        f"Estimated from {estimate.sampled_documents} of {estimate.documents} documents"
        " (likely; at least to at most):"
    )
    shown: list[tuple[str, Range, Callable[[int], str]]] = [
        ("chunks", estimate.chunks, count),
        ("to be embedded", estimate.embedded, count),
        ("time", estimate.seconds, duration),
        ("in the database", estimate.storage_bytes, size),
    ]
    for name, figures, tell in shown:
        yield f"  {name:<16}{tell(figures.likely)} ({tell(figures.low)} to {tell(figures.high)})"


def complain(error: FootnoteError) -> None:
    output = Console(stderr=True, highlight=False, soft_wrap=True)
    output.print(Text.assemble(("Error: ", "bold red"), error.detail))
    output.print(Text.assemble(("What to do: ", "bold"), error.hint))
