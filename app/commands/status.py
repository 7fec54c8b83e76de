"""`footnote status`: ingestion at a glance, once or until Ctrl-C."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.models import switch_line
from app.commands.output import AsJson, console, plain, print_json

WATCH_SECONDS = 1.0


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Draw it anew until Ctrl-C.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show what waits to be ingested, how fast it goes, what failed, and how the service is.

    With --json and --watch it prints one object a second.
    """
    output = console()

    async def draw(service: Service) -> None:
        with Live(console=output, auto_refresh=False) as live:
            while True:
                live.update(_drawn(await _state(service)), refresh=True)
                await asyncio.sleep(WATCH_SECONDS)

    async def tell(service: Service) -> None:
        while True:
            state = await _state(service)
            print_json(state) if as_json else output.print(_drawn(state))
            if not watch:
                return
            await asyncio.sleep(WATCH_SECONDS)

    is_drawn = watch and not as_json and output.is_terminal
    with_service(url, api_key, draw if is_drawn else tell)


async def _state(service: Service) -> dict[str, Any]:
    # The first one says best what is wrong when the database is away.
    ingestion = await service.call("GET", "/api/ingestion")
    switches = (await service.call("GET", "/api/models/switches"))["switches"]
    return {"health": await service.health(), "ingestion": ingestion, "switches": switches}


def _drawn(state: Mapping[str, Any]) -> RenderableType:
    health, ingestion = state["health"], state["ingestion"]
    summary = Table.grid(padding=(0, 2))
    summary.add_row("service", _service(health))
    summary.add_row(
        "documents",
        f"{ingestion['queued']:,} queued, {ingestion['processing']:,} processing,"
        f" {ingestion['failed']:,} failed",
    )
    if ingestion["queued"]:
        summary.add_row("oldest", f"has waited for {_duration(ingestion['oldest_seconds'])}")
    summary.add_row("speed", _speed(ingestion))
    summary.add_row("workers", _workers(ingestion["workers"]))
    for switch in state["switches"]:
        if switch["status"] != "retained":
            summary.add_row("model", plain(switch_line(switch)))
    parts: list[RenderableType] = [summary]
    if ingestion["collections"]:
        columns = ("queued", "processing", "failed")
        parts += ["", _collections(ingestion["collections"], columns)]
    if ingestion["failures"]:
        parts += ["", _failures(ingestion["failures"])]
    return Group(*parts)


def _service(health: Mapping[str, Any]) -> Text:
    style = {"ok": "green", "degraded": "yellow"}.get(health["status"], "red")
    drawn = Text(health["status"], style)
    for name, check in health["checks"].items():
        if check["status"] in ("degraded", "down"):
            drawn.append(f"\n{name}: {plain(check['reason'] or check['status'])}", "yellow")
    return drawn


def _speed(ingestion: Mapping[str, Any]) -> str:
    rate = f"{ingestion['rate_per_minute']:,.1f} documents a minute"
    if not ingestion["queued"] + ingestion["processing"]:
        return f"{rate}; nothing waits"
    if ingestion["eta_seconds"] is None:
        return f"{rate}; nobody can say when it is done"
    return f"{rate}; done in about {_duration(ingestion['eta_seconds'])}"


def _workers(workers: Sequence[Mapping[str, Any]]) -> Text:
    if not workers:
        return Text("none: `footnote worker` starts one", "yellow")
    drawn = Text()
    for number, worker in enumerate(workers):
        silence = f"{worker['heartbeat_age_seconds']:.0f} s"
        words = f"heard {silence} ago" if worker["alive"] else f"silent for {silence}"
        drawn.append(", " if number else "").append(words, "" if worker["alive"] else "red")
    return drawn


def _collections(collections: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = Table("collection", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right")
    for one in collections:
        table.add_row(plain(one["name"]), *(f"{one[column]:,}" for column in columns))
    return table


def _failures(failures: Sequence[Mapping[str, Any]]) -> Table:
    names = ("job", "collection", "failed", "reason")
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for one in failures:
        job = "" if one["job_id"] is None else str(one["job_id"])
        texts = (job, one["collection"], one["title"], one["reason"] or "")
        table.add_row(*(Text(plain(text)) for text in texts))
    return table


def _duration(seconds: float) -> str:
    for unit_seconds, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"
