"""From the bytes of a file to a parsed document. Runs in a child process: see `sandbox.py`."""

from functools import partial
from pathlib import PurePosixPath
from typing import Any, cast

from app.errors import DocumentRejected
from ingestion.markup import first_heading
from ingestion.parsing import formats, office
from ingestion.parsing.archives import Allowance, read_archive
from ingestion.parsing.code import read_outline
from ingestion.parsing.decoding import clean, decode
from ingestion.parsing.drafts import Draft
from ingestion.parsing.formats import BY_EXTENSION, Format, Reader
from ingestion.parsing.frontmatter import split_front_matter
from ingestion.parsing.html import read_html
from ingestion.parsing.language import detect_language
from ingestion.parsing.mail import read_mail, read_mailbox, read_outlook
from ingestion.parsing.notebook import read_notebook
from ingestion.parsing.pdf import read_pdf
from ingestion.parsing.programming import code_language
from ingestion.parsing.sniffing import extension, identify
from ingestion.parsing.tables import read_table
from ingestion.types import ParsedDocument

TITLE_CHARS_MAX = 200
METADATA_VALUE_CHARS_MAX = 1000
METADATA_ITEMS_MAX = 100
WARNING_CHARS_MAX = 300
INTEGER_MAX = 2**53


def parse_document(content: bytes, filename: str) -> ParsedDocument:
    """The text of a file with its pages, title, language and metadata.

    Raises DocumentRejected with a reason in a sentence that a person understands.
    """
    if not content:
        raise DocumentRejected("the file is empty")
    source = identify(content, filename)
    draft = _read(content, filename, source, Allowance())
    text, pages = draft.joined()
    if not text.strip():
        raise DocumentRejected(draft.no_text)
    return ParsedDocument(
        text=text,
        title=_title(draft, text, filename),
        media_type=source.media_type,
        pages=pages,
        metadata=_storable(draft.metadata),
        language="english" if draft.markup == "code" else detect_language(text),
        warnings=tuple(_warnings(draft, source, filename)),
        markup=draft.markup,
        code_language=draft.code_language,
        outline=read_outline(text, draft.code_language) if draft.code_language else (),
    )


def _read(content: bytes, filename: str, source: Format, allowance: Allowance) -> Draft:
    nested = partial(_read_nested, allowance=allowance)
    match source.reader:
        case Reader.TEXT:
            return _read_text(content, filename, source)
        case Reader.HTML:
            return read_html(content)
        case Reader.PDF:
            return read_pdf(content)
        case Reader.SLIDES:
            return office.read_slides(content, source)
        case Reader.TABLE:
            return read_table(content, source)
        case Reader.NOTEBOOK:
            return read_notebook(content)
        case Reader.CONVERTED_TEXT:
            return office.read_converted_text(content, source)
        case Reader.CONVERTED:
            return office.read_document(content, source)
        case Reader.LINES:
            return office.read_lines(content, source)
        case Reader.IMAGE:
            return office.read_image(content, source)
        case Reader.MAIL:
            return read_mail(content, allowance, nested)
        case Reader.OUTLOOK:
            return read_outlook(content)
        case Reader.MAILBOX:
            return read_mailbox(content, allowance, nested)
        case Reader.ARCHIVE:
            return read_archive(content, filename, source, allowance, nested)
        case Reader.NONE:
            raise DocumentRejected(f"not a supported format ({source.name})")


def _read_nested(content: bytes, filename: str, allowance: Allowance) -> Draft:
    """A file found inside another one, at most three levels deep."""
    if not content:
        raise DocumentRejected("the file is empty")
    if not allowance.depth_left:
        raise DocumentRejected("it is nested too deeply")
    allowance.depth_left -= 1
    try:
        draft = _read(content, filename, identify(content, filename), allowance)
    finally:
        allowance.depth_left += 1
    if not draft.text.strip() and not any(page.strip() for page in draft.pages):
        raise DocumentRejected(draft.no_text)
    return draft


def _read_text(content: bytes, filename: str, source: Format) -> Draft:
    text = decode(content)
    draft = Draft(markup=source.markup, no_text="the file is empty")
    if source is formats.MARKDOWN:
        draft.metadata, text = split_front_matter(text)
        draft.title = str(draft.metadata.pop("title", ""))
        draft.no_text = "no text was found in it"
    if source is formats.SOURCE:
        draft.code_language = code_language(text, extension(filename))
    # The file's own text, so that offsets lead a reader to the place in the file.
    draft.text = text
    return draft


def _title(draft: Draft, text: str, filename: str) -> str:
    title = " ".join(clean(draft.title).split())
    if not title and draft.heading_is_title:
        title = first_heading(text, draft.markup)
    if not title:
        path = PurePosixPath(filename)
        title = path.stem.strip() or path.name
    return title[:TITLE_CHARS_MAX]


def _warnings(draft: Draft, source: Format, filename: str) -> list[str]:
    warnings = [clean(warning)[:WARNING_CHARS_MAX] for warning in draft.warnings]
    promised = BY_EXTENSION.get(extension(filename))
    if promised is not None and promised is not source:
        warnings.insert(0, f"its name says {promised.name}; it was read as {source.name}")
    return warnings


def _storable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Short plain values only: what JSON, PostgreSQL and a filter can work with."""
    values = {clean(str(key))[:100]: _storable_value(value) for key, value in metadata.items()}
    kept = [(key, value) for key, value in values.items() if value not in (None, "", [])]
    return dict(kept[:METADATA_ITEMS_MAX])


def _storable_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value).strip()[:METADATA_VALUE_CHARS_MAX]
    if isinstance(value, list):
        items = cast("list[object]", value)
        texts = [clean(str(item)).strip()[:METADATA_VALUE_CHARS_MAX] for item in items]
        return [text for text in texts if text][:METADATA_ITEMS_MAX]
    if isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= INTEGER_MAX):
        return value
    return None if value is None else str(value)[:METADATA_VALUE_CHARS_MAX]
