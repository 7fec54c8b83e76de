"""An embedder that is quick, knows words for tokens, and remembers every text it was given."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from app.embedding.base import TextKind, Vectors

DIMENSIONS = 8


class WordTokenizer:
    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]


class WordEmbedder:
    """A text's vector depends on nothing but the text; `texts` are those embedded so far."""

    name = "words"
    dimensions = DIMENSIONS
    max_tokens = 256
    runtime = "onnx"

    def __init__(self, digest: str = "words-1") -> None:
        self.digest = digest
        self.tokenizer = WordTokenizer()
        self.texts: list[str] = []
        self.rounds: list[int] = []
        self.failure: Exception | None = None

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        assert kind == "document"
        if self.failure is not None:
            raise self.failure
        self.texts += texts
        self.rounds.append(len(texts))
        return np.stack([vector_of(text) for text in texts])


def vector_of(text: str) -> Vectors:
    numbers = np.frombuffer(hashlib.sha256(text.encode()).digest()[:DIMENSIONS], np.uint8)
    vector = numbers.astype(np.float32) + 1
    return vector / np.linalg.norm(vector)
