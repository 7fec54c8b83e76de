"""Ways to cut a text that `footnote eval chunking` compares: ours, and those of others."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.embedding.base import Tokenizer
from app.embedding.model_folder import locate_model
from app.errors import StartupError
from ingestion.chunking import split
from ingestion.types import Chunking, ParsedDocument, embedded_text


@dataclass(frozen=True, slots=True)
class Passage:
    """`text[start:end]` of a corpus; `embedded` is what the model is shown of it."""

    start: int
    end: int
    embedded: str


Cut = Callable[[str, str], list[Passage]]
"""From a corpus's title and text to its passages."""


def ours(tokenizer: Tokenizer, chunking: Chunking) -> Cut:
    """As the product ingests a Markdown file of that title: with the heading path."""

    def cut(title: str, text: str) -> list[Passage]:
        parsed = ParsedDocument(text=text, title=title, media_type="text/markdown")
        chunks = split(parsed, tokenizer, chunking)
        return [Passage(one.start, one.end, embedded_text(title, one)) for one in chunks]

    return cut


def fixed_windows(tokenizer: Tokenizer, tokens: int) -> Cut:
    """Every `tokens` tokens, wherever that falls."""

    def cut(title: str, text: str) -> list[Passage]:
        (spans,) = tokenizer.spans([text])
        starts = [start for start, _ in spans[::tokens]]
        ends = [*starts[1:], len(text)]
        return [_titled(title, text, *span) for span in zip(starts, ends, strict=True)]

    return cut


def chonkie_recursive(model: str, tokens: int) -> Cut:
    """The RecursiveChunker of chonkie with its own rules, counting in the tokens of `model`."""
    try:
        import chonkie  # noqa: PLC0415 - only who compares needs it
        import tokenizers  # noqa: PLC0415 - as above
    except ImportError:
        raise StartupError("Comparing needs chonkie.", hint="Install footnote[dev].") from None
    counted = tokenizers.Tokenizer.from_file(str(locate_model(model) / "tokenizer.json"))
    counted.no_truncation()
    counted.no_padding()
    library: Any = chonkie
    chunker = library.RecursiveChunker(tokenizer=counted, chunk_size=tokens)

    def cut(title: str, text: str) -> list[Passage]:
        chunks = chunker.chunk(text)
        return [
            _titled(title, text, one.start_index, one.end_index)
            for one in chunks
            if one.text.strip()
        ]

    return cut


def _titled(title: str, text: str, start: int, end: int) -> Passage:
    return Passage(start, end, f"{title}\n{text[start:end].strip()}")


class TokenRuler:
    """Spans of characters as spans of token numbers."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        (spans,) = tokenizer.spans([text])
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]

    def tokens(self, start: int, end: int) -> range:
        """The tokens that `text[start:end]` touches."""
        first = bisect_left(self._ends, start + 1)
        return range(first, max(first, bisect_left(self._starts, end)))
