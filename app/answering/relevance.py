"""Whether what was found can hold the answer at all. Pure."""

from functools import lru_cache

from app.answering.words import content_terms
from app.search.base import SearchResult

PASSAGES = 3
REMEMBERED = 1000
"""Terms of so many texts, at some 10 KB each: a known answer would spend its time on them."""
HELD_WEIGHT = 0.25

LEAST_TO_EXTRACT = 0.52
"""Below it the best sentences would answer another question.

Measured with the bundled embedding model: of questions that the documents answer, 100 % pass on
product documentation, 96 % on SQuAD and 97 % on MT-RAG; of questions from other sets, 90 % do not
(95 % and more on a collection with one subject, 75 to 80 % on one about everything).
`footnote eval answers` repeats the measurement. A model whose cosines are generally higher
declines less.
"""
LEAST_TO_GENERATE = 0.42
"""Lower, because a model that sees the sources still says when they do not hold the answer: all
answerable questions pass, and 71 % of the others need no model to be declined."""


def relevance(question: str, query: str, result: SearchResult) -> float:
    """How well the passages fit: about 0.2 when they do not, 0.5 to 1.2 when they do.

    The similarity of the best passage, and the share of the words asked for that stand in the
    first passages. `query` is what was searched; for a follow-up it holds the question before as
    well, and then the words of either may do.
    """
    if not result.hits:
        return 0.0
    found = frozenset[str]().union(
        *(
            _terms_of(" ".join([hit.title, *hit.heading, hit.text]))
            for hit in result.hits[:PASSAGES]
        )
    )
    held = max(_share_of(question, found), _share_of(query, found))
    return max(hit.similarity or 0.0 for hit in result.hits) + HELD_WEIGHT * held


@lru_cache(maxsize=REMEMBERED)
def _terms_of(text: str) -> frozenset[str]:
    return frozenset(content_terms(text))


def _share_of(text: str, found: frozenset[str]) -> float:
    terms = _terms_of(text)
    return len(terms & found) / len(terms) if terms else 0.0
