"""What Footnote asks of an embedding model. Adapters stand beside this file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

TextKind = Literal["query", "document"]
"""Some models embed questions and passages differently (prefixes), so every call says which."""


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The tokens of one text as the model sees them in it, special tokens and prompt left out.

    `spans` are characters of the text; `vectors` are unit vectors, float32, shape (tokens, width),
    where the width is the model's own and need not be that of its pooled vectors.
    """

    spans: list[tuple[int, int]]
    vectors: Vectors


class Tokenizer(Protocol):
    """The model's own idea of a token; chunk sizes are counted with it."""

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Character spans of the tokens of each text, in order, special tokens left out.

        Never truncates; `len(spans([text])[0])` is the text's length in tokens.
        """
        ...


class Embedder(Protocol):
    """A loaded model. Calls block and are safe from several threads at once."""

    @property
    def name(self) -> str:
        """The configured name or path, as users know it."""
        ...

    @property
    def digest(self) -> str:
        """Hex SHA-256 over weights, tokenizer and pooling: equal digests give equal vectors."""
        ...

    @property
    def dimensions(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """Longer texts are truncated by the model to this many tokens, special tokens included."""
        ...

    @property
    def runtime(self) -> str:
        """What computes the vectors: `onnx` or `torch`."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        """Unit vectors: float32, shape (len(texts), dimensions), in input order.

        Raises EmbeddingUnavailable when the model cannot run or gives a vector that is not finite
        or has no length.
        """
        ...


@runtime_checkable
class ReadsTokens(Protocol):
    """What also tells what it made of each token, as late interaction needs it."""

    def embed_with_tokens(
        self, texts: Sequence[str], kind: TextKind
    ) -> tuple[Vectors, list[TokenVectors]]:
        """What `embed` gives and, of the same run, the vectors of each text's tokens.

        Tokens beyond `max_tokens` are left out. Raises what `embed` raises.
        """
        ...


def vectors_digest(embedder: Embedder, kind: TextKind) -> str:
    """What decides a text's vector besides the text: equal digests give equal vectors.

    The model's own digest, save for the questions of one that computes those in another way.
    """
    own: str = embedder.digest
    return getattr(embedder, "query_digest", own) if kind == "query" else own


class TokenEmbedder(Embedder, ReadsTokens, Protocol):
    """An embedder that tells of tokens too: every one that this package opens."""


class QueryEmbedding(Protocol):
    """An embedder for the event loop: it never computes there, and is bounded."""

    @property
    def embedder(self) -> Embedder: ...

    async def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        """Unit vectors: float32, shape (len(texts), dimensions), in input order.

        Raises Overloaded when too many calls wait, and what the embedder raises.
        """
        ...

    async def tokens(self, query: str) -> TokenVectors | None:
        """What the model made of each token of the query; None where it tells nothing of them."""
        ...

    def close(self) -> None:
        """Refuse what waits, finish what runs, and release the threads."""
        ...
