"""The sentences of one answer, each checked against the sources that it cites."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.answering.base import Citation, Sentence
from app.answering.citations import Claim
from app.answering.evidence import CERTAIN_COVERAGE, Evidence, Match, Statement, is_supported
from app.embedding.base import QueryEmbedding
from app.errors import Unavailable
from app.search.base import Hit
from app.telemetry import stage

Vector = NDArray[np.float32]


class Grounding:
    """Collects `sentences` and `citations` of an answer as its claims come in.

    Markers are places in `hits`, counted from 1.
    """

    def __init__(self, question: str, hits: Sequence[Hit], embedder: QueryEmbedding) -> None:
        self._question = Statement(question)
        self._hits = hits
        self._embedder = embedder
        self._evidence: dict[int, Evidence] = {}
        self._vectors: dict[str, Vector] = {}
        self.sentences: list[Sentence] = []
        self.citations: list[Citation] = []

    @property
    def is_grounded(self) -> bool:
        return bool(self.sentences) and all(each.supported for each in self.sentences)

    async def check(self, claim: Claim) -> list[Citation]:
        """Judge one claim; gives the citations that were not among those before.

        A sentence's own markers are always cited. Borrowed ones count only when they support it.
        """
        with stage("chat", "check"):
            statement = Statement(claim.text)
            best = await self._best_matches(statement, claim.markers)
            supported = is_supported(
                statement,
                list(best.values()),
                [self._evidence[marker] for marker in best],
                self._question,
            )
        markers = claim.markers if claim.is_marked or supported else ()
        return self.add(
            claim.text,
            markers,
            supported=supported,
            quotes=[
                (marker, best[marker].window.start, best[marker].window.end)
                for marker in markers
                if marker in best
            ],
        )

    def add(
        self,
        text: str,
        markers: tuple[int, ...],
        *,
        supported: bool,
        quotes: Sequence[tuple[int, int, int]],
    ) -> list[Citation]:
        """Note a sentence; quotes are marker, start and end within the passage's text."""
        before = len(self.citations)
        places = tuple(self._place(*quote) for quote in quotes)
        self.sentences.append(Sentence(text, markers, supported, places))
        return self.citations[before:]

    def _place(self, marker: int, start: int, end: int) -> int:
        """Where in `citations` this quote stands, added when it is new."""
        hit = self._hits[marker - 1]
        citation = Citation(
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
        if citation not in self.citations:
            self.citations.append(citation)
        return self.citations.index(citation)

    async def _best_matches(self, claim: Statement, markers: Sequence[int]) -> Mapping[int, Match]:
        """For each cited source that has any text the window that is most like the claim."""
        shortlists = {
            marker: shortlist
            for marker in markers
            if (shortlist := self._evidence_of(marker).shortlist(claim))
        }
        vectors = self._vectors
        if any(list_[0].coverage(claim) < CERTAIN_COVERAGE for list_ in shortlists.values()):
            windows = [window.text for list_ in shortlists.values() for window in list_]
            vectors = await self._embedded([claim.text, *windows])
        own = vectors.get(claim.text)

        def match(window_text: str) -> float | None:
            other = vectors.get(window_text)
            return None if own is None or other is None else float(own @ other)

        return {
            marker: max(
                (Match(window, match(window.text)) for window in list_),
                key=lambda each: each.likeness(claim),
            )
            for marker, list_ in shortlists.items()
        }

    def _evidence_of(self, marker: int) -> Evidence:
        if marker not in self._evidence:
            self._evidence[marker] = Evidence(self._hits[marker - 1])
        return self._evidence[marker]

    async def _embedded(self, texts: Sequence[str]) -> Mapping[str, Vector]:
        """Vectors of the texts; none at all while the model is too busy or away.

        The answer is already being read then, and is judged by its words alone.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        try:
            vectors = await self._embedder.embed(new, "document")
        except Unavailable:
            return {}
        self._vectors.update(zip(new, vectors, strict=True))
        return self._vectors
