"""Files and folders: what there is to ingest, and what each of it holds."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from urllib.parse import unquote_to_bytes, urlsplit

import pathspec

ALWAYS_EXCLUDED = frozenset({"node_modules", "__pycache__"})
"""Besides everything hidden: nobody's documents are in there."""

IGNORE_FILES = (".gitignore", ".footnoteignore")
"""Read in this order, so that the second can take back what the first one ignores."""

READ_ATTEMPTS = 3
FRESH_NS = 2_000_000_000
"""A file that changed this recently could change again without its time showing it."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to ingest. `root` is the folder it was found through, None if it was named itself.

    `changed_ns` is its ctime: unlike its mtime nobody can set it back.
    """

    path: Path
    root: Path | None
    size_bytes: int
    changed_ns: int | None

    @property
    def uri(self) -> str:
        return self.path.as_uri()


@dataclass(frozen=True, slots=True)
class UnreadablePath:
    """Something that should have been ingested, and why it cannot be."""

    path: Path
    root: Path
    reason: str
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Walk:
    """What there is under the `folders` that were named, and beside them."""

    folders: list[Path] = field(default_factory=list[Path])
    files: list[FoundFile] = field(default_factory=list[FoundFile])
    unreadable: list[UnreadablePath] = field(default_factory=list[UnreadablePath])

    def has_lost(self, path: Path, selection: "Selection") -> bool:
        """Whether a path that was ingested once would have been found if it still were there.

        What lies beyond an unreadable folder, or is left out by the command line's patterns, is
        not lost; what the folder itself ignores by now is.
        """
        if any(blind.path in path.parents for blind in self.unreadable if blind.is_folder):
            return False
        return any(
            folder in path.parents and selection.reaches(path.relative_to(folder))
            for folder in self.folders
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Patterns of the command line, in the syntax of .gitignore, relative to each root."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def check(self) -> None:
        """Raise ValueError for a pattern that makes no sense."""
        _selection_specs(tuple(self.include), tuple(self.exclude))

    def reaches(self, relative: PurePath) -> bool:
        """Whether a walk with these patterns would come to this path and take it."""
        parts = relative.parts
        folders = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return all(map(self.descends, folders)) and self.takes(relative.as_posix())

    def takes(self, relative: str) -> bool:
        specs = _selection_specs(tuple(self.include), tuple(self.exclude))
        included = not self.include or specs[0].match_file(relative)
        return included and not specs[1].match_file(relative)

    def descends(self, relative: str) -> bool:
        specs = _selection_specs(tuple(self.include), tuple(self.exclude))
        return not specs[1].match_file(f"{relative}/")


@dataclass(frozen=True, slots=True)
class FileContent:
    """`changed_ns` is None when the file changed too recently for its time to be trusted."""

    content: bytes
    sha256: bytes
    changed_ns: int | None


class FileUnreadable(Exception):
    """`reason` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# --- finding --------------------------------------------------------------------------------------


def absolute(path: Path) -> Path:
    """The path that names the file whichever way somebody came to its folder."""
    parent = path.expanduser().absolute()
    # The last part may be a link: it is the name that people know the file by.
    return parent.parent.resolve() / parent.name if parent.is_file() else parent.resolve()


def find_files(paths: Sequence[Path], selection: Selection) -> Walk:
    """Every file that the paths name or hold, each once, folders in the order of their names.

    Raises FileNotFoundError or PermissionError for a path that is not there or cannot be read:
    a folder that is away as a whole must not look like an empty one.
    """
    walk = Walk()
    seen: set[Path] = set()
    for path in map(absolute, paths):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()
            walk.folders.append(path)
            _walk_folder(path, selection, walk, seen)
        elif path not in seen and selection.takes(path.name):
            seen.add(path)
            walk.files.append(FoundFile(path, None, status.st_size, status.st_ctime_ns))
    return walk


def path_of(uri: str) -> Path:
    """The path of a `file://` URI, bytes that are no text included."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))


def printable(path: Path) -> str:
    """The path for people and for UTF-8, which not every file name is."""
    return str(path).encode("utf-8", "replace").decode()


def _walk_folder(root: Path, selection: Selection, walk: Walk, seen: set[Path]) -> None:
    """All that the root holds; links to folders are left out, so nothing loops."""
    pending: list[tuple[Path, Sequence[_Ignores]]] = [(root, ())]
    while pending:
        current, outer = pending.pop()
        try:
            with os.scandir(current) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"the folder cannot be listed: {_reason(error)}"
            walk.unreadable.append(UnreadablePath(current, root, reason, is_folder=True))
            continue
        ignores = [*outer, *_read_ignores(current)]
        folders: list[tuple[Path, Sequence[_Ignores]]] = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in ALWAYS_EXCLUDED:
                continue
            path = current / entry.name
            relative = path.relative_to(root).as_posix()
            if entry.is_dir(follow_symlinks=False):
                if not _ignored(path, ignores, is_folder=True) and selection.descends(relative):
                    folders.append((path, ignores))
            elif (
                path not in seen
                and selection.takes(relative)
                and not _ignored(path, ignores, is_folder=False)
            ):
                seen.add(path)
                _add_entry(entry, path, root, walk)
        pending += reversed(folders)


def _add_entry(entry: "os.DirEntry[str]", path: Path, root: Path, walk: Walk) -> None:
    try:
        status = entry.stat()
    except OSError as error:
        walk.unreadable.append(UnreadablePath(path, root, _reason(error)))
        return
    if stat.S_ISREG(status.st_mode):
        walk.files.append(FoundFile(path, root, status.st_size, status.st_ctime_ns))


# --- ignoring -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ignores:
    """The patterns that stand in one folder."""

    folder: Path
    spec: pathspec.GitIgnoreSpec


def _read_ignores(folder: Path) -> Iterator[_Ignores]:
    lines: list[str] = []
    for name in IGNORE_FILES:
        try:
            lines += (folder / name).read_text("utf-8", "surrogateescape").splitlines()
        except OSError:
            continue
    patterns = [line for line in lines if _is_pattern(line)]
    if patterns:
        yield _Ignores(folder, pathspec.GitIgnoreSpec.from_lines(patterns))


def _is_pattern(line: str) -> bool:
    try:
        pathspec.GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return bool(line.strip()) and not line.startswith("#")


def _ignored(path: Path, ignores: Sequence[_Ignores], *, is_folder: bool) -> bool:
    """As git decides: the deepest file that says something about the path has the last word."""
    for level in reversed(ignores):
        relative = path.relative_to(level.folder).as_posix() + ("/" if is_folder else "")
        verdict = level.spec.check_file(relative).include
        if verdict is not None:
            return verdict
    return False


@lru_cache(maxsize=8)
def _selection_specs(
    include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[pathspec.GitIgnoreSpec, pathspec.GitIgnoreSpec]:
    return pathspec.GitIgnoreSpec.from_lines(include), pathspec.GitIgnoreSpec.from_lines(exclude)


# --- reading --------------------------------------------------------------------------------------


def read_file(path: Path, *, max_bytes: int, now_ns: int) -> FileContent:
    """The whole file as it was at one moment; raises FileUnreadable with a reason for people."""
    try:
        for _ in range(READ_ATTEMPTS):
            with open(path, "rb", opener=_open_at_once) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise FileUnreadable("it is not a plain file")
                content = file.read(max_bytes + 1)
                after = os.fstat(file.fileno())
            if len(content) > max_bytes:
                raise FileUnreadable(too_large(max_bytes))
            if before.st_ctime_ns == after.st_ctime_ns and len(content) == after.st_size:
                is_settled = now_ns - after.st_ctime_ns > FRESH_NS
                return FileContent(
                    content,
                    hashlib.sha256(content).digest(),
                    after.st_ctime_ns if is_settled else None,
                )
    except OSError as error:
        raise FileUnreadable(_reason(error)) from error
    raise FileUnreadable("it was being written to; run again when it is complete")


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of what turned into a pipe meanwhile."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def too_large(max_bytes: int) -> str:
    return f"it is larger than {max_bytes / 1024**2:.3g} MiB (FOOTNOTE_MAX_UPLOAD_BYTES)"


def _reason(error: OSError) -> str:
    match error:
        case PermissionError():
            return "permission denied"
        case FileNotFoundError():
            return "it is a link that leads nowhere, or it vanished"
        case _:
            return f"it cannot be read: {error.strerror or error}"
