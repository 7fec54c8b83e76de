"""The grids that the rules on a page make: where a table with ruled cells may be."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ingestion.parsing.pdfium import Rule

RULE_POINTS_MIN = 4.0
NEAR_POINTS = 3.0
DOUBLE_RULE_POINTS_MAX = 12.0
CROSSINGS_MAX = 250_000
CELLS_MAX = 5000


@dataclass(frozen=True, slots=True)
class _Stroke:
    """A rule at `at` across its axis, from `start` to `end` along it."""

    at: float
    start: float
    end: float

    def covers(self, position: float) -> bool:
        return self.start - NEAR_POINTS <= position <= self.end + NEAR_POINTS


@dataclass(frozen=True, slots=True)
class Grid:
    """Columns between `xs` and rows between `ys`; cells without a rule between them are one."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    across: tuple[_Stroke, ...]
    down: tuple[_Stroke, ...]

    @property
    def left(self) -> float:
        return self.xs[0]

    @property
    def right(self) -> float:
        return self.xs[-1]

    @property
    def top(self) -> float:
        return self.ys[0]

    @property
    def bottom(self) -> float:
        return self.ys[-1]

    @property
    def columns_count(self) -> int:
        return len(self.xs) - 1

    @property
    def rows_count(self) -> int:
        return len(self.ys) - 1

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    def is_beside(self, right: "Grid") -> bool:
        return (
            abs(self.top - right.top) <= NEAR_POINTS
            and abs(self.bottom - right.bottom) <= NEAR_POINTS
            and 0 <= right.left - self.right <= DOUBLE_RULE_POINTS_MAX
        )

    def cell_at(self, x: float, y: float) -> tuple[int, int]:
        """Row and column; of cells taken together the first."""
        row = min(max(bisect_right(self.ys, y) - 1, 0), self.rows_count - 1)
        column = min(max(bisect_right(self.xs, x) - 1, 0), self.columns_count - 1)
        while column and not _is_drawn(self.down, self.xs[column], y):
            column -= 1
        middle = (self.xs[column] + self.xs[column + 1]) / 2
        while row and not _is_drawn(self.across, self.ys[row], middle):
            row -= 1
        return row, column


def _is_drawn(strokes: Iterable[_Stroke], at: float, position: float) -> bool:
    return any(abs(stroke.at - at) <= NEAR_POINTS and stroke.covers(position) for stroke in strokes)


def find_grids(rules: Sequence[Rule]) -> list[Grid]:
    """Grids of two columns and two rows at least, the largest first."""
    across = _strokes((r.top, r.left, r.right) for r in rules if r.is_horizontal)
    down = _strokes((r.left, r.top, r.bottom) for r in rules if not r.is_horizontal)
    if len(across) * len(down) > CROSSINGS_MAX:
        return []  # a drawing
    found = [_grid(*part) for part in _connected(across, down)]
    grids = _side_by_side([grid for grid in found if grid is not None])
    return sorted(grids, key=lambda grid: (grid.left - grid.right) * (grid.bottom - grid.top))


def _side_by_side(grids: Sequence[Grid]) -> list[Grid]:
    """Grids of one height beside each other as one: a double rule parts a table, not two."""
    joined: list[Grid] = []
    for grid in sorted(grids, key=lambda grid: (round(grid.top / NEAR_POINTS), grid.left)):
        before = joined[-1] if joined else None
        if before and before.is_beside(grid):
            both = _grid([*before.across, *grid.across], [*before.down, *grid.down])
            if both is not None:
                joined[-1] = both
                continue
        joined.append(grid)
    return joined


def _strokes(found: Iterable[tuple[float, float, float]]) -> list[_Stroke]:
    """Rules in one line that touch each other, as one."""
    strokes: list[_Stroke] = []
    for at, start, end in sorted(found, key=lambda rule: (round(rule[0] / 2), rule[1])):
        last = strokes[-1] if strokes else None
        if last and abs(last.at - at) <= 2 and start <= last.end + NEAR_POINTS:
            strokes[-1] = _Stroke(last.at, last.start, max(last.end, end))
        else:
            strokes.append(_Stroke(at, start, end))
    return [stroke for stroke in strokes if stroke.end - stroke.start >= RULE_POINTS_MIN]


def _connected(
    across: Sequence[_Stroke], down: Sequence[_Stroke]
) -> list[tuple[list[_Stroke], list[_Stroke]]]:
    """Strokes that cross or touch each other, directly or through others."""
    parents = list(range(len(across) + len(down)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for one, horizontal in enumerate(across):
        for other, vertical in enumerate(down, len(across)):
            if horizontal.covers(vertical.at) and vertical.covers(horizontal.at):
                parents[root(one)] = root(other)
    parts: dict[int, tuple[list[_Stroke], list[_Stroke]]] = {}
    for index, stroke in enumerate([*across, *down]):
        part = parts.setdefault(root(index), ([], []))
        part[index >= len(across)].append(stroke)
    return list(parts.values())


def _grid(across: Sequence[_Stroke], down: Sequence[_Stroke]) -> Grid | None:
    if len(across) < 2 or not down:
        return None
    xs = _positions(
        [*(s.at for s in down), min(s.start for s in across), max(s.end for s in across)]
    )
    ys = _positions([*(s.at for s in across), min(s.start for s in down), max(s.end for s in down)])
    cells_count = (len(xs) - 1) * (len(ys) - 1)
    if len(xs) < 3 or len(ys) < 3 or cells_count > CELLS_MAX:
        return None
    return Grid(tuple(xs), tuple(ys), tuple(across), tuple(down))


def _positions(values: Iterable[float]) -> list[float]:
    """Sorted, those that are near each other taken as one."""
    positions: list[float] = []
    for value in sorted(values):
        if not positions or value - positions[-1] > NEAR_POINTS:
            positions.append(value)
    return positions
