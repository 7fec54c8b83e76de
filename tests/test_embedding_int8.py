"""A model in 8-bit integers: another model, nearly as exact, on onnxruntime whatever is asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.config import BUNDLED_MODEL, Settings
from app.db.vectors import StoredModel
from app.embedding import int8, loading
from app.embedding.base import vectors_digest
from app.embedding.known import ModelMissing, find_known, open_known
from app.embedding.loading import open_for_questions, open_model
from app.embedding.model_folder import INT8, identify
from app.embedding.onnx_export import ExportRefused
from tests.tiny_models import DIMENSIONS, save_tiny_model

TEXTS = ["the cold room", "who signs for the delivery of books and crates", "price"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), embedding_model=str(model))


ROUNDED = identify(f"{BUNDLED_MODEL}{INT8}")


def test_it_is_another_model_and_nearly_as_exact(settings: Settings, embedder: Any) -> None:
    rounded = open_model(settings, ROUNDED)
    assert rounded.name == ROUNDED.name
    assert rounded.digest != embedder.digest
    assert (rounded.dimensions, rounded.runtime) == (embedder.dimensions, "onnx")
    cosines = np.sum(embedder.embed(TEXTS, "document") * rounded.embed(TEXTS, "document"), axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-6
    again = open_model(settings.model_copy(update={"embedding_runtime": "torch"}), ROUNDED)
    assert again.runtime == "onnx"


def test_one_that_does_not_bear_it_is_refused(
    settings: Settings, embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "LIKENESS_COSINE", 1.1)
    [export] = (settings.model_cache / embedder.digest).glob("onnx-?")
    with pytest.raises(ExportRefused, match="does not bear"):
        int8.quantize_export(export, tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


def test_what_is_embedded_with_a_text_changes_nothing(settings: Settings) -> None:
    rounded = open_model(settings, ROUNDED)
    together = rounded.embed(TEXTS, "document")
    alone = np.concatenate([rounded.embed([text], "document") for text in TEXTS])
    assert np.array_equal(together, alone)


# --- questions in integers, passages exactly ------------------------------------------------------


def test_questions_are_rounded_and_passages_are_not(settings: Settings, embedder: Any) -> None:
    serving = open_for_questions(settings, identify(BUNDLED_MODEL))
    rounded = open_model(settings, ROUNDED)
    assert np.array_equal(serving.embed(TEXTS, "document"), embedder.embed(TEXTS, "document"))
    assert np.array_equal(serving.embed(TEXTS, "query"), rounded.embed(TEXTS, "query"))
    vectors, tokens = serving.embed_with_tokens(TEXTS, "query")
    assert np.array_equal(vectors, serving.embed(TEXTS, "query"))
    assert [len(one.spans) for one in tokens] == [len(s) for s in serving.tokenizer.spans(TEXTS)]
    cosines = np.sum(serving.embed(TEXTS, "query") * embedder.embed(TEXTS, "query"), axis=1)
    assert cosines.min() > 0.995
    assert (serving.name, serving.digest) == (embedder.name, embedder.digest)
    assert (serving.dimensions, serving.max_tokens, serving.runtime) == (
        embedder.dimensions,
        embedder.max_tokens,
        "onnx",
    )
    assert vectors_digest(serving, "document") == vectors_digest(embedder, "query")
    assert vectors_digest(serving, "query") == rounded.digest


@pytest.mark.parametrize(
    "changed", [{"query_int8": False}, {"embedding_runtime": "torch"}], ids=str
)
def test_whoever_wants_exact_questions_has_them(
    settings: Settings, changed: dict[str, Any]
) -> None:
    serving = open_for_questions(settings.model_copy(update=changed), identify(BUNDLED_MODEL))
    assert vectors_digest(serving, "query") == serving.digest


def test_a_model_that_does_not_bear_it_answers_questions_exactly(
    tiny: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = loading._run_child  # pyright: ignore[reportPrivateUsage]

    def refuse(module: str, source: Path, target: Path) -> None:
        if module == "app.embedding.int8":
            raise loading._NoExport("it does not bear it")  # pyright: ignore[reportPrivateUsage]
        run(module, source, target)

    monkeypatch.setattr(loading, "_run_child", refuse)
    serving = open_for_questions(tiny, identify(str(model)))
    assert vectors_digest(serving, "query") == serving.digest
    assert serving.embed(TEXTS, "query").shape == (len(TEXTS), DIMENSIONS)


def test_a_registered_model_is_found_where_it_was(tiny: Settings, model: Path) -> None:
    found = identify(str(model))
    stored = StoredModel(1, "./not-here", found.digest, DIMENSIONS, found.location)
    assert find_known(stored).digest == found.digest
    embedder = open_known(tiny, stored)
    assert (embedder.name, embedder.digest) == (stored.name, found.digest)
    other = StoredModel(1, str(model), "another digest", DIMENSIONS, None)
    with pytest.raises(ModelMissing, match="have become others"):
        find_known(other)
    assert ROUNDED.location is None
