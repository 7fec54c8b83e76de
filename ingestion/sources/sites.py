"""All pages that the sitemaps of a site name, however the sitemaps are spread over files."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import httpx

from app.urls import Refused, checked_url
from ingestion.sources.base import ItemUnreadable
from ingestion.sources.selection import Selection
from ingestion.sources.sitemaps import Entry, NotASitemap, Sitemap

SITEMAPS_MAX = 1000
DEPTH_MAX = 3

Fetch = Callable[[httpx.URL], Awaitable[Sitemap]]
"""Raises ItemUnreadable and NotASitemap."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A sitemap that was not read, or not to its end."""

    url: httpx.URL
    reason: str


@dataclass(slots=True)
class Site:
    """What the sitemaps said: the date of each page, by its URL and in their order.

    `sitemaps` are the URLs of those that were read. `foreign_count` counts URLs that were passed over
    because no sitemap of this host may name them.
    """

    lastmods: dict[str, str] = field(default_factory=dict[str, str])
    missed: list[Missed] = field(default_factory=list[Missed])
    sitemaps: set[str] = field(default_factory=set[str])
    foreign_count: int = 0


class SiteWalk:
    """Goes through sitemaps from the first ones down, each once and in their order.

    `hosts` (each with its port, if it has one) are those that the sitemaps may speak for.
    """

    def __init__(
        self, fetch: Fetch, hosts: Sequence[str], selection: Selection, urls_max: int
    ) -> None:
        self.site = Site()
        self._fetch = fetch
        self._hosts = hosts
        self._selection = selection
        self._urls_max = urls_max
        self._seen: set[httpx.URL] = set()

    async def take(self, sitemap: Sitemap, url: httpx.URL) -> None:
        """Everything that this sitemap leads to; what cannot be read below it is `missed`."""
        self._seen.add(url)
        self._judge(sitemap, url)
        pending = [(child, 2) for child in reversed(list(self._children(sitemap)))]
        while pending and len(self.site.lastmods) < self._urls_max:
            child, depth = pending.pop()
            try:
                below = await self._fetch(child)
            except (ItemUnreadable, NotASitemap) as error:
                self._miss(child, error.reason)
                continue
            self._judge(below, child)
            children = list(self._children(below))
            if depth < DEPTH_MAX:
                pending += [(one, depth + 1) for one in reversed(children)]
            elif children:
                self._miss(child, "the sitemaps are nested too deeply")
        if pending:
            self._miss(pending[-1][0], f"{self._urls_max} pages were found before it, the most")

    def _judge(self, sitemap: Sitemap, url: httpx.URL) -> None:
        self.site.sitemaps.add(str(url))
        if not sitemap.is_complete:
            self._miss(url, "it lists more than one sitemap may")
        if sitemap.is_index:
            return
        for entry, page in self._own(sitemap.entries):
            if not self._selection.takes(relative_path(page)):
                continue
            if len(self.site.lastmods) == self._urls_max:
                self._miss(url, f"there are more than {self._urls_max} pages")
                return
            self.site.lastmods.setdefault(str(page), entry.lastmod)

    def _children(self, sitemap: Sitemap) -> Iterator[httpx.URL]:
        if not sitemap.is_index:
            return
        for _, url in self._own(sitemap.entries):
            if url in self._seen:
                continue
            if len(self._seen) == SITEMAPS_MAX:
                self._miss(url, f"there are more than {SITEMAPS_MAX} sitemaps")
                return
            self._seen.add(url)
            yield url

    def _own(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, httpx.URL]]:
        for entry in entries:
            try:
                url = checked_url(entry.url)
            except Refused:
                self.site.foreign_count += 1
                continue
            if host_of(url) in self._hosts:
                yield entry, url
            else:
                self.site.foreign_count += 1

    def _miss(self, url: httpx.URL, reason: str) -> None:
        self.site.missed.append(Missed(url, reason))


def host_of(url: httpx.URL) -> str:
    """With the port, if it is not the scheme's own."""
    return url.netloc.decode("ascii")


def relative_path(url: httpx.URL) -> str:
    """What patterns are held against."""
    return unquote(url.path).strip("/") or host_of(url)
