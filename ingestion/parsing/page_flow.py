"""How the text of a PDF goes on from one page to the next.

The end of a page tears whatever stands there: a sentence, a word, a list, a table. What belongs
together is joined again, so that the text is the same wherever its pages end, and a text that is set
anew after an edit differs by that edit alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ingestion.parsing.page_layout import Column, Line
from ingestion.parsing.page_lines import (
    PARAGRAPH,
    ends_sentence,
    is_caption,
    is_dotted,
    is_item,
    is_like_size,
    line_joint,
    parted,
)
from ingestion.parsing.page_tables import Table
from ingestion.parsing.page_text import Style, TextBlock, read_text_blocks
from ingestion.parsing.tables import markdown_rows

PASSED_BLOCKS_MAX = 8
"""A sentence is looked for beyond so many figures, headers and notes on either side of a break."""
BREAK_HEIGHTS = 0.9
"""A page is left early where another line had found room: it ends with a paragraph."""
EARLY_SHARE = 0.25
"""A page that leaves more of the usual height empty than this was ended on purpose."""
FLOWING_SHARE_MIN = 0.1
"""In a text that flows, so many of the pages end in the middle of something."""
USUAL_SHARE = 0.1
TABLE_TOLERANCE = 0.03

_RUNNING_HEAD = re.compile(r"\d+\s|.*\s\d+$")
_LEADS_ON = re.compile(r".*[,\-–(\[]$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Extent:
    """From where to where there is text on a page."""

    top: float
    bottom: float


def read_on(pages: Sequence[Sequence[Column]], style: Style) -> tuple[list[str], list[str | None]]:
    """The pages as Markdown, and what stands between each and the next (see `Draft`).

    What stands between two halves of a sentence is put before it on its page, or behind it.
    """
    blocks = [read_text_blocks(page, style) for page in pages]
    extents = [_extent(page) for page in pages]
    usual = _usual([extent for extent in extents if extent])
    joints: list[str | None] = [None] * max(len(pages) - 1, 0)
    may_be_joined = list[int]()
    for index, (above, below) in enumerate(pairwise(extents)):
        if above is None or below is None or usual is None:
            continue
        is_early = usual.bottom - above.bottom > EARLY_SHARE * (usual.bottom - usual.top)
        if not is_early:
            may_be_joined.append(index)
        is_held = index > 0 and joints[index - 1] is not None
        seam = _Seam(blocks[index], blocks[index + 1], style, is_held=is_held)
        joints[index] = seam.joint(_Room(usual, above, below), is_early=is_early)
    joined_count = sum(joint is not None for joint in joints)
    if joined_count >= FLOWING_SHARE_MIN * len(may_be_joined):
        for index in may_be_joined:
            if joints[index] is None:
                joints[index] = PARAGRAPH
    return ["\n\n".join(block.text for block in page) for page in blocks], joints


def _extent(page: Sequence[Column]) -> _Extent | None:
    """None where it is not known what stands where."""
    items = [
        item
        for column in page
        for item in column.items
        if not column.aside and not (isinstance(item, Line) and item.running)
    ]
    if not items or any(isinstance(item, Line) and item.size == 0 for item in items):
        return None
    return _Extent(min(item.top for item in items), max(item.bottom for item in items))


def _usual(extents: Sequence[_Extent]) -> _Extent | None:
    if not extents:
        return None
    tops = sorted(extent.top for extent in extents)
    bottoms = sorted((extent.bottom for extent in extents), reverse=True)
    at = int(USUAL_SHARE * len(extents))
    return _Extent(tops[at], bottoms[at])


@dataclass(frozen=True, slots=True)
class _Room:
    """What is left empty at the end of a page and at the start of the next."""

    usual: _Extent
    above: _Extent
    below: _Extent

    def is_gap(self, last: Line, pitch: float) -> bool:
        left_below = self.usual.bottom - self.above.bottom
        left_above = self.below.top - self.usual.top
        return left_below >= BREAK_HEIGHTS * pitch or left_above >= BREAK_HEIGHTS * last.height


class _Seam:
    """The blocks on both sides of a page break; `is_held` when the page's first may not move."""

    def __init__(
        self, above: list[TextBlock], below: list[TextBlock], style: Style, *, is_held: bool
    ) -> None:
        self._above = above
        self._below = below
        self._style = style
        self._is_held = is_held

    def joint(self, room: _Room, *, is_early: bool) -> str | None:
        """What goes on over the break is brought to its edges; None when nothing does."""
        if not is_early and (joint := self._table_joint()) is not None:
            return joint
        for head, block in enumerate(self._below[: PASSED_BLOCKS_MAX + 1]):
            tail = self._tail(block)
            joint = None if tail is None else self._text_joint(tail, head, room, is_early=is_early)
            if tail is not None and joint is not None:
                self._above.append(self._above.pop(tail))
                self._below.insert(0, self._below.pop(head))
                self._above[-1].text, between = parted(self._above[-1].text, joint)
                return between
            if not self._may_be_passed(block):
                return None
        return None

    def _may_be_passed(self, block: TextBlock) -> bool:
        """Whether it may stand in the middle of a sentence: a figure, a header, small print."""
        if block.lines is None:
            return True
        first, body = block.lines[0].line, self._style.body_size
        is_small = first.size < body and not is_like_size(first, body)
        return _is_running_head(block) or is_caption(first) or is_small

    def _tail(self, head: TextBlock) -> int | None:
        """The text above the break that a block may go on with: what is smaller is a note."""
        if head.lines is None:
            return None
        first = head.lines[0].line
        lowest = max(len(self._above) - 1 - PASSED_BLOCKS_MAX, self._is_held)
        for index in range(len(self._above) - 1, -1, -1):
            block = self._above[index]
            is_last = index == len(self._above) - 1
            if index < lowest and not is_last:
                return None
            if block.kind == "heading":
                return None
            if block.lines is not None:
                last = block.lines[1].line
                if is_like_size(last, first.size):
                    return index
                if last.size > first.size:
                    return None
        return None

    def _text_joint(self, tail: int, head: int, room: _Room, *, is_early: bool) -> str | None:
        above, below = self._above[tail].lines, self._below[head].lines
        if above is None or below is None:
            return None
        last, first = above[1], below[0]
        if is_caption(first.line) or _is_running_head(self._below[head]):
            return None
        is_full = last.shape.is_full(last.line)
        has_ended = ends_sentence(last.line)
        leads_on = _LEADS_ON.match(last.line.text) is not None
        is_open = not has_ended and (is_full or leads_on)
        if is_early or head > 0 or tail < len(self._above) - 1:
            # Something stands between them: only what cannot stand alone is brought together.
            is_rest = first.line.text[0].islower() or leads_on or (head == 0 and not is_early)
            if not (is_open and is_rest):
                return None
        pitch = last.line.height + max(last.shape.gap, 0.0)
        is_hanging = last.line.left > above[0].line.left + last.line.height / 2
        is_gap = not is_open and (is_hanging or room.is_gap(last.line, pitch))
        joint = line_joint(last, first, self._style.words, is_gap=is_gap)
        if joint == "\n":
            dotted = is_dotted(last.line.text) and is_dotted(first.line.text)
            return joint if dotted or is_item(first.line) else None
        return None if joint == PARAGRAPH or (has_ended and not is_full) else joint

    def _table_joint(self) -> str | None:
        """The rows of a table that goes on lose their header; without one, it is said again."""
        ends = [index for index, block in enumerate(self._above) if block.kind != "apart"]
        starts = [index for index, block in enumerate(self._below) if block.kind != "apart"]
        if not ends or not starts or (self._is_held and ends[-1] == 0 != len(self._above) - 1):
            return None
        above, below = self._above[ends[-1]], self._below[starts[0]]
        if not (above.table and below.table and _goes_on(above.table, below.table)):
            return None
        header = above.table.cells[0]
        is_repeated = below.table.cells[0] == header
        rows = below.table.cells[1:] if is_repeated else below.table.cells
        below.text = "\n".join(markdown_rows([header, *rows])[2:])
        below.table.cells = [header, *rows]
        self._above.append(self._above.pop(ends[-1]))
        self._below.insert(0, self._below.pop(starts[0]))
        return "\n"


def _is_running_head(block: TextBlock) -> bool:
    """Whether it looks like one, with the number of its page or in capitals."""
    if block.lines is None or block.lines_count > 1 or block.text[0].islower():
        return False
    return _RUNNING_HEAD.match(block.text) is not None or block.text.isupper()


def _goes_on(above: Table, below: Table) -> bool:
    """Whether a table has the columns of the one above it, and no caption of its own."""
    width = above.right - above.left
    return (
        len(above.cells[0]) == len(below.cells[0])
        and not below.caption
        and abs(width - (below.right - below.left)) <= TABLE_TOLERANCE * width
    )
