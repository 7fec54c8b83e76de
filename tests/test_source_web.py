"""Pages, sites and their wishes: what a sync makes of the web."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.errors import InvalidInput, Unavailable
from app.urls import checked_url
from ingestion.pipeline import Tools, open_tools
from ingestion.runner import Order, Report, sync
from ingestion.sources import robots, sitemaps
from ingestion.sources.base import Item, ItemUnreadable
from ingestion.sources.fetching import WebClient, retry_after_seconds
from ingestion.sources.naming import name_of_reply
from ingestion.sources.robots import Robots, forbids_indexing, parse_rules
from ingestion.sources.selection import Selection
from ingestion.sources.sitemaps import NotASitemap, read_sitemap, settled
from ingestion.sources.tags import WebTag
from ingestion.sources.web import open_web
from tests.doubles.plain_parser import PlainParser
from tests.doubles.web_server import Answer, Request, WebServer, serving_web
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent


class Silence:
    def begin(self, items_count: int, bytes_count: int) -> None: ...

    def advance(self, item: Item) -> None: ...


@pytest.fixture
def local(settings: Settings) -> Settings:
    """Settings under which the tests' own servers may be reached, without a pause."""
    return settings.model_copy(
        update={
            "source_allow_networks": (ip_network("127.0.0.1/32"),),
            "source_pause_seconds": 0,
        }
    )


@asynccontextmanager
async def plain_tools(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with open_tools(settings, engine, WordEmbedder()) as opened:
        await opened.parsers.close()
        opened.parsers = PlainParser()  # type: ignore[assignment]
        yield opened


@pytest.fixture
async def tools(local: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with plain_tools(local, engine) as opened:
        yield opened


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with serving_web() as server:
        yield server


async def run(tools: Tools, *locations: str, **options: Any) -> Report:
    return await sync(Order(locations, "web", **options), tools, Silence())


def counts(report: Report) -> tuple[int, ...]:
    """Added, updated, unchanged, deleted, failed."""
    return tuple(report.counts.values())


async def documents(engine: AsyncEngine) -> dict[str, tuple[str, str]]:
    """Status and text of each document, by its URI."""
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT d.uri, d.status, coalesce(v.text, '') FROM documents AS d"
                " LEFT JOIN document_versions AS v ON v.id = d.current_version_id"
            )
        )
        return {uri: (status, content) for uri, status, content in rows}


def page(words: str, **headers: str) -> Answer:
    body = f"<html><head><title>A page</title></head><body><p>{words}</p></body></html>"
    return Answer(body.encode(), headers={"Content-Type": "text/html; charset=utf-8", **headers})


def with_etag(words: str, etag: str) -> Callable[[Request], Answer]:
    """A page that answers 304 to whoever has it."""

    def answer(request: Request) -> Answer:
        if request.headers.get("If-None-Match") == etag:
            return Answer(status=304, headers={"ETag": etag})
        return page(words, ETag=etag)

    return answer


# --- a page ---------------------------------------------------------------------------------------


