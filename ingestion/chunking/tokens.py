"""How much a text weighs in the model's tokens."""

from bisect import bisect_left
from collections.abc import Sequence
from operator import sub

from ingestion.chunking.blocks import Block

UNMARKED_CHARS_MAX = 64


class Scale:
    """Weighs any span of the text: the number of tokens that start in it.

    A tokenizer may see one token in two million letters, or none in a run of control characters;
    so a long stretch without a token counts as one token per 64 characters.
    """

    def __init__(
        self, blocks: Sequence[Block], token_spans: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        self._marks: list[int] = []
        self._end = blocks[-1].end if blocks else 0
        for block, spans in zip(blocks, token_spans, strict=True):
            marks = [block.start + start for start, _ in spans] or [block.start]
            if max(map(sub, (*marks, block.end), (block.start, *marks))) > UNMARKED_CHARS_MAX:
                marks = _filled(marks, block)
            self._marks += marks

    def weigh(self, start: int, end: int) -> int:
        return bisect_left(self._marks, end) - bisect_left(self._marks, start)

    def reach(self, start: int, weight: int) -> int:
        """How far a text from `start` on goes that weighs `weight`; to the end if it is lighter."""
        index = bisect_left(self._marks, start) + weight
        return self._marks[index] if index < len(self._marks) else self._end

    def reach_back(self, end: int, weight: int) -> int:
        """Where a text begins that ends at `end` and weighs `weight`, or all that is before it."""
        return self._marks[max(bisect_left(self._marks, end) - weight, 0)]


def _filled(marks: Sequence[int], block: Block) -> list[int]:
    filled: list[int] = []
    last = block.start
    for mark in (*marks, block.end):
        filled.extend(range(last + UNMARKED_CHARS_MAX, mark, UNMARKED_CHARS_MAX))
        filled.append(mark)
        last = mark
    return filled[:-1]
