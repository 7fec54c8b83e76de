"""What becomes of documents with personal data, by upload and by command."""
# ruff: noqa: F811 - the fixtures come by import

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER, Caller
from app.config import Settings
from app.db.session import open_sessions
from app.documents.library import Library
from app.documents.queue import Queue
from app.documents.records import DocumentRecord, PersonalDataCount, Upload
from app.errors import Conflict, Forbidden, NotFound, ScanUnavailable
from app.jobs import Jobs
from ingestion.claims import NOT_KEPT
from ingestion.pipeline import open_tools
from ingestion.runner import Order, sync
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent, contents
from tests.service import Service
from tests.test_collections import (
    Silent,
    Working,
    _impatience,  # noqa: F401 - a fixture
    change,
    embedder,  # noqa: F401 - a fixture
    jobs,  # noqa: F401 - a fixture
    library,  # noqa: F401 - a fixture
    settled,
    working,  # noqa: F401 - a fixture
)

SECRETS = ("ann@lee.net", "415 555 2671", "4155552671", "4242 4242", "bob@lee.net")
LETTER = (
    b"---\nauthor: bob@lee.net\n---\n# From ann@lee.net\n\nWrite to ann@lee.net or call"
    b" +1 415 555 2671.\n\n| Card |\n|---|\n| 4242 4242 4242 4242 |\n"
)
CLEAN = b"# Plain\n\nNobody is named in here."


async def put(library: Library) -> UUID:
    accepted = await library.register_upload(
        LOCAL_OWNER, Upload("letter.md", LETTER, metadata={"to": ["ann@lee.net"], "year": 2024})
    )
    return accepted.document_id


async def everything(engine: AsyncEngine, *, without: str = "blobs") -> str:
    """All that the database holds, but for the originals and finished jobs, as one text."""
    async with engine.connect() as connection:
        tables = await connection.execute(
            text(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
                " AND tablename NOT LIKE 'procrastinate%'"
            )
        )
        parts: list[str] = []
        for (table,) in tables.all():
            if table != without:
                rows = await connection.execute(text(f"SELECT t::text FROM {table} AS t"))  # noqa: S608
                parts += [row[0] for row in rows]
        return "\n".join(parts)


async def only(library: Library) -> DocumentRecord:
    [document] = (await library.list(LOCAL_OWNER)).documents
    return document


