"""The strategy `fixed`: a passage every so many tokens, wherever that falls."""

from app.embedding.base import Tokenizer
from ingestion.chunking.blocks import Block, read_blocks
from ingestion.chunking.manuscript import Manuscript
from ingestion.chunking.pieces import Cut, Piece
from ingestion.types import Chunking, ParsedDocument


def cut_in_windows(parsed: ParsedDocument, tokenizer: Tokenizer, chunking: Chunking) -> Cut:
    def read(start: int, end: int) -> list[Block]:
        return read_blocks(parsed.text, "plain", start, end)

    script = Manuscript(parsed, read, tokenizer, chunking)
    pieces: list[Piece] = []
    if script.blocks:
        size = min(script.limit, script.room(()))
        place, end = script.blocks[0].start, script.blocks[-1].end
        while place < end:
            next_place = min(max(script.scale.reach(place, size), place + 1), end)
            pieces.append(Piece(place, next_place))
            place = next_place
    return script, pieces
