"""`footnote sources …`: places on the web and in buckets that collections are kept in step with."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.output import AsJson, console, plain, print_json, print_table

sources = typer.Typer(
    help="Register, list, sync and remove sources that the workers look after.",
    no_args_is_help=True,
)

SourceId = Annotated[str, typer.Argument(help="The source's id.", metavar="ID")]


def _call(url: str | None, api_key: str | None, method: str, path: str, **request: Any) -> Any:
    async def work(service: Service) -> Any:
        return await service.call(method, path, **request)

    return with_service(url, api_key, work)


@sources.command("add")
def add_source(
    location: Annotated[
        str, typer.Argument(help="A URL, sitemap+URL, or s3://BUCKET/PREFIX.", metavar="LOCATION")
    ],
    collection: Annotated[
        str, typer.Option("--collection", "-c", metavar="NAME", help="One that there is.")
    ] = "default",
    every: Annotated[
        int | None,
        typer.Option(min=1, metavar="MINUTES", help="How often; else only when asked to."),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Take only what matches, as in .gitignore.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave out what matches, as in .gitignore.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Keep a collection in step with a page, a site by its sitemap, or a bucket."""
    body = {
        "location": location,
        "collection": collection,
        "every_minutes": every,
        "include": include or [],
        "exclude": exclude or [],
    }
    _print(_call(url, api_key, "POST", "/api/sources", json=body), as_json)


@sources.command("list")
def list_sources(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List the sources, with how their last sync ended."""
    found = _call(url, api_key, "GET", "/api/sources")
    if as_json:
        print_json(found)
        return
    print_table(
        ["id", "collection", "location", "every", "status", "last"],
        (
            [
                *(one["id"], one["collection"], one["location"]),
                f"{one['every_minutes']} min" if one["every_minutes"] else "",
                *(one["status"], one["reason"] or _counts(one)),
            ]
            for one in found["sources"]
        ),
        empty="There are no sources; `footnote sources add URL` registers one.",
    )


@sources.command("sync")
def sync_source(
    source_id: SourceId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Have a source synced now; a worker does it."""
    _print(_call(url, api_key, "POST", f"/api/sources/{source_id}/sync"), as_json)


@sources.command("remove")
def remove_source(
    source_id: SourceId,
    documents: Annotated[
        bool, typer.Option("--documents", help="Delete the documents that came from it, too.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Forget a source; its documents stay, unless --documents is given."""
    query = {"documents": documents}
    reply = _call(url, api_key, "DELETE", f"/api/sources/{source_id}", params=query)
    told = {
        "removed": "Removed.",
        "removing": "It goes as soon as a worker has deleted its documents.",
    }
    print_json(reply) if as_json else console().print(told[reply["status"]])


def _print(source: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(source)
        return
    console().print(
        plain(f"{source['location']} is {source['status']}, as {source['id']}."), soft_wrap=True
    )


def _counts(source: Mapping[str, Any]) -> str:
    """What the last sync did, without what it did not."""
    report: Mapping[str, Any] = source["report"] or {}
    outcomes = ("added", "updated", "unchanged", "deleted", "failed")
    return ", ".join(f"{name} {report[name]}" for name in outcomes if report.get(name))
