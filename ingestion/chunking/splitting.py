"""Split a parsed text into chunks that read well and that the model sees whole."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable

from app.embedding.base import Tokenizer
from ingestion.chunking.fixed import cut_in_windows
from ingestion.chunking.overlap import opening
from ingestion.chunking.pieces import Cut
from ingestion.chunking.recursive import cut_recursively
from ingestion.chunking.structure import cut_by_structure
from ingestion.types import Chunk, Chunking, ChunkingStrategy, ParsedDocument

CHUNKING_VERSION = "3"
"""Changes with whatever changes the chunks of a text, so that documents are chunked anew."""

_DEFAULT = Chunking()

_STRATEGIES: dict[ChunkingStrategy, Callable[[ParsedDocument, Tokenizer, Chunking], Cut]] = {
    "structure": cut_by_structure,
    "recursive": cut_recursively,
    "fixed": cut_in_windows,
}


def split(
    parsed: ParsedDocument, tokenizer: Tokenizer, chunking: Chunking = _DEFAULT
) -> list[Chunk]:
    """Passages of `chunking.tokens` tokens at most, in order, that between them hold all of the text.

    Each repeats up to `chunking.overlap` tokens of the one before, and these count towards its
    size. A passage with its title, heading path and context (see `embedded_text`) takes at most a
    quarter more, so that a model of 256 tokens reads all of it at 200.
    """
    script, pieces = _STRATEGIES[chunking.strategy](parsed, tokenizer, chunking)
    page_starts = [page.start for page in parsed.pages]
    chunks: list[Chunk] = []
    before = None
    for piece in pieces:
        start = opening(script, before, piece, chunking.overlap)
        before = piece
        if not (text := parsed.text[start : piece.end]).strip():
            continue
        start += len(text) - len(text.lstrip())
        end = start + len(text.strip())
        following = bisect_right(page_starts, start)
        after = bisect_left(page_starts, end, following)
        chunks.append(
            Chunk(
                ordinal=len(chunks),
                text=parsed.text[start:end],
                start=start,
                end=end,
                heading=script.headings(piece.path),
                page=parsed.pages[max(following - 1, 0)].number if parsed.pages else None,
                tokens=script.scale.weigh(start, end),
                context=piece.context,
                page_breaks=tuple(place - start for place in page_starts[following:after]),
            )
        )
    return chunks
