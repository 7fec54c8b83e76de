"""The keyword leg: exact BM25 in Lucene's form over decoded postings."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from app.db.postings import PostingList

K1 = 1.2
B = 0.75

ChunkIds = NDArray[np.int64]
Scores = NDArray[np.float64]

_DENSE_SLACK = 1 << 16


def inverse_document_frequency(chunks_count: int, holding_count: int) -> float:
    """How telling a term is that `holding_count` of the chunks hold."""
    return log(1 + (chunks_count - holding_count + 0.5) / (holding_count + 0.5))


@dataclass(frozen=True, slots=True)
class KeywordScores:
    """BM25 of every chunk that holds a term of the query; the others have none.

    `chunk_ids` ascend; `scores` stand beside them.
    """

    chunk_ids: ChunkIds
    scores: Scores

    def top(self, limit: int) -> "KeywordScores":
        """The best `limit`, best first; equal scores in the order of their chunks."""
        if limit < len(self.scores):
            least = np.partition(self.scores, -limit)[-limit]
            contenders = np.flatnonzero(self.scores >= least)
        else:
            contenders = np.arange(len(self.scores))
        best = contenders[np.argsort(-self.scores[contenders], kind="stable")[:limit]]
        return KeywordScores(self.chunk_ids[best], self.scores[best])

    def where(self, kept: NDArray[np.bool_]) -> "KeywordScores":
        """Those of the chunks for which `kept` is true."""
        return KeywordScores(self.chunk_ids[kept], self.scores[kept])

    def of(self, chunk_ids: ChunkIds) -> Scores:
        """The scores of these chunks, zero where no term occurs."""
        if len(self.chunk_ids) == 0:
            return np.zeros(len(chunk_ids))
        places = np.searchsorted(self.chunk_ids, chunk_ids).clip(max=len(self.chunk_ids) - 1)
        return np.where(self.chunk_ids[places] == chunk_ids, self.scores[places], 0.0)


NO_MATCHES = KeywordScores(np.empty(0, np.int64), np.empty(0))


def score(
    postings: Mapping[str, PostingList],
    term_counts: Mapping[str, int],
    *,
    chunks_count: int,
    terms_count: int,
) -> KeywordScores:
    """BM25 for a query whose terms occur `term_counts` times in it.

    `chunks_count` and `terms_count` (all occurrences) are those of the searched collections.
    """
    found = [(postings[term], count) for term, count in term_counts.items() if term in postings]
    if not found or terms_count == 0:
        return NO_MATCHES
    norm_base, norm_slope = K1 * (1 - B), K1 * B * chunks_count / terms_count
    ids: list[ChunkIds] = []
    parts: list[Scores] = []
    for listed, count in found:
        weight = count * inverse_document_frequency(chunks_count, len(listed))
        occurrences = listed.occurrences
        ids.append(listed.chunk_ids)
        parts.append(weight * occurrences / (occurrences + norm_base + norm_slope * listed.lengths))
    return _summed(ids, parts)


def _summed(ids: list[ChunkIds], parts: list[Scores]) -> KeywordScores:
    first = min(int(listed[0]) for listed in ids)
    span = max(int(listed[-1]) for listed in ids) - first + 1
    if span <= 4 * sum(map(len, ids)) + _DENSE_SLACK:
        totals = np.zeros(span)
        for listed, part in zip(ids, parts, strict=True):
            np.add.at(totals, listed - first, part)
        places = np.flatnonzero(totals != 0)  # numpy is slow to find them among numbers
        return KeywordScores(places + first, totals[places])
    distinct, places = np.unique(np.concatenate(ids), return_inverse=True)
    totals = np.zeros(len(distinct))
    np.add.at(totals, places, np.concatenate(parts))
    return KeywordScores(distinct, totals)
