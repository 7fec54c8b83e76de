"""The header of a Markdown table, which every part of a split table is given as context."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ingestion.chunking.blocks import Block
from ingestion.chunking.tokens import Scale

CONTEXT_SHARE_MAX = 3
"""A header is repeated while it takes no more than one third of a chunk."""


@dataclass(frozen=True, slots=True)
class _Header:
    """The first row of the table at `start:end`; its rows begin at `rows_start`."""

    rows_start: int
    end: int
    text: str
    weight: int


@dataclass(frozen=True, slots=True)
class Context:
    text: str = ""
    weight: int = 0


class TableHeaders:
    def __init__(self, text: str, blocks: Sequence[Block], scale: Scale) -> None:
        self._headers: list[_Header] = []
        for block in blocks:
            if block.kind == "table":
                header_end = text.index("\n", block.start)
                rows_start = text.find("\n", header_end + 1, block.end)
                header = text[block.start : header_end]
                self._headers.append(
                    _Header(
                        rows_start=block.end if rows_start < 0 else rows_start + 1,
                        end=block.end,
                        text=" ".join(header.split()),
                        weight=scale.weigh(block.start, header_end),
                    )
                )
        self._starts = [header.rows_start for header in self._headers]

    def context(self, start: int, weight_max: int) -> Context:
        """What a chunk that begins at `start` needs: the header of the table it begins in."""
        index = bisect_right(self._starts, start) - 1
        if index < 0:
            return Context()
        header = self._headers[index]
        if start >= header.end or header.weight > weight_max // CONTEXT_SHARE_MAX:
            return Context()
        return Context(header.text, header.weight)
