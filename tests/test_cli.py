"""The command: what it prints, how it ends, and how it says no."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import Result

from app.commands import library
from tests.commands import against, printed, run

HEAVY = ("torch", "sentence_transformers", "transformers", "onnxruntime", "kreuzberg", "sqlalchemy")

pytestmark = pytest.mark.usefixtures("own_logging", "own_home")


# --- without a service ---------------------------------------------------------------------------


def test_help_is_fast_because_it_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from app.cli import cli\n"
        "try:\n"
        "    cli(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("loaded: []\n")
    for command in ("serve", "demo", "ingest", "worker", "search", "ask", "keys", "doctor"):
        assert f" {command} " in done.stdout


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("footnote ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("search",),
        ("search", "word", "--limit", "0"),
        ("search", "word", "--mode", "magic"),
        ("search", "word", "--filters", "{"),
        ("keys", "create"),
        ("demo", "--docs", "/no/such/folder"),
        ("ingest", "/no/such/file"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_PORT", "many")
    result = run("search", "word")
    assert result.exit_code == 2
    assert "FOOTNOTE_PORT" in result.stderr
    assert "What to do:" in result.stderr


def test_no_service_and_nothing_to_open(tmp_path: Path) -> None:
    result = run("search", "word")
    assert result.exit_code == 2
    assert "No Footnote answers at http://127.0.0.1:9" in result.stderr
    assert "footnote demo" in result.stderr
    assert not (tmp_path / "home").exists()


def test_a_service_that_was_named_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home" / "postgres").mkdir(parents=True)
    result = run("ask", "why?", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "http://127.0.0.1:9" in result.stderr


def test_something_unexpected_is_one_line_unless_debugged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the moon is full")

    monkeypatch.setattr(library, "with_service", fail)
    result = run("collections", "list")
    assert result.exit_code == 2
    assert "RuntimeError: the moon is full" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in run("--debug", "collections", "list").stderr


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "with_service", interrupt)
    assert run("collections", "list").exit_code == 130


def test_a_deletion_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "with_service", lambda *_: pytest.fail("it was not to be called"))
    assert run("collections", "delete", "all", input="n\n").exit_code == 1


# --- what is there, and what is not ---------------------------------------------------------------


def checks(result: Result) -> dict[str, tuple[str, str]]:
    return {
        one["part"]: (one["verdict"], one["words"]) for one in json.loads(result.stdout)["checks"]
    }


@pytest.fixture
def checked_home(
    own_home: None, home: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home in which the model is exported already."""
    monkeypatch.setenv("FOOTNOTE_HOME", str(home))
    monkeypatch.setenv("FOOTNOTE_PORT", "0")


