"""The command `footnote`: its parts, mounted, and the few that start something."""

import ctypes
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from app.commands import asking, library
from app.commands.cache import cache
from app.commands.costs import costs
from app.commands.demo import demo
from app.commands.experiments import experiments
from app.commands.jobs import jobs
from app.commands.keys import keys
from app.commands.models import models_commands
from app.commands.output import WRONG_USE, AsJson, CommandGroup, console
from app.commands.sources import sources
from app.commands.status import status
from app.config import load_settings
from app.listening import open_listener
from app.telemetry import configure_logging
from evaluation.cli import app as evaluation
from evaluation.models import compare_models
from ingestion.cli import app as ingestion

PR_SET_PDEATHSIG = 1

cli = typer.Typer(
    cls=CommandGroup,
    help="A self-hosted knowledge base that answers with footnotes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"footnote {version('footnote')}")
        raise typer.Exit


@cli.callback()
def prepare(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """A self-hosted knowledge base that answers with footnotes."""
    if parent is not None:
        _end_with(parent)


def _end_with(parent: int) -> None:
    """Get SIGTERM when the parent is killed; where the kernel cannot do that, it does not come."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise typer.Exit(128 + signal.SIGTERM)


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Instead of FOOTNOTE_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of FOOTNOTE_PORT.")] = None,
    worker: Annotated[
        bool | None,
        typer.Option(
            "--worker/--no-worker",
            help="Run a worker beside the API; by default where the database is embedded.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve the API and the page, until Ctrl-C."""
    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings)
    with open_listener(settings) as listener:
        from app import serving  # noqa: PLC0415 - heavy: a taken port is told before

        serving.serve(settings, listener, with_worker=worker)


@cli.command()
def migrate() -> None:
    """Bring the database to the schema of this version."""
    from app.db import schema  # noqa: PLC0415 - heavy, and not for every command

    settings = load_settings()
    configure_logging(settings)
    if settings.database_url is not None:
        schema.migrate(settings.database_url.get_secret_value())
    else:
        with schema.ready_database(settings):
            pass
    console().print("The database has this version's schema.")


@cli.command()
def doctor(as_json: AsJson = False) -> None:
    """Check everything that the settings ask for; exit code 2 when something is wrong."""
    from app.commands.doctor import examine  # noqa: PLC0415 - heavy, and not for every command

    settings = load_settings(log_level="error")  # the table says all that is worth knowing
    configure_logging(settings)
    if not examine(settings, as_json=as_json):
        raise typer.Exit(WRONG_USE)


cli.command()(demo)
cli.command()(asking.search)
cli.command()(asking.ask)
cli.command()(status)
cli.add_typer(ingestion)
cli.add_typer(library.collections, name="collections")
cli.add_typer(library.documents, name="documents")
cli.add_typer(jobs, name="jobs")
cli.add_typer(sources, name="sources")
cli.add_typer(models_commands(compare_models), name="models")
cli.add_typer(keys, name="keys")
cli.add_typer(cache, name="cache")
cli.add_typer(costs, name="costs")
cli.add_typer(experiments, name="experiments")
cli.add_typer(evaluation, name="eval")


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    cli(prog_name="footnote")


def _interrupt(_number: int, _frame: object) -> None:
    """Ended from outside, a command gives back what it holds, as it does after Ctrl-C."""
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:
        raise KeyboardInterrupt  # in a shell's background, where Ctrl-C is switched off


if __name__ == "__main__":
    main()
