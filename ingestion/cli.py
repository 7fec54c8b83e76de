"""The commands `ingest` and `worker`; `footnote` mounts them, `python -m ingestion` is the first.

The heavy parts are imported by the commands that need them, because `footnote` loads this file
for every command.
"""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from app.config import Settings, load_settings
from app.errors import FootnoteError, InvalidInput
from app.telemetry import configure_logging

if TYPE_CHECKING:
    from ingestion.pipeline import Tools
    from ingestion.runner import Order, Report
    from ingestion.verification import Verdict

SOME_FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130

EVERY_MINUTES = 15.0

app = typer.Typer(help="Ingest documents.")

Locations = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, URLs of pages or sitemaps, s3://BUCKET/PREFIX.",
        metavar="PATH|URL|s3://…",
        show_default=False,
    ),
]


class WithRay(TyperCommand):
    """Lets the option --ray stand without an address, before the paths and after them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        complete: list[str] = []
        for argument, following in pairwise([*args, ""]):
            complete.append(argument)
            if argument == "--ray" and not _RAY_ADDRESS.fullmatch(following):
                complete.append(ONE_MACHINE)
        return super().parse_args(ctx, complete)


ONE_MACHINE = "local"
_RAY_ADDRESS = re.compile(rf"{ONE_MACHINE}|auto|(ray://)?[^/\s]+:\d+")


@app.command(cls=WithRay)
def ingest(
    locations: Locations,
    collection: Annotated[str, typer.Option(help="Made if it is new.")] = "default",
    include: Annotated[
        list[str] | None,
        typer.Option(help="Take only files that match, as in .gitignore; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Leave out what matches, as in .gitignore; may be repeated."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and follow every change until Ctrl-C.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="MINUTES",
            help="With --watch: how often URLs and buckets are looked at.",
            show_default=f"{EVERY_MINUTES:g}",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be done, and what it would take."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try unchanged files that failed before again.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Spread the work over a Ray cluster that this machine belongs to (auto, or"
            " HOST:PORT); without an address, over a cluster of this machine alone.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (with --watch: one per change).")
    ] = False,
) -> None:
    """Bring a collection in step with folders, web pages and buckets.

    What is new or edited is ingested, what is unchanged costs a look, what is gone from its folder,
    sitemap or bucket is deleted. Cut short, it goes on where it was when it is run again. In folders,
    what .gitignore and .footnoteignore name is left out, and so are hidden files, node_modules and
    __pycache__.

    Exit codes: 0 all done, 1 some documents failed, 2 wrong use or no service.
    """
    from ingestion.runner import Order  # noqa: PLC0415 - heavy, and not for every command
    from ingestion.sources.opening import check_location  # noqa: PLC0415 - heavy, as above
    from ingestion.sources.selection import Selection  # noqa: PLC0415 - heavy, as above

    settings = load_settings(log_level="warning")
    configure_logging(settings)
    selection = Selection(tuple(include or ()), tuple(exclude or ()))
    try:
        selection.check()
    except ValueError as error:
        raise InvalidInput(f"{error}", hint="Write patterns as in .gitignore.") from error
    for location in locations:
        check_location(location)
    order = Order(
        locations=locations,
        collection=collection,
        selection=selection,
        retry_failed=retry_failed,
        is_rehearsal=dry_run,
    )
    if watch and dry_run:
        raise InvalidInput("--watch and --dry-run exclude each other.", hint="Choose one.")
    if every is not None and not watch:
        raise InvalidInput("--every says how often --watch looks.", hint="Add --watch.")
    if ray is not None and (watch or dry_run):
        raise InvalidInput(
            "--ray makes one run; it goes with neither --watch nor --dry-run.",
            hint="Leave out --ray for these.",
        )
    watch_seconds = 60 * (every or EVERY_MINUTES) if watch else None
    try:
        report = _ingest(settings, order, watch_seconds=watch_seconds, ray=ray, as_json=as_json)
    except (KeyboardInterrupt, asyncio.CancelledError):
        Console(stderr=True).print("Stopped. What was ingested so far is kept; run it again.")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(SOME_FAILED if report.failures else 0)


@app.command()
def worker(
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="Documents that are worked on at the same time.")
    ] = 4,
) -> None:
    """Process uploads and registered sources, until Ctrl-C or SIGTERM; several may run together."""
    from app.db.schema import ready_database  # noqa: PLC0415 - heavy, and not for every command
    from ingestion.syncing import sync_source  # noqa: PLC0415 - heavy, as above
    from ingestion.worker import run_worker  # noqa: PLC0415 - heavy, as above

    settings = load_settings()
    configure_logging(settings)
    with ExitStack() as stack:
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        else:
            url = stack.enter_context(ready_database(settings))
        asyncio.run(run_worker(settings, url, concurrency=concurrency, sync_source=sync_source))


@app.command()
def verify(
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Only this one.", metavar="NAME")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every original, and embed a sample again.")
    ] = False,
    sample: Annotated[
        int, typer.Option(min=1, help="With --deep: how many passages are embedded again.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove that counts, offsets, postings and vectors agree with the documents.

    Reads one snapshot while the service goes on. Exit codes: 0 all is sound, 1 something is not
    (each finding named), 2 wrong use or no service.
    """
    from app.db.schema import ready_database  # noqa: PLC0415 - heavy, and not for every command
    from ingestion.verification import is_sound  # noqa: PLC0415 - heavy, as above

    settings = load_settings(log_level="warning")
    configure_logging(settings)
    with ready_database(settings) as url:
        verdicts = asyncio.run(_verified(settings, url, collection, deep=deep, sample_count=sample))
    if as_json:
        typer.echo(json.dumps({"collections": [asdict(one) for one in verdicts]}))
    for one in () if as_json else verdicts:
        for problem in one.problems:
            typer.echo(f"{one.collection}: {problem}", err=True)
        typer.echo(
            f"{one.collection}: documents {one.documents}, passages {one.chunks}, "
            f"vectors {one.vectors}, postings {one.postings}, "
            + (f"originals {one.originals}, embedded again {one.embedded_again}, " if deep else "")
            + f"problems {one.problems_count}"
        )
    raise typer.Exit(0 if is_sound(verdicts) else SOME_FAILED)


