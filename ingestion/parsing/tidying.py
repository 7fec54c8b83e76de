"""Makes the Markdown of converters plain to read: fewer escapes, no padding, no empty images."""

import html
import re

from ingestion.markup import Fence

_ESCAPE_OR_ENTITY = re.compile(r"\\([!-/:-@\[-`{-~])|&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|\w{2,31});")
_IMAGE = re.compile(r"!\[([^\[\]]*)\]\((?:<[^<>]*>|[^()\s]*)(?:\s+\"[^\"]*\")?\)")
_PLACEHOLDER = re.compile(r"(?i)(?:image|picture|img|bild|grafik)?[\s_-]*\d*(?:\.\w{3,4})?$")
_PADDING = re.compile(r" {2,}")
_DASHES = re.compile(r"-{4,}")
_BLANK_LINES = re.compile(r"\n{3,}")
_EMPTY_LINK = re.compile(r"\[\s*\]\([^()]*\)")
_LOCAL_LINK = re.compile(r"\[([^\[\]]+)\]\((?![a-z]+:)[^()\s]*(?:\s+\"[^\"]*\")?\)", re.IGNORECASE)
_LINK_TITLE = re.compile(r"(?<=\S) \"[^\"]*\"\)")
_BARE_HASHES = re.compile(r"#{1,6}$")
_BARE_BULLET = re.compile(r"\s*\\?[-*+]\s*$")
_SINGLE_CELL = re.compile(r"\|([^|]*)\|$")
_SINGLE_DELIMITER = re.compile(r"\| ?:?-+:? ?\|$")
_HASHES = re.compile(r"^( {0,3})(?=#{1,6}(?:\s|$))", re.MULTILINE)
_UNDERLINE = re.compile(r"(?<=\S)\n(?= {0,3}(?:=+|-+)[ \t]*$)", re.MULTILINE)
_OPENS_BLOCK = re.compile(r" {0,3}(?:#{1,6}(?:\s|$)|[-+*](?:\s|$)|>|=+\s*$|-+\s*$|```|~~~)")


def tidy(markdown: str) -> str:
    fence = Fence()
    lines: list[str] = []
    for line in markdown.split("\n"):
        fence.feed(line)
        lines.append(line if fence.inside else _tidy_line(line.rstrip()))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


def _tidy_line(line: str) -> str:
    if "](" in line:
        line = _IMAGE.sub(_alternative_text, line)
        line = _EMPTY_LINK.sub("", line)
        line = _LINK_TITLE.sub(")", _LOCAL_LINK.sub(r"\1", line))
    is_row = line.startswith("|")
    if is_row:
        line = _DASHES.sub("---", _PADDING.sub(" ", line))
        if _SINGLE_DELIMITER.match(line):
            return ""
        # A table of one column is a layout, not a table.
        if cell := _SINGLE_CELL.match(line):
            line, is_row = cell.group(1).strip(), False
    if "\\" in line or "&" in line:
        line = _unescaped(line, is_row=is_row)
    return "" if _BARE_BULLET.match(line) or _BARE_HASHES.match(line) else line


def _alternative_text(image: re.Match[str]) -> str:
    text = image.group(1).strip()
    return "" if _PLACEHOLDER.match(text) else text


def _unescaped(line: str, *, is_row: bool) -> str:
    def plain(match: re.Match[str]) -> str:
        character = match.group(1)
        if character is None:
            return html.unescape(match.group())
        return match.group() if is_row and character == "|" else character

    text = _ESCAPE_OR_ENTITY.sub(plain, line)
    # An escape that kept the line from opening a block has to stay.
    if line.lstrip().startswith("\\") and _OPENS_BLOCK.match(text):
        indent = len(text) - len(text.lstrip())
        return f"{text[:indent]}\\{text[indent:]}"
    return text


def escape_headings(text: str) -> str:
    """Plain text for a place among Markdown: no line of it may become a heading."""
    return _UNDERLINE.sub("\n\n", _HASHES.sub(r"\1\\", text))


def demoted(markdown: str) -> str:
    """Every heading one level deeper, to stand under a heading that is put above."""
    fence = Fence()
    lines: list[str] = []
    for line in markdown.split("\n"):
        fence.feed(line)
        if not fence.inside and line.startswith("#") and not line.startswith("######"):
            line = f"#{line}"
        lines.append(line)
    return "\n".join(lines)
