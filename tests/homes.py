"""Homes with a database in them, and other processes that use them."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import psutil

HOLD = """
import sys
from pathlib import Path
from app.config import Settings
from app.telemetry import configure_logging
from {module} import {server}
configure_logging(Settings(log_level="error"))
server = {server}(Path(sys.argv[1]))
print(server.start(), flush=True)
sys.stdin.read()
server.stop()
"""


class Holder:
    """Another process that uses a server of a home until it is told to leave."""

    def __init__(self, module: str, server: str, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(module=module, server=server), str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        """The server's URL, once it runs."""
        return cast("IO[str]", self.process.stdout).readline().strip()

    def leave(self) -> int:
        self.process.communicate(timeout=60)
        return self.process.returncode

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)


@contextmanager
def holder(module: str, server: str, home: Path) -> Iterator[Holder]:
    started = Holder(module, server, home)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


def copy_home(template: Path, home: Path) -> Path:
    """A home of the test's own, without the seconds that initdb takes."""
    home.mkdir(parents=True)
    subprocess.run(["cp", "-a", str(template / "postgres"), str(home)], check=True)
    return home


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits for its parent's notice does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
