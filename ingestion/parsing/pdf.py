"""PDF pages as text that reads on.

The Markdown that kreuzberg guesses from a PDF's layout loses text (up to two thirds of a page
with text boxes), and takes many a line for a heading. The plain text of its pages is complete.
So the pages are the text, and the Markdown only says which of their lines are headings.
"""

import re
from collections import Counter

import kreuzberg

from ingestion.markup import atx_heading, plain_heading, underline_level
from ingestion.parsing.conversion import (
    PageMarks,
    convert,
    metadata_of,
    ocr_languages,
    title_of,
    warnings_of,
)
from ingestion.parsing.decoding import clean
from ingestion.parsing.drafts import Draft
from ingestion.parsing.formats import PDF
from ingestion.parsing.tidying import escape_headings, tidy

EDGE_LINES = 2
FURNITURE_PAGES_MIN = 3
FURNITURE_SHARE_MIN = 0.3
FULL_LINE_SHARE = 0.75
HEADING_CHARS_MAX = 100
HEADING_WORDS_MAX = 14
TITLE_WITHIN_CHARS = 300

_ENDS_SENTENCE = re.compile(r"[.!?:;。！？][\"'”’)\]]*$")
_NO_HEADING_END = re.compile(r"[,;.\-–…]$")
_LETTERS = re.compile(r"[^\W\d_]{2}")
_LEADER = re.compile(r"([._…])(?: ?\1){3,}")
_LEADER_CUT = "..."
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_NO_TITLE = re.compile(r"(?i)(?:table of )?contents|inhalt(?:sverzeichnis)?|sommaire|\d.*")


def read_pdf(content: bytes) -> Draft:
    marks = PageMarks()
    result = convert(content, PDF, pages=marks.config)
    markdown = tidy(clean(result.content))
    pages = [_lines(page["content"]) for page in result.pages or []]
    if not any(line for page in pages for line in page):
        return _scanned(result, marks.split(markdown), len(pages))
    title = title_of(result) or _title_on(pages[0], markdown)
    warnings = warnings_of(result)
    if blank_count := sum(not any(page) for page in pages):
        warnings.append(f"{blank_count} of its {len(pages)} pages have no text: scanned, or empty")
    pages = _without_furniture(pages)
    headings = _headings(markdown, pages)
    return Draft(
        pages=[_reflow(page, headings) for page in pages],
        title=title,
        heading_is_title=False,
        metadata=metadata_of(result),
        warnings=warnings,
    )


def _scanned(result: kreuzberg.ExtractionResult, texts: list[str], pages_count: int) -> Draft:
    """Pages of pictures, with what OCR has read in them."""
    return Draft(
        text="\n\n".join(texts),
        pages=texts if len(texts) == pages_count else [],
        title=title_of(result),
        heading_is_title=False,
        metadata=metadata_of(result),
        no_text=(
            "no text: OCR found none in its pages"
            if ocr_languages()
            else "no text: it is probably a scan (install tesseract for OCR)"
        ),
    )


def _lines(page: str) -> list[str]:
    """A page's lines, the dots that lead through a table of contents cut short."""
    return [_LEADER.sub(r"\1\1\1", line.rstrip()) for line in clean(page).split("\n")]


def _title_on(first_page: list[str], markdown: str) -> str:
    """The first heading of the first level, when the document opens with it."""
    opening = _squeezed(" ".join(first_page))[:TITLE_WITHIN_CHARS]
    for line in markdown.split("\n"):
        heading = atx_heading(line)
        if heading is not None and heading[0] == 1:
            title = plain_heading(heading[1])
            squeezed = _squeezed(title)
            opens = bool(squeezed) and squeezed in opening
            return title if opens and not _NO_TITLE.fullmatch(title) else ""
    return ""


def _squeezed(text: str) -> str:
    return _SPACE.sub("", text)


def _without_furniture(pages: list[list[str]]) -> list[list[str]]:
    """Running headers, footers and page numbers only where they first occur."""
    edges = [set(map(_shape, _edge_lines(page))) for page in pages]
    counts = Counter(shape for edge in edges for shape in edge)
    often = max(FURNITURE_PAGES_MIN, FURNITURE_SHARE_MIN * len(pages))
    furniture = {shape for shape, count in counts.items() if count >= often}
    seen: set[str] = set()
    kept: list[list[str]] = []
    for page in pages:
        dropped = {line for line in _edge_lines(page) if _shape(line) in furniture & seen}
        seen |= set(map(_shape, _edge_lines(page)))
        kept.append([line for line in page if line not in dropped])
    return kept


def _edge_lines(page: list[str]) -> list[str]:
    lines = [line for line in page if line]
    return [*lines[:EDGE_LINES], *lines[-EDGE_LINES:]]


def _shape(line: str) -> str:
    return _NUMBER.sub("#", line)


def _headings(markdown: str, pages: list[list[str]]) -> dict[str, int]:
    """Lines that are headings, with their level: those that look like one where they stand."""
    guessed: dict[str, int] = {}
    for line in markdown.split("\n"):
        if (heading := atx_heading(line)) is not None:
            guessed.setdefault(plain_heading(heading[1]), heading[0])
    counts = Counter(plain_heading(line) for page in pages for line in page)
    found: dict[str, int] = {}
    for page in pages:
        for before, line, after in zip(["", *page], page, [*page[1:], ""], strict=False):
            level = guessed.get(plain_heading(line)) if line else None
            if level and counts[plain_heading(line)] == 1 and _stands_alone(before, line, after):
                found[line] = level
    return found


def _stands_alone(before: str, line: str, after: str) -> bool:
    return (
        len(line) <= HEADING_CHARS_MAX
        and len(line.split()) <= HEADING_WORDS_MAX
        and _LETTERS.search(line) is not None
        and not line[0].islower()
        and not _NO_HEADING_END.search(line)
        and not after[:1].islower()
        and (
            not before
            or len(before) < HEADING_CHARS_MAX // 2
            or bool(_ENDS_SENTENCE.search(before))
        )
    )


def _reflow(lines: list[str], headings: dict[str, int]) -> str:
    """Join the lines of a sentence, and part paragraphs; mark the headings."""
    lengths = sorted(len(line) for line in lines if line)
    full = FULL_LINE_SHARE * lengths[len(lengths) * 9 // 10] if lengths else 0.0
    text: list[str] = []
    above = ""
    for line in lines:
        if line in headings:
            text += ["\n\n", "#" * headings[line], " ", line, "\n\n"]
            above = ""
            continue
        if above:
            text.append(_between(above, line, full))
        # What looks like a heading but was not found to be one must not become one.
        text.append(escape_headings(line))
        above = line
    return "".join(text).strip()


def _between(above: str, line: str, full: float) -> str:
    """What joins or parts two lines; `full` characters make a line that was wrapped at its end."""
    if not line or underline_level(line):
        return "\n\n"
    ends_sentence = _ENDS_SENTENCE.search(above) is not None
    is_leader = _LEADER_CUT in above
    if line[0].islower() or (len(above) >= full and not ends_sentence and not is_leader):
        return " "
    return "\n\n" if ends_sentence and len(above) < full else "\n"
