"""Which source answers for a location, by the look of it."""

import re
from pathlib import Path

from app.config import Settings
from app.errors import InvalidInput
from ingestion.sources.base import Source
from ingestion.sources.files import absolute, open_folder
from ingestion.sources.selection import Selection

WEB = frozenset({"http", "https", "sitemap+http", "sitemap+https"})
BUCKETS = frozenset({"s3", "gs", "az"})
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_path(location: str) -> bool:
    """Whether the location lies on this machine's own disks, where changes can be watched."""
    return _scheme(location) is None


def check_location(location: str) -> None:
    """Raise InvalidInput for a path that is not there, or a scheme that nobody answers for."""
    if not location.strip():
        # As a path it would be the current folder: a script's variable that was never set.
        raise InvalidInput("A location is empty.", hint="Give a path, or `.` for this folder.")
    scheme = _scheme(location)
    if scheme is None:
        absolute(Path(location))
    elif scheme not in WEB | BUCKETS:
        raise InvalidInput(
            f"Footnote cannot ingest from {scheme}: locations: {location}",
            hint="Give a path, a URL that begins with http:// or https://, or s3://bucket/…",
        )


def open_source(location: str, selection: Selection, settings: Settings) -> Source:
    """The source of a path, a URL, a sitemap or a bucket; raises InvalidInput for anything else.

    Nothing is read yet. What web and buckets need is imported by the first location that asks.
    """
    check_location(location)
    scheme = _scheme(location)
    if scheme is None:
        return open_folder(location, selection)
    if scheme in BUCKETS:
        from ingestion.sources.s3 import open_bucket  # noqa: PLC0415 - only where it is asked for

        return open_bucket(location, selection, settings)
    from ingestion.sources.web import open_web  # noqa: PLC0415 - as above

    return open_web(location, selection, settings)


def _scheme(location: str) -> str | None:
    found = _SCHEME.match(location)
    return found[1].lower() if found else None
