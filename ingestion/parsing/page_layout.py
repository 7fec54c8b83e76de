"""In which order the runs of a page are read: columns one after the other, lines from the top.

A page is cut into strips by its empty lines of sight, as an XY-cut does; strips that share an empty
vertical band are columns when what stands in them is running text. Where that is in doubt, the order
in which the page was written stands: most programs write in reading order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from ingestion.parsing.page_tables import Span, Table, aligned_tables, common_spans, free_spans
from ingestion.parsing.pdfium import Run

COLUMN_LINES_MIN = 3
COLUMN_WIDTH_SHARE_MIN = 0.15
PROSE_WORDS_MIN = 3
PROSE_SHARE_MIN = 0.6
GUTTER_HEIGHTS = 0.7
"""A gutter is at least so many times as wide as a line is high."""
COLUMNS_DEPTH_MAX = 4
TOUCHING_HEIGHTS = 0.15


@dataclass(slots=True)
class Line:
    """A line of text. `running` when it runs along the pages, as headers and footers do."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    bold: bool
    running: bool = False

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass(slots=True)
class Column:
    """Lines, and tables, that are read from the top to the bottom.

    `aside` when it is turned on its side, and continues nothing.
    """

    items: list[Line | Table] = field(default_factory=list["Line | Table"])
    aside: bool = False

    def letters_count(self) -> int:
        """How many characters it holds, spaces apart."""
        texts = [
            "".join(map("".join, item.cells)) if isinstance(item, Table) else item.text
            for item in self.items
        ]
        return sum(len("".join(text.split())) for text in texts)


def read_columns(runs: Sequence[Run], tables: Sequence[Table] = ()) -> list[Column]:
    """Everything on a page in reading order. What is turned on its side comes last."""
    upright = [run for run in runs if not run.turned]
    columns = _ordered([*upright, *tables], 0)
    aside = [Column([_line([run])], aside=True) for run in runs if run.turned]
    return [*columns, *aside]


_Box = Run | Table


def _ordered(boxes: Sequence[_Box], depth: int) -> list[Column]:
    columns: list[Column] = []
    goes_on = False
    for group in _groups(_strips(boxes)):
        together = [box for strip in group for box in strip]
        parts = _columns(together) if depth < COLUMNS_DEPTH_MAX else []
        if parts:
            for part in parts:
                columns += _ordered(part, depth + 1)
        elif goes_on:
            columns[-1].items += _read_lines(together)
        else:
            columns.append(Column(_read_lines(together)))
        goes_on = not parts
    return columns


def _strips(boxes: Sequence[_Box]) -> list[list[_Box]]:
    """Boxes side by side, from the top; an empty line of sight lies between two strips."""
    strips: list[list[_Box]] = []
    bottom = float("-inf")
    for box in sorted(boxes, key=lambda box: box.top):
        # Lines of tight type overlap a little.
        slack = 0.2 * min(box.bottom - box.top, 20.0)
        if strips and box.top + slack < bottom:
            strips[-1].append(box)
        else:
            strips.append([box])
        bottom = max(bottom, box.bottom - slack)
    return strips


def _groups(strips: Sequence[Sequence[_Box]]) -> list[list[Sequence[_Box]]]:
    """Strips that share an empty vertical band, and strips between them that share none."""
    groups: list[list[Sequence[_Box]]] = []
    free: list[Span] = []
    parted = False
    for strip in strips:
        own = _free(strip)
        if groups:
            common = common_spans(free, own)
            together = [box for each in groups[-1] for box in each] + list(strip)
            shares = _has_gutter(common, together)
            if shares or (not parted and not _has_gutter(own, strip)):
                groups[-1].append(strip)
                free, parted = common, shares
                continue
        groups.append([strip])
        free, parted = own, _has_gutter(own, strip)
    return groups


def _free(boxes: Sequence[_Box]) -> list[Span]:
    heights = [box.bottom - box.top for box in boxes if isinstance(box, Run)]
    return free_spans(boxes, GUTTER_HEIGHTS * median(heights) if heights else 1.0)


