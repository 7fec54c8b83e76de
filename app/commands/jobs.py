"""`footnote jobs …`: what is being processed, stopped and tried again."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.output import AsJson, console, plain, print_json, print_table
from app.errors import InvalidInput

PAGE_SIZE = 200
SOME_FAILED = 1

jobs = typer.Typer(
    help="List, watch, cancel and retry the jobs that process documents.", no_args_is_help=True
)

JobId = Annotated[int, typer.Argument(help="The job's id.", metavar="ID", min=1)]
Collection = Annotated[
    str | None, typer.Option("--collection", "-c", metavar="NAME", help="Only of this one.")
]


def _call(url: str | None, api_key: str | None, method: str, path: str, **request: Any) -> Any:
    async def work(service: Service) -> Any:
        return await service.call(method, path, **request)

    return with_service(url, api_key, work)


@jobs.command("list")
def list_jobs(
    collection: Collection = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="queued, processing, ready or failed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 1000,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the latest job of each uploaded document, newest first."""

    async def work(service: Service) -> list[Any]:
        found: list[Any] = []
        given = {"collection": collection, "status": status}
        query: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        while len(found) < limit:
            page_size = min(PAGE_SIZE, limit - len(found))
            page = await service.call("GET", "/api/jobs", params={**query, "limit": page_size})
            found += page["jobs"]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        return found

    found = with_service(url, api_key, work)
    if as_json:
        print_json({"jobs": found})
        return
    print_table(
        ["id", "status", "progress", "collection", "title", "reason"],
        (
            [
                *(one["id"], one["status"], _progress(one)),
                *(one["collection"], one["title"], one["reason"]),
            ]
            for one in found
        ),
        empty="There are no such jobs.",
        right="id",
    )


@jobs.command("show")
def show_job(
    job_id: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Show all that is known of a job."""
    _print_job(_call(url, api_key, "GET", f"/api/jobs/{job_id}"), as_json)


@jobs.command("watch")
def watch_job(
    job_id: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Follow a job to its end; exit code 1 when it fails. With --json, one object a change."""

    async def work(service: Service) -> str:
        status = ""
        async for _, state in service.stream(f"/api/jobs/{job_id}/events"):
            status = state["status"]
            print_json(state) if as_json else console().print(_line(state), soft_wrap=True)
        return status

    if with_service(url, api_key, work) == "failed":
        raise typer.Exit(SOME_FAILED)


@jobs.command("cancel")
def cancel_job(
    job_id: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Stop a job; a version of its document that serves goes on serving."""
    _print_job(_call(url, api_key, "POST", f"/api/jobs/{job_id}/cancel"), as_json)


@jobs.command("retry")
def retry_jobs(
    job_id: Annotated[
        int | None,
        typer.Argument(help="The failed job's id.", metavar="ID", min=1, show_default=False),
    ] = None,
    collection: Collection = None,
    all_failed: Annotated[
        bool, typer.Option("--all", help="All failed documents of all collections.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Try a failed document again, or all of a collection."""
    if sum((job_id is not None, collection is not None, all_failed)) != 1:
        raise InvalidInput(
            "It is not clear what to retry.", hint="Give a job's id, --collection NAME, or --all."
        )
    if job_id is not None:
        reply = _call(url, api_key, "POST", f"/api/jobs/{job_id}/retry")
        told = f"Queued again, as job {reply['job_id']}."
    else:
        body = {"collection": collection, "status": "failed"}
        reply = _call(url, api_key, "POST", "/api/jobs/retry", json=body)
        told = f"Queued again: {reply['queued']:,} documents."
        if reply["skipped"]:
            told += (
                f" Not here: the originals of {reply['skipped']:,}, which"
                " `footnote ingest --retry-failed PATH` reads where they are."
            )
    print_json(reply) if as_json else console().print(told, soft_wrap=True)


def _print_job(job: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    for key, value in {**job, "progress": _progress(job)}.items():
        if value not in (None, ""):
            console().print(f"{key.replace('_', ' '):12} {plain(str(value))}", soft_wrap=True)


def _line(job: Mapping[str, Any]) -> str:
    words = [job["status"], _progress(job), job["reason"] or ""]
    if job["position"]:
        words.append(f"{job['position']:,} before it")
    return plain("  ".join(filter(None, words)))


def _progress(job: Mapping[str, Any]) -> str:
    progress = job["progress"]
    if progress is None:
        return ""
    of_how_many = f" {progress['done']:,}/{progress['total']:,}" if progress["total"] else ""
    return f"{progress['stage']}{of_how_many}"
