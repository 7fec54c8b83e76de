"""A run over any source: what is told to it, what it tells, and what becomes of the documents."""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.db.documents import SourceState
from app.errors import InvalidInput, Unavailable
from ingestion import runner
from ingestion.pipeline import Tools, open_tools
from ingestion.runner import Order, Report, sync
from ingestion.sources.base import (
    Content,
    Item,
    ItemGone,
    ItemUnreadable,
    Listing,
    Source,
    Unlisted,
)
from ingestion.sources.opening import check_location, open_source
from ingestion.sources.selection import Selection
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent, contents
from tests.test_ingest import Silence, counts, put, sections

SITE = "https://wiki.test"


class _SiteListing(Listing):
    def has_lost(self, known: SourceState) -> bool:
        return known.root == SITE and not any(one.is_container for one in self.unlisted)


@dataclass
class Site:
    """A place of pages, each with a tag that says which content it has."""

    pages: dict[str, str]
    prefixes: Sequence[str] = (SITE,)
    location: str = SITE
    lists_tags: bool = True
    unlisted: list[Unlisted] = field(default_factory=list[Unlisted])
    trouble: dict[str, list[Exception]] = field(default_factory=dict[str, list[Exception]])
    reads: list[str] = field(default_factory=list[str])
    told: list[str | None] = field(default_factory=list[str | None])
    is_closed: bool = False

    async def changes(self, known: Mapping[str, SourceState]) -> Listing:
        assert all(uri.startswith(SITE) for uri in known)
        return _SiteListing([self.item(name) for name in self.pages], self.unlisted)

    async def read(self, item: Item, known: SourceState | None, max_bytes: int) -> Content | None:
        assert max_bytes > 0
        self.reads.append(item.name)
        self.told.append(known.source_tag if known else None)
        if self.trouble.get(item.name):
            raise self.trouble[item.name].pop(0)
        tag = self.tag(item.name)
        if known is not None and known.source_tag == tag:
            return None
        content = self.pages[item.name].encode()
        return Content(content, hashlib.sha256(content).digest(), tag=tag)

    async def close(self) -> None:
        self.is_closed = True

    def item(self, name: str) -> Item:
        return Item(f"{SITE}/{name}", name, SITE, tag=self.tag(name) if self.lists_tags else None)

    def tag(self, name: str) -> str:
        return hashlib.sha256(self.pages[name].encode()).hexdigest()[:8]


def page(*names: str) -> str:
    return "\n\n".join(["# Page", *sections(*names)])


@pytest.fixture
async def tools(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with open_tools(settings, engine, WordEmbedder()) as opened:
        yield opened


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """What answers for `SITE`; everything else is opened as ever."""
    site = Site({"a.md": page("one"), "b.md": page("two")})

    def opened(location: str, selection: Selection, settings: Settings) -> Source:
        return site if location == SITE else open_source(location, selection, settings)

    monkeypatch.setattr(runner, "open_source", opened)
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.0)
    return site


async def run(tools: Tools, *locations: str | Path, **options: Any) -> Report:
    return await sync(Order(locations or [SITE], "default", **options), tools, Silence())


async def test_a_listed_tag_settles_a_page_without_reading_it(site: Site, tools: Tools) -> None:
    assert counts(await run(tools)) == (2, 0, 0, 0, 0)
    assert site.is_closed
    site.reads.clear()
    site.pages["b.md"] = page("changed")
    report = await run(tools)
    assert counts(report) == (0, 1, 1, 0, 0)
    assert site.reads == ["b.md"]
    assert (report.chunks, report.embedded) == (1, 1)


async def test_a_source_that_lists_no_tags_is_told_the_one_it_gave(
    site: Site, tools: Tools
) -> None:
    site.lists_tags = False
    await run(tools)
    assert site.told == [None, None]
    site.told.clear()
    for _ in range(2):
        assert counts(await run(tools)) == (0, 0, 2, 0, 0)
    assert sorted(filter(None, site.told)) == sorted([site.tag("a.md"), site.tag("b.md")] * 2)


async def test_a_page_that_failed_for_good_is_left_until_it_changes_or_is_asked_for(
    site: Site, tools: Tools
) -> None:
    site.lists_tags = False
    site.pages["empty.md"] = ""
    first = await run(tools)
    assert counts(first) == (2, 0, 0, 0, 1)
    again = await run(tools)
    assert counts(again) == (0, 0, 2, 0, 1)
    assert again.failures == first.failures
    site.told.clear()
    await run(tools, retry_failed=True)
    assert None in site.told
    site.pages["empty.md"] = page("full")
    assert counts(await run(tools)) == (1, 0, 2, 0, 0)


