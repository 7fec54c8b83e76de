"""Whether what was found can hold the answer at all. Pure."""

from app.answering.words import content_terms
from app.search.base import SearchResult

PASSAGES = 3
HELD_WEIGHT = 0.25
KNOWN_WEIGHT = 0.25

LEAST_TO_EXTRACT = 0.70
"""Below it the best sentences would answer another question. `python -m evaluation.answers`
prints how many answerable and how many foreign questions pass."""
LEAST_TO_GENERATE = 0.60
"""Lower, because a model that sees the sources still says when they do not hold the answer."""


def relevance(query: str, result: SearchResult) -> float:
    """How well the passages fit the query: 0 when nothing does, about 1 to 1.5 when they do.

    The similarity of the best passage, plus the share of the query's words in the first
    passages, plus the share of its rare words that the collections know at all.
    """
    if not result.hits:
        return 0.0
    similarity = max(hit.similarity or 0.0 for hit in result.hits)
    asked = set(content_terms(query))
    found = {
        term
        for hit in result.hits[:PASSAGES]
        for term in content_terms(" ".join([hit.title, *hit.heading, hit.text]))
    }
    held = len(asked & found) / len(asked) if asked else 0.0
    return similarity + HELD_WEIGHT * held + KNOWN_WEIGHT * result.coverage
