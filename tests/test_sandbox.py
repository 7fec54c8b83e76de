"""The parser's children: what they may not do, how they end, and that the parent never minds."""

import asyncio
import fcntl
import gzip
import os
import signal
import stat
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.config import Settings
from app.errors import DocumentRejected, Unavailable
from ingestion.parsing import leftovers, sandbox
from ingestion.parsing.documents import parse_document
from ingestion.parsing.sandbox import ParserPool
from tests import samples

MB = 1024 * 1024
ROOT = Path(__file__).parent.parent

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux gives the strictest limits")

OpenPool = Callable[..., ParserPool]


@pytest.fixture
async def open_pool(tmp_path: Path) -> AsyncIterator[OpenPool]:
    pools: list[ParserPool] = []

    def open_one(processes: int = 1, **settings: Any) -> ParserPool:
        pools.append(ParserPool(Settings(home=tmp_path, **settings), processes))
        return pools[-1]

    yield open_one
    for pool in pools:
        await pool.close()
    assert children() == []


def children(of: int | None = None) -> list[psutil.Process]:
    alive = psutil.Process(of).children()
    return [each for each in alive if "ingestion.parsing.child" in each.cmdline()]


async def refusal(parsing: Awaitable[object]) -> DocumentRejected:
    with pytest.raises(DocumentRejected) as caught:
        await parsing
    return caught.value


SLOW = b"<title" * 300_000
"""A page that takes minutes to read."""


async def until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_child_reads_what_the_parser_reads(open_pool: OpenPool) -> None:
    pool = open_pool()
    for name, content in {
        "a.md": b"---\ntitle: T\ntags: [x]\n---\n# A\n\ntext",
        "a.pdf": samples.pdf([["One."], ["Two."]], title="Ti"),
        "a.docx": samples.docx(samples.paragraph("R&D «é» 漢字 😀")),
    }.items():
        assert await pool.parse(content, name) == parse_document(content, name)
    assert (await refusal(pool.parse(b"", "a.md"))).reason == "the file is empty"
    assert len(children()) == 1


async def test_several_children_read_at_the_same_time(open_pool: OpenPool) -> None:
    pool = open_pool(processes=2)
    names = [f"{number}.txt" for number in range(20)]
    parsed = await asyncio.gather(*(pool.parse(f"text {n}".encode(), n) for n in names))
    assert [each.text for each in parsed] == [f"text {name}" for name in names]
    assert len(children()) == 2


