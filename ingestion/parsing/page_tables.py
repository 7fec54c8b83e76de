"""Tables on a page of a PDF: those with ruled cells, and those whose cells are clearly aligned.

A wrong table is worse than lines of text, so whatever is in doubt stays text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from ingestion.parsing.page_rules import Grid
from ingestion.parsing.pdfium import Run, Word
from ingestion.parsing.tables import markdown_rows

CELL_CHARS_MAX = 1500
FILLED_SHARE_MIN = 0.3
LARGEST_CELL_SHARE_MAX = 0.7
LARGEST_CELL_CHARS = 300

ALIGNED_ROWS_MIN = 3
ALIGNED_PAIRS_MIN = 4
"""Rows of a table of two columns."""
ALIGNED_WORDED_SHARE_MIN = 0.85
ALIGNED_FILLED_SHARE_MIN = 0.6
ALIGNED_SHARE_MIN = 0.7
ALIGNED_WITHIN_POINTS = 3.0
ALIGNED_WORDS_MAX = 4.0
ALIGNED_DIGIT_SHARE_MIN = 0.6
ROW_GAP_HEIGHTS_MAX = 2.5
COLUMN_GAP_POINTS = 4.0

_LEADER = re.compile(r"[._…·](?: ?[._…·]){3}")
_ITEM_MARK = re.compile(r"(?:[+•◦▪‣●○■□–*\-\uf0b7\uf0a7]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,5})[.)])$")
_DIGIT = re.compile(r"\d")

Span = tuple[float, float]


class Box(Protocol):
    @property
    def left(self) -> float: ...
    @property
    def right(self) -> float: ...


@dataclass(slots=True)
class Table:
    """Cells by row, the first row being the header; where on the page they stand."""

    cells: list[list[str]]
    left: float
    top: float
    right: float
    bottom: float
    caption: str = ""
    runs: list[Run] = field(default_factory=list[Run])

    def markdown(self) -> str:
        rows = "\n".join(markdown_rows(self.cells))
        return f"{self.caption}\n{rows}" if self.caption else rows


def free_spans(boxes: Iterable[Box], width_min: float) -> list[Span]:
    """Vertical bands that no box reaches into, with the one on either side of all of them."""
    spans: list[Span] = []
    reached = float("-inf")
    for box in sorted(boxes, key=lambda box: box.left):
        if box.left - reached >= width_min:
            spans.append((reached, box.left))
        reached = max(reached, box.right)
    return [*spans, (reached, float("inf"))]


def common_spans(
    first: Sequence[Span], second: Sequence[Span], width_min: float = COLUMN_GAP_POINTS
) -> list[Span]:
    shared = [(max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second]
    return [span for span in shared if span[1] - span[0] >= width_min]


def ruled_tables(runs: Sequence[Run], grids: Sequence[Grid]) -> tuple[list[Table], list[Run]]:
    """The tables in the grids, and the runs outside of them."""
    tables: list[Table] = []
    rest = [run for run in runs if not run.turned]
    for grid in grids:
        inside = [run for run in rest if grid.holds((run.left + run.right) / 2, run.middle)]
        cells = _grid_cells(inside, grid)
        if cells is not None:
            ids = {id(run) for run in inside}
            rest = [run for run in rest if id(run) not in ids]
            tables.append(Table(cells, grid.left, grid.top, grid.right, grid.bottom, runs=inside))
    return tables, [*rest, *(run for run in runs if run.turned)]


def _grid_cells(runs: Sequence[Run], grid: Grid) -> list[list[str]] | None:
    placed: dict[tuple[int, int], list[tuple[float, Word]]] = {}
    for run in runs:
        for word in run.words:
            place = grid.cell_at((word.left + word.right) / 2, run.middle)
            placed.setdefault(place, []).append((run.middle, word))
    heights = [run.height for run in runs]
    if not heights:
        return None
    tolerance = median(heights) / 2
    rows: list[list[str]] = []
    for row in range(grid.rows_count):
        cells = [
            _cell_lines(placed.get((row, column), []), tolerance)
            for column in range(grid.columns_count)
        ]
        rows += _parted_row(cells, tolerance)
    rows = _without_empty(rows)
    return rows if _is_table(rows) else None


_CellLine = tuple[float, str]


def _cell_lines(words: Sequence[tuple[float, Word]], tolerance: float) -> list[_CellLine]:
    """The lines of a cell, with their height on the page."""
    lines: list[list[tuple[float, Word]]] = []
    for middle, word in sorted(words, key=lambda placed: placed[0]):
        if lines and middle - lines[-1][0][0] <= tolerance:
            lines[-1].append((middle, word))
        else:
            lines.append([(middle, word)])
    return [
        (line[0][0], " ".join(word.text for _, word in sorted(line, key=lambda at: at[1].left)))
        for line in lines
    ]


def _parted_row(cells: Sequence[Sequence[_CellLine]], tolerance: float) -> list[list[str]]:
    """One row; or one for each line, where all columns have the same lines and no rules between."""
    filled = [cell for cell in cells if cell]
    first: Sequence[_CellLine] = filled[0] if filled else ()
    parted = (
        len(filled) > 1
        and len(filled) == len(cells)
        and len(first) > 1
        and all(
            len(cell) == len(first)
            and all(
                abs(mine[0] - its[0]) <= tolerance for mine, its in zip(cell, first, strict=True)
            )
            for cell in filled
        )
    )
    if parted:
        return [[cell[line][1] for cell in cells] for line in range(len(first))]
    return [[" ".join(text for _, text in cell) for cell in cells]]


def _without_empty(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    kept = [row for row in rows if any(row)]
    columns = [column for column in zip(*kept, strict=True) if any(column)]
    return [list(row) for row in zip(*columns, strict=True)]


def _is_table(rows: Sequence[Sequence[str]]) -> bool:
    if len(rows) < 2 or len(rows[0]) < 2:
        return False
    lengths = [len(cell) for row in rows for cell in row]
    filled = sum(length > 0 for length in lengths)
    is_frame = max(lengths) > LARGEST_CELL_CHARS and max(lengths) > LARGEST_CELL_SHARE_MAX * sum(
        lengths
    )
    return (
        filled >= FILLED_SHARE_MIN * len(lengths)
        and sum(sum(map(bool, row)) > 1 for row in rows) > 1
        and max(lengths) <= CELL_CHARS_MAX
        and not is_frame
    )


def aligned_tables(rows: Sequence[Sequence[Run]]) -> tuple[list[Table], list[Run]]:
    """Tables without rules among rows of runs, and the runs that belong to none."""
    tables: list[Table] = []
    rest: list[Run] = []
    at = 0
    while at < len(rows):
        end, spans = _reach(rows, at)
        table = _aligned_table(rows[at:end], spans) if end - at >= ALIGNED_ROWS_MIN else None
        if table is None:
            rest += rows[at]
            at += 1
        else:
            tables.append(table)
            at = end
    return tables, rest


def _reach(rows: Sequence[Sequence[Run]], start: int) -> tuple[int, list[Span]]:
    """Up to where the rows share their gaps, and these."""
    if len(rows[start]) < 2:
        return start + 1, []
    spans = free_spans(rows[start], COLUMN_GAP_POINTS)
    end = start + 1
    while end < len(rows):
        above, row = rows[end - 1], rows[end]
        height = median(run.height for run in (*above, *row))
        gap = min(run.top for run in row) - max(run.bottom for run in above)
        common = common_spans(spans, free_spans(row, COLUMN_GAP_POINTS))
        # The first rows settle the columns; what crosses them afterwards is no row of the table.
        lost = len(common) < len(spans) and end - start >= 2
        if lost or len(common) < 3 or len(row) < 2 or gap > ROW_GAP_HEIGHTS_MAX * height:
            break
        spans = common
        end += 1
    return end, spans


def _aligned_table(rows: Sequence[Sequence[Run]], spans: Sequence[Span]) -> Table | None:
    bounds = [(low + high) / 2 for low, high in spans[1:-1]]
    placed = [[[run for run in row if _column(run, bounds) == column] for row in rows]
              for column in range(len(bounds) + 1)]  # fmt: skip
    cells = [
        [" ".join(run.text for run in column[row]) for column in placed] for row in range(len(rows))
    ]
    if not _is_aligned_table(cells) or not all(map(_is_straight, placed)):
        return None
    runs = [run for row in rows for run in row]
    return Table(
        cells,
        left=min(run.left for run in runs),
        top=min(run.top for run in runs),
        right=max(run.right for run in runs),
        bottom=max(run.bottom for run in runs),
        runs=runs,
    )


def _column(run: Run, bounds: Sequence[float]) -> int:
    return bisect_right(bounds, (run.left + run.right) / 2)


def _is_aligned_table(cells: Sequence[Sequence[str]]) -> bool:
    filled = [cell for row in cells for cell in row if cell]
    columns_count = len(cells[0])
    words = sum(len(cell.split()) for cell in filled) / len(filled)
    body = [cell for row in cells[1:] for cell in row[1:] if cell]
    digits = sum(_DIGIT.search(cell) is not None for cell in body) / max(len(body), 1)
    marks = sum(_ITEM_MARK.match(row[0]) is not None for row in cells)
    share = len(filled) / (len(cells) * columns_count)
    is_worded = columns_count > 3 and words <= 2 and share >= ALIGNED_WORDED_SHARE_MIN
    return (
        (columns_count > 2 or len(cells) >= ALIGNED_PAIRS_MIN)
        and share >= ALIGNED_FILLED_SHARE_MIN
        and not any(_LEADER.search(cell) for cell in filled)
        and 2 * marks < len(cells)
        and words <= ALIGNED_WORDS_MAX
        and (digits >= ALIGNED_DIGIT_SHARE_MIN or is_worded)
    )


def _is_straight(column: Sequence[Sequence[Run]]) -> bool:
    """Whether the cells of a column stand below each other: by an edge, or by their middle."""
    filled = [cell for cell in column if cell]
    lefts = [min(run.left for run in cell) for cell in filled]
    rights = [max(run.right for run in cell) for cell in filled]
    middles = [(left + right) / 2 for left, right in zip(lefts, rights, strict=True)]
    return any(_agree(edges) for edges in (lefts, rights, middles))


def _agree(edges: Sequence[float]) -> bool:
    if not edges:
        return False
    centre = median(edges)
    near = sum(abs(edge - centre) <= ALIGNED_WITHIN_POINTS for edge in edges)
    # A header may stand apart from the numbers below it.
    return near >= ALIGNED_SHARE_MIN * len(edges) or near >= len(edges) - 1 > 2
