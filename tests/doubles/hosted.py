"""OpenAI's and Anthropic's HTTP APIs as they are on the wire, over real sockets.

    python -m tests.doubles.hosted --port 0

prints its port, then serves both until it is ended. Errors have the form and the status that the
providers document; keys, versions and the parameters that newer models refuse are checked. Faults
strike in the next `faults_left` requests (None: in all of them).
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Fault = Literal[
    "hang", "cut", "no_end", "error_event", "garbage", "not_sse",
    "status_400", "status_429", "status_500", "status_529", "redirect", "too_much",
]  # fmt: skip

SOURCE = re.compile(r'<source id="(\d+)"[^>]*>\n(.*?)\n</source>', re.DOTALL)
FIRST_SENTENCE = re.compile(r"[^.!?]*[.!?]", re.DOTALL)
CHAT = re.compile(r"/v1/chat/completions|/openai/deployments/([^/]+)/chat/completions\?.*")
MODELS = re.compile(r"/v1/models(\?.*)?|/openai/models\?.*")


@dataclass
class HostedDouble:
    """`thinking` models refuse a temperature and `max_tokens`, and think before they write."""

    key: str = "sk-right"
    models: tuple[str, ...] = ("gpt-5", "claude-sonnet")
    thinking: tuple[str, ...] = ()
    answer: str | None = None
    stop_reason: str = "stop"
    counts_tokens: bool = True
    first_token_seconds: float = 0.0
    fault: Fault | None = None
    fault_after_tokens: int = 0
    faults_left: int | None = None
    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    aborted: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read_request(reader)) is not None:
                work = asyncio.create_task(self.reply(*request, writer))
                gone = asyncio.create_task(reader.read(1))
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    self.aborted += 1
                    work.cancel()
                gone.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)
                if work.cancelled() or work.exception():
                    return
        except ConnectionError:
            return
        finally:
            writer.close()

    async def reply(
        self, verb: str, path: str, head: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        is_anthropic = "anthropic-version" in head
        given = head.get("x-api-key") or head.get("api-key")
        given = given or head.get("authorization", "").removeprefix("Bearer ")
        if given != self.key:
            said = "invalid x-api-key" if is_anthropic else f"Incorrect API key provided: {given}."
            await self.refuse(writer, is_anthropic, 401, said)
        elif verb == "GET" and MODELS.fullmatch(path):
            await send_json(writer, 200, self.listed(is_anthropic))
        elif verb == "POST" and path == "/v1/messages" and is_anthropic:
            await self.chat(True, json.loads(body), writer)
        elif verb == "POST" and (found := CHAT.fullmatch(path)):
            request = json.loads(body)
            await self.chat(False, {**request, "model": found[1] or request["model"]}, writer)
        else:
            await self.refuse(writer, is_anthropic, 404, f"Unknown request URL: {verb} {path}")

    def listed(self, is_anthropic: bool) -> dict[str, Any]:
        if is_anthropic:
            made = "2026-01-01T00:00:00Z"
            data: list[dict[str, Any]] = [
                {"type": "model", "id": one, "display_name": one, "created_at": made}
                for one in self.models
            ]
            ends = {"first_id": self.models[0], "last_id": self.models[-1]}
            return {"data": data, "has_more": False, **ends}
        data = [
            {"id": one, "object": "model", "created": 1, "owned_by": "double"}
            for one in self.models
        ]
        return {"object": "list", "data": data}

    async def chat(
        self, is_anthropic: bool, request: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        self.requests.append(request)
        wrong = self.wrong_with(is_anthropic, request)
        if wrong is not None:
            await self.refuse(writer, is_anthropic, *wrong)
            return
        fault = self.next_fault()
        if fault in ("status_400", "status_429", "status_500", "status_529"):
            said = f"Something is wrong; your key was {self.key}."
            await self.refuse(writer, is_anthropic, int(fault.removeprefix("status_")), said)
        elif fault == "redirect":
            await send(writer, 307, b"", "text/plain", {"Location": f"{self.url}/elsewhere"})
        elif fault == "not_sse":
            await send(writer, 200, b"<html>please log in</html>", "text/html")
        else:
            await asyncio.sleep(self.first_token_seconds)
            await self.generate(is_anthropic, request, fault, writer)

    def wrong_with(self, is_anthropic: bool, request: dict[str, Any]) -> tuple[int, str] | None:
        model = request["model"]
        if model not in self.models:
            return 404, f"The model `{model}` does not exist or you do not have access to it."
        if is_anthropic:
            if "max_tokens" not in request:
                return 400, "max_tokens: Field required"
            if {"temperature", "seed"} & set(request):
                return 400, "temperature: Extra inputs are not permitted"
            if any(one["role"] == "system" for one in request["messages"]):
                return 400, "messages: Unexpected role 'system'"
        elif model in self.thinking:
            if "max_tokens" in request:
                return 400, "Unsupported parameter: 'max_tokens' is not supported with this model."
            if request.get("temperature", 1) != 1:
                return 400, "Unsupported value: 'temperature' does not support 0 with this model."
        return None

    def next_fault(self) -> Fault | None:
        if self.fault is None or self.faults_left == 0:
            return None
        if self.faults_left is not None:
            self.faults_left -= 1
        return self.fault

    async def refuse(
        self, writer: asyncio.StreamWriter, is_anthropic: bool, status: int, said: str
    ) -> None:
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        error: dict[str, Any] = {"type": kind.get(status, "api_error"), "message": said}
        content = {"error": error}
        if is_anthropic:
            content = {"type": "error", "error": error, "request_id": "req_1"}
        else:
            error |= {"param": None, "code": None}
        more = {"Retry-After": "60"} if status == 429 else {}
        await send_json(writer, status, content, more)

    async def generate(
        self,
        is_anthropic: bool,
        request: dict[str, Any],
        fault: Fault | None,
        writer: asyncio.StreamWriter,
    ) -> None:
        prompt = request["messages"][-1]["content"]
        tokens = re.findall(r"\s*\S+", self.answer or quoted(prompt))
        limit = request.get("max_tokens") or request.get("max_completion_tokens") or 1_000_000
        reason = self.stop_reason
        if fault == "too_much":
            tokens = ["word " * 10] * 5000
        elif len(tokens) > limit:
            tokens, reason = tokens[:limit], "length"
        speak = Anthropic if is_anthropic else OpenAI
        stream = speak(
            request, len(tokens), reason, self.counts_tokens, request["model"] in self.thinking
        )
        start_stream(writer)
        for event in stream.opening():
            await send_piece(writer, event)
        for count, token in enumerate([*tokens, None]):
            if fault is not None and count == min(self.fault_after_tokens, len(tokens)):
                if fault == "hang":
                    await asyncio.Event().wait()
                if fault == "cut":
                    writer.transport.abort()
                    raise ConnectionAbortedError
                if fault == "garbage":
                    await send_piece(writer, b"event: message_delta\ndata: {not json\n\n")
                if fault == "error_event":
                    await send_piece(writer, stream.error())
                if fault != "too_much":
                    await end_stream(writer)
                    return
            if token is not None:
                await send_piece(writer, stream.token(token))
        for event in stream.closing():
            await send_piece(writer, event)
        await end_stream(writer)


class OpenAI:
    """Chunks of a chat completion; usage comes last, in a chunk without choices."""

    def __init__(
        self, request: dict[str, Any], tokens: int, reason: str, counts: bool, thinks: bool
    ) -> None:
        self.head = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": f"{request['model']}-2026-01-01",
        }
        self.reason = reason
        self.thinks = thinks
        asked = request.get("stream_options", {}).get("include_usage")
        self.usage = None
        if asked and counts:
            self.usage = {
                "prompt_tokens": 120,
                "completion_tokens": tokens,
                "total_tokens": 120 + tokens,
                "prompt_tokens_details": {"cached_tokens": 20, "audio_tokens": 0},
            }

    def chunk(self, choices: list[Any], usage: object = None) -> bytes:
        content = {**self.head, "choices": choices, "usage": usage}
        return f"data: {json.dumps(content)}\n\n".encode()

    def choice(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return self.chunk([{"index": 0, "delta": delta, "finish_reason": reason}])

    def opening(self) -> list[bytes]:
        opened = [self.choice({"role": "assistant", "content": ""})]
        if self.thinks:
            opened.append(self.choice({"reasoning_content": "Let me see.", "content": None}))
        return opened

    def token(self, token: str) -> bytes:
        return self.choice({"content": token})

    def error(self) -> bytes:
        content = {"error": {"message": "The server had an error.", "type": "server_error"}}
        return f"data: {json.dumps(content)}\n\n".encode()

    def closing(self) -> list[bytes]:
        last = [self.choice({}, self.reason)]
        if self.usage:
            last.append(self.chunk([], self.usage))
        return [*last, b"data: [DONE]\n\n"]


class Anthropic:
    """Events of a message; tokens are counted at the start and, cumulatively, at the end."""

    def __init__(
        self, request: dict[str, Any], tokens: int, reason: str, counts: bool, thinks: bool
    ) -> None:
        self.model = request["model"]
        self.tokens = tokens
        self.reason = {"stop": "end_turn", "length": "max_tokens"}.get(reason, reason)
        self.thinks = thinks

    def event(self, kind: str, **content: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n".encode()

    def opening(self) -> list[bytes]:
        counted = {
            "input_tokens": 90,
            "cache_creation_input_tokens": 10,
            "cache_read_input_tokens": 20,
            "output_tokens": 1,
        }
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": counted,
        }
        opened = [self.event("message_start", message=message)]
        if self.thinks:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            thought = {"type": "thinking_delta", "thinking": "Let me see."}
            opened += [
                self.event("content_block_start", index=0, content_block=block),
                self.event("content_block_delta", index=0, delta=thought),
                self.event("content_block_stop", index=0),
            ]
        block = {"type": "text", "text": ""}
        opened.append(self.event("content_block_start", index=1, content_block=block))
        return [*opened, self.event("ping")]

    def token(self, token: str) -> bytes:
        delta = {"type": "text_delta", "text": token}
        return self.event("content_block_delta", index=1, delta=delta)

    def error(self) -> bytes:
        return self.event("error", error={"type": "overloaded_error", "message": "Overloaded"})

    def closing(self) -> list[bytes]:
        delta = {"stop_reason": self.reason, "stop_sequence": None}
        return [
            self.event("content_block_stop", index=1),
            self.event("message_delta", delta=delta, usage={"output_tokens": self.tokens}),
            self.event("message_stop"),
        ]


def quoted(prompt: str) -> str:
    """The first sentence of the prompt's first source, with its marker."""
    found = SOURCE.search(prompt)
    if found is None:
        return "Hello."
    sentence = FIRST_SENTENCE.search(found[2])
    return f"{(sentence[0] if sentence else found[2]).strip()} [{found[1]}]"


