"""Uploads whose name, content and declared type contradict each other for certain."""

import io
import zipfile

import pytest

from app.documents.contents import check_content
from app.errors import UnsupportedMedia
from tests.service import Service

PDF = b"%PDF-1.7\n1 0 obj"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
JPEG = b"\xff\xd8\xff\xe0" + bytes(16)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512)
PROGRAM = b"\x7fELF" + bytes(60)
TEXT = b"Nothing but words."


def zipped(*, before: bytes = b"") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("word/document.xml", "<document/>")
    return before + content.getvalue()


@pytest.mark.parametrize(
    ("filename", "content", "media_type"),
    [
        ("a.pdf", PDF, "application/pdf"),
        ("a.PDF", b"\n\n" + PDF, None),
        ("a.pdf", PDF, "application/octet-stream"),
        ("a.pdf", PDF, "text/plain"),
        ("a.docx", zipped(), "application/zip"),
        ("a.docx", zipped(), "application/vnd.openxmlformats-officedocument.x; charset=utf-8"),
        ("a.xlsx", OLE, None),  # encrypted, as the worker will say
        ("a.zip", zipped(before=b"MZ, a program that unpacks itself"), None),
        ("a.zip", b"PK\x05\x06" + bytes(18), None),
        ("a.png", JPEG, "image/webp"),
        ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(16), None),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 ", None),
        # Anything may be text, and anything may have any other name.
        ("a.txt", PDF, "application/pdf"),
        ("a.md", TEXT, "image/png"),
        ("a.doc", TEXT, None),
        ("a.xls", b"<html><table>", None),
        ("README", PNG, None),
        ("a.unknown", PROGRAM, None),
    ],
)
def test_what_may_be_true_is_let_in(filename: str, content: bytes, media_type: str | None) -> None:
    check_content(filename, content, media_type)


@pytest.mark.parametrize(
    ("filename", "content", "media_type", "told"),
    [
        ("a.pdf", PNG, None, "no PDF"),
        ("a.pdf", TEXT, "application/pdf", "no PDF"),
        ("a.pdf", bytes(1100) + PDF, None, "no PDF"),
        ("a.docx", TEXT, None, "no ZIP"),
        ("a.xlsx", PDF, None, "no ZIP"),
        ("a.pptx", PROGRAM, None, "no ZIP"),
        ("a.zip", OLE, None, "no ZIP"),
        ("a.epub", TEXT, None, "no ZIP"),
        ("a.png", zipped(), "image/png", "no picture"),
        ("a.jpeg", PROGRAM, None, "no picture"),
        ("a.pdf", PDF, "image/png", "sent as image/png"),
        ("a.png", PNG, "application/pdf", "sent as application/pdf"),
        ("a.docx", zipped(), "application/pdf", "sent as application/pdf"),
    ],
)
def test_what_cannot_be_true_is_refused(
    filename: str, content: bytes, media_type: str | None, told: str
) -> None:
    with pytest.raises(UnsupportedMedia, match=told):
        check_content(filename, content, media_type)


async def test_an_upload_that_cannot_be_true_is_a_415_and_leaves_nothing(service: Service) -> None:
    for name, content, media_type in (
        ("report.pdf", PNG, "application/pdf"),
        ("report.pdf", PDF, "image/png"),
    ):
        reply = await service.client.post(
            "/api/documents", files={"file": (name, content, media_type)}
        )
        assert reply.status_code == 415, reply.text
        assert reply.json()["code"] == "unsupported_media_type"
        assert "report.pdf" in reply.json()["detail"]
    assert (await service.client.get("/api/documents")).json()["documents"] == []
