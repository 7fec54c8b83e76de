"""What is noted of a page's content, so that it need not be fetched again while it is the same."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import httpx

VALIDATOR_CHARS_MAX = 1024


@dataclass(frozen=True, slots=True)
class WebTag:
    """Its server's own marks, and its date in the sitemap; each "" when there is none.

    `url` says where the content came from in the end.
    """

    url: str = ""
    etag: str = ""
    modified: str = ""
    lastmod: str = ""

    @classmethod
    def of(cls, url: httpx.URL, headers: httpx.Headers, lastmod: str) -> Self:
        return cls(str(url), _bounded(headers, "ETag"), _bounded(headers, "Last-Modified"), lastmod)

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """What was noted; nothing, if that was not a page's tag."""
        try:
            noted: Any = json.loads(text or "{}")
            return cls(**{name: str(value) for name, value in noted.items()})
        except (ValueError, TypeError, AttributeError):
            return cls()

    @property
    def text(self) -> str | None:
        """None when nothing in it could ever show that the content is the same."""
        if not (self.etag or self.modified or self.lastmod):
            return None
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    def conditions(self, url: httpx.URL) -> Mapping[str, str]:
        """Headers of a request for this URL, if it is where the marks are from."""
        if str(url) != self.url:
            return {}
        marks = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in marks.items() if value}


def _bounded(headers: httpx.Headers, name: str) -> str:
    """What is longer than anybody needs is not sent back, nor is what is no plain text."""
    value = headers.get(name, "").strip()
    return value if len(value) <= VALIDATOR_CHARS_MAX and value.isascii() else ""
