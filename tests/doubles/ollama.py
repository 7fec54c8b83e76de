"""An Ollama server that behaves like the real one on the wire, in a process of its own.

    python -m tests.doubles.ollama --port 0

prints its port and the port of its control, then serves until it is ended. It keeps to what
Ollama does: slots with an unbounded line before them, no byte before the first token, a reload
whenever the context length changes, `done` on the last line, and an abort when the client leaves.
Speeds, slots, answers and faults are switched over the control port; see `Behaviour`.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import httpx

Fault = Literal["hang", "cut", "no_done", "error_line", "garbage", "status_500", "status_503"]

SOURCE = re.compile(r'<source id="(\d+)"[^>]*>\n(.*?)\n</source>', re.DOTALL)
FIRST_SENTENCE = re.compile(r"[^.!?]*[.!?]", re.DOTALL)


@dataclass(frozen=True)
class Behaviour:
    """`fault` strikes after `fault_after_tokens` in the next `faults_left` requests (None: all).

    Without `answer`, the first sentence of each source in the prompt is quoted with its marker;
    with `invented_marker` that marker is added to the end.
    """

    model: str = "llama3.1:8b"
    digest: str = "42182419e950" + "0" * 52
    slots: int = 1
    load_seconds: float = 0.0
    first_token_seconds: float = 0.0
    token_seconds: float = 0.0
    answer: str | None = None
    quoted_sources: int = 1
    invented_marker: int | None = None
    done_reason: str = "stop"
    piece_bytes: int | None = None
    fault: Fault | None = None
    fault_after_tokens: int = 0
    faults_left: int | None = None
    refuses: bool = False


@dataclass
class Stats:
    requests: int = 0
    generating: int = 0
    most_generating: int = 0
    waiting: int = 0
    completed: int = 0
    aborted: int = 0
    loads: int = 0
    last_request: dict[str, Any] | None = None


class Server:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.stats = Stats()
        self.slot_freed = asyncio.Condition()
        self.loaded_options: tuple[Any, ...] | None = None
        self.port = 0
        self.listener: asyncio.Server | None = None

    async def listen(self, port: int) -> None:
        self.listener = await asyncio.start_server(self.serve, "127.0.0.1", port)
        self.port = self.listener.sockets[0].getsockname()[1]

    async def change(self, changes: dict[str, Any]) -> None:
        self.behaviour = replace(self.behaviour, **changes)
        if self.behaviour.refuses and self.listener:
            self.listener.close()
            self.listener = None
        elif not self.behaviour.refuses and not self.listener:
            await self.listen(self.port)
        async with self.slot_freed:
            self.slot_freed.notify_all()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests until either side closes it."""
        try:
            while (request := await read_request(reader)) is not None:
                work = asyncio.create_task(self.reply(*request, writer))
                gone = asyncio.create_task(reader.read(1))
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    self.stats.aborted += 1
                    work.cancel()
                gone.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)
                if work.cancelled() or work.exception():
                    return
        except ConnectionError:
            return
        finally:
            writer.close()

    async def reply(self, verb: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/":
            await send(writer, 200, b"Ollama is running", "text/plain")
        elif path == "/api/version":
            await send_json(writer, 200, {"version": "0.33.0"})
        elif path == "/api/tags":
            name, digest = self.behaviour.model, self.behaviour.digest
            model = {"name": name, "model": name, "size": 1, "digest": digest}
            await send_json(writer, 200, {"models": [model]})
        elif path == "/api/chat" and verb == "POST":
            await self.chat(json.loads(body), writer)
        else:
            await send(writer, 404, b"404 page not found", "text/plain")

    async def chat(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.stats.requests += 1
        self.stats.last_request = request
        if request["model"] != self.behaviour.model:
            await send_json(writer, 404, {"error": f"model '{request['model']}' not found"})
            return
        fault = self.next_fault()
        if fault == "status_503":
            error = "server busy, please try again.  maximum pending requests exceeded"
            await send_json(writer, 503, {"error": error})
        elif fault == "status_500":
            await send_json(writer, 500, {"error": "llama runner process has terminated"})
        else:
            async with self.slot():
                await self.load(request["options"])
                await self.generate(request, fault, writer)

    def next_fault(self) -> Fault | None:
        fault, left = self.behaviour.fault, self.behaviour.faults_left
        if fault is None or left == 0:
            return None
        if left is not None:
            self.behaviour = replace(self.behaviour, faults_left=left - 1)
        return fault

    def slot(self) -> "Slot":
        return Slot(self)

    async def load(self, options: dict[str, Any]) -> None:
        wanted = tuple(options.get(name) for name in ("num_ctx", "num_batch", "num_gpu"))
        if wanted != self.loaded_options:
            self.stats.loads += 1
            await asyncio.sleep(self.behaviour.load_seconds)
            self.loaded_options = wanted

    async def generate(
        self, request: dict[str, Any], fault: Fault | None, writer: asyncio.StreamWriter
    ) -> None:
        behaviour = self.behaviour
        tokens = re.findall(r"\s*\S+", self.answer(request["messages"]))
        reason = behaviour.done_reason
        if len(tokens) > (limit := request["options"]["num_predict"]):
            tokens, reason = tokens[:limit], "length"
        await asyncio.sleep(behaviour.first_token_seconds)
        started = False
        for count, token in enumerate([*tokens, None]):
            if fault is not None and count == min(behaviour.fault_after_tokens, len(tokens)):
                if not started and fault not in ("hang", "cut"):
                    start_stream(writer)
                await self.strike(fault, writer)
                return
            if not started:
                start_stream(writer)
                started = True
            line = {"model": behaviour.model, "created_at": "2026-08-01T00:00:00Z"}
            if token is None:
                last = {"done": True, "done_reason": reason, "total_duration": 1_000_000}
                counts = {"prompt_eval_count": 100, "eval_count": len(tokens)}
                message = {"message": {"role": "assistant", "content": ""}}
                await self.send_line(writer, line | message | last | counts)
            else:
                message = {"message": {"role": "assistant", "content": token}, "done": False}
                await self.send_line(writer, line | message)
                await asyncio.sleep(behaviour.token_seconds)
        await end_stream(writer)
        self.stats.completed += 1

    async def strike(self, fault: Fault, writer: asyncio.StreamWriter) -> None:
        if fault == "hang":
            await asyncio.Event().wait()
        elif fault == "cut":
            writer.transport.abort()
            raise ConnectionAbortedError
        elif fault == "no_done":
            await end_stream(writer)
        elif fault == "error_line":
            await self.send_line(writer, {"error": "an error was encountered while running"})
            await end_stream(writer)
        elif fault == "garbage":
            await send_piece(writer, b"<html>upstream is sad</html>\n")
            await end_stream(writer)

    async def send_line(self, writer: asyncio.StreamWriter, line: dict[str, Any]) -> None:
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        size = self.behaviour.piece_bytes or len(content)
        for at in range(0, len(content), size):
            await send_piece(writer, content[at : at + size])

    def answer(self, messages: list[dict[str, str]]) -> str:
        behaviour = self.behaviour
        if behaviour.answer is not None:
            return behaviour.answer
        sources = SOURCE.findall(messages[-1]["content"])[: behaviour.quoted_sources]
        quotes = []
        for marker, text in sources:
            found = FIRST_SENTENCE.search(text)
            quotes.append(f"{found.group().strip() if found else text.strip()} [{marker}]")
        if behaviour.invented_marker is not None:
            quotes.append(f"And this is well known [{behaviour.invented_marker}].")
        return " ".join(quotes) or "Hello."

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await read_request(reader)) is not None:
            verb, path, body = request
            if path == "/reset":
                await self.change(asdict(Behaviour()))
                self.stats, self.loaded_options = Stats(), None
            elif verb == "POST":
                await self.change(json.loads(body))
            await send_json(writer, 200, asdict(self.stats))
        writer.close()


class Slot:
    """A place to generate in; waiting for one is unbounded, as it is in Ollama."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __aenter__(self) -> None:
        server = self.server
        async with server.slot_freed:
            server.stats.waiting += 1
            try:
                await server.slot_freed.wait_for(
                    lambda: server.stats.generating < server.behaviour.slots
                )
            finally:
                server.stats.waiting -= 1
            server.stats.generating += 1
        server.stats.most_generating = max(server.stats.most_generating, server.stats.generating)

    async def __aexit__(self, *_: object) -> None:
        self.server.stats.generating -= 1
        async with self.server.slot_freed:
            self.server.slot_freed.notify_all()


# --- HTTP/1.1, by hand, to control every byte ----------------------------------------------------


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes] | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    verb, path, _ = head.split(" ", 2)
    length = re.search(r"(?i)content-length: (\d+)", head)
    return verb, path, await reader.readexactly(int(length.group(1)) if length else 0)


async def send(writer: asyncio.StreamWriter, status: int, content: bytes, kind: str) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()


async def send_json(writer: asyncio.StreamWriter, status: int, content: object) -> None:
    await send(writer, status, json.dumps(content).encode(), "application/json")


def start_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )


async def send_piece(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
    await writer.drain()
    await asyncio.sleep(0)


async def end_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def run(port: int, behaviour: Behaviour) -> None:
    server = Server(behaviour)
    await server.listen(port)
    control = await asyncio.start_server(server.control, "127.0.0.1", 0)
    sys.stdout.write(f"{server.port} {control.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await control.serve_forever()


# --- for the tests -------------------------------------------------------------------------------


class OllamaDouble:
    """A running double. `set(...)` changes its behaviour, `stats()` says what it has seen."""

    def __init__(self, port: int, control_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._control = httpx.Client(
            base_url=f"http://127.0.0.1:{control_port}", trust_env=False, timeout=30
        )

    def set(self, **changes: Any) -> None:
        self._control.post("/", json=changes).raise_for_status()

    def reset(self) -> None:
        """As it was when it started; nothing may be in flight."""
        self._control.post("/reset").raise_for_status()

    def stats(self) -> Stats:
        return Stats(**self._control.get("/").json())

    def close(self) -> None:
        self._control.close()


@contextmanager
def running_ollama(**behaviour: Any) -> Iterator[OllamaDouble]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.doubles.ollama"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        port, control_port = process.stdout.readline().split()
        double = OllamaDouble(int(port), int(control_port))
        double.set(**behaviour)
        yield double
        double.close()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", type=json.loads, default={}, help="as JSON")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.port, Behaviour(**arguments.behaviour)))
