"""A model that computes passages exactly, and questions in 8-bit integers.

A question is short: what it takes is the reading of all weights, which are a quarter as large so.
Its vector differs less from the exact one than two ways to ask the same; passages stay comparable
with those that are there. See docs/decisions/0038-questions-in-integers.md.
"""

from collections.abc import Sequence

from app.embedding.base import TextKind, TokenEmbedder, Tokenizer, TokenVectors, Vectors


class RoundedQueries:
    """`exact` and `rounded` are two forms of one model."""

    def __init__(self, exact: TokenEmbedder, rounded: TokenEmbedder) -> None:
        self._exact = exact
        self._rounded = rounded

    @property
    def name(self) -> str:
        return self._exact.name

    @property
    def digest(self) -> str:
        """That of the passages' vectors."""
        return self._exact.digest

    @property
    def query_digest(self) -> str:
        """That of the questions' vectors; see `vectors_digest`."""
        return self._rounded.digest

    @property
    def dimensions(self) -> int:
        return self._exact.dimensions

    @property
    def max_tokens(self) -> int:
        return self._exact.max_tokens

    @property
    def runtime(self) -> str:
        return self._exact.runtime

    @property
    def tokenizer(self) -> Tokenizer:
        return self._exact.tokenizer

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        return self._of(kind).embed(texts, kind)

    def embed_with_tokens(
        self, texts: Sequence[str], kind: TextKind
    ) -> tuple[Vectors, list[TokenVectors]]:
        return self._of(kind).embed_with_tokens(texts, kind)

    def _of(self, kind: TextKind) -> TokenEmbedder:
        return self._rounded if kind == "query" else self._exact
