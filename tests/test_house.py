"""What is true of the repository as a whole."""

import re
import tomllib

import yaml

from tests.repository import PAGES, TEXTS

MAX_LINES = 400
LONG_FOR_A_REASON = {
    "app/api/schemas.py",  # the whole wire at a glance, nothing else
    "migrations/versions/0001_first_schema.py",  # one schema, one transaction
}


def lines_with(pattern: str) -> list[str]:
    found = re.compile(pattern)
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if found.search(line)
    ]


def test_names_no_path_of_one_machine() -> None:
    # Written apart, so that this line is not found.
    roots = "|".join(["wor" + "k", "Use" + "rs", "roo" + "t", "home/(?!footnote)[a-z]+"])
    assert lines_with(rf"(?<![\w.~])/({roots})/[\w.]") == []


def test_names_no_package_host() -> None:
    hosts = ["pypi" + r"\.org", "python" + r"hosted", "deb" + r"\.debian", "npm" + r"js\.(org|com)"]
    assert lines_with("|".join([*hosts, "download" + r"\.pytorch"])) == []


def test_holds_no_key() -> None:
    keys = lines_with(r"\bfn_[A-Za-z0-9_-]{30,}|\bsk-[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE KEY")
    assert [line for line in keys if not line.startswith("tests/")] == []


def test_files_are_short() -> None:
    code = (".py", ".js", ".css", ".html", ".md", ".yml")
    long = {
        name: len(text.splitlines())
        for name, text in TEXTS.items()
        if name.endswith(code)
        and not name.startswith("tests/")
        and len(text.splitlines()) > MAX_LINES
    }
    assert set(long) <= LONG_FOR_A_REASON, long


def test_targets_that_are_mentioned_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", TEXTS["Makefile"], re.MULTILINE))
    hooks = yaml.safe_load(TEXTS[".pre-commit-config.yaml"])["repos"][0]["hooks"]
    called = {hook["entry"].removeprefix("make ") for hook in hooks}
    called |= set(re.findall(r"`make (\w+)", "\n".join(PAGES.values())))
    called |= set(re.findall(r"for target in ([\w ]+);", TEXTS[".ci/run"])[0].split())
    assert {"test", "lint", "types", "arch"} <= called
    assert called <= targets


def test_version_and_licence_agree() -> None:
    project = tomllib.loads(TEXTS["pyproject.toml"])["project"]
    assert f"## [{project['version']}]" in TEXTS["CHANGELOG.md"]
    assert f"footnote:${{IMAGE_TAG:-{project['version']}}}" in TEXTS["docker-compose.yml"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in TEXTS["LICENSE"]
    assert "TERMS AND CONDITIONS" in TEXTS["LICENSE"]


def test_the_contracts_name_every_module() -> None:
    """A new module of `app` must not escape the rules that list modules one by one."""
    tool = tomllib.loads(TEXTS["pyproject.toml"])["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in tool["contracts"]}
    parts = {
        re.sub(r"^app/(\w+).*", r"app.\1", name)
        for name in TEXTS
        if re.match(r"app/(?!__init__)\w+(\.py$|/.*\.py$)", name)
    }
    assert set(contracts["only-the-command-mounts"]["source_modules"]) == parts - {"app.cli"}
    above = {"app.api", "app.cli", "app.commands", "app.dependencies", "app.main"}
    above |= {"app.resources", "app.serving", "app.web"}
    below = set(contracts["no-web-below"]["source_modules"])
    assert {name for name in below if name.startswith("app.")} == parts - above
