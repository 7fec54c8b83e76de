"""A model in 8-bit integers: another model, nearly as exact, on onnxruntime whatever is asked for."""

from pathlib import Path

import numpy as np
import pytest

from app.config import Settings
from app.db.vectors import StoredModel
from app.embedding import int8
from app.embedding.known import ModelMissing, find_known, open_known
from app.embedding.loading import open_embedder, open_model
from app.embedding.model_folder import INT8, ModelIdentity, identify
from app.embedding.onnx_export import ExportRefused
from app.errors import EmbeddingUnavailable
from tests.tiny_models import DIMENSIONS, save_tiny_model

TEXTS = ["the cold room", "who signs for the delivery of books and crates", "price"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), embedding_model=str(model))


def rounded(model: Path) -> ModelIdentity:
    return identify(f"{model}{INT8}")


def test_it_is_another_model_and_nearly_as_exact(tiny: Settings, model: Path) -> None:
    exact = open_embedder(tiny)
    embedder = open_model(tiny, rounded(model))
    assert embedder.name == f"{model}{INT8}"
    assert embedder.digest != exact.digest
    assert (embedder.dimensions, embedder.runtime) == (DIMENSIONS, "onnx")
    cosines = np.sum(exact.embed(TEXTS, "document") * embedder.embed(TEXTS, "document"), axis=1)
    assert 0.95 < cosines.min() < cosines.max() < 1 - 1e-7
    again = open_model(tiny.model_copy(update={"embedding_runtime": "torch"}), rounded(model))
    assert np.array_equal(again.embed(TEXTS, "query"), embedder.embed(TEXTS, "query"))


def test_one_that_does_not_bear_it_is_refused(
    tiny: Settings, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = open_embedder(tiny)
    monkeypatch.setattr(int8, "LIKENESS_COSINE", 1.1)
    [export] = (tiny.model_cache / exact.digest).glob("onnx-?")
    with pytest.raises(ExportRefused, match="does not bear"):
        int8.quantize_export(export, tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EmbeddingUnavailable):
        identify(f"{tmp_path / 'nothing'}{INT8}")


def test_a_registered_model_is_found_where_it_was(tiny: Settings, model: Path) -> None:
    found = rounded(model)
    stored = StoredModel(1, f"./not-here{INT8}", found.digest, DIMENSIONS, found.location)
    assert find_known(stored).digest == found.digest
    embedder = open_known(tiny, stored)
    assert (embedder.name, embedder.digest) == (stored.name, found.digest)
    other = StoredModel(1, str(model), "another digest", DIMENSIONS, None)
    with pytest.raises(ModelMissing, match="have become others"):
        find_known(other)
    assert identify(f"all-MiniLM-L6-v2{INT8}").location is None
