"""Archives and compressed files, unpacked in memory and never beyond a bound."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from app.errors import DocumentRejected
from ingestion.parsing import formats
from ingestion.parsing.conversion import convert
from ingestion.parsing.decoding import clean
from ingestion.parsing.drafts import ENCRYPTED, Draft
from ingestion.parsing.formats import Format
from ingestion.parsing.tidying import demoted, escape_headings, tidy

UNPACKED_BYTES_MAX = 256 * 1024 * 1024
MEMBERS_MAX = 2000
NESTING_MAX = 3
WARNINGS_MAX = 20

NOTHING_READ = "none of its files could be read"

_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    IndexError,
    NotImplementedError,
    RuntimeError,
)
"""What the standard library raises on damaged archives and on unusual compression."""

_NOISE = ("__MACOSX/", ".DS_Store", "Thumbs.db")


class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class Allowance:
    """What may still be unpacked, of a file and of all that is nested in it."""

    bytes_left: int = UNPACKED_BYTES_MAX
    members_left: int = MEMBERS_MAX
    depth_left: int = NESTING_MAX

    def read(self, stream: SupportsRead) -> bytes:
        """All of a stream. Raises DocumentRejected when it holds more than may be unpacked."""
        content = stream.read(self.bytes_left + 1)
        self.take(len(content))
        return content

    def take(self, size_bytes: int) -> None:
        self.bytes_left -= size_bytes
        self.members_left -= 1
        if self.bytes_left < 0:
            limit_mb = UNPACKED_BYTES_MAX // (1024 * 1024)
            raise DocumentRejected(f"it unpacks to more than {limit_mb} MB")
        if self.members_left < 0:
            raise DocumentRejected(f"it holds more than {MEMBERS_MAX} files")


ReadNested = Callable[[bytes, str], Draft]
"""Reads a file found inside another one."""


def check_unpacked_size(content: bytes) -> None:
    """Refuse an office document (a ZIP) that admits to being a bomb."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size_bytes = sum(info.file_size for info in archive.infolist())
    except _BROKEN:
        return
    Allowance().take(size_bytes)


def read_archive(
    content: bytes, filename: str, source: Format, allowance: Allowance, read: ReadNested
) -> Draft:
    if source is formats.SEVEN_ZIP:
        return _read_seven_zip(content)
    if source is formats.ZIP:
        return _read_members(_zip_members(content, allowance), read)
    if source is formats.TAR:
        return _read_members(_tar_members(content, allowance), read)
    try:
        inner = allowance.read(_decompressing(content, source))
    except _BROKEN:
        raise DocumentRejected(f"damaged: it cannot be read as {source.name}") from None
    return read(inner, _inner_name(filename))


def _decompressing(content: bytes, source: Format) -> SupportsRead:
    packed = io.BytesIO(content)
    if source is formats.GZIP:
        return gzip.GzipFile(fileobj=packed)
    return bz2.BZ2File(packed) if source is formats.BZIP2 else lzma.LZMAFile(packed)


def _inner_name(filename: str) -> str:
    """What `report.txt.gz` and `backup.tgz` hold."""
    path = PurePosixPath(filename)
    return path.stem + (".tar" if path.suffix.lower() in (".tgz", ".tbz2", ".txz") else "")


def _zip_members(content: bytes, allowance: Allowance) -> Iterator[tuple[str, bytes | str]]:
    """Name and content of each file, or the reason why it cannot be read."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except _BROKEN:
        raise DocumentRejected("damaged: it cannot be read as a ZIP archive") from None
    with archive:
        for info in archive.infolist():
            if info.is_dir() or _is_noise(info.filename):
                continue
            if info.flag_bits & 1:
                yield info.filename, ENCRYPTED
                continue
            try:
                with archive.open(info) as member:
                    unpacked = allowance.read(member)
            except _BROKEN:
                yield info.filename, "damaged"
            else:
                yield info.filename, unpacked


def _tar_members(content: bytes, allowance: Allowance) -> Iterator[tuple[str, bytes | str]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for info in archive:
                member = archive.extractfile(info) if info.isfile() else None
                if member is not None and not _is_noise(info.name):
                    yield info.name, allowance.read(member)
    except _BROKEN:
        raise DocumentRejected("damaged: it cannot be read as a tar archive") from None


def _is_noise(name: str) -> bool:
    return name.startswith(_NOISE) or PurePosixPath(name).name.startswith((*_NOISE, "._"))


def _read_members(members: Iterator[tuple[str, bytes | str]], read: ReadNested) -> Draft:
    draft = Draft(heading_is_title=False, holds_files=True)
    texts: list[str] = []
    refusals: list[str] = []
    for name, content in members:
        try:
            if isinstance(content, str):
                raise DocumentRejected(content)
            nested = read(content, name)
            texts.append(nested_text(name, nested))
            draft.warnings += nested_warnings(name, nested)
        except DocumentRejected as refusal:
            refusals.append(refusal.reason)
            draft.warnings.append(f"{name}: {refusal.reason}")
    draft.text = "\n\n".join(texts)
    draft.warnings = draft.warnings[:WARNINGS_MAX]
    if refusals and set(refusals) == {ENCRYPTED}:
        draft.no_text = ENCRYPTED
    elif refusals:
        from_within = refusals[0].startswith(NOTHING_READ)
        draft.no_text = refusals[0] if from_within else f"{NOTHING_READ} ({refusals[0]})"
    else:
        draft.no_text = "it holds no files"
    return draft


def nested_text(name: str, draft: Draft) -> str:
    """The text of a file inside another one, under a heading with its name."""
    text, _ = draft.joined()
    if draft.markup == "code":
        text = f"~~~~~~\n{text.strip()}\n~~~~~~"
    elif draft.markup == "markdown":
        text = demoted(text)
    else:
        text = escape_headings(text)
    return f"# {name}\n\n{text.strip()}"


def nested_warnings(name: str, draft: Draft) -> list[str]:
    """The warnings about a file inside another one, each after the path of what it is about."""
    separator = "/" if draft.holds_files else ": "
    return [f"{name}{separator}{warning}" for warning in draft.warnings]


def _read_seven_zip(content: bytes) -> Draft:
    """Only kreuzberg reads these, and it gives text instead of files."""
    draft = Draft(heading_is_title=False)
    children = convert(content, formats.SEVEN_ZIP).children or []
    draft.text = "\n\n".join(
        nested_text(child["path"], Draft(text=tidy(clean(child["result"].content))))
        for child in children
    )
    return draft
