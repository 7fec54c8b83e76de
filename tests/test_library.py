"""The library against a real database: nothing half done, nothing doubled, nothing foreign."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text
from sqlalchemy import table as named_table
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER, Caller
from app.config import Settings
from app.db.session import open_sessions
from app.documents.library import Library
from app.documents.records import Upload, plain_filename
from app.errors import (
    BodyTooLarge,
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
)
from app.jobs import Jobs


@dataclass(frozen=True)
class Model:
    name: str = "a model"
    digest: str = "digest of a model"
    dimensions: int = 4


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[Jobs]:
    opened = Jobs(database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def library(engine: AsyncEngine, jobs: Jobs, settings: Settings) -> Library:
    return Library(open_sessions(engine), jobs, settings, Model())


def reader(**limits: Any) -> Caller:
    return Caller(tenant_id=1, scopes=frozenset({"read", "write"}), **limits)


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        counted = await connection.execute(select(func.count()).select_from(named_table(table)))
        return int(counted.scalar_one())


async def test_an_upload_is_a_document_a_job_and_an_original(
    library: Library, engine: AsyncEngine
) -> None:
    accepted = await library.register_upload(
        LOCAL_OWNER, Upload("a.md", b"# Hello", metadata={"year": 2025}, groups=["b", "a", "b"])
    )
    document = await library.get(LOCAL_OWNER, accepted.document_id)
    assert document.status == accepted.status == "queued"
    assert document.job_id == accepted.job_id
    assert (document.collection, document.uri, document.title) == (
        "default",
        "upload:///a.md",
        "a.md",
    )
    assert (document.metadata, document.groups) == ({"year": 2025}, ["a", "b"])
    assert (document.chunks, document.pages, document.version, document.warnings) == (
        0,
        None,
        None,
        [],
    )
    original = await library.content(LOCAL_OWNER, accepted.document_id)
    assert original.content == b"# Hello"
    assert (original.filename, original.media_type) == ("a.md", "text/markdown")
    assert await count(engine, "procrastinate_jobs") == 1


async def test_a_refused_upload_leaves_nothing(
    library: Library, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> int:
        raise RuntimeError("no job")

    monkeypatch.setattr(Jobs, "defer_document", refuse)
    with pytest.raises(RuntimeError):
        await library.register_upload(LOCAL_OWNER, Upload("a.md", b"text"), idempotency_key="k")
    for table in ("documents", "blobs", "procrastinate_jobs", "idempotency_keys", "collections"):
        assert await count(engine, table) == 0


async def test_the_same_name_again_is_the_same_document(
    library: Library, engine: AsyncEngine
) -> None:
    first = await library.register_upload(LOCAL_OWNER, Upload("a.md", b"one"))
    second = await library.register_upload(LOCAL_OWNER, Upload("a.md", b"two", groups=["g"]))
    assert second.document_id == first.document_id
    assert second.job_id != first.job_id
    assert (await library.content(LOCAL_OWNER, first.document_id)).content == b"two"
    assert (await library.get(LOCAL_OWNER, first.document_id)).groups == ["g"]
    assert await count(engine, "documents") == 1
    assert await count(engine, "blobs") == 1


async def test_fifty_repeats_at_once_are_one_upload(library: Library, engine: AsyncEngine) -> None:
    replies = await asyncio.gather(
        *(
            library.register_upload(LOCAL_OWNER, Upload("a.md", b"text"), idempotency_key="key")
            for _ in range(50)
        )
    )
    assert len(set(replies)) == 1
    assert await count(engine, "documents") == 1
    assert await count(engine, "procrastinate_jobs") == 1
    with pytest.raises(IdempotencyMismatch):
        await library.register_upload(LOCAL_OWNER, Upload("a.md", b"new"), idempotency_key="key")
    with pytest.raises(IdempotencyMismatch):
        await library.register_upload(
            LOCAL_OWNER, Upload("a.md", b"text", groups=["g"]), idempotency_key="key"
        )


async def test_idempotency_keys_belong_to_tenants(library: Library, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
    other = Caller(tenant_id=2, scopes=frozenset({"write"}))
    mine = await library.register_upload(LOCAL_OWNER, Upload("a", b"x"), idempotency_key="key")
    theirs = await library.register_upload(other, Upload("a", b"y"), idempotency_key="key")
    assert mine.document_id != theirs.document_id
    with pytest.raises(NotFound):
        await library.get(LOCAL_OWNER, theirs.document_id)


async def test_fifty_uploads_of_one_name_at_once_are_one_document(
    library: Library, engine: AsyncEngine
) -> None:
    replies = await asyncio.gather(
        *(
            library.register_upload(LOCAL_OWNER, Upload("a.md", b"%d" % number))
            for number in range(50)
        )
    )
    assert len({reply.document_id for reply in replies}) == 1
    assert await count(engine, "documents") == 1
    assert await count(engine, "blobs") == 1
    document = await library.get(LOCAL_OWNER, replies[0].document_id)
    assert document.job_id in {reply.job_id for reply in replies}


@pytest.mark.parametrize(
    ("upload", "error"),
    [
        (Upload("", b"x"), InvalidInput),
        (Upload("..", b"x"), InvalidInput),
        (Upload("a.md", b""), InvalidInput),
        (Upload("a.md", b"x", metadata=["no"]), InvalidInput),  # type: ignore[arg-type]
        (Upload("a.md", b"x", metadata={"a": "\0"}), InvalidInput),
        (Upload("a.md", b"x", metadata={"a": "\ud800"}), InvalidInput),
        (Upload("a.md", b"x", metadata={"a": float("nan")}), InvalidInput),
        (Upload("a.md", b"x", metadata={"a": 10**5000}), InvalidInput),
        (Upload("a.md", b"x", metadata={"a": {"b": object()}}), InvalidInput),
        (Upload("a.md", b"x", metadata={"a": "x" * 100_000}), InvalidInput),
        (Upload("a.md", b"x", groups="all"), InvalidInput),
        (Upload("a.md", b"x", groups=[""]), InvalidInput),
        (Upload("a.md", b"x", collection="unknown"), NotFound),
        (Upload("a.md", b"x" * 1001), BodyTooLarge),
    ],
)
async def test_bad_uploads_are_refused(
    engine: AsyncEngine, jobs: Jobs, settings: Settings, upload: Upload, error: type[Exception]
) -> None:
    small = settings.model_copy(update={"max_upload_bytes": 1000})
    library = Library(open_sessions(engine), jobs, small, Model())
    with pytest.raises(error):
        await library.register_upload(LOCAL_OWNER, upload)
    assert await count(engine, "documents") == 0


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\report.pdf", "report.pdf"),
        ("C:report.pdf", "report.pdf"),
        ("a\0b\r\n.txt", "ab.txt"),
        ("\u202etxt.exe", "txt.exe"),
        ("re: hello.eml", "re: hello.eml"),
        ("e\u0301.md", "é.md"),
        ("\ud800x.md", "x.md"),
        ("x" * 500 + ".pdf", "x" * 196 + ".pdf"),
    ],
)
def test_a_filename_is_a_name_and_nothing_else(sent: str, kept: str) -> None:
    assert plain_filename(sent) == kept


async def test_what_a_caller_may_not_see_is_not_there(library: Library) -> None:
    await library.create_collection(LOCAL_OWNER, "secret")
    hidden = await library.register_upload(
        LOCAL_OWNER, Upload("a.md", b"hidden", collection="secret")
    )
    grouped = await library.register_upload(LOCAL_OWNER, Upload("b.md", b"b", groups=["hr"]))
    public = await library.register_upload(LOCAL_OWNER, Upload("c.md", b"c"))
    caller = reader(collections=frozenset({"default"}), groups=frozenset({"sales"}))

    page = await library.list(caller)
    assert [document.id for document in page.documents] == [public.document_id]
    for document_id in (hidden.document_id, grouped.document_id, uuid4()):
        for call in (library.get, library.content, library.delete):
            with pytest.raises(NotFound, match="no such document"):
                await call(caller, document_id)
    with pytest.raises(NotFound):
        await library.list(caller, collection="secret")
    with pytest.raises(NotFound):
        await library.delete_collection(caller, "secret")
    with pytest.raises(NotFound):
        await library.register_upload(caller, Upload("x", b"x", collection="secret"))
    with pytest.raises(Forbidden):
        await library.create_collection(caller, "secret")
    with pytest.raises(Forbidden):
        await library.register_upload(caller, Upload("x", b"x", groups=["hr"]))
    with pytest.raises(Conflict):
        await library.register_upload(caller, Upload("b.md", b"overwritten"))
    assert [record.name for record in await library.list_collections(caller)] == ["default"]
    member = reader(groups=frozenset({"hr"}))
    assert (await library.get(member, grouped.document_id)).id == grouped.document_id


async def test_pages_neither_repeat_nor_miss(library: Library) -> None:
    expected = [
        (await library.register_upload(LOCAL_OWNER, Upload(f"{number}.md", b"x"))).document_id
        for number in range(7)
    ][::-1]
    seen: list[Any] = []
    cursor = None
    while True:
        page = await library.list(LOCAL_OWNER, limit=3, cursor=cursor)
        seen += [document.id for document in page.documents]
        # What comes meanwhile is newer than everything that is still to be listed.
        await library.register_upload(LOCAL_OWNER, Upload(f"later {len(seen)}", b"x"))
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == expected
    assert not (await library.list(LOCAL_OWNER, status="ready")).documents
    for limit in (0, -1, 10**9):
        with pytest.raises(InvalidInput):
            await library.list(LOCAL_OWNER, limit=limit)
    for bad in ("", "x", "e30", "bnVsbA", "WyIyMDI1LTAxLTAxIiwgIngiXQ", "\ud800"):
        with pytest.raises(InvalidInput):
            await library.list(LOCAL_OWNER, cursor=bad)


async def test_an_original_goes_with_the_last_document_that_needs_it(
    library: Library, engine: AsyncEngine
) -> None:
    one = await library.register_upload(LOCAL_OWNER, Upload("one.md", b"the same"))
    two = await library.register_upload(LOCAL_OWNER, Upload("two.md", b"the same"))
    assert await count(engine, "blobs") == 1
    assert (await library.delete(LOCAL_OWNER, one.document_id)).bytes == 0
    assert (await library.content(LOCAL_OWNER, two.document_id)).content == b"the same"
    assert (await library.delete(LOCAL_OWNER, two.document_id)).bytes == len(b"the same")
    assert await count(engine, "blobs") == 0
    with pytest.raises(NotFound):
        await library.delete(LOCAL_OWNER, two.document_id)


async def test_originals_survive_uploads_and_deletions_at_once(
    library: Library, engine: AsyncEngine
) -> None:
    async def come_and_go(name: str) -> None:
        for _ in range(5):
            accepted = await library.register_upload(LOCAL_OWNER, Upload(name, b"shared"))
            original = await library.content(LOCAL_OWNER, accepted.document_id)
            assert original.content == b"shared"
            await library.delete(LOCAL_OWNER, accepted.document_id)

    await asyncio.gather(*(come_and_go(f"{number}.md") for number in range(8)))
    assert await count(engine, "blobs") == 0
    assert await count(engine, "documents") == 0


async def test_collections_are_made_listed_and_deleted(
    library: Library, engine: AsyncEngine
) -> None:
    made = await library.create_collection(LOCAL_OWNER, "handbook-2025")
    assert (made.name, made.embedding_model, made.documents) == ("handbook-2025", "a model", 0)
    with pytest.raises(Conflict):
        await library.create_collection(LOCAL_OWNER, "handbook-2025")
    for name in ("", "-a", "A", "a b", "a" * 65, "ä", "a/b", "a\n"):
        with pytest.raises(InvalidInput):
            await library.create_collection(LOCAL_OWNER, name)
    upload = Upload("a.md", b"12345", collection="handbook-2025")
    accepted = await library.register_upload(LOCAL_OWNER, upload)
    removed = await library.delete_collection(LOCAL_OWNER, "handbook-2025")
    assert (removed.documents, removed.bytes) == (1, 5)
    assert await library.list_collections(LOCAL_OWNER) == []
    with pytest.raises(NotFound):
        await library.get(LOCAL_OWNER, accepted.document_id)
    for table in ("documents", "blobs", "collections"):
        assert await count(engine, table) == 0


async def test_a_collection_keeps_its_model(
    library: Library, engine: AsyncEngine, jobs: Jobs, settings: Settings
) -> None:
    await library.register_upload(LOCAL_OWNER, Upload("a.md", b"x"))
    other = Library(
        open_sessions(engine), jobs, settings, Model("another", "another digest", dimensions=8)
    )
    with pytest.raises(Conflict, match="a model"):
        await other.register_upload(LOCAL_OWNER, Upload("b.md", b"x"))


async def test_deleting_a_collection_and_uploading_into_it_at_once(
    library: Library, engine: AsyncEngine
) -> None:
    await library.create_collection(LOCAL_OWNER, "busy")

    async def upload(number: int) -> bool:
        try:
            await library.register_upload(
                LOCAL_OWNER, Upload(f"{number}.md", b"x", collection="busy")
            )
        except NotFound:
            return False
        return True

    results = await asyncio.gather(
        *(upload(number) for number in range(6)),
        library.delete_collection(LOCAL_OWNER, "busy"),
        *(upload(number) for number in range(6, 12)),
    )
    assert len(results) == 13
    for table in ("documents", "blobs", "collections"):
        assert await count(engine, table) == 0
