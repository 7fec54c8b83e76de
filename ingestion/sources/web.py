"""Pages of the web: one by its URL, or all that a sitemap names."""

import asyncio
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ssl import SSLContext

import httpx
import structlog

from app.config import Settings
from app.db.documents import SourceState
from app.errors import InvalidInput, Unavailable
from app.urls import Refused, checked_url
from ingestion.sources.base import Content, Item, ItemGone, ItemUnreadable, Listing, Unlisted
from ingestion.sources.fetching import Reply, WebClient
from ingestion.sources.guard import Resolve, resolve_host
from ingestion.sources.naming import name_of, name_of_reply
from ingestion.sources.robots import Robots, forbids_indexing
from ingestion.sources.selection import Selection
from ingestion.sources.sitemaps import (
    SITEMAP_BYTES_MAX,
    NotASitemap,
    Sitemap,
    read_sitemap,
    settled,
)
from ingestion.sources.sites import SITEMAPS_MAX, Site, SiteWalk, host_of, relative_path
from ingestion.sources.tags import WebTag

SITEMAP_SCHEME = "sitemap+"
"""Before a URL: it is a sitemap, whatever it looks like; without a path, a site that has some."""

log = structlog.get_logger(__name__)


def open_web(
    location: str,
    selection: Selection,
    settings: Settings,
    *,
    resolve: Resolve = resolve_host,
    tls: SSLContext | None = None,
) -> "WebSource":
    """The source of a URL; raises InvalidInput for one that Footnote does not read."""
    is_site = location.startswith(SITEMAP_SCHEME)
    try:
        url = checked_url(location.removeprefix(SITEMAP_SCHEME))
    except Refused as error:
        raise InvalidInput(
            f"{location} cannot be ingested: {error.reason}.",
            hint="Give a URL such as https://example.com/handbook.",
        ) from error
    client = WebClient(settings, resolve=resolve, tls=tls)
    return WebSource(url, selection, settings, client, is_site=is_site)


