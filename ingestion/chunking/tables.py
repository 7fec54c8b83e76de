"""What every part of a split table is given as context: the table's header row and its caption."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ingestion.chunking.blocks import Block
from ingestion.chunking.manuscript import Manuscript

CONTEXT_SHARE_MAX = 3
"""Header and caption are repeated while they take no more than one third of a passage."""

_CAPTION = re.compile(
    r"[*_]*(?:table|tab\.|tabelle|tableau|tabla|tabela|tabella|tabel|таблица|表)"
    r"[ \t]*(?:\d+|[IVX]+|[A-Z])(?:[.\-]\d+)*[*_]*[ \t]*[.:\u2014\u2013\-：][^\n]*\S[^\n]*\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Table:
    """The table at `start:end`, whose rows begin at `rows_start`."""

    start: int
    rows_start: int
    end: int
    context: str
    weight: int


class TableContexts:
    def __init__(self, script: Manuscript) -> None:
        text, blocks, scale = script.text, script.blocks, script.scale
        self._tables: list[_Table] = []
        for index, block in enumerate(blocks):
            if block.kind == "table":
                passage = min(script.limit, script.room(script.paths[index]))
                share = passage // CONTEXT_SHARE_MAX
                header_end = text.index("\n", block.start)
                rows_start = text.find("\n", header_end + 1, block.end)
                header = " ".join(text[block.start : header_end].split())
                weight = scale.weigh(block.start, header_end)
                if weight > share:
                    header, weight = "", 0
                caption = _caption(text, blocks, index)
                if caption is not None:
                    caption_weight = scale.weigh(caption.start, caption.end)
                    if weight + caption_weight <= share:
                        words = " ".join(text[caption.start : caption.end].split())
                        header = "\n".join(filter(None, (words, header)))
                        weight += caption_weight
                rows_start = block.end if rows_start < 0 else rows_start + 1
                self._tables.append(_Table(block.start, rows_start, block.end, header, weight))
        self._starts = [table.start for table in self._tables]

    def weight(self, start: int) -> int:
        """Of the context that the parts of the table at `start` are given."""
        table = self._at(start)
        return table.weight if table else 0

    def context(self, start: int) -> str:
        """What a passage that begins at `start` needs of the table that it begins in."""
        table = self._at(start)
        return table.context if table and start >= table.rows_start else ""

    def repeats_from(self, start: int) -> int:
        """The earliest place that a passage from `start` on may repeat: rows need their header."""
        index = bisect_right(self._starts, start) - 1
        if index < 0:
            return 0
        table = self._tables[index]
        return table.end if start >= table.end else min(table.rows_start, start)

    def _at(self, start: int) -> _Table | None:
        index = bisect_right(self._starts, start) - 1
        return self._tables[index] if index >= 0 and start < self._tables[index].end else None


def _caption(text: str, blocks: Sequence[Block], index: int) -> Block | None:
    """The line above or below a table that says what it shows, such as `Table 3: Leave`."""
    found: list[Block] = []
    for beside in (index - 1, index + 1):
        if 0 <= beside < len(blocks):
            block = blocks[beside]
            if block.kind == "paragraph" and _CAPTION.match(text, block.start, block.end):
                found.append(block)
    # In a row of tables, the line nearer by belongs to this one.
    table = blocks[index]
    return min(
        found,
        key=lambda block: text.count(
            "\n", min(block.end, table.end), max(block.start, table.start)
        ),
        default=None,
    )
