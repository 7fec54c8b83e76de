"""The compose file and the image, as far as they can be proven without a container engine."""

import json
import re
import subprocess
from graphlib import TopologicalSorter
from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from app.config import Settings, expand_variables
from app.language_models import WELL_KNOWN_PROVIDERS
from app.llm.providers import key_variable
from tests.conftest import ROOT

SOURCE = (ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(SOURCE)
SERVICES: dict[str, Any] = COMPOSE["services"]
OLLAMA_SERVERS = [f"ollama-server-{number}" for number in range(1, 9)]
ONE_SHOT = {"ollama-pull", "migrate"}
EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / ".env.example").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
)
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def schema(name: str) -> dict[str, Any]:
    """A published schema, from the copy that check-jsonschema carries."""
    vendored = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{name}.json"
    return json.loads(vendored.read_text("utf-8"))


def test_follows_the_compose_specification() -> None:
    validator = jsonschema.Draft202012Validator(schema("compose-spec"))
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []


def test_the_schema_would_notice() -> None:
    wrong = {**COMPOSE, "services": {"api": {"image": "footnote", "imagge": "typo"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema("compose-spec")).validate(wrong)


def test_eight_ollama_servers_from_one_anchor() -> None:
    found = [name for name in SERVICES if re.fullmatch(r"ollama-server-\d+", name)]
    assert found == OLLAMA_SERVERS
    assert all(SERVICES[name] == COMPOSE["x-ollama-server"] for name in OLLAMA_SERVERS)
    assert SOURCE.count("&ollama-server") == 1
    assert set(SERVICES["ollama-pull"]["depends_on"]) == set(OLLAMA_SERVERS)
    models = {volume.split(":")[0] for volume in COMPOSE["x-ollama-server"]["volumes"]}
    assert models == {"models"}


def test_the_service_knows_the_eight_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_SLOTS", "3")
    given = expand_variables(SERVICES["api"]["environment"]["FOOTNOTE_OLLAMA_URLS"])
    expected = tuple(f"http://{name}:11434#slots=3" for name in OLLAMA_SERVERS)
    assert Settings(ollama_urls=given).ollama_urls == expected  # type: ignore[arg-type]


def test_settings_in_it_exist() -> None:
    known = {f"FOOTNOTE_{name.upper()}" for name in Settings.model_fields}
    keys = {key_variable(name) for name in WELL_KNOWN_PROVIDERS}
    assert set(SERVICES["api"]["environment"]) - known == keys
    for name in ("worker", "migrate"):
        assert set(SERVICES[name]["environment"]) <= known


def test_only_the_service_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["api"]
    assert [expand_variables(port) for port in published["api"]] == ["127.0.0.1:8008:8008"]
    assert COMPOSE["networks"]["data"]["internal"] is True
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["data"]


def test_holds_no_secret() -> None:
    required = re.findall(r"\$\{(\w+):\?", SOURCE)
    assert set(required) == {"POSTGRES_PASSWORD"}
    assert SOURCE.count("POSTGRES_PASSWORD") == len(required) + 2  # its own key, and the comment
    assert EXAMPLE["POSTGRES_PASSWORD"] == ""


def test_images_are_pinned() -> None:
    for service in SERVICES.values():
        image = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["image"])
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", image), image


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_bounded_and_watched(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= set(limits)
    if name in ONE_SHOT:
        assert service["restart"] in ("no", "on-failure:5")
    else:
        assert service["restart"] == "unless-stopped"
    watched_by_image = name == "api"
    assert watched_by_image or "healthcheck" in service
    assert "no-new-privileges:true" in service["security_opt"]
    if name != "postgres":
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_waits_for_what_it_needs() -> None:
    order = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    assert set().union(*order.values()) <= set(SERVICES)
    assert list(TopologicalSorter(order).static_order())
    for name in ("api", "worker"):
        conditions = {
            other: needed["condition"] for other, needed in SERVICES[name]["depends_on"].items()
        }
        assert conditions == {
            "postgres": "service_healthy",
            "redis": "service_healthy",
            "migrate": "service_completed_successfully",
        }


def test_the_example_explains_every_variable() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", SOURCE))
    known = {f"FOOTNOTE_{name.upper()}" for name in Settings.model_fields}
    known |= {key_variable(name) for name in WELL_KNOWN_PROVIDERS}
    for key in EXAMPLE:
        assert key in used
        assert not key.startswith("FOOTNOTE_") or key in known
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", SOURCE))
    for key, value in EXAMPLE.items():
        assert value == defaults.get(key, ""), key


def test_the_image_runs_as_nobody_special_and_is_watched() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.search(r":\d+\.\d+\.\d+-slim", base) for base in bases)
    assert len(bases) == 2
    assert re.search(r"^USER footnote$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*\n?.*/health/ready", DOCKERFILE, re.MULTILINE)


def test_the_image_copies_what_is_there_and_sent() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sent = [line[1:].rstrip("*") for line in ignored if line.startswith("!")]
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(path.startswith(prefix) for prefix in sent), path


def test_the_workflow_follows_its_schema() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    validator = jsonschema.Draft7Validator(schema("github-workflows"))
    assert [error.message for error in validator.iter_errors(workflow)] == []
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert {"run": "bash .ci/run"} in steps


def test_the_check_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text("utf-8")
