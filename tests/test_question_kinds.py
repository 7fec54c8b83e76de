"""The kind of a question, told from its embedding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from app.answering.kinds import FittedKinds
from app.cache import intents
from app.cache.intents import CachedKinds
from app.cache.layer import Layer
from app.cache.statistics import Statistics
from app.embedding.base import TextKind, Vectors
from app.embedding.query import QueryEmbedder
from app.errors import Overloaded
from app.llm.question_kinds import KINDS, KindClassifier, QuestionKind, fitted_examples
from evaluation.routing import measure_routing, routing_tables


def test_what_is_fitted_is_balanced_and_not_repeated() -> None:
    examples = fitted_examples()
    counts = {kind: examples.kinds.count(kind) for kind in KINDS}
    assert len(set(counts.values())) == 1, counts
    assert len(set(examples.texts)) == len(examples.texts)


def test_points_apart_are_told_apart() -> None:
    random = np.random.default_rng(7)
    corners = np.eye(3, 20)
    kinds = [kind for kind in KINDS for _ in range(10)]
    noisy = [corners[KINDS.index(kind)] + random.normal(0, 0.1, 20) for kind in kinds]
    vectors = np.array(noisy, np.float32)
    classifier = KindClassifier(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), kinds)
    assert [classifier.kind_of(corner) for corner in corners] == list(KINDS)


def test_unseen_questions_are_told_better_than_by_their_length(embedder: Any) -> None:
    found = measure_routing(embedder)
    accuracy = found.accuracy
    assert found.questions == sum(sum(told.values()) for told in found.confusion.values())
    assert accuracy["classifier"].mean > 0.9
    assert accuracy["classifier"].low > accuracy["number of words"].high
    assert accuracy["most frequent kind"].mean == pytest.approx(1 / 3)
    assert [table.row_count for table in routing_tables(found)] == [3, 3]


# --- in the service -------------------------------------------------------------------------------


class Counting:
    """An embedding for the event loop that counts the texts it is given."""

    def __init__(self, inner: QueryEmbedder, error: Exception | None = None) -> None:
        self.embedder = inner.embedder
        self.inner = inner
        self.error = error
        self.texts = 0

    async def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        if self.error:
            raise self.error
        self.texts += len(texts)
        return await self.inner.embed(texts, kind)

    async def tokens(self, query: str) -> None:
        return None

    def close(self) -> None:
        self.inner.close()


async def test_examples_are_embedded_once(embedder: Any) -> None:
    counting = Counting(QueryEmbedder(embedder, threads=1, waiters=50))
    kinds = FittedKinds()
    asked: dict[str, QuestionKind] = {
        "Who signs the lease?": "fact",
        "How do I renew the lease?": "explanation",
        "Compare both leases and recommend one of them.": "analysis",
    }
    for question, expected in asked.items():
        vector = (await counting.inner.embed([question], "query"))[0]
        assert await kinds.kind_of(question, vector, counting) == expected
    assert counting.texts == len(fitted_examples().texts)
    assert await kinds.kind_of("?", None, counting) is None
    counting.close()


async def test_a_busy_model_leaves_the_kind_unknown(embedder: Any) -> None:
    busy = Counting(QueryEmbedder(embedder, threads=1, waiters=50), Overloaded("busy"))
    kinds = FittedKinds()
    vector = (await busy.inner.embed(["Who?"], "query"))[0]
    assert await kinds.kind_of("Who?", vector, busy) is None
    busy.error = None
    assert await kinds.kind_of("Who?", vector, busy) is not None
    busy.close()


class Told:
    """A KindReader that says what it is told, and counts."""

    def __init__(self, *kinds: QuestionKind | None) -> None:
        self.kinds = list(kinds)

    async def kind_of(self, query: str, vector: Any, embedding: Any) -> QuestionKind | None:
        return self.kinds.pop(0)


class Named:
    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.embedder = self


async def test_a_kind_is_known_by_its_vector_model_and_classifier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statistics = Statistics()
    store: Any = None
    layer = Layer("embedding", store, statistics)
    one, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    first: Any = Named("first")
    second: Any = Named("second")
    kinds = CachedKinds(
        Told("fact", "analysis", "explanation", None, "fact"), layer, ttl_seconds=60
    )
    assert [await kinds.kind_of("who?", one, first) for _ in range(3)] == ["fact"] * 3
    # The same text with another vector: the query was rewritten.
    assert await kinds.kind_of("who?", other, first) == "analysis"
    assert await kinds.kind_of("who?", one, second) == "explanation"
    assert await kinds.kind_of("why?", other, second) is None
    assert await kinds.kind_of("why?", other, second) == "fact"
    assert statistics.of("embedding") == {"intent_hits": 2, "intent_misses": 5}
    monkeypatch.setattr(intents, "_classifier_digest", lambda: b"other code")
    changed = CachedKinds(Told("analysis"), layer, ttl_seconds=60)
    changed._known = kinds._known
    assert await changed.kind_of("who?", one, first) == "analysis"


async def test_kinds_are_forgotten_in_time_and_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = None
    layer = Layer("embedding", store, Statistics())
    embedding: Any = Named("model")
    vectors = np.eye(3, dtype=np.float32)
    brief = CachedKinds(Told("fact", "analysis"), layer, ttl_seconds=-1)
    assert [await brief.kind_of("", vectors[0], embedding) for _ in range(2)] == [
        "fact",
        "analysis",
    ]
    monkeypatch.setattr(intents, "REMEMBERED", 2)
    told = Told("fact", "fact", "fact", "analysis")
    few = CachedKinds(told, layer, ttl_seconds=60)
    for vector in vectors:
        await few.kind_of("", vector, embedding)
    assert await few.kind_of("", vectors[2], embedding) == "fact"
    assert await few.kind_of("", vectors[0], embedding) == "analysis"
