"""The endpoints of Ollama, and `/double/…` to look inside and to switch faults.

Both are served on both ports, so that a double that refuses connections can still be told to stop.
"""

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import datetime
from time import perf_counter
from typing import Any, Literal

from tests.doubles.ollama.behaviour import Behaviour, Fault
from tests.doubles.ollama.engine import Engine, Runner, ServerBusy, Slot
from tests.doubles.ollama.generation import (
    CRASHED,
    TOKEN,
    Failure,
    Generation,
    nanoseconds,
    now,
)
from tests.doubles.ollama.http import Connection, Request

VERSION = "0.33.0"
DEFAULT_CONTEXT_TOKENS = 4096
EMBEDDING_DIMENSIONS = 32
RELOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
"""Options that belong to a loaded model: with other ones it is loaded again."""

BUSY = "server busy, please try again.  maximum pending requests exceeded"

DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Server:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.engine = Engine(behaviour)
        self.port = 0
        self.connections: set[Connection] = set()
        self.listener: asyncio.Server | None = None
        self.flapping: asyncio.Task[None] | None = None
        self.routes: dict[str, dict[str, Callable[..., Awaitable[None]]]] = {
            "/": {"GET": self.root, "HEAD": self.root},
            "/api/version": {"GET": self.version, "HEAD": self.version},
            "/api/tags": {"GET": self.tags, "HEAD": self.tags},
            "/api/ps": {"GET": self.ps},
            "/api/show": {"POST": self.show},
            "/api/chat": {"POST": self.chat},
            "/api/generate": {"POST": self.generate},
            "/api/embed": {"POST": self.embed},
            "/double/faults": {"POST": self.switch},
            "/double/reset": {"POST": self.reset},
            "/double/stats": {"GET": self.tell},
        }

    # --- the life of the double ------------------------------------------------------------------

    async def listen(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(
            lambda: Connection(self.handle, self.connections), "127.0.0.1", port
        )
        self.port = self.listener.sockets[0].getsockname()[1]

    async def listen_for_control(self, port: int) -> int:
        """A second port, which no fault closes."""
        loop = asyncio.get_running_loop()
        control = await loop.create_server(
            lambda: Connection(self.handle, set()), "127.0.0.1", port
        )
        return control.sockets[0].getsockname()[1]

    async def change(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.engine.change(behaviour)
        await self.open_or_close(refuses=behaviour.refuses)
        if self.flapping is not None:
            self.flapping.cancel()
            self.flapping = None
        if behaviour.flap_seconds:
            self.flapping = asyncio.create_task(self.flap(behaviour.flap_seconds))

    async def open_or_close(self, *, refuses: bool) -> None:
        if refuses and self.listener:
            self.listener.close()
            self.listener = None
            for connection in list(self.connections):
                connection.cut()
        elif not refuses and not self.listener:
            await self.listen(self.port)

    async def flap(self, seconds: float) -> None:
        refuses = True
        while True:
            await self.open_or_close(refuses=refuses)
            await asyncio.sleep(seconds)
            refuses = not refuses

    async def handle(self, request: Request, connection: Connection) -> None:
        verbs = self.routes.get(request.path)
        if verbs is None:
            connection.send(404, b"404 page not found", "text/plain")
        elif request.verb not in verbs:
            connection.send(405, b"405 method not allowed", "text/plain")
        else:
            try:
                await verbs[request.verb](request, connection)
            except Failure as failure:
                connection.send_json(failure.status, {"error": failure.error})

    # --- the inside ------------------------------------------------------------------------------

    async def switch(self, request: Request, connection: Connection) -> None:
        """Any fields of Behaviour."""
        try:
            changes = request.json()
            behaviour = replace(self.behaviour, **changes)
        except (ValueError, TypeError) as error:
            raise Failure(400, str(error)) from None
        await self.change(behaviour)
        connection.send_json(200, asdict(self.engine.stats))

    async def reset(self, request: Request, connection: Connection) -> None:
        await self.change(Behaviour())
        self.engine.forget()
        connection.send_json(200, asdict(self.engine.stats))

    async def tell(self, request: Request, connection: Connection) -> None:
        connection.send_json(200, asdict(self.engine.stats))

    # --- what answers even while generation is wedged --------------------------------------------

    async def root(self, request: Request, connection: Connection) -> None:
        connection.send(200, b"Ollama is running", "text/plain; charset=utf-8")

    async def version(self, request: Request, connection: Connection) -> None:
        connection.send_json(200, {"version": VERSION})

    async def tags(self, request: Request, connection: Connection) -> None:
        models = [about(name) | {"modified_at": now()} for name in self.models()]
        models[0]["digest"] = self.behaviour.digest
        connection.send_json(200, {"models": models})

    async def ps(self, request: Request, connection: Connection) -> None:
        models = [
            about(runner.model)
            | {
                "expires_at": (runner.expires_at or datetime.max).isoformat(),
                "size_vram": about(runner.model)["size"],
                "context_length": runner.context_tokens,
            }
            for runner in self.engine.runners.values()
        ]
        connection.send_json(200, {"models": models})

    async def show(self, request: Request, connection: Connection) -> None:
        model = self.known_model(body_of(request))
        thinks = ["thinking"] if self.behaviour.thoughts else []
        connection.send_json(
            200,
            {
                "details": about(model)["details"],
                "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
                "capabilities": ["completion", *thinks],
                "modified_at": now(),
            },
        )

    # --- generation ------------------------------------------------------------------------------

    async def chat(self, request: Request, connection: Connection) -> None:
        await self.answer("chat", body_of(request), connection)

    async def generate(self, request: Request, connection: Connection) -> None:
        await self.answer("generate", body_of(request), connection)

    async def answer(
        self, kind: Literal["chat", "generate"], body: dict[str, Any], connection: Connection
    ) -> None:
        model = self.count(body)
        if body.get("think") and not self.behaviour.thoughts:
            raise Failure(400, f'"{model}" does not support thinking')
        fault = self.next_fault()
        if fault == "status_503":
            raise Failure(503, BUSY)
        if fault == "status_500":
            raise Failure(500, CRASHED)
        generation = Generation(kind, body, model, fault, self.behaviour, connection)
        try:
            # Who only wants the model in memory takes no slot.
            counted = self.engine.arrival() if generation.asks else nullcontext()
            async with counted, self.loaded(model, body) as runner:
                generation.load_seconds = perf_counter() - generation.started
                if generation.asks:
                    await self.run(generation, runner)
                else:
                    reason = "unload" if runner.keep_seconds == 0 else "load"
                    connection.send_json(200, generation.last_line(reason))
        except asyncio.CancelledError:
            self.engine.stats.aborted += 1
            raise

    async def run(self, generation: Generation, runner: Runner) -> None:
        """Waits for a slot, reads the prompt, writes; the slot is free before the last line."""
        if len(generation.prompt) > runner.context_tokens:
            if generation.request.get("truncate") is False:
                raise Failure(400, "the input length exceeds the context length")
            del generation.prompt[: -runner.context_tokens]
        slot = await self.engine.take_slot(runner, generation.prompt)
        keeps_slot = False
        try:
            last_line = await self.write(generation, slot)
        except asyncio.CancelledError:
            keeps_slot = self.behaviour.leaks_slots
            raise
        finally:
            if not keeps_slot:
                self.engine.give_slot(runner, slot)
        if last_line is not None:
            self.engine.stats.completed += 1
            await generation.end(last_line)

    async def write(self, generation: Generation, slot: Slot) -> dict[str, Any] | None:
        """The last line of the answer, which is not sent yet; None when a fault ended it."""
        prompt = generation.prompt
        thoughts, tokens, reason = generation.parts()
        count = len(thoughts) + len(tokens)
        strikes_at = min(generation.behaviour.fault_after_tokens, count)
        if generation.fault is None:
            strikes_at = count + 1

        started = perf_counter()
        await self.engine.read(len(prompt) - slot.cached_tokens(prompt))
        slot.cached = prompt
        read = perf_counter()
        generation.prefill_seconds = read - started
        due = asyncio.get_running_loop().time()
        for number, token in enumerate([*thoughts, *tokens]):
            if number == strikes_at:
                break
            due = await self.engine.step(due)
            if generation.streams:
                await generation.send_line(generation.line(token, thinking=number < len(thoughts)))
        if strikes_at <= count:
            await generation.strike()
            return None
        generation.decode_seconds = perf_counter() - read
        slot.cached = prompt + tokens
        text = "" if generation.streams else "".join(tokens)
        return generation.last_line(reason, count=count, text=text)

    # --- embeddings ------------------------------------------------------------------------------

    async def embed(self, request: Request, connection: Connection) -> None:
        body = body_of(request)
        model = self.count(body)
        given = body.get("input", "")
        texts = [given] if isinstance(given, str) else given
        if self.next_fault() is not None:
            raise Failure(400, CRASHED)
        started = perf_counter()
        async with self.loaded(model, body):
            load_seconds = perf_counter() - started
            count = sum(len(TOKEN.findall(text)) for text in texts)
            await self.engine.read(count)
        reply = {
            "model": body["model"],
            "embeddings": [embedding(text) for text in texts],
            "total_duration": nanoseconds(perf_counter() - started),
            "load_duration": nanoseconds(load_seconds),
            "prompt_eval_count": count,
        }
        connection.send_json(200, {name: value for name, value in reply.items() if value != 0})

    # --- models and faults -----------------------------------------------------------------------

    def count(self, body: dict[str, Any]) -> str:
        """Notes a request for work; the model that it names."""
        self.engine.stats.requests += 1
        self.engine.stats.last_request = body
        return self.known_model(body)

    @asynccontextmanager
    async def loaded(self, model: str, body: dict[str, Any]) -> AsyncGenerator[Runner]:
        options = body.get("options") or {}
        loading = tuple(options.get(name) for name in RELOADING)
        context_tokens = int(options.get("num_ctx") or DEFAULT_CONTEXT_TOKENS)
        keep_seconds = keep_alive_seconds(body.get("keep_alive"))
        try:
            async with self.engine.loaded(model, loading, context_tokens, keep_seconds) as runner:
                yield runner
        except ServerBusy:
            raise Failure(503, BUSY) from None

    def models(self) -> list[str]:
        return [with_tag(self.behaviour.model), *map(with_tag, self.behaviour.other_models)]

    def known_model(self, body: dict[str, Any]) -> str:
        name = body.get("model") or body.get("name") or ""
        if not name:
            raise Failure(400, "model is required")
        if with_tag(name) not in self.models():
            raise Failure(404, f"model '{name}' not found")
        return with_tag(name)

    def next_fault(self) -> Fault | None:
        fault, left = self.behaviour.fault, self.behaviour.faults_left
        if fault is None or left == 0:
            return None
        if left is not None:
            self.behaviour = replace(self.behaviour, faults_left=left - 1)
        return fault


def body_of(request: Request) -> dict[str, Any]:
    with suppress(ValueError, TypeError):
        return request.json()
    raise Failure(400, "invalid JSON")


def keep_alive_seconds(given: object) -> float | None:
    """Seconds, or a Go duration such as `1h30m`; None for ever, five minutes by default."""
    if given is None:
        return 300.0
    if isinstance(given, str):
        try:
            seconds = float(given)
        except ValueError:
            parts = DURATION.findall(given)
            if not parts:
                raise Failure(400, f'time: invalid duration "{given}"') from None
            seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
            seconds = -seconds if given.startswith("-") else seconds
    else:
        seconds = float(given)  # type: ignore[arg-type]
    return None if seconds < 0 else seconds


def about(model: str) -> dict[str, Any]:
    return {
        "name": model,
        "model": model,
        "size": 4_920_753_328,
        "digest": hashlib.sha256(model.encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "8.0B",
            "quantization_level": "Q4_K_M",
        },
    }


def embedding(text: str) -> list[float]:
    """Always the same for a text, of length 1, and without meaning."""
    raw = hashlib.shake_256(text.encode()).digest(EMBEDDING_DIMENSIONS)
    numbers = [byte - 127.5 for byte in raw]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def with_tag(model: str) -> str:
    return model if ":" in model.rsplit("/", 1)[-1] else f"{model}:latest"