async def test_what_is_not_listed_any_more_is_deleted_unless_the_listing_is_in_parts(
    site: Site, tools: Tools, engine: AsyncEngine
) -> None:
    await run(tools)
    del site.pages["a.md"]
    blind = Unlisted(Item(f"{SITE}/more", "more", SITE), "it timed out", is_container=True)
    site.unlisted.append(blind)
    report = await run(tools)
    assert counts(report) == (0, 0, 1, 0, 1)
    assert report.failures[0].path == f"{SITE}/more"
    assert len(await contents(engine)) == 2
    site.unlisted.clear()
    assert counts(await run(tools)) == (0, 0, 1, 1, 0)
    assert list(await contents(engine)) == [f"{SITE}/b.md"]
    await assert_consistent(engine)


async def test_what_is_gone_when_it_is_read_leaves_the_collection(
    site: Site, tools: Tools, engine: AsyncEngine
) -> None:
    await run(tools)
    site.pages["a.md"] = page("edited")
    site.trouble["a.md"] = [ItemGone()]
    assert counts(await run(tools)) == (0, 0, 1, 1, 0)
    site.pages["new.md"] = page("new")
    site.trouble["a.md"] = [ItemGone("it was removed (410)")]
    site.trouble["new.md"] = [ItemGone("it was removed (410)")]
    report = await run(tools)
    assert counts(report) == (0, 0, 1, 0, 2)
    assert {failure.reason for failure in report.failures} == {"it was removed (410)"}
    assert await _documents(engine) == 1


async def test_passing_trouble_is_tried_again_and_lasting_trouble_fails(
    site: Site, tools: Tools, engine: AsyncEngine
) -> None:
    busy: list[Exception] = [
        ItemUnreadable("the server is busy", is_transient=True) for _ in range(5)
    ]
    site.trouble["a.md"] = busy[:2]
    site.trouble["b.md"] = [ItemUnreadable("it is secret")]
    report = await run(tools)
    assert counts(report) == (1, 0, 0, 0, 1)
    assert report.failures[0].reason == "it is secret"
    site.pages["a.md"] = page("edited")
    site.trouble["a.md"] = busy[2:]
    report = await run(tools)
    assert counts(report) == (1, 0, 0, 0, 1)
    assert report.failures[0].reason == "the server is busy"
    # The version from before the trouble serves on, and the next run takes the new one.
    assert len(await contents(engine)) == 2
    assert counts(await run(tools)) == (0, 1, 1, 0, 0)


async def test_several_kinds_of_places_in_one_run(
    site: Site, tools: Tools, tmp_path: Path, engine: AsyncEngine
) -> None:
    docs = tmp_path / "docs"
    put(docs, "c.md", "# C", *sections("three"))
    assert counts(await run(tools, SITE, docs, docs / "c.md", SITE)) == (3, 0, 0, 0, 0)
    (docs / "c.md").unlink()
    assert counts(await run(tools, docs)) == (0, 0, 0, 1, 0)
    assert counts(await run(tools, SITE, docs)) == (0, 0, 2, 0, 0)
    await assert_consistent(engine)


async def test_a_place_that_cannot_be_listed_ends_the_run_and_deletes_nothing(
    site: Site, tools: Tools, tmp_path: Path, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(tools)

    async def away(known: Mapping[str, SourceState]) -> Listing:
        del known
        raise Unavailable("The site does not answer.")

    monkeypatch.setattr(site, "changes", away)
    site.is_closed = False
    with pytest.raises(Unavailable, match="does not answer"):
        await run(tools, SITE, tmp_path)
    assert site.is_closed
    assert len(await contents(engine)) == 2


async def test_a_source_that_breaks_its_word_fails_its_document_alone(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = site.read

    async def lazy(item: Item, known: SourceState | None, max_bytes: int) -> Content | None:
        return None if item.name == "a.md" else await read(item, known, max_bytes)

    monkeypatch.setattr(site, "read", lazy)
    report = await run(tools)
    assert counts(report) == (1, 0, 0, 0, 1)
    assert "internal error" in report.failures[0].reason


@pytest.mark.parametrize("location", ["ftp://host/x", "file:///etc/passwd", "gopher://x"])
def test_other_schemes_are_refused(location: str, settings: Settings) -> None:
    with pytest.raises(InvalidInput, match="cannot ingest from"):
        open_source(location, Selection(), settings)


def test_locations_are_told_apart_by_their_look(tmp_path: Path) -> None:
    for location in ("https://a.test/b", "HTTP://a.test", "s3://bucket/prefix", str(tmp_path)):
        check_location(location)
    with pytest.raises(InvalidInput, match="no such path"):
        check_location(str(tmp_path / "s3:" / "bucket"))


async def _documents(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT count(*) FROM documents"))
        return int(found.scalar_one())
