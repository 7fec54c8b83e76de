"""The page: asking, the answer with its footnotes, the library, and one page per document.

Where the service asks for keys, a visitor without one gets the empty page, and its script fetches
the same page again with the key.
"""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.staticfiles import StaticFiles

from app.access import Caller
from app.answering.base import Answerer, Finished, Question, SourcesFound
from app.config import Settings
from app.db.collections import DEFAULT_COLLECTION
from app.dependencies import AnswererDep, CallerDep, LibraryDep, SettingsDep, VisitorDep
from app.documents.library import Library
from app.errors import FootnoteError, InvalidInput
from app.search.base import Hit
from app.telemetry import request_id
from app.web.views import (
    Exchange,
    excerpt_span,
    exchange_of,
    library_href,
    reading_of,
    row_of,
    shelf_of,
    source_of,
)

FOLDER = Path(__file__).parent
VERSION = version("footnote")
DOCUMENTS_PER_PAGE = 20
MAX_OFFSET = 2**31 - 1 - 2**20
"""PostgreSQL counts characters in 32 bits; an excerpt has to fit behind the offset."""

_NO_LIBRARY: Mapping[str, Any] = {
    "collections": [],
    "chosen": None,
    "documents": [],
    "more_href": None,
}

router = APIRouter(include_in_schema=False)

_STATIC = StaticFiles(directory=FOLDER / "static")


def _nothing_for_none(value: object) -> object:
    return "" if value is None else value


_TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    finalize=_nothing_for_none,
)


# With the stricter `no-referrer` a browser posts the form with `Origin: null`, which is refused.
_PAGE_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "same-origin"}


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """Style and scripts; browsers ask each time whether theirs is still the newest."""
    response = await _STATIC.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"
    return response


@router.get("/")
async def index(
    visitor: VisitorDep,
    library: LibraryDep,
    settings: SettingsDep,
    collection: str | None = None,
    cursor: str | None = None,
) -> Response:
    """The page, before anything was asked."""
    try:
        shown = await _shown_library(library, visitor, collection, cursor)
    except FootnoteError as error:
        return _index(settings, _NO_LIBRARY, problem=error)
    return _index(settings, shown)


@router.post("/")
async def ask(
    caller: CallerDep,
    library: LibraryDep,
    answerer: AnswererDep,
    settings: SettingsDep,
    question: Annotated[str, Form()] = "",
    collection: Annotated[str, Form()] = DEFAULT_COLLECTION,
) -> Response:
    """The page with the answer in it, for browsers without scripts."""
    shown = _NO_LIBRARY
    try:
        asked = _checked(question, settings)
        shown = await _shown_library(library, caller, collection, None)
        exchange = await _exchange(answerer, caller, asked, collection)
    except FootnoteError as error:
        return _index(settings, shown, question=question, problem=error)
    return _index(settings, shown, exchange=exchange)


@router.get("/documents/{document_id}")
async def document(
    document_id: UUID,
    visitor: VisitorDep,
    library: LibraryDep,
    settings: SettingsDep,
    at: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
    start: Annotated[int | None, Query(ge=0, le=MAX_OFFSET)] = None,
    end: Annotated[int | None, Query(ge=0, le=MAX_OFFSET)] = None,
) -> Response:
    """What is known of a document, and its text around the cited characters."""
    if visitor is None:
        return _page("document.html", settings, document=None)
    cited = (start, end) if start is not None and end is not None and start < end else None
    try:
        record = await library.get(visitor, document_id)
        first, last = excerpt_span(at, cited)
        excerpt = await library.excerpt(visitor, document_id, start=first, end=last)
    except FootnoteError as error:
        return _page("document.html", settings, document=None, problem=error)
    return _page(
        "document.html",
        settings,
        document=record,
        source=source_of(record.uri),
        library_href=library_href(record.collection),
        reading=reading_of(document_id, excerpt, cited) if excerpt else None,
    )


# --- helpers --------------------------------------------------------------------------------------


async def _shown_library(
    library: Library, visitor: Caller | None, collection: str | None, cursor: str | None
) -> Mapping[str, Any]:
    """The collections, and a page of the documents in the chosen one or else the first."""
    if visitor is None:
        return _NO_LIBRARY
    collections = await library.list_collections(visitor)
    names = [each.name for each in collections]
    preferred = DEFAULT_COLLECTION if DEFAULT_COLLECTION in names else next(iter(names), None)
    chosen = collection or preferred
    if chosen is None:
        return _NO_LIBRARY
    page = await library.list(
        visitor, collection=chosen, limit=DOCUMENTS_PER_PAGE, cursor=cursor or None
    )
    return {
        "collections": [shelf_of(each) for each in collections],
        "chosen": chosen,
        "documents": [row_of(each) for each in page.documents],
        "more_href": library_href(chosen, page.next_cursor) if page.next_cursor else None,
    }


def _checked(question: str, settings: Settings) -> str:
    question = question.strip()
    if not question:
        raise InvalidInput("There is no question.", hint="Write a question and ask again.")
    if len(question) > settings.max_query_chars:
        raise InvalidInput(f"A question may have at most {settings.max_query_chars} characters.")
    return question


async def _exchange(answerer: Answerer, caller: Caller, question: str, collection: str) -> Exchange:
    started = perf_counter()
    hits: Sequence[Hit] = ()
    events = answerer.answer(caller, Question(text=question, collections=(collection,)))
    async with aclosing(events):
        async for event in events:
            match event:
                case SourcesFound():
                    hits = event.hits
                case Finished():
                    took_ms = (perf_counter() - started) * 1000
                    return exchange_of(question, event.answer, hits, took_ms)
                case _:
                    pass
    raise AssertionError("an answer ends with Finished")  # pragma: no cover


def _index(
    settings: Settings,
    library: Mapping[str, Any],
    *,
    question: str = "",
    exchange: Exchange | None = None,
    problem: FootnoteError | None = None,
) -> Response:
    return _page(
        "index.html",
        settings,
        **library,
        question=question,
        exchange=exchange,
        problem=problem,
        has_model=bool(settings.ollama_urls),
        model=settings.model,
        max_query_chars=settings.max_query_chars,
    )


def _page(
    template: str, settings: Settings, *, problem: FootnoteError | None = None, **values: Any
) -> Response:
    html = _TEMPLATES.get_template(template).render(
        version=VERSION,
        key_needed=settings.auth_required,
        problem=problem,
        request_id=request_id.get(),
        **values,
    )
    return HTMLResponse(html, status_code=problem.status if problem else 200, headers=_PAGE_HEADERS)
