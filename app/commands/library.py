"""`footnote collections …` and `footnote documents …`."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.output import AsJson, console, plain, print_json, print_table
from app.errors import InvalidInput

PAGE_SIZE = 200

collections = typer.Typer(help="List, make, set up and delete collections.", no_args_is_help=True)
documents = typer.Typer(help="List, show and delete documents.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The collection's name.")]
DocumentId = Annotated[str, typer.Argument(help="The document's id.", metavar="ID")]
ChunkTokens = Annotated[
    int | None,
    typer.Option(help="The size of passages to aim for, in tokens.", metavar="N"),
]
Overlap = Annotated[
    int | None,
    typer.Option(help="Tokens that a passage repeats of the one before it.", metavar="N"),
]
Strategy = Annotated[
    Literal["structure", "recursive", "fixed"] | None,
    typer.Option(help="Cut along headings and blocks, along sentences, or by length alone."),
]
PersonalData = Annotated[
    Literal["off", "report", "mask", "refuse"] | None,
    typer.Option(help="What to do about e-mail addresses, phone and card numbers in documents."),
]
Reranker = Annotated[
    Literal["service", "off", "late-interaction"] | None,
    typer.Option(help="What re-orders the best passages; `service`: what the service is set to."),
]
TokenVectors = Annotated[
    bool | None,
    typer.Option(
        "--token-vectors/--no-token-vectors",
        help="Compare queries word by word as well, for 3.5 KB a passage.",
    ),
]
Rewrite = Annotated[
    bool | None,
    typer.Option("--rewrite/--no-rewrite", help="Let a language model put queries in other words."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _call(url: str | None, api_key: str | None, method: str, path: str, **request: Any) -> Any:
    async def work(service: Service) -> Any:
        return await service.call(method, path, **request)

    return with_service(url, api_key, work)


@collections.command("list")
def list_collections(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List all collections."""
    reply = _call(url, api_key, "GET", "/api/collections")
    if as_json:
        print_json(reply)
        return
    columns = ["name", "documents", "chunks", "embedding_model"]
    print_table(
        ["name", "documents", "passages", "model"],
        ([one[column] for column in columns] for one in reply["collections"]),
        empty="There are no collections yet.",
        right="documents passages",
    )


