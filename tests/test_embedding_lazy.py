"""A model that is loaded only where something is embedded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.config import Settings
from app.embedding import lazy
from app.embedding.base import Embedder
from app.embedding.lazy import LazyEmbedder
from app.errors import EmbeddingUnavailable


def test_it_is_the_configured_model(settings: Settings, embedder: Embedder) -> None:
    later = LazyEmbedder(settings)
    assert (later.name, later.digest) == (embedder.name, embedder.digest)
    assert (later.dimensions, later.max_tokens) == (embedder.dimensions, embedder.max_tokens)
    assert later.runtime == embedder.runtime
    assert later.tokenizer.spans(["two words"]) == embedder.tokenizer.spans(["two words"])
    assert np.array_equal(later.embed(["a"], "query"), embedder.embed(["a"], "query"))


def test_it_is_loaded_once_by_whoever_comes_first(
    settings: Settings, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Settings] = []

    def load(given: Settings) -> Embedder:
        loads.append(given)
        return embedder

    monkeypatch.setattr(lazy, "open_embedder", load)
    later = LazyEmbedder(settings)
    assert later.digest
    assert loads == []
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: later.dimensions, range(8)))
    assert loads == [settings]


def test_a_model_that_is_not_there_is_said_at_once(settings: Settings) -> None:
    with pytest.raises(EmbeddingUnavailable, match="not a folder"):
        LazyEmbedder(settings.model_copy(update={"embedding_model": "./nowhere"}))
