"""The kinds of questions, by which `auto` chooses a model: kept as long as layer 1 keeps vectors.

In the process, because finding a kind out is a product of one vector with three others: asking
Redis takes longer (`benchmarks/intents.py`).
"""

import time
from collections import OrderedDict
from hashlib import blake2b
from importlib import resources
from typing import Any

import numpy as np

from app.answering.kinds import KindReader
from app.cache.code import code_digest
from app.cache.layer import Layer
from app.embedding.base import QueryEmbedding
from app.llm.question_kinds import QuestionKind

REMEMBERED = 2_000
"""So many kinds, at some 2 KB each."""

Key = tuple[str, bytes, bytes]


class CachedKinds:
    """A KindReader in front of another.

    The key is made of the embedding model's digest, the classifier's, and the vector itself, which
    is all that a kind depends on. The text would not do: where queries are rewritten before they
    are searched for, the same text comes with another vector.
    """

    def __init__(self, inner: KindReader, layer: Layer, *, ttl_seconds: float) -> None:
        self._inner = inner
        self._layer = layer
        self._ttl_seconds = ttl_seconds
        self._classifier = _classifier_digest()
        self._known: OrderedDict[Key, tuple[float, QuestionKind]] = OrderedDict()

    async def kind_of(
        self, query: str, vector: Any, embedding: QueryEmbedding
    ) -> QuestionKind | None:
        """See KindReader; that a kind is not known is not kept."""
        if vector is None:
            return await self._inner.kind_of(query, vector, embedding)
        key = (embedding.embedder.digest, self._classifier, np.asarray(vector).tobytes())
        until, known = self._known.get(key, (0.0, None))
        if known is not None and time.monotonic() < until:
            self._layer.count("intent_hits")
            self._known.move_to_end(key)
            return known
        kind = await self._inner.kind_of(query, vector, embedding)
        self._layer.count("intent_misses")
        if kind is not None:
            self._known[key] = (time.monotonic() + self._ttl_seconds, kind)
            self._known.move_to_end(key)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return kind


def _classifier_digest() -> bytes:
    examples = resources.files("app.llm").joinpath("question_kinds.yaml").read_bytes()
    return code_digest("app.llm.question_kinds") + blake2b(examples, digest_size=16).digest()
