"""Hostile files: they are read or refused, and nobody but the child that reads them notices."""

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.errors import DocumentRejected
from ingestion.parsing.sandbox import ParserPool
from tests import samples
from tests.bombs import BOMBS, ESCAPE

MB = 1024 * 1024
ROOT = Path(__file__).parent.parent

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux gives the strictest limits")

OpenPool = Callable[..., ParserPool]


@pytest.fixture
async def open_pool(tmp_path: Path) -> AsyncIterator[OpenPool]:
    pools: list[ParserPool] = []

    def open_one(**settings: Any) -> ParserPool:
        pools.append(ParserPool(Settings(home=tmp_path, **settings)))
        return pools[-1]

    yield open_one
    for pool in pools:
        await pool.close()


def memory_peak_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def restart_memory_peak_kb() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return memory_peak_kb()


REFUSED = {
    "zeros.zip": "it unpacks to more than 256 MB",
    "zeros.bz2": "it unpacks to more than 256 MB",
    "overlapping.zip": "it unpacks to more than 256 MB",
    "nested.zip": "it holds more than 2000 files",
    "million.zip": "it holds more than 50000 files",
    "huge-member.tar": "damaged: it cannot be read as a tar archive",
    "deep.ipynb": "damaged: it cannot be read as a Jupyter notebook",
}
READ_OR_REFUSED = (
    "cycle.pdf", "escaping.zip", "escaping.tar", "escaping.eml", "rules.pdf", "entities.svg", "outside.xml",
    "outside.svg", "outside.html", "outside.docx", "calling.html", "calling.docx", "nested.eml",
    "deep-tables.docx", "deep.rtf", "deep-matter.md", "word.txt", "surrogates.txt",
    "invisible.txt",
)  # fmt: skip


@linux_only
async def test_bombs_are_read_or_refused_and_nobody_else_is_harmed(open_pool: OpenPool) -> None:
    around = (Path("/tmp"), Path.home(), ROOT, ROOT.parent)  # noqa: S108 - where they lead
    pool = open_pool(parse_timeout_seconds=30)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        for filename in (*REFUSED, *READ_OR_REFUSED):
            content = BOMBS[filename](url)
            await pool.parse(b"text", "a.txt")
            before = restart_memory_peak_kb()
            reason, text = None, ""
            try:
                text = (await pool.parse(content, filename)).text
            except DocumentRejected as rejected:
                reason = rejected.reason
                assert not rejected.retryable, filename  # noqa: PT017
            assert filename in READ_OR_REFUSED or reason == REFUSED[filename]
            assert memory_peak_kb() - before < 50 * 1024, filename
            assert "root:" not in text
            assert len(text) < 4 * MB
        with pytest.raises(BlockingIOError):
            server.accept()
    assert [name for folder in around for name in os.listdir(folder) if ESCAPE in name] == []


@linux_only
@pytest.mark.parametrize("word", ["word ", "слово "])
async def test_a_long_text_costs_the_parent_little_beyond_itself(
    open_pool: OpenPool, word: str
) -> None:
    text = word * (50 * MB // len(word.encode()))
    content = text.encode()
    pool = open_pool()
    await pool.parse(b"text", "a.txt")
    before = restart_memory_peak_kb()
    parsed = await pool.parse(content, "long.txt")
    beyond = memory_peak_kb() - before - sys.getsizeof(parsed.text) // 1024
    assert parsed.text == text
    assert beyond < 50 * 1024


@linux_only
async def test_a_pdf_that_unpacks_to_a_lot_is_no_burden_to_the_parent(open_pool: OpenPool) -> None:
    shown = b"BT /F1 12 Tf 50 700 Td (Hi there) Tj ET\n"
    content = samples.pdf_of_streams([shown + b"\n" * (100 * MB)])
    pool = open_pool()
    await pool.parse(b"text", "a.txt")
    before = restart_memory_peak_kb()
    assert (await pool.parse(content, "a.pdf")).text == "Hi there"
    assert memory_peak_kb() - before < 16 * 1024


async def test_a_zip_in_a_zip_in_a_zip_is_not_followed_for_ever(open_pool: OpenPool) -> None:
    content = samples.zipped({"deep.txt": "text"})
    for level in range(5):
        content = samples.zipped({f"{level}.zip": content})
    with pytest.raises(DocumentRejected) as caught:
        await open_pool().parse(content, "a.zip")
    assert caught.value.reason == "none of its files could be read (it is nested too deeply)"


@pytest.mark.parametrize("filename", ["a.xml", "a.docx", "a.html"])
async def test_entities_are_not_expanded(open_pool: OpenPool, filename: str) -> None:
    entities = '<!ENTITY a0 "boom">' + "".join(
        f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 12)
    )
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [{entities}]>'
    contents = {
        "a.xml": f"{bomb}<x><y>text</y>&a11;</x>".encode(),
        "a.html": f"{bomb}<html><p>text &a11;</p></html>".encode(),
        "a.docx": samples.zipped({"word/document.xml": f"{bomb}<x>&a11;</x>"}),
    }
    try:
        parsed = await open_pool(parse_timeout_seconds=20).parse(contents[filename], filename)
    except DocumentRejected as rejected:
        assert "damaged" in rejected.reason or "no text" in rejected.reason  # noqa: PT017
    else:
        assert "boom" not in parsed.text


CONFINED = """
import os, socket, sys
from pathlib import Path
from ingestion.parsing.confinement import confine

port = int(sys.argv[1])
confine(1024**3, os.getppid())

def works(act):
    try:
        act()
    except OSError:
        return False
    return True

print(
    works(lambda: Path("inside").write_text("x")),
    works(lambda: Path("../outside").write_text("x")),
    works(lambda: Path("../there").write_text("x")),
    works(lambda: Path("../there").unlink()),
    works(lambda: Path("../folder").mkdir()),
    works(lambda: Path("../link").symlink_to("/etc/passwd")),
    works(lambda: Path("inside").rename("../moved")),
    works(lambda: os.kill(os.getppid(), 0)),
    works(lambda: socket.create_connection(("127.0.0.1", port), 5)),
)
"""


@linux_only
def test_a_child_writes_in_its_folder_only_and_reaches_nobody(tmp_path: Path) -> None:
    version = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 6:
        pytest.skip("this kernel lets a process give up less")
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "there").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ran = subprocess.run(
            [sys.executable, "-P", "-c", CONFINED, str(server.getsockname()[1])],
            check=True,
            cwd=folder,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert ran.stdout.split() == ["True", *["False"] * 8]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["own", "there"]
    assert (tmp_path / "there").read_text() == "kept"
