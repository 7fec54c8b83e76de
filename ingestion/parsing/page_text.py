"""From the lines of a PDF to Markdown: headings, paragraphs that read on, lists, captions."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Literal

from ingestion.markup import underline_level
from ingestion.parsing.page_layout import Column, Line
from ingestion.parsing.page_tables import Table
from ingestion.parsing.tidying import escape_headings

LARGE_SIZE = 1.15
OTHER_SIZE = 1.08
"""Lines whose type differs by more, as a note's does from the text's, are no one paragraph."""
HEADING_CHARS_MAX = 160
HEADING_WORDS_MAX = 20
HEADING_LINES_MAX = 3
HEADING_LEVEL_MAX = 4
HEADING_PITCH = 3.2
"""Of the height of a line: two lines of one heading take no more."""
BOLD_SHARE_MAX = 0.3
HEADING_SHARE_MAX = 0.25
FULL_LINE_CHARS_MIN = 30
FULL_LINE_SHARE = 0.88
PARAGRAPH_GAP_HEIGHTS = 0.5
FRAME_TOLERANCE = 0.05
FRAMES_MAX = 16
LINE_GAP_HEIGHTS_MAX = 1.2
"""Between the lines of one paragraph, however widely it is set."""

PARAGRAPH = "\n\n"
KEPT_HYPHEN = "-"
"""The joint of a word that was parted at a hyphen that it has."""

_ENDS_SENTENCE = re.compile(r"[.!?:;。！？][\"'”’)\]]*$")
_NO_HEADING_END = re.compile(r"[,;\-–…]$|(?<!\d)\.$")
_LETTERS = re.compile(r"[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LEADER = re.compile(r"([._…])(?: ?\1){3,}")
_LEADER_CUT = "..."
_BULLET = re.compile(r"[•◦▪‣●○■□➢❖\uf0b7\uf0a7\uf0d8\uf076]\s*(?=\S)|[–—]\s+(?=\S)")
_NUMBERED = re.compile(r"\(?(?:\d{1,2}|[a-z])[.)]\s")
_SECTION = re.compile(r"(\d{1,2}(?:\.\d{1,2}){0,3})\.?\s+\S")
_CAPTION = re.compile(
    r"(?i)(?:table|tabelle|tab\.|tableau|tabla|tabella|tabela|таблица|表)\s*\d+|表\s?\d+"
)
_FIGURE = re.compile(r"(?i)(?:fig(?:ure|ura)?|abb(?:ildung)?|рис(?:унок)?|图|図)\b\.?\s*\d")
_BROKEN_WORD = re.compile(r"([^\W\d_]{2,})-$")
_WORD_START = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_UNSPACED = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


def plain_line(text: str) -> str:
    """A line without the dots that lead through a table of contents."""
    return _LEADER.sub(r"\1\1\1", text.rstrip())


@dataclass(frozen=True, slots=True)
class Style:
    """What the whole document looks like, and by what its headings stand out."""

    body_size: float
    levels: dict[float, int]
    bold_counts: bool
    words: frozenset[str]
    frames: tuple["Shape", ...] = ()
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

    def framed(self, shape: "Shape") -> "Shape":
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


def _frames(columns: Sequence[Column]) -> tuple["Shape", ...]:
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


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """A line, and how the lines of its column stand."""

    line: Line
    shape: "Shape"


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
        text = _line_text(below.line)
        joint = PARAGRAPH if self._above is None else line_joint(self._above, below, self._style)
        if joint == PARAGRAPH:
            self.blocks.append(TextBlock("text", text, (below, below), 1))
        else:
            block = self.blocks[-1]
            block.text = "".join([*parted(block.text, joint), text])
            block.lines = (block.lines[0] if block.lines else below, below)
            block.lines_count += 1
        self._above = below

    def _heading_length(self, items: Sequence[Line | Table], at: int, shape: "Shape") -> int:
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


def _line_text(line: Line) -> str:
    bullet = _BULLET.match(line.text)
    text = escape_headings(line.text[bullet.end() :] if bullet else line.text)
    return f"- {text}" if bullet else text


def parted(text: str, joint: str) -> tuple[str, str]:
    """What stands before a joint, and what stands in its place."""
    if joint == KEPT_HYPHEN:
        return text, ""
    return (text[:-1] if joint == "" and text.endswith("-") else text), joint


def line_joint(
    above: PlacedLine, below: PlacedLine, style: Style, *, is_gap: bool | None = None
) -> str:
    """What goes between two lines of running text.

    `is_gap` says whether there is room left between them, where that is not for their places on
    one page to say.
    """
    over, line = above.line, below.line
    if underline_level(line.text) or below.shape.starts_paragraph(over, line, is_gap):
        return PARAGRAPH
    if _BULLET.match(line.text) or (_NUMBERED.match(line.text) and _is_list(over)):
        return "\n"
    if broken := _BROKEN_WORD.search(over.text):
        return _hyphen_joint(broken.group(1), line.text, style)
    is_full = above.shape.is_full(over) and not is_dotted(over)
    if line.text[0].islower() or is_full:
        both = _UNSPACED.match(over.text[-1]) and _UNSPACED.match(line.text[0])
        return "" if both else " "
    return PARAGRAPH if ends_sentence(over) else "\n"


def _hyphen_joint(start: str, rest: str, style: Style) -> str:
    """Parted at a line's end, or written with a hyphen? As elsewhere in the document."""
    if not rest[0].islower():
        return KEPT_HYPHEN
    end = _WORD_START.match(rest)
    start, tail = start.lower(), end.group().lower() if end else ""
    is_written = f"{start}-{tail}" in style.words and f"{start}{tail}" not in style.words
    return KEPT_HYPHEN if is_written else ""


