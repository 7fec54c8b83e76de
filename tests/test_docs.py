"""What the documentation says, held against the code."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import app.telemetry
from app.api.doors import DOORS
from app.config import Settings, load_settings
from app.errors import StartupError
from app.language_models import WELL_KNOWN_PROVIDERS
from app.llm.providers import key_variable
from tests.conftest import ROOT
from tests.repository import PAGES, TEXTS

# No settings of the service: the key that the command sends, what tests kill it with, and the keys
# of providers, which the environment alone holds.
SETTINGS = {f"FOOTNOTE_{name.upper()}" for name in Settings.model_fields}
SETTINGS |= {"FOOTNOTE_API_KEY", "FOOTNOTE_FAILPOINTS", "FOOTNOTE_NAME_API_KEY"}
SETTINGS |= {key_variable(name) for name in WELL_KNOWN_PROVIDERS}


# --- settings -------------------------------------------------------------------------------------


def written(value: Any) -> str:
    """A default as the table shows it."""
    if value is None or value == () or value == "":
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(
        r"^\| `(FOOTNOTE_\w+)` \| (.+?) \| (.+?) \|$", PAGES["docs/configuration.md"], re.MULTILINE
    )
    documented = {name: default for name, default, _ in rows}
    assert len(documented) == len(rows)
    expected = {
        f"FOOTNOTE_{name.upper()}": written(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert documented == expected


def test_every_setting_that_is_mentioned_exists() -> None:
    sources = (
        "README.md",
        "docs/",
        "docker-compose.yml",
        ".env.example",
        "config/",
        "app/",
        "Make",
    )
    mentioned = {
        (name, setting)
        for name, text in TEXTS.items()
        if name.startswith(sources)
        for setting in re.findall(r"\bFOOTNOTE_[A-Z][A-Z_]*[A-Z]\b", text)
    }
    assert mentioned
    assert {pair for pair in mentioned if pair[1] not in SETTINGS} == set()


@pytest.mark.parametrize("name", ["dev", "staging", "production"])
def test_configuration_files_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FOOTNOTE_ENV", name)
    if name != "dev":
        with pytest.raises(StartupError, match="FOOTNOTE_DATABASE_URL"):
            load_settings()
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", "postgresql://db/footnote")
    monkeypatch.setenv("FOOTNOTE_REDIS_URL", "redis://redis:6379/0")
    settings = load_settings()
    assert settings.auth_required == (name != "dev")
    keys = set(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text("utf-8")))
    assert keys <= set(Settings.model_fields)


# --- pages ----------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The fragments of a page's headings, as the common renderers make them."""
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name} links to {target}"
        if fragment:
            assert fragment in anchors(page.read_text("utf-8")), f"{name} links to {target}"


def test_decisions_are_numbered_and_short() -> None:
    decisions = sorted(name for name in PAGES if name.startswith("docs/decisions/"))
    numbers = [int(Path(name).name[:4]) for name in decisions]
    assert numbers == list(range(1, len(decisions) + 1))
    for name, number in zip(decisions, numbers, strict=True):
        assert PAGES[name].startswith(f"# {number}. ")
        assert len(PAGES[name].splitlines()) <= 45, name


def test_routes_that_are_mentioned_exist() -> None:
    known = {(door.method, re.sub(r"\{\w+\}", "{}", door.path)) for door in DOORS}
    pattern = re.compile(r"`(GET|POST|PATCH|DELETE) (/[\w/{}.-]*)`")
    for name, text in PAGES.items():
        for method, path in pattern.findall(text):
            assert (method, re.sub(r"\{\w+\}", "{}", path)) in known, f"{name}: {method} {path}"


def test_metrics_that_are_mentioned_exist() -> None:
    source = Path(app.telemetry.__file__).read_text("utf-8")
    defined = set(re.findall(r'"(footnote_\w+)"', source))
    mentioned = set(re.findall(r"`(footnote_\w+)`", PAGES["docs/operations.md"]))
    assert mentioned
    assert mentioned <= defined
