"""What the templates show, made from what the services return. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal
from urllib.parse import unquote, urlencode, urlsplit
from uuid import UUID

from markupsafe import Markup

from app.answering.base import Answer, AnswerMode, Citation
from app.documents.records import CollectionRecord, DocumentRecord, Excerpt
from app.search.base import Hit
from app.web.markdown import render_answer, render_passage

# The server's own answer; the script gives its answers further names.
EXCHANGE_NAME = "e1"

EXCERPT_CHARS = 6000
_LEAD_CHARS = 1500
"""How much text stands above a cited place."""


# --- an answer ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """A passage by name: where it stands, and a link that opens it there."""

    title: str
    heading: str
    page: str
    href: str


@dataclass(frozen=True, slots=True)
class Note:
    """A footnote: the quotes that bear the answer out, and the passage around them."""

    number: int
    source: Source
    fragment: str
    back_fragment: str
    quote: Markup
    passage: Markup


@dataclass(frozen=True, slots=True)
class Exchange:
    question: str
    answer: Markup
    mode: AnswerMode
    grounded: Literal["true", "false"]
    model: str
    notice: str | None
    took: str
    notes: Sequence[Note]
    further: Sequence[Source]


def exchange_of(question: str, answer: Answer, hits: Sequence[Hit], took_ms: float) -> Exchange:
    """One question with its answer, notes in the order of their numbers."""
    by_marker = sorted(answer.citations, key=lambda citation: citation.marker)
    notes = [
        _note(number, list(citations), hits)
        for number, citations in groupby(by_marker, key=lambda citation: citation.marker)
    ]
    cited = {note.number for note in notes}
    return Exchange(
        question=question,
        answer=render_answer(answer.text, EXCHANGE_NAME, cited),
        mode=answer.mode,
        grounded="true" if answer.grounded else "false",
        model=answer.model or "a model",
        notice=answer.notice,
        took=f"{took_ms / 1000:.1f} s.",
        notes=notes,
        further=[
            _source(hit.title, hit.heading, hit.page, hit.document_id, hit.start, hit.end)
            for number, hit in enumerate(hits, start=1)
            if number not in cited
        ],
    )


def _note(number: int, citations: Sequence[Citation], hits: Sequence[Hit]) -> Note:
    first = citations[0]
    hit = hits[number - 1] if number <= len(hits) else None
    highlights = [(each.start - hit.start, each.end - hit.start) for each in citations if hit]
    return Note(
        number=number,
        source=_source(
            first.title,
            hit.heading if hit else (),
            first.page,
            first.document_id,
            first.start,
            first.end,
        ),
        fragment=f"{EXCHANGE_NAME}-note-{number}",
        back_fragment=f"{EXCHANGE_NAME}-mark-{number}",
        quote=Markup().join(
            render_passage(each.quote, [(0, len(each.quote))]) for each in citations
        ),
        passage=render_passage(hit.text, highlights) if hit else Markup(),
    )


def _source(
    title: str,
    heading: Iterable[str],
    page: int | None,
    document_id: UUID,
    start: int,
    end: int,
) -> Source:
    return Source(
        title=title,
        heading=" › ".join(part for part in heading if part != title),
        page="" if page is None else f"page {page}",
        href=f"/documents/{document_id}?start={start}&end={end}#cited",
    )


# --- the library ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shelf:
    name: str
    count: int
    href: str


@dataclass(frozen=True, slots=True)
class Row:
    id: UUID
    title: str
    status: str
    reason: str | None
    chunks: int | None
    pages: int | None
    href: str


def shelf_of(collection: CollectionRecord) -> Shelf:
    return Shelf(collection.name, collection.documents, library_href(collection.name))


def library_href(collection: str, cursor: str | None = None) -> str:
    query = {"collection": collection} | ({"cursor": cursor} if cursor else {})
    return f"/?{urlencode(query)}#library"


def row_of(document: DocumentRecord) -> Row:
    return Row(
        id=document.id,
        title=document.title,
        status=document.status,
        reason=document.reason,
        chunks=document.chunks or None,
        pages=document.pages,
        href=f"/documents/{document.id}",
    )


def source_of(uri: str) -> str:
    """Where a document came from, for people."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    match parts.scheme:
        case "upload":
            return f"{path.lstrip('/')}, uploaded"
        case "file":
            return path
        case _:
            return uri


# --- reading a document ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """A piece of the document's text, and links to what stands before and after it."""

    text: Markup
    earlier_href: str | None
    later_href: str | None


def excerpt_span(at: int, cited: tuple[int, int] | None) -> tuple[int, int]:
    """Which characters to read: from `at`, or around the cited ones, and the one before them."""
    start = max(0, (cited[0] - _LEAD_CHARS if cited else at) - 1)
    return start, start + EXCERPT_CHARS + 1


def reading_of(document_id: UUID, excerpt: Excerpt, cited: tuple[int, int] | None) -> Reading:
    """The excerpt, whole lines of it where it was cut, with what was cited highlighted."""
    text, start = excerpt.text, excerpt.start
    end = start + len(text)
    if end < excerpt.total_chars and (last_line := text.rfind("\n", len(text) // 2)) > 0:
        text, end = text[:last_line], start + last_line + 1
    if start > 0:
        # A line begins after the first character where that one ends a line.
        begin = max(0, text.find("\n", 0, _LEAD_CHARS // 2)) + 1
        text, start = text[begin:], start + begin
    place = f"/documents/{document_id}?at="
    html = render_passage(text, [(cited[0] - start, cited[1] - start)] if cited else ())
    return Reading(
        # The only such tag is the renderer's own; what the document holds of it is escaped.
        text=Markup(str(html).replace("<mark>", '<mark id="cited">', 1)),  # noqa: S704
        earlier_href=f"{place}{max(0, start - EXCERPT_CHARS)}#text" if start > 0 else None,
        later_href=f"{place}{end}#text" if end < excerpt.total_chars else None,
    )