@pytest.mark.usefixtures("checked_home")
def test_doctor_finds_all_well(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", database_url)
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = checks(result)
    assert found["python"][0] == found["home"][0] == found["port"][0] == "ok"
    assert "pgvector 0.8" in found["database"][1]
    assert found["embedding model"] == ("ok", "all-MiniLM-L6-v2 on onnx, 384 dimensions")
    assert found["language model"][0] == "note"


@pytest.mark.usefixtures("checked_home")
def test_doctor_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", f"postgresql://nobody@/none?host={tmp_path}")
    monkeypatch.setenv("FOOTNOTE_REDIS_URL", f"unix://{tmp_path}/redis.sock")
    monkeypatch.setenv("FOOTNOTE_OLLAMA_URLS", "http://127.0.0.1:9")
    monkeypatch.setenv("FOOTNOTE_EMBEDDING_MODEL", str(tmp_path / "no-model"))
    monkeypatch.setenv("FOOTNOTE_HOST", "192.0.2.1")
    result = run("doctor", "--json")
    assert result.exit_code == 2
    wrong = {part for part, (verdict, _) in checks(result).items() if verdict == "problem"}
    assert wrong == {"database", "redis", "language model", "embedding model", "port"}
    readable = run("doctor")
    assert readable.exit_code == 2
    assert readable.stdout.count("→") >= len(wrong)


def test_keys(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", database_url)
    made = run("keys", "create", "reporting", "--scope", "read", "--scope", "write")
    assert made.exit_code == 0, made.stderr
    token = made.stdout.strip()
    assert token.startswith("fn_")
    (record,) = printed(run("keys", "list", "--json"))["keys"]
    assert (record["name"], record["scopes"]) == ("reporting", ["read", "write"])
    assert token not in run("keys", "list").stdout
    assert run("keys", "revoke", "reporting").exit_code == 0
    assert "revoked" in run("keys", "list").stdout
    unknown = run("keys", "create", "x", "--scope", "everything")
    assert unknown.exit_code == 2
    assert "everything" in unknown.stderr


def test_costs(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", database_url)
    assert "Nothing was generated" in run("costs").stdout
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO usage (id, tenant_id, model, tier, provider, collections, mode,"
            " prompt_tokens, completion_tokens, cached_tokens, took_ms, cost, saved, created_at)"
            " VALUES (gen_random_uuid(), 1, 'gpt', '', 'openai', '{default}', 'generated',"
            " 1000, 20, 0, 900, 0.000125, 0, '2026-03-05T12:00Z')"
        )
    days = ("--from", "2026-03-01", "--to", "2026-03-31")
    shown = run("costs", *days, "--by", "day,model").stdout
    assert "2026-03-05" in shown
    assert "0.000125 USD for 1 generations" in shown
    found = printed(run("costs", *days, "--by", "model", "--json"))
    assert found["rows"][0]["group"] == {"model": "gpt"}
    assert found["total"]["cost"] == "0.000125"
    assert (
        run("costs", *days, "--by", "model", "--csv").stdout.splitlines()[1].startswith("gpt,1,0")
    )
    assert printed(run("costs", *days, "--tenant", "default", "--json"))["rows"]
    for wrong in (
        ("costs", "--by", "colour"),
        ("costs", "--from", "yesterday"),
        ("costs", "--from", "2026-03-02", "--to", "2026-03-01"),
        ("costs", "--tenant", "nobody"),
        ("costs", "budget", "much"),
        ("costs", "budget", "--", "-5"),
    ):
        result = run(*wrong)
        assert (result.exit_code, result.stdout) == (2, ""), wrong
        assert result.stderr


def test_a_budget_by_the_command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", database_url)
    assert "0 of no budget USD spent" in run("costs", "budget").stdout
    assert printed(run("costs", "budget", "12.50", "--json"))["monthly_limit"] == "12.5"
    assert "0 of 12.5 USD spent" in run("costs", "budget").stdout
    assert "no budget" in run("costs", "budget", "none").stdout


def test_migrate(server_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(server_url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE migrated_by_command")
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", server_url("migrated_by_command"))
    refused = run("keys", "list")
    assert refused.exit_code == 2
    assert "footnote migrate" in refused.stderr
    assert run("migrate").exit_code == 0
    assert run("migrate").exit_code == 0
    assert printed(run("keys", "list", "--json")) == {"keys": []}


# --- with a service ------------------------------------------------------------------------------


async def test_settings_of_collections(address: str) -> None:
    async def collections(*arguments: str) -> Result:
        return await against(address, "collections", *arguments)

    made = printed(await collections("create", "notes", "--chunk-tokens", "120", "--json"))
    assert made["settings"]["chunking"]["tokens"] == 120
    options = ("--overlap", "10", "--personal-data", "mask", "--reranker", "late-interaction")
    changed = await collections("set", "notes", *options)
    shown = await collections("show", "notes")
    assert shown.stdout == changed.stdout
    for line in ("chunk tokens     120", "overlap          10", "personal data    mask"):
        assert line in shown.stdout
    assert "reranker         late-interaction" in shown.stdout
    reset = printed(await collections("set", "notes", "--reset", "--strategy", "fixed", "--json"))
    assert reset["settings"] == {
        "chunking": {"tokens": None, "overlap": 0, "strategy": "fixed"},
        "personal_data": "off",
        "search": {"reranker": None, "token_vectors": False, "rewrite": False},
        "answers": {"quote_when_busy": False},
    }
    rebuilt = await collections("rebuild", "notes")
    assert "to be rebuilt    none" in rebuilt.stdout
    nothing = await collections("set", "notes")
    assert (nothing.exit_code, "nothing to set" in nothing.stderr) == (2, True)
    wrong = await collections("set", "notes", "--chunk-tokens", "3")
    assert (wrong.exit_code, "settings.chunking.tokens" in wrong.stderr) == (2, True)


async def test_collections(address: str) -> None:
    result = await against(address, "collections", "list")
    assert "no collections" in result.stdout
    made = await against(address, "collections", "create", "handbook")
    assert made.stdout == "Made the collection handbook.\n"
    listed = printed(await against(address, "collections", "list", "--json"))
    assert [one["name"] for one in listed["collections"]] == ["handbook"]
    again = await against(address, "collections", "create", "handbook")
    assert again.exit_code == 2
    assert "handbook" in again.stderr
    deleted = await against(address, "collections", "delete", "handbook", "--yes")
    assert deleted.stdout.startswith("Deleted: 0 documents")
    gone = await against(address, "collections", "delete", "handbook", "-y")
    assert gone.exit_code == 2
    assert "What to do:" in gone.stderr


async def test_documents(address: str) -> None:
    missing = await against(address, "documents", "show", "../../etc")
    assert missing.exit_code == 2
    listed = printed(await against(address, "documents", "list", "--json"))
    assert listed == {"documents": []}
