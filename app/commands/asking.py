"""`footnote search` and `footnote ask`."""

import json
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.explaining import print_explained
from app.commands.output import (
    AsJson,
    console,
    plain,
    print_footnotes,
    print_hits,
    print_json,
)
from app.errors import InvalidInput
from app.language_models import Tier

Collections = Annotated[
    list[str] | None,
    typer.Option("--collection", "-c", help="Where to look; may be repeated.", metavar="NAME"),
]
Filters = Annotated[
    str | None,
    typer.Option(
        help='A JSON object of metadata, such as \'{"year": {"$gte": 2024}}\'.', metavar="JSON"
    ),
]


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    collection: Collections = None,
    limit: Annotated[int, typer.Option(help="How many passages.", min=1)] = 10,
    mode: Annotated[
        Literal["hybrid", "vector", "keyword"], typer.Option(help="Which legs search.")
    ] = "hybrid",
    filters: Filters = None,
    collapse_duplicates: Annotated[
        bool, typer.Option(help="Give a passage that several documents hold only once.")
    ] = False,
    rerank: Annotated[
        bool | None,
        typer.Option(
            "--rerank/--no-rerank",
            help="Let a model put the best passages in order; by default the collection decides.",
        ),
    ] = None,
    rewrite: Annotated[
        bool | None,
        typer.Option(
            "--rewrite/--no-rewrite",
            help="Let a language model put the query in other words; by default the collection"
            " decides.",
        ),
    ] = None,
    explain: Annotated[bool, typer.Option(help="Draw how the order came about.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Find passages."""
    body = {
        "query": query,
        "limit": limit,
        "mode": mode,
        "explain": explain,
        "collapse_duplicates": collapse_duplicates,
        **({"rerank": rerank} if rerank is not None else {}),
        **({"rewrite": rewrite} if rewrite is not None else {}),
        **_scope(collection, filters),
    }

    async def work(service: Service) -> Any:
        return await service.call("POST", "/api/search", json=body)

    reply = with_service(url, api_key, work)
    if as_json:
        print_json(reply)
        return
    if explain:
        print_explained(reply)
        return
    print_hits(reply["hits"])
    told = reply.get("explanation", {})
    for name, key in (("Rewriting", "rewrite"), ("Reranking", "rerank")):
        if isinstance(told.get(key), str):
            console().print(Text(plain(f"{name}: {told[key]}"), "dim"))


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    collection: Collections = None,
    conversation: Annotated[
        str | None, typer.Option(help="Go on with this conversation.", metavar="ID")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Which model answers; `auto`: the tier or the question decides.")
    ] = "auto",
    tier: Annotated[
        Tier | None, typer.Option(help="With `auto`, which tier answers.", show_default=False)
    ] = None,
    filters: Filters = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Ask a question; the answer comes with its footnotes."""
    body = {"question": question, "model": model, **_scope(collection, filters)}
    if tier:
        body["tier"] = tier
    if conversation:
        body["conversation_id"] = conversation

    async def whole(service: Service) -> Any:
        return await service.call("POST", "/api/chat", json=body)

    async def streamed(service: Service) -> Any:
        answer: Any = None
        async for name, data in service.stream("/api/chat", {**body, "stream": True}):
            if name == "token":
                typer.echo(plain(data["text"]), nl=False)
            elif name == "done":
                answer = data
        typer.echo("\n")
        return answer

    answer = with_service(url, api_key, whole if as_json else streamed)
    if as_json:
        print_json(answer)
        return
    print_footnotes(answer)


def _scope(collections: list[str] | None, filters: str | None) -> dict[str, Any]:
    scope: dict[str, Any] = {"collections": collections} if collections else {}
    if filters:
        try:
            scope["filters"] = json.loads(filters)
        except ValueError as error:
            raise InvalidInput(
                f"--filters is not JSON: {error}.", hint='Write it as \'{"team": "sales"}\'.'
            ) from None
    return scope