@collections.command("create")
def create_collection(
    name: Name,
    chunk_tokens: ChunkTokens = None,
    overlap: Overlap = None,
    strategy: Strategy = None,
    personal_data: PersonalData = None,
    reranker: Reranker = None,
    token_vectors: TokenVectors = None,
    rewrite: Rewrite = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make an empty collection."""
    settings = _settings(
        chunk_tokens, overlap, strategy, personal_data, reranker, token_vectors, rewrite
    )
    body = {"name": name, "settings": settings}
    reply = _call(url, api_key, "POST", "/api/collections", json=body)
    print_json(reply) if as_json else console().print(f"Made the collection {reply['name']}.")


@collections.command("show")
def show_collection(
    name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Show a collection with its settings, and what was found in it."""
    reply = _call(url, api_key, "GET", f"/api/collections/{_segment(name)}")
    print_json(reply) if as_json else _print_collection(reply)


@collections.command("set")
def set_collection(
    name: Name,
    chunk_tokens: ChunkTokens = None,
    overlap: Overlap = None,
    strategy: Strategy = None,
    personal_data: PersonalData = None,
    reranker: Reranker = None,
    token_vectors: TokenVectors = None,
    rewrite: Rewrite = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Everything that is not given: back to the defaults.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Change how a collection's documents are cut, scanned and searched.

    They are made anew in the background where that is needed; until then the old passages are
    found.
    """
    settings = _settings(
        chunk_tokens, overlap, strategy, personal_data, reranker, token_vectors, rewrite
    )
    if reset:
        own = {"tokens": None, "overlap": None, "strategy": None, **settings.get("chunking", {})}
        settings = {"personal_data": None, "search": None, **settings, "chunking": own}
    if not settings:
        raise InvalidInput("There is nothing to set.", hint="Give an option; --help lists them.")
    path = f"/api/collections/{_segment(name)}"
    reply = _call(url, api_key, "PATCH", path, json={"settings": settings})
    print_json(reply) if as_json else _print_collection(reply)


@collections.command("rebuild")
def rebuild_collection(
    name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Make documents anew that an older version of Footnote made, in the background."""
    reply = _call(url, api_key, "POST", f"/api/collections/{_segment(name)}/rebuild")
    print_json(reply) if as_json else _print_collection(reply)


@collections.command("delete")
def delete_collection(
    name: Name, yes: Yes = False, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Delete a collection and everything in it."""
    if not yes:
        typer.confirm(f"Delete the collection {name} and all its documents?", abort=True, err=True)
    _report_removal(_call(url, api_key, "DELETE", f"/api/collections/{_segment(name)}"), as_json)


@documents.command("list")
def list_documents(
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", metavar="NAME", help="Only of this one.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="queued, processing, ready or failed.")
    ] = None,
    personal_data: Annotated[
        bool | None,
        typer.Option("--personal-data/--no-personal-data", help="With some found in it, or none."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 1000,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List documents; of failed ones, with the reason."""

    async def work(service: Service) -> list[Any]:
        found: list[Any] = []
        given = {"collection": collection, "status": status, "personal_data": personal_data}
        query = {key: value for key, value in given.items() if value is not None}
        while len(found) < limit:
            page_size = min(PAGE_SIZE, limit - len(found))
            page = await service.call("GET", "/api/documents", params={**query, "limit": page_size})
            found += page["documents"]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        return found

    found = with_service(url, api_key, work)
    if as_json:
        print_json({"documents": found})
        return
    columns = ["id", "status", "collection", "chunks", "title", "reason"]
    print_table(
        ["id", "status", "collection", "passages", "title", "reason"],
        ([one[column] for column in columns] for one in found),
        empty="There are no such documents.",
        right="passages",
    )


@documents.command("show")
def show_document(
    document_id: DocumentId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Show all that is known of a document."""
    reply = _call(url, api_key, "GET", f"/api/documents/{_segment(document_id)}")
    if as_json:
        print_json(reply)
        return
    for key, value in reply.items():
        if value not in (None, [], {}):
            console().print(f"{key.replace('_', ' '):16} {plain(str(value))}", soft_wrap=True)


@documents.command("delete")
def delete_document(
    document_id: DocumentId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Delete a document with its passages and its original."""
    reply = _call(url, api_key, "DELETE", f"/api/documents/{_segment(document_id)}")
    _report_removal(reply, as_json)


@documents.command("duplicates")
def list_duplicates(
    document_id: Annotated[
        str | None, typer.Argument(help="Of this document only.", metavar="ID")
    ] = None,
    collection: Annotated[
        str, typer.Option("--collection", "-c", metavar="NAME", help="Where to look.")
    ] = "default",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List documents that are nearly the same."""
    if document_id is not None:
        reply = _call(url, api_key, "GET", f"/api/documents/{_segment(document_id)}/duplicates")
        groups = [reply["duplicates"]]
    else:
        reply = _call(url, api_key, "GET", f"/api/collections/{_segment(collection)}/duplicates")
        groups = reply["groups"]
    if as_json:
        print_json(reply)
        return
    print_table(
        ["group", "in common", "title", "uri", "id"],
        (
            [number, f"{one['similarity']:.0%}", one["title"], one["uri"], one["document_id"]]
            for number, group in enumerate(groups, 1)
            for one in group
        ),
        empty="No documents are nearly the same.",
        right="group",
    )


def _settings(
    chunk_tokens: int | None,
    overlap: int | None,
    strategy: str | None,
    personal_data: str | None,
    reranker: str | None,
    token_vectors: bool | None,
    rewrite: bool | None,
) -> dict[str, Any]:
    """The settings that were given, as the API takes them."""
    given = {"tokens": chunk_tokens, "overlap": overlap, "strategy": strategy}
    chunking = {key: value for key, value in given.items() if value is not None}
    settings: dict[str, Any] = {"chunking": chunking} if chunking else {}
    if personal_data is not None:
        settings["personal_data"] = personal_data
    search: dict[str, Any] = {}
    if reranker is not None:
        search["reranker"] = None if reranker == "service" else reranker
    if token_vectors is not None:
        search["token_vectors"] = token_vectors
    if rewrite is not None:
        search["rewrite"] = rewrite
    if search:
        settings["search"] = search
    return settings


def _print_collection(reply: dict[str, Any]) -> None:
    chunking, found = reply["settings"]["chunking"], reply["personal_data"]
    lines = {
        "name": reply["name"],
        "documents": f"{reply['documents']:,}",
        "passages": f"{reply['chunks']:,}",
        "to be rebuilt": f"{reply['outdated']:,}" if reply["outdated"] else "none",
        "model": reply["embedding_model"],
        "chunk tokens": chunking["tokens"] or "as the service is set",
        "overlap": chunking["overlap"],
        "strategy": chunking["strategy"],
        "reranker": reply["settings"]["search"]["reranker"] or "as the service is set",
        "rewrite queries": "yes" if reply["settings"]["search"]["rewrite"] else "no",
        "token vectors": "yes" if reply["settings"]["search"]["token_vectors"] else "no",
        "personal data": reply["settings"]["personal_data"],
        **{
            f"  {kind.replace('_', ' ')}": f"{one['found']:,} in {one['documents']:,} documents"
            for kind, one in found.items()
        },
    }
    for key, value in lines.items():
        console().print(f"{key:16} {plain(str(value))}", soft_wrap=True)


def _report_removal(removal: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(removal)
        return
    counts = ", ".join(f"{n:,} {what}" for what, n in removal.items() if isinstance(n, int))
    console().print(f"Deleted: {counts}.")


def _segment(name: str) -> str:
    return quote(name, safe="")
