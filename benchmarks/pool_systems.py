"""The contenders of benchmarks/pool.py: each gives a function that streams the text of an answer.

Those that stand between client and instance (nginx, HAProxy) or choose an instance for the client
(slot-weighted least connections) are used with one plain client, which is as cheap as can be, so
that the comparison is of choices. All of them retry before the first token, and give up on an
instance that says nothing for SILENCE_SECONDS; Footnote has the settings that it comes with.
"""

import asyncio
import json
import os
import shutil
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.config import Settings
from app.errors import GenerationInterrupted, GenerationUnavailable, Overloaded
from app.llm.base import Message, TextDelta
from app.llm.registry import generation_options, open_chat_model
from benchmarks.pool_trace import (
    CONTEXT_TOKENS,
    MODEL,
    SILENCE_SECONDS,
    TIMEOUT_SECONDS,
    Machine,
)

ATTEMPTS = 3
MAX_TOKENS = 512

Stream = Callable[[str], AsyncGenerator[str]]
"""From a prompt to the pieces of its answer; raises one of the three below."""


class Refused(Exception):
    """Sent away at once because too much is waiting."""


class Unanswered(Exception):
    """No text came."""


class Broken(Exception):
    """It ended in the middle of the text."""


@dataclass(frozen=True)
class Fleet:
    """The instances of one contender, in no particular order, and what time is multiplied by."""

    urls: tuple[str, ...]
    machines: tuple[Machine, ...]
    scale: float

    @property
    def ports(self) -> list[int]:
        return [int(url.rsplit(":", 1)[1]) for url in self.urls]

    @property
    def silence_seconds(self) -> float:
        return SILENCE_SECONDS * self.scale

    @property
    def timeout_seconds(self) -> float:
        return TIMEOUT_SECONDS * self.scale


# --- Footnote ------------------------------------------------------------------------------------


@asynccontextmanager
async def footnote(fleet: Fleet, folder: Path) -> AsyncIterator[Stream]:
    slots = [machine.slots for machine in fleet.machines]
    settings = Settings(
        home=folder,
        ollama_urls=tuple(f"{url}#slots={n}" for url, n in zip(fleet.urls, slots, strict=True)),
        model=MODEL,
    )
    pool = open_chat_model(settings)
    assert pool is not None
    pool.start()
    options = generation_options(settings)

    async def stream(prompt: str) -> AsyncGenerator[str]:
        async with aclosing(pool.stream([Message("user", prompt)], options)) as events:
            try:
                async for event in events:
                    if isinstance(event, TextDelta):
                        yield event.text
            except Overloaded as error:
                raise Refused from error
            except GenerationUnavailable as error:
                raise Unanswered(error.detail) from error
            except GenerationInterrupted as error:
                raise Broken(error.detail) from error

    try:
        yield stream
    finally:
        await pool.close()


# --- one plain client ----------------------------------------------------------------------------


async def ask(port: int, prompt: str, silence_seconds: float) -> AsyncGenerator[str]:
    """The pieces of an answer from whatever listens at `port`."""
    has_text = False
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(silence_seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps(request_body(prompt)).encode()
            head = f"POST /api/chat HTTP/1.1\r\nHost: pool\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status.split(b"\r\n", 1)[0]:
            raise Unanswered(status.split(b"\r\n", 1)[0].decode())
        received = b""
        while size := int(await reader.readline(), 16):
            received += (await reader.readexactly(size + 2))[:size]
            *lines, received = received.split(b"\n")
            for line in map(json.loads, lines):
                if line["done"]:
                    return
                yield line["message"]["content"]
                has_text = True
        raise EOFError("the stream ended without done")
    except (TimeoutError, OSError, EOFError, ValueError, KeyError) as error:
        raise (Broken if has_text else Unanswered)(repr(error)) from error
    finally:
        if writer is not None:
            writer.close()


def request_body(prompt: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "options": {"num_ctx": CONTEXT_TOKENS, "num_predict": MAX_TOKENS},
    }


@asynccontextmanager
async def weighted(fleet: Fleet, folder: Path) -> AsyncIterator[Stream]:
    """To the instance with the fewest requests for its slots; without a queue of its own.

    Equals take turns, since their order must not tell their speed.
    """
    turns = deque(fleet.ports)
    in_flight = dict.fromkeys(fleet.ports, 0)
    slots = dict(zip(fleet.ports, (each.slots for each in fleet.machines), strict=True))

    async def stream(prompt: str) -> AsyncGenerator[str]:
        tried: set[int] = set()
        while True:
            turns.rotate()
            free = [port for port in turns if port not in tried]
            port = min(free, key=lambda each: (in_flight[each] + 1) / slots[each])
            tried.add(port)
            in_flight[port] += 1
            try:
                async with aclosing(ask(port, prompt, fleet.silence_seconds)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except Unanswered:
                if len(tried) == ATTEMPTS:
                    raise
            finally:
                in_flight[port] -= 1

    yield stream


# --- proxies -------------------------------------------------------------------------------------


@asynccontextmanager
async def nginx(fleet: Fleet, folder: Path) -> AsyncIterator[Stream]:
    async with running(proxy_command("nginx"), folder, NGINX, fleet, "") as stream:
        yield stream


@asynccontextmanager
async def haproxy_leastconn(fleet: Fleet, folder: Path) -> AsyncIterator[Stream]:
    async with running(proxy_command("haproxy"), folder, HAPROXY, fleet, "leastconn") as stream:
        yield stream


@asynccontextmanager
async def haproxy_first(fleet: Fleet, folder: Path) -> AsyncIterator[Stream]:
    """`balance first` fills the servers in the order of their lines: ranked by speed, by hand."""
    async with running(proxy_command("haproxy"), folder, HAPROXY, fleet, "first") as stream:
        yield stream


NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream instances {{
    least_conn;
{servers}
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://instances;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_connect_timeout 2s;
      proxy_read_timeout {silence_ms}ms;
      proxy_next_upstream error timeout http_500 http_503 non_idempotent;
      proxy_next_upstream_tries 3;
    }}
  }}
}}
"""
NGINX_SERVER = "    server 127.0.0.1:{port};"

HAPROXY = """
global
  maxconn 4000
