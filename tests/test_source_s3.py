"""Buckets, on a real server of the protocol on this machine."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.errors import InvalidInput, Unavailable
from ingestion.pipeline import Tools, open_tools
from ingestion.runner import Order, Report, sync
from ingestion.sources import s3
from ingestion.sources.base import Item
from ingestion.sources.s3 import open_bucket
from ingestion.sources.selection import Selection
from tests.doubles.plain_parser import PlainParser
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent

SECRET = "never-to-be-seen"
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=owner/20260101/us-east-1/s3/aws4_request,"
    " SignedHeaders=host, Signature=0"
}
"""Whose signature it is does not matter to this server, only that there is one."""


class Silence:
    def begin(self, items_count: int, bytes_count: int) -> None: ...

    def advance(self, item: Item) -> None: ...


class Bucket:
    """What stands in the bucket, changed from outside as its owner would."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint = endpoint
        self.name = name
        httpx.put(f"{endpoint}/{name}").raise_for_status()

    def put(self, key: str, content: str) -> str:
        content_sent = httpx.put(self._url(key), content=content.encode(), headers=SIGNED)
        content_sent.raise_for_status()
        return f"s3://{self.name}/{quote(key)}"

    def delete(self, key: str) -> None:
        httpx.delete(self._url(key), headers=SIGNED).raise_for_status()

    def _url(self, key: str) -> str:
        return f"{self.endpoint}/{self.name}/{quote(key)}"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str) -> Iterator[Bucket]:
    yield Bucket(endpoint, "handbook")
    httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()


@pytest.fixture
def local(settings: Settings, endpoint: str) -> Settings:
    return settings.model_copy(
        update={
            "s3_endpoint": endpoint,
            "s3_region": "us-east-1",
            "s3_access_key_id": SecretStr("somebody"),
            "s3_secret_access_key": SecretStr(SECRET),
        }
    )


