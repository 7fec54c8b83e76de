"""The page in the whole application; only what answers is scripted."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from app.access import LOCAL_OWNER, Caller
from app.answering.base import (
    Answer,
    AnswerEvent,
    Citation,
    Finished,
    Question,
    SourcesFound,
    TextDelta,
)
from app.config import Settings
from app.documents.records import CollectionRecord, DocumentRecord, Excerpt, Upload
from app.errors import GenerationUnavailable
from app.search.base import Hit
from app.web.views import (
    EXCERPT_CHARS,
    excerpt_span,
    exchange_of,
    reading_of,
    row_of,
    shelf_of,
    source_of,
)
from tests.service import HOME_URL, Service, open_service

PASSAGE = "A *delete* removes text and vectors in one transaction. Nothing of it remains."
QUOTE = "A *delete* removes text and vectors in one transaction."


def hit(chunk_id: int, title: str = "Documents", **values: Any) -> Hit:
    defaults: dict[str, Any] = {
        "chunk_id": chunk_id,
        "document_id": uuid4(),
        "collection": "default",
        "title": title,
        "uri": "file:///srv/documents.md",
        "text": PASSAGE,
        "heading": (title, "Deleting"),
        "page": 3,
        "start": 100,
        "end": 100 + len(PASSAGE),
        "score": 1.0,
        "content_hash": b"",
        "similarity": 0.9,
    }
    return Hit(**defaults | values)


def citation(of: Hit, marker: int, quote: str = QUOTE) -> Citation:
    start = of.start + of.text.index(quote)
    return Citation(
        marker=marker,
        chunk_id=of.chunk_id,
        document_id=of.document_id,
        title=of.title,
        uri=of.uri,
        page=of.page,
        start=start,
        end=start + len(quote),
        quote=quote,
    )


def answer(words: str, *citations: Citation, **values: Any) -> Answer:
    defaults: dict[str, Any] = {
        "sentences": (),
        "grounded": True,
        "mode": "extractive",
        "model": None,
        "cache": {},
    }
    return Answer(text=words, citations=citations, **defaults | values)


@dataclass
class ScriptedAnswerer:
    """Answers whatever it is asked with the same words, and remembers the questions."""

    hits: list[Hit] = field(default_factory=lambda: [hit(1), hit(2, "Never cited")])
    failure: Exception | None = None
    asked: list[tuple[Caller, Question]] = field(default_factory=list)
    words: str = "It is gone <b>at once</b> [1]."

    async def answer(self, caller: Caller, question: Question) -> AsyncGenerator[AnswerEvent]:
        self.asked.append((caller, question))
        if self.failure:
            raise self.failure
        yield SourcesFound(self.hits)
        yield TextDelta(self.words)
        yield Finished(
            answer(self.words, citation(self.hits[0], 1), notice="No model is configured.")
        )


Scripted = Callable[..., ScriptedAnswerer]


@pytest.fixture
async def scripted(service: Service) -> Scripted:
    """The default collection is there, and who answers in it can be told what to say."""
    await add_document(service, "any.md", "text")

    def script(**values: Any) -> ScriptedAnswerer:
        answerer = ScriptedAnswerer(**values)
        service.app.state.resources = replace(service.resources, answerer=answerer)
        return answerer

    return script


async def add_document(
    service: Service, filename: str, content: str, *, collection: str = "default"
) -> UUID:
    """A document that is ready, with its content as its parsed text."""
    library = service.resources.library
    accepted = await library.register_upload(
        LOCAL_OWNER, Upload(filename, content.encode(), collection)
    )
    async with service.resources.engine.begin() as connection:
        await connection.execute(
            text(
                """
                WITH version AS (
                  INSERT INTO document_versions (tenant_id, document_id, number, blob_sha256,
                    pipeline_digest, text, language, chunks_count, terms_count, terms,
                    first_chunk_id, last_chunk_id)
                  SELECT tenant_id, id, 1, blob_sha256, '', :text, 'english', 1, 0, '{}', 1, 1
                  FROM documents WHERE id = :id RETURNING id)
                UPDATE documents SET status = 'ready', current_version_id = version.id
                FROM version WHERE documents.id = :id
                """
            ),
            {"id": accepted.document_id, "text": content},
        )
    return accepted.document_id


# --- the page -------------------------------------------------------------------------------------


async def test_the_first_visit_shows_an_empty_library(service: Service) -> None:
    reply = await service.client.get("/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "No documents yet" in reply.text
    assert "No language model is configured" in reply.text


async def test_a_policy_without_inline_scripts_and_a_page_that_needs_none(
    service: Service, scripted: Scripted
) -> None:
    scripted()
    pages = [
        await service.client.get("/"),
        await service.client.post("/", data={"question": "Where?"}),
        await service.client.get(f"/documents/{uuid4()}"),
    ]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert page.headers["referrer-policy"] == "same-origin"
        assert page.headers["cache-control"] == "no-store"
        assert "<style" not in page.text
        assert not re.search(r"<script(?![^>]*\bsrc=)", page.text)
        assert not re.search(r"\s(style|on\w+)=", page.text)
        assert re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text) == []


async def test_scripts_and_style_are_served_and_asked_for_again(service: Service) -> None:
    page = (await service.client.get("/")).text
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        assert f"/static/{name}" in page
        reply = await service.client.get(f"/static/{name}")
        assert reply.headers["content-type"].startswith(kind)
        assert reply.headers["cache-control"] == "no-cache"
        again = await service.client.get(
            f"/static/{name}", headers={"If-None-Match": reply.headers["etag"]}
        )
        assert again.status_code == 304


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fpages.py", "%2Fetc%2Fpasswd", "%00"])
async def test_nothing_else_is_served(service: Service, name: str) -> None:
    assert (await service.client.get(f"/static/{name}")).status_code in (404, 405, 422)


async def test_the_modules_that_scripts_import_are_there(service: Service) -> None:
    waiting, known = ["page.js"], set[str]()
    while waiting:
        name = waiting.pop()
        known.add(name)
        script = await service.client.get(f"/static/{name}")
        assert script.status_code == 200, name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.text
        )
        waiting += set(re.findall(r'from "\./([\w.]+)"', script.text)) - known
    assert {"ask.js", "library.js", "markdown.js", "service.js"} <= known


async def test_the_slots_that_scripts_fill_exist(service: Service) -> None:
    page = (await service.client.get("/")).text
    for name in ("ask.js", "library.js", "service.js", "elements.js"):
        script = (await service.client.get(f"/static/{name}")).text
        for template in re.findall(r'copyOf\("(\w+)"\)', script):
            assert f'<template id="{template}-template">' in page
        for identity in re.findall(r'byId\("([\w-]+)"\)', script):
            keyed = identity in ("key-dialog", "key-form", "key-problem", "key")
            assert keyed or f'id="{identity}"' in page, identity


# --- asking without scripts -----------------------------------------------------------------------


async def test_a_question_is_answered_with_footnotes(service: Service, scripted: Scripted) -> None:
    answerer = scripted()
    reply = await service.client.post("/", data={"question": " Is it gone? ", "collection": "a"})
    assert reply.status_code == 404  # the collection does not exist, so nothing was asked
    assert answerer.asked == []

    await service.client.post("/api/collections", json={"name": "a"})
    reply = await service.client.post("/", data={"question": " Is it gone? ", "collection": "a"})
    assert reply.status_code == 200
    [(caller, question)] = answerer.asked
    assert caller == LOCAL_OWNER
    assert (question.text, question.collections) == ("Is it gone?", ("a",))
    assert '<a class="marker" href="#e1-note-1"' in reply.text
    assert 'id="e1-note-1"' in reply.text
    assert 'href="#e1-mark-1"' in reply.text
    assert "It is gone &lt;b&gt;at once&lt;/b&gt;" in reply.text
    assert "<mark>A </mark><em><mark>delete</mark></em>" in reply.text
    assert "No model is configured." in reply.text
    assert "Never cited" in reply.text


@pytest.mark.parametrize("question", ["", "   ", "x" * 9000])
async def test_a_question_that_makes_no_sense_is_refused_in_words(
    service: Service, scripted: Scripted, question: str
) -> None:
    answerer = scripted()
    reply = await service.client.post("/", data={"question": question})
    assert reply.status_code == 422
    assert 'role="alert"' in reply.text
    assert answerer.asked == []


async def test_a_failure_is_shown_with_what_to_do(service: Service, scripted: Scripted) -> None:
    scripted(failure=GenerationUnavailable("All servers are away.", hint="Start <one>."))
    reply = await service.client.post("/", data={"question": "Why?"})
    assert reply.status_code == 503
    assert "All servers are away." in reply.text
    assert "Start &lt;one&gt;." in reply.text
    assert reply.headers["x-request-id"] in reply.text
    assert ">Why?</textarea>" in reply.text


# --- the library ----------------------------------------------------------------------------------


async def test_collections_and_documents_are_listed(service: Service) -> None:
    await service.client.post("/api/collections", json={"name": "handbook"})
    document_id = await add_document(service, "<i>travel.md", "Go.", collection="handbook")
    shown = (await service.client.get("/", params={"collection": "handbook"})).text
    assert f'href="/documents/{document_id}"' in shown
    assert "&lt;i&gt;travel.md" in shown
    assert "<option selected>handbook</option>" in shown
    assert 'data-collection="handbook"' in shown


async def test_documents_come_in_pages(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.pages.DOCUMENTS_PER_PAGE", 2)
    for number in range(3):
        await add_document(service, f"{number}.md", "text")
    seen: list[str] = []
    address: str | None = "/"
    while address:
        page = (await service.client.get(address)).text
        seen += re.findall(r">(\d\.md)</a>", page)
        older = re.search(r'<a href="([^"]+)">Older documents</a>', page)
        address = older.group(1).replace("&amp;", "&") if older else None
    assert seen == ["2.md", "1.md", "0.md"]


async def test_an_unknown_collection_is_said_to_be_unknown(service: Service) -> None:
    await add_document(service, "a.md", "text")
    reply = await service.client.get("/", params={"collection": "elsewhere"})
    assert reply.status_code == 404
    assert "There is no such collection." in reply.text


# --- one document ---------------------------------------------------------------------------------


async def test_a_document_opens_at_the_cited_place(service: Service) -> None:
    lines = [f"Line {number} of a *long* text." for number in range(2000)]
    content = "\n".join(lines)
    start = content.index("Line 1500 of")
    document_id = await add_document(service, "long.md", content)
    span = {"start": start, "end": start + len(lines[1500])}
    page = (await service.client.get(f"/documents/{document_id}", params=span)).text
    assert '<mark id="cited">Line 1500 of a </mark>' in page
    assert "Line 1499 of" in page
    assert "Line 3 of" not in page
    assert "Earlier in the text" in page
    assert "Further in the text" in page


async def test_a_document_can_be_read_from_end_to_end(service: Service) -> None:
    content = "\n\n".join(f"Paragraph {number} of the text." for number in range(900))
    document_id = await add_document(service, "long.md", content)
    read: list[str] = []
    address: str | None = f"/documents/{document_id}"
    while address:
        page = (await service.client.get(address)).text
        read += re.findall(r"Paragraph (\d+) of the text\.", page)
        further = re.search(r'<a href="([^"]+)">Further in the text</a>', page)
        address = further.group(1) if further else None
    assert read == [str(number) for number in range(900)]


async def test_hostile_text_of_a_document_is_only_text(service: Service) -> None:
    hostile = '<script>alert(1)</script> ![x](https://evil.example/x.png) <mark id="cited">'
    document_id = await add_document(service, "hostile.html", hostile)
    page = (await service.client.get(f"/documents/{document_id}?start=0&end=5")).text
    assert "<script>alert" not in page
    assert "evil.example" not in page
    assert page.count('<mark id="cited">') == 1


@pytest.mark.parametrize("query", ["?start=5&end=2", "?start=9000&end=9001", "?at=99999", ""])
async def test_places_that_are_not_there_do_no_harm(service: Service, query: str) -> None:
    document_id = await add_document(service, "a.md", "Short.")
    assert (await service.client.get(f"/documents/{document_id}{query}")).status_code == 200


@pytest.mark.parametrize("query", ["?at=-1", "?at=1e9", "?start=99999999999999999999&end=1"])
async def test_places_that_are_none_are_refused(service: Service, query: str) -> None:
    document_id = await add_document(service, "a.md", "Short.")
    assert (await service.client.get(f"/documents/{document_id}{query}")).status_code == 422


async def test_a_document_that_is_not_there_is_a_page_of_its_own(service: Service) -> None:
    reply = await service.client.get(f"/documents/{uuid4()}")
    assert reply.status_code == 404
    assert "There is no such document." in reply.text


# --- where keys are asked for ---------------------------------------------------------------------


@pytest.fixture
async def guarded(
    service_settings: Settings, shared_embedder: None, service: Service
) -> AsyncIterator[tuple[Service, dict[str, str]]]:
    """The same database behind keys, with a document, and the header of a key."""
    await add_document(service, "secret.md", "A secret.")
    header = await service.key("read")
    async with open_service(service_settings.model_copy(update={"auth": "on"})) as opened:
        yield opened, header


async def test_without_a_key_the_page_is_empty(
    guarded: tuple[Service, dict[str, str]],
) -> None:
    service, header = guarded
    page = await service.client.get("/")
    assert page.status_code == 200
    assert "data-key-needed" in page.text
    assert 'id="key-dialog"' in page.text
    assert "secret" not in page.text
    with_key = await service.client.get("/", headers=header)
    assert "secret.md" in with_key.text


async def test_without_a_key_a_document_is_not_shown(
    guarded: tuple[Service, dict[str, str]],
) -> None:
    service, header = guarded
    listed = await service.client.get("/api/documents", headers=header)
    address = f"/documents/{listed.json()['documents'][0]['id']}"
    assert "secret" not in (await service.client.get(address)).text
    assert "A secret." in (await service.client.get(address, headers=header)).text


async def test_without_a_key_nothing_is_answered(
    guarded: tuple[Service, dict[str, str]],
) -> None:
    service, _ = guarded
    assert (await service.client.post("/", data={"question": "Secret?"})).status_code == 401
    wrong = {"Authorization": "Bearer fn_wrong"}
    assert (await service.client.get("/", headers=wrong)).status_code == 401


async def test_a_form_of_another_site_is_refused(service: Service, scripted: Scripted) -> None:
    answerer = scripted()
    for origin, status in (("https://evil.example", 403), ("null", 403), (HOME_URL, 200)):
        reply = await service.client.post(
            "/", data={"question": "Why?"}, headers={"Origin": origin}
        )
        assert reply.status_code == status
    assert len(answerer.asked) == 1


# --- views ----------------------------------------------------------------------------------------


def test_notes_stand_in_order_with_all_their_quotes() -> None:
    hits = [hit(1, "A"), hit(2, "B"), hit(3, "C")]
    given = answer(
        "So [2]. And so [1][2].",
        citation(hits[1], 2),
        citation(hits[0], 1),
        citation(hits[1], 2, "Nothing of it remains."),
    )
    shown = exchange_of("Why?", given, hits, took_ms=1234)
    assert [note.number for note in shown.notes] == [1, 2]
    assert shown.notes[1].source.title == "B"
    assert shown.notes[1].source.heading == "Deleting"
    assert shown.notes[1].source.page == "page 3"
    assert "Nothing of it remains." in shown.notes[1].quote
    assert shown.notes[1].passage.count("<mark>") >= 2
    assert [source.title for source in shown.further] == ["C"]
    assert shown.took == "1.2 s."


def test_a_citation_without_its_passage_still_has_a_note() -> None:
    [note] = exchange_of("Why?", answer("So [1].", citation(hit(1), 1)), [], 1).notes
    assert note.passage == ""
    assert "delete" in note.quote


def test_rows_and_shelves() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    shelf = shelf_of(CollectionRecord("a-b", "model", 0, 7, 70, now))
    assert (shelf.count, shelf.href) == (7, "/?collection=a-b#library")
    record = DocumentRecord(
        id=uuid4(), collection="a-b", title="t", uri="u", media_type="m", size_bytes=1,
        status="queued", reason=None, metadata={}, groups=[], job_id=1, created_at=now,
        updated_at=now, chunks=0, pages=None, version=None, warnings=[],
    )  # fmt: skip
    assert row_of(record).chunks is None


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("upload:///note%201%3F.md", "note 1?.md, uploaded"),
        ("file:///srv/a%23b/c.md", "/srv/a#b/c.md"),
        ("https://example.com/a?b", "https://example.com/a?b"),
    ],
)
def test_sources_are_written_for_people(uri: str, source: str) -> None:
    assert source_of(uri) == source


@pytest.mark.parametrize("total", [0, 10, EXCERPT_CHARS - 1, EXCERPT_CHARS, 3 * EXCERPT_CHARS])
def test_an_excerpt_never_loses_a_character(total: int) -> None:
    """Following the links from the start meets every part, be there lines or not."""
    whole = "x" * total
    at, met = 0, 0
    while True:
        first, last = excerpt_span(at, None)
        reading = reading_of(uuid4(), Excerpt(whole[first:last], first, total), None)
        met += reading.text.count("x")
        if reading.later_href is None:
            break
        following = int(reading.later_href.split("at=")[1].split("#")[0])
        assert following > at
        at = following
    assert met == total
