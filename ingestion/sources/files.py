"""Files and folders as a source: what there is, and what each of it holds."""

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from app.db.documents import SourceState
from app.errors import InvalidInput
from ingestion.sources.base import Content, Item, ItemUnreadable, Listing, too_large
from ingestion.sources.selection import Selection
from ingestion.sources.walk import printable, reason_of, walk_folder

READ_ATTEMPTS = 3
FRESH_NS = 2_000_000_000
"""A file that changed this recently could change again without its time showing it."""


def open_folder(location: str, selection: Selection) -> "FolderSource":
    """The source of a folder or of a single file; raises InvalidInput when it is not there."""
    return FolderSource(location, absolute(Path(location)), selection)


class FolderSource:
    """A folder with all that is in it, or one file that was named itself."""

    def __init__(self, location: str, path: Path, selection: Selection) -> None:
        self.location = location
        self._path = path
        self._selection = selection

    @property
    def prefixes(self) -> Sequence[str]:
        return [self._path.as_uri().rstrip("/")]

    async def changes(self, known: Mapping[str, SourceState]) -> Listing:
        """A walk costs about as much as comparing would save, so everything is listed."""
        del known
        try:
            return await asyncio.to_thread(find_files, self._path, self._selection)
        except OSError as error:
            raise _not_there(self.location, error) from error

    async def read(self, item: Item, known: SourceState | None, max_bytes: int) -> Content | None:
        del known
        return await asyncio.to_thread(
            read_file, path_of(item.uri), max_bytes=max_bytes, now_ns=time.time_ns()
        )

    async def close(self) -> None: ...


# --- finding --------------------------------------------------------------------------------------


def absolute(path: Path) -> Path:
    """The path that names the file whichever way somebody came to its folder.

    Raises InvalidInput when there is nothing.
    """
    parent = path.expanduser().absolute()
    try:
        is_folder = stat.S_ISDIR(parent.stat().st_mode)
    except OSError as error:
        raise _not_there(printable(path), error) from error
    # The last part may be a link: it is the name that people know the file by.
    return parent.resolve() if is_folder else parent.parent.resolve() / parent.name


def find_files(path: Path, selection: Selection) -> Listing:
    """Every file that the path names or holds.

    Raises OSError for a path that is not there or cannot be read: a folder that is away as a whole
    must not look like an empty one.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()
        return walk_folder(str(path), path.as_uri(), selection)
    if not selection.takes(path.name):
        return Listing([])
    name = printable(path.name)
    return Listing([Item(path.as_uri(), name, None, status.st_size, None, status.st_ctime_ns)])


def path_of(uri: str) -> Path:
    """The path of a `file://` URI, bytes that are no text included."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))


def shown(uri: str) -> str:
    """The URI as people know the thing: a file by its path."""
    return printable(path_of(uri)) if uri.startswith("file://") else uri


def _not_there(location: str, error: OSError) -> InvalidInput:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InvalidInput(f"There is no such path: {location}", hint="Check the path.")
    return InvalidInput(
        f"{location} cannot be read: {error.strerror or error}.",
        hint="Check the path and its permissions.",
    )


# --- reading --------------------------------------------------------------------------------------


def read_file(path: Path, *, max_bytes: int, now_ns: int) -> Content:
    """The whole file as it was at one moment; raises ItemUnreadable with a reason for people.

    `changed_ns` is None when the file changed too recently for its time to be trusted.
    """
    try:
        for _ in range(READ_ATTEMPTS):
            with open(path, "rb", opener=_open_at_once) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise ItemUnreadable("it is not a plain file")
                content = file.read(max_bytes + 1)
                after = os.fstat(file.fileno())
            if len(content) > max_bytes:
                raise ItemUnreadable(too_large(max_bytes))
            if before.st_ctime_ns == after.st_ctime_ns and len(content) == after.st_size:
                is_settled = now_ns - after.st_ctime_ns > FRESH_NS
                return Content(
                    content,
                    hashlib.sha256(content).digest(),
                    changed_ns=after.st_ctime_ns if is_settled else None,
                )
    except OSError as error:
        raise ItemUnreadable(reason_of(error)) from error
    raise ItemUnreadable("it was being written to; run again when it is complete")


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of what turned into a pipe meanwhile."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
