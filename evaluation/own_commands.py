"""`footnote eval generate` and `tune`: questions and weights for one's own documents."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.output import console, print_json, quiet_settings
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
    progress,
)

if TYPE_CHECKING:
    from evaluation.generate import Ask, Passage, Row
    from evaluation.run import Plan
    from evaluation.tune import Tuning


def generate_questions(
    collection: Annotated[str, typer.Argument(help="Whose documents.", metavar="COLLECTION")],
    out: Annotated[
        Path, typer.Option(help="Where to write them: .csv, or .jsonl.", metavar="FILE")
    ],
    count: Annotated[int, typer.Option(help="How many questions.", min=1, metavar="N")] = 100,
    model: Annotated[
        bool | None,
        typer.Option(
            "--model/--no-model",
            help="Let the chat model of your settings write them; by default if there is one.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make questions from your own documents, with where their answers stand.

    Read the file, correct what is odd, and write `no` under `keep` where a question is not worth
    asking. Then: footnote eval run --questions FILE --collection COLLECTION
    """
    from evaluation.generate import write_rows  # noqa: PLC0415 - `footnote` loads this file

    if out.exists() and not force:
        raise InvalidInput(
            f"{out} is there, and may have been reviewed.", hint="Choose another name, or --force."
        )
    rows = asyncio.run(
        _generate(address(url), api_key, collection, count, seed, model, is_quiet=as_json)
    )
    write_rows(rows, out)
    if as_json:
        print_json({"file": str(out), "questions": [asdict(row) for row in rows]})
        return
    kinds = [row.kind for row in rows]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    console().print(f"{len(rows)} questions ({counts}) are in {out}.")
    if len(rows) < count:
        console().print("The documents gave no more that are their own and worth asking.")
    console().print(
        f"Review them, then: footnote eval run --questions {out} --collection {collection}"
    )


def tune_weights(
    sets: Sets = None,
    questions: Questions = None,
    collection: AboutCollection = "default",
    url: Url = None,
    api_key: ApiKey = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Choose weights of the fusion on half of the questions, and judge them on the other half.

    Tells whether the weights that are there should be kept; nothing is changed.
    """
    from evaluation.run import Plan  # noqa: PLC0415 - as above

    asked = Asked.read(sets, split, questions, collection)
    plan = Plan(limit=limit, seed=seed)
    tunings = asyncio.run(_tune(asked, address(url), api_key, plan, is_quiet=as_json))
    if as_json:
        print_json({"tunings": [asdict(one) | {"worth_it": one.is_worth_it} for one in tunings]})
        return
    for one in tunings:
        _print_tuning(one)


def _print_tuning(tuning: "Tuning") -> None:
    out = console()
    out.print(f"{tuning.dataset}: weights now {_said(tuning.present)}")
    if tuning.chosen == tuning.present:
        out.print("No others did better on the half of the questions that they were chosen on.")
    else:
        out.print(f"Chosen on half of the questions: {_said(tuning.chosen)}")
    for name, half in (("that half", tuning.chosen_on), ("the other", tuning.judged_on)):
        out.print(
            f"  {name}, {half.questions} questions: nDCG@10 {half.present.mean:.3f} → "
            f"{half.chosen.mean:.3f} ({half.gain.mean:+.3f}; 95 %: {half.gain.low:+.3f} to "
            f"{half.gain.high:+.3f})"
        )
    out.print(
        "The half that had no say gains as well: worth trying."
        if tuning.is_worth_it
        else "Keep the weights as they are: the half that had no say gains nothing beyond chance."
    )


def _said(weights: dict[str, float]) -> str:
    return ", ".join(f"{leg} {weight:g}" for leg, weight in weights.items())


async def _generate(
    url: str,
    api_key: str | None,
    collection: str,
    count: int,
    seed: int,
    with_model: bool | None,
    *,
    is_quiet: bool,
) -> "list[Row]":
    from evaluation.generate import generate  # noqa: PLC0415 - as above
    from evaluation.service import open_service  # noqa: PLC0415 - as above

    async with _opened_model(with_model) as ask, open_service(url, api_key) as service:
        with progress(collection, is_quiet=is_quiet) as tell:
            return await generate(service, collection, count, seed, tell, ask)


@asynccontextmanager
async def _opened_model(wanted: bool | None) -> "AsyncGenerator[Ask | None]":
    """The chat model of this command's own settings: the API has no door to a model alone."""
    from app.llm.base import Message, TextDelta  # noqa: PLC0415 - as above
    from app.llm.registry import generation_options, open_chat_model  # noqa: PLC0415 - as above
    from evaluation.generate import RULES, prompt, read_question  # noqa: PLC0415 - as above

    settings = quiet_settings()
    model = open_chat_model(settings) if wanted is not False else None
    if model is None:
        if wanted:
            raise InvalidInput(
                "No model is configured.", hint="Set FOOTNOTE_OLLAMA_URLS, or leave out --model."
            )
        yield None
        return
    options = generation_options(settings)

    async def ask(passage: "Passage") -> str | None:
        messages = [Message("system", RULES), Message("user", prompt(passage))]
        parts = [
            event.text
            async for event in model.stream(messages, options)
            if isinstance(event, TextDelta)
        ]
        return read_question("".join(parts))

    try:
        yield ask
    finally:
        await model.close()


async def _tune(
    asked: Asked, url: str, api_key: str | None, plan: "Plan", *, is_quiet: bool
) -> "list[Tuning]":
    from evaluation.tune import tune  # noqa: PLC0415 - as above

    async with aclosing(asked.one_by_one(url, api_key, plan, is_quiet=is_quiet)) as opened:
        return [
            await tune(service, judged, plan.seed, tell) async for service, judged, tell in opened
        ]
