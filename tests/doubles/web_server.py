"""A web server that behaves as badly as a test wants it to."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """A plain reply; the connection stays open for the next request."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        fields = {"Content-Length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name}: {fields[name]}" for name in fields)]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


Route = Answer | Callable[[Request], Answer] | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""An answer, a function that finds one, or a coroutine that writes to the connection itself."""


class WebServer:
    """`requests` are those that came; what has no route gets 404."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[Request] = []
        self.connections_count = 0
        self.port = 0
        self.scheme = "http"
        self._open: set[asyncio.StreamWriter] = set()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_count += 1
        self._open.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                fields = dict(line.split(": ", 1) for line in lines)
                request = Request(first.split(" ")[1], fields)
                self.requests.append(request)
                route = self.routes.get(urlsplit(request.path).path, Answer(status=404))
                if asyncio.iscoroutinefunction(route):
                    await route(writer)
                    break
                answer = route if isinstance(route, Answer) else route(request)
                assert isinstance(answer, Answer)
                writer.write(answer.encoded())
                await writer.drain()
        writer.close()
        self._open.discard(writer)

    def hang_up(self) -> None:
        for writer in self._open:
            writer.close()


@asynccontextmanager
async def serving_web(
    routes: Mapping[str, Route] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[WebServer]:
    web = WebServer()
    web.routes |= routes or {}
    web.scheme = "https" if tls else "http"
    server = await asyncio.start_server(web.serve, host, port, ssl=tls)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        server.close()
        web.hang_up()
        await server.wait_closed()
