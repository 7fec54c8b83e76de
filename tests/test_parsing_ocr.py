"""Pictures of text: read by the Tesseract that is installed, refused with a reason without one."""

import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import Settings
from app.errors import DocumentRejected
from ingestion.parsing import ocr
from ingestion.parsing.documents import parse_document
from ingestion.parsing.sandbox import ParserPool
from tests import samples

SCAN = samples.pdf([[], []])
PAGES = 2


def png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(8) * 8)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


TESSERACT = """#!{python}
import sys
if sys.argv[1:] == ["--list-langs"]:
    print('List of available languages in "/usr/share/tessdata/" (4):')
    print("deu\\neng\\nosd\\nsnum")
elif sys.argv[1:] == ["stdin", "stdout", "-l", "deu+eng"]:
    picture = sys.stdin.buffer.read()
    kind = "page" if picture.startswith(b"P5 ") else "image" if b"PNG" in picture[:8] else ""
    if not kind:
        sys.exit("unknown format")
    size = b" ".join(picture.split()[1:3]).decode() if kind == "page" else ""
    print(f"Words of a scanned {{kind}} {{size}}".strip(), end="\\n\\f")
else:
    sys.exit("unknown arguments")
"""
"""Answers as Tesseract does: languages, and text for a picture on standard input."""


@pytest.fixture
def tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(TESSERACT.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    ocr.languages.cache_clear()
    yield
    ocr.languages.cache_clear()


@pytest.fixture
def no_tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    ocr.languages.cache_clear()
    yield
    ocr.languages.cache_clear()


def refusal(content: bytes, filename: str) -> str:
    with pytest.raises(DocumentRejected) as caught:
        parse_document(content, filename)
    return caught.value.reason


@pytest.mark.usefixtures("no_tesseract")
@pytest.mark.parametrize(("content", "filename"), [(SCAN, "scan.pdf"), (png(), "photo.png")])
def test_without_tesseract_a_picture_is_refused_with_what_to_do(
    content: bytes, filename: str
) -> None:
    assert refusal(content, filename) == "no text (install tesseract)"


@pytest.mark.usefixtures("tesseract")
def test_a_scan_is_read_page_by_page() -> None:
    parsed = parse_document(SCAN, "scan.pdf")
    # A letter page at 300 dots per inch.
    assert [parsed.text[page.start : page.end] for page in parsed.pages] == [
        "Words of a scanned page 2550 3300"
    ] * PAGES
    assert parsed.warnings == ()


@pytest.mark.usefixtures("tesseract")
def test_only_pages_without_text_are_scanned() -> None:
    parsed = parse_document(samples.pdf([["Typed words."], []]), "mixed.pdf")
    assert parsed.text == "Typed words.\n\nWords of a scanned page 2550 3300"


@pytest.mark.usefixtures("tesseract")
def test_a_picture_is_read_and_one_that_cannot_be_is_refused() -> None:
    assert parse_document(png(), "photo.png").text == "Words of a scanned image"
    broken = b"II*\x00" + bytes(60)
    assert refusal(broken, "a.tiff") == "no text: its image could not be read by OCR"


@pytest.mark.usefixtures("tesseract")
async def test_a_parsing_child_finds_tesseract_within_its_walls(tmp_path: Path) -> None:
    pool = ParserPool(Settings(home=tmp_path))
    try:
        parsed = await pool.parse(SCAN, "scan.pdf")
    finally:
        await pool.close()
    assert parsed.text.startswith("Words of a scanned page")
