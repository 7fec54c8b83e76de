"""PDF pages as Markdown that reads on.

PDFium says what stands where; the layout of a page is found here, because what libraries guess of it
loses text. Where a layout cannot be found, the plain text of the page stands in.
"""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.errors import DocumentRejected
from ingestion.markup import plain_heading
from ingestion.parsing import ocr
from ingestion.parsing.conversion import convert, metadata_of, own_title, title_of
from ingestion.parsing.decoding import clean
from ingestion.parsing.drafts import NO_TEXT_OCR, NO_TEXT_WITHOUT_OCR, Draft
from ingestion.parsing.formats import PDF
from ingestion.parsing.page_flow import read_on
from ingestion.parsing.page_layout import Column, Line, read_columns
from ingestion.parsing.page_lines import plain_line
from ingestion.parsing.page_rules import find_grids
from ingestion.parsing.page_tables import ruled_tables
from ingestion.parsing.page_text import Style
from ingestion.parsing.pdfium import DAMAGED, Pdf, Sheet, open_pdf

EDGE_LINES = 2
FURNITURE_PAGES_MIN = 3
FURNITURE_SHARE_MIN = 0.3
KEPT_SHARE_MIN = 0.99
TITLE_WITHIN_CHARS = 300

_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b", re.IGNORECASE)
_PAGE_NUMBER = re.compile(
    r"(?i)[-–—|\s]*(?:page|seite|p\.?)?\s*(?:\d+|[ivxlc]+)\s*(?:(?:of|/|von|de)\s*\d+)?[-–—|\s]*"
)
_AT_AN_END = re.compile(r"^\d{1,5}(?!\S)|(?<!\S)\d{1,5}$")
_SPACE = re.compile(r"\s+")
_NO_TITLE = re.compile(r"(?i)(?:table of )?contents|inhalt(?:sverzeichnis)?|sommaire|\d.*")
_FIRST_HEADING = re.compile(r"# (.*)")
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:([+\-])(\d\d)'?(\d\d)?|Z)?")


def read_pdf(content: bytes) -> Draft:
    try:
        with open_pdf(content) as pdf:
            return _read(pdf)
    except DocumentRejected as refusal:
        if refusal.reason != DAMAGED:
            raise
    return _converted(content)


def _read(pdf: Pdf) -> Draft:
    sheets = [pdf.sheet(index) for index in range(pdf.pages_count)]
    draft = Draft(heading_is_title=False, metadata=_metadata(pdf.metadata()))
    draft.title = own_title(str(draft.metadata.pop("title", "")))
    blank = [number for number, sheet in enumerate(sheets) if not sheet.plain.strip()]
    read = ocr.available() and bool(blank)
    scanned = {index: ocr.read_page(pdf, index) for index in blank} if read else {}
    columns = _without_furniture([_columns(sheet) for sheet in sheets])
    style = Style.of(columns)
    texts, draft.joints = read_on(columns, style)
    draft.pages = [scanned.get(index) or clean(text).strip() for index, text in enumerate(texts)]
    if not any(draft.pages):
        draft.pages, draft.joints = [], []
        draft.no_text = NO_TEXT_OCR if ocr.available() else NO_TEXT_WITHOUT_OCR
        return draft
    draft.title = draft.title or _title_on(draft.pages[0])
    if blank_count := sum(not page for page in draft.pages):
        draft.warnings.append(
            f"{blank_count} of its {len(sheets)} pages have no text: scanned, or empty"
        )
    return draft


def _converted(content: bytes) -> Draft:
    """What PDFium cannot open at all, kreuzberg may."""
    result = convert(content, PDF, output="plain")
    return Draft(
        text=clean(result.content).strip(),
        markup="plain",
        title=title_of(result),
        heading_is_title=False,
        metadata=metadata_of(result),
        no_text=NO_TEXT_WITHOUT_OCR,
    )


def _columns(sheet: Sheet) -> list[Column]:
    try:
        tables, rest = ruled_tables(sheet.runs, find_grids(sheet.rules))
        columns = read_columns(rest, tables)
        for item in (item for column in columns for item in column.items):
            if isinstance(item, Line):
                item.text = plain_line(item.text)
            else:
                item.cells = [[plain_line(cell) for cell in row] for row in item.cells]
    except Exception:  # noqa: BLE001 - whatever a page brings to light, its text is not lost
        return _plain_columns(sheet)
    kept = sum(column.letters_count() for column in columns)
    return columns if kept >= KEPT_SHARE_MIN * _letters(sheet) else _plain_columns(sheet)


