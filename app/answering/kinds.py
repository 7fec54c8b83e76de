"""Finds out what kind of question is asked, in the space of whichever model embedded it."""

import asyncio
from typing import Any, Protocol

import structlog

from app.embedding.base import QueryEmbedding
from app.errors import Unavailable
from app.llm.question_kinds import KindClassifier, QuestionKind, fitted_examples

log = structlog.get_logger(__name__)


class KindReader(Protocol):
    """Depends on the query's text and its embedding model alone: as cacheable as its embedding."""

    async def kind_of(
        self, query: str, vector: Any, embedding: QueryEmbedding
    ) -> QuestionKind | None:
        """The kind of the query with this vector; None where it cannot be found out."""
        ...


class FittedKinds:
    """Implements KindReader: one classifier for each embedding model, fitted when first needed.

    That takes about a second, once. Where the model cannot embed the examples the kind stays
    unknown: whoever asks gets an answer all the same.
    """

    def __init__(self) -> None:
        self._classifiers: dict[str, KindClassifier] = {}
        self._fitting = asyncio.Lock()

    async def kind_of(
        self, query: str, vector: Any, embedding: QueryEmbedding
    ) -> QuestionKind | None:
        """See KindReader; the text counts only through its vector."""
        if vector is None:
            return None
        try:
            return (await self._classifier(embedding)).kind_of(vector)
        except Unavailable as error:
            log.warning("question_kind_unknown", why=error.detail)
            return None

    async def _classifier(self, embedding: QueryEmbedding) -> KindClassifier:
        digest = embedding.embedder.digest
        async with self._fitting:
            if digest not in self._classifiers:
                examples = fitted_examples()
                vectors = await embedding.embed(examples.texts, "query")
                self._classifiers[digest] = await asyncio.to_thread(
                    KindClassifier, vectors, examples.kinds
                )
            return self._classifiers[digest]
