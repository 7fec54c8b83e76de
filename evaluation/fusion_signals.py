"""What can be said about the candidates of a question, one number for each: the signals of fusion.

A signal is computed for the candidates of both legs together. Its unit does not matter: fusion
standardises each over the candidates before it adds them up.
"""

from collections import ChainMap, Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.db.postings import PostingList
from app.search.keyword import KeywordScores, score
from app.search.ranking import CANDIDATES, rank_by_both
from app.search.vector import Neighbours
from evaluation.fusion_index import Index
from evaluation.fusion_typos import Mender
from reranker.fusion import standardise
from reranker.late_interaction import max_sim

Scores = NDArray[np.float64]
Places = NDArray[np.int64]


def listed(places: Places) -> list[int]:
    """As Python's own numbers."""
    numbers: list[int] = places.tolist()
    return numbers


FEEDBACK_PASSAGES = 5
FEEDBACK_TERMS = 10
FEEDBACK_SHARE = 0.3


@dataclass(frozen=True)
class Case:
    """One question of a set, with what both legs find for it. Passages are given by their place."""

    index: Index
    query: int
    known: dict[str, Scores] = field(default_factory=dict[str, Scores])

    changed_terms: Counter[str] | None = None

    @cached_property
    def terms(self) -> Counter[str]:
        if self.changed_terms is not None:
            return self.changed_terms
        return self.index.query_terms(self.query)

    def with_terms(self, terms: Counter[str]) -> "Case":
        """The same question with other words for the keyword leg."""
        return Case(self.index, self.query, changed_terms=terms)

    @property
    def mender(self) -> Mender:
        return self.index.mender

    @cached_property
    def similarities(self) -> Scores:
        """Of all passages."""
        index = self.index
        return (index.vectors @ index.query_vectors[self.query]).astype(np.float64)

    @cached_property
    def matches(self) -> KeywordScores:
        return self.keyword_scores(self.terms)

    def keyword_scores(self, terms: Counter[str]) -> KeywordScores:
        """BM25 of all passages that hold one of the terms."""
        index = self.index
        count = len(index.passages)
        postings = ChainMap(dict(self.readings), index.postings)
        return score(postings, terms, chunks_count=count, terms_count=index.terms_count)

    @cached_property
    def readings(self) -> Mapping[str, PostingList]:
        return self.index.readings(self.query)

    def nearest(self, limit: int) -> Neighbours:
        order = np.argsort(-self.similarities, kind="stable")[:limit].astype(np.int64)
        return Neighbours(order, self.similarities[order])

    def fused(self, limit: int = CANDIDATES) -> tuple[Places, Scores]:
        """The candidates of both legs and their scores, as the product fuses the two."""
        best = self.matches.top(limit)
        similar = Neighbours(best.chunk_ids, self.similarities[best.chunk_ids])
        ranking = rank_by_both(self.nearest(limit), best, similar, self.matches)
        return ranking.chunk_ids, ranking.scores

    @cached_property
    def candidates(self) -> Places:
        return np.sort(self.fused()[0])

    def signal(self, name: str) -> Scores:
        """A signal by its name in SIGNALS, as it was computed."""
        if name not in self.known:
            self.known[name] = np.asarray(SIGNALS[name](self), np.float64)
        return self.known[name]

    def standardised(self, name: str) -> Scores:
        """A signal in standard deviations over the candidates."""
        key = f"{name}, standardised"
        if key not in self.known:
            self.known[key] = standardise(self.signal(name))
        return self.known[key]

    def base(self) -> Scores:
        return self.standardised("vector") + self.standardised("keyword")


# --- late interaction ---------------------------------------------------------------------------


def _weights(case: Case) -> NDArray[np.float32]:
    """How telling the word of each of the query's tokens is: the mean IDF of its terms."""
    return np.array(
        [
            np.mean([case.index.idf(term) for term in joined.split(" ")])
            for joined in case.index.query_tokens.terms_of(case.query)
        ],
        np.float32,
    )


def late_floats(case: Case) -> Scores:
    """The weighted mean over the query's tokens of the cosine of the nearest in the passage."""
    index, weights = case.index, _weights(case)
    scores = np.full(len(case.candidates), np.nan)
    parts = [index.tokens.of(place) for place in listed(case.candidates)]
    full = [row for row, part in enumerate(parts) if len(part)]
    if not full or not weights.sum() > 0:
        return scores
    likeness = index.query_tokens.of(case.query) @ np.concatenate([parts[row] for row in full]).T
    starts = np.cumsum([0, *(len(parts[row]) for row in full[:-1])])
    scores[full] = weights @ np.maximum.reduceat(likeness, starts, axis=1) / weights.sum()
    return scores


