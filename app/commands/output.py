"""What commands print, and how they end."""

import json
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from app.config import Settings, load_settings
from app.errors import FootnoteError

WRONG_USE = 2
INTERRUPTED = 130

PIPE_COLUMNS = 100_000

# All but tab and newline: a document must not be able to move the cursor of whoever reads it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class CommandGroup(TyperGroup):
    """Turns every failure into one line with a hint, and the exit code of wrong use."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FootnoteError as error:
            complain(error.detail, error.hint)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has seen enough (`footnote search … | head`).
            with suppress(OSError):
                sys.stdout.close()
            raise typer.Exit(0) from None
        except Exception as error:
            if isinstance(error, (typer.Exit, typer.Abort, typer.TyperException)):
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            complain(
                f"Something unexpected happened: {type(error).__name__}: {error}",
                "Run it again with `footnote --debug …` for the whole story, and report that.",
            )
        raise typer.Exit(WRONG_USE)


def quiet_settings() -> Settings:
    """Settings for a command whose output is for reading: it logs warnings only."""
    return load_settings(log_level="warning")


def complain(detail: str, hint: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("Error: ", "bold red"), plain(detail)))
    console.print(Text.assemble(("What to do: ", "bold"), plain(hint)))


def plain(text: str) -> str:
    """The text without control characters."""
    return _CONTROL.sub("", text)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, right: str = ""
) -> None:
    """Rows under the columns' names; `right` names, one after the other, what is a number."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        side = "right" if column in right.split() else "left"
        table.add_column(column, justify=side, no_wrap=column == "id", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else Text(plain(str(cell))) for cell in row))
    console().print(table if table.row_count else empty)


def console() -> Console:
    """Standard output; words of documents never count as markup, and a pipe has no width."""
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_hits(hits: Sequence[Mapping[str, Any]]) -> None:
    output = console()
    if not hits:
        output.print("Nothing was found.")
    for number, hit in enumerate(hits, 1):
        heading = Text.assemble((f"{number}. ", "dim"), (plain(hit["title"]), "bold"))
        heading.append(f"  {hit['score']:.3f}", "dim")
        output.print(heading)
        output.print(_indented(Text(place(hit), "dim"), 3))
        output.print(_indented(Text(plain(" ".join(hit["text"].split()))), 3))
        output.print()


def print_footnotes(answer: Mapping[str, Any]) -> None:
    """What stands under an answer: its citations, and how far to trust it."""
    output = console()
    for _, group in groupby(sorted(answer["citations"], key=_source), key=_source):
        citations = list(group)
        first = citations[0]
        line = Text.assemble((f"[{first['marker']}] ", "cyan"), (plain(first["title"]), "bold"))
        if first["page"] is not None:
            line.append(f", page {first['page']}")
        output.print(line)
        for citation in citations:
            quote = " ".join(plain(citation["quote"]).split())
            output.print(_indented(Text(f"“{quote}”", "italic"), 4))
        output.print(_indented(Text(plain(first["uri"]), "dim"), 4))
    if answer["mode"] == "generated" and not answer["grounded"]:
        unsupported = [one["text"] for one in answer["sentences"] if not one["supported"]]
        output.print(Text("Not borne out by the sources:", "yellow"))
        for sentence in unsupported:
            output.print(_indented(Text(plain(sentence), "yellow"), 4))
    if answer.get("routing"):
        output.print(Text(plain(_routed(answer)), "dim"))
    if answer.get("notice"):
        output.print(Text(plain(answer["notice"]), "dim"))


def _routed(answer: Mapping[str, Any]) -> str:
    """Who answered and why, and who could not."""
    routing = answer["routing"]
    told = f"Answered by {answer['model']} ({routing['tier']}: {routing['reason']})."
    tried = "; ".join(f"{one['model']}: {one['reason']}" for one in routing["tried"])
    return f"{told} Not by {tried}." if tried else told


def place(hit: Mapping[str, Any]) -> str:
    """Where a passage stands: document, headings, page."""
    headings = hit["heading"]
    parts = [hit["uri"], *headings[headings[:1] == [hit["title"]] :]]
    if hit["page"] is not None:
        parts.append(f"page {hit['page']}")
    return plain(" › ".join(parts))


def _source(citation: Mapping[str, Any]) -> tuple[int, str, int]:
    return citation["marker"], citation["uri"], citation["page"] or 0


def _indented(text: Text, columns: int) -> Padding:
    return Padding(text, (0, 0, 0, columns), expand=False)
