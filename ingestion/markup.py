"""The marks of Markdown that parsing and chunking both look for."""

import html
import re

from ingestion.types import Markup

HEADING_CHARS_MAX = 120
TITLE_LINES_MAX = 300

_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t\r]|$)")
_UNDERLINE = re.compile(r" {0,3}(={2,}|-{2,})[ \t\r]*$")
_RST_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_<>])\1{2,}[ \t\r]*$")
_ORG_HEADING = re.compile(r"(\*+)[ \t]+(.*)")
_ORG_TITLE = re.compile(r"#\+title:(.*)", re.IGNORECASE)
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})(.*)")

_IMAGE_OR_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_ATTRIBUTES = re.compile(r"\s*\{[^{}]*\}$")
_EMPHASIS = re.compile(r"[*`]+|~~|(?<![^\W_])_+|_+(?![^\W_])")
_SPACE = re.compile(r"\s+")


def atx_heading(line: str) -> tuple[int, str] | None:
    """Level and text of a line such as `## Holidays`."""
    match = _ATX.match(line)
    return (len(match.group(1)), line[match.end() :]) if match else None


def underline_level(line: str) -> int | None:
    """1 or 2 when the line underlines a heading with `===` or `---`."""
    match = _UNDERLINE.match(line)
    return {"=": 1, "-": 2}[match.group(1)[0]] if match else None


def rst_underline(line: str) -> str | None:
    """The punctuation of a line such as `~~~~~`."""
    match = _RST_UNDERLINE.match(line)
    return match.group(1) if match else None


def org_heading(line: str) -> tuple[int, str] | None:
    """Level and text of a line such as `** Holidays`."""
    match = _ORG_HEADING.match(line)
    return (len(match.group(1)), match.group(2)) if match else None


class Fence:
    """Follows fenced code line by line: `inside` says whether the line just fed belongs to one."""

    def __init__(self) -> None:
        self.inside = False
        self._marker = ""

    def feed(self, line: str) -> None:
        match = _FENCE.match(line)
        if self._marker:
            closes = (
                match and match.group(1).startswith(self._marker) and not match.group(2).strip()
            )
            if closes:
                self._marker = ""
            return  # the closing line itself is still inside
        # A backtick fence has no backtick after it; otherwise the line is inline code.
        opens = match and not (match.group(1)[0] == "`" and "`" in match.group(2))
        self._marker = match.group(1) if match and opens else ""
        self.inside = bool(self._marker)


def plain_heading(text: str) -> str:
    """A heading as people read it: no links, emphasis, tags or attributes, at most 120 characters."""
    text = _ATTRIBUTES.sub("", text[: 4 * HEADING_CHARS_MAX].strip().rstrip("#").rstrip())
    for _ in range(2):  # a link around an image
        text = _IMAGE_OR_LINK.sub(r"\1", text)
    text = html.unescape(_EMPHASIS.sub("", _TAG.sub("", text)).replace("\\", ""))
    text = _SPACE.sub(" ", text).strip()
    if len(text) <= HEADING_CHARS_MAX:
        return text
    return text[: HEADING_CHARS_MAX - 1].rstrip() + "…"


def first_heading(text: str, markup: Markup) -> str:
    """The heading nearest the top, which is often the title; empty when there is none there."""
    if markup in ("plain", "code"):
        return ""
    lines = text.split("\n", TITLE_LINES_MAX)[:TITLE_LINES_MAX]
    fence = Fence()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if markup == "markdown":
            fence.feed(line)
            if fence.inside:
                continue
        if heading := plain_heading(_heading_text(line, below, markup)):
            return heading
    return ""


def _heading_text(line: str, below: str, markup: Markup) -> str:
    if markup == "org":
        title = _ORG_TITLE.match(line)
        heading = org_heading(line)
        return title.group(1) if title else heading[1] if heading else ""
    if markup == "markdown" and (heading := atx_heading(line)) is not None:
        return heading[1]
    underlined = underline_level(below) if markup == "markdown" else rst_underline(below)
    return line if underlined and not rst_underline(line) else ""
