"""Which parts make a passage.

A passage begins where no better place is within reach, half a passage to either side. So a place
to cut depends on what stands around it and on nothing else: an edit moves the cuts beside it, and
the next ones are where they were, however long the text is.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from ingestion.chunking.parts import PAGE, Part
from ingestion.chunking.tokens import Scale


def group(
    parts: Sequence[Part], scale: Scale, *, limit: int, reach: int, tiny: int
) -> list[tuple[int, int]]:
    """The passages as ranges of parts, each of `limit` tokens at most and of no more than its room.

    A single part too heavy for that is a passage; so are some tokens more where they would be
    left alone, fewer than `tiny`.
    """
    if not parts:
        return []
    positions = [scale.weigh(0, part.start) for part in parts]
    positions.append(scale.weigh(0, parts[-1].end))
    cuts = [0, *_best_places(parts, positions, reach), len(parts)]
    grouped: list[tuple[int, int]] = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        grouped += _Halver(parts, positions, limit, tiny).ranges(first, last)
    return grouped


def _best_places(parts: Sequence[Part], positions: Sequence[int], reach: int) -> Iterator[int]:
    """The parts that no better one to begin with is within reach of, nor an end of the text."""
    window: deque[int] = deque()  # parts ahead, each better than all that follow it
    ahead = 1
    behind: deque[int] = deque()  # parts passed, each better than all that came after it
    for index in range(1, len(parts)):
        part = parts[index]
        rank = (part.strength, part.key)
        while ahead < len(parts) and positions[ahead] - positions[index] <= reach:
            while window and _rank(parts[window[-1]]) < _rank(parts[ahead]):
                window.pop()
            window.append(ahead)
            ahead += 1
        while window and window[0] <= index:
            window.popleft()
        while behind and positions[index] - positions[behind[0]] > reach:
            behind.popleft()
        near_end = (
            positions[index] - positions[0] <= reach or positions[-1] - positions[index] <= reach
        )
        beaten = (window and _rank(parts[window[0]]) >= rank) or (
            behind and _rank(parts[behind[0]]) >= rank
        )
        if part.strength >= PAGE or not (near_end or beaten):
            yield index
        while behind and _rank(parts[behind[-1]]) <= rank:
            behind.pop()
        behind.append(index)


def _rank(part: Part) -> tuple[int, int]:
    return part.strength, part.key


class _Halver:
    """Divides what is too heavy for one passage."""

    def __init__(
        self, parts: Sequence[Part], positions: Sequence[int], limit: int, tiny: int
    ) -> None:
        self._parts = parts
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
        weight = self._positions[last] - self._positions[first]
        room = min(part.room for part in self._parts[first:last])
        limit = min(room, self._limit)
        if weight <= limit or last - first == 1:
            return None
        places = range(first + 1, last)
        if weight <= 2 * limit:
            places = [one for one in places if max(self._sides(first, one, last)) <= limit] or places
        # The middle third: whatever the parts are, they are divided in few rounds.
        places = [
            one for one in places if min(self._sides(first, one, last)) >= weight // 3
        ] or places

        def quality(place: int) -> tuple[int, int, int]:
            before, after = self._sides(first, place, last)
            key = 0 if weight <= 2 * limit else self._parts[place].key
            return self._parts[place].strength, key, -abs(before - after)

        place = max(places, key=quality)
        leaves_crumbs = min(self._sides(first, place, last)) < self._tiny
        return None if leaves_crumbs and weight <= room else place

    def _sides(self, first: int, place: int, last: int) -> tuple[int, int]:
        positions = self._positions
        return positions[place] - positions[first], positions[last] - positions[place]
