"""`footnote serve`: the service and all that it needs around it, started and stopped in order.

Database and Redis → API → worker. The port is bound before: whoever calls has done it before
importing this file, because a taken port is the most common reason to fail and all else is slow.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import FrameType

import httpx
import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

import app
from app.cache.embedded import EmbeddedRedis
from app.config import Settings
from app.db.schema import ready_database
from app.errors import FootnoteError, HomeBusy
from app.home import exclusive_lock, prepare_home
from app.listening import base_url
from app.main import create_app
from app.telemetry import DEGRADED

log = structlog.get_logger(__name__)

REPLY_MARGIN_SECONDS = 5.0
WORKER_DRAIN_SECONDS = 35.0
WORKER_PAUSES_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
WORKER_STEADY_SECONDS = 60.0
POLL_SECONDS = 0.02

YOUNG_OBJECTS = 20_000, 20, 20
"""How many new ones Python waits for before it looks for cycles among them: by itself 700."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Companion = Callable[[str, "Parts"], Awaitable[bool]]
"""Accompanies the service, from before it answers, with its address and its parts; the service
ends with it when it returns False."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Settings whose database and Redis run; without a Redis the caches live in each process."""

    settings: Settings
    redis_kind: str

    def environment(self) -> dict[str, str]:
        """This process's environment, with which a child process finds the same parts.

        And this very package, whatever lies in the working directory.
        """
        path = [str(Path(app.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "FOOTNOTE_HOME": str(self.settings.home),
            "FOOTNOTE_LOG_LEVEL": self.settings.log_level,
            "FOOTNOTE_DATABASE_URL": _plain(self.settings.database_url),
            "FOOTNOTE_REDIS_URL": _plain(self.settings.redis_url),
        }


def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    with_worker: bool | None = None,
    companion: Companion | None = None,
) -> None:
    """Serve until a signal says stop: the first one drains, the second is immediate.

    `with_worker` defaults to whether the database is the embedded one: a given database has
    workers of its own. Raises StartupError or DatabaseUnavailable.
    """
    is_embedded = settings.database_url is None
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.root.level))
    with ExitStack() as stack:
        address = base_url(settings, port=listener.getsockname()[1])
        if is_embedded:
            stack.enter_context(_only_server_of_home(settings.home, address))
        parts = stack.enter_context(opened_parts(settings))
        service = _Service(parts, listener, address)
        loop_factory = service.server.config.get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(
                service.run(
                    with_worker=is_embedded if with_worker is None else with_worker,
                    companion=companion,
                )
            )


@contextmanager
def opened_parts(settings: Settings) -> Generator[Parts]:
    """The configured database and Redis, or the embedded ones for as long as the block runs.

    The embedded database is migrated. A given one is not even reached for here: the service
    starts while it is away.
    """
    with ExitStack() as stack:
        found: dict[str, SecretStr] = {}
        redis_kind = "external"
        if settings.database_url is None:
            found["database_url"] = SecretStr(stack.enter_context(ready_database(settings)))
        if settings.redis_url is None:
            redis = EmbeddedRedis(settings.home)
            stack.callback(redis.stop)
            if url := redis.start():
                found["redis_url"] = SecretStr(url)
            redis_kind = redis.kind
        yield Parts(settings.model_copy(update=found), redis_kind)


@asynccontextmanager
async def private_service(
    settings: Settings, *, with_worker: bool = False
) -> AsyncGenerator[httpx.AsyncClient]:
    """The service inside this process, for its owner only.

    It listens on a socket in a folder that nobody else may enter, so it asks for no key.
    """
    with opened_parts(settings) as parts, tempfile.TemporaryDirectory() as folder:
        private = parts.settings.model_copy(update={"host": "127.0.0.1", "auth": "off"})
        socket_path = str(Path(folder) / "footnote.sock")
        service = create_app(private, redis_kind=parts.redis_kind)
        server = _Server(_uvicorn_config(private, service, uds=socket_path))
        async with service.router.lifespan_context(service):
            serving = asyncio.create_task(server.serve())
            stopping = asyncio.Event()
            worker = WorkerProcess(parts).keep_running(stopping) if with_worker else None
            working = asyncio.create_task(worker) if worker else None
            try:
                while not server.started and not serving.done():
                    await asyncio.sleep(POLL_SECONDS)
                transport = httpx.AsyncHTTPTransport(uds=socket_path)
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://127.0.0.1"
                ) as client:
                    yield client
            finally:
                stopping.set()
                server.should_exit = True
                await serving
                if working is not None:
                    await working


