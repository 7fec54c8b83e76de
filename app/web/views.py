"""What the templates show, made from what the services return. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal
from uuid import UUID

from markupsafe import Markup

from app.answering.base import Answer, AnswerMode, Citation
from app.search.base import Hit
from app.web.markdown import render_answer, render_passage

# Fragments of the server's own answer; the script numbers its answers from here on.
EXCHANGE_NAME = "e1"


@dataclass(frozen=True, slots=True)
class Source:
    """A passage by name: where it stands, and a link that opens it there."""

    title: str
    heading: str
    page: str
    href: str


@dataclass(frozen=True, slots=True)
class Note(Source):
    """A footnote: the quotes that bear the answer out, and the passage around them."""

    number: int
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
    notice: str
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
        notice=answer.notice or "",
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
    source = _source(
        first.title,
        hit.heading if hit else (),
        first.page,
        first.document_id,
        first.start,
        first.end,
    )
    highlights = [(each.start - hit.start, each.end - hit.start) for each in citations if hit]
    return Note(
        title=source.title,
        heading=source.heading,
        page=source.page,
        href=source.href,
        number=number,
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
        href=f"/documents/{document_id}?start={start}&end={end}#passage",
    )