def late_signs(case: Case) -> Scores:
    """As the product does it: the agreement of signs instead of the cosine."""
    index = case.index
    signs = [index.tokens.signs_of(place) for place in listed(case.candidates)]
    asked = index.query_tokens.signs_of(case.query)
    return max_sim(asked, _weights(case), signs).astype(np.float64)


# --- headings, neighbours, feedback -------------------------------------------------------------


def heading(case: Case) -> Scores:
    """The share of the query's IDF mass that stands in a passage's title and headings."""
    masses = {term: case.index.idf(term) for term in case.terms}
    whole = sum(masses.values()) or 1.0
    found: list[float] = []
    for place in listed(case.candidates):
        words = set(case.index.passages[place].title_terms)
        found.append(sum(mass for term, mass in masses.items() if term in words) / whole)
    return np.array(found)


def neighbours(case: Case) -> Scores:
    """The better of the two passages beside one in its document, as both legs score them."""
    passages, base = (
        case.index.passages,
        dict(zip(listed(case.candidates), case.base(), strict=True)),
    )
    found: list[float] = []
    for place in listed(case.candidates):
        number = passages[place].number
        beside = [
            base.get(other, 0.0)
            for other in (place - 1, place + 1)
            if 0 <= other < len(passages) and passages[other].number == number
        ]
        found.append(max(beside, default=0.0))
    return np.array(found)


def document(case: Case) -> Scores:
    """The sum of what the document's other candidates score above the mean."""
    numbers = [case.index.passages[place].number for place in listed(case.candidates)]
    above = np.maximum(case.base(), 0.0)
    totals: dict[int, float] = {}
    for number, one in zip(numbers, above, strict=True):
        totals[number] = totals.get(number, 0.0) + one
    return np.array([totals[number] for number in numbers]) - above


def keyword_feedback(case: Case) -> Scores:
    """BM25 of the query and the most telling terms of the passages that both legs put first."""
    best = case.candidates[np.argsort(-case.base(), kind="stable")[:FEEDBACK_PASSAGES]]
    masses: dict[str, float] = {}
    for place in listed(best):
        terms = case.index.passages[place].terms
        for term, times in Counter(terms).items():
            masses[term] = masses.get(term, 0.0) + times / len(terms) * case.index.idf(term)
    chosen = sorted(masses, key=lambda term: -masses[term])[:FEEDBACK_TERMS]
    whole = sum(masses[term] for term in chosen) or 1.0
    expanded = case.matches.of(case.candidates)
    share = FEEDBACK_SHARE * sum(case.terms.values())
    for term in chosen:
        extra = case.keyword_scores(Counter([term])).of(case.candidates)
        expanded = expanded + share * masses[term] / whole * extra
    return expanded


def vector_feedback(case: Case) -> Scores:
    """Likeness to the mean of the query and the passages that both legs put first."""
    best = case.candidates[np.argsort(-case.base(), kind="stable")[:FEEDBACK_PASSAGES]]
    vectors = case.index.vectors
    middle = vectors[best].mean(axis=0)
    return (vectors[case.candidates] @ middle).astype(np.float64)


def matched_share(case: Case) -> Scores:
    """The share (0…1) of the query's IDF mass that occurs in a passage, however often."""
    found = np.zeros(len(case.candidates))
    whole = sum(case.index.idf(term) for term in case.terms) or 1.0
    for term in case.terms:
        if term in case.index.postings:
            holds = np.isin(case.candidates, case.index.postings[term].chunk_ids)
            found += case.index.idf(term) / whole * holds
    return found


SIGNALS: dict[str, Callable[[Case], Scores]] = {
    "vector": lambda case: case.similarities[case.candidates],
    "keyword": lambda case: case.matches.of(case.candidates),
    "late, floats": late_floats,
    "late, signs": late_signs,
    "heading": heading,
    "neighbours": neighbours,
    "document": document,
    "keyword feedback": keyword_feedback,
    "vector feedback": vector_feedback,
    "matched share": matched_share,
}