def _letters(sheet: Sheet) -> int:
    return len(_SPACE.sub("", plain_line(sheet.plain)))


def _plain_columns(sheet: Sheet) -> list[Column]:
    lines = [plain_line(line) for line in clean(sheet.plain).split("\n")]
    return [
        Column([Line(line, 0, at, 0, at + 1, 0, False) for at, line in enumerate(lines) if line])
    ]


def _without_furniture(pages: Sequence[Sequence[Column]]) -> list[list[Column]]:
    """No page numbers; running headers and footers only where they first occur."""
    edges = [_edge_lines(page) for page in pages]
    shapes = Counter(shape for edge in edges for shape in {_shape(line.text) for line in edge})
    often = max(FURNITURE_PAGES_MIN, FURNITURE_SHARE_MIN * len(pages))
    furniture = {shape for shape, count in shapes.items() if count >= often}
    numbered = _numbered_lines(edges, often)
    seen: set[str] = set()
    dropped: set[int] = set()
    for page, edge in zip(pages, edges, strict=True):
        repeated = {
            id(line)
            for line in edge
            if ((shape := _shape(line.text)) in furniture or id(line) in numbered)
            and (shape in seen or _PAGE_NUMBER.fullmatch(line.text))
        }
        # A page of nothing else says just that.
        if len(repeated) < sum(len(column.items) for column in page):
            dropped |= repeated
        for line in edge:
            line.running = _shape(line.text) in furniture or id(line) in numbered
        seen |= {_shape(line.text) for line in edge}
    return [
        [
            Column([item for item in column.items if id(item) not in dropped], column.aside)
            for column in page
        ]
        for page in pages
    ]


def _numbered_lines(edges: Sequence[Sequence[Line]], often: float) -> set[int]:
    """The lines, by identity, that carry the number of their page, beside whatever else.

    They say the same on the pages of a chapter only, and would be missed by what they say.
    """
    found: dict[int, dict[int, list[Line]]] = {}
    for index, edge in enumerate(edges):
        for line in edge:
            for number in {int(number) for number in _AT_AN_END.findall(line.text)}:
                found.setdefault(number - index, {}).setdefault(index, []).append(line)
    return {
        id(line)
        for pages in found.values()
        if len(pages) >= often
        for lines in pages.values()
        for line in lines
    }


def _edge_lines(page: Sequence[Column]) -> list[Line]:
    lines = [item for column in page for item in column.items if isinstance(item, Line)]
    lines.sort(key=lambda line: line.top)
    return [*lines[:EDGE_LINES], *lines[EDGE_LINES:][-EDGE_LINES:]]


def _shape(line: str) -> str:
    return _NUMBER.sub("#", line)


def _title_on(first_page: str) -> str:
    """The first heading of the first level, when the document opens with it."""
    for line in first_page[:TITLE_WITHIN_CHARS].split("\n"):
        if heading := _FIRST_HEADING.match(line):
            title = plain_heading(heading.group(1))
            return "" if _NO_TITLE.fullmatch(title) else title
    return ""


def _metadata(found: dict[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = dict(found)
    for key in ("authors", "keywords"):
        if key in found:
            parts = re.split(r"[;,]", found[key])
            metadata[key] = [" ".join(part.split()) for part in parts if part.strip()]
    for key in ("created_at", "modified_at"):
        if key in found:
            metadata[key] = _iso_date(found[key])
    return metadata


def _iso_date(date: str) -> str | None:
    """`D:20240131120000+01'00'` as people and databases write it."""
    match = _DATE.match(date)
    if not match:
        return None
    year, month, day, hour, minute, second, sign, hours, minutes = match.groups()
    zone = f"{sign}{hours}:{minutes or '00'}" if sign else "+00:00"
    text = f"{year}-{month or '01'}-{day or '01'}T{hour or '00'}:{minute or '00'}:{second or '00'}"
    try:
        return datetime.fromisoformat(text + zone).isoformat()
    except ValueError:
        return None
