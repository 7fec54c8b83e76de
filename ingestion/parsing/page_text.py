"""From the lines of a PDF to Markdown: headings, paragraphs that read on, lists, captions."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ingestion.parsing.page_layout import Column, Line
from ingestion.parsing.page_lines import (
    PARAGRAPH,
    PlacedLine,
    Shape,
    captions_table,
    is_dotted,
    line_joint,
    line_text,
    opens_with_bullet,
    parted,
)
from ingestion.parsing.page_tables import Table
from ingestion.parsing.tidying import escape_headings

LARGE_SIZE = 1.15
HEADING_CHARS_MAX = 160
HEADING_WORDS_MAX = 20
HEADING_LINES_MAX = 3
HEADING_LEVEL_MAX = 4
HEADING_PITCH = 3.2
"""Of the height of a line: two lines of one heading take no more."""
BOLD_SHARE_MAX = 0.3
HEADING_SHARE_MAX = 0.25
FRAMES_MAX = 16

_NO_HEADING_END = re.compile(r"[,;\-–…]$|(?<!\d)\.$")
_LETTERS = re.compile(r"[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SECTION = re.compile(r"(\d{1,2}(?:\.\d{1,2}){0,3})\.?\s+\S")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Style:
    """What the whole document looks like, and by what its headings stand out."""

    body_size: float
    levels: dict[float, int]
    bold_counts: bool
    words: frozenset[str]
    frames: tuple[Shape, ...] = ()
    """The usual shapes of columns, that of the most lines first."""

    @classmethod
    def of(cls, pages: Sequence[Sequence[Column]]) -> "Style":
        upright = [column for page in pages for column in page if not column.aside]
        lines = [line for column in upright for line in _lines(column)]
        chars = Counter[float]()
        for line in lines:
            chars[line.size] += len(line.text)
        total = chars.total()
        body = chars.most_common(1)[0][0] if chars else 0.0
        large = {size: count for size, count in chars.items() if body and size > LARGE_SIZE * body}
        if sum(large.values()) > HEADING_SHARE_MAX * total:
            large = {}
        bold = sum(len(line.text) for line in lines if line.bold)
        return cls(
            body_size=body,
            levels=_levels(large),
            bold_counts=bold <= BOLD_SHARE_MAX * total,
            words=frozenset(word for line in lines for word in _WORD.findall(line.text.lower())),
            frames=_frames(upright),
        )

    def framed(self, shape: Shape) -> Shape:
        """The shape, with lines as full as those of such columns in the whole document.

        Where a text is set anew, a column holds other lines, but reaches as far.
        """
        frame = next((frame for frame in self.frames if frame.is_like(shape)), shape)
        return replace(shape, right=frame.right)

    def level(self, line: Line) -> int | None:
        """The level of a line that has the type of a heading."""
        if level := self.levels.get(line.size):
            return level
        if not (line.bold and self.bold_counts and line.size >= 0.95 * self.body_size):
            return None
        section = _SECTION.match(line.text)
        depth = section.group(1).count(".") if section else 0
        below = max(self.levels.values(), default=0) + 1
        return min(below + depth, HEADING_LEVEL_MAX + 2)


def _frames(columns: Sequence[Column]) -> tuple[Shape, ...]:
    groups: list[tuple[Shape, list[Line]]] = []
    by_length = sorted((_lines(column) for column in columns), key=len, reverse=True)
    for lines in by_length:
        shape = Shape.of(lines)
        alike = next((members for frame, members in groups if frame.is_like(shape)), None)
        if alike is not None:
            alike += lines
        elif len(groups) < FRAMES_MAX:
            groups.append((shape, list(lines)))
    groups.sort(key=lambda group: len(group[1]), reverse=True)
    return tuple(Shape.of(lines) for _, lines in groups)


def _levels(large: Iterable[float]) -> dict[float, int]:
    """The largest type is the first level; sizes that differ by next to nothing share one."""
    levels: dict[float, int] = {}
    level, above = 0, 0.0
    for size in sorted(large, reverse=True):
        if not above or size < 0.95 * above:
            level, above = level + 1, size
        levels[size] = min(level, HEADING_LEVEL_MAX)
    return levels


def _lines(column: Column) -> list[Line]:
    return [item for item in column.items if isinstance(item, Line)]


BlockKind = Literal["text", "heading", "table", "apart"]


@dataclass(slots=True)
class TextBlock:
    """Something of a page as Markdown: running text, a heading, a table, or what stands apart.

    Running text has the lines that it begins and ends with, a table its cells.
    """

    kind: BlockKind
    text: str
    lines: "tuple[PlacedLine, PlacedLine] | None" = None
    lines_count: int = 0
    table: Table | None = None


def read_text_blocks(page: Sequence[Column], style: Style) -> list[TextBlock]:
    """A page as Markdown. Whatever looks like a heading to Markdown, and is none, is escaped."""
    writer = _Writer(style)
    for column in page:
        writer.column(column)
    return [block for block in writer.blocks if block.text.strip()]


class _Writer:
    def __init__(self, style: Style) -> None:
        self.blocks: list[TextBlock] = []
        self._style = style
        self._above: PlacedLine | None = None

    def column(self, column: Column) -> None:
        if column.aside:
            texts = [escape_headings(line.text) for line in _lines(column)]
            self._stand_alone("apart", " ".join(texts))
            return
        items = _with_captions(column.items)
        lines = [item for item in items if isinstance(item, Line)]
        shape = self._style.framed(Shape.of(lines))
        at = 0
        while at < len(items):
            item = items[at]
            if isinstance(item, Table):
                self._stand_alone("table", item.markdown(), item)
                at += 1
            elif (length := self._heading_length(items, at, shape)) > 0:
                parts = [line.text for line in items[at : at + length] if isinstance(line, Line)]
                level = self._style.level(item) or 1
                self._stand_alone("heading", f"{'#' * level} {' '.join(parts)}")
                at += length
            elif item.running:
                self._stand_alone("apart", escape_headings(item.text))
                at += 1
            else:
                self._line(PlacedLine(item, shape))
                at += 1

    def _stand_alone(self, kind: BlockKind, text: str, table: Table | None = None) -> None:
        self.blocks.append(TextBlock(kind, text, table=table))
        self._above = None

    def _line(self, below: PlacedLine) -> None:
        text = line_text(below.line)
        joint = (
            PARAGRAPH if self._above is None else line_joint(self._above, below, self._style.words)
        )
        if joint == PARAGRAPH:
            self.blocks.append(TextBlock("text", text, (below, below), 1))
        else:
            block = self.blocks[-1]
            block.text = "".join([*parted(block.text, joint), text])
            block.lines = (block.lines[0] if block.lines else below, below)
            block.lines_count += 1
        self._above = below

    def _heading_length(self, items: Sequence[Line | Table], at: int, shape: Shape) -> int:
        """How many lines from here on are one heading; 0 when it is none."""
        first = items[at]
        level = self._style.level(first) if isinstance(first, Line) else None
        if not isinstance(first, Line) or level is None:
            return 0
        length = 1
        while at + length < len(items):
            line, above = items[at + length], items[at + length - 1]
            if not (isinstance(line, Line) and _same_type(line, first)):
                break
            if not 0 <= line.bottom - above.top <= HEADING_PITCH * (above.bottom - above.top):
                break
            length += 1
        text = " ".join(line.text for line in items[at : at + length] if isinstance(line, Line))
        is_large = first.size in self._style.levels
        sound = length <= HEADING_LINES_MAX and _may_be_heading(text)
        if sound and not is_large:
            after = items[at + length] if at + length < len(items) else None
            above = items[at - 1] if at else None
            sound = (
                length == 1
                and isinstance(after, Line)
                and not text.endswith(":")
                and (not isinstance(above, Line) or shape.has_gap(above, first))
            )
        return length if sound else 0


def _same_type(line: Line, other: Line) -> bool:
    return line.size == other.size and line.bold == other.bold


def _may_be_heading(text: str) -> bool:
    return (
        len(text) <= HEADING_CHARS_MAX
        and len(text.split()) <= HEADING_WORDS_MAX
        and _LETTERS.search(text) is not None
        and not text[0].islower()
        and not _NO_HEADING_END.search(text)
        and not opens_with_bullet(text)
        and not captions_table(text)
        and not is_dotted(text)
    )


def _with_captions(items: Sequence[Line | Table]) -> list[Line | Table]:
    """The line `Table 3: …` above a table, or else below it, goes with it."""
    kept = list(items)
    for table in [item for item in items if isinstance(item, Table)]:
        at = kept.index(table)
        for beside in (at - 1, at + 1):
            line = kept[beside] if 0 <= beside < len(kept) else None
            if isinstance(line, Line) and captions_table(line.text):
                table.caption = line.text
                del kept[beside]
                break
    return kept