async def _verified(
    settings: Settings, url: str, collection: str | None, *, deep: bool, sample_count: int
) -> "list[Verdict]":
    from app.access import DEFAULT_TENANT_ID  # noqa: PLC0415 - not for every command
    from app.db.session import open_engine  # noqa: PLC0415 - heavy, and not for every command
    from app.embedding.known import open_known  # noqa: PLC0415 - heavy, as above
    from ingestion.verification import verify as examine  # noqa: PLC0415 - heavy, as above

    engine = open_engine(settings, url, pool_size=1)
    try:
        return await examine(
            engine,
            DEFAULT_TENANT_ID,
            collection,
            deep=deep,
            open_model=partial(open_known, settings) if deep else None,
            sample_count=sample_count,
        )
    finally:
        await engine.dispose()


def main() -> None:
    """`python -m ingestion PATH…`: the command `ingest` on its own."""
    alone = typer.Typer(pretty_exceptions_enable=False)
    alone.command(cls=WithRay)(ingest)
    try:
        alone(prog_name="python -m ingestion")
    except FootnoteError as error:
        from ingestion.output import complain  # noqa: PLC0415 - heavy, and not for every command

        complain(error)
        sys.exit(WRONG_USE)


# --- ingest ---------------------------------------------------------------------------------------


def _ingest(
    settings: Settings,
    order: "Order",
    *,
    watch_seconds: float | None,
    ray: str | None,
    as_json: bool,
) -> "Report":
    from app.db.schema import ready_database  # noqa: PLC0415 - heavy, and not for every command

    with ready_database(settings) as url:
        return asyncio.run(
            _ingest_into(
                settings, url, order, watch_seconds=watch_seconds, ray=ray, as_json=as_json
            )
        )


async def _ingest_into(
    settings: Settings,
    url: str,
    order: "Order",
    *,
    watch_seconds: float | None,
    ray: str | None = None,
    as_json: bool,
) -> "Report":
    """One run; then, with `watch_seconds` (between looks at what cannot be watched), for ever."""
    from ingestion.output import complain, tell  # noqa: PLC0415 - heavy, and not for every command

    async with _ending_at_sigterm(), _opened_tools(settings, url) as tools:
        if ray is None:
            report = await _sync_once(order, tools, is_quiet=as_json)
        else:
            report = await _sync_on_ray(order, tools, url, ray, is_quiet=as_json)
        tell(report, order, as_json=as_json)
        if watch_seconds is not None:
            from ingestion.following import Follower  # noqa: PLC0415 - for --watch only

            follower = Follower(
                sync=lambda order: _sync_once(order, tools, is_quiet=True),
                tell=lambda report: tell(report, order, as_json=as_json),
                complain=complain,
            )
            await follower.follow(order, report, watch_seconds)
        return report


@asynccontextmanager
async def _ending_at_sigterm() -> AsyncGenerator[None]:
    """End as by Ctrl-C: transactions are given up, and what was started is stopped."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


@asynccontextmanager
async def _opened_tools(settings: Settings, url: str) -> "AsyncGenerator[Tools]":
    from app.db.session import (  # noqa: PLC0415 - heavy, and not for every command
        WRITERS_IDLE_SECONDS,
        open_engine,
    )
    from app.embedding.lazy import LazyEmbedder  # noqa: PLC0415 - heavy, as above
    from ingestion.pipeline import DATABASE_CONNECTIONS, open_tools  # noqa: PLC0415 - heavy

    embedder = await asyncio.to_thread(LazyEmbedder, settings)
    # One connection more than the pipeline takes, for what tidies up beside it.
    engine = open_engine(
        settings,
        url,
        pool_size=DATABASE_CONNECTIONS + 1,
        idle_seconds=WRITERS_IDLE_SECONDS,
        pre_ping=False,
    )
    try:
        async with open_tools(settings, engine, embedder) as tools:
            yield tools
    finally:
        await engine.dispose()


async def _sync_once(order: "Order", tools: "Tools", *, is_quiet: bool) -> "Report":
    from ingestion.progress import shown_progress  # noqa: PLC0415 - not for every command
    from ingestion.runner import sync  # noqa: PLC0415 - heavy, and not for every command

    with shown_progress(tools, is_quiet=is_quiet) as progress:
        return await sync(order, tools, progress)


async def _sync_on_ray(
    order: "Order", tools: "Tools", url: str, ray: str, *, is_quiet: bool
) -> "Report":
    from ingestion.cluster import sync_on_cluster  # noqa: PLC0415 - for --ray only
    from ingestion.progress import shown_progress  # noqa: PLC0415 - not for every command

    address = None if ray == ONE_MACHINE else ray
    with shown_progress(tools, is_quiet=is_quiet) as progress:
        return await sync_on_cluster(order, tools, progress, address=address, database_url=url)
