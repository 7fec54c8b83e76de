"""`footnote demo`: from nothing to a cited answer, with one command."""

import asyncio
import os
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.text import Text

import app
from app.commands.client import Service
from app.commands.output import console, plain, print_footnotes
from app.config import load_settings
from app.errors import StartupError
from app.listening import open_listener
from app.telemetry import configure_logging

if TYPE_CHECKING:
    from app.serving import Parts

OWN_QUESTION = "Does Footnote need an API key on my own machine?"
READY_POLL_SECONDS = 0.1
ANSWER_TIMEOUT_SECONDS = 300.0
SOME_FAILED = 1


def demo(
    docs: Annotated[
        Path | None,
        typer.Option(help="What to read; by default Footnote's own documentation.", metavar="DIR"),
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the answer.")] = False,
    port: Annotated[int | None, typer.Option(help="Instead of FOOTNOTE_PORT.")] = None,
) -> None:
    """Start everything, read some documents, answer one question, and go on serving."""
    started = monotonic()
    folder = _own_docs() if docs is None else docs.expanduser().absolute()
    if not folder.exists():
        raise StartupError(
            f"There is no {folder}.", hint="Name a folder of documents: make demo DOCS=folder"
        )
    given = {} if port is None else {"port": port}
    settings = load_settings(host="127.0.0.1", auth="off", log_level="warning", **given)
    configure_logging(settings)

    async def accompany(address: str, parts: "Parts") -> bool:
        console().print(f"Reading {folder}")
        await _ingest(folder, parts.environment())
        async with httpx.AsyncClient(
            base_url=address, timeout=ANSWER_TIMEOUT_SECONDS, trust_env=False
        ) as client:
            await _until_ready(client)
            asked = question or (OWN_QUESTION if docs is None else await _fitting_question(client))
            answer = await Service(client).call("POST", "/api/chat", json={"question": asked})
        _show(asked, answer)
        _show_addresses(address, seconds=monotonic() - started, goes_on=not once)
        return not once

    with open_listener(settings) as listener:
        from app.serving import serve  # noqa: PLC0415 - heavy: a taken port is told before

        serve(settings, listener, companion=accompany)


def _own_docs() -> Path:
    """The documentation beside the package, else in the working directory."""
    beside = Path(app.__path__[0]).parent / "docs"
    return beside if beside.is_dir() else Path("docs").absolute()


async def _ingest(folder: Path, environment: dict[str, str]) -> None:
    """Run `footnote ingest` as a process of its own, which shows its progress itself."""
    command = ("-P", "-m", "app.cli", "--parent", str(os.getpid()), "ingest", str(folder))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if status not in (0, SOME_FAILED):
        raise StartupError(
            f"The documents in {folder} could not be read.", hint="The lines above say why."
        )


async def _until_ready(client: httpx.AsyncClient) -> None:
    while not (await client.get("/health/ready")).is_success:
        await asyncio.sleep(READY_POLL_SECONDS)


async def _fitting_question(client: httpx.AsyncClient) -> str:
    """A question that documents nobody knows here can answer: about the subject of a long one."""
    found = await Service(client).call("GET", "/api/documents?status=ready&limit=100")
    if not found["documents"]:
        raise StartupError(
            "None of the documents could be read.", hint="`footnote documents list` says why."
        )
    longest = max(found["documents"], key=lambda document: document["chunks"])
    return f"What does it say about {longest['title']}?"


def _show(question: str, answer: dict[str, Any]) -> None:
    output = console()
    output.print()
    output.print(Text(plain(question), "bold"))
    output.print()
    output.print(Text(plain(answer["answer"])))
    output.print()
    print_footnotes(answer)
    output.print()


def _show_addresses(address: str, *, seconds: float, goes_on: bool) -> None:
    output = console()
    output.print(f"That took {seconds:.0f} seconds from the start.")
    if not goes_on:
        return
    output.print(f"Ask more at            {address}")
    output.print(f"See every part at      {address}/health")
    output.print('In another terminal    footnote ask "…"  or  footnote ingest FOLDER')
    output.print("Ctrl-C stops everything.")