async def test_a_page_is_fetched_when_it_changed(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    url = web.url("/guide")
    web.routes["/guide"] = with_etag("The first edition.", '"one"')
    assert counts(await run(tools, url)) == (1, 0, 0, 0, 0)
    assert counts(await run(tools, url)) == (0, 0, 1, 0, 0)
    assert web.requests[-1].headers["If-None-Match"] == '"one"'

    web.routes["/guide"] = with_etag("The second edition.", '"two"')
    assert counts(await run(tools, url)) == (0, 1, 0, 0, 0)
    found = await documents(engine)
    assert list(found) == [url]
    assert "second edition" in found[url][1]
    await assert_consistent(engine)


@pytest.mark.parametrize("status", [400, 401, 403, 418, 429, 500, 502, 503])
async def test_a_page_in_trouble_goes_on_serving(
    web: WebServer, tools: Tools, engine: AsyncEngine, status: int
) -> None:
    url = web.url("/guide")
    web.routes["/guide"] = page("What it says.")
    await run(tools, url)
    web.routes["/guide"] = Answer(status=status, headers={"Retry-After": "600"})
    report = await run(tools, url)
    assert counts(report) == (0, 0, 0, 0, 1)
    assert str(status) in report.failures[0].reason
    assert (await documents(engine))[url] == ("failed", "What it says.")
    web.routes["/guide"] = page("What it says.")
    assert counts(await run(tools, url)) == (0, 1, 0, 0, 0)


@pytest.mark.parametrize("status", [404, 410])
async def test_a_page_that_is_gone_is_deleted(
    web: WebServer, tools: Tools, engine: AsyncEngine, status: int
) -> None:
    url = web.url("/guide")
    web.routes["/guide"] = page("What it says.")
    await run(tools, url)
    web.routes["/guide"] = Answer(status=status)
    assert counts(await run(tools, url)) == (0, 0, 0, 1, 0)
    assert await documents(engine) == {}
    report = await run(tools, url)
    assert counts(report) == (0, 0, 0, 0, 1)
    assert str(status) in report.failures[0].reason
    await assert_consistent(engine)


async def test_a_page_keeps_the_url_that_was_asked_for(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    web.routes["/old"] = Answer(status=301, headers={"Location": "/new"})
    web.routes["/new"] = with_etag("It moved.", '"one"')
    assert counts(await run(tools, web.url("/old"))) == (1, 0, 0, 0, 0)
    assert counts(await run(tools, web.url("/old"))) == (0, 0, 1, 0, 0)
    assert list(await documents(engine)) == [web.url("/old")]
    asked = {request.path: request.headers.get("If-None-Match") for request in web.requests}
    assert asked["/old"] is None
    assert asked["/new"] == '"one"'

    web.routes["/old"] = Answer(status=301, headers={"Location": "/newer"})
    web.routes["/newer"] = with_etag("It moved again, under the same mark.", '"one"')
    assert counts(await run(tools, web.url("/old"))) == (0, 1, 0, 0, 0)


async def test_a_page_is_read_as_what_its_server_calls_it(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    markdown = b"# Title\n\nSome *words* under a heading.\n"
    web.routes["/download.php"] = page("From a program.")
    web.routes["/raw"] = Answer(markdown, headers={"Content-Type": "text/markdown"})
    locations = [web.url("/download.php?id=1"), web.url("/raw")]
    assert counts(await run(tools, *locations)) == (2, 0, 0, 0, 0)
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT uri, media_type FROM documents ORDER BY uri"))
        assert [tuple(row) for row in rows] == [
            (locations[0], "text/html"),
            (locations[1], "text/markdown"),
        ]


@pytest.mark.parametrize(
    ("path", "headers", "name"),
    [
        ("/guide", {"Content-Type": "text/html; charset=utf-8"}, "guide.html"),
        ("/guide.htm", {"Content-Type": "text/html"}, "guide.htm"),
        ("/", {"Content-Type": "text/html"}, "docs.example.html"),
        ("/page.php", {"Content-Type": "text/html"}, "page.php.html"),
        ("/a/b.rst", {"Content-Type": "text/plain"}, "b.rst"),
        ("/notes", {"Content-Type": "text/plain"}, "notes.txt"),
        ("/get?x=1", {"Content-Type": "application/pdf"}, "get.pdf"),
        ("/report.docx", {"Content-Type": "application/zip"}, "report.docx"),
        ("/report.docx", {"Content-Type": "application/octet-stream"}, "report.docx"),
        ("/data", {"Content-Type": "application/octet-stream"}, "data"),
        ("/data", {}, "data"),
        ("/d", {"Content-Disposition": 'attachment; filename="Plan 1.pdf"'}, "Plan 1.pdf"),
        ("/d", {"Content-Disposition": "attachment; filename*=UTF-8''%C3%BCber.md"}, "über.md"),
        ("/d", {"Content-Disposition": 'attachment; filename="../../etc/passwd"'}, "etc_passwd"),
        ("/d", {"Content-Disposition": 'attachment; filename="C:\\\\x.md"'}, "C:_x.md"),
        ("/%00%0a..%2f", {"Content-Type": "text/html"}, "docs.example.html"),
        ("/" + "n" * 500 + ".md", {}, "n" * 197 + ".md"),
    ],
)
def test_a_name_ends_as_what_it_is(path: str, headers: dict[str, str], name: str) -> None:
    url = checked_url(f"https://docs.example{path}")
    assert name_of_reply(url, httpx.Headers(headers)) == name


@pytest.mark.parametrize(
    "location", ["http://", "https://name:word@docs.example/", "http://0x7f.1/", "sitemap+http://"]
)
def test_a_location_that_is_no_url_is_refused(location: str, settings: Settings) -> None:
    with pytest.raises(InvalidInput):
        open_web(location, Selection(), settings)


async def test_a_closed_address_fails_and_nothing_else(
    web: WebServer, settings: Settings, engine: AsyncEngine
) -> None:
    web.routes["/"] = page("secret")
    async with plain_tools(settings, engine) as tools:
        report = await run(tools, web.url("/"))
    assert counts(report) == (0, 0, 0, 0, 1)
    assert "private or special network" in report.failures[0].reason
    assert web.connections_count == 0


# --- the wishes of a site -------------------------------------------------------------------------


async def test_robots_are_asked_once_and_obeyed(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    web.routes["/robots.txt"] = Answer(
        b"User-agent: *\nDisallow: /private/\nAllow: /private/open\n"
    )
    for path in ("/private/a", "/private/open", "/public"):
        web.routes[path] = page(f"Words of {path}.")
    report = await run(
        tools, *(web.url(path) for path in ("/private/a", "/private/open", "/public"))
    )
    assert counts(report) == (2, 0, 0, 0, 1)
    assert report.failures[0].path == web.url("/private/a")
    assert "robots.txt" in report.failures[0].reason
    assert "/private/a" not in web.paths()


async def test_a_redirect_leads_nowhere_that_robots_may_not_go(
    web: WebServer, tools: Tools
) -> None:
    web.routes["/robots.txt"] = Answer(b"User-agent: footnote\nDisallow: /private\n")
    web.routes["/go"] = Answer(status=302, headers={"Location": "/private"})
    web.routes["/private"] = page("Not for programs.")
    assert counts(await run(tools, web.url("/go"))) == (0, 0, 0, 0, 1)
    assert "/private" not in web.paths()


async def test_rules_that_cannot_be_had_close_the_site_and_delete_nothing(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    url = web.url("/guide")
    web.routes["/guide"] = page("What it says.")
    await run(tools, url)
    web.routes["/robots.txt"] = Answer(status=500)
    web.routes["/guide"] = Answer(status=404)
    report = await run(tools, url)
    assert counts(report) == (0, 0, 0, 0, 1)
    assert "robots.txt cannot be read" in report.failures[0].reason
    assert (await documents(engine))[url][1] == "What it says."
    assert web.paths().count("/guide") == 1


async def test_a_crawl_delay_is_kept_up_to_a_bound(web: WebServer, local: Settings) -> None:
    web.routes["/robots.txt"] = Answer(b"User-agent: *\nCrawl-delay: 100000\n")
    asked: list[tuple[str, float]] = []
    async with WebClient(local) as client:
        client.slow_down = lambda host, seconds: asked.append((host, seconds))  # type: ignore[method-assign]
        rules = Robots(client)
        await rules.check(checked_url(web.url("/a")))
        await rules.check(checked_url(web.url("/b")))
        await rules.close()
    assert asked == [("127.0.0.1", robots.CRAWL_DELAY_SECONDS_MAX)]


async def test_a_host_is_left_the_pause_that_it_asks_for(web: WebServer, local: Settings) -> None:
    web.routes["/"] = page("What it says.")
    async with WebClient(local) as client:
        client.slow_down("127.0.0.1", 0.2)
        started = time.monotonic()
        url = checked_url(web.url("/"))
        await asyncio.gather(*(client.get(url, max_bytes=10_000) for _ in range(3)))
        assert time.monotonic() - started >= 0.4


def test_rules_for_thousands_of_agents_do_not_multiply() -> None:
    agents = "\n".join(f"User-agent: a{n}" for n in range(12_000))
    rules = "\n".join(f"Disallow: /{n}" for n in range(12_000))
    started = time.monotonic()
    parsed = parse_rules(f"{agents}\n{rules}\nUser-agent: Footnote/2.0\nDisallow: /mine\n")
    assert time.monotonic() - started < 5
    assert not parsed.can_fetch("https://a.example/mine", robots.AGENT)
    assert parsed.can_fetch("https://a.example/7", robots.AGENT)


@pytest.mark.parametrize(
    ("headers", "content", "is_forbidden"),
    [
        ({"X-Robots-Tag": "noindex"}, "", True),
        ({"X-Robots-Tag": "nofollow, NONE"}, "", True),
        ({"X-Robots-Tag": "footnote: noindex, nofollow"}, "", True),
        ({"X-Robots-Tag": "otherbot: noindex, none"}, "", False),
        ({"X-Robots-Tag": "unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"}, "", True),
        ({"X-Robots-Tag": "nofollow"}, "", False),
        ({}, '<meta name="robots" content="noindex, follow">', True),
        ({}, "<META CONTENT='none' NAME=ROBOTS>", True),
        ({}, '<meta name="footnote" content="noindex"/>', True),
        ({}, '<meta name="googlebot" content="noindex">', False),
        ({}, '<meta name="robots" content="index">', False),
        ({}, '<!-- <meta name="robots" content="noindex"> -->', False),
        ({}, '<!-- a --><meta name="robots" content="noindex"><!-- b', True),
        ({}, '<meta name="description" content="noindex">', False),
    ],
)
def test_what_asks_not_to_be_indexed_is_heard(
    headers: dict[str, str], content: str, is_forbidden: bool
) -> None:
    assert forbids_indexing(httpx.Headers(headers), content.encode()) is is_forbidden


@pytest.mark.parametrize("piece", [b"<!--", b"<meta ", b"<meta name=robots content=", b'"'])
def test_a_page_cannot_keep_its_reader_busy(piece: bytes) -> None:
    started = time.monotonic()
    assert not forbids_indexing(httpx.Headers(), piece * (robots.HEAD_BYTES // len(piece)))
    assert time.monotonic() - started < 2


async def test_a_page_that_asks_not_to_be_found_is_not(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    web.routes["/a"] = page("Hidden.", **{"X-Robots-Tag": "noindex"})
    web.routes["/b"] = Answer(
        b'<html><head><meta name="robots" content="noindex"></head><body>Hidden.</body></html>',
        headers={"Content-Type": "text/html"},
    )
    report = await run(tools, web.url("/a"), web.url("/b"))
    assert counts(report) == (0, 0, 0, 0, 2)
    assert {failure.reason for failure in report.failures} == {
        "it asks not to be indexed (noindex)"
    }


# --- sitemaps -------------------------------------------------------------------------------------


def urlset(*entries: tuple[str, str]) -> Answer:
    urls = "".join(f"<url><loc>{url}</loc><lastmod>{day}</lastmod></url>" for url, day in entries)
    return xml(f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{urls}</urlset>')


def index(*urls: str) -> Answer:
    entries = "".join(f"<sitemap><loc>{url}</loc></sitemap>" for url in urls)
    return xml(f"<sitemapindex>{entries}</sitemapindex>")


def xml(content: str) -> Answer:
    return Answer(f'<?xml version="1.0"?>{content}'.encode(), headers={"Content-Type": "text/xml"})


async def test_a_site_is_kept_in_step_with_its_sitemap(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    site = web.url("/sitemap.xml")
    a, b, c = (web.url(f"/{name}") for name in "abc")
    for name in "abc":
        web.routes[f"/{name}"] = with_etag(f"The page {name}.", f'"{name}"')
    web.routes["/sitemap.xml"] = urlset((a, "2024-05-01"), (b, "2024-05-01T10:00:00Z"))
    assert counts(await run(tools, site)) == (2, 0, 0, 0, 0)

    web.requests.clear()
    assert counts(await run(tools, site)) == (0, 0, 2, 0, 0)
    assert web.paths() == ["/robots.txt", "/sitemap.xml"]

    # A new date costs a header, and once only; a page that left the sitemap goes.
    web.routes["/sitemap.xml"] = urlset((a, "2024-06-01"), (c, "2024-06-01"))
    web.requests.clear()
    assert counts(await run(tools, site)) == (1, 0, 1, 1, 0)
    assert sorted(web.paths()[2:]) == ["/a", "/c"]
    assert sorted(await documents(engine)) == [a, c]
    web.requests.clear()
    assert counts(await run(tools, site)) == (0, 0, 2, 0, 0)
    assert web.paths() == ["/robots.txt", "/sitemap.xml"]
    await assert_consistent(engine)


async def test_a_date_of_today_proves_nothing(web: WebServer, tools: Tools) -> None:
    today = datetime.now(UTC).date().isoformat()
    web.routes["/a"] = with_etag("Written this morning.", '"one"')
    web.routes["/sitemap.xml"] = urlset((web.url("/a"), today))
    assert counts(await run(tools, web.url("/sitemap.xml"))) == (1, 0, 0, 0, 0)
    web.routes["/a"] = with_etag("Changed in the evening.", '"two"')
    assert counts(await run(tools, web.url("/sitemap.xml"))) == (0, 1, 0, 0, 0)


async def test_a_sitemap_may_be_spread_over_files(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    for name in "abcd":
        web.routes[f"/{name}"] = page(f"The page {name}.")
    packed = zlib.compress(urlset((web.url("/a"), "")).body, wbits=31)
    web.routes["/robots.txt"] = Answer(f"Sitemap: {web.url('/maps/all.xml')}\n".encode())
    web.routes["/maps/all.xml"] = index(
        web.url("/maps/1.xml.gz"), web.url("/maps/2.txt"), web.url("/maps/all.xml")
    )
    web.routes["/maps/1.xml.gz"] = Answer(packed, headers={"Content-Type": "application/gzip"})
    web.routes["/maps/2.txt"] = Answer(
        f"{web.url('/b')}\n{web.url('/c')}\nhttp://127.0.0.2/d\nhttp://u:p@{web.url('/d')[7:]}\n".encode()
    )
    assert counts(await run(tools, f"sitemap+{web.url('/')}")) == (3, 0, 0, 0, 0)
    assert sorted(await documents(engine)) == [web.url(f"/{name}") for name in "abc"]


@pytest.mark.parametrize(
    "broken",
    [
        Answer(status=500),
        Answer(status=404),
        Answer(b"<urlset><url><loc>http://a"),
        Answer(b'<!DOCTYPE u [<!ENTITY a "aaaa">]><urlset><url><loc>&a;</loc></url></urlset>'),
        Answer(b"<html><body>Sign in</body></html>"),
        Answer(b"\x1f\x8bnot really"),
    ],
)
async def test_what_is_missing_from_a_site_read_in_part_stays(
    web: WebServer, tools: Tools, engine: AsyncEngine, broken: Answer
) -> None:
    site = web.url("/sitemap.xml")
    for name in "ab":
        web.routes[f"/{name}"] = page(f"The page {name}.")
    web.routes["/sitemap.xml"] = index(web.url("/1.xml"), web.url("/2.xml"))
    web.routes["/1.xml"] = urlset((web.url("/a"), "2024-05-01"))
    web.routes["/2.xml"] = urlset((web.url("/b"), "2024-05-01"))
    assert counts(await run(tools, site)) == (2, 0, 0, 0, 0)

    web.routes["/2.xml"] = broken
    report = await run(tools, site)
    assert counts(report) == (0, 0, 1, 0, 1)
    assert report.failures[0].path == web.url("/2.xml")

    web.routes["/sitemap.xml"] = broken
    with pytest.raises(Unavailable, match="cannot be read"):
        await run(tools, site)
    assert len(await documents(engine)) == 2


async def test_a_sitemap_without_pages_deletes_nothing(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    web.routes["/a"] = page("The page.")
    web.routes["/sitemap.xml"] = urlset((web.url("/a"), ""))
    await run(tools, web.url("/sitemap.xml"))
    web.routes["/sitemap.xml"] = urlset()
    assert counts(await run(tools, web.url("/sitemap.xml"))) == (0, 0, 0, 0, 0)
    assert len(await documents(engine)) == 1


async def test_the_bounds_of_a_site_hold_and_delete_nothing(
    web: WebServer, local: Settings, tools: Tools, engine: AsyncEngine
) -> None:
    site = web.url("/sitemap.xml")
    pages = [(web.url(f"/{number}"), "2024-05-01") for number in range(4)]
    for number in range(4):
        web.routes[f"/{number}"] = page(f"The page {number}.")
    web.routes["/sitemap.xml"] = urlset(*pages)
    assert counts(await run(tools, site)) == (4, 0, 0, 0, 0)
    bounded = local.model_copy(update={"sitemap_max_urls": 2})
    async with plain_tools(bounded, engine) as few:
        report = await run(few, site)
    assert counts(report) == (0, 0, 2, 0, 1)
    assert "more than 2 pages" in report.failures[0].reason
    assert len(await documents(engine)) == 4


async def test_a_sitemap_that_was_not_reached_deletes_nothing(
    web: WebServer, local: Settings, tools: Tools, engine: AsyncEngine
) -> None:
    for name in "abc":
        web.routes[f"/{name}"] = page(f"The page {name}.")
    web.routes["/1.xml"] = urlset((web.url("/a"), "2024-05-01"), (web.url("/b"), "2024-05-01"))
    web.routes["/2.xml"] = urlset((web.url("/c"), "2024-05-01"))
    web.routes["/sitemap.xml"] = index(web.url("/1.xml"), web.url("/2.xml"))
    assert counts(await run(tools, web.url("/sitemap.xml"))) == (3, 0, 0, 0, 0)
    bounded = local.model_copy(update={"sitemap_max_urls": 2})
    async with plain_tools(bounded, engine) as few:
        report = await run(few, web.url("/sitemap.xml"))
    assert counts(report) == (0, 0, 2, 0, 1)
    assert report.failures[0].path == web.url("/2.xml")
    assert len(await documents(engine)) == 3


async def test_sitemaps_are_not_followed_for_ever(web: WebServer, tools: Tools) -> None:
    for depth in range(10):
        web.routes[f"/sitemap{depth}.xml"] = index(web.url(f"/sitemap{depth + 1}.xml"))
    report = await run(tools, web.url("/sitemap0.xml"))
    assert "nested too deeply" in report.failures[0].reason
    assert len([path for path in web.paths() if path.startswith("/sitemap")]) == 3


async def test_patterns_choose_pages_by_their_path(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    for path in ("/docs/a", "/docs/b", "/blog/c"):
        web.routes[path] = page(f"The page {path}.")
    web.routes["/sitemap.xml"] = urlset(*((web.url(path), "") for path in list(web.routes)))
    site = web.url("/sitemap.xml")
    assert counts(await run(tools, site)) == (3, 0, 0, 0, 0)
    chosen = Selection(include=("docs/",), exclude=("b",))
    assert counts(await run(tools, site, selection=chosen)) == (0, 0, 1, 0, 0)
    assert len(await documents(engine)) == 3


@pytest.mark.parametrize("path", ["/docs/list", "/list.txt", "/?list=1", "/list.gz"])
async def test_a_sitemap_may_have_any_name_where_it_is_called_one(
    web: WebServer, tools: Tools, engine: AsyncEngine, path: str
) -> None:
    for name in "ab":
        web.routes[f"/{name}"] = page(f"The page {name}.")
    web.routes["/robots.txt"] = Answer(f"Sitemap: {web.url('/sitemap.xml')}\n".encode())
    web.routes["/sitemap.xml"] = urlset((web.url("/a"), ""), (web.url("/b"), ""))
    listed = web.url("/a").encode()
    content = zlib.compress(listed, wbits=31) if path.endswith(".gz") else listed
    web.routes[path.partition("?")[0]] = Answer(content, headers={"Content-Type": "text/plain"})
    assert counts(await run(tools, f"sitemap+{web.url(path)}")) == (1, 0, 0, 0, 0)
    assert list(await documents(engine)) == [web.url("/a")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (page("Words."), "a page of HTML"),
        (Answer(b"words", headers={"Content-Type": "text/plain"}), "no sitemap"),
        (Answer(status=404), "404"),
    ],
)
async def test_what_is_called_a_sitemap_and_is_none_is_refused(
    web: WebServer, tools: Tools, engine: AsyncEngine, answer: Answer, reason: str
) -> None:
    web.routes["/a"] = page("The page.")
    web.routes["/docs/one.html"] = answer
    web.routes["/sitemap.xml"] = urlset((web.url("/a"), ""))
    with pytest.raises(Unavailable, match=reason) as caught:
        await run(tools, f"sitemap+{web.url('/docs/one.html')}")
    assert f"sitemap+{web.url('/')}" in caught.value.hint
    assert await documents(engine) == {}


async def test_a_packed_sitemap_is_known_by_its_suffix(web: WebServer, tools: Tools) -> None:
    web.routes["/a"] = page("The page.")
    packed = zlib.compress(urlset((web.url("/a"), "")).body, wbits=31)
    web.routes["/pages.xml.gz"] = Answer(packed, headers={"Content-Type": "application/gzip"})
    assert counts(await run(tools, web.url("/pages.xml.gz"))) == (1, 0, 0, 0, 0)


@pytest.mark.parametrize("scheme", ["", "sitemap+"])
async def test_a_site_knows_the_pages_that_its_sitemap_brought_alone(
    web: WebServer, tools: Tools, engine: AsyncEngine, scheme: str
) -> None:
    site, sitemap = f"sitemap+{web.url('/')}", scheme + web.url("/sitemap.xml")
    pages = [web.url(f"/{name}") for name in "abc"]
    for name in "abc":
        web.routes[f"/{name}"] = page(f"The page {name}.")
    web.routes["/sitemap.xml"] = urlset(*((url, "") for url in pages))
    assert counts(await run(tools, sitemap)) == (3, 0, 0, 0, 0)
    assert counts(await run(tools, site)) == (0, 0, 3, 0, 0)
    web.routes["/sitemap.xml"] = urlset((pages[0], ""))
    assert counts(await run(tools, site)) == (0, 0, 1, 2, 0)
    assert list(await documents(engine)) == pages[:1]


async def test_a_sitemap_does_not_speak_for_the_others_of_its_site(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    for name in "ab":
        web.routes[f"/{name}"] = page(f"The page {name}.")
        web.routes[f"/{name}.xml"] = urlset((web.url(f"/{name}"), ""))
    both = f"Sitemap: {web.url('/a.xml')}\nSitemap: {web.url('/b.xml')}\n"
    web.routes["/robots.txt"] = Answer(both.encode())
    assert counts(await run(tools, f"sitemap+{web.url('/')}")) == (2, 0, 0, 0, 0)
    assert counts(await run(tools, web.url("/a.xml"))) == (0, 0, 1, 0, 0)
    assert len(await documents(engine)) == 2


async def test_xml_that_is_no_sitemap_is_a_document(
    web: WebServer, tools: Tools, engine: AsyncEngine
) -> None:
    web.routes["/book.xml"] = xml("<book><title>A title</title><p>Some words.</p></book>")
    assert counts(await run(tools, web.url("/book.xml"))) == (1, 0, 0, 0, 0)
    assert list(await documents(engine)) == [web.url("/book.xml")]


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]><urlset><url><loc>&a9;</loc></url></urlset>"
)


@pytest.mark.parametrize(
    "content",
    [
        BILLION_LAUGHS.encode(),
        b'<!DOCTYPE u [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset>&x;</urlset>',
        b'<!DOCTYPE u [<!ENTITY % x SYSTEM "http://127.0.0.1/x.dtd"> %x;]><urlset/>',
        b"<urlset>" + b"<a>" * 100_000,
        b"<rss><channel/></rss>",
        b"just words",
        b"",
        b"\xff\xfe\x00\xd8",
        b'<?xml version="1.0" encoding="no-such-thing"?><urlset/>',
    ],
)
def test_a_bomb_is_no_sitemap(content: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(NotASitemap):
        read_sitemap(content)
    assert time.monotonic() - started < 2


def test_a_packed_sitemap_is_unpacked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitemaps, "SITEMAP_BYTES_MAX", 100_000)
    with pytest.raises(NotASitemap, match="larger than"):
        read_sitemap(zlib.compress(b"<urlset>" + b" " * 10_000_000, wbits=31))


def test_more_entries_than_the_protocol_allows_are_not_all() -> None:
    entry = b"<url><loc>https://a.example/</loc></url>"
    full = read_sitemap(b"<urlset>" + entry * sitemaps.ENTRIES_MAX + b"</urlset>")
    assert full.is_complete
    assert len(full.entries) == sitemaps.ENTRIES_MAX
    more = read_sitemap(b"<urlset>" + entry * (sitemaps.ENTRIES_MAX + 1) + b"</urlset>")
    assert not more.is_complete
    lines = read_sitemap(b"https://a.example/\n" * (sitemaps.ENTRIES_MAX + 1))
    assert not lines.is_complete


@pytest.mark.parametrize(
    ("lastmod", "is_settled"),
    [
        ("2026-03-01", True),
        ("2026-03-09", False),
        ("2026-03-10", False),
        ("2026-03-10T11:59:59Z", True),
        ("2026-03-10T12:00:01+00:00", False),
        ("2026-03-10T13:30:00+02:00", True),
        ("2999-01-01", False),
        ("yesterday", False),
        ("", False),
    ],
)
def test_a_date_counts_once_it_is_over_everywhere(lastmod: str, is_settled: bool) -> None:
    now = datetime(2026, 3, 10, 12, tzinfo=UTC)
    assert settled(lastmod, now) == (lastmod if is_settled else "")


# --- small things ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text_", [None, "", "nonsense", "[]", '"a"', '{"other": 1}', "3"])
def test_what_is_no_tag_of_a_page_says_nothing(text_: str | None) -> None:
    assert WebTag.parse(text_) == WebTag()


def test_a_tag_is_read_as_it_was_written() -> None:
    headers = httpx.Headers({"ETag": 'W/"x"', "Last-Modified": "Tue, 10 Mar 2026 12:00:00 GMT"})
    tag = WebTag.of(httpx.URL("https://a.example/"), headers, "2026-01-01")
    assert WebTag.parse(tag.text) == tag
    assert tag.conditions(httpx.URL("https://b.example/")) == {}
    assert WebTag.of(httpx.URL("https://a.example/"), httpx.Headers(), "").text is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("", None), ("soon", None), ("-3", None), ("Tue, 10 Mar 2020 12:00:00 GMT", 0.0)],
)
def test_retry_after_is_read_in_both_forms(value: str, seconds: float | None) -> None:
    assert retry_after_seconds(httpx.Headers({"Retry-After": value})) == seconds


async def test_one_run_reads_from_a_bounded_number_of_hosts(
    local: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.sources.fetching.HOSTS_KEPT", 1)
    async with serving_web({"/": page("One.")}) as one, WebClient(local) as client:
        await client.get(checked_url(one.url("/")), max_bytes=1000)
        with pytest.raises(ItemUnreadable, match="1 hosts at most"):
            await client.get(checked_url("http://127.0.0.3/"), max_bytes=1000)
