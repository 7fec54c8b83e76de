"""An answer's events as lines that can be kept and sent, and the events again. Pure.

What a citation says of its passage is kept relative to it: the same passage may stand elsewhere
by now, under another title or id, and whoever reads the lines gets it as he sees it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from app import errors
from app.answering.base import (
    Answer,
    AnswerEvent,
    Citation,
    CitationFound,
    Finished,
    Sentence,
    SourcesFound,
    TextDelta,
    Usage,
)
from app.cache.codec import pack, unpack
from app.errors import FootnoteError, GenerationUnavailable
from app.llm.base import Attempt, Queued
from app.search.base import Hit

Line = tuple[Any, ...]

SOURCES, QUEUED, TEXT, CITATION, FINISHED, FAILED = "s", "q", "t", "c", "f", "e"

FAILURES = {
    one.__name__: one
    for one in (
        errors.Unavailable,
        errors.Overloaded,
        errors.BudgetExhausted,
        errors.GenerationUnavailable,
        errors.GenerationInterrupted,
        errors.EmbeddingUnavailable,
    )
}


class Writing:
    """Turns the events of one answer into lines."""

    def __init__(self) -> None:
        self._hits: Sequence[Hit] = ()

    def line(self, event: AnswerEvent) -> Line:
        match event:
            case SourcesFound():
                self._hits = event.hits
                return (SOURCES, len(event.hits))
            case Queued():
                return (QUEUED, event.position, event.wait_seconds)
            case TextDelta():
                return (TEXT, event.text)
            case CitationFound():
                return (CITATION, *self._place(event.citation))
            case Finished():
                return self._finished(event.answer)

    def _place(self, citation: Citation) -> tuple[int, int, int]:
        start = self._hits[citation.marker - 1].start
        return citation.marker, citation.start - start, citation.end - start

    def _finished(self, answer: Answer) -> Line:
        usage = answer.usage
        return (
            FINISHED,
            answer.mode,
            answer.model,
            answer.grounded,
            answer.is_complete,
            answer.notice,
            [self._place(one) for one in answer.citations],
            [(one.text, one.markers, one.supported, one.citations) for one in answer.sentences],
            (
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
                str(usage.cost),
            ),
            [(one.model, one.reason) for one in answer.tried],
        )


class Reading:
    """Turns lines into the events of an answer from these passages.

    Where `is_known`, the answer costs nothing and says what it saved, and `paraphrase_of` which
    question it answered, where that was another wording.
    """

    def __init__(
        self,
        hits: Sequence[Hit],
        cache: Mapping[str, str],
        *,
        is_known: bool,
        notice: str | None = None,
        paraphrase_of: str | None = None,
    ) -> None:
        self._hits = hits
        self._cache = cache
        self._is_known = is_known
        self._notice = notice
        self._paraphrase_of = paraphrase_of
        self._text: list[str] = []

    def event(self, line: Line) -> AnswerEvent:
        """Raises the error of a line that says that the answer failed."""
        kind, *fields = line
        match kind:
            case "s":
                return SourcesFound(self._hits[: fields[0]])
            case "q":
                return Queued(*fields)
            case "t":
                self._text.append(fields[0])
                return TextDelta(fields[0])
            case "c":
                return CitationFound(self._citation(*fields))
            case "f":
                return Finished(self._answer(*fields))
            case _:
                raise failure(line)

    def _citation(self, marker: int, start: int, end: int) -> Citation:
        hit = self._hits[marker - 1]
        return Citation(
            marker=marker,
            chunk_id=hit.chunk_id,
            document_id=hit.document_id,
            title=hit.title,
            uri=hit.uri,
            page=hit.page_at(start),
            start=hit.start + start,
            end=hit.start + end,
            quote=hit.text[start:end],
        )

    def _answer(
        self,
        mode: Any,
        model: str | None,
        grounded: bool,
        is_complete: bool,
        notice: str | None,
        citations: Sequence[tuple[int, int, int]],
        sentences: Sequence[tuple[Any, ...]],
        spent: tuple[int, int, int, str],
        tried: Sequence[tuple[str, str]],
    ) -> Answer:
        *tokens, cost = spent
        usage = Usage(*tokens, cost=Decimal(cost))
        answer = Answer(
            text="".join(self._text),
            citations=[self._citation(*place) for place in citations],
            sentences=[Sentence(*one) for one in sentences],
            grounded=grounded,
            mode=mode,
            model=model,
            cache=self._cache,
            usage=usage,
            notice=notice,
            is_complete=is_complete,
            tried=tuple(Attempt(*one) for one in tried),
        )
        if not self._is_known:
            return answer
        # A notice is of who asked then, but for one that the answer was cut off.
        notice = self._notice if is_complete else notice
        return replace(
            answer,
            usage=Usage(),
            saved=usage,
            notice=notice,
            paraphrase_of=self._paraphrase_of,
        )


def failed(error: FootnoteError) -> Line:
    seconds = getattr(error, "retry_after_seconds", None)
    return (FAILED, type(error).__name__, error.detail, error.hint, seconds)


def failure(line: Line) -> FootnoteError:
    """The error that `failed` made a line of."""
    _, name, detail, hint, seconds = line
    kind = FAILURES.get(name, GenerationUnavailable)
    if issubclass(kind, errors.Unavailable):
        return kind(detail, hint=hint, retry_after_seconds=seconds)
    return kind(detail, hint=hint)


def is_end(line: Line) -> bool:
    return line[0] in (FINISHED, FAILED)


def is_worth_keeping(answer: Answer, hits: Sequence[Hit]) -> bool:
    """Whether it is whole, and every place that it cites says what it quotes.

    An answer that declines cites nothing; any other must cite something.
    """
    if not answer.is_complete or answer.mode == "declined":
        return answer.is_complete and not answer.citations
    return bool(answer.citations) and all(_is_valid(one, hits) for one in answer.citations)


def _is_valid(citation: Citation, hits: Sequence[Hit]) -> bool:
    if not 1 <= citation.marker <= len(hits):
        return False
    hit = hits[citation.marker - 1]
    start, end = citation.start - hit.start, citation.end - hit.start
    return bool(citation.quote) and 0 <= start < end and hit.text[start:end] == citation.quote


def packed(lines: Sequence[Line], took_ms: int) -> bytes:
    """What is kept: where it stood in line, it did only once, and known text needs no drops."""
    kept: list[Line] = []
    for line in lines:
        if line[0] == QUEUED:
            continue
        if line[0] == TEXT and kept and kept[-1][0] == TEXT:
            kept[-1] = (TEXT, kept[-1][1] + line[1])
        else:
            kept.append(line)
    return pack((took_ms, kept))


def unpacked(value: bytes) -> tuple[int, Sequence[Line]] | None:
    try:
        took_ms, lines = unpack(value)
    except (ValueError, TypeError):
        return None
    return took_ms, lines
