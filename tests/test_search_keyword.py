from collections import Counter
from collections.abc import Sequence
from random import Random

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.db.postings import PostingList, pack_posting
from app.search import keyword
from app.search.keyword import NO_MATCHES, KeywordScores, score
from app.terms import extract_terms

Documents = Sequence[Sequence[str]]

PASSAGES = [
    "The wing of an aircraft in a slipstream gains lift, and the lift grows with the slipstream.",
    "Heat flows from the boundary layer into the wing at high speed.",
    "A slipstream is the flow of air behind a propeller.",
    "Propeller and wing together: lift, drag, and the lift to drag ratio of a wing.",
    "High speed flight heats the structure of an aircraft.",
    "The library lends books; a book that is late costs a fee.",
    "Fees for late books are waived for staff.",
    "Boundary layers on a flat plate, with heat transfer at the plate.",
    "Lift lift lift.",
    "Nothing here speaks of flying at all, only of tea and its many leaves.",
]


def scored(documents: Documents, query: Sequence[str], first_chunk_id: int = 1) -> KeywordScores:
    packed: dict[str, list[int]] = {}
    for number, terms in enumerate(documents):
        for term, occurrences in Counter(terms).items():
            packed.setdefault(term, []).append(
                pack_posting(first_chunk_id + number, occurrences, len(terms))
            )
    return score(
        {term: PostingList(np.array(packed[term], np.uint64)) for term in query if term in packed},
        Counter(query),
        chunks_count=len(documents),
        terms_count=sum(map(len, documents)),
    )


def reference(documents: Documents, query: Sequence[str]) -> list[tuple[int, float]]:
    """The reference's top 10 above zero; of equal scores the earlier document first."""
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75, dtype="float64")
    index.index([list(terms) for terms in documents], show_progress=False)
    scores = index.get_scores(list(query))
    order = np.argsort(-scores.round(9), kind="stable")[:10]
    return [(int(place), float(scores[place])) for place in order if scores[place] > 0]


def assert_equal_to_reference(documents: Documents, query: Sequence[str]) -> None:
    best = scored(documents, query).top(10)
    expected = reference(documents, query)
    assert best.scores == pytest.approx([value for _, value in expected])
    assert best.chunk_ids.tolist() == [1 + place for place, _ in expected]


@pytest.mark.parametrize(
    "query",
    [
        "lift of a wing in a slipstream",
        "heat transfer at high speed",
        "late book fees",
        "wing wing wing lift",
        "propeller zeppelin",
    ],
)
def test_the_top_ten_of_prose_is_that_of_the_reference(query: str) -> None:
    assert_equal_to_reference([extract_terms(text) for text in PASSAGES], extract_terms(query))


@pytest.mark.parametrize("seed", range(8))
def test_the_top_ten_of_a_skewed_vocabulary_is_that_of_the_reference(seed: int) -> None:
    random = Random(seed)
    words = [f"w{rank}" for rank in range(200)]
    weights = [1 / (rank + 1) for rank in range(200)]
    documents = [
        random.choices(words, weights, k=random.randint(1, 120))
        for _ in range(random.randint(5, 400))
    ]
    for _ in range(10):
        known = sorted({term for terms in documents for term in terms})
        assert_equal_to_reference(documents, random.choices(known, k=random.randint(1, 8)))


def test_a_term_that_is_asked_twice_counts_twice() -> None:
    documents = [["cat"], ["dog"], ["dog"]]
    once, twice = scored(documents, ["cat"]), scored(documents, ["cat", "cat"])
    assert twice.scores == pytest.approx(2 * once.scores)


def test_equal_scores_stand_in_the_order_of_their_chunks() -> None:
    found = scored([["cat"], ["dog"], ["cat"], ["cat"]], ["cat"])
    assert found.top(2).chunk_ids.tolist() == [1, 3]
    assert found.top(10).chunk_ids.tolist() == [1, 3, 4]


def test_ids_far_apart_are_scored_like_ids_close_together(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [extract_terms(text) for text in PASSAGES]
    query = extract_terms("lift of a wing at high speed")
    close = scored(documents, query)
    monkeypatch.setattr(keyword, "_DENSE_SLACK", -(10**9))
    apart = scored(documents, query, first_chunk_id=10**11)
    assert apart.scores == pytest.approx(close.scores)
    assert (apart.chunk_ids - 10**11 + 1).tolist() == close.chunk_ids.tolist()


def test_scores_of_given_chunks() -> None:
    found = scored([["cat"], ["dog"], ["cat", "dog"]], ["cat"])
    by_id = dict(zip(found.chunk_ids.tolist(), found.scores.tolist(), strict=True))
    asked = np.array([3, 2, 1, 99, 0])
    assert found.of(asked).tolist() == [by_id[3], 0, by_id[1], 0, 0]
    assert NO_MATCHES.of(asked).tolist() == [0] * 5


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=9), min_size=1, max_size=30),
    st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5),
    st.integers(1, 12),
)
@settings(max_examples=50)
def test_top_is_the_head_of_the_whole_order(
    documents: list[list[str]], query: list[str], limit: int
) -> None:
    found = scored(documents, query)
    order = sorted(zip((-found.scores).tolist(), found.chunk_ids.tolist(), strict=True))
    assert found.top(limit).chunk_ids.tolist() == [chunk_id for _, chunk_id in order[:limit]]


def test_an_empty_collection_gives_nothing() -> None:
    assert scored([], ["cat"]) is NO_MATCHES
    assert NO_MATCHES.top(10).chunk_ids.tolist() == []
