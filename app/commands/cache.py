"""`footnote cache …`: what the caches do, emptied, and filled before anybody asks."""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.output import AsJson, CommandGroup, console, print_json
from app.errors import FootnoteError, InvalidInput

AT_ONCE = 4

cache = typer.Typer(
    cls=CommandGroup, help="Look at the caches, empty and warm them.", no_args_is_help=True
)


@cache.command()
def stats(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Show hits, misses, sizes and what was saved, layer by layer."""

    async def work(service: Service) -> Any:
        return await service.call("GET", "/api/advanced-cache-stats")

    reply = with_service(url, api_key, work)
    if as_json:
        print_json(reply)
        return
    names = ("layer", "hits", "misses", "rate", "last hour", "entries", "size", "p95", "saved")
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for name, layer in reply["layers"].items():
        rate = layer["hit_rate"]
        p95_ms = layer["latency"]["p95_ms"]
        table.add_row(
            name if layer["enabled"] else f"{name} (off)",
            f"{layer['hits']:,}",
            f"{layer['misses']:,}",
            _percent(rate["all"]),
            _percent(rate["last_hour"]),
            f"{layer['entries']:,}",
            f"{layer['bytes'] / 1024:,.0f} KiB",
            "" if p95_ms is None else f"{p95_ms:.2f} ms",
            f"{layer['saved']['seconds']:,.0f} s",
        )
    console().print(table)
    routing = reply["layers"]["embedding"]["routing"]
    console().print(f"Routing: {routing['hits']:,} kinds known, {routing['misses']:,} found out.")
    shared = reply["layers"]["answer"]["paraphrases"]
    if shared["status"] != "off":
        console().print(
            f"Paraphrases ({shared['status']}): {shared['shared']:,} answers shared,"
            f" {shared['judged']:,} judged, {shared['wrong']:,} wrong."
        )
    if shared["status"] == "stopped":
        console().print(
            "They share no answers any more; `footnote cache clear --layer answer` begins anew.",
            style="yellow",
        )
    if reply["reason"]:
        console().print(f"The store is degraded: {reply['reason']}.", style="yellow")


@cache.command()
def clear(
    layer: Annotated[
        Literal["all", "embedding", "chunks", "answer"], typer.Option(help="Which layer.")
    ] = "all",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Forget what is kept; it is made anew when it is asked for."""

    async def work(service: Service) -> Any:
        return await service.call("DELETE", "/api/admin/cache", params={"layer": layer})

    removed = with_service(url, api_key, work)
    if as_json:
        print_json(removed)
    else:
        told = ", ".join(f"{count:,} of {name}" for name, count in removed.items())
        console().print(f"Forgotten: {told}.")


@cache.command()
def warm(
    file: Annotated[
        Path,
        typer.Argument(
            help="A question a line, or JSON lines with `question` and what else POST /api/chat"
            " takes; - for standard input."
        ),
    ],
    collection: Annotated[
        str, typer.Option("--collection", "-c", help="For lines that name none.", metavar="NAME")
    ] = "default",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Ask questions, so that whoever asks them next gets the answers at once."""
    bodies = read_bodies(file, collection)

    async def work(service: Service) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        failures: list[dict[str, str]] = []
        waiting = iter(bodies)

        async def ask() -> None:
            for body in waiting:
                try:
                    reply = await service.call("POST", "/api/chat", json=body)
                except FootnoteError as error:
                    failures.append({"question": body["question"], "reason": error.detail})
                    continue
                counts[reply["cache"]["answer"]] += 1
                # Nobody asked it, so nobody wants to read it in the history.
                path = f"/api/conversations/{reply['conversation_id']}"
                await service.call("DELETE", path)

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        return {
            "asked": len(bodies),
            "warmed": counts["miss"],
            "known": counts["hit"],
            "not_kept": counts["off"],
            "failed": failures,
        }

    done = with_service(url, api_key, work)
    if as_json:
        print_json(done)
    else:
        for failure in done["failed"]:
            console().print(f"failed: {failure['question']}: {failure['reason']}", style="red")
        console().print(
            f"{done['asked']} asked: {done['warmed']} answered anew, {done['known']} known,"
            f" {done['not_kept']} not kept, {len(done['failed'])} failed."
        )
    if done["failed"]:
        raise typer.Exit(1)


def read_bodies(file: Path, collection: str) -> list[dict[str, Any]]:
    """The bodies of the questions in a file; raises InvalidInput that names the wrong line."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}.") from None
    bodies: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        body: Any = {"question": line.strip()}
        if line.lstrip().startswith("{"):
            try:
                body = json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"{file}, line {number}: this is no JSON: {error}.") from None
            if not isinstance(body.get("question"), str):
                raise InvalidInput(
                    f"{file}, line {number}: there is no `question`.",
                    hint='Write it as {"question": "Who approves travel?"}.',
                )
        if not {"collection", "collections"} & set(body):
            body["collection"] = collection
        bodies.append({**body, "stream": False})
    return bodies


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f} %"
