"""The strategy `recursive`: by paragraphs, then sentences, then words, whatever they mean."""

from app.embedding.base import Tokenizer
from ingestion.chunking.blocks import Block, read_blocks
from ingestion.chunking.manuscript import Manuscript
from ingestion.chunking.pieces import Cut
from ingestion.chunking.structure import grouped_pieces
from ingestion.types import Chunking, ParsedDocument


def cut_recursively(parsed: ParsedDocument, tokenizer: Tokenizer, chunking: Chunking) -> Cut:
    def read(start: int, end: int) -> list[Block]:
        return read_blocks(parsed.text, "plain", start, end)

    script = Manuscript(parsed, read, tokenizer, chunking)
    return script, grouped_pieces(script)