# --- HTTP/1.1, by hand, to control every byte -----------------------------------------------------


async def read_request(
    reader: asyncio.StreamReader,
) -> tuple[str, str, dict[str, str], bytes] | None:
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = text.split("\r\n")
    verb, path, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in lines if line)
    head = {name.strip().lower(): value.strip() for name, value in pairs}
    return verb, path, head, await reader.readexactly(int(head.get("content-length", 0)))


async def send(
    writer: asyncio.StreamWriter,
    status: int,
    content: bytes,
    kind: str,
    more: dict[str, str] | None = None,
) -> None:
    head = {"Content-Type": kind, "Content-Length": str(len(content)), **(more or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + content)
    await writer.drain()


async def send_json(
    writer: asyncio.StreamWriter, status: int, content: object, more: dict[str, str] | None = None
) -> None:
    await send(writer, status, json.dumps(content).encode(), "application/json", more)


def start_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


async def send_piece(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
    await writer.drain()
    await asyncio.sleep(0)


async def end_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")
    await writer.drain()


@asynccontextmanager
async def running_hosted(port: int = 0, **behaviour: Any) -> AsyncIterator[HostedDouble]:
    """Serves in this event loop; its fields may be changed while it runs."""
    double = HostedDouble(**behaviour)
    server = await asyncio.start_server(double.serve, "127.0.0.1", port)
    double.port = server.sockets[0].getsockname()[1]
    try:
        yield double
    finally:
        server.close()


async def run(port: int, behaviour: dict[str, Any]) -> None:
    async with running_hosted(port, **behaviour) as double:
        sys.stdout.write(f"{double.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", type=json.loads, default={}, help="as JSON")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.port, arguments.behaviour))
