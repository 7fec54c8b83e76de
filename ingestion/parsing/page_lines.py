"""Single lines of a PDF, and what two of them that follow each other have to do with each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from ingestion.markup import underline_level
from ingestion.parsing.page_layout import Line
from ingestion.parsing.tidying import escape_headings

OTHER_SIZE = 1.08
"""Lines whose type differs by more, as a note's does from the text's, are no one paragraph."""
FULL_LINE_CHARS_MIN = 30
FULL_LINE_SHARE = 0.88
PARAGRAPH_GAP_HEIGHTS = 0.5
FRAME_TOLERANCE = 0.05
LINE_GAP_HEIGHTS_MAX = 1.2
"""Between the lines of one paragraph, however widely it is set."""

PARAGRAPH = "\n\n"
KEPT_HYPHEN = "-"
"""The joint of a word that was parted at a hyphen that it has."""

_ENDS_SENTENCE = re.compile(r"[.!?:;。！？][\"'”’)\]]*$")
_LEADER = re.compile(r"([._…])(?: ?\1){3,}")
_LEADER_CUT = "..."
_BULLET = re.compile(r"[•◦▪‣●○■□➢❖\uf0b7\uf0a7\uf0d8\uf076]\s*(?=\S)|[–—]\s+(?=\S)")
_NUMBERED = re.compile(r"\(?(?:\d{1,2}|[a-z])[.)]\s")
_CAPTION = re.compile(
    r"(?i)(?:table|tabelle|tab\.|tableau|tabla|tabella|tabela|таблица|表)\s*\d+|表\s?\d+"
)
_FIGURE = re.compile(r"(?i)(?:fig(?:ure|ura)?|abb(?:ildung)?|рис(?:унок)?|图|図)\b\.?\s*\d")
_BROKEN_WORD = re.compile(r"([^\W\d_]{2,})-$")
_WORD_START = re.compile(r"[^\W\d_]+")
_UNSPACED = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


def plain_line(text: str) -> str:
    """A line without the dots that lead through a table of contents."""
    return _LEADER.sub(r"\1\1\1", text.rstrip())


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


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """A line, and how the lines of its column stand."""

    line: Line
    shape: Shape


def parted(text: str, joint: str) -> tuple[str, str]:
    """The text before a joint, and what is to follow it: a word comes together without its hyphen."""
    if joint == KEPT_HYPHEN:
        return text, ""
    return (text[:-1] if joint == "" and text.endswith("-") else text), joint


def line_joint(
    above: PlacedLine, below: PlacedLine, words: frozenset[str], *, is_gap: bool | None = None
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
        return _hyphen_joint(broken.group(1), line.text, words)
    is_full = above.shape.is_full(over) and not is_dotted(over.text)
    if line.text[0].islower() or is_full:
        both = _UNSPACED.match(over.text[-1]) and _UNSPACED.match(line.text[0])
        return "" if both else " "
    return PARAGRAPH if ends_sentence(over) else "\n"


def _hyphen_joint(start: str, rest: str, words: frozenset[str]) -> str:
    """Parted at a line's end, or written with a hyphen? As elsewhere in the document."""
    if not rest[0].islower():
        return KEPT_HYPHEN
    end = _WORD_START.match(rest)
    start, tail = start.lower(), end.group().lower() if end else ""
    is_written = f"{start}-{tail}" in words and f"{start}{tail}" not in words
    return KEPT_HYPHEN if is_written else ""


def opens_with_bullet(text: str) -> bool:
    return _BULLET.match(text) is not None


def is_item(line: Line) -> bool:
    return bool(_BULLET.match(line.text) or _NUMBERED.match(line.text))


def is_dotted(text: str) -> bool:
    """Whether dots lead through the line, as in a table of contents."""
    return _LEADER_CUT in text


def is_caption(line: Line) -> bool:
    return bool(_FIGURE.match(line.text) or _CAPTION.match(line.text))


def ends_sentence(line: Line) -> bool:
    return _ENDS_SENTENCE.search(line.text) is not None


def _is_list(line: Line) -> bool:
    return _NUMBERED.match(line.text) is not None or ends_sentence(line)


def captions_table(text: str) -> bool:
    return _CAPTION.match(text) is not None


def line_text(line: Line) -> str:
    bullet = _BULLET.match(line.text)
    text = escape_headings(line.text[bullet.end() :] if bullet else line.text)
    return f"- {text}" if bullet else text


def is_like_size(line: Line, size: float) -> bool:
    return 1 / OTHER_SIZE < line.size / size < OTHER_SIZE
