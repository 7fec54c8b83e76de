"""A parser without a process of its own, for tests of what comes before and after parsing."""

import re

from app.errors import DocumentRejected
from ingestion.types import ParsedDocument

_HEAD = re.compile(r"<head>.*?</head>|<\?xml.*?\?>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_MEDIA_TYPES = {"html": "text/html", "md": "text/markdown", "txt": "text/plain"}


class PlainParser:
    """Tags are left out of the text; the media type is what the name promises."""

    async def parse(self, content: bytes, filename: str) -> ParsedDocument:
        text = _TAG.sub("", _HEAD.sub("", content.decode())).strip()
        if not text:
            raise DocumentRejected("there is no text in it")
        suffix = filename.rpartition(".")[2]
        return ParsedDocument(text, filename, _MEDIA_TYPES.get(suffix, "application/octet-stream"))

    async def close(self) -> None: ...