async def test_a_child_knows_no_secret(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    await open_pool().parse(b"text", "a.txt")
    (child,) = children()
    environment = child.environ()
    assert "secret" not in str(environment)
    assert set(environment) <= {
        "HOME", "LANG", "LC_CTYPE", "OMP_THREAD_LIMIT", "PATH", "PYTHONPATH", "PYTHONUSERBASE",
        "RAYON_NUM_THREADS", "TESSDATA_PREFIX", "TMPDIR",
    }  # fmt: skip


async def test_a_child_works_in_a_folder_of_its_own_that_goes_with_it(open_pool: OpenPool) -> None:
    pool = open_pool()
    await pool.parse(b"text", "a.txt")
    folder = Path(children()[0].cwd())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await pool.close()
    assert not folder.exists()


@linux_only
async def test_a_child_is_bounded_by_the_kernel(open_pool: OpenPool) -> None:
    await open_pool(parse_memory_bytes=777 * MB).parse(b"text", "a.txt")
    (child,) = children()
    assert child.rlimit(psutil.RLIMIT_AS)[0] == 777 * MB
    assert child.rlimit(psutil.RLIMIT_CORE)[0] == 0
    assert child.rlimit(psutil.RLIMIT_CPU)[0] < 200
    assert child.rlimit(psutil.RLIMIT_NOFILE)[0] <= 128
    assert child.rlimit(psutil.RLIMIT_FSIZE)[0] <= 256 * MB


@linux_only
async def test_a_child_has_no_network_where_the_kernel_lets_it_go(open_pool: OpenPool) -> None:
    trial = await asyncio.create_subprocess_exec("unshare", "-n", "true", stderr=DEVNULL)
    if await trial.wait() != 0:
        pytest.skip("this machine lets nobody leave the network")
    await open_pool().parse(b"text", "a.txt")
    (child,) = children()
    mine, its = os.readlink("/proc/self/ns/net"), os.readlink(f"/proc/{child.pid}/ns/net")
    assert mine != its


def test_a_child_loads_neither_models_nor_the_database() -> None:
    check = (
        "import sys, ingestion.parsing.child;"
        "print(sorted({'torch', 'transformers', 'sqlalchemy', 'psycopg', 'numpy', 'fastapi'}"
        " & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", check], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "[]"


async def test_a_document_that_takes_too_long_is_refused(open_pool: OpenPool) -> None:
    pool = open_pool(parse_timeout_seconds=1)
    await pool.parse(b"text", "a.txt")
    before = children()[0].pid
    rejected = await refusal(pool.parse(SLOW, "slow.html"))
    assert rejected.reason == "took longer than 1 s to read"
    assert not rejected.retryable
    assert (await pool.parse(b"next", "a.txt")).text == "next"
    assert children()[0].pid != before


async def test_a_text_that_is_too_large_is_refused(open_pool: OpenPool) -> None:
    pool = open_pool(parse_output_bytes=MB)
    rejected = await refusal(pool.parse(b"word " * 300_000, "large.txt"))
    assert rejected.reason == "its text is larger than 1 MB"
    assert (await pool.parse(b"next", "a.txt")).text == "next"


@linux_only
@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("python.gz", gzip.compress(bytes(250 * MB), 1)),
        ("rust.xml", b"<a>" * 150_000 + b"x" + b"</a>" * 150_000),
    ],
)
async def test_a_document_that_needs_too_much_memory_is_refused(
    open_pool: OpenPool, filename: str, content: bytes
) -> None:
    pool = open_pool(parse_memory_bytes=384 * MB)
    rejected = await refusal(pool.parse(content, filename))
    assert rejected.reason == "needs more than 0.375 GB of memory to read"
    assert (await pool.parse(b"next", "a.txt")).text == "next"


async def test_a_crash_is_told_and_may_be_tried_again(open_pool: OpenPool) -> None:
    pool = open_pool()
    parsing = asyncio.ensure_future(pool.parse(SLOW, "slow.html"))
    await until(children)
    (child,) = children()
    # Far more than it takes to start: it is reading.
    await until(lambda: child.cpu_times().user > 1.5, seconds=60)
    child.send_signal(signal.SIGSEGV)
    rejected = await refusal(parsing)
    assert rejected.reason == "crashed the parser"
    assert rejected.retryable
    assert (await pool.parse(b"next", "a.txt")).text == "next"


async def test_a_child_that_died_while_idle_is_replaced_unnoticed(open_pool: OpenPool) -> None:
    pool = open_pool()
    await pool.parse(b"text", "a.txt")
    children()[0].kill()
    assert (await pool.parse(b"next", "a.txt")).text == "next"


async def test_a_child_retires_after_some_documents(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "CHILD_DOCUMENTS_MAX", 2)
    pool = open_pool()
    for count in (1, 0, 1, 0):
        await pool.parse(b"text", "a.txt")
        assert len(children()) == count


async def test_whoever_gives_up_waiting_leaves_no_child_at_work(open_pool: OpenPool) -> None:
    pool = open_pool()
    parsing = asyncio.ensure_future(pool.parse(SLOW, "slow.html"))
    await until(children)
    await asyncio.sleep(0.3)
    parsing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parsing
    assert children() == []
    assert (await pool.parse(b"next", "a.txt")).text == "next"


def is_unlocked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


