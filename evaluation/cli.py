"""`footnote eval`: how well does a running Footnote find, by judged questions."""

import asyncio
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from evaluation.answers import Row
    from evaluation.run import Outcome, Tell


class Mode(StrEnum):
    HYBRID = "hybrid"
    VECTOR = "vector"
    KEYWORD = "keyword"


app = typer.Typer(help="Measure how well a running Footnote finds.", no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Measure how well a running Footnote finds."""


@app.command("run")
def run_datasets(
    datasets: Annotated[
        list[Path],
        typer.Argument(help="Folders with corpus.jsonl, queries.jsonl and qrels/.", metavar="DIR…"),
    ],
    url: Annotated[
        str, typer.Option(help="The service's address.", metavar="URL")
    ] = "http://127.0.0.1:8008",
    api_key: Annotated[
        str | None,
        typer.Option(envvar="FOOTNOTE_API_KEY", help="An API key.", metavar="KEY"),
    ] = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(help="Only this mode; may be repeated.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Which of the judgements in qrels/.")] = "test",
    results: Annotated[
        Path | None,
        typer.Option(help="Write DIR/NAME.json for each dataset.", metavar="DIR"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the collections that are made.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ingest datasets into collections of their own, search them in each mode, and measure.

    A document scores as its best passage does. Everything goes through the HTTP API, as it would
    for any client.
    """
    from evaluation.report import (  # noqa: PLC0415 - `footnote` loads this file for every command
        outcome_record,
        outcome_table,
        write_record,
    )

    modes = [one.value for one in mode or Mode]
    outcomes = asyncio.run(_run_all(datasets, split, url, api_key, modes, keep, as_json))
    if results is not None:
        for outcome in outcomes:
            write_record(outcome, results)
    if as_json:
        typer.echo(json.dumps({"outcomes": [outcome_record(outcome) for outcome in outcomes]}))
    else:
        Console().print(outcome_table(outcomes))


@app.command("answers")
def ask_questions(
    sets: Annotated[
        list[Path],
        typer.Argument(help="Folders as for `run`, or files in the form of SQuAD.", metavar="SET…"),
    ],
    url: Annotated[
        str, typer.Option(help="The service's address.", metavar="URL")
    ] = "http://127.0.0.1:8008",
    api_key: Annotated[
        str | None,
        typer.Option(envvar="FOOTNOTE_API_KEY", help="An API key.", metavar="KEY"),
    ] = None,
    questions: Annotated[int, typer.Option(help="How many of each set, at most.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask each set's questions of its own documents and of the others': answered, or declined?"""
    from evaluation.answers import answers_table  # noqa: PLC0415 - as above

    rows = asyncio.run(_ask_all(sets, url, api_key, questions, seed, as_json))
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        Console().print(answers_table(rows))


@app.command("chunking")
def compare_chunking(
    folder: Annotated[
        Path,
        typer.Argument(help="A folder with questions_df.csv and corpora/.", metavar="FOLDER"),
    ],
    limit: Annotated[
        int | None,
        typer.Option(help="How many questions of each corpus, at most.", min=1, show_default=False),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Write DIR/chunking.json.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the passages that texts are cut into, by the evidence found in the best five.

    Needs no running service: texts are cut, embedded and searched in this process.
    """
    from app.config import load_settings  # noqa: PLC0415 - as above
    from app.embedding.loading import open_embedder  # noqa: PLC0415 - as above
    from evaluation.chunking import (  # noqa: PLC0415 - as above
        compare,
        comparison_record,
        comparison_tables,
        load_evidence,
    )
    from ingestion.types import Chunking  # noqa: PLC0415 - as above

    corpora, questions = load_evidence(folder, limit)
    settings = load_settings()
    embedder = open_embedder(settings)
    with _progress("passages", is_quiet=as_json) as tell:
        found = compare(embedder, Chunking(settings.chunk_tokens), corpora, questions, tell)
    record = {
        "questions": len(questions),
        "embedding_model": embedder.name,
        "comparisons": comparison_record(found),
    }
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        (results / "chunking.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    if as_json:
        typer.echo(json.dumps(record))
    else:
        for table in comparison_tables(found):
            Console().print(table)


async def _ask_all(
    paths: list[Path], url: str, api_key: str | None, questions: int, seed: int, is_quiet: bool
) -> "list[Row]":
    from evaluation.answers import load_questions, measure_answers  # noqa: PLC0415 - as above
    from evaluation.service import open_service  # noqa: PLC0415 - as above

    sets = [load_questions(path) for path in paths]
    async with open_service(url, api_key) as service:
        with _progress("answers", is_quiet=is_quiet) as tell:
            return await measure_answers(service, sets, questions, seed, tell)


async def _run_all(
    folders: list[Path],
    split: str,
    url: str,
    api_key: str | None,
    modes: list[str],
    keep: bool,
    is_quiet: bool,
) -> "list[Outcome]":
    from evaluation.datasets import load_dataset  # noqa: PLC0415 - as above
    from evaluation.run import run  # noqa: PLC0415 - as above
    from evaluation.service import open_service  # noqa: PLC0415 - as above

    datasets = [load_dataset(folder, split) for folder in folders]
    outcomes: list[Outcome] = []
    async with open_service(url, api_key) as service:
        for dataset in datasets:
            with _progress(dataset.name, is_quiet=is_quiet) as tell:
                outcomes.append(await run(service, dataset, modes, tell, keep=keep))
    return outcomes


@contextmanager
def _progress(name: str, *, is_quiet: bool) -> "Generator[Tell]":
    """A bar for each step of a run."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=is_quiet) as progress:
        steps: dict[str, TaskID] = {}

        def tell(step: str, done: int, total: int) -> None:
            if step not in steps:
                steps[step] = progress.add_task(f"{name}: {step}")
            progress.update(steps[step], completed=done, total=total)

        yield tell
