"""Where a text that is too heavy for one chunk is cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ingestion.chunking.blocks import Block, Kind
from ingestion.chunking.tokens import Scale

_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_LINE = re.compile(r"\n")
_UNINDENTED_LINE = re.compile(r"\n(?=\S)")
_ITEM = re.compile(r"\n(?=(?:[-*+]|\d{1,9}[.)])[ \t])")
_NESTED_ITEM = re.compile(r"\n(?=[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t])")
_CELL = re.compile(r"\|")
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]*_]*\s+(?![a-z])|[。！？｡][”’」』）]*")
_CLAUSE = re.compile(r"[,;:]\s+|[，；：、]")
_WORD = re.compile(r"\s+")

_PROSE = (_SENTENCE, _LINE, _CLAUSE, _WORD)
_BOUNDARIES: dict[Kind, tuple[re.Pattern[str], ...]] = {
    "heading": _PROSE,
    "paragraph": _PROSE,
    "list": (_ITEM, _NESTED_ITEM, *_PROSE),
    "code": (_BLANK_LINE, _UNINDENTED_LINE, _LINE, _CLAUSE, _WORD),
    "table": (_LINE, _CELL, _SENTENCE, _WORD),
}
"""Where a block may be cut, the best places first."""

_KEPT_WHOLE: frozenset[Kind] = frozenset({"code", "table"})


@dataclass(frozen=True, slots=True)
class Sizes:
    """Weights. A piece has `limit` at most, or `limit_hard` where that keeps a block whole.

    What stands before a block too heavy for one piece goes with its first part while it is
    `small`; what stands before any other block only while it is `tiny`.
    """

    limit: int
    limit_hard: int
    small: int
    tiny: int


def cut(
    text: str, scale: Scale, blocks: Sequence[Block], first: int, position: int, sizes: Sizes
) -> int:
    """Where the piece ends that begins at `position`, in `blocks[first]`.

    At the end of a block, such that the pieces of all blocks come out about even; inside a block
    only when it is too heavy for a piece, or would leave next to nothing before it.
    """
    end = blocks[-1].end
    weight = scale.weigh(position, end)
    if weight <= sizes.limit:
        return end
    place = _place_to_cut(text, scale, blocks, first, position, sizes)
    leaves_crumbs = scale.weigh(place, end) < sizes.tiny
    return end if leaves_crumbs and weight <= sizes.limit_hard else place


def _place_to_cut(
    text: str, scale: Scale, blocks: Sequence[Block], first: int, position: int, sizes: Sizes
) -> int:
    weight = scale.weigh(position, blocks[-1].end)
    ideal = weight / ceil(weight / sizes.limit)
    best, best_weight = position, 0
    block = blocks[first]
    while (weight := scale.weigh(position, block.end)) <= sizes.limit:
        # A heading stays with what it opens.
        if block.kind != "heading" and abs(weight - ideal) <= abs(best_weight - ideal):
            best, best_weight = block.end, weight
        first += 1
        block = blocks[first]
    fits_alone = scale.weigh(block.start, block.end) <= sizes.limit
    if best_weight >= (sizes.tiny if fits_alone else sizes.small):
        return best
    if weight <= sizes.limit_hard:
        return block.end
    if best_weight and fits_alone and block.kind in _KEPT_WHOLE:
        return best
    return _cut_inside(text, scale, block, position, weight, sizes.limit)


def _cut_inside(
    text: str, scale: Scale, block: Block, position: int, weight: int, limit: int
) -> int:
    """A cut at the strongest kind of boundary that there is, in a text without any at the limit."""
    ideal_weight = weight / ceil(weight / limit)
    earliest = max(scale.reach(position, int(ideal_weight / 2)), block.start, position + 1)
    ideal = scale.reach(position, round(ideal_weight))
    latest = min(max(scale.reach(position, limit), earliest), block.end)
    for boundary in _BOUNDARIES[block.kind]:
        # One character more, for what must not follow a boundary.
        ends = [match.end() for match in boundary.finditer(text, earliest, latest + 1)]
        places = [end for end in ends if end <= latest]
        if places:
            return min(places, key=lambda place: abs(place - ideal))
    return latest
