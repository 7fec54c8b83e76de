"""What a file is: by its name and by its content, and what follows when the two disagree."""

import io
import zipfile
from pathlib import PurePosixPath

from app.errors import DocumentRejected
from ingestion.parsing import formats
from ingestion.parsing.decoding import is_text
from ingestion.parsing.drafts import ENCRYPTED
from ingestion.parsing.formats import BY_EXTENSION, Family, Format, Reader

_SIGNATURES: tuple[tuple[int, bytes, Format], ...] = (
    (0, b"{\\rtf", formats.RTF),
    (0, b"\x89PNG\r\n\x1a\n", formats.PNG),
    (0, b"\xff\xd8\xff", formats.JPEG),
    (0, b"GIF87a", formats.GIF),
    (0, b"GIF89a", formats.GIF),
    (0, b"II*\x00", formats.TIFF),
    (0, b"MM\x00*", formats.TIFF),
    (8, b"WEBP", formats.WEBP),
    (8, b"WAVE", formats.SOUND),
    (8, b"AVI ", formats.VIDEO),
    (4, b"ftypheic", formats.HEIF),
    (4, b"ftypheix", formats.HEIF),
    (4, b"ftypmif1", formats.HEIF),
    (4, b"ftypavif", formats.HEIF),
    (4, b"ftypM4A", formats.SOUND),
    (4, b"ftyp", formats.VIDEO),
    (0, b"\x1aE\xdf\xa3", formats.VIDEO),
    (0, b"ID3", formats.SOUND),
    (0, b"OggS", formats.SOUND),
    (0, b"fLaC", formats.SOUND),
    (0, b"wOFF", formats.FONT),
    (0, b"wOF2", formats.FONT),
    (0, b"\x1f\x8b", formats.GZIP),
    (0, b"BZh", formats.BZIP2),
    (0, b"\xfd7zXZ\x00", formats.XZ),
    (0, b"7z\xbc\xaf\x27\x1c", formats.SEVEN_ZIP),
    (0, b"Rar!\x1a\x07", formats.RAR),
    (257, b"ustar", formats.TAR),
    (0, b"\x7fELF", formats.PROGRAM),
    (0, b"\xcf\xfa\xed\xfe", formats.PROGRAM),
    (0, b"\xce\xfa\xed\xfe", formats.PROGRAM),
    (0, b"\xca\xfe\xba\xbe", formats.PROGRAM),
    (0, b"\x00asm", formats.PROGRAM),
    (0, b"SQLite format 3\x00", formats.DATABASE),
    (0, b"!BDN", formats.OUTLOOK_DATA),
    (0, b"ITSF\x03", formats.HELP),
    (0, b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d", formats.ONENOTE),
    (0, b"\xffWPC", formats.WORDPERFECT),
)
_TEXT_OPENINGS: tuple[tuple[bytes, Format], ...] = (
    (b"<!doctype html", formats.HTML),
    (b"<html", formats.HTML),
    (b"<?xml", formats.XML),
    (b"mime-version:", formats.MAIL),
    (b"return-path:", formats.MAIL),
    (b"received:", formats.MAIL),
    (b"message-id:", formats.MAIL),
    (b"%!ps", formats.PLAIN),
    (b"#!/", formats.SOURCE),
    (b"<?php", formats.SOURCE),
)
_TEXT_SIGNATURES = (b"%PDF-", b"{\\rtf")
"""Of formats whose bytes can all be those of a text."""
_ZIP_ENTRY = b"PK\x01\x02"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_ENCRYPTION_STREAMS = ("EncryptedPackage", "EncryptedSummary")
_OLE_STREAMS: tuple[tuple[str, Format], ...] = (
    ("WordDocument", formats.DOC),
    ("Workbook", formats.XLS),
    ("PowerPoint Document", formats.PPT),
    ("__properties_version1.0", formats.MSG),
    ("VisioDocument", formats.VISIO),
    ("MatOST", formats.WORKS),
    ("FileHeader", formats.HWP),
    ("Book", formats.XLS),
)
_ZIP_MEMBERS: tuple[tuple[str, Format], ...] = (
    ("word/", formats.DOCX),
    ("xl/workbook.bin", formats.XLSB),
    ("xl/", formats.XLSX),
    ("ppt/", formats.PPTX),
    ("visio/", formats.VISIO),
    ("FixedDocSeq.fdseq", formats.XPS),
    ("FixedDocumentSequence.fdseq", formats.XPS),
    ("META-INF/container.xml", formats.EPUB),
)
_BY_MEDIA_TYPE = {known.media_type: known for known in BY_EXTENSION.values()}
PDF_HEADER_WITHIN_BYTES = 1024
ZIP_ENTRIES_MAX = 50_000
MEDIA_TYPE_BYTES_MAX = 256
MANIFEST_BYTES_MAX = 1024 * 1024


def identify(content: bytes, filename: str) -> Format:
    """The format to read a file as.

    Raises DocumentRejected when its content is unknown, or another than its name promises in a
    way that nobody means: a program that is called a picture, an archive that is called a text.
    """
    promised = BY_EXTENSION.get(extension(filename))
    if promised is None:
        # Texts first: one about PDFs may begin with what PDFs begin with.
        found = _sniff_text(content) or _sniff(content)
        if found is None:
            raise DocumentRejected("not a supported format (its content is not text)")
        return found
    if promised.family is Family.TEXT:
        return _identify_text(promised, content)
    found = _sniff(content) or _sniff_text(content)
    return promised if found is None else _reconcile(promised, found)


def extension(filename: str) -> str:
    """What follows the last dot of a name, or all of a name such as `Makefile`, in lower case."""
    return PurePosixPath(filename).name.lower().rpartition(".")[2]


def _identify_text(promised: Format, content: bytes) -> Format:
    """Any text may open like HTML or like a mail: its name knows better."""
    if promised.reader in (Reader.MAIL, Reader.MAILBOX):
        return promised
    if _sniff_text(content):
        return promised
    found = _sniff(content)
    raise _mismatch(promised, found.name if found else "not text")


def _reconcile(promised: Format, found: Format) -> Format:
    if promised.family is Family.OTHER:
        reads_worse = promised.reader is Reader.NONE and found.family is Family.TEXT
        return promised if reads_worse else found
    if promised.family is found.family:
        return promised if found is formats.OLE else found
    if promised.family is Family.OFFICE and found is formats.ZIP:
        return promised
    # Office programs open, and write, HTML and plain tables under their own names.
    if promised.family is Family.OFFICE and found.family is Family.TEXT:
        return found
    # A tar archive may have no signature, and open with the name of its first file.
    if promised.family is Family.ARCHIVE and found.family is Family.TEXT:
        return promised
    raise _mismatch(promised, found.name)


def _mismatch(promised: Format, found: str) -> DocumentRejected:
    return DocumentRejected(f"its name says {promised.name}, but its content is {found}")


def _sniff(content: bytes) -> Format | None:
    """The binary format whose signature the content bears."""
    if content.startswith(_OLE):
        return _sniff_ole(content)
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _sniff_zip(content)
    for offset, signature, known in _SIGNATURES:
        if content.startswith(signature, offset):
            return known
    if b"%PDF-" in content[:PDF_HEADER_WITHIN_BYTES]:
        return formats.PDF
    if content.startswith(b"MZ") and b"PE\x00\x00" in content[:PDF_HEADER_WITHIN_BYTES]:
        return formats.PROGRAM
    return None


def _sniff_ole(content: bytes) -> Format:
    """Compound files name their streams in UTF-16; an encrypted one says so."""
    if any(stream.encode("utf-16-le") in content for stream in _OLE_ENCRYPTION_STREAMS):
        raise DocumentRejected(ENCRYPTED)
    for stream, known in _OLE_STREAMS:
        if stream.encode("utf-16-le") in content:
            return known
    return formats.OLE


def _sniff_zip(content: bytes) -> Format:
    # Listing a million of them would take longer than reading most documents.
    if content.count(_ZIP_ENTRY) > ZIP_ENTRIES_MAX:
        raise DocumentRejected(f"it holds more than {ZIP_ENTRIES_MAX} files")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            _refuse_encrypted(archive)
            first = archive.infolist()[0] if names else None
            if first and first.filename == "mimetype" and first.file_size <= MEDIA_TYPE_BYTES_MAX:
                media_type = archive.read(first).decode("ascii", "replace").strip()
                known = _BY_MEDIA_TYPE.get(media_type.removesuffix("-template"))
                if known is not None:
                    return known
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError):
        # Damaged, encrypted, or packed in a way that zipfile has not implemented.
        return formats.ZIP
    for start, known in _ZIP_MEMBERS:
        if any(name.startswith(start) for name in names):
            return known
    return formats.ZIP


def _refuse_encrypted(archive: zipfile.ZipFile) -> None:
    """OpenDocument files are encrypted one by one, as their manifest says."""
    try:
        manifest = archive.getinfo("META-INF/manifest.xml")
    except KeyError:
        return
    with archive.open(manifest) as file:
        if b"encryption-data" in file.read(MANIFEST_BYTES_MAX):
            raise DocumentRejected(ENCRYPTED)


def _sniff_text(content: bytes) -> Format | None:
    if content.startswith(_TEXT_SIGNATURES) or not is_text(content):
        return None
    opening = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, known in _TEXT_OPENINGS:
        if opening.startswith(start):
            return formats.HTML if known is formats.XML and b"<html" in opening else known
    return formats.PLAIN
