"""Late interaction: each telling token of the query looks for its nearest token in the passage.

MaxSim is that of ColBERT (Khattab and Zaharia, SIGIR 2020), here over the token vectors that an
embedding model makes anyway. Both sides are reduced to the signs of their vectors around a mean,
one bit a dimension; the share of signs in which two tokens agree stands for their cosine, as two
vectors' signs agree the more, the smaller the angle between them (Charikar, STOC 2002). So 48 bytes
stand for a token of 384 dimensions, and comparing two tokens is an XOR and a count of bits.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reranker.base import RerankerUnavailable, Scores, checked

Signs = NDArray[np.uint8]
"""Packed sign bits, shape (tokens, bytes a token)."""


class TokenSigns(Protocol):
    """The tokens of a text that tell something."""

    @property
    def signs(self) -> Signs: ...


Read = Callable[[Sequence[str], Literal["query", "document"]], Sequence[TokenSigns]]
"""The tokens of texts, as the embedding model sees them; raises what its embedder raises."""


def max_sim(query: Signs, weights: NDArray[np.float32], passages: Sequence[Signs]) -> Scores:
    """The weighted mean, over the query's tokens, of the agreement with the nearest token: 0…1.

    `weights` stand beside the query's tokens and are not negative. NaN for a passage without
    tokens, and for all when nothing in the query has weight: nothing can be said of those.
    """
    scores = np.full(len(passages), np.nan, np.float32)
    counts = np.array([len(passage) for passage in passages])
    full: list[int] = np.flatnonzero(counts).tolist()
    if not full or len(query) == 0 or not weights.sum() > 0:
        return scores
    tokens = _in_words(np.concatenate([passages[place] for place in full]))
    starts = np.concatenate([[0], np.cumsum(counts[full])[:-1]])
    bits = 8 * query.shape[1]
    nearest = np.empty((len(query), len(full)), np.float32)
    for row, asked in enumerate(_in_words(query)):
        # One token of the query at a time: what is compared then fits the processor's cache.
        different = np.bitwise_count(tokens ^ asked).sum(axis=1, dtype=np.uint16)
        nearest[row] = 1 - np.minimum.reduceat(different, starts) / bits
    scores[full] = weights @ nearest / weights.sum()
    return scores


def _in_words(signs: Signs) -> NDArray[np.uint64]:
    """The same bits as whole words of 64, which are counted faster."""
    missing = -signs.shape[1] % 8
    padded = np.pad(signs, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(signs)
    return padded.view(np.uint64)


class LateInteraction:
    """Reads the passages anew for every query: a reranker that needs no model but the embedder.

    All telling tokens of the query weigh the same, because how rare a word is only an index knows.
    """

    def __init__(self, read: Read, *, name: str, digest: str) -> None:
        self.name = name
        self.digest = digest
        self._read = read

    def score(self, query: str, passages: Sequence[str]) -> Scores:
        try:
            (asked,) = self._read([query], "query")
            found = self._read(passages, "document")
        except Exception as error:
            raise RerankerUnavailable(f"{self.name} failed: {error}") from error
        even = np.ones(len(asked.signs), np.float32)
        scores = max_sim(asked.signs, even, [one.signs for one in found])
        # Of a passage, or a query, without a telling word nothing can be said: the middle.
        middle = float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0
        return checked(np.nan_to_num(scores, nan=middle), count=len(passages), name=self.name)

    def close(self) -> None:
        """Nothing is held."""
