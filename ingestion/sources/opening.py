"""Which source answers for a location, by the look of it."""

import re

from app.config import Settings
from app.errors import InvalidInput
from ingestion.sources.base import Source
from ingestion.sources.files import open_folder
from ingestion.sources.selection import Selection

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_path(location: str) -> bool:
    """Whether the location lies on this machine's own disks, where changes can be watched."""
    return _SCHEME.match(location) is None


def open_source(location: str, selection: Selection, settings: Settings) -> Source:
    """The source of a path, a URL, a sitemap or a bucket; raises InvalidInput for anything else.

    Nothing is read yet. What web and buckets need is imported by the first location that asks.
    """
    scheme = _SCHEME.match(location)
    match scheme[1].lower() if scheme else None:
        case None:
            return open_folder(location, selection)
        case "http" | "https":
            from ingestion.sources.web import open_web  # noqa: PLC0415 - only where it is asked for

            return open_web(location, selection, settings)
        case "s3":
            from ingestion.sources.s3 import open_bucket  # noqa: PLC0415 - as above

            return open_bucket(location, selection, settings)
        case other:
            raise InvalidInput(
                f"Footnote cannot ingest from {other}: locations: {location}",
                hint="Give a path, a URL that begins with http:// or https://, or s3://bucket/…",
            )
