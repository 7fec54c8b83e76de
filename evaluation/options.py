"""What the commands of `footnote eval` have in common: options, and bars for what takes a while."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

from app.commands.output import AsJson, quiet_settings
from app.errors import InvalidInput
from app.listening import base_url

if TYPE_CHECKING:
    from evaluation.datasets import Dataset
    from evaluation.questions import GoldenSet
    from evaluation.run import Judged, Plan, Tell
    from evaluation.service import Service

__all__ = [
    "AboutCollection", "ApiKey", "AsJson", "Asked", "Limit", "Questions", "Seed", "Sets", "Split",
    "Url", "address", "progress",
]  # fmt: skip

Sets = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Folders with corpus.jsonl, queries.jsonl and qrels/, or files in the form of SQuAD:"
        " each is ingested into a collection of its own.",
        metavar="SET…",
        show_default=False,
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option(
        help="Your own questions (CSV or JSONL) about a collection that is there.", metavar="FILE"
    ),
]
AboutCollection = Annotated[
    str, typer.Option(help="The collection that --questions are about.", metavar="NAME")
]
Split = Annotated[
    str | None,
    typer.Option(help="Which of the judgements in qrels/; `test` if there are several."),
]
Limit = Annotated[
    int | None, typer.Option(help="Draw this many questions of each set.", min=1, metavar="N")
]
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


@dataclass(frozen=True, slots=True)
class Asked:
    """The sets and questions that a command names, read before anything is asked."""

    datasets: "list[Dataset]"
    golden: "GoldenSet | None"
    collection: str

    @classmethod
    def read(
        cls, sets: Sequence[Path] | None, split: str | None, questions: Path | None, collection: str
    ) -> "Asked":
        """Raises InvalidInput for what cannot be read, and where nothing was named."""
        from evaluation.datasets import load_dataset  # noqa: PLC0415 - heavy, for every command
        from evaluation.questions import load_golden_set  # noqa: PLC0415 - as above

        if not sets and questions is None:
            raise InvalidInput(
                "There is nothing to measure.", hint="Name a set, or your own --questions."
            )
        return cls(
            [load_dataset(path, split) for path in sets or ()],
            load_golden_set(questions) if questions is not None else None,
            collection,
        )

    async def one_by_one(
        self, url: str, api_key: str | None, plan: "Plan", *, is_quiet: bool
    ) -> "AsyncGenerator[tuple[Service, Judged, Tell]]":
        """Each ready to be asked; the sets in collections of their own, as long as it is its turn."""
        from evaluation.run import open_dataset, open_golden  # noqa: PLC0415 - as above
        from evaluation.service import open_service  # noqa: PLC0415 - as above

        async with open_service(url, api_key) as service:
            for dataset in self.datasets:
                with progress(dataset.name, is_quiet=is_quiet) as tell:
                    async with open_dataset(service, dataset, plan, tell) as judged:
                        yield service, judged, tell
            if self.golden is not None:
                with progress(self.golden.name, is_quiet=is_quiet) as tell:
                    judged = await open_golden(service, self.golden, self.collection, plan)
                    yield service, judged, tell


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
