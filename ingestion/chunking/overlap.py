"""How a passage comes to repeat the end of the one before it."""

import re

from ingestion.chunking.manuscript import Manuscript
from ingestion.chunking.pieces import Piece

_OPENING = re.compile(r"\n|[.!?…][\"'”’)\]*_]*\s+(?![a-z])|[。！？｡][”’」』）]*")


def opening(script: Manuscript, before: Piece | None, piece: Piece, overlap: int) -> int:
    """Where a passage begins that repeats the last `overlap` tokens of the one before, or fewer.

    It begins with a sentence or a line if one begins in them; more than half of a short passage
    is never repeated.
    """
    if not overlap or not piece.follows or before is None:
        return piece.start
    weight = min(overlap, script.scale.weigh(before.start, before.end) // 2)
    earliest = max(script.scale.reach_back(piece.start, weight), piece.repeats_from)
    # One character before, for the boundary that ends just there.
    begins = _OPENING.search(script.text, max(earliest - 1, before.start), piece.start)
    place = begins.end() if begins else earliest
    return place if script.text[place : piece.start].strip() else earliest