@linux_only
async def test_a_child_dies_with_its_parent_and_its_folder_goes_later(
    tmp_path: Path, open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "slow.html"
    document.write_bytes(SLOW)
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from app.config import Settings; from ingestion.parsing.sandbox import ParserPool\n"
        "content = Path(sys.argv[1]).read_bytes()\n"
        "asyncio.run(ParserPool(Settings()).parse(content, 'slow.html'))"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(document), cwd=ROOT
    )
    try:
        await until(lambda: children(parent.pid), seconds=60)
        (child,) = children(parent.pid)
        await until(lambda: child.cpu_times().user > 1, seconds=60)
        left = Path(child.cwd())
    finally:
        parent.kill()
        await parent.wait()
    # It would have been busy for much longer.
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=3)
    # Its first thread may be gone before the last one lets go of the files.
    await until(lambda: is_unlocked(left / leftovers.LOG_FILE), seconds=3)

    monkeypatch.setattr(leftovers, "YOUNG_SECONDS", -1.0)
    pool = open_pool()
    await pool.parse(b"text", "a.txt")
    assert not left.exists()
    (living,) = children()
    leftovers.remove_leftovers()
    assert Path(living.cwd()).exists()


def impostor(folder: Path, *replies: tuple[bytes, bytes]) -> str:
    """A child that says it is ready, then `replies` whatever it is asked."""
    program = folder / "impostor"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "def say(head, text):\n"
        "    lengths = len(head).to_bytes(8, 'big') + len(text).to_bytes(8, 'big')\n"
        "    sys.stdout.buffer.write(lengths + head + text)\n"
        "say(b'{\"ready\": true}', b'')\n"
        f"for head, text in {replies!r}:\n"
        "    say(head, text)\n"
        "sys.stdout.flush()\n"
        "sys.stdin.buffer.read()\n"
    )
    program.chmod(0o700)
    return str(program)


DOCUMENT = b'{"document": {"text": "", "title": "t", "media_type": "m", "pages": [%s]}}'


@pytest.mark.parametrize(
    "reply",
    [
        (b"not JSON", b""),
        (b"{}", b"ab"),
        (b'{"document": {"text": 7}}', b"ab"),
        (b'{"document": null, "shell": "rm"}', b"ab"),
        (b"[" * 100_000, b""),
        (DOCUMENT % b"", b"ab\0"),
        (DOCUMENT % b"", b"ab\xed\xa0\x80"),
        (DOCUMENT % b"", b"ab\xe4"),
        (DOCUMENT % b'{"number": 1, "start": 0, "end": 9}', b"ab"),
        (DOCUMENT % b'{"number": 1, "start": 2, "end": 1}', b"ab"),
        (DOCUMENT % b'{"number": 1, "start": -1, "end": 1}', b"ab"),
    ],
)
async def test_a_child_gone_wrong_can_do_no_more_than_lie(
    open_pool: OpenPool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reply: tuple[bytes, bytes],
) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", impostor(tmp_path, reply))
    assert (await refusal(open_pool().parse(b"text", "a.txt"))).reason == "crashed the parser"


@pytest.mark.parametrize("reply", [(bytes(9 * MB), b""), (DOCUMENT % b"", bytes(3 * MB))])
async def test_a_child_that_announces_too_much_is_not_listened_to(
    open_pool: OpenPool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reply: tuple[bytes, bytes],
) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", impostor(tmp_path, reply))
    rejected = await refusal(open_pool(parse_output_bytes=MB).parse(b"text", "a.txt"))
    assert rejected.reason == "its text is larger than 1 MB"


async def test_a_parser_that_does_not_start_is_no_fault_of_the_document(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="does not start"):
        await open_pool().parse(b"text", "a.txt")


@linux_only
async def test_a_child_that_gives_up_without_a_word_had_no_memory(
    open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = Path(impostor(tmp_path))
    program.write_text(
        program.read_text().replace(
            "sys.stdin.buffer.read()", "sys.stdin.buffer.read(1); __import__('os').abort()"
        )
    )
    monkeypatch.setattr(sandbox.sys, "executable", str(program))
    rejected = await refusal(open_pool().parse(b"text", "a.pdf"))
    assert rejected.reason == "needs more than 2 GB of memory to read"
    assert not rejected.retryable