class WebSource:
    """A page is asked for with what is known of it, so an unchanged one costs a header.

    A page of a sitemap whose date there is the one noted costs nothing at all.
    """

    def __init__(
        self,
        url: httpx.URL,
        selection: Selection,
        settings: Settings,
        client: WebClient,
        *,
        is_site: bool,
    ) -> None:
        self._url = url
        self._selection = selection
        self._urls_max = settings.sitemap_max_urls
        self._is_site = is_site
        self._is_bare_site = is_site and url.raw_path == b"/"
        self._is_called_sitemap = "sitemap" in url.path.rpartition("/")[2].lower()
        self._own_hosts = _own_hosts(url, settings.sitemap_hosts)
        self._client = client
        self._robots = Robots(client)
        self._lastmods: Mapping[str, str] = {}

    @property
    def location(self) -> str:
        return (SITEMAP_SCHEME if self._is_site else "") + str(self._url)

    @property
    def prefixes(self) -> Sequence[str]:
        if not self._may_be_sitemap:
            return [str(self._url)]
        return [f"{scheme}://{host}/" for host in self._own_hosts for scheme in ("http", "https")]

    async def changes(self, known: Mapping[str, SourceState]) -> Listing:
        """As `Source` says; raises Unavailable for a sitemap that cannot be read."""
        if self._may_be_sitemap:
            was_sitemap = any(state.root == self.location for state in known.values())
            site = await self._walk_site(
                is_certain=self._is_site or self._is_called_sitemap or was_sitemap
            )
            if site is not None:
                self._lastmods = site.lastmods
                return self._listing(site, known)
        return Listing([Item(str(self._url), name_of(self._url))])

    async def read(self, item: Item, known: SourceState | None, max_bytes: int) -> Content | None:
        noted = WebTag.parse(known.source_tag if known else None)
        try:
            url = checked_url(item.uri)
        except Refused as error:
            raise ItemUnreadable(error.reason) from error
        reply = await self._client.get(
            url, max_bytes=max_bytes, permit=self._robots.check, conditions=noted.conditions
        )
        if reply.status == 304 and known is not None:
            return None
        if reply.status in (404, 410):
            raise ItemGone(_answers(reply))
        if reply.status != 200:
            raise ItemUnreadable(_answers(reply))
        if forbids_indexing(reply.headers, reply.content if _is_page(reply) else None):
            raise ItemUnreadable("it asks not to be indexed (noindex)")
        lastmod = settled(self._lastmods.get(item.uri, ""), datetime.now(UTC))
        return Content(
            content=reply.content,
            sha256=hashlib.sha256(reply.content).digest(),
            tag=WebTag.of(reply.url, reply.headers, lastmod).text,
            name=name_of_reply(reply.url, reply.headers),
        )

    async def close(self) -> None:
        await self._robots.close()
        await self._client.close()

    # --- sitemaps ---------------------------------------------------------------------------------

    @property
    def _may_be_sitemap(self) -> bool:
        """Documents are XML too; what such a URL is only its content tells."""
        is_xml = self._url.path.lower().endswith((".xml", ".xml.gz"))
        return self._is_site or self._is_called_sitemap or is_xml

    async def _walk_site(self, *, is_certain: bool) -> Site | None:
        """What the sitemaps name; None when the URL turns out to be a document of its own."""
        walk = SiteWalk(self._fetch_sitemap, self._own_hosts, self._selection, self._urls_max)
        for url in await self._first_sitemaps():
            try:
                sitemap = await self._fetch_sitemap(url)
            except (ItemUnreadable, NotASitemap) as error:
                if not is_certain:
                    return None
                raise Unavailable(
                    f"The sitemap {url} cannot be read: {error.reason}.",
                    hint=f"Nothing was changed. {self._advice}",
                ) from error
            await walk.take(sitemap, url)
        if walk.site.foreign_count:
            log.warning("sitemap_names_other_hosts", urls=walk.site.foreign_count)
        return walk.site

    @property
    def _advice(self) -> str:
        """What to do about a sitemap that cannot be read."""
        if not self._is_site or self._is_bare_site:
            return "Check the URL, and run it again later."
        site = f"{SITEMAP_SCHEME}{self._url.copy_with(raw_path=b'/')}"
        return (
            f"After {SITEMAP_SCHEME} stands the URL of a sitemap (XML, packed, or a list of URLs),"
            f" or the site alone ({site}), whose robots.txt is asked where its sitemaps are."
            f" Leave {SITEMAP_SCHEME} out for a single page."
        )

    async def _first_sitemaps(self) -> Sequence[httpx.URL]:
        """The URL itself, or those of its site: as robots.txt says, else where they use to be."""
        if not self._is_bare_site:
            return [self._url]
        named: list[httpx.URL] = []
        for text in await self._robots.sitemaps(self._url):
            try:
                url = checked_url(text)
            except Refused:
                continue
            if host_of(url) in self._own_hosts:
                named.append(url)
        return named[:SITEMAPS_MAX] or [self._url.copy_with(raw_path=b"/sitemap.xml")]

    async def _fetch_sitemap(self, url: httpx.URL) -> Sitemap:
        reply = await self._client.get(url, max_bytes=SITEMAP_BYTES_MAX, permit=self._robots.check)
        if reply.status != 200:
            raise ItemUnreadable(_answers(reply))
        return await asyncio.to_thread(read_sitemap, reply.content)

    def _listing(self, site: Site, known: Mapping[str, SourceState]) -> Listing:
        root, now = self.location, datetime.now(UTC)
        items = [
            Item(
                uri, name_of(httpx.URL(uri)), root, tag=_expected_tag(lastmod, known.get(uri), now)
            )
            for uri, lastmod in site.lastmods.items()
        ]
        unlisted = [
            Unlisted(Item(str(one.url), name_of(one.url), root), one.reason, is_container=True)
            for one in site.missed
        ]
        # What was found through one of these sitemaps alone would be listed now if it were there.
        alone = [scheme + url for url in site.sitemaps for scheme in ("", SITEMAP_SCHEME)]
        return _SiteListing(items, unlisted, {root, *alone}, self._selection)


class _SiteListing(Listing):
    """Only sitemaps that were read to their end, and that name something, can tell what is gone."""

    def __init__(
        self,
        items: Sequence[Item],
        unlisted: Sequence[Unlisted],
        roots: Collection[str],
        selection: Selection,
    ) -> None:
        super().__init__(items, unlisted)
        self._roots = roots
        self._selection = selection

    def has_lost(self, known: SourceState) -> bool:
        return (
            known.root in self._roots
            and bool(self.items)
            and not self.unlisted
            and self._selection.takes(relative_path(httpx.URL(known.uri)))
        )


def _own_hosts(url: httpx.URL, others: Sequence[str]) -> Sequence[str]:
    """A sitemap speaks for its own host only, which may be called `www.` or not."""
    host = host_of(url)
    twin = host.removeprefix("www.") if host.startswith("www.") else f"www.{host}"
    return list(dict.fromkeys([host, twin, *others]))


def _expected_tag(lastmod: str, known: SourceState | None, now: datetime) -> str | None:
    """The tag that the page has if it did not change since; it is the noted one for the same date.

    None when nothing was noted, or the page may have changed without its date showing it.
    """
    if known is None or not (date := settled(lastmod, now)):
        return None
    noted = WebTag.parse(known.source_tag)
    if noted.lastmod == date:
        return known.source_tag
    return replace(noted, lastmod=date).text if noted.etag or noted.modified else None


def _answers(reply: Reply) -> str:
    phrase = httpx.codes.get_reason_phrase(reply.status)
    return f"the server answers {reply.status} {phrase}".rstrip()


def _is_page(reply: Reply) -> bool:
    opening = reply.content[:256].lstrip().lower()
    return "html" in reply.headers.get("Content-Type", "").lower() or opening.startswith(
        (b"<!doctype html", b"<html")
    )
