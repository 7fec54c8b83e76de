"""Any sentence-transformers model, on torch: the reference for every other runtime.

torch and sentence-transformers are loaded with the first model, not with this module.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tokenizers

from app.embedding.base import TextKind, TokenVectors, Vectors
from app.embedding.tokens import ModelTokenizer, encodable
from app.embedding.vectors import token_vectors, unit_vectors
from app.errors import EmbeddingUnavailable

# Models name their prefixes differently; the first of these that a model has is the one.
PROMPT_NAMES: Mapping[TextKind, tuple[str, ...]] = {
    "query": ("query", "search_query"),
    "document": ("document", "passage", "corpus", "search_document"),
}
UNBOUNDED_TOKENS = 1 << 20
"""Stands for "no limit" where a model has none."""


class SentenceTransformerEmbedder:
    """A model that sentence-transformers runs, on the GPU when torch has one.

    Raises EmbeddingUnavailable when the folder holds no model that can be loaded without running
    code of its own.
    """

    runtime = "torch"

    def __init__(self, folder: Path, *, name: str, digest: str, device: str | None = None) -> None:
        self.name = name
        self.digest = digest
        try:
            self.model = _load(folder, device)
            self.dimensions = int(self.model.get_embedding_dimension())
            tokenizer = self.copy_of_tokenizer()
        except Exception as error:
            raise EmbeddingUnavailable(
                f"The embedding model {name} cannot be loaded: "
                f"{(str(error).strip() or type(error).__name__).splitlines()[0]}",
                hint="Choose a text model that sentence-transformers loads without "
                "trust_remote_code, or restore the files of this one.",
            ) from error
        self.max_tokens = int(min(self.model.max_seq_length or UNBOUNDED_TOKENS, UNBOUNDED_TOKENS))
        self.prompts = _prompts(self.model.prompts)
        self.tokenizer = ModelTokenizer(lambda: tokenizer)
        # Says where the tokens of a text are that the model reads, with its prompt and cut alike.
        self._reader = self.copy_of_tokenizer()
        self._reader.no_padding()
        self._reader.enable_truncation(self.max_tokens)  # pyright: ignore[reportUnknownMemberType]
        # The tokenizer of transformers sets truncation and padding on shared state at every call.
        self._one_at_a_time = Lock()

    def copy_of_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer as the model uses it, ready to be configured in another way."""
        own = self.model.tokenizer
        fast = getattr(own, "backend_tokenizer", own)
        if not isinstance(fast, tokenizers.Tokenizer):
            raise TypeError("its tokenizer does not tell where in a text its tokens are")
        return tokenizers.Tokenizer.from_str(fast.to_str())

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        encode = self.model.encode_query if kind == "query" else self.model.encode_document
        try:
            with self._one_at_a_time:
                encoded = encode(
                    [encodable(text) for text in texts],
                    prompt=self.prompts[kind],
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )
        except Exception as error:
            raise EmbeddingUnavailable(f"The embedding model {self.name} failed.") from error
        vectors = np.asarray(encoded, dtype=np.float32)
        return unit_vectors(vectors, count=len(texts), dimensions=self.dimensions)

    def embed_with_tokens(
        self, texts: Sequence[str], kind: TextKind
    ) -> tuple[Vectors, list[TokenVectors]]:
        if not texts:
            return np.empty((0, self.dimensions), np.float32), []
        encode = self.model.encode_query if kind == "query" else self.model.encode_document
        prompt = self.prompts[kind]
        readable = [encodable(text) for text in texts]
        try:
            with self._one_at_a_time:
                encoded: Any = encode(
                    readable,
                    prompt=prompt,
                    output_value=None,
                    convert_to_numpy=False,
                    show_progress_bar=False,
                )
            pooled = np.stack([_array(one["sentence_embedding"]) for one in encoded])
            read = self._reader.encode_batch([prompt + text for text in readable])
            states = [
                _array(one["token_embeddings"][one["attention_mask"].bool()]) for one in encoded
            ]
        except Exception as error:
            raise EmbeddingUnavailable(f"The embedding model {self.name} failed.") from error
        pooled = pooled[:, : self.dimensions]
        pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit_vectors(pooled, count=len(texts), dimensions=self.dimensions), [
            token_vectors(one.offsets, one.special_tokens_mask, own, len(prompt))
            for one, own in zip(read, states, strict=True)
        ]


def _load(folder: Path, device: str | None) -> Any:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - loads torch
    from sentence_transformers.util import get_device_name  # noqa: PLC0415 - loads torch
    from transformers.utils import logging  # noqa: PLC0415 - loads torch

    logging.disable_progress_bar()
    device = device or get_device_name()
    options: dict[str, Any] = {"use_safetensors": True}
    if device == "cpu":
        # Half precision saves nothing on a CPU: it is slower there, and less exact.
        options["dtype"] = "float32"
    return SentenceTransformer(
        str(folder),
        device=device,
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs=options,
    )


def _array(tensor: Any) -> Vectors:
    return tensor.float().cpu().numpy()


def _prompts(configured: Mapping[str, str]) -> dict[TextKind, str]:
    return {
        kind: next((configured[name] for name in names if configured.get(name)), "")
        for kind, names in PROMPT_NAMES.items()
    }
