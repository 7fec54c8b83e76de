"""`footnote eval`: how well does a running Footnote find and answer, by judged questions."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from evaluation.fusion_command import compare_fusion
from evaluation.options import ApiKey, AsJson, Seed, Url, address, progress
from evaluation.own_commands import generate_questions, tune_weights
from evaluation.run_command import run_sets

if TYPE_CHECKING:
    from evaluation.answers import Row

app = typer.Typer(help="Measure how well a running Footnote finds.", no_args_is_help=True)
app.command("run")(run_sets)
app.command("generate")(generate_questions)
app.command("tune")(tune_weights)
app.command("fusion")(compare_fusion)


@app.callback()
def commands() -> None:
    """Measure how well a running Footnote finds."""


@app.command("table")
def print_table(
    results: Annotated[Path, typer.Argument(help="What --results wrote.", metavar="DIR")] = Path(
        "evaluation/results"
    ),
) -> None:
    """Print the results of all sets as one table in Markdown."""
    from evaluation.overview import load_records, markdown  # noqa: PLC0415 - heavy, for every command

    typer.echo(markdown(load_records(results)))


@app.command("answers")
def ask_questions(
    sets: Annotated[
        list[Path],
        typer.Argument(help="Folders or files, as for `run`.", metavar="SET…"),
    ],
    url: Url = None,
    api_key: ApiKey = None,
    questions: Annotated[int, typer.Option(help="How many of each set, at most.", min=1)] = 100,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Ask each set's questions of its own documents and of the others': answered, or declined?"""
    from evaluation.answers import answers_table  # noqa: PLC0415 - as above

    rows = asyncio.run(_ask_all(sets, address(url), api_key, questions, seed, as_json))
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
    as_json: AsJson = False,
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
    with progress("passages", is_quiet=as_json) as tell:
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


@app.command("routing")
def measure_routing(as_json: AsJson = False) -> None:
    """Measure how well the kind of a question is told, by which `auto` chooses a model's tier.

    Needs no running service.
    """
    from app.config import load_settings  # noqa: PLC0415 - as above
    from app.embedding.loading import open_embedder  # noqa: PLC0415 - as above
    from evaluation.routing import measure_routing, routing_tables  # noqa: PLC0415 - as above

    found = measure_routing(open_embedder(load_settings()))
    if as_json:
        typer.echo(json.dumps(found.record()))
    else:
        for table in routing_tables(found):
            Console().print(table)


async def _ask_all(
    paths: list[Path], url: str, api_key: str | None, questions: int, seed: int, is_quiet: bool
) -> "list[Row]":
    from evaluation.answers import load_questions, measure_answers  # noqa: PLC0415 - as above
    from evaluation.service import open_service  # noqa: PLC0415 - as above

    sets = [load_questions(path) for path in paths]
    async with open_service(url, api_key) as service:
        with progress("answers", is_quiet=is_quiet) as tell:
            return await measure_answers(service, sets, questions, seed, tell)
