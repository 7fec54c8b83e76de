"""What the keyword leg finds for a question in one scope."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.db.postings import PostingList, read_postings
from app.db.snapshot import Snapshot
from app.search.keyword import NO_MATCHES, KeywordScores, inverse_document_frequency, score
from app.search.scope import AllowedChunks, Scope
from app.terms import extract_terms

DEFAULT_LANGUAGE = "english"

THREAD_FROM_POSTINGS = 50_000
"""Scoring fewer takes less than a millisecond, and starting a thread for it would cost more."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What the keyword leg knows: the query's terms, where they occur, and all scores."""

    term_counts: Counter[str]
    postings: dict[str, PostingList]
    scores: KeywordScores

    def coverage(self, chunks_count: int) -> float:
        """Share (0…1) of the query's IDF mass that occurs in the collections at all."""
        masses = {term: self._idf(term, chunks_count) for term in self.term_counts}
        known = sum(mass for term, mass in masses.items() if term in self.postings)
        return known / sum(masses.values()) if known else 0.0

    def explain(self, chunks_count: int) -> dict[str, Any]:
        """Of each term: how many passages hold it, and how telling that makes it."""
        return {
            term: {
                "passages": len(self.postings.get(term, ())),
                "idf": round(self._idf(term, chunks_count), 4),
            }
            for term in self.term_counts
        }

    def _idf(self, term: str, chunks_count: int) -> float:
        return inverse_document_frequency(chunks_count, len(self.postings.get(term, ())))


NOTHING_ASKED = Matches(Counter(), {}, NO_MATCHES)


async def find_matches(
    snapshot: Snapshot, scope: Scope, query: str, allowed: AllowedChunks | None
) -> Matches:
    """BM25 of all passages of the scope that hold a term of the query."""
    term_counts = query_terms(query, scope.languages or [DEFAULT_LANGUAGE])
    if not term_counts:
        return NOTHING_ASKED
    postings = await read_postings(snapshot, scope.parameters["collection_ids"], list(term_counts))

    def scored() -> KeywordScores:
        scores = score(
            postings,
            term_counts,
            chunks_count=scope.chunks_count,
            terms_count=scope.terms_count,
        )
        return scores if allowed is None else scores.where(allowed.holds(scores.chunk_ids))

    if sum(map(len, postings.values())) < THREAD_FROM_POSTINGS:
        return Matches(term_counts, postings, scored())
    return Matches(term_counts, postings, await asyncio.to_thread(scored))


def query_terms(query: str, languages: Sequence[str]) -> Counter[str]:
    """The terms of the query read in each language; one read alike in several counts once."""
    term_counts: Counter[str] = Counter()
    for language in languages:
        term_counts |= Counter(extract_terms(query, language))
    return term_counts
