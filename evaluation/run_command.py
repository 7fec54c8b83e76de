"""`footnote eval run`: ask judged questions, measure, compare, report, and say whether it will do."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.output import console
from app.errors import InvalidInput
from evaluation.options import (
    AboutCollection,
    ApiKey,
    AsJson,
    Asked,
    Limit,
    Questions,
    Seed,
    Sets,
    Split,
    Url,
    address,
)

if TYPE_CHECKING:
    from evaluation.baseline import Change
    from evaluation.run import Outcome, Plan

NOT_GOOD_ENOUGH = 1


class Mode(StrEnum):
    KEYWORD = "keyword"
    VECTOR = "vector"
    HYBRID = "hybrid"
    REWRITE = "rewrite"
    RERANK = "rerank"


def run_sets(
    sets: Sets = None,
    questions: Questions = None,
    collection: AboutCollection = "default",
    url: Url = None,
    api_key: ApiKey = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(
            help="Only this mode; may be repeated. `rewrite` is measured only if it is named.",
            show_default=False,
        ),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    timed: Annotated[
        int,
        typer.Option(help="Questions that are asked one by one, for their time.", min=0),
    ] = 100,
    seed: Seed = 0,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with plots.", metavar="FILE.html")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Keep all values, to compare with later.", metavar="FILE")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare with what was saved.", metavar="FILE")
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            help="End with exit code 1 when a measure is further than this below the baseline, and"
            " not by chance: 0.01 for each of them, nDCG@10=0.01 for one. May be repeated.",
            metavar="[MEASURE=]VALUE",
        ),
    ] = None,
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            help="End with exit code 1 when the measure is below; may be repeated.",
            metavar="MEASURE=VALUE",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="--max-drop counts drops that may be chance as well.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option(help="Write DIR/NAME.json for each set.", metavar="DIR")
    ] = None,
    trec: Annotated[
        Path | None,
        typer.Option(help="Write rankings and judgements for trec_eval.", metavar="DIR"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the collections that are made.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask judged questions in each mode, and measure what is found and how long it takes.

    Everything goes through the HTTP API, as it would for any client. Every value comes with the
    interval that holds it in 95 % of 10,000 draws of the questions.
    """
    from evaluation.baseline import (  # noqa: PLC0415 - `footnote` loads this for every command
        changes,
        failures,
        load,
        read_gate,
    )
    from evaluation.baseline import save as save_outcomes  # noqa: PLC0415 - as above
    from evaluation.page import write_page  # noqa: PLC0415 - as above
    from evaluation.records import outcome_record, write_record  # noqa: PLC0415 - as above
    from evaluation.run import BY_DEFAULT, MODES, Outcome, Plan  # noqa: PLC0415 - as above
    from evaluation.trec import export  # noqa: PLC0415 - as above

    asked = Asked.read(sets, split, questions, collection)
    gate = read_gate(fail_below or (), max_drop or (), strict=strict)
    if gate.drops and baseline is None:
        raise InvalidInput("--max-drop is of nothing.", hint="Name the --baseline to compare with.")
    saved = load(baseline) if baseline else None
    modes = tuple(one for one in MODES if one in mode) if mode else BY_DEFAULT
    plan = Plan(modes=modes, limit=limit, timed=timed, seed=seed, keep=keep)

    def keep_outcome(outcome: Outcome) -> None:
        if results is not None:
            write_record(outcome, results)
        if trec is not None:
            export(outcome, trec)

    outcomes = asyncio.run(
        _run_all(asked, address(url), api_key, plan, keep_outcome, is_quiet=as_json)
    )
    since = [changes(one, saved) if saved is not None else [] for one in outcomes]
    if save is not None:
        save_outcomes(outcomes, save)
    if report is not None:
        write_page(outcomes, since, report)
    failed = [
        line
        for outcome, change in zip(outcomes, since, strict=True)
        for line in failures(outcome, change, gate)
    ]
    if as_json:
        found = [
            outcome_record(outcome) | {"since_baseline": _change_record(change)}
            for outcome, change in zip(outcomes, since, strict=True)
        ]
        typer.echo(json.dumps({"outcomes": found, "failures": failed}, ensure_ascii=False))
    else:
        _print(outcomes, since)
    for line in failed:
        typer.secho(f"Failed: {line}", err=True, fg="red")
    if failed:
        raise typer.Exit(NOT_GOOD_ENOUGH)


def _print(outcomes: "Sequence[Outcome]", since: "Sequence[Sequence[Change]]") -> None:
    from evaluation.report import change_table, outcome_tables  # noqa: PLC0415 - as above

    out = console()
    tables = [table for outcome in outcomes for table in outcome_tables(outcome)]
    if any(since):
        tables.append(change_table([one for changed in since for one in changed]))
    for table in tables:
        out.print(table, "")


def _change_record(changes: "Sequence[Change]") -> dict[str, object]:
    return {
        change.mode: {name: value.record() for name, value in change.values.items()}
        for change in changes
    }


async def _run_all(
    asked: Asked,
    url: str,
    api_key: str | None,
    plan: "Plan",
    keep: "Callable[[Outcome], None]",
    *,
    is_quiet: bool,
) -> "list[Outcome]":
    """Each set's outcome is kept at once: many sets take long, and the last may fail."""
    from evaluation.run import ask_all  # noqa: PLC0415 - as above

    outcomes: list[Outcome] = []
    async with aclosing(asked.one_by_one(url, api_key, plan, is_quiet=is_quiet)) as opened:
        async for service, judged, tell in opened:
            outcomes.append(await ask_all(service, judged, plan, tell))
            keep(outcomes[-1])
    return outcomes
