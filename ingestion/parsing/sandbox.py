"""Parses documents in child processes that may be slow, hungry or killed without harm."""

import asyncio
import codecs
import os
import shutil
import signal
import site
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import structlog
from pydantic import BaseModel, ConfigDict

import ingestion
from app.config import Settings
from app.errors import DocumentRejected, Unavailable
from ingestion.parsing.leftovers import (
    FOLDER_PREFIX,
    LOG_FILE,
    mark_as_used,
    remove_leftovers,
)
from ingestion.parsing.protocol import HEAD_BYTES_MAX, REPLY_HEADER, ChildLimits, request_header
from ingestion.types import ParsedDocument

CHILD_DOCUMENTS_MAX = 200
"""Then a child makes way for a fresh one, whatever its documents have left in its memory."""
START_TIMEOUT_SECONDS = 60.0
STDERR_TAIL_BYTES = 4096
REASON_CHARS_MAX = 300
PIECE_BYTES = 256 * 1024

log: Any = structlog.get_logger(__name__)


class ParserPool:
    """Up to `processes` children, started when they are needed and used again and again."""

    def __init__(self, settings: Settings, processes: int = 1) -> None:
        self._settings = settings
        self._places = asyncio.Semaphore(processes)
        self._idle: list[_Child] = []
        self._has_started = False
        self._closed = False

    async def parse(self, content: bytes, filename: str) -> ParsedDocument:
        """The document that a file holds.

        Raises DocumentRejected with a reason for people, retryable when the parser crashed;
        Unavailable when it does not even start.
        """
        async with self._places:
            while True:
                child = self._idle.pop() if self._idle else await self._start()
                is_fresh = child.documents_count == 0
                try:
                    return await child.parse(content, filename)
                except _Crashed:
                    if is_fresh:
                        raise DocumentRejected("crashed the parser", retryable=True) from None
                    # It may have died of the documents before: ask one that has seen none.
                finally:
                    await self._give_back(child)

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().end()

    async def _start(self) -> "_Child":
        if not self._has_started:
            self._has_started = True
            await asyncio.to_thread(remove_leftovers)
        return await _Child.start(self._settings)

    async def _give_back(self, child: "_Child") -> None:
        worn = child.documents_count >= CHILD_DOCUMENTS_MAX
        if child.is_ready and not worn and not self._closed:
            self._idle.append(child)
        else:
            await child.end()


class _Crashed(Exception):
    """The child died, or talked nonsense, for no reason that it told."""


