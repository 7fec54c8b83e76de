"""HTML pages as Markdown."""

import html
import re

from ingestion.markup import plain_heading
from ingestion.parsing.conversion import convert
from ingestion.parsing.decoding import clean, decode_markup
from ingestion.parsing.drafts import Draft
from ingestion.parsing.formats import HTML
from ingestion.parsing.tidying import tidy

# The converter would make text of the head's metadata.
_HEAD = re.compile(r"<head\b.*?(?:</head\s*>|(?=<body\b))", re.DOTALL | re.IGNORECASE)
_LOOSE_HEAD = re.compile(r"<title\b.*?</title\s*>|<meta\b[^>]*>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title", re.DOTALL | re.IGNORECASE)
_EMBEDDED_DATA = re.compile(r"""(["'(])data:[^"'()\s<>]{100,}""")


def read_html(content: bytes) -> Draft:
    page = decode_markup(content)
    title = _TITLE.search(page)
    return Draft(
        text=html_to_markdown(page),
        title=plain_heading(html.unescape(title.group(1))) if title else "",
    )


def html_to_markdown(page: str) -> str:
    """Raises DocumentRejected when it cannot be converted."""
    page = _LOOSE_HEAD.sub("", _HEAD.sub("", page, count=1))
    page = _EMBEDDED_DATA.sub(r"\1data:", page)
    if not page.strip():
        return ""
    return tidy(clean(convert(page.encode(), HTML).content))
