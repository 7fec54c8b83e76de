"""A way to a server that can be made to hang, to refuse and to break."""

import asyncio
from pathlib import Path
from typing import Literal, Self


class SocketProxy:
    """Listens on a port of this machine and passes connections on to a unix socket.

    `mode` holds for new connections and for what comes over open ones: `hangs` says nothing,
    `refuses` closes at once. Without a socket there is only hanging and refusing.
    """

    def __init__(
        self,
        socket_path: Path | None = None,
        mode: Literal["passes", "hangs", "refuses"] = "passes",
    ) -> None:
        self.mode = mode
        self.connections_count = 0
        self._socket_path = socket_path
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_count += 1
        if self.mode == "refuses":
            writer.close()
            return
        self._writers.append(writer)
        if self._socket_path is None:
            return
        back_reader, back_writer = await asyncio.open_unix_connection(self._socket_path)
        self._writers.append(back_writer)
        self._pumps += [
            asyncio.create_task(self._pump(reader, back_writer)),
            asyncio.create_task(self._pump(back_reader, writer)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            if self.mode == "passes":
                writer.write(content)
                await writer.drain()
        writer.close()
