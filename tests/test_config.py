"""Where settings come from, and which ones are refused."""

from pathlib import Path

import pytest

from app.config import Settings, expand_variables, load_settings
from app.errors import StartupError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def write_config(name: str, content: str) -> None:
    Path("config").mkdir(exist_ok=True)
    (Path("config") / f"{name}.yaml").write_text(content, encoding="utf-8")


def test_nothing_needs_to_be_configured(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.home == tmp_path / ".footnote"
    assert (settings.host, settings.port) == ("127.0.0.1", 8008)
    assert settings.database_url is None
    assert not settings.auth_required


def test_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    write_config("dev", "port: 9001\nmodel: from-file\n")
    monkeypatch.setenv("FOOTNOTE_MODEL", "from-environment")
    settings = load_settings()
    assert settings.port == 9001
    assert settings.model == "from-environment"
    assert load_settings(port=9002).port == 9002


def test_the_file_of_the_named_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write_config("dev", "port: 1\n")
    write_config("production", "port: 2\n")
    monkeypatch.setenv("FOOTNOTE_ENV", "production")
    settings = load_settings()
    assert (settings.env, settings.port) == ("production", 2)


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", "")
    monkeypatch.setenv("FOOTNOTE_PORT", "")
    settings = load_settings()
    assert settings.database_url is None
    assert settings.port == 8008


def test_ollama_urls_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_OLLAMA_URLS", "http://a:11434#slots=4, http://b:11434 ,")
    assert load_settings().ollama_urls == ("http://a:11434#slots=4", "http://b:11434")


def test_variables_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "value")
    monkeypatch.delenv("UNSET", raising=False)
    assert expand_variables("a: ${SET}, b: ${UNSET:-default}, c: ${UNSET:-}") == (
        "a: value, b: default, c: "
    )
    with pytest.raises(StartupError, match="UNSET") as refused:
        expand_variables("a: ${UNSET}")
    assert "UNSET" in refused.value.hint


def test_secrets_do_not_show() -> None:
    settings = Settings.model_validate({"database_url": "postgresql://u:hunter2@h/d"})
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FOOTNOTE_PORT", "eight"),
        ("FOOTNOTE_PORT", "70000"),
        ("FOOTNOTE_MAX_UPLOAD_BYTES", "0"),
        ("FOOTNOTE_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StartupError, match=variable) as refused:
        load_settings()
    assert "configuration" in refused.value.hint


def test_a_misspelt_setting_in_a_file_is_refused() -> None:
    write_config("dev", "prot: 9001\n")
    with pytest.raises(StartupError, match="PROT"):
        load_settings()


def test_a_file_that_holds_no_mapping_is_refused() -> None:
    write_config("dev", "- port\n")
    with pytest.raises(StartupError, match="mapping"):
        load_settings()


def test_an_environment_name_cannot_leave_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_ENV", "../secrets")
    with pytest.raises(StartupError, match="plain name"):
        load_settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104
def test_no_open_door(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(host=host).auth_required
    monkeypatch.setenv("FOOTNOTE_AUTH", "off")
    with pytest.raises(StartupError, match="loopback"):
        load_settings(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_keys_on_loopback_when_wanted(host: str) -> None:
    assert not load_settings(host=host).auth_required
    assert load_settings(host=host, auth="on").auth_required
