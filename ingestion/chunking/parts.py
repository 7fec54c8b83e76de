"""The smallest parts that passages are made of, and how good a place each one is to begin at."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

from ingestion.chunking.blocks import Block, Kind
from ingestion.chunking.manuscript import Manuscript, Path
from ingestion.chunking.tables import TableContexts

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

PAGE = 100
"""The strength of a page that does not read on: a passage begins there whatever is around it."""

ANEW = 60
"""From this strength on, something new begins: a page, a section, a definition."""

_HEADING = 90
_HEADING_LEVELS = 30
_BLOCK = 50
_INSIDE = 40
_AFTER_COLON = 1

KEY_CHARS = 32


@dataclass(slots=True)
class Part:
    """`text[start:end]`, which is not cut. `room` is the weight of a passage that it may be in.

    `strength` tells how good a place `start` is for a passage to begin, `key` decides among
    equally good ones.
    """

    start: int
    end: int
    path: Path
    strength: int
    room: int
    key: int = 0


def read_parts(script: Manuscript, tables: TableContexts) -> list[Part]:
    """All of the text's blocks: whole, or in pieces where they are too heavy for one passage."""
    parts = _PartsReader(script, tables).parts()
    for part in parts:
        part.key = _key(script.text, part.start)
    return parts


def _key(text: str, place: int) -> int:
    """A number drawn from the words on both sides of a place.

    Either side can make it a high one, so that an edit on one side seldom lowers it.
    """
    before = text[max(0, place - KEY_CHARS) : place].encode("utf-8", "replace")
    after = text[place : place + KEY_CHARS].encode("utf-8", "replace")
    return max(
        int.from_bytes(blake2b(before, digest_size=7).digest()),
        int.from_bytes(blake2b(after, digest_size=7, salt=b"after").digest()),
    )


class _PartsReader:
    def __init__(self, script: Manuscript, tables: TableContexts) -> None:
        self._script = script
        self._scale = script.scale
        self._tables = tables
        self._breaks = _page_breaks(script)
        self._parts: list[Part] = []
        # Headings that wait for what they open.
        self._waiting: list[int] = []

    def parts(self) -> list[Part]:
        blocks = self._script.blocks
        for index, block in enumerate(blocks):
            if self._waiting and not self._goes_with_waiting(index):
                self._flush()
            if block.kind == "heading":
                self._waiting.append(index)
            else:
                self._add(index)
        self._flush()
        return self._parts

    def _goes_with_waiting(self, index: int) -> bool:
        """Whether a block stands under the headings that wait, and these are not too many."""
        last = self._waiting[-1]
        start = self._script.blocks[self._waiting[0]].start
        return (
            index not in self._breaks
            and self._script.paths[index][: len(self._script.paths[last])]
            == self._script.paths[last]
            and self._scale.weigh(start, self._script.blocks[last].end) <= self._script.limit // 2
        )

    def _flush(self) -> None:
        """Headings with nothing under them are parts by themselves."""
        waiting, self._waiting = self._waiting, []
        for index in waiting:
            self._add(index)

    def _add(self, index: int) -> None:
        script = self._script
        block = script.blocks[index]
        room = script.room(script.paths[index])
        first = self._waiting[0] if self._waiting else index
        start = script.blocks[first].start
        if self._scale.weigh(start, block.end) <= min(room, script.limit):
            self._append(start, block.end, index, self._strength(first), room)
        elif block.kind == "table":
            context = self._tables.weight(block.start)
            self._add_pieces(index, first, room - context)
        elif self._waiting and self._scale.weigh(start, block.end) <= room:
            self._append(start, block.end, index, self._strength(first), room)
        else:
            self._add_pieces(index, first, room)
        self._waiting.clear()

    def _add_pieces(self, index: int, first: int, room: int) -> None:
        """The pieces of a heavy block, the first of them under the headings that wait."""
        script = self._script
        block = script.blocks[index]
        limit = min(room, script.limit)
        places = [
            (block.start, self._strength(index)),
            *self._divide(block.start, block.end, _BOUNDARIES[block.kind], limit, _INSIDE),
            (block.end, 0),
        ]
        if first != index:
            start = script.blocks[first].start
            if self._scale.weigh(start, places[1][0]) <= room:
                places[0] = (start, self._strength(first))
            else:
                self._flush()
        for (start, strength), (end, _) in pairwise(places):
            self._append(start, end, index, strength, room)

    def _append(self, start: int, end: int, index: int, strength: int, room: int) -> None:
        self._parts.append(Part(start, end, self._script.paths[index], strength, room))

    def _divide(
        self,
        start: int,
        end: int,
        boundaries: Sequence[re.Pattern[str]],
        limit: int,
        strength: int,
    ) -> Iterator[tuple[int, int]]:
        """Places inside a span, with their strengths, that leave no more than `limit` between."""
        if not boundaries:
            place = self._scale.reach(start, limit)
            while place < end:
                yield place, strength
                place = max(self._scale.reach(place, limit), place + 1)
            return
        ends = [match.end() for match in boundaries[0].finditer(self._script.text, start, end)]
        places = [start, *(place for place in ends if start < place < end), end]
        for first, last in pairwise(places):
            if first > start:
                yield first, strength
            if self._scale.weigh(first, last) > limit:
                yield from self._divide(first, last, boundaries[1:], limit, strength - 1)

    def _strength(self, index: int) -> int:
        """How good a place the start of a block is."""
        block = self._script.blocks[index]
        if index in self._breaks:
            return PAGE
        if block.level:
            return _HEADING - min(block.level, _HEADING_LEVELS)
        before = self._script.blocks[index - 1] if index else None
        return _AFTER_COLON if before and self._leads_in(before) else _BLOCK

    def _leads_in(self, block: Block) -> bool:
        return self._script.text[block.start : block.end].rstrip().endswith((":", "："))


def _page_breaks(script: Manuscript) -> set[int]:
    """The blocks that begin a run, but for one next to empty, which goes with one beside it."""
    firsts = [
        index
        for index in range(len(script.blocks))
        if not index or script.runs[index] != script.runs[index - 1]
    ]
    lasts = [first - 1 for first in firsts[1:]] + [len(script.blocks) - 1]
    tiny = [
        script.scale.weigh(script.blocks[first].start, script.blocks[last].end) < script.tiny
        for first, last in zip(firsts, lasts, strict=False)
    ]
    breaks: set[int] = set()
    for number in range(1, len(firsts)):
        joins_before = tiny[number] and not tiny[number - 1]
        opens = number == 1 and tiny[0] and not tiny[1]
        if not (joins_before or opens):
            breaks.add(firsts[number])
    return breaks