@contextmanager
def _only_server_of_home(home: Path, address: str) -> Generator[None]:
    lock = prepare_home(home) / "serve.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(lock, timeout_seconds=0))
        except HomeBusy:
            raise HomeBusy(
                f"Footnote already serves {home} at {lock.read_text() or 'another address'}.",
                hint="Use that one, or set FOOTNOTE_HOME to run a second one beside it.",
            ) from None
        lock.write_text(address)
        yield


# --- the service ----------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn without its habit of raising the signal again, which would skip the cleaning up.

    The handler stays a method of the server: event streams find out through it that it stops.
    """

    on_signal: Callable[[], object] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        if self.on_signal:
            self.on_signal()

    @contextmanager
    def handling_signals(self) -> Generator[None]:
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _uvicorn_config(
    settings: Settings, service: FastAPI, *, uds: str | None = None
) -> uvicorn.Config:
    return uvicorn.Config(
        service,
        uds=uds,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        # Whose word on the client's address counts is said by whoever puts a proxy in front.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        timeout_graceful_shutdown=round(settings.shutdown_grace_seconds + REPLY_MARGIN_SECONDS),
    )


class _Service:
    """The API, its worker and its companion, from the first moment to the last."""

    def __init__(self, parts: Parts, listener: socket.socket, address: str) -> None:
        self._parts = parts
        self._listener = listener
        self._address = address
        self._app = create_app(parts.settings, redis_kind=parts.redis_kind)
        self._worker = WorkerProcess(parts)
        self._stopping = asyncio.Event()
        self.server = _Server(_uvicorn_config(parts.settings, self._app))

    async def run(self, *, with_worker: bool, companion: Companion | None) -> None:
        loop = asyncio.get_running_loop()
        living = asyncio.create_task(self._live(with_worker, companion))

        def stop_or_hurry() -> None:
            # Nothing is lost by breaking off a start; a second signal breaks off the stop.
            log.info("stopping", at_once=self._stopping.is_set())
            if self._stopping.is_set() or not self.server.started:
                living.cancel()
            self._stop()

        self.server.on_signal = lambda: loop.call_soon_threadsafe(stop_or_hurry)
        with self.server.handling_signals():
            try:
                await living
            except asyncio.CancelledError:
                if not self._stopping.is_set():
                    raise
            except BaseExceptionGroup as group:
                if refused := group.subgroup(FootnoteError):
                    raise _first(refused) from None
                raise

    def _stop(self) -> None:
        self.server.should_exit = True
        self._stopping.set()

    async def _live(self, with_worker: bool, companion: Companion | None) -> None:
        async with asyncio.TaskGroup() as group:
            accompanying = group.create_task(self._accompany(companion)) if companion else None
            try:
                async with self._app.router.lifespan_context(self._app):
                    if with_worker:
                        group.create_task(self._worker.keep_running(self._stopping))
                    else:
                        log.info("uploads_wait_for_a_worker", start_one="footnote worker")
                    log.info("serving", address=self._address)
                    _spare_what_stays()
                    await self.server.serve(sockets=[self._listener])
            finally:
                self._stop()
                if accompanying:
                    accompanying.cancel()

    async def _accompany(self, companion: Companion) -> None:
        if not await companion(self._address, self._parts):
            self._stop()


class WorkerProcess:
    """The worker beside the API: a process of its own, started again whenever it dies."""

    def __init__(self, parts: Parts) -> None:
        self._environment = parts.environment()

    async def keep_running(self, stopping: asyncio.Event) -> None:
        """Returns once `stopping` is set and the worker has put its work down."""
        failures = 0
        while True:
            started = monotonic()
            process = await self._spawn()
            DEGRADED.labels("worker").set(0)
            await self._live(process, stopping)
            if stopping.is_set():
                return
            failures = 1 if monotonic() - started > WORKER_STEADY_SECONDS else failures + 1
            pause_seconds = WORKER_PAUSES_SECONDS[min(failures, len(WORKER_PAUSES_SECONDS)) - 1]
            DEGRADED.labels("worker").set(1)
            log.error("worker_died", status=process.returncode, again_in_seconds=pause_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await stopping.wait()
                    return

    async def _spawn(self) -> Process:
        # A session of its own: Ctrl-C at the terminal is for Footnote, which then stops it.
        # It is told its parent, so that it does not outlive one that was killed.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "app.cli", "--parent", str(os.getpid()), "worker"),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _live(self, process: Process, stopping: asyncio.Event) -> None:
        ended = asyncio.create_task(process.wait())
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
                await asyncio.wait({ended}, timeout=WORKER_DRAIN_SECONDS)
        finally:
            stop.cancel()
            if not ended.done():
                log.warning("worker_killed")
                process.kill()
                await ended


def _spare_what_stays() -> None:
    """What was opened for good is not looked through again and again for cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG_OBJECTS)


def _first(group: BaseExceptionGroup[FootnoteError]) -> FootnoteError:
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def _plain(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""
