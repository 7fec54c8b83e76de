"""FOOTNOTE_HOME on disk: the folder itself, where its sockets stand, and who is using it.

The servers of a home (PostgreSQL, Redis) are shared by all processes that work on it. Nobody
counts those processes: each holds a shared lock on a file, which the kernel releases even when a
process is killed, and whoever can take that lock alone was the last one.
"""

import fcntl
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
import structlog

from app.errors import HomeBusy, StartupError

log = structlog.get_logger(__name__)

LOCK_TIMEOUT_SECONDS = 180.0
LOCK_POLL_SECONDS = 0.02
PROGRAM_TIMEOUT_SECONDS = 10.0

# A socket's whole path may have 103 bytes on macOS; the longest name in the folder has 14.
RUNTIME_PATH_MAX_BYTES = 85
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")
SHORT_RUNTIME_ROOT = Path("/tmp")  # noqa: S108 - short and the same for every process; checked below

SERVER_ACCOUNT = "footnote"


NOBODYS_DOCUMENTS = """\
# What Footnote keeps in its home is nobody's document, also when a folder around it is ingested.
/models/
/postgres*
/redis*
/run/
/serve.lock
"""


def prepare_home(home: Path) -> Path:
    """The home's real path, made if need be; raises StartupError when it cannot be written."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"footnote")
        with suppress(FileExistsError), (home / ".footnoteignore").open("x") as ignores:
            ignores.write(NOBODYS_DOCUMENTS)
    except OSError as error:
        raise unwritable(home, error) from error
    return home.resolve()


def unwritable(home: Path, error: OSError) -> StartupError:
    return StartupError(
        f"FOOTNOTE_HOME {home} cannot be written: {error.strerror or error}.",
        hint="Free space there, or set FOOTNOTE_HOME to a folder that you may write to.",
    )


# --- the account that servers run as --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Account:
    """The user that servers run as. PostgreSQL refuses to run as root, so root lends itself one."""

    uid: int
    gid: int
    is_lent: bool

    def own(self, path: Path) -> None:
        if self.is_lent:
            os.chown(path, self.uid, self.gid)

    def let_through(self, path: Path) -> None:
        """Allow this user to pass through the folders above `path` (not to list them)."""
        if not self.is_lent:
            return
        for folder in path.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
                log.info("folder_opened_for_passage", folder=str(folder), user=self.uid)


def server_account(data: Path) -> Account:
    """Who runs the servers: the owner of `data` for root, otherwise the user of this process."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_lent=False)
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, is_lent=True)
    entry = _account_entry(SERVER_ACCOUNT)
    if entry is None and (useradd := shutil.which("useradd")):
        run_program(
            [useradd, "--system", "--no-create-home", "--shell", "/bin/false", SERVER_ACCOUNT],
            Account(0, 0, is_lent=False),
            timeout_seconds=PROGRAM_TIMEOUT_SECONDS,
        )
        entry = _account_entry(SERVER_ACCOUNT)
    entry = entry or _account_entry("nobody")
    if entry is None:
        raise StartupError(
            "The embedded PostgreSQL cannot run as root, and there is no other user to run it as.",
            hint="Run Footnote as an ordinary user, or set FOOTNOTE_DATABASE_URL.",
        )
    return Account(entry.pw_uid, entry.pw_gid, is_lent=True)


def _account_entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


# --- where sockets stand --------------------------------------------------------------------------


def runtime_directory(home: Path, account: Account) -> Path:
    """The private folder for the home's sockets, the same for every process that asks.

    It is `home/run`, unless that path is too long for a socket or would need quoting in a URL.
    """
    path = home / "run"
    if len(os.fsencode(path)) > RUNTIME_PATH_MAX_BYTES or not PLAIN_PATH.fullmatch(str(path)):
        digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
        path = SHORT_RUNTIME_ROOT / f"footnote-{account.uid}-{digest}"
    try:
        path.mkdir(mode=0o700)
        account.own(path)
    except FileExistsError:
        pass
    except OSError as error:
        raise unwritable(home, error) from error
    found = path.lstat()
    if path.is_symlink() or not path.is_dir() or found.st_uid != account.uid:
        raise StartupError(
            f"{path} must be a folder that belongs to user {account.uid}, and it does not.",
            hint=f"Remove {path}, or set FOOTNOTE_HOME to another folder.",
        )
    path.chmod(0o700)
    account.let_through(path)
    return path


