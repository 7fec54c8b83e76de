"""`footnote eval fusion`: ways to fuse what the legs find, over judged sets, in this process."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evaluation.options import AsJson, Limit, Seed, Split, progress


def compare_fusion(
    sets: Annotated[
        list[Path], typer.Argument(help="Folders or files, as for `run`.", metavar="SET…")
    ],
    results: Annotated[
        Path | None, typer.Option(help="Write DIR/fusion.json.", metavar="DIR")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep what was embedded here for the next time.", metavar="DIR"),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    documents: Annotated[
        int | None,
        typer.Option(
            help="Take this many documents of each set, all judged ones among them.",
            min=1,
            show_default=False,
            metavar="N",
        ),
    ] = None,
    typos: Annotated[
        bool, typer.Option("--typos", help="Put a typing mistake into every question.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare ways to fuse the legs and further signals, by nDCG@10 with paired intervals.

    Needs no running service: everything happens in this process, with the product's own parts. A
    variant in bold gains on the average of the sets and loses on none by more than its interval.
    """
    from app.config import load_settings  # noqa: PLC0415 - `footnote` loads this for every command
    from app.embedding.loading import open_embedder  # noqa: PLC0415 - as above
    from evaluation.datasets import limited, load_dataset  # noqa: PLC0415 - as above
    from evaluation.fusion import (  # noqa: PLC0415 - as above
        compare,
        fusion_record,
        fusion_table,
        judge,
        mistyped,
        sampled,
    )
    from evaluation.fusion_index import build_index  # noqa: PLC0415 - as above
    from evaluation.fusion_signals import Case  # noqa: PLC0415 - as above
    from ingestion.types import Chunking  # noqa: PLC0415 - as above

    settings = load_settings()
    embedder = open_embedder(settings)
    chunking = Chunking(settings.chunk_tokens)
    folder = cache or settings.home / "evaluation"
    cases: dict[str, list[Case]] = {}
    for path in sets:
        dataset = sampled(load_dataset(path, split), documents, seed)
        asked = limited(dataset.queries, limit, seed)
        if typos:
            dataset = mistyped(dataset, seed)
        with progress(dataset.name, is_quiet=as_json) as tell:
            index = build_index(dataset, embedder, chunking, folder, tell)
        cases[dataset.name] = [
            Case(index, number)
            for number, query_id in enumerate(index.query_ids)
            if query_id in asked
        ]
    with progress("fusion", is_quiet=as_json) as tell:
        rows = compare(judge(cases, tell), seed=seed)
    record = {"embedding_model": embedder.name, **fusion_record(rows, cases)}
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        name = "fusion_typos.json" if typos else "fusion.json"
        (results / name).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    if as_json:
        typer.echo(json.dumps(record))
    else:
        Console().print(fusion_table(rows))
