"""Office documents, books, tables and whatever else kreuzberg converts."""

import re

import kreuzberg

from ingestion.parsing import formats, ocr
from ingestion.parsing.archives import check_unpacked_size
from ingestion.parsing.conversion import (
    PageMarks,
    convert,
    metadata_of,
    title_of,
    warnings_of,
)
from ingestion.parsing.decoding import clean, decode, decode_markup
from ingestion.parsing.drafts import NO_TEXT, NO_TEXT_OCR, NO_TEXT_WITHOUT_OCR, Draft
from ingestion.parsing.formats import Format
from ingestion.parsing.shielding import restore, shield
from ingestion.parsing.tidying import tidy
from ingestion.parsing.word import flatten

_TABLES = (formats.XLS, formats.XLSX, formats.XLSB, formats.ODS, formats.NUMBERS, formats.DBF)
_UNTITLED = (formats.XML, formats.OPML, formats.BIBTEX, formats.RIS)
_DECLARED_ENCODING = re.compile(r"""\A\s*(<\?xml[^>]{0,60}?)\sencoding=["'][^"'>]*["']""")
_FIELD_CODE = re.compile(
    r' ?(?:HYPERLINK|SEQ|PAGEREF|REF|INCLUDEPICTURE) (?:\\\w )?"[^"\n]*" ?(?:\\\* \w+ )?'
)
_UNDERLINE_TAG = re.compile(r"</?u>")


def read_document(content: bytes, source: Format) -> Draft:
    check_unpacked_size(content)
    result = convert(flatten(content) if source is formats.DOCX else content, source)
    text = tidy(clean(restore(result.content)))
    return _draft(result, text, is_table=source in _TABLES)


def read_lines(content: bytes, source: Format) -> Draft:
    """Formats whose lines kreuzberg runs together in its Markdown, but not in its plain text."""
    result = convert(content, source, output="plain")
    text = _FIELD_CODE.sub("", clean(result.content))
    if source is formats.DOC:
        text = "\n\n".join(line.strip() for line in text.split("\n") if line.strip())
    draft = _draft(result, text, is_table=False)
    draft.markup = "plain"
    return draft


def read_converted_text(content: bytes, source: Format) -> Draft:
    is_xml = "xml" in source.media_type
    text = decode_markup(content) if is_xml else decode(content)
    if not text.strip():
        return Draft()
    if is_xml:
        text = shield(_DECLARED_ENCODING.sub(r"\1", text))
    result = convert(text.encode(), source)
    # The names of XML's elements make no title.
    return _draft(result, tidy(clean(restore(result.content))), is_table=source in _UNTITLED)


def read_slides(content: bytes, source: Format) -> Draft:
    """Slides as pages."""
    check_unpacked_size(content)
    marks = PageMarks()
    result = convert(content, source, pages=marks.config)
    draft = _draft(result, "", is_table=False)
    draft.pages = marks.split(_UNDERLINE_TAG.sub("", tidy(clean(result.content))))
    return draft


def read_image(content: bytes, source: Format) -> Draft:
    if not ocr.available():
        return Draft(no_text=NO_TEXT_WITHOUT_OCR)
    pages = ocr.read_picture(content)
    draft = Draft(heading_is_title=False, markup="plain", no_text=NO_TEXT_OCR)
    if source is formats.TIFF and len(pages) > 1:
        draft.pages = pages
    else:
        draft.text = "\n\n".join(pages)
    return draft


def _draft(result: kreuzberg.ExtractionResult, text: str, *, is_table: bool) -> Draft:
    return Draft(
        text=text,
        title=title_of(result),
        heading_is_title=not is_table,
        metadata=metadata_of(result),
        warnings=warnings_of(result),
        no_text=NO_TEXT,
    )
