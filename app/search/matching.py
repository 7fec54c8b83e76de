"""What the keyword leg finds for a question in one scope."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.db.postings import PostingList, find_beginning, read_postings, united
from app.db.snapshot import Snapshot
from app.search.keyword import NO_MATCHES, KeywordScores, inverse_document_frequency, score
from app.search.phrases import NOTHING_DEMANDED, Demands
from app.search.query import ParsedQuery
from app.search.scope import AllowedChunks, Scope
from app.terms import fold, read_terms

DEFAULT_LANGUAGE = "english"

EXPANSIONS = 50
"""A beginning stands for so many terms of the collections, at most: the most frequent ones."""

THREAD_FROM_POSTINGS = 50_000
"""Scoring fewer takes less than a millisecond, and starting a thread for it would cost more."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What the keyword leg knows: the query's terms, where they occur, and all scores.

    A word that languages read differently is one term, and so is a beginning, `config*`;
    `expansions` says which terms of the index it stands for.
    """

    term_counts: Counter[str]
    postings: dict[str, PostingList]
    scores: KeywordScores
    expansions: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def coverage(self, chunks_count: int) -> float:
        """Share (0…1) of the query's IDF mass that occurs in the collections at all."""
        masses = {term: self._idf(term, chunks_count) for term in self.term_counts}
        known = sum(mass for term, mass in masses.items() if term in self.postings)
        return known / sum(masses.values()) if known else 0.0

    def explain(self, chunks_count: int) -> dict[str, Any]:
        """Of each term: how many passages hold it, and how telling that makes it."""
        explained: dict[str, Any] = {}
        for term in self.term_counts:
            explained[term] = {
                "passages": len(self.postings.get(term, ())),
                "idf": round(self._idf(term, chunks_count), 4),
            }
            if term in self.expansions:
                explained[term]["stands_for"] = list(self.expansions[term])
        return explained

    def _idf(self, term: str, chunks_count: int) -> float:
        return inverse_document_frequency(chunks_count, len(self.postings.get(term, ())))


NOTHING_ASKED = Matches(Counter(), {}, NO_MATCHES)


async def find_matches(
    snapshot: Snapshot,
    scope: Scope,
    query: ParsedQuery,
    allowed: AllowedChunks | None,
    demands: Demands = NOTHING_DEMANDED,
) -> Matches:
    """BM25 of all passages of the scope that hold a term of the query and meet its demands."""
    languages = languages_of(scope)
    term_counts = query_terms(query.text, languages)
    if not (term_counts or query.prefixes):
        return NOTHING_ASKED
    expansions = readings(query.text, languages)
    for beginning in query.prefixes:
        # What is begun is no word of its own: it would count twice.
        term_counts -= query_terms(beginning, languages)
        term_counts[f"{beginning}*"] = 1
        expansions[f"{beginning}*"] = await _expand(snapshot, scope, beginning, languages)
    wanted = {*term_counts, *(term for terms in expansions.values() for term in terms)}
    postings = await read_postings(snapshot, scope.parameters["collection_ids"], list(wanted))
    postings |= by_name(postings, expansions)

    def scored() -> KeywordScores:
        scores = score(
            postings,
            term_counts,
            chunks_count=scope.chunks_count,
            terms_count=scope.terms_count,
        )
        return demands.of(
            scores if allowed is None else scores.where(allowed.holds(scores.chunk_ids))
        )

    if sum(map(len, postings.values())) < THREAD_FROM_POSTINGS:
        scores = scored()
    else:
        scores = await asyncio.to_thread(scored)
    return Matches(term_counts, postings, scores, expansions)


async def _expand(
    snapshot: Snapshot, scope: Scope, beginning: str, languages: Sequence[str]
) -> list[str]:
    """Terms that begin so, most frequent first, and those that the beginning has as a word."""
    found = await find_beginning(
        snapshot, scope.parameters["collection_ids"], fold(beginning), EXPANSIONS
    )
    words = [term for read in read_terms(beginning, languages) for term in read]
    return list(dict.fromkeys([*found, *words]))


def languages_of(scope: Scope) -> list[str]:
    """The languages in which a query is read."""
    return scope.languages or [DEFAULT_LANGUAGE]


def query_terms(query: str, languages: Sequence[str]) -> Counter[str]:
    """The terms of the query as the first language reads them, with how often they occur."""
    return Counter(read[0] for read in read_terms(query, languages))


def readings(query: str, languages: Sequence[str]) -> dict[str, Sequence[str]]:
    """What each term of the query stands for, of those that other languages read differently.

    All readings of a word are one term. Apart, that of a language which few passages are in would
    be rare, and so outweigh everything else that is asked.
    """
    if len(languages) < 2:
        return {}
    found: dict[str, dict[str, None]] = {}
    for read in read_terms(query, languages):
        found.setdefault(read[0], {}).update(dict.fromkeys(read))
    return {name: list(terms) for name, terms in found.items() if len(terms) > 1}


def by_name(
    postings: Mapping[str, PostingList], expansions: Mapping[str, Sequence[str]]
) -> dict[str, PostingList]:
    """The postings of all terms that a name stands for, as those of one term."""
    known = {
        name: [postings[term] for term in terms if term in postings]
        for name, terms in expansions.items()
    }
    return {name: united(lists) for name, lists in known.items() if lists}
