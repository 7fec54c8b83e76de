"""What a walk of files and folders finds, and what it leaves alone."""

import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from app.db.documents import SourceState
from app.errors import InvalidInput
from ingestion.sources.base import Item, ItemUnreadable, Listing
from ingestion.sources.files import absolute, find_files, open_folder, path_of, read_file, shown
from ingestion.sources.selection import Selection
from ingestion.sources.walk import Walk, printable


def put(root: Path, *names: str, content: str = "text") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def found(root: Path, selection: Selection | None = None) -> list[str]:
    listing = find_files(root, selection or Selection())
    return [path_of(item.uri).relative_to(root).as_posix() for item in listing.items]


def ingested(path: Path) -> SourceState:
    """What the collection would know of a file that was found through a folder."""
    return SourceState(
        uuid4(), path.as_uri(), "file:///", 4, None, None, "ready", None, None, None, None, None
    )


def test_a_folder_is_walked_in_order(tmp_path: Path) -> None:
    put(tmp_path, "b.md", "a.md", "sub/c.md", "sub/deep/d.md", "z.md")
    assert found(tmp_path) == ["a.md", "b.md", "z.md", "sub/c.md", "sub/deep/d.md"]
    [first, *_] = find_files(tmp_path, Selection()).items
    assert first == Item(
        uri=(tmp_path / "a.md").as_uri(),
        name="a.md",
        root=tmp_path.as_uri(),
        size_bytes=4,
        tag=None,
        changed_ns=(tmp_path / "a.md").stat().st_ctime_ns,
    )


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
        find_files(tmp_path, Selection(exclude=["!"]))


def test_links_never_loop_and_never_repeat(tmp_path: Path) -> None:
    put(tmp_path, "docs/a.md", "elsewhere/b.md")
    (tmp_path / "docs" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "docs" / "self").symlink_to("self")
    (tmp_path / "docs" / "b.md").symlink_to(tmp_path / "elsewhere" / "b.md")
    (tmp_path / "docs" / "gone.md").symlink_to(tmp_path / "nowhere.md")
    walk = find_files(tmp_path / "docs", Selection())
    assert [item.name for item in walk.items] == ["a.md", "b.md"]
    assert {missing.item.name for missing in walk.unlisted} == {"self", "gone.md"}
    assert all(missing.reason and not missing.is_container for missing in walk.unlisted)


def test_pipes_sockets_and_devices_are_no_documents(tmp_path: Path) -> None:
    put(tmp_path, "a.md")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path) == ["a.md"]
    with pytest.raises(ItemUnreadable, match="plain file"):
        read_file(tmp_path / "pipe", max_bytes=10, now_ns=0)


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such path"):
        open_folder(str(tmp_path / "nowhere"), Selection())
    with pytest.raises(FileNotFoundError):
        find_files(tmp_path / "nowhere", Selection())


def test_a_file_named_itself_is_taken_whatever_ignores_it(tmp_path: Path) -> None:
    put(tmp_path, ".hidden/note.log")
    (tmp_path / ".hidden" / ".gitignore").write_text("*.log")
    [item] = find_files(tmp_path / ".hidden" / "note.log", Selection()).items
    assert (item.name, item.root) == ("note.log", None)


@pytest.mark.parametrize("way", ["docs", "docs/../docs", "link", "link/../docs/"])
def test_a_folder_has_one_name_whichever_way_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    put(tmp_path, "docs/a.md")
    (tmp_path / "link").symlink_to(tmp_path / "docs", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert absolute(Path(way)) == tmp_path / "docs"
    assert absolute(Path(way) / "a.md") == tmp_path / "docs" / "a.md"


@pytest.mark.parametrize("name", [b"plain.md", b"sp ace.md", "ü.md".encode(), b"\xff\xfe.md"])
def test_uris_name_files_exactly(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_text("text")
    [item] = find_files(tmp_path, Selection()).items
    assert item.uri == path.as_uri()
    assert path_of(item.uri) == path
    assert shown(item.uri) == printable(path)
    (shown(item.uri) + item.name).encode()


def test_reading_gives_content_hash_and_a_time_that_can_be_trusted(tmp_path: Path) -> None:
    put(tmp_path, "a.md", content="hello")
    path = tmp_path / "a.md"
    now_ns = time.time_ns()
    fresh = read_file(path, max_bytes=5, now_ns=now_ns)
    assert (fresh.content, fresh.changed_ns) == (b"hello", None)
    settled = read_file(path, max_bytes=5, now_ns=now_ns + 3_000_000_000)
    assert settled.changed_ns == path.stat().st_ctime_ns
    assert settled.sha256 == fresh.sha256
    with pytest.raises(ItemUnreadable, match="FOOTNOTE_MAX_UPLOAD_BYTES"):
        read_file(path, max_bytes=4, now_ns=now_ns)
    with pytest.raises(ItemUnreadable, match="vanished"):
        read_file(tmp_path / "none", max_bytes=4, now_ns=now_ns)


def test_a_folder_that_cannot_be_listed_hides_its_files_but_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.md", "secret/b.md")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("ingestion.sources.walk.os.scandir", refuse)
    walk = find_files(tmp_path, Selection())
    assert [item.name for item in walk.items] == ["a.md"]
    [blind] = walk.unlisted
    assert blind.is_container
    assert "permission denied" in blind.reason
    assert not walk.has_lost(ingested(tmp_path / "secret" / "b.md"))
    assert walk.has_lost(ingested(tmp_path / "secret-2" / "b.md"))
    assert walk.has_lost(ingested(tmp_path / "other" / "b.md"))


def test_only_what_the_walk_would_have_found_can_be_lost(tmp_path: Path) -> None:
    walk = Walk(tmp_path.as_uri(), Selection(include=["*.md"], exclude=["old/"]))
    assert walk.has_lost(ingested(tmp_path / "new" / "ä b.md"))
    assert not walk.has_lost(ingested(tmp_path / "a.pdf"))
    assert not walk.has_lost(ingested(tmp_path / "old" / "a.md"))
    assert not walk.has_lost(ingested(tmp_path.parent / "a.md"))
    assert not walk.has_lost(ingested(Path(f"{tmp_path}-2/a.md")))
    assert not Listing([]).has_lost(ingested(tmp_path / "a.md"))
