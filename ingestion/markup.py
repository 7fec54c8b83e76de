"""The marks of Markdown that parsing and chunking both look for."""

import html
import re

HEADING_CHARS_MAX = 120

_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t\r]|$)")
_UNDERLINE = re.compile(r" {0,3}(={2,}|-{2,})[ \t\r]*$")
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
    text = _ATTRIBUTES.sub("", text[: 4 * HEADING_CHARS_MAX].strip().rstrip("#"))
    for _ in range(2):  # a link around an image
        text = _IMAGE_OR_LINK.sub(r"\1", text)
    text = html.unescape(_EMPHASIS.sub("", _TAG.sub("", text)).replace("\\", ""))
    text = _SPACE.sub(" ", text).strip()
    if len(text) <= HEADING_CHARS_MAX:
        return text
    return text[: HEADING_CHARS_MAX - 1].rstrip() + "…"
