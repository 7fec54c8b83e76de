"""`footnote models …`: the embedding models of collections, and how to change them without a pause."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.language_models import chat
from app.commands.output import AsJson, console, plain, print_json, print_table
from app.errors import InvalidInput

FOLLOW_SECONDS = 0.5
NOT_DONE = 1

SWITCHES = "/api/models/switches"
COLUMNS = ["collection", "serving", "other model", "state", "embedded", "passages", "reason"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A measure of the serving model and of the other one; `gain` with its interval."""

    measure: str
    questions: int
    before: float
    after: float
    gain: float
    gain_low: float
    gain_high: float


Compare = Callable[[httpx.AsyncClient, str, Path], Awaitable[Verdict]]
"""Asks questions about a collection with both of its models."""

Collections = Annotated[
    list[str] | None,
    typer.Option("--collection", "-c", metavar="NAME", help="Of this one; may be repeated."),
]
All = Annotated[bool, typer.Option("--all", help="Of all collections.")]


def models_commands(compare: Compare) -> typer.Typer:
    """The commands; `compare` is evaluation's, which this package does not know."""
    models = typer.Typer(
        help="Embedding models: list them, give a collection another one. Language models: see chat.",
        no_args_is_help=True,
    )
    models.command("list")(list_models)
    models.command("status")(show_status)
    models.command("rollback")(roll_back)
    models.command("drop-old")(drop_old)
    models.add_typer(chat, name="chat")

    @models.command("switch")
    def switch(
        model: Annotated[
            str,
            typer.Argument(
                help="The name or path of a sentence-transformers model; #int8 behind it means the"
                " same model in 8-bit integers.",
                metavar="MODEL",
            ),
        ],
        collection: Collections = None,
        every: All = False,
        golden: Annotated[
            Path | None,
            typer.Option(
                help="Questions about the collection, as `footnote eval run --questions` reads them,"
                " or a BEIR folder that is in it: both models are asked before the switch.",
                metavar="FILE",
            ),
        ] = None,
        max_drop: Annotated[
            float,
            typer.Option(
                "--max-ndcg-drop",
                help="How much nDCG@10 may fall; further, nothing is switched.",
                min=0.0,
            ),
        ] = 0.01,
        force: Annotated[
            bool, typer.Option("--force", help="Switch whatever the questions say.")
        ] = False,
        keep_old: Annotated[
            bool,
            typer.Option(
                "--keep-old/--drop-old", help="Keep the old vectors, for a way back at once."
            ),
        ] = True,
        as_json: AsJson = False,
        url: Url = None,
        api_key: ApiKey = None,
    ) -> None:
        """Embed collections with another model while the old one serves, then switch at once.

        Ended or killed, the command can be given again: what is embedded stays. Exit code 1 when
        the model is worse than --max-ndcg-drop allows, or could not be made ready.
        """
        names = _chosen(collection, every)
        if golden is not None and (names is None or len(names) != 1):
            raise InvalidInput(
                "Questions are about one collection.", hint="Name it with --collection."
            )

        async def work(service: Service) -> bool:
            wanted = {
                "model": model,
                "collections": names,
                "activate": golden is None,
                "keep_old": keep_old,
            }
            begun = (await service.call("POST", SWITCHES, json=wanted))["switches"]
            ready = await _follow(service, begun, is_quiet=as_json)
            if golden is not None and names is not None and ready:
                verdict = await compare(service.client, names[0], golden)
                ready = force or verdict.gain >= -max_drop
                _tell(verdict, max_drop, is_refused=not ready, as_json=as_json)
                if ready:
                    chosen = {"collections": names}
                    begun = await service.call("POST", f"{SWITCHES}/activate", json=chosen)
                    ready = await _follow(service, begun["switches"], is_quiet=as_json)
            if as_json:
                print_json({"switched": ready, **await service.call("GET", SWITCHES)})
            return ready

        if not with_service(url, api_key, work, with_worker=True):
            raise typer.Exit(NOT_DONE)

    return models