class _Reply(BaseModel):
    """What a child may say; whatever else it says, a document made it say."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = False
    document: ParsedDocument | None = None
    """Without its text, which comes after it."""
    reason: str | None = None
    too_large: bool = False
    out_of_memory: bool = False
    fault: str | None = None


class _Child:
    """One process. `is_ready` while it waits for a document."""

    def __init__(self, process: Process, folder: Path, settings: Settings) -> None:
        self.documents_count = 0
        self.is_ready = False
        self._process = process
        self._requests = cast("asyncio.StreamWriter", process.stdin)
        self._replies = cast("asyncio.StreamReader", process.stdout)
        self._folder = folder
        self._timeout_seconds = settings.parse_timeout_seconds
        self._output_bytes = settings.parse_output_bytes
        self._memory_bytes = settings.parse_memory_bytes

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        try:
            process = await _spawn(folder, settings)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        child = cls(process, folder, settings)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                child.is_ready = (await child._receive())[0].ready
        except (TimeoutError, _Crashed):
            raise _does_not_start(child._last_words()) from None
        finally:
            if not child.is_ready:
                await child.end()
        return child

    async def parse(self, content: bytes, filename: str) -> ParsedDocument:
        self.documents_count += 1
        self.is_ready = False
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._send(request_header(filename, content), content)
                reply, text = await self._receive()
        except TimeoutError:
            raise DocumentRejected(self._too_slow()) from None
        except _Crashed:
            raise await self._explained() from None
        if reply.out_of_memory:
            raise DocumentRejected(self._too_hungry())
        self.is_ready = True
        if reply.fault:
            log.warning("parser_fault", filename=filename, fault=reply.fault)
        if reply.too_large:
            raise DocumentRejected(self._too_large())
        if reply.reason:
            raise DocumentRejected(reply.reason[:REASON_CHARS_MAX])
        document = replace(reply.document, text=text) if reply.document else None
        if document is None or not _is_sound(document):
            self.is_ready = False
            raise _Crashed
        return document

    async def end(self) -> None:
        """Kill the process, whatever it is doing, and remove what it wrote."""
        self.is_ready = False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._requests.close()
        await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _send(self, header: bytes, content: bytes) -> None:
        """Piece by piece: what the pipe does not take at once is copied."""
        try:
            self._requests.write(header)
            for start in range(0, len(content), PIECE_BYTES):
                self._requests.write(content[start : start + PIECE_BYTES])
                await self._requests.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise _Crashed from None

    async def _receive(self) -> tuple[_Reply, str]:
        try:
            header = await self._replies.readexactly(REPLY_HEADER.size)
            head_length, text_length = REPLY_HEADER.unpack(header)
            if head_length > HEAD_BYTES_MAX or text_length > self._output_bytes:
                raise DocumentRejected(self._too_large())
            reply = _Reply.model_validate_json(await self._replies.readexactly(head_length))
            return reply, await self._receive_text(text_length)
        except (asyncio.IncompleteReadError, ConnectionResetError, ValueError):
            raise _Crashed from None

    async def _receive_text(self, length: int) -> str:
        """Decoded as it comes, so that a long text is not held as bytes too."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        text = ""
        while length:
            piece = await self._replies.readexactly(min(length, PIECE_BYTES))
            length -= len(piece)
            # Python lets a string that nobody else holds grow in place; joining would hold it twice.
            text += decoder.decode(piece, final=not length)
        return text

    async def _explained(self) -> DocumentRejected | _Crashed:
        """Why the child died, as far as its exit status and its last words tell."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = await self._process.wait()
        last_words = self._last_words()
        if status in (-signal.SIGXCPU, -signal.SIGALRM):
            return DocumentRejected(self._too_slow())
        # PDFium says nothing when it gets no memory.
        gave_up = status == -signal.SIGABRT and not last_words
        if gave_up or "memory allocation of" in last_words or "MemoryError" in last_words:
            return DocumentRejected(self._too_hungry())
        log.warning("parser_crashed", status=status, stderr=last_words)
        return _Crashed()

    def _last_words(self) -> str:
        try:
            with (self._folder / LOG_FILE).open("rb") as stderr:
                stderr.seek(max(os.fstat(stderr.fileno()).st_size - STDERR_TAIL_BYTES, 0))
                return stderr.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _too_slow(self) -> str:
        return f"took longer than {self._timeout_seconds:g} s to read"

    def _too_hungry(self) -> str:
        return f"needs more than {self._memory_bytes / 1024**3:.3g} GB of memory to read"

    def _too_large(self) -> str:
        return f"its text is larger than {self._output_bytes / 1024**2:.3g} MB"


async def _spawn(folder: Path, settings: Settings) -> Process:
    limits = ChildLimits(
        memory_bytes=settings.parse_memory_bytes,
        output_bytes=settings.parse_output_bytes,
        timeout_seconds=settings.parse_timeout_seconds,
        parent_pid=os.getpid(),
    )
    try:
        with (folder / LOG_FILE).open("wb") as stderr:
            mark_as_used(stderr)
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "ingestion.parsing.child", limits.to_argument()),
                stdin=PIPE,
                stdout=PIPE,
                stderr=stderr,
                cwd=folder,
                env=_environment(folder),
                limit=PIECE_BYTES,
                # Ctrl-C in a terminal is for the parent, which ends its children itself.
                start_new_session=True,
            )
    except OSError as error:
        raise _does_not_start(str(error)) from None


def _does_not_start(last_words: str) -> Unavailable:
    log.error("parser_start_failed", reason=last_words)
    return Unavailable(
        "The document parser does not start.",
        hint="The service's log has its last words; `footnote doctor` may say more.",
    )


def _is_sound(document: ParsedDocument) -> bool:
    """Whether the database can store it, and its pages and sections lie in its text."""
    ends = [0, *(offset for page in document.pages for offset in (page.start, page.end))]
    starts = [0, *(section.start for section in document.outline)]
    return "\0" not in document.text and all(
        places == sorted(places) and places[-1] <= len(document.text) for places in (ends, starts)
    )


def _environment(folder: Path) -> dict[str, str]:
    """All that a child knows of its surroundings: no secret of the service is in it."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        # Where this code and its libraries are, however they were installed.
        "PYTHONPATH": str(Path(ingestion.__file__).parents[1]),
        "PYTHONUSERBASE": site.getuserbase(),
        # Threads of one child would take the cores of its siblings.
        "RAYON_NUM_THREADS": "1",
        "OMP_THREAD_LIMIT": "1",
    }
    if data := os.environ.get("TESSDATA_PREFIX"):
        environment["TESSDATA_PREFIX"] = data
    return environment
