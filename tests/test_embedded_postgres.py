"""The embedded PostgreSQL: shared by processes, stopped by the last, and never left broken."""

import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import psycopg
import pytest

from app.db import embedded
from app.db.embedded import EmbeddedPostgres
from app.db.supervision import kept_running
from app.errors import DatabaseUnsuitable, HomeBusy, StartupError
from tests.homes import Holder, copy_home, holder, is_alive


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("template")
    with EmbeddedPostgres(home):
        pass
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Iterator[Path]:
    home = copy_home(template, tmp_path / "h")
    yield home
    if (home / "postgres" / "postmaster.pid").exists():
        with EmbeddedPostgres(home):
            pass


def postmaster(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().split("\n")[0])


def another(home: Path) -> AbstractContextManager[Holder]:
    return holder("app.db.embedded", "EmbeddedPostgres", home)


def ask(url: str, *statements: str) -> object:
    """The first column of the last statement's first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = [connection.execute(statement) for statement in statements]  # type: ignore[arg-type]
        row = rows[-1].fetchone() if rows[-1].description else None
    return row[0] if row else None


def test_a_new_home_gets_a_private_durable_database(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    unfinished = home / "postgres.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")  # an initdb that was killed

    with EmbeddedPostgres(home) as url:
        assert ask(url, "SELECT current_database()") == "footnote"
        assert ask(url, "SHOW fsync") == "on"
        assert ask(url, "SHOW synchronous_commit") == "on"
        assert ask(url, "SHOW listen_addresses") == ""
        assert ask(url, "SHOW jit") == "off"
        server = postmaster(home)
        assert not psutil.Process(server).net_connections(kind="inet")
        assert stat.S_IMODE((home / "run").stat().st_mode) == 0o700
        # Ctrl-C at the terminal must reach Footnote only.
        assert os.getsid(server) != os.getsid(0)
    assert not is_alive(server)


def test_two_processes_share_a_server_and_the_last_one_stops_it(home: Path) -> None:
    mine = EmbeddedPostgres(home)
    url = mine.start()
    server = postmaster(home)
    with another(home) as other:
        assert other.url() == url
        assert postmaster(home) == server
        mine.stop()
        assert ask(url, "SELECT 1") == 1
        assert other.leave() == 0
    assert not is_alive(server)
    mine.stop()


def test_two_processes_may_start_at_the_same_moment(home: Path) -> None:
    with another(home) as one, another(home) as two:
        assert one.url() == two.url() != ""
        assert one.leave() == two.leave() == 0
    assert not (home / "postgres" / "postmaster.pid").exists()


def test_the_server_of_a_killed_process_is_taken_over_and_not_counted(home: Path) -> None:
    with another(home) as other:
        url = other.url()
        server = postmaster(home)
        other.kill()
    with EmbeddedPostgres(home) as again:
        assert again == url
        assert postmaster(home) == server
    assert not is_alive(server)


def test_a_killed_server_starts_again_with_what_was_committed(home: Path) -> None:
    with another(home) as other:
        url = other.url()
        ask(url, "CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (7)")
        with psycopg.connect(url, autocommit=True):  # its backend outlives the server
            server = postmaster(home)
            os.kill(server, signal.SIGKILL)
            with EmbeddedPostgres(home) as again:
                assert postmaster(home) != server
                assert ask(again, "SELECT id FROM kept") == 7


def test_a_server_that_is_killed_under_its_users_is_started_again_once(home: Path) -> None:
    server, other = EmbeddedPostgres(home), EmbeddedPostgres(home)
    with server as url, other, kept_running(server), kept_running(other):
        ask(url, "CREATE TABLE kept AS SELECT 7 AS number")
        killed = postmaster(home)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: postmaster_or_none(home) not in (None, killed) and answers(url))
        assert ask(url, "SELECT number FROM kept") == 7
        again = postmaster(home)
    assert not is_alive(again)
    assert (home / "postgres.log").read_text().count("starting PostgreSQL") == 2


def test_a_cluster_that_was_removed_is_not_made_anew_behind_its_users_back(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with server:
        (home / "postgres").rename(home / "elsewhere")
        assert not server.is_running
        assert not server.revive()
        (home / "elsewhere").rename(home / "postgres")
        assert server.is_running


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def postmaster_or_none(home: Path) -> int | None:
    try:
        return postmaster(home)
    except (FileNotFoundError, ValueError):
        return None


def answers(url: str) -> bool:
    try:
        return ask(url, "SELECT 1") == 1
    except psycopg.OperationalError:
        return False


def test_a_stale_pid_file_that_names_somebody_elses_process(home: Path) -> None:
    # After a crash of the machine, the server's old process id belongs to anyone.
    lines = [str(os.getpid()), str(home / "postgres"), "1", "5432", "/nowhere", "", "1 1", "ready"]
    pid_file = home / "postgres" / "postmaster.pid"
    pid_file.write_text("\n".join(lines))
    data = (home / "postgres").stat()
    os.chown(pid_file, data.st_uid, data.st_gid)
    with EmbeddedPostgres(home) as url:
        assert ask(url, "SELECT 1") == 1
        assert postmaster(home) != os.getpid()


def test_a_server_that_does_not_answer_is_replaced_unless_others_use_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "CONNECT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(embedded, "SILENCE_GRACE_SECONDS", 0.1)
    with another(home) as other:
        other.url()
        server = postmaster(home)
        os.kill(server, signal.SIGSTOP)
        with pytest.raises(HomeBusy, match="does not answer"):
            EmbeddedPostgres(home).start()
        other.kill()
    with EmbeddedPostgres(home) as url:
        assert postmaster(home) != server
        assert ask(url, "SELECT 1") == 1
    assert not is_alive(server)


def test_a_database_of_another_postgresql_is_refused(home: Path) -> None:
    (home / "postgres" / "PG_VERSION").write_text("19\n")
    with pytest.raises(DatabaseUnsuitable, match="PostgreSQL 19") as refused:
        EmbeddedPostgres(home).start()
    assert "FOOTNOTE_HOME" in refused.value.hint


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    (home / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(StartupError, match="pg_control|control file") as refused:
        EmbeddedPostgres(home).start()
    assert "postgres.log" in refused.value.hint
    assert "control" in (home / "postgres.log").read_text()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StartupError, match="cannot be written") as refused:
        EmbeddedPostgres(tmp_path / "file" / "home").start()
    assert "FOOTNOTE_HOME" in refused.value.hint


def test_a_full_disk_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 1024**2)
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(StartupError, match="5 MB of free space"):
        EmbeddedPostgres(tmp_path / "home").start()
    assert not (tmp_path / "home" / "postgres").exists()


def test_a_deep_home_gets_a_short_private_folder_for_its_socket(
    template: Path, tmp_path: Path
) -> None:
    home = copy_home(template, tmp_path / ("deep " * 20).strip() / ("er" * 40))
    with EmbeddedPostgres(home) as url:
        assert ask(url, "SELECT 1") == 1
        (socket,) = str(ask(url, "SHOW unix_socket_directories")).split(",")
        assert len(socket) < 60
        assert stat.S_IMODE(Path(socket).stat().st_mode) == 0o700
        with another(home) as other:
            assert other.url() == url
    Path(socket).rmdir()
