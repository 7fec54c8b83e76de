"""Layer 1: vectors by the model's digest and the normalised text."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from app.cache.base import SHARED
from app.cache.keys import EmbeddingKey, normalise
from app.cache.layer import Layer
from app.embedding.base import (
    Embedder,
    QueryEmbedding,
    TextKind,
    TokenVectors,
    Vectors,
    vectors_digest,
)

WITH_CASE = "The QUICK Brown Fox"
SAME = 1e-5

FoldsCase = dict[str, bool]
"""By a model's digest: whether it sees no difference between small letters and capitals."""


class CachedEmbedding:
    """A QueryEmbedding. It embeds the normalised text, so that a vector is that of its key.

    Case is taken away only where the model does not see it either. Vectors stay float32: an order
    of passages must not depend on whether a vector was known.
    """

    def __init__(self, inner: QueryEmbedding, layer: Layer, folds_case: FoldsCase) -> None:
        self._inner = inner
        self._layer = layer
        self._folds_case = folds_case

    @property
    def embedder(self) -> Embedder:
        return self._inner.embedder

    async def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        if not texts:
            return await self._inner.embed(texts, kind)
        fold_case = await self._sees_no_case()
        normal = [normalise(text, fold_case=fold_case) for text in texts]
        digest = vectors_digest(self.embedder, kind)
        keys = [EmbeddingKey(digest, kind, text).digest for text in normal]
        # A question that another model than was guessed embeds comes twice: it is one all the same.
        is_counted = kind != "query" or not self._layer.is_noted
        found = await self._layer.get(keys, is_counted=is_counted)
        known = dict(zip(keys, found, strict=True))
        width = self.embedder.dimensions * np.dtype(np.float32).itemsize
        missing = {
            key: text
            for key, text in zip(keys, normal, strict=True)
            if (vector := known[key]) is None or len(vector) != width
        }
        if kind == "query":
            self._layer.note("miss" if missing else "hit")
        if missing:
            started = perf_counter()
            vectors = await self._inner.embed(list(missing.values()), kind)
            self._layer.count("computed", len(missing))
            self._layer.count("computed_us", int((perf_counter() - started) * 1_000_000))
            self._layer.count("missed:new", len(missing))
            made = {
                key: one.astype("<f4").tobytes() for key, one in zip(missing, vectors, strict=True)
            }
            known |= made
            await self._layer.put(SHARED, made)
        return np.stack([np.frombuffer(known[key] or b"", "<f4") for key in keys])

    async def tokens(self, query: str) -> TokenVectors | None:
        return await self._inner.tokens(query)

    def close(self) -> None:
        self._inner.close()

    async def _sees_no_case(self) -> bool:
        digest = self.embedder.digest
        if digest not in self._folds_case:
            pair = await self._inner.embed([WITH_CASE, WITH_CASE.lower()], "query")
            self._folds_case[digest] = bool(np.abs(pair[0] - pair[1]).max() < SAME)
        return self._folds_case[digest]