def is_item(line: Line) -> bool:
    return bool(_BULLET.match(line.text) or _NUMBERED.match(line.text))


def is_dotted(line: Line) -> bool:
    """Whether it is one of a table of contents, or of prices."""
    return _LEADER_CUT in line.text


def is_caption(line: Line) -> bool:
    return bool(_FIGURE.match(line.text) or _CAPTION.match(line.text))


def ends_sentence(line: Line) -> bool:
    return _ENDS_SENTENCE.search(line.text) is not None


def _same_type(line: Line, other: Line) -> bool:
    return line.size == other.size and line.bold == other.bold


def _may_be_heading(text: str) -> bool:
    return (
        len(text) <= HEADING_CHARS_MAX
        and len(text.split()) <= HEADING_WORDS_MAX
        and _LETTERS.search(text) is not None
        and not text[0].islower()
        and not _NO_HEADING_END.search(text)
        and not _BULLET.match(text)
        and not _CAPTION.match(text)
        and _LEADER_CUT not in text
    )


def _is_list(line: Line) -> bool:
    return _NUMBERED.match(line.text) is not None or ends_sentence(line)


def _with_captions(items: Sequence[Line | Table]) -> list[Line | Table]:
    """The line `Table 3: …` above a table, or else below it, goes with it."""
    kept = list(items)
    for table in [item for item in items if isinstance(item, Table)]:
        at = kept.index(table)
        for beside in (at - 1, at + 1):
            line = kept[beside] if 0 <= beside < len(kept) else None
            if isinstance(line, Line) and _CAPTION.match(line.text):
                table.caption = line.text
                del kept[beside]
                break
    return kept


@dataclass(frozen=True, slots=True)
class Shape:
    """How the lines of a column stand: its edges, and the usual gap between two lines."""

    left: float
    right: float
    gap: float

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "Shape":
        if not lines:
            return cls(0.0, 0.0, 0.0)
        rights = sorted(line.right for line in lines)
        gaps = [below.top - above.bottom for above, below in pairwise(lines)]
        downwards = [gap for gap in gaps if gap > -5]
        return cls(
            left=min(line.left for line in lines),
            right=rights[len(rights) * 9 // 10],
            gap=median(downwards) if downwards else 0.0,
        )

    def is_like(self, other: "Shape") -> bool:
        """Whether both edges are about the same."""
        tolerance = FRAME_TOLERANCE * (self.right - self.left)
        return (
            abs(self.left - other.left) <= tolerance and abs(self.right - other.right) <= tolerance
        )

    def is_full(self, line: Line) -> bool:
        """Whether the line was wrapped at its end."""
        reach = self.left + FULL_LINE_SHARE * (self.right - self.left)
        return len(line.text) >= FULL_LINE_CHARS_MIN and line.right >= reach

    def has_gap(self, above: Line, line: Line) -> bool:
        gap = line.top - above.bottom
        usual = min(max(self.gap, 0.0), LINE_GAP_HEIGHTS_MAX * line.height)
        return gap > usual + PARAGRAPH_GAP_HEIGHTS * line.height or gap < -above.height

    def starts_paragraph(self, above: Line, line: Line, is_gap: bool | None = None) -> bool:
        if above.size == 0:
            return False
        if not is_like_size(line, above.size):
            return True
        if line.text[0].islower():
            return is_caption(above) and self.has_gap(above, line)
        if is_gap is not None:
            return is_gap or (self.is_indented(line) and ends_sentence(above))
        if above.top > line.top:
            return False  # the line is the first of another column
        is_indented = line.left > above.left + line.height and ends_sentence(above)
        return self.has_gap(above, line) or is_indented

    def is_indented(self, line: Line) -> bool:
        return line.left > self.left + line.height


def is_like_size(line: Line, size: float) -> bool:
    return 1 / OTHER_SIZE < line.size / size < OTHER_SIZE
