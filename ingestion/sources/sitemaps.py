"""Sitemaps (sitemaps.org): what a site says that it holds, and when each page last changed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from xml.parsers import expat

from ingestion.sources.inflating import Broken, TooMuch, inflate

SITEMAP_BYTES_MAX = 50 * 1024 * 1024
"""Unpacked; the protocol's own limits, as is the next one."""
ENTRIES_MAX = 50_000
ELEMENT_DEPTH_MAX = 16
TEXT_CHARS_MAX = 4096

_GZIP = b"\x1f\x8b"
_LIST_LINE = re.compile(r"https?://\S+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_EVERYWHERE = timedelta(hours=14)
"""A day lasts this much longer somewhere on earth than in UTC."""


class NotASitemap(Exception):
    """`reason` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Entry:
    """`lastmod` as the sitemap has it, "" when it says nothing."""

    url: str
    lastmod: str = ""


@dataclass(frozen=True, slots=True)
class Sitemap:
    """The entries of one file: pages, or with `is_index` other sitemaps.

    Not complete when it holds more than the protocol allows.
    """

    entries: Sequence[Entry]
    is_index: bool
    is_complete: bool = True


def read_sitemap(content: bytes) -> Sitemap:
    """What a sitemap says, whichever of the protocol's forms it has; raises NotASitemap."""
    if content.startswith(_GZIP):
        try:
            content = inflate(content, SITEMAP_BYTES_MAX)
        except TooMuch:
            raise NotASitemap(f"it is larger than {SITEMAP_BYTES_MAX // 1024**2} MiB") from None
        except Broken as error:
            raise NotASitemap(f"its compression is broken: {error}") from error
    opening = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if opening.lower().startswith((b"<!doctype html", b"<html")):
        raise NotASitemap("it is a page of HTML, no sitemap")
    if opening.startswith((b"<", b"\xff\xfe", b"\xfe\xff")):
        return _read_xml(content)
    return _read_list(content)


def settled(lastmod: str, now: datetime) -> str:
    """The date, if a change after `now` would have to change it; else "".

    A page that changed today can change again today without its date showing it.
    """
    try:
        moment = datetime.fromisoformat(lastmod)
    except ValueError:
        return ""
    if _DATE.fullmatch(lastmod):
        moment += timedelta(days=1) + _EVERYWHERE
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return lastmod if moment < now else ""


def _read_list(content: bytes) -> Sitemap:
    try:
        lines = content.decode("utf-8-sig").split("\n", ENTRIES_MAX + 1)
    except UnicodeDecodeError:
        raise NotASitemap("it is no sitemap") from None
    urls = [line.strip() for line in lines[: ENTRIES_MAX + 1] if line.strip()]
    if not urls or not all(map(_LIST_LINE.fullmatch, urls)):
        raise NotASitemap("it is no sitemap")
    return Sitemap(
        [Entry(url) for url in urls[:ENTRIES_MAX]],
        is_index=False,
        is_complete=len(lines) <= ENTRIES_MAX + 1 and len(urls) <= ENTRIES_MAX,
    )


def _read_xml(content: bytes) -> Sitemap:
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.EntityDeclHandler = _refuse_entity
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(content, True)
    except _Full:
        return Sitemap(reader.entries, reader.is_index, is_complete=False)
    except expat.ExpatError as error:
        raise NotASitemap(f"it is not well-formed: {error}") from error
    except (LookupError, ValueError) as error:
        raise NotASitemap(f"its encoding cannot be read: {error}") from error
    return Sitemap(reader.entries, reader.is_index)


class _Full(Exception):
    """There are more entries than the protocol allows."""


def _refuse_entity(*_: object) -> None:
    raise NotASitemap("it declares entities, which no sitemap needs")


@dataclass(slots=True)
class _Reader:
    """Collects what stands at `urlset/url/loc` and the like; the rest is passed over."""

    entries: list[Entry] = field(default_factory=list[Entry])
    is_index: bool = False
    _path: list[str] = field(default_factory=list[str])
    _texts: dict[str, str] = field(default_factory=dict[str, str])

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self._path.append(name.rpartition(" ")[2])
        if len(self._path) > ELEMENT_DEPTH_MAX:
            raise NotASitemap("it is nested too deeply")
        if len(self._path) == 1:
            if self._path[0] not in ("urlset", "sitemapindex"):
                raise NotASitemap("it is no sitemap")
            self.is_index = self._path[0] == "sitemapindex"
        elif len(self._path) == 2:
            self._texts = {}

    def text(self, data: str) -> None:
        if len(self._path) == 3 and self._path[2] in ("loc", "lastmod"):
            known = self._texts.get(self._path[2], "")
            self._texts[self._path[2]] = (known + data)[:TEXT_CHARS_MAX]

    def end(self, _name: str) -> None:
        if len(self._path) == 2 and self._path[1] in ("url", "sitemap"):
            location = self._texts.get("loc", "").strip()
            if location:
                if len(self.entries) == ENTRIES_MAX:
                    raise _Full
                self.entries.append(Entry(location, self._texts.get("lastmod", "").strip()))
        self._path.pop()
