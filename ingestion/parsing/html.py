"""HTML pages as Markdown."""

import html
import re

from ingestion.markup import plain_heading
from ingestion.parsing.conversion import convert
from ingestion.parsing.decoding import clean, decode_markup
from ingestion.parsing.drafts import Draft
from ingestion.parsing.formats import HTML
from ingestion.parsing.tidying import tidy

_META = re.compile(r"<meta\b[^<>]*>", re.IGNORECASE)
_EMBEDDED_DATA = re.compile(r"""(["'(])data:[^"'()\s<>]{100,}""")


def read_html(content: bytes) -> Draft:
    page = decode_markup(content)
    start, end = _element(page, "title")
    title = page[start:end].partition(">")[2]
    return Draft(text=html_to_markdown(page), title=plain_heading(html.unescape(title)))


def html_to_markdown(page: str) -> str:
    """Raises DocumentRejected when it cannot be converted."""
    # The converter would make text of the head's metadata.
    for name in ("head", "title"):
        start, end = _element(page, name)
        page = page[:start] + page[end:]
    page = _EMBEDDED_DATA.sub(r"\1data:", _META.sub("", page))
    if not page.strip():
        return ""
    return tidy(clean(convert(page.encode(), HTML).content))


def _element(page: str, name: str) -> tuple[int, int]:
    """Where the first such element starts, and where its closing tag does; empty without one."""
    opening = re.search(rf"<{name}[\s>]", page, re.IGNORECASE)
    closing = (
        re.compile(rf"</{name}", re.IGNORECASE).search(page, opening.end()) if opening else None
    )
    return (opening.start(), closing.start()) if opening and closing else (0, 0)