def _has_gutter(free: Sequence[Span], boxes: Sequence[_Box]) -> bool:
    left, right = min(box.left for box in boxes), max(box.right for box in boxes)
    return any(left < span[0] and span[1] < right for span in free)


def _columns(boxes: Sequence[_Box]) -> list[list[_Box]]:
    """The columns of running text, if that is what the boxes are."""
    left, right = min(box.left for box in boxes), max(box.right for box in boxes)
    inside = [span for span in _free(boxes) if left < span[0] and span[1] < right]
    if not inside:
        return []
    widest = max(inside, key=lambda span: span[1] - span[0])
    for gutters in (inside, [widest]) if len(inside) > 1 else (inside,):
        bounds = [float("-inf"), *((low + high) / 2 for low, high in gutters), float("inf")]
        parts = [
            [box for box in boxes if low <= (box.left + box.right) / 2 < high]
            for low, high in pairwise(bounds)
        ]
        if all(_is_prose(part, right - left) for part in parts):
            return parts
    return []


def _is_prose(boxes: Sequence[_Box], page_width: float) -> bool:
    if not boxes:
        return False
    if any(isinstance(box, Table) for box in boxes):
        return True
    width = max(box.right for box in boxes) - min(box.left for box in boxes)
    lines = _lines([box for box in boxes if isinstance(box, Run)])
    wordy = sum(len(line.text.split()) >= PROSE_WORDS_MIN for line in lines)
    # Chinese and Japanese are written without spaces.
    wordy = max(wordy, sum(not line.text.isascii() and len(line.text) > 8 for line in lines))
    return (
        len(lines) >= COLUMN_LINES_MIN
        and width >= COLUMN_WIDTH_SHARE_MIN * page_width
        and wordy >= PROSE_SHARE_MIN * len(lines)
    )


def _read_lines(boxes: Sequence[_Box]) -> list[Line | Table]:
    """Boxes that are no columns: aligned tables, and lines in the order of the page."""
    runs = [box for box in boxes if isinstance(box, Run)]
    found, rest = aligned_tables(_rows(runs))
    parted = bool(rest) and _has_gutter(_free(rest), rest)
    lines = _written_lines(rest) if parted else _lines(rest)
    tables = [*found, *(box for box in boxes if isinstance(box, Table))]
    items: list[Line | Table] = [*lines]
    for table in tables:
        after = next(
            (at for at, item in enumerate(items) if item.top + item.bottom > 2 * table.top),
            len(items),
        )
        items.insert(after, table)
    return items


def _rows(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs on one line each, from the left; the lines from the top."""
    rows: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.middle):
        if rows and _on_one_line(rows[-1], run):
            rows[-1].append(run)
        else:
            rows.append([run])
    return [sorted(row, key=lambda run: run.left) for row in rows]


def _on_one_line(row: Sequence[Run], run: Run) -> bool:
    top, bottom = min(each.top for each in row), max(each.bottom for each in row)
    overlap = min(bottom, run.bottom) - max(top, run.top)
    return overlap > 0.5 * max(min(bottom - top, run.height), 0.1)


def _lines(runs: Sequence[Run]) -> list[Line]:
    return [_line(row) for row in _rows(runs)]


def _written_lines(runs: Sequence[Run]) -> list[Line]:
    """The lines in the order in which the page was written."""
    rows: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.order):
        if rows and _on_one_line(rows[-1], run) and run.left >= rows[-1][-1].right - 1:
            rows[-1].append(run)
        else:
            rows.append([run])
    return [_line(row) for row in rows]


def _line(runs: Sequence[Run]) -> Line:
    weightiest = max(runs, key=lambda run: len(run.text))
    return Line(
        text=_text(runs),
        left=min(run.left for run in runs),
        top=min(run.top for run in runs),
        right=max(run.right for run in runs),
        bottom=max(run.bottom for run in runs),
        size=weightiest.size,
        bold=all(run.bold for run in runs),
    )


def _text(runs: Sequence[Run]) -> str:
    """What stands close together, such as a raised digit, is one word."""
    text = runs[0].text
    for before, run in pairwise(runs):
        close = not run.spaced and run.left - before.right < TOUCHING_HEIGHTS * run.height
        text += run.text if close else f" {run.text}"
    return text
