"""The strategy `structure`: by pages, headings, paragraphs, lists, tables and definitions."""

from functools import reduce

from app.embedding.base import Tokenizer
from ingestion.chunking.blocks import Block, read_blocks, read_definitions
from ingestion.chunking.grouping import group
from ingestion.chunking.manuscript import Manuscript, common_path
from ingestion.chunking.parts import ANEW, Part, read_parts
from ingestion.chunking.pieces import Cut, Piece
from ingestion.chunking.tables import TableContexts
from ingestion.types import Chunking, ParsedDocument


def cut_by_structure(parsed: ParsedDocument, tokenizer: Tokenizer, chunking: Chunking) -> Cut:
    def read(start: int, end: int) -> list[Block]:
        if parsed.outline:
            return read_definitions(parsed.text, parsed.outline, start, end)
        return read_blocks(parsed.text, parsed.markup, start, end)

    script = Manuscript(parsed, read, tokenizer, chunking)
    return script, grouped_pieces(script)


def grouped_pieces(script: Manuscript) -> list[Piece]:
    """The blocks, or the parts of heavy ones, that are taken together as passages."""
    tables = TableContexts(script)
    parts = read_parts(script, tables)
    ranges = group(parts, script.scale, limit=script.limit, tiny=script.tiny)
    return [_piece(parts[first:last], tables) for first, last in ranges]


def _piece(parts: list[Part], tables: TableContexts) -> Piece:
    first = parts[0]
    return Piece(
        start=first.start,
        end=parts[-1].end,
        path=reduce(common_path, (part.path for part in parts)),
        context=tables.context(first.start),
        follows=first.strength < ANEW,
        repeats_from=tables.repeats_from(first.start),
    )
