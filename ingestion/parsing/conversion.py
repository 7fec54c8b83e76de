"""The one place that calls kreuzberg to convert a document, and that understands its errors."""

import re
import secrets
from typing import Any, Literal

import kreuzberg

from app.errors import DocumentRejected
from ingestion.parsing.drafts import ENCRYPTED
from ingestion.parsing.formats import Format

_ENCRYPTION_WORDS = ("password", "encrypt", "decrypt", "protected", "securityerror")
_PROGRAM_PREFIX = re.compile(r"(?i)microsoft (?:office )?(?:word|powerpoint|excel)\s*-\s*")
_JUNK_TITLE = re.compile(
    r"(?i)(?:untitled|unbenannt|powerpoint).*|(?:document|presentation|slide|folie|diapositive|book"
    r"|binder|model|title|page)\s*\d*"
    r"|.*\.(?:docx?|pptx?|xlsx?|pdf|indd|dvi|tex|qxd|p65|jpe?g|png|tiff?|rtf|odt|ps|html?|fm|dwg)"
)
_METADATA = (
    "subject", "authors", "keywords", "language", "created_at", "modified_at", "created_by",
    "category", "description", "sheet_names", "from_email", "to_emails", "cc_emails",
    "message_id", "attachments",
)  # fmt: skip


class PageMarks:
    """Has kreuzberg write a secret mark where each page, or slide, begins."""

    def __init__(self) -> None:
        self._mark = f"PAGE{secrets.token_hex(8)}N"
        self.config = kreuzberg.PageConfig(
            extract_pages=True,
            insert_page_markers=True,
            marker_format=f"\n\n{self._mark}{{page_num}}\n\n",
        )

    def split(self, text: str) -> list[str]:
        """The text of each page; one page where nothing is marked."""
        before, *pages = re.split(rf"{self._mark}\d+", text)
        return [page.strip() for page in pages or [before]]


def convert(
    content: bytes,
    source: Format,
    *,
    output: Literal["markdown", "plain"] = "markdown",
    pages: kreuzberg.PageConfig | None = None,
) -> kreuzberg.ExtractionResult:
    """Raises DocumentRejected with a reason that a person understands, whatever goes wrong."""
    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        output_format=output,
        pages=pages,
        disable_ocr=True,  # pyright: ignore[reportCallIssue] - the stubs lack it
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
    )
    try:
        return kreuzberg.extract_bytes_sync(content, source.media_type, config)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # A panic of the Rust code is no Exception.
    except BaseException as error:  # noqa: BLE001 - see above
        raise DocumentRejected(_reason(error, source)) from None


def _reason(error: BaseException, source: Format) -> str:
    message = str(error).lower()
    if "limit exceeded" in message:
        return "it unpacks to more than is safe to read"
    if any(word in message for word in _ENCRYPTION_WORDS):
        return ENCRYPTED
    if isinstance(error, kreuzberg.ValidationError) and "unsupported" in message:
        return f"not a supported format ({source.name})"
    return f"damaged: it cannot be read as {source.name}"


def metadata_of(result: kreuzberg.ExtractionResult) -> dict[str, Any]:
    found: dict[str, Any] = dict(result.metadata)
    return {key: found[key] for key in _METADATA if found.get(key)}


def title_of(result: kreuzberg.ExtractionResult) -> str:
    return own_title(str(dict[str, Any](result.metadata).get("title") or ""))


def own_title(title: str) -> str:
    """A title, unless it is a file name or what the program put there."""
    title = _PROGRAM_PREFIX.sub("", title.strip())
    return "" if _JUNK_TITLE.fullmatch(title) else title


def warnings_of(result: kreuzberg.ExtractionResult) -> list[str]:
    """What kreuzberg left out, without the library's own words for why."""
    return [warning.message.split(": ")[0] for warning in result.processing_warnings]