# --- who is using it ------------------------------------------------------------------------------


@contextmanager
def exclusive_lock(path: Path, *, timeout_seconds: float = LOCK_TIMEOUT_SECONDS) -> Generator[None]:
    """Hold the lock file alone; raises HomeBusy when another process keeps it too long."""
    descriptor = _open_lock(path)
    try:
        deadline = time.monotonic() + timeout_seconds
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise HomeBusy(
                    f"Another process has held {path} for {timeout_seconds:.0f} seconds.",
                    hint="Wait for the other Footnote process to finish, or end it.",
                )
            time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


class SharedUse:
    """This process's share in the use of something; call its methods under one exclusive lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def join(self) -> None:
        if self._descriptor is None:
            self._descriptor = _open_lock(self._path)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def leave(self) -> bool:
        """Give the share back; True when nobody else has one."""
        if self._descriptor is None:
            return False
        try:
            return _try_lock(self._descriptor, fcntl.LOCK_EX)
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def has_others(self) -> bool:
        """Whether another process has a share; asked before joining."""
        descriptor = _open_lock(self._path)
        try:
            return not _try_lock(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unwritable(path.parent, error) from error


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class SharedServer(ABC):
    """A server of a home: the first process in starts it, the last one out stops it.

    A server that a killed process left behind is attached to when it is healthy.
    """

    name: ClassVar[str]

    def __init__(self, home: Path) -> None:
        self.home = home

    def start(self) -> str:
        """The server's URL; raises StartupError. Safe to race against other processes."""
        self.home = prepare_home(self.home)
        with self._mutex():
            self._locate()
            self._use = SharedUse(self.home / f"{self.name}.users")
            has_other_users = self._use.has_others()
            self._use.join()
            try:
                self._ensure_running(has_other_users=has_other_users)
            except BaseException:
                # Whatever it is, a signal perhaps: nothing stays behind that nobody uses.
                if self._use.leave():
                    self._shut_down()
                raise
        return self._url()

    def stop(self) -> None:
        """Leave the server to the others, or stop it when there are none; harmless twice."""
        if not hasattr(self, "_use"):
            return
        with self._mutex():
            if self._use.leave():
                self._shut_down()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _mutex(self) -> AbstractContextManager[None]:
        return exclusive_lock(self.home / f"{self.name}.lock")

    @abstractmethod
    def _locate(self) -> None:
        """Find out who runs it and where; nothing is started yet."""

    @abstractmethod
    def _ensure_running(self, *, has_other_users: bool) -> None: ...

    @abstractmethod
    def _url(self) -> str: ...

    @abstractmethod
    def _shut_down(self) -> None: ...


def run_program(
    arguments: Sequence[str | Path], account: Account, *, timeout_seconds: float
) -> tuple[int, str]:
    """The exit status and all output of a server's tool, run as `account`.

    Output goes through a file: a server that the tool leaves running would keep a pipe open.
    The environment is bare, because PG* variables would change what the tools do. The session is
    its own, so that Ctrl-C at the terminal reaches Footnote only, which then stops the server.
    """
    with tempfile.TemporaryFile() as output:
        finished = subprocess.run(  # noqa: S603 - our own words
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd="/",
            start_new_session=True,
            timeout=timeout_seconds,
            check=False,
            user=account.uid if account.is_lent else None,
            group=account.gid if account.is_lent else None,
            extra_groups=[] if account.is_lent else None,
        )
        output.seek(0)
        return finished.returncode, output.read().decode(errors="replace")


def wait_until_gone(process: psutil.Process, *, timeout_seconds: float) -> bool:
    """Whether the process ended in time; one that nobody has reaped yet has ended."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False
