"""What a walk of files and folders finds, and what it leaves alone."""

import os
import time
from pathlib import Path

import pytest

from ingestion.sources.files import (
    FileUnreadable,
    Selection,
    Walk,
    absolute,
    find_files,
    path_of,
    printable,
    read_file,
)


def put(root: Path, *names: str, content: str = "text") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def found(root: Path, selection: Selection | None = None) -> list[str]:
    walk = find_files([root], selection or Selection())
    return [file.path.relative_to(root).as_posix() for file in walk.files]


def test_a_folder_is_walked_in_order(tmp_path: Path) -> None:
    put(tmp_path, "b.md", "a.md", "sub/c.md", "sub/deep/d.md", "z.md")
    assert found(tmp_path) == ["a.md", "b.md", "z.md", "sub/c.md", "sub/deep/d.md"]
    [first, *_] = find_files([tmp_path], Selection()).files
    assert first.uri == f"file://{tmp_path}/a.md"
    assert first.root == tmp_path
    assert first.size_bytes == 4


def test_what_is_nobodys_document_is_left_out(tmp_path: Path) -> None:
    put(
        tmp_path,
        "kept.md",
        ".hidden.md",
        ".git/config",
        ".venv/lib/x.md",
        "node_modules/left-pad/readme.md",
        "src/__pycache__/x.md",
        "src/kept.md",
    )
    assert found(tmp_path) == ["kept.md", "src/kept.md"]


def test_ignore_files_count_as_they_do_for_git(tmp_path: Path) -> None:
    put(
        tmp_path,
        *("a.log", "keep.log", "build/x.md", "sub/a.log", "sub/special.log", "sub/build/x.md"),
        *("docs/draft.md", "docs/sub/draft.md", "top/draft.md", "private.md"),
    )
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\nbuild/\n/docs/draft.md\n!\n# note\n")
    (tmp_path / ".footnoteignore").write_text("private.md\n")
    (tmp_path / "sub" / ".gitignore").write_text("!special.log\n")
    assert found(tmp_path) == [
        "keep.log",
        "docs/sub/draft.md",
        "sub/special.log",
        "top/draft.md",
    ]


def test_footnoteignore_can_take_back_what_gitignore_says(tmp_path: Path) -> None:
    put(tmp_path, "generated/manual.md", "generated/other.md")
    (tmp_path / ".gitignore").write_text("generated/*\n")
    (tmp_path / ".footnoteignore").write_text("!generated/manual.md\n")
    assert found(tmp_path) == ["generated/manual.md"]


def test_patterns_of_the_command_line(tmp_path: Path) -> None:
    put(tmp_path, "a.md", "a.pdf", "old/b.md", "new/b.md", "new/deep/c.md")
    assert found(tmp_path, Selection(include=["*.md"], exclude=["old/"])) == [
        "a.md",
        "new/b.md",
        "new/deep/c.md",
    ]
    with pytest.raises(ValueError, match="Invalid git pattern"):
        find_files([tmp_path], Selection(exclude=["!"]))


def test_links_never_loop_and_never_repeat(tmp_path: Path) -> None:
    put(tmp_path, "docs/a.md", "elsewhere/b.md")
    (tmp_path / "docs" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "docs" / "self").symlink_to("self")
    (tmp_path / "docs" / "b.md").symlink_to(tmp_path / "elsewhere" / "b.md")
    (tmp_path / "docs" / "gone.md").symlink_to(tmp_path / "nowhere.md")
    walk = find_files([tmp_path / "docs"], Selection())
    assert [file.path.name for file in walk.files] == ["a.md", "b.md"]
    assert {missing.path.name for missing in walk.unreadable} == {"self", "gone.md"}
    assert all(missing.reason for missing in walk.unreadable)


def test_pipes_sockets_and_devices_are_no_documents(tmp_path: Path) -> None:
    put(tmp_path, "a.md")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path) == ["a.md"]
    with pytest.raises(FileUnreadable, match="plain file"):
        read_file(tmp_path / "pipe", max_bytes=10, now_ns=0)


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_files([tmp_path / "nowhere"], Selection())


def test_a_file_named_itself_is_taken_whatever_ignores_it(tmp_path: Path) -> None:
    put(tmp_path, ".hidden/note.log")
    (tmp_path / ".hidden" / ".gitignore").write_text("*.log")
    [file] = find_files([tmp_path / ".hidden" / "note.log"], Selection()).files
    assert (file.path.name, file.root) == ("note.log", None)


def test_every_file_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "docs/a.md", "docs/sub/b.md")
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "docs", target_is_directory=True)
    paths = [Path("docs"), tmp_path / "docs" / "sub", Path("docs/a.md"), link, Path("docs/../docs")]
    walk = find_files(paths, Selection())
    assert [file.path for file in walk.files] == [
        tmp_path / "docs" / "a.md",
        tmp_path / "docs" / "sub" / "b.md",
    ]


@pytest.mark.parametrize("name", [b"plain.md", b"sp ace.md", "ü.md".encode(), b"\xff\xfe.md"])
def test_uris_name_files_exactly(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_text("text")
    [file] = find_files([tmp_path], Selection()).files
    assert path_of(file.uri) == path
    printable(file.path).encode()


def test_reading_gives_content_hash_and_a_time_that_can_be_trusted(tmp_path: Path) -> None:
    put(tmp_path, "a.md", content="hello")
    path = tmp_path / "a.md"
    now_ns = time.time_ns()
    fresh = read_file(path, max_bytes=5, now_ns=now_ns)
    assert (fresh.content, fresh.changed_ns) == (b"hello", None)
    settled = read_file(path, max_bytes=5, now_ns=now_ns + 3_000_000_000)
    assert settled.changed_ns == path.stat().st_ctime_ns
    assert settled.sha256 == fresh.sha256
    with pytest.raises(FileUnreadable, match="FOOTNOTE_MAX_UPLOAD_BYTES"):
        read_file(path, max_bytes=4, now_ns=now_ns)
    with pytest.raises(FileUnreadable, match="vanished"):
        read_file(tmp_path / "none", max_bytes=4, now_ns=now_ns)


def test_a_folder_that_cannot_be_listed_hides_its_files_but_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.md", "secret/b.md")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("ingestion.sources.files.os.scandir", refuse)
    walk = find_files([tmp_path], Selection())
    assert [file.path.name for file in walk.files] == ["a.md"]
    [blind] = walk.unreadable
    assert blind.is_folder
    assert "permission denied" in blind.reason
    assert not walk.has_lost(tmp_path / "secret" / "b.md", Selection())
    assert walk.has_lost(tmp_path / "other" / "b.md", Selection())


def test_only_what_the_walk_would_have_found_can_be_lost(tmp_path: Path) -> None:
    walk = Walk(folders=[tmp_path])
    chosen = Selection(include=["*.md"], exclude=["old/"])
    assert walk.has_lost(tmp_path / "new" / "a.md", chosen)
    assert not walk.has_lost(tmp_path / "a.pdf", chosen)
    assert not walk.has_lost(tmp_path / "old" / "a.md", chosen)
    assert not walk.has_lost(tmp_path.parent / "a.md", Selection())
    assert absolute(tmp_path) == tmp_path.resolve()
