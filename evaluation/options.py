"""What the commands of `footnote eval` have in common: options, and bars for what takes a while."""

from collections.abc import Generator
from contextlib import contextmanager
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

from app.commands.output import AsJson, quiet_settings
from app.listening import base_url

if TYPE_CHECKING:
    from evaluation.run import Tell

__all__ = ["ApiKey", "AsJson", "Seed", "Url", "address", "progress"]

Url = Annotated[
    str | None,
    typer.Option(
        help="The service's address; without it, FOOTNOTE_HOST and FOOTNOTE_PORT.",
        metavar="URL",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="FOOTNOTE_API_KEY", help="An API key.", metavar="KEY", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.", metavar="N")]


def address(url: str | None) -> str:
    return url or base_url(quiet_settings())


@contextmanager
def progress(name: str, *, is_quiet: bool) -> "Generator[Tell]":
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
