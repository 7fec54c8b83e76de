"""What a site asks of programs that read it: robots.txt, X-Robots-Tag and meta robots."""

import asyncio
import re
from collections.abc import Iterable, Sequence

import httpx
from protego import Protego

from ingestion.sources.base import ItemUnreadable
from ingestion.sources.fetching import WebClient

AGENT = "footnote"
ROBOTS_BYTES_MAX = 512 * 1024
"""What is beyond need not be read, says RFC 9309."""
CRAWL_DELAY_SECONDS_MAX = 30.0
HEAD_BYTES = 256 * 1024
"""How far into a page we look for what it says of itself."""

_AGENT_LINE = re.compile(r"^\s*user[- ]?agent\s*[:\s]\s*(.*?)\s*$", re.IGNORECASE)


class Robots:
    """The rules of each site, asked for once in a run."""

    def __init__(self, client: WebClient) -> None:
        self._client = client
        self._rules: dict[httpx.URL, asyncio.Task[Protego]] = {}

    async def check(self, url: httpx.URL) -> None:
        """Raise ItemUnreadable for a URL that its site does not let us fetch.

        A site whose rules cannot be had right now lets us fetch nothing; one without rules, all.
        """
        rules = await self._rules_of(url)
        if not rules.can_fetch(str(url), AGENT):
            raise ItemUnreadable("its site does not want it to be read (robots.txt)")

    async def sitemaps(self, url: httpx.URL) -> Sequence[str]:
        """The sitemaps that the site names; none when its rules cannot be had."""
        try:
            return list((await self._rules_of(url)).sitemaps)
        except ItemUnreadable:
            return []

    async def close(self) -> None:
        for task in self._rules.values():
            task.cancel()
        await asyncio.gather(*self._rules.values(), return_exceptions=True)

    async def _rules_of(self, url: httpx.URL) -> Protego:
        place = url.copy_with(raw_path=b"/robots.txt")
        if place not in self._rules:
            self._rules[place] = asyncio.create_task(self._fetch(place))
        # Whoever is cancelled while waiting leaves the others their answer.
        return await asyncio.shield(self._rules[place])

    async def _fetch(self, place: httpx.URL) -> Protego:
        try:
            reply = await self._client.get(place, max_bytes=ROBOTS_BYTES_MAX, is_cut=True)
        except ItemUnreadable as error:
            raise ItemUnreadable(f"its site's robots.txt cannot be read: {error.reason}") from error
        if 400 <= reply.status < 500 and reply.status != 429:
            return await asyncio.to_thread(parse_rules, "")
        if reply.status != 200:
            raise ItemUnreadable(
                f"its site's robots.txt cannot be read: the server answers {reply.status}"
            )
        rules = await asyncio.to_thread(parse_rules, reply.content.decode("utf-8-sig", "replace"))
        delay_seconds = rules.crawl_delay(AGENT)
        if delay_seconds is not None:
            self._client.slow_down(place.host, min(delay_seconds, CRAWL_DELAY_SECONDS_MAX))
        return rules


def parse_rules(text: str) -> Protego:
    """The rules for us; those for others are kept apart, but not told from each other.

    So a file that names thousands of agents above thousands of rules does not multiply them.
    """
    return Protego.parse("\n".join(map(_with_known_agent, text.splitlines())))


def _with_known_agent(line: str) -> str:
    found = _AGENT_LINE.match(line)
    if found is None:
        return line
    token = re.split(r"[/\s#]", found[1], maxsplit=1)[0].lower()
    return f"User-agent: {token if token in ('*', AGENT) else 'others'}"


# --- what a page says of itself -------------------------------------------------------------------

_NO_INDEX = frozenset({"noindex", "none"})
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_META = re.compile(rb"<meta\s[^<>]{0,1000}>", re.IGNORECASE)
_NAME = re.compile(rb"\bname\s*=\s*[\"']?\s*(robots|footnote)[\s\"'/>]", re.IGNORECASE)
_CONTENT = re.compile(rb"\bcontent\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s>]+)", re.IGNORECASE)


def forbids_indexing(headers: httpx.Headers, page: bytes | None) -> bool:
    """Whether a document asks not to be found: in a header, or, for HTML, in the page's head."""
    if any(_says_no(value) for value in headers.get_list("X-Robots-Tag")):
        return True
    return page is not None and any(_says_no(value) for value in _meta_robots(page))


def _says_no(value: str) -> bool:
    """A rule may be for one agent: what follows in the same header is for it as well."""
    is_for_us = True
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        rule = name.strip()
        if colon and rule not in _VALUED:
            is_for_us = rule == AGENT
            rule = rest.strip()
        if is_for_us and rule in _NO_INDEX:
            return True
    return False


def _meta_robots(page: bytes) -> Iterable[str]:
    for tag in _META.findall(_without_comments(page[:HEAD_BYTES])):
        content = _CONTENT.search(tag)
        if content and _NAME.search(tag):
            yield content[1].strip(b"\"' ").decode("ascii", "replace")


def _without_comments(page: bytes) -> bytes:
    kept: list[bytes] = []
    at = 0
    while (start := page.find(b"<!--", at)) >= 0:
        kept.append(page[at:start])
        end = page.find(b"-->", start)
        if end < 0:
            return b"".join(kept)
        at = end + 3
    return b"".join([*kept, page[at:]])
