"""`footnote experiments …`: give some callers something else, and see whether it is better."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.output import AsJson, console, plain, print_json, print_table
from app.errors import InvalidInput

PATH = "/api/admin/experiments"
FIGURES = ("errors", "declined", "negative_feedback", "ttft_ms", "cost")

experiments = typer.Typer(
    help="Give a candidate to a part of the callers, step by step, and compare.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The experiment's name.")]


@experiments.command("list")
def list_experiments(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List all experiments, the newest first."""
    found = _call(url, api_key, "GET", PATH)
    if as_json:
        print_json(found)
        return
    print_table(
        ["name", "status", "percent", "candidates", "begun", "reason"],
        (
            [
                *(one["name"], one["status"], one["percent"]),
                " ".join(arm["name"] for arm in one["candidates"]),
                *(one["created_at"][:10], one["reason"]),
            ]
            for one in found["experiments"]
        ),
        empty="There were no experiments yet.",
        right="percent",
    )


@experiments.command("begin")
def begin(
    name: Name,
    model: Annotated[
        str | None, typer.Option(help="The candidate's model.", metavar="NAME")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The candidate's version of the prompt.", metavar="VERSION")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="How it searches: hybrid or vector.")] = None,
    rerank: Annotated[
        bool | None,
        typer.Option("--rerank/--no-rerank", help="Whether it reranks.", show_default=False),
    ] = None,
    passages: Annotated[
        int | None, typer.Option(help="Passages that its answers draw on.", min=1, max=50)
    ] = None,
    tolerate: Annotated[
        list[str] | None,
        typer.Option(
            help="How much worse it may be: errors, declined or negative_feedback by a share, ttft"
            " or cost by a factor; `none` does not guard that. May be repeated.",
            metavar="GUARD=VALUE",
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give a candidate to a tenth of the callers, always the same ones."""
    candidate = {
        "name": "candidate",
        "model": model,
        "prompt_version": prompt,
        "mode": mode,
        "rerank": rerank,
        "passages": passages,
    }
    wanted = {"name": name, "candidates": [candidate], "tolerance": _tolerance(tolerate or [])}
    _print(_call(url, api_key, "POST", PATH, wanted), as_json)


@experiments.command("advance")
def advance(name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Take it to the next step: 25, 50, 75, 100 percent of the callers."""
    _print(_call(url, api_key, "POST", f"{_path(name)}/advance"), as_json)


@experiments.command("rollback")
def roll_back(name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Everybody is as without the experiment again, within two seconds."""
    _print(_call(url, api_key, "POST", f"{_path(name)}/rollback"), as_json)


@experiments.command("finish")
def finish(name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """It is over; make the candidate the setting before, if it is to stay."""
    _print(_call(url, api_key, "POST", f"{_path(name)}/finish"), as_json)


@experiments.command("report")
def report(name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Compare the arms, with 95 % intervals."""
    found = _call(url, api_key, "GET", _path(name))
    if as_json:
        print_json(found)
        return
    _print(found, as_json=False)
    print_table(
        ["arm", "answers", *FIGURES],
        (
            [arm["arm"], arm["answers"], *(_figure(arm["figures"][name]) for name in FIGURES)]
            for arm in found["arms"]
        ),
        empty="",
        right="answers",
    )
    for arm in found["arms"]:
        if arm["difference"] is not None:
            said = [
                f"{name} {_figure(arm['difference'][name], signed=True)}"
                for name in FIGURES
                if arm["difference"][name] is not None
            ]
            line = f"{arm['arm']} less {found['control']['name']}: {'; '.join(said) or 'unknown'}"
            console().print(plain(line), soft_wrap=True)


def _tolerance(given: Sequence[str]) -> dict[str, float | None]:
    tolerance: dict[str, float | None] = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            tolerance[name] = None if value == "none" else float(value)
        except ValueError:
            raise InvalidInput(
                f"{one!r} does not say how much worse a candidate may be.",
                hint="Write it as errors=0.02, ttft=1.3 or cost=none.",
            ) from None
    return tolerance


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def _call(url: str | None, api_key: str | None, method: str, path: str, body: object = None) -> Any:
    async def work(service: Service) -> Any:
        return await service.call(method, path, json=body)

    return with_service(url, api_key, work)


def _print(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    line = f"{found['name']}: {found['status']}, {found['percent']} % of the callers"
    if found["reason"]:
        line += f" (halted: {found['reason']})"
    console().print(plain(line), soft_wrap=True)


def _figure(interval: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if interval is None:
        return "—"
    number = "+.4g" if signed else ".4g"
    return f"{interval['estimate']:{number}} ({interval['low']:.4g}…{interval['high']:.4g})"
