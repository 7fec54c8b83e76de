"""Embedding models that are quick, of different dimensions, and found by their names."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import app.embedding.query_models
import app.resources
import ingestion.pipeline
from app.embedding.base import TextKind, Vectors
from app.embedding.known import ModelMissing
from app.errors import EmbeddingUnavailable
from tests.doubles.word_embedder import WordTokenizer


class NamedEmbedder:
    """A vector depends on the text and on the model; `texts` are those embedded so far."""

    max_tokens = 256
    runtime = "onnx"

    def __init__(self, name: str, dimensions: int) -> None:
        self.name = name
        self.digest = f"digest of {name}"
        self.dimensions = dimensions
        self.folder = Path(f"/models/{name}")
        self.location = str(self.folder)
        self.tokenizer = WordTokenizer()
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        if kind == "document":
            self.texts += texts
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text: str) -> Vectors:
        seed = hashlib.sha256(f"{self.name}\0{text}".encode()).digest()[:8]
        drawn = np.random.default_rng(int.from_bytes(seed)).standard_normal(self.dimensions)
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)


class Models:
    """`default` is the configured one; a model that is taken out of `here` cannot be found."""

    def __init__(self) -> None:
        self.default = NamedEmbedder("default", 8)
        self.wide = NamedEmbedder("wide", 16)
        self.third = NamedEmbedder("third", 12)
        self.here = {one.name: one for one in (self.default, self.wide, self.third)}

    def install(self) -> None:
        """Let the product find these and no others, in this process."""
        app.embedding.query_models.identify = self.identify
        app.embedding.query_models.find_known = self.find_known
        app.embedding.query_models.open_for_questions = self.opened
        ingestion.pipeline.find_known = self.find_known
        ingestion.pipeline.open_known = self.open_known
        ingestion.pipeline.location_of = self.location_of
        ingestion.pipeline.open_embedder = self.open_configured
        app.resources.open_for_questions = self.open_configured

    def install_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same for as long as a test runs."""
        for module, names in (
            (app.embedding.query_models, ("identify", "find_known", "open_for_questions")),
            (ingestion.pipeline, ("find_known", "open_known", "location_of", "open_embedder")),
            (app.resources, ("open_for_questions",)),
        ):
            for name in names:
                monkeypatch.setattr(module, name, getattr(module, name))
        self.install()

    def identify(self, name: str) -> Any:
        if name not in self.here:
            raise EmbeddingUnavailable(f"The embedding model {name} is not on this machine.")
        return self.here[name]

    def find_known(self, model: Any) -> Any:
        if model.name not in self.here:
            raise ModelMissing(f"The embedding model {model.name} is not as it was.")
        return self.here[model.name]

    def location_of(self, _: str) -> None:
        return None

    def open_configured(self, *_: Any, **__: Any) -> Any:
        return self.default

    def opened(self, _: Any, model: Any, **__: Any) -> Any:
        return model

    def open_known(self, _: Any, model: Any, **__: Any) -> Any:
        return self.find_known(model)