@pytest.fixture
async def tools(local: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with open_tools(local, engine, WordEmbedder()) as opened:
        await opened.parsers.close()
        opened.parsers = PlainParser()  # type: ignore[assignment]
        yield opened


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the objects that are fetched from now on."""
    keys: list[str] = []
    fetch = obstore.get_async

    def noting(store: Any, key: str, **options: Any) -> Any:
        keys.append(key)
        return fetch(store, key, **options)

    monkeypatch.setattr(obstore, "get_async", noting)
    return keys


async def run(tools: Tools, *locations: str, **options: Any) -> Report:
    return await sync(Order(locations, "bucket", **options), tools, Silence())


def counts(report: Report) -> tuple[int, ...]:
    """Added, updated, unchanged, deleted, failed."""
    return tuple(report.counts.values())


async def documents(engine: AsyncEngine) -> dict[str, str]:
    """The text of each document that serves, by its URI."""
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT d.uri, v.text FROM documents AS d"
                " JOIN document_versions AS v ON v.id = d.current_version_id"
            )
        )
        return {row.uri: row.text for row in rows}


async def test_a_prefix_is_kept_in_step(
    bucket: Bucket, tools: Tools, engine: AsyncEngine, fetched: list[str]
) -> None:
    a, b = bucket.put("docs/a.txt", "The first."), bucket.put("docs/deep/b.md", "The second.")
    bucket.put("docs2/c.txt", "Beside the prefix.")
    place = "s3://handbook/docs"
    assert counts(await run(tools, place)) == (2, 0, 0, 0, 0)
    assert await documents(engine) == {a: "The first.", b: "The second."}

    fetched.clear()
    assert counts(await run(tools, place)) == (0, 0, 2, 0, 0)
    assert fetched == []

    bucket.put("docs/a.txt", "The first, revised.")
    bucket.delete("docs/deep/b.md")
    c = bucket.put("docs/c.txt", "The third.")
    assert counts(await run(tools, place + "/")) == (1, 1, 0, 1, 0)
    assert sorted(fetched) == ["docs/a.txt", "docs/c.txt"]
    assert await documents(engine) == {a: "The first, revised.", c: "The third."}

    bucket.delete("docs/a.txt")
    bucket.delete("docs/c.txt")
    assert counts(await run(tools, place)) == (0, 0, 0, 2, 0)
    await assert_consistent(engine)


async def test_an_object_written_again_unchanged_is_not_sent_again(
    bucket: Bucket, tools: Tools, engine: AsyncEngine, fetched: list[str]
) -> None:
    bucket.put("a.txt", "The same.")
    await run(tools, "s3://handbook")
    async with engine.begin() as connection:
        # As if it had been written before, and once more since.
        await connection.execute(
            text("UPDATE documents SET source_tag = regexp_replace(source_tag, '20..-', '2001-')")
        )
    fetched.clear()
    contents: list[Any] = []
    read = s3.BucketSource.read

    async def noting(*arguments: Any) -> Any:
        contents.append(await read(*arguments))
        return contents[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3.BucketSource, "read", noting)
        assert counts(await run(tools, "s3://handbook")) == (0, 0, 1, 0, 0)
    assert fetched == ["a.txt"]
    assert contents == [None]
    fetched.clear()
    assert counts(await run(tools, "s3://handbook")) == (0, 0, 1, 0, 0)
    assert fetched == []


async def test_an_object_may_be_named_itself(
    bucket: Bucket, tools: Tools, engine: AsyncEngine
) -> None:
    place = bucket.put("docs/a.txt", "The first.")
    bucket.put("docs/b.txt", "The second.")
    assert counts(await run(tools, place)) == (1, 0, 0, 0, 0)
    assert counts(await run(tools, place)) == (0, 0, 1, 0, 0)
    bucket.delete("docs/a.txt")
    assert counts(await run(tools, place)) == (0, 0, 0, 1, 0)
    assert await documents(engine) == {}


async def test_keys_may_be_called_anything(
    bucket: Bucket, tools: Tools, engine: AsyncEngine
) -> None:
    keys = ["a b.txt", "ü/ß.txt", "100%.txt", "a%20b.txt", "x?y=1#z.txt", "[1]~&+.txt", "plain"]
    uris = {
        bucket.put(f"docs/{key}", f"Words of {n}."): f"Words of {n}." for n, key in enumerate(keys)
    }
    assert counts(await run(tools, "s3://handbook/docs/")) == (len(keys), 0, 0, 0, 0)
    assert await documents(engine) == uris
    assert counts(await run(tools, "s3://handbook/docs/")) == (0, 0, len(keys), 0, 0)


async def test_a_key_that_is_no_path_hides_only_its_own_folder(
    bucket: Bucket, tools: Tools, engine: AsyncEngine
) -> None:
    bucket.put("docs/a.txt", "The first.")
    b = bucket.put("docs/deep/b.txt", "The second.")
    assert counts(await run(tools, "s3://handbook/docs")) == (2, 0, 0, 0, 0)
    bucket.put("docs/deep//odd.txt", "Not to be had.")
    bucket.delete("docs/a.txt")
    bucket.delete("docs/deep/b.txt")
    c = bucket.put("docs/c/d.txt", "The third.")
    report = await run(tools, "s3://handbook/docs")
    assert counts(report) == (1, 0, 0, 1, 1)
    assert report.failures[0].path == "s3://handbook/docs/deep/"
    # What may still be there is not deleted.
    assert sorted(await documents(engine)) == [c, b]


async def test_patterns_hold_below_the_prefix(
    bucket: Bucket, tools: Tools, engine: AsyncEngine
) -> None:
    for key in ("docs/a.md", "docs/old/b.md", "docs/c.txt"):
        bucket.put(key, f"Words of {key}.")
    assert counts(await run(tools, "s3://handbook/docs")) == (3, 0, 0, 0, 0)
    chosen = Selection(include=("*.md",), exclude=("/old/",))
    report = await run(tools, "s3://handbook/docs", selection=chosen)
    assert counts(report) == (0, 0, 1, 0, 0)
    assert len(await documents(engine)) == 3


async def test_the_marker_of_a_folder_is_no_document(bucket: Bucket, tools: Tools) -> None:
    bucket.put("docs/", "")
    bucket.put("docs/a.txt", "The first.")
    assert counts(await run(tools, "s3://handbook/docs/")) == (1, 0, 0, 0, 0)


async def test_an_object_that_is_too_large_is_not_fetched(
    bucket: Bucket, local: Settings, tools: Tools, fetched: list[str]
) -> None:
    bucket.put("large.txt", "word " * 1000)
    tools.settings = local.model_copy(update={"max_upload_bytes": 1000})
    report = await run(tools, "s3://handbook")
    assert counts(report) == (0, 0, 0, 0, 1)
    assert "is larger than" in report.failures[0].reason
    assert fetched == []


async def test_the_bound_of_a_bucket_holds_and_deletes_nothing(
    bucket: Bucket, local: Settings, tools: Tools, engine: AsyncEngine
) -> None:
    for number in range(4):
        bucket.put(f"{number}.txt", f"Words of {number}.")
    assert counts(await run(tools, "s3://handbook")) == (4, 0, 0, 0, 0)
    tools.settings = local.model_copy(update={"bucket_max_objects": 2})
    report = await run(tools, "s3://handbook")
    assert counts(report) == (0, 0, 2, 0, 1)
    assert "more than 2 objects" in report.failures[0].reason
    assert len(await documents(engine)) == 4


async def test_a_bucket_that_is_away_does_not_look_empty(
    bucket: Bucket, local: Settings, tools: Tools, engine: AsyncEngine
) -> None:
    bucket.put("a.txt", "The first.")
    await run(tools, "s3://handbook")
    with pytest.raises(Unavailable, match="bucket does not exist"):
        await run(tools, "s3://nothing-here")
    tools.settings = local.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"})
    with pytest.raises(Unavailable, match="cannot be listed") as caught:
        await run(tools, "s3://handbook")
    assert SECRET not in str(caught.value.detail)
    assert len(await documents(engine)) == 1


async def test_a_prefix_with_nothing_below_it_is_a_mistake(bucket: Bucket, tools: Tools) -> None:
    bucket.put("docs/a.txt", "The first.")
    with pytest.raises(InvalidInput, match="nothing at s3://handbook/dosc"):
        await run(tools, "s3://handbook/dosc")


async def test_the_usual_variables_are_enough(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.txt", "The first.")
    for name, value in {
        "AWS_ENDPOINT_URL": bucket.endpoint,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    source = open_bucket("s3://handbook", Selection(), settings)
    assert [item.uri for item in (await source.changes({})).items] == ["s3://handbook/a.txt"]


@pytest.mark.parametrize(
    "location",
    [
        "s3://",
        "s3:///docs",
        "s3://key:secret@handbook/docs",
        "s3://handbook?endpoint=http://127.0.0.1/",
        "s3://hand book/docs",
        "s3://169.254.169.254:80/",
    ],
)
def test_a_location_that_is_no_bucket_is_refused(location: str, settings: Settings) -> None:
    with pytest.raises(InvalidInput):
        open_bucket(location, Selection(), settings)