def list_models(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List the models that there are vectors of, and of which collections."""
    found = _call(url, api_key, "GET", "/api/models/embedding")
    if as_json:
        print_json(found)
        return
    print_table(
        ["model", "digest", "dimensions", "MB", "collection", "state", "vectors"],
        (
            [
                f"{one['name']} (configured)" if one["configured"] else one["name"],
                one["digest"][:12],
                one["dimensions"],
                f"{one['bytes'] / 1e6:,.1f}",
                *(
                    (use["collection"], use["state"], f"{use['vectors']:,}")
                    if use
                    else ("", "", "")
                ),
            ]
            for one in found["models"]
            for use in one["collections"] or [None]
        ),
        empty="There are no models.",
        right="dimensions MB vectors",
    )


def show_status(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Show the models beside those that serve, and how far each one is."""
    _print(_call(url, api_key, "GET", SWITCHES), as_json)


def roll_back(
    collection: Collections = None,
    every: All = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Let the model serve again that served before; at once, as long as its vectors are kept."""
    _change("rollback", collection, every, as_json, url, api_key)


def drop_old(
    collection: Collections = None,
    every: All = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove the vectors of the model that does not serve: the old one, or one half embedded."""
    _change("drop", collection, every, as_json, url, api_key)


# --- what they share ------------------------------------------------------------------------------


def _change(
    what: str,
    collection: Sequence[str] | None,
    every: bool,
    as_json: bool,
    url: str | None,
    api_key: str | None,
) -> None:
    chosen = {"collections": _chosen(collection, every)}

    async def work(service: Service) -> bool:
        begun = await service.call("POST", f"{SWITCHES}/{what}", json=chosen)
        done = await _follow(service, begun["switches"], is_quiet=as_json)
        if as_json:
            print_json({"done": done, **await service.call("GET", SWITCHES)})
        return done

    if not with_service(url, api_key, work, with_worker=True):
        raise typer.Exit(NOT_DONE)


def _call(url: str | None, api_key: str | None, method: str, path: str) -> Any:
    async def work(service: Service) -> Any:
        return await service.call(method, path)

    return with_service(url, api_key, work)


def _chosen(collection: Sequence[str] | None, every: bool) -> list[str] | None:
    """The names, None for all."""
    if bool(collection) == every:
        raise InvalidInput(
            "It is not clear which collections are meant.", hint="Give --collection NAME, or --all."
        )
    return list(collection) if collection else None


async def _follow(service: Service, begun: Sequence[Mapping[str, Any]], *, is_quiet: bool) -> bool:
    """Wait until a worker has done what was begun; whether it could."""
    names = {one["collection"] for one in begun}
    told = dict[str, str]()
    while True:
        found = (await service.call("GET", SWITCHES))["switches"]
        now = {one["collection"]: one for one in found if one["collection"] in names}
        for name in sorted(names):
            line = switch_line(now[name]) if name in now else f"{name}: done"
            if not is_quiet and told.get(name) != line:
                console().print(plain(line), soft_wrap=True)
            told[name] = line
        if not any(map(_is_under_way, now.values())):
            return all(one["status"] != "failed" for one in now.values())
        await asyncio.sleep(FOLLOW_SECONDS)


def _is_under_way(switch: Mapping[str, Any]) -> bool:
    status = switch["status"]
    return status in ("preparing", "dropping") or (status == "prepared" and switch["activates"])


def switch_line(switch: Mapping[str, Any]) -> str:
    """How far it is, for people."""
    words = {
        "preparing": f"{switch['embedded']:,} of {switch['passages']:,} passages embedded with"
        f" {switch['model']}",
        "prepared": f"ready to be served by {switch['model']}",
        "retained": f"served by {switch['serving']}; {switch['model']} is kept",
        "dropping": f"served by {switch['serving']}; {switch['model']} is being removed",
        "failed": f"{switch['model']} could not be made ready: {switch['reason']}",
    }
    return f"{switch['collection']}: {words[switch['status']]}"


def _tell(verdict: Verdict, max_drop: float, *, is_refused: bool, as_json: bool) -> None:
    if as_json:
        if is_refused:
            print_json({"refused": asdict(verdict)})
        return
    console().print(
        f"{verdict.measure} of {verdict.questions:,} questions: {verdict.before:.4f} →"
        f" {verdict.after:.4f} ({verdict.gain:+.4f}, 95 % {verdict.gain_low:+.4f} to"
        f" {verdict.gain_high:+.4f})"
    )
    if is_refused:
        console().print(
            f"That falls by more than {max_drop:g}, so nothing was switched. --force switches"
            " nevertheless; `footnote models drop-old` removes what was embedded.",
            soft_wrap=True,
        )


def _print(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(
        COLUMNS,
        (
            [
                *(one["collection"], one["serving"], one["model"], one["status"]),
                *(f"{one['embedded']:,}", f"{one['passages']:,}", one["reason"]),
            ]
            for one in found["switches"]
        ),
        empty="No collection has another model beside the one that serves.",
        right="embedded passages",
    )
