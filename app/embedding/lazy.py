"""A model that is loaded when something must be embedded, for a command that often embeds nothing."""

from collections.abc import Sequence
from functools import cached_property
from threading import Lock

from app.config import Settings
from app.embedding.base import TextKind, TokenEmbedder, Tokenizer, TokenVectors, Vectors
from app.embedding.loading import open_embedder
from app.embedding.model_folder import identify


class LazyEmbedder:
    """The configured model: what it is called is known at once, the rest blocks until it is loaded.

    Raises EmbeddingUnavailable when the model is not there, and at first use when it cannot be
    loaded. Opening it reads the model's files once, for their digest.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = settings.embedding_model
        self.digest = identify(self.name).digest
        self._settings = settings
        self._loading = Lock()

    @property
    def dimensions(self) -> int:
        return self._loaded.dimensions

    @property
    def max_tokens(self) -> int:
        return self._loaded.max_tokens

    @property
    def runtime(self) -> str:
        return self._loaded.runtime

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loaded.tokenizer

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        return self._loaded.embed(texts, kind)

    def embed_with_tokens(
        self, texts: Sequence[str], kind: TextKind
    ) -> tuple[Vectors, list[TokenVectors]]:
        return self._loaded.embed_with_tokens(texts, kind)

    @cached_property
    def _opened(self) -> TokenEmbedder:
        return open_embedder(self._settings)

    @property
    def _loaded(self) -> TokenEmbedder:
        with self._loading:
            return self._opened