async def test_report_counts_and_finds_as_before(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await library.create_collection(LOCAL_OWNER, "default", {"personal_data": "report"})
    await put(library)
    await library.register_upload(LOCAL_OWNER, Upload("plain.md", CLEAN))
    async with working():
        await settled(library, engine)
    [letter] = (await library.list(LOCAL_OWNER, personal_data=True)).documents
    assert letter.personal_data == {"email": 2, "phone": 1, "card": 1}
    assert "ann@lee.net" in letter.title
    overview = await library.get_collection(LOCAL_OWNER, "default")
    assert overview.personal_data["email"] == PersonalDataCount(documents=1, found=2)
    [plain] = (await library.list(LOCAL_OWNER, personal_data=False)).documents
    assert (plain.uri, plain.personal_data) == ("upload:///plain.md", {})
    await assert_consistent(engine)


async def test_mask_leaves_no_trace_outside_the_original(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await library.create_collection(LOCAL_OWNER, "default", {"personal_data": "mask"})
    document_id = await put(library)
    async with working():
        await settled(library, engine)
    document = await only(library)
    assert (document.status, document.title) == ("ready", "From [e-mail address]")
    assert document.personal_data == {"email": 2, "phone": 1, "card": 1}
    assert document.metadata == {
        "author": "[e-mail address]",
        "to": ["[e-mail address]"],
        "year": 2024,
    }
    kept = await everything(engine)
    assert [secret for secret in SECRETS if secret in kept] == []
    assert "lee" not in kept, "index terms are personal data as well"
    assert "[card number]" in repr(await contents(engine))
    await assert_consistent(engine)
    reader = Caller(tenant_id=1, scopes=frozenset({"read", "write"}))
    with pytest.raises(Forbidden, match="masked"):
        await library.content(reader, document_id)
    assert (await library.content(LOCAL_OWNER, document_id)).content == LETTER


async def test_refuse_keeps_nothing_but_the_name_and_the_counts(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await library.create_collection(LOCAL_OWNER, "default", {"personal_data": "refuse"})
    document_id = await put(library)
    async with working():
        await settled(library, engine)
    document = await only(library)
    assert (document.status, document.chunks, document.version) == ("failed", 0, None)
    assert document.reason is not None
    assert document.reason.endswith("2 e-mail addresses, 1 phone number, 1 card number")
    assert (document.personal_data, document.metadata) == (
        {"email": 2, "phone": 1, "card": 1},
        {},
    )
    kept = await everything(engine, without="")
    assert [secret for secret in SECRETS if secret in kept] == []
    with pytest.raises(NotFound):
        await library.content(LOCAL_OWNER, document_id)
    await assert_consistent(engine)


async def test_a_stricter_policy_takes_out_what_serves(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await put(library)
    await library.register_upload(LOCAL_OWNER, Upload("plain.md", CLEAN))
    async with working():
        await settled(library, engine)
        assert "ann@lee.net" in repr(await contents(engine))
        await change(library, personal_data="mask")
        await settled(library, engine)
        assert [one for one in SECRETS if one in await everything(engine)] == []
        await change(library, personal_data="refuse")
        await settled(library, engine)
    assert list(await contents(engine)) == ["upload:///plain.md"]
    [refused] = (await library.list(LOCAL_OWNER, status="failed")).documents
    assert (refused.title, refused.version) == ("letter.md", None)
    assert [one for one in SECRETS if one in await everything(engine, without="")] == []
    assert (await library.get_collection(LOCAL_OWNER, "default")).documents == 1
    await assert_consistent(engine)


async def test_what_was_refused_is_not_there_to_be_tried_again(
    library: Library, jobs: Jobs, working: Working, engine: AsyncEngine
) -> None:
    queue = Queue(open_sessions(engine), jobs, Settings())
    await library.create_collection(LOCAL_OWNER, "default", {"personal_data": "refuse"})
    document_id = await put(library)
    async with working():
        await settled(library, engine)
        before = await only(library)
        with pytest.raises(Conflict, match="refused") as told:
            await queue.retry_document(LOCAL_OWNER, document_id)
        assert "upload it again" in told.value.hint
        retried = await queue.retry_failed(LOCAL_OWNER)
        assert (retried.queued, retried.skipped) == (0, 1)
        assert await only(library) == before
        # Nor one that an earlier release queued.
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE documents SET status = 'queued', reason = NULL"))
            await jobs.defer_document(connection, document_id)
        await settled(library, engine)
    document = await only(library)
    assert (document.status, document.reason) == ("failed", NOT_KEPT)


async def test_a_refused_edit_leaves_the_version_that_passed(
    library: Library, jobs: Jobs, working: Working, engine: AsyncEngine
) -> None:
    await library.create_collection(LOCAL_OWNER, "default", {"personal_data": "refuse"})
    await library.register_upload(LOCAL_OWNER, Upload("letter.md", CLEAN))
    async with working():
        await settled(library, engine)
        await put(library)
        await settled(library, engine)
    document = await only(library)
    assert (document.status, document.title, document.version) == ("failed", "Plain", 1)
    assert (await library.content(LOCAL_OWNER, document.id)).content == CLEAN
    with pytest.raises(Conflict, match="refused"):
        await Queue(open_sessions(engine), jobs, Settings()).retry_document(
            LOCAL_OWNER, document.id
        )
    assert [one for one in SECRETS if one in await everything(engine, without="")] == []
    await assert_consistent(engine)


# --- by command -----------------------------------------------------------------------------------


@pytest.fixture
async def ingest(
    settings: Settings, engine: AsyncEngine, embedder: WordEmbedder, tmp_path: Path
) -> AsyncIterator[Callable[[], Any]]:
    async with open_tools(settings, engine, embedder) as tools:

        async def run() -> Any:
            return await sync(Order([str(tmp_path)], "default"), tools, Silent())

        yield run


async def test_folders_under_each_policy(
    library: Library, engine: AsyncEngine, tmp_path: Path, ingest: Callable[[], Any]
) -> None:
    (tmp_path / "letter.md").write_bytes(LETTER)
    (tmp_path / "plain.md").write_bytes(CLEAN)
    assert (await ingest()).counts["added"] == 2
    await change(library, personal_data="mask")
    assert (await ingest()).counts["updated"] == 2
    assert [one for one in SECRETS if one in await everything(engine)] == []
    await change(library, personal_data="refuse")
    report = await ingest()
    assert (report.counts["updated"], report.counts["failed"]) == (1, 1)
    assert "personal data" in report.failures[0].reason
    assert len(await contents(engine)) == 1
    assert [one for one in SECRETS if one in await everything(engine, without="")] == []
    await assert_consistent(engine)
    # It is not read again until it changes.
    assert (await ingest()).counts["failed"] == 1
    (tmp_path / "letter.md").write_bytes(CLEAN)
    assert (await ingest()).counts["added"] == 1
    await assert_consistent(engine)


async def test_without_the_packages_a_run_ends_and_says_what_to_do(
    library: Library,
    engine: AsyncEngine,
    tmp_path: Path,
    ingest: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await library.create_collection(LOCAL_OWNER, "default", {"personal_data": "report"})
    (tmp_path / "letter.md").write_bytes(LETTER)
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(ScanUnavailable) as missing:
        await ingest()
    assert "footnote[pii]" in missing.value.hint
    assert await contents(engine) == {}


async def test_without_the_packages_an_upload_fails_with_the_reason(
    library: Library, working: Working, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library.create_collection(LOCAL_OWNER, "default", {"personal_data": "mask"})
    await put(library)
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    async with working():
        await settled(library, engine)
    document = await only(library)
    assert document.status == "failed"
    assert "scanned for personal data" in (document.reason or "")


# --- over HTTP ------------------------------------------------------------------------------------


async def test_counts_and_originals_over_http(service: Service) -> None:
    client = service.client
    await client.post(
        "/api/collections", json={"name": "default", "settings": {"personal_data": "mask"}}
    )
    sent = await client.post("/api/documents", files={"file": ("letter.md", LETTER)})
    document_id = sent.json()["document_id"]
    async with service.resources.engine.begin() as connection:
        await connection.execute(
            text("""UPDATE documents SET personal_data = '{"email": 2, "card": 1}'""")
        )
    shown = (await client.get(f"/api/documents/{document_id}")).json()
    assert shown["personal_data"] == {"email": 2, "card": 1}
    for wanted, count in (("true", 1), ("false", 0)):
        listed = await client.get("/api/documents", params={"personal_data": wanted})
        assert len(listed.json()["documents"]) == count
    detail = (await client.get("/api/collections/default")).json()
    assert detail["personal_data"] == {
        "card": {"documents": 1, "found": 1},
        "email": {"documents": 1, "found": 2},
    }
    reader, admin = await service.key("read"), await service.key("read", "admin")
    path = f"/api/documents/{document_id}/content"
    refused = await client.get(path, headers=reader)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "admin" in refused.json()["hint"]
    assert (await client.get(path, headers=admin)).content == LETTER
