"""Where a text's headings, paragraphs, lists, code and tables are.

A line scanner instead of a Markdown parser: it runs in linear time whatever it is given, it loses
no character, and a chunker needs no more than the outermost blocks. Every line that is not blank
belongs to exactly one block.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ingestion.markup import (
    Fence,
    atx_heading,
    org_heading,
    plain_heading,
    rst_underline,
    underline_level,
)
from ingestion.types import Markup, Section

Kind = Literal["heading", "paragraph", "list", "code", "table"]

_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])(?:[ \t]|\r?$)")
_RULE = re.compile(r" {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})\r?$")
_DELIMITER_ROW = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t\r]*$")

SETEXT_LINES_MAX = 2


@dataclass(slots=True)
class Block:
    """Whole lines: `text[start:end]`.

    `level` and `heading` are those of a heading, or of code that goes by a name.
    """

    kind: Kind
    start: int
    end: int
    level: int = 0
    heading: str = ""


@dataclass(slots=True)
class _Line:
    start: int
    end: int
    text: str

    @property
    def blank(self) -> bool:
        return not self.text or self.text.isspace()


def read_blocks(text: str, markup: Markup, start: int = 0, end: int | None = None) -> list[Block]:
    """The blocks of `text[start:end]` in order."""
    lines = _lines(text, start, len(text) if end is None else end)
    match markup:
        case "markdown":
            return list(_MarkdownReader(lines).blocks())
        case "rst":
            return _rst_blocks(lines)
        case "org":
            return _org_blocks(lines)
        case "plain":
            return _paragraphs(lines, "paragraph")
        case "code":
            return _paragraphs(lines, "code")


def read_definitions(text: str, outline: Sequence[Section], start: int, end: int) -> list[Block]:
    """A block of code for each section of `text[start:end]`, up to where the next one begins."""
    within = [one for one in outline if start < one.start < end]
    opening = [one for one in outline if one.start <= start][-1:] or [Section(start, 1, "")]
    sections = [*opening, *within]
    starts = [start, *(one.start for one in within)]
    return [
        Block("code", first, last, level=section.level, heading=section.name)
        for section, first, last in zip(sections, starts, [*starts[1:], end], strict=True)
        if text[first:last].strip()
    ]


def _lines(text: str, start: int, end: int) -> list[_Line]:
    lines: list[_Line] = []
    for line in text[start:end].split("\n"):
        lines.append(_Line(start, start + len(line), line))
        start += len(line) + 1
    return lines


def _paragraphs(lines: list[_Line], kind: Kind) -> list[Block]:
    blocks: list[Block] = []
    joins = False
    for line in lines:
        if line.blank:
            joins = False
        elif joins:
            blocks[-1].end = line.end
        else:
            blocks.append(Block(kind, line.start, line.end))
            joins = True
    return blocks


def _rst_blocks(lines: list[_Line]) -> list[Block]:
    """Headings are lines above a line of punctuation; each new punctuation is one level deeper."""
    levels: dict[str, int] = {}
    blocks: list[Block] = []
    rest: list[_Line] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        underline = rst_underline(lines[at + 1].text) if at + 1 < len(lines) else None
        above = lines[at - 1] if at else None
        opens = above is None or above.blank or rst_underline(above.text) is not None
        if underline and opens and not line.blank and not rst_underline(line.text):
            blocks += _paragraphs(rest, "paragraph")
            rest = []
            level = levels.setdefault(underline, len(levels) + 1)
            end = lines[at + 1].end
            blocks.append(Block("heading", line.start, end, level, plain_heading(line.text)))
            at += 2
        else:
            rest.append(line)
            at += 1
    return blocks + _paragraphs(rest, "paragraph")


def _org_blocks(lines: list[_Line]) -> list[Block]:
    blocks: list[Block] = []
    rest: list[_Line] = []
    for line in lines:
        if (heading := org_heading(line.text)) is not None:
            blocks += _paragraphs(rest, "paragraph")
            rest = []
            level, text = heading
            blocks.append(Block("heading", line.start, line.end, level, plain_heading(text)))
        else:
            rest.append(line)
    return blocks + _paragraphs(rest, "paragraph")


class _MarkdownReader:
    def __init__(self, lines: list[_Line]) -> None:
        self._lines = lines
        self._at = 0

    def blocks(self) -> Iterator[Block]:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.blank:
                self._at += 1
            elif _opens_fence(line):
                yield self._fenced_code()
            elif (heading := atx_heading(line.text)) is not None:
                self._at += 1
                yield Block("heading", line.start, line.end, heading[0], plain_heading(heading[1]))
            elif _RULE.match(line.text):
                self._at += 1
                yield Block("paragraph", line.start, line.end)
            elif self._opens_table():
                yield self._while("table", lambda line, _: "|" in line.text)
            elif _LIST_ITEM.match(line.text):
                yield self._while("list", _continues_list)
            elif _is_indented_code(line):
                yield self._while("code", lambda line, _: line.blank or _is_indented_code(line))
            else:
                yield self._paragraph()

    def _while(self, kind: Kind, continues: Callable[[_Line, bool], bool]) -> Block:
        """The lines from here on for which `continues(line, line above is blank)` holds."""
        first = last = self._lines[self._at]
        self._at += 1
        above_blank = False
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if not continues(line, above_blank):
                break
            above_blank = line.blank
            last = last if line.blank else line
            self._at += 1
        return Block(kind, first.start, last.end)

    def _fenced_code(self) -> Block:
        fence = Fence()
        fence.feed(self._lines[self._at].text)

        def continues(line: _Line, _above_blank: bool) -> bool:
            fence.feed(line.text)
            return fence.inside

        return self._while("code", continues)

    def _opens_table(self) -> bool:
        if "|" not in self._lines[self._at].text or self._at + 1 >= len(self._lines):
            return False
        below = self._lines[self._at + 1].text
        return "|" in below and "-" in below and _DELIMITER_ROW.match(below) is not None

    def _paragraph(self) -> Block:
        first = last = self._lines[self._at]
        self._at += 1
        lines_count = 1
        while self._at < len(self._lines):
            line = self._lines[self._at]
            level = underline_level(line.text)
            if level and lines_count <= SETEXT_LINES_MAX:
                self._at += 1
                heading = plain_heading(f"{first.text} {last.text if last is not first else ''}")
                return Block("heading", first.start, line.end, level, heading)
            if (
                line.blank
                or _interrupts(line)
                or _LIST_ITEM.match(line.text)
                or self._opens_table()
            ):
                break
            last = line
            lines_count += 1
            self._at += 1
        return Block("paragraph", first.start, last.end)


def _opens_fence(line: _Line) -> bool:
    fence = Fence()
    fence.feed(line.text)
    return fence.inside


def _is_indented_code(line: _Line) -> bool:
    return line.text.startswith(("    ", "\t")) and not line.blank


def _interrupts(line: _Line) -> bool:
    """Whether the line starts something new even directly under a paragraph."""
    return (
        atx_heading(line.text) is not None
        or _opens_fence(line)
        or _RULE.match(line.text) is not None
    )


def _continues_list(line: _Line, above_blank: bool) -> bool:
    """A list goes on with items, with all that is indented, and with lines that wrap."""
    if line.blank or line.text[0] in " \t":
        return True
    if _RULE.match(line.text):
        return False
    if _LIST_ITEM.match(line.text):
        return True
    return not (above_blank or _interrupts(line))
