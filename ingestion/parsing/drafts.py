"""What the readers of the single formats hand over, and the refusals that they share."""

from dataclasses import dataclass, field
from typing import Any

from ingestion.types import CodeLanguage, Markup, Page

PAGE_BREAK = "\n\n"

NO_TEXT = "no text was found in it"
NO_TEXT_WITHOUT_OCR = "no text (install tesseract)"
NO_TEXT_OCR = "no text: OCR found none in it"
ENCRYPTED = "encrypted: a password is needed"


@dataclass(slots=True)
class Draft:
    """A parsed document in the making. With `pages`, the text is that of the pages, joined.

    `joints[i]` is what stands between pages i and i + 1 where the text reads on from one to the
    other; None where something new begins, as everywhere when there are no joints.
    """

    text: str = ""
    markup: Markup = "markdown"
    title: str = ""
    heading_is_title: bool = True
    pages: list[str] = field(default_factory=list[str])
    joints: list[str | None] = field(default_factory=list["str | None"])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])
    holds_files: bool = False
    """Whether each warning begins with the name of a file in it."""
    code_language: CodeLanguage | None = None
    no_text: str = NO_TEXT
    """The reason to give when there is no text."""

    def joined(self) -> tuple[str, tuple[Page, ...]]:
        """The text of all pages, and where each is in it: true by construction."""
        if not self.pages:
            return self.text, ()
        joints = [*(self.joints or [None] * (len(self.pages) - 1)), ""]
        texts: list[str] = []
        spans: list[Page] = []
        start, reads_on = 0, False
        for number, (page, joint) in enumerate(zip(self.pages, joints, strict=True), 1):
            spans.append(Page(number, start, start + len(page), reads_on))
            texts += [page, PAGE_BREAK if joint is None else joint]
            start += len(texts[-2]) + len(texts[-1])
            reads_on = joint is not None
        return "".join(texts), tuple(spans)
