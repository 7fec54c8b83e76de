"""What lies in a folder, and what of it is nobody's document. Written for hundreds of thousands."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pathspec

from app.db.documents import SourceState
from ingestion.sources.base import Item, Listing, Unlisted
from ingestion.sources.selection import Selection

ALWAYS_EXCLUDED = frozenset({"node_modules", "__pycache__"})
"""Besides everything hidden: nobody's documents are in there."""

IGNORE_FILES = (".gitignore", ".footnoteignore")
"""Read in this order, so that the second can take back what the first one ignores."""


class Walk(Listing):
    """What there is in a folder, each file once, folders in the order of their names."""

    def __init__(self, root_uri: str, selection: Selection) -> None:
        self.items: list[Item] = []
        self.unlisted: list[Unlisted] = []
        self._inside = _inside(root_uri)
        self._selection = selection

    def has_lost(self, known: SourceState) -> bool:
        """What lies beyond an unreadable folder, or is left out by the selection, is not lost.

        What the folder itself ignores by now is.
        """
        if not known.uri.startswith(self._inside):
            return False
        if any(
            known.uri.startswith(_inside(blind.item.uri))
            for blind in self.unlisted
            if blind.is_container
        ):
            return False
        relative = os.fsdecode(unquote_to_bytes(known.uri[len(self._inside) :]))
        return self._selection.reaches(relative)


def walk_folder(root: str, root_uri: str, selection: Selection) -> Walk:
    """All that the folder holds; links to folders are left out, so nothing loops."""
    walk = Walk(root_uri, selection)
    pending = [_Folder(root, _inside(root_uri), "", ())]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder.path) as scanned:
                entries = sorted(scanned, key=_name)
        except OSError as error:
            reason = f"the folder cannot be listed: {reason_of(error)}"
            uri = folder.inside_uri.rstrip("/")
            name = printable(os.path.basename(folder.path))
            walk.unlisted.append(Unlisted(Item(uri, name, root_uri), reason, is_container=True))
            continue
        pending += reversed(list(_take_entries(folder, entries, root_uri, selection, walk)))
    return walk


@dataclass(frozen=True, slots=True)
class _Folder:
    """`inside_uri` and `inside` begin the URIs, and the paths from the root, of what it holds."""

    path: str
    inside_uri: str
    inside: str
    ignores: Sequence["_Ignores"]


def _take_entries(
    folder: _Folder,
    entries: "Sequence[os.DirEntry[str]]",
    root_uri: str,
    selection: Selection,
    walk: Walk,
) -> "Iterator[_Folder]":
    """Put the files of a folder into the walk; gives the folders in it that must be walked too."""
    ignores = [*folder.ignores, *_read_ignores(folder, entries)]
    for entry in entries:
        name = entry.name
        if name.startswith(".") or name in ALWAYS_EXCLUDED:
            continue
        relative = folder.inside + name
        uri = folder.inside_uri + quote_from_bytes(os.fsencode(name))
        if entry.is_dir(follow_symlinks=False):
            inside = f"{relative}/"
            if not _ignored(inside, ignores) and selection.descends(relative):
                yield _Folder(entry.path, f"{uri}/", inside, ignores)
        elif selection.takes(relative) and not _ignored(relative, ignores):
            shown = name if name.isascii() else printable(name)
            try:
                status = entry.stat()
            except OSError as error:
                walk.unlisted.append(Unlisted(Item(uri, shown, root_uri), reason_of(error)))
                continue
            if stat.S_ISREG(status.st_mode):
                # The ctime: unlike the mtime nobody can set it back.
                walk.items.append(
                    Item(uri, shown, root_uri, status.st_size, None, status.st_ctime_ns)
                )


def printable(path: str | os.PathLike[str]) -> str:
    """The path for people and for UTF-8, which not every file name is."""
    return os.fspath(path).encode("utf-8", "replace").decode()


def reason_of(error: OSError) -> str:
    match error:
        case PermissionError():
            return "permission denied"
        case FileNotFoundError():
            return "it is a link that leads nowhere, or it vanished"
        case _:
            return f"it cannot be read: {error.strerror or error}"


def _name(entry: "os.DirEntry[str]") -> str:
    return entry.name


def _inside(folder_uri: str) -> str:
    return f"{folder_uri.rstrip('/')}/"


# --- ignoring -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ignores:
    """The patterns that stand in one folder, whose own path from the root has `depth` characters."""

    depth: int
    spec: pathspec.GitIgnoreSpec


def _read_ignores(folder: _Folder, entries: "Sequence[os.DirEntry[str]]") -> Iterator[_Ignores]:
    names = {entry.name for entry in entries if entry.name in IGNORE_FILES}
    lines: list[str] = []
    for name in IGNORE_FILES:
        if name in names:
            try:
                with open(
                    os.path.join(folder.path, name), encoding="utf-8", errors="surrogateescape"
                ) as file:
                    lines += file.read().splitlines()
            except OSError:
                continue
    patterns = [line for line in lines if _is_pattern(line)]
    if patterns:
        yield _Ignores(len(folder.inside), pathspec.GitIgnoreSpec.from_lines(patterns))


def _is_pattern(line: str) -> bool:
    try:
        pathspec.GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return bool(line.strip()) and not line.startswith("#")


def _ignored(relative: str, ignores: Sequence[_Ignores]) -> bool:
    """As git decides: the deepest file that says something about the path has the last word."""
    for level in reversed(ignores):
        verdict = level.spec.check_file(relative[level.depth :]).include
        if verdict is not None:
            return verdict
    return False
