"""What every embedder promises, asked of both runtimes with the same models."""

# ruff: noqa: PLC0415 - torch is loaded by the tests that need it, not by collecting them

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from app.embedding.base import Embedder, TokenEmbedder, Vectors
from app.embedding.model_folder import locate_model, model_digest
from app.embedding.onnx import MAX_PADDING_TOKENS, OnnxEmbedder, plan_batches
from app.embedding.onnx_export import export_model
from app.embedding.sentence_transformer import SentenceTransformerEmbedder
from app.embedding.vectors import unit_vectors
from app.errors import EmbeddingUnavailable
from tests.tiny_models import DIMENSIONS, MAX_TOKENS, save_tiny_model

Runtime = Literal["torch", "onnx"]
Opener = Callable[[str], Embedder]

PROMPTS = {"query": "question: ", "passage": "passage: "}
TEXTS = [
    "the cold room",
    "when was the invoice for the crate delivery signed and by whom",
    "price",
    "a question, and the answer that is in the document of this week: 4.5 (north)",
    "who was at the open house",
    "store",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models with the same weights: mean, cls, max (pooling), prompted, dense."""
    import torch
    from sentence_transformers.base.modules import Dense, Normalize

    folder = tmp_path_factory.mktemp("models")
    for pooling in ("mean", "cls", "max"):
        save_tiny_model(folder / pooling, pooling=pooling)
    save_tiny_model(folder / "prompted", prompts=PROMPTS)
    torch.manual_seed(1)
    dense = (Dense(DIMENSIONS, 8), Normalize())
    save_tiny_model(folder / "dense", extra_modules=dense)
    return folder


@pytest.fixture(scope="module")
def open_torch(models: Path) -> Opener:
    return lambda name: SentenceTransformerEmbedder(
        models / name, name=name, digest=model_digest(models / name), device="cpu"
    )


@pytest.fixture(scope="module")
def open_onnx(models: Path) -> Opener:
    def opener(name: str) -> Embedder:
        export = models / "exports" / name
        export_model(models / name, export)
        digest = model_digest(models / name)
        return OnnxEmbedder(export, name=name, digest=digest, threads=2, batch_tokens=64)

    return opener


@pytest.fixture(scope="module", params=["torch", "onnx"])
def open_model(request: pytest.FixtureRequest) -> Opener:
    return request.getfixturevalue(f"open_{request.param}")


@pytest.fixture(scope="module")
def mean_model(open_model: Opener) -> Embedder:
    return open_model("mean")


def cosines(some: Vectors, others: Vectors) -> Any:
    return np.sum(some * others, axis=1)


class TestEveryEmbedder:
    def test_gives_unit_vectors_in_input_order(self, mean_model: Embedder) -> None:
        together = mean_model.embed(TEXTS, "document")
        assert together.dtype == np.float32
        assert together.shape == (len(TEXTS), mean_model.dimensions) == (len(TEXTS), DIMENSIONS)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        alone = np.concatenate([mean_model.embed([text], "document") for text in TEXTS])
        assert cosines(together, alone).min() > 0.9999
        assert (together @ alone.T).argmax(axis=1).tolist() == list(range(len(TEXTS)))

    def test_gives_no_vectors_for_no_texts(self, mean_model: Embedder) -> None:
        assert mean_model.embed([], "query").shape == (0, DIMENSIONS)

    def test_describes_itself(self, mean_model: Embedder, models: Path) -> None:
        assert mean_model.name == "mean"
        assert mean_model.max_tokens == MAX_TOKENS
        assert mean_model.digest == model_digest(models / "mean")

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_pools_as_the_model_says(self, open_model: Opener, models: Path, pooling: str) -> None:
        embedder = open_model(pooling)
        states = hidden_states(models / pooling, TEXTS[1])
        expected = states[0] if pooling == "cls" else states.mean(axis=0)
        expected = expected / np.linalg.norm(expected)
        assert float(expected @ embedder.embed([TEXTS[1]], "document")[0]) > 0.9999

    def test_puts_the_models_own_prompts_before_texts(
        self, open_model: Opener, mean_model: Embedder
    ) -> None:
        prompted = open_model("prompted")
        for kind, prompt in (("query", "question: "), ("document", "passage: ")):
            spelled_out = mean_model.embed([prompt + text for text in TEXTS], kind)
            assert cosines(prompted.embed(TEXTS, kind), spelled_out).min() > 0.9999
        query, document = (prompted.embed(TEXTS[:1], kind) for kind in ("query", "document"))
        assert cosines(query, document)[0] < 0.9999

    def test_gives_tokens_of_the_same_run(self, mean_model: Embedder, models: Path) -> None:
        assert isinstance(mean_model, TokenEmbedder)
        vectors, tokens = mean_model.embed_with_tokens(TEXTS, "document")
        assert cosines(vectors, mean_model.embed(TEXTS, "document")).min() > 0.9999
        for text, own in zip(TEXTS, tokens, strict=True):
            assert own.spans == mean_model.tokenizer.spans([text])[0]
            states = hidden_states(models / "mean", text)[1:-1]  # the others are special tokens
            expected = states / np.linalg.norm(states, axis=1, keepdims=True)
            assert cosines(expected, own.vectors).min() > 0.9999

    def test_leaves_the_prompt_out_of_the_tokens(self, open_model: Opener) -> None:
        prompted = open_model("prompted")
        assert isinstance(prompted, TokenEmbedder)
        _, (own,) = prompted.embed_with_tokens(["\ud800 " + TEXTS[0] + " store" * 99], "query")
        assert own.spans[:2] == [(2, 5), (6, 10)]
        assert len(own.spans) == len(own.vectors) < MAX_TOKENS

    def test_truncates_at_the_models_length(self, mean_model: Embedder) -> None:
        words = "the crate of the house was open " * 20
        tokens = mean_model.tokenizer.spans([words])[0]
        fits = words[: tokens[MAX_TOKENS - 3][1]]  # two tokens of every text are special
        vectors = mean_model.embed([fits, words, words + "and more " * 5000], "document")
        assert cosines(vectors[:1], vectors[1:]).min() > 0.9999
        shorter = mean_model.embed([words[: tokens[MAX_TOKENS - 4][1]]], "document")
        assert cosines(vectors[:1], shorter)[0] < 0.9999

    @pytest.mark.parametrize(
        "text",
        ["", " ", "\0", "\0\0cold", "\ud800", "a\udfffb", "\udcff" * 9, "🧊" * 99, "x" * 300_000],
        ids=["empty", "blank", "nul", "nuls", "high", "low", "lows", "emoji", "long word"],
    )
    def test_lives_through_odd_texts(self, mean_model: Embedder, text: str) -> None:
        vectors = mean_model.embed([text, TEXTS[0]], "query")
        assert np.isfinite(vectors).all()
        assert cosines(vectors[1:], mean_model.embed(TEXTS[:1], "query"))[0] > 0.9999
        spans = mean_model.tokenizer.spans([text])[0]
        assert all(0 <= start <= end <= len(text) for start, end in spans)

    def test_tells_where_tokens_are_without_truncating(self, mean_model: Embedder) -> None:
        text = "\ud800 The Cold room, " + "store " * (3 * MAX_TOKENS)
        (spans,) = mean_model.tokenizer.spans([text])
        assert [text[start:end] for start, end in spans[:5]] == [
            "The",
            "Cold",
            "room",
            ",",
            "store",
        ]
        assert len(spans) == 4 + 3 * MAX_TOKENS
        assert mean_model.tokenizer.spans([]) == []

    def test_gives_the_vectors_of_a_serial_run_to_many_threads(self, mean_model: Embedder) -> None:
        lists = [
            [
                f"{TEXTS[(turn + place) % 6]} {turn} {'room ' * place}"
                for place in range(turn % 5 + 1)
            ]
            for turn in range(64)
        ]
        serial = [mean_model.embed(texts, "query") for texts in lists]
        spans = [mean_model.tokenizer.spans(texts) for texts in lists]
        with ThreadPoolExecutor(16) as threads:
            parallel = list(threads.map(lambda texts: mean_model.embed(texts, "query"), lists))
            parallel_spans = list(threads.map(mean_model.tokenizer.spans, lists))
        for expected, actual in zip(serial, parallel, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-6)
        assert parallel_spans == spans


@pytest.mark.parametrize("name", ["mean", "cls", "max", "prompted", "dense"])
def test_both_runtimes_give_the_same_vectors(
    open_torch: Opener, open_onnx: Opener, name: str
) -> None:
    torch, onnx = open_torch(name), open_onnx(name)
    assert (torch.runtime, onnx.runtime) == ("torch", "onnx")
    assert torch.dimensions == onnx.dimensions
    texts = [*TEXTS, *(" ".join(TEXTS[:count]) for count in range(2, 7)), "", "ünïcode ✓"]
    for kind in ("query", "document"):
        assert cosines(torch.embed(texts, kind), onnx.embed(texts, kind)).min() > 0.9999


def test_a_model_of_real_size_gives_the_vectors_of_sentence_transformers(embedder: Any) -> None:
    """The bundled model through everything, against the library's own encode."""
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(locate_model(embedder.name)), device="cpu")
    texts = [*TEXTS, "Zwölf Boxkämpfer jagen Viktor 😀", "word " * 400, ""]
    assert embedder.runtime == "onnx"
    assert embedder.max_tokens == reference.max_seq_length == 256
    expected = reference.encode(texts, show_progress_bar=False)
    assert cosines(embedder.embed(texts, "document"), expected).min() > 0.9999


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_vectors_that_cannot_be_compared_are_refused(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, runtime: Runtime, value: float
) -> None:
    embedder: Any = request.getfixturevalue(f"open_{runtime}")("mean")

    def broken(texts_or_outputs: Any, *arguments: Any, **_options: Any) -> Any:
        count = len(arguments[0]["input_ids"]) if runtime == "onnx" else len(texts_or_outputs)
        vectors = np.full((count, DIMENSIONS), value, np.float32)
        return [vectors] if runtime == "onnx" else vectors

    if runtime == "onnx":
        monkeypatch.setattr(
            embedder, "_session", type("Session", (), {"run": staticmethod(broken)})
        )
    else:
        monkeypatch.setattr(embedder.model, "encode_query", broken)
    with pytest.raises(EmbeddingUnavailable, match="length 1"):
        embedder.embed(TEXTS, "query")


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_runtime_that_fails_is_an_embedding_that_is_unavailable(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    embedder: Any = request.getfixturevalue(f"open_{runtime}")("mean")

    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("out of memory")

    if runtime == "onnx":
        monkeypatch.setattr(embedder, "_session", type("Session", (), {"run": staticmethod(fail)}))
    else:
        monkeypatch.setattr(embedder.model, "encode_query", fail)
    with pytest.raises(EmbeddingUnavailable, match="mean failed"):
        embedder.embed(TEXTS, "query")


def test_vectors_of_another_shape_are_refused() -> None:
    right = np.eye(3, dtype=np.float32)
    assert unit_vectors(right, count=3, dimensions=3) is right
    for count, dimensions in ((2, 3), (3, 4)):
        with pytest.raises(EmbeddingUnavailable, match="shape"):
            unit_vectors(right, count=count, dimensions=dimensions)


class TestBatches:
    def test_hold_every_text_once_longest_first(self) -> None:
        lengths = [5, 120, 7, 119, 3, 250, 6]
        batches = plan_batches(lengths, 256)
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        assert [batch[0] for batch in batches] == [5, 1, 2]
        assert batches == [[5], [1, 3], [2, 6, 0, 4]]

    def test_hold_no_more_than_their_tokens(self) -> None:
        for batch in plan_batches([30] * 20, 100):
            assert len(batch) <= 3
        assert plan_batches([500, 400], 100) == [[0], [1]]

    def test_pad_little(self) -> None:
        lengths = [10, 10 + MAX_PADDING_TOKENS, 11 + 2 * MAX_PADDING_TOKENS]
        assert plan_batches(lengths, 10_000) == [[2], [1, 0]]

    def test_take_texts_without_tokens(self) -> None:
        assert plan_batches([0, 0], 4) == [[0, 1]]
        assert plan_batches([], 4) == []


def hidden_states(folder: Path, text: str) -> Any:
    """The last hidden state of each token, from transformers alone: shape (tokens, dimensions)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0].numpy()