defaults
  mode http
  timeout client {timeout_ms}ms
  timeout connect 2s
  timeout server {silence_ms}ms
  timeout queue {timeout_ms}ms
  retries 2
  option redispatch 1
  option http-server-close
  retry-on conn-failure empty-response response-timeout 500 503
frontend all
  bind 127.0.0.1:{port}
  default_backend instances
backend instances
  balance {balance}
  option httpchk GET /api/version
{servers}
"""
HAPROXY_SERVER = "  server s{port} 127.0.0.1:{port} maxconn {slots} check inter 2s"


def proxy_command(name: str) -> str:
    """Raises FileNotFoundError, so that the benchmark can say so and go on."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; on Debian: apt install {name}")
    return found


@asynccontextmanager
async def running(
    command: str, folder: Path, template: str, fleet: Fleet, balance: str
) -> AsyncIterator[Stream]:
    """A proxy in the foreground before the fleet, fastest first."""
    is_nginx = template is NGINX
    port = free_port()
    ranked = sorted(zip(fleet.ports, fleet.machines, strict=True), key=lambda each: -each[1].speed)
    line = NGINX_SERVER if is_nginx else HAPROXY_SERVER
    config = folder / "proxy.conf"
    config.write_text(
        template.format(
            folder=folder,
            port=port,
            balance=balance,
            silence_ms=round(fleet.silence_seconds * 1000),
            timeout_ms=round(fleet.timeout_seconds * 1000),
            servers="\n".join(line.format(port=p, slots=m.slots) for p, m in ranked),
        )
    )
    arguments = ["-c", str(config), "-p", str(folder)] if is_nginx else ["-db", "-f", str(config)]
    process = await asyncio.create_subprocess_exec(
        command, *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await listening(port)
        yield lambda prompt: ask(port, prompt, fleet.timeout_seconds)
    finally:
        process.terminate()
        await process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def listening(port: int) -> None:
    for _ in range(100):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the proxy did not start")


# --- LiteLLM -------------------------------------------------------------------------------------


@asynccontextmanager
async def litellm_least_busy(fleet: Fleet, folder: Path) -> AsyncIterator[Stream]:
    """Its Router in this process. FOOTNOTE_BENCH_LITELLM is a folder that it was installed into.

    `pip install --target FOLDER litellm` takes 360 MB; it is no dependency. It is kept from asking
    the network for its table of prices, and sends no telemetry of its own.
    """
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    if extra := os.environ.get("FOOTNOTE_BENCH_LITELLM"):
        sys.path.append(extra)
    import litellm  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    litellm.suppress_debug_info = True
    router = litellm.Router(
        model_list=[
            {
                "model_name": "pool",
                "litellm_params": {"model": f"ollama_chat/{MODEL}", "api_base": url},
            }
            for url in fleet.urls
        ],
        routing_strategy="least-busy",
        num_retries=ATTEMPTS - 1,
        timeout=fleet.silence_seconds,
        stream_timeout=fleet.silence_seconds,
    )

    async def stream(prompt: str) -> AsyncGenerator[str]:
        has_text = False
        try:
            chunks = await router.acompletion(
                model="pool",
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                num_ctx=CONTEXT_TOKENS,
                max_tokens=MAX_TOKENS,
            )
            async for chunk in chunks:
                if text := chunk.choices[0].delta.content:
                    yield text
                    has_text = True
        except Exception as error:
            raise (Broken if has_text else Unanswered)(type(error).__name__) from error

    yield stream


SYSTEMS = {
    "footnote": footnote,
    "haproxy_first": haproxy_first,
    "haproxy_leastconn": haproxy_leastconn,
    "weighted": weighted,
    "nginx": nginx,
    "litellm": litellm_least_busy,
}
HEAVY_SYSTEMS = {"litellm"}
"""Those that take half a core for themselves."""
