"""Which parts make a passage.

A passage begins where no better place is within reach, half a passage to either side. So a place
to cut depends on what stands around it and on nothing else: an edit moves the cuts beside it, and
the next ones are where they were, however long the text is.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from ingestion.chunking.parts import PAGE, Part
from ingestion.chunking.tokens import Scale

Value = TypeVar("Value", int, tuple[int, int])

_FIRST = PAGE + 1
"""The strength of the ends of a text."""


def group(parts: Sequence[Part], scale: Scale, *, limit: int, tiny: int) -> list[tuple[int, int]]:
    """The passages as ranges of parts, each of `limit` tokens at most and of no more than its room.

    A single part too heavy for that is a passage; so are some tokens more where they would be
    left alone, fewer than `tiny`.
    """
    if not parts:
        return []
    positions = [scale.weigh(0, part.start) for part in parts]
    positions.append(scale.weigh(0, parts[-1].end))
    cuts = [0, *_best_places(parts, positions, limit), len(parts)]
    grouped: list[tuple[int, int]] = []
    halver = _Halver(parts, positions, limit, tiny)
    for first, last in pairwise(cuts):
        grouped += halver.ranges(first, last)
    return grouped


def _best_places(parts: Sequence[Part], positions: Sequence[int], limit: int) -> Iterator[int]:
    """The parts to begin a passage with: none beside them is better, the text's ends included."""
    best = [(_FIRST, 0), *((part.strength, part.key) for part in parts[1:]), (_FIRST, 0)]
    strengths = [strength for strength, _ in best]
    # Half a passage, so that what fits in one is never cut where something stronger encloses it.
    stronger = _highest_beside(strengths, positions, limit // 2, -1)
    # Somewhat less among equals, for cuts closer together take fewer passages along when they move.
    better = _highest_beside(best, positions, limit * 2 // 5, (-1, 0))
    for index in range(1, len(parts)):
        is_best = strengths[index] >= stronger[index] and best[index] > better[index]
        if is_best or strengths[index] == PAGE:
            yield index


def _highest_beside(
    values: Sequence[Value], positions: Sequence[int], reach: int, lowest: Value
) -> list[Value]:
    """For each place, the highest value among the others at most `reach` away."""
    before = _highest_before(values, positions, reach, lowest)
    turned = [-position for position in reversed(positions)]
    after = _highest_before(values[::-1], turned, reach, lowest)
    return [max(pair) for pair in zip(before, reversed(after), strict=True)]


def _highest_before(
    values: Sequence[Value], positions: Sequence[int], reach: int, lowest: Value
) -> list[Value]:
    highest: list[Value] = []
    window: deque[int] = deque()  # each higher than all after it
    for index, value in enumerate(values):
        while window and positions[index] - positions[window[0]] > reach:
            window.popleft()
        highest.append(values[window[0]] if window else lowest)
        while window and values[window[-1]] <= value:
            window.pop()
        window.append(index)
    return highest


class _Halver:
    """Divides what is too heavy for one passage."""

    def __init__(
        self, parts: Sequence[Part], positions: Sequence[int], limit: int, tiny: int
    ) -> None:
        self._parts = parts
        self._rooms = [part.room for part in parts]
        self._positions = positions
        self._limit = limit
        self._tiny = tiny

    def ranges(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        stack = [(first, last)]
        while stack:
            first, last = stack.pop()
            place = self._place(first, last)
            if place is None:
                yield first, last
            else:
                stack += [(place, last), (first, place)]

    def _place(self, first: int, last: int) -> int | None:
        """The part that a second passage should begin with, if one passage is not enough."""
        start, end = self._positions[first], self._positions[last]
        weight, room = end - start, min(self._rooms[first:last])
        limit = min(room, self._limit)
        if weight <= limit or last - first == 1:
            return None
        is_enough_for_two = weight <= 2 * limit
        # The middle third: whatever the parts are, few rounds divide them.
        low, high = start + weight // 3, end - weight // 3
        places = self._between(first, last, low, high)
        if is_enough_for_two:
            places = (
                self._between(first, last, max(low, end - limit), min(high, start + limit))
                or self._between(first, last, end - limit, start + limit)
                or places
            )

        def quality(place: int) -> tuple[int, int, int]:
            part, position = self._parts[place], self._positions[place]
            key = 0 if is_enough_for_two else part.key
            return part.strength, key, -abs(start + end - 2 * position)

        place = max(places or range(first + 1, last), key=quality)
        smaller = min(self._positions[place] - start, end - self._positions[place])
        return None if smaller < self._tiny and weight <= room else place

    def _between(self, first: int, last: int, low: int, high: int) -> range:
        """The parts inside `first:last` that begin between two positions."""
        return range(
            bisect_left(self._positions, low, first + 1, last),
            bisect_right(self._positions, high, first + 1, last),
        )
