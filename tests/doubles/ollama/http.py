"""HTTP/1.1 by hand: as little work per token as can be, and every byte under control."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

CONTENT_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CLOSE = re.compile(rb"(?i)\r\nconnection: *close")


@dataclass(frozen=True)
class Request:
    verb: str
    path: str
    body: bytes
    closes: bool = False

    def json(self) -> dict[str, Any]:
        """The body; raises ValueError when it is no JSON object."""
        loaded = json.loads(self.body)
        if not isinstance(loaded, dict):
            raise TypeError("the body is not a JSON object")
        return loaded


Handler = Callable[[Request, "Connection"], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client's requests, one after the other. A client that leaves cancels its request."""

    def __init__(self, handle: Handler, connections: set["Connection"]) -> None:
        self._handle = handle
        self._connections = connections
        self._received = b""
        self._work: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._transport: asyncio.Transport
        self._verb = ""

    # --- what the loop calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._begin_next()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._work is not None:
            self._work.cancel()

    # --- requests --------------------------------------------------------------------------------

    def _begin_next(self) -> None:
        if self._work is None and (request := self._take_request()) is not None:
            self._verb = request.verb
            self._work = asyncio.create_task(self._serve(request))

    def _take_request(self) -> Request | None:
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator:
            return None
        length = CONTENT_LENGTH.search(head)
        size = int(length.group(1)) if length else 0
        if len(rest) < size:
            return None
        self._received = rest[size:]
        verb, path, _ = head.decode("latin-1").split(" ", 2)
        return Request(verb, path.partition("?")[0], rest[:size], bool(CLOSE.search(head)))

    async def _serve(self, request: Request) -> None:
        try:
            await self._handle(request, self)
        except Exception:
            self.cut()
            raise
        self._work = None
        if request.closes:
            self._transport.close()
        else:
            self._begin_next()

    # --- replies ---------------------------------------------------------------------------------

    def send(self, status: int, content: bytes, kind: str) -> None:
        phrase = HTTPStatus(status).phrase
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self._transport.write(head.encode() + (b"" if self._verb == "HEAD" else content))

    def send_json(self, status: int, content: object) -> None:
        self.send(status, json.dumps(content).encode(), "application/json; charset=utf-8")

    def start_stream(self) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def send_piece(self, content: bytes) -> None:
        """A chunk of the stream; waits while the client does not read."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(content), content))
        await self._may_write.wait()

    def end_stream(self) -> None:
        self._transport.write(b"0\r\n\r\n")

    def cut(self) -> None:
        self._transport.abort()
