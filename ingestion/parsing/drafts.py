"""What the readers of the single formats hand over, and the refusals that they share."""

from dataclasses import dataclass, field
from typing import Any

from ingestion.types import CodeLanguage, Markup

NO_TEXT = "no text was found in it"
NO_TEXT_WITHOUT_OCR = "no text (install tesseract)"
NO_TEXT_OCR = "no text: OCR found none in it"
ENCRYPTED = "encrypted: a password is needed"


@dataclass(slots=True)
class Draft:
    """A parsed document in the making. With `pages`, the text is that of the pages, joined."""

    text: str = ""
    markup: Markup = "markdown"
    title: str = ""
    heading_is_title: bool = True
    pages: list[str] = field(default_factory=list[str])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])
    code_language: CodeLanguage | None = None
    no_text: str = NO_TEXT
    """The reason to give when there is no text."""
