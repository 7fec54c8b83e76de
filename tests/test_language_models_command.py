"""Language models by the command: registered, asked by tier, removed; and what doctor says of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from app.config import Settings
from tests.commands import against, printed, run
from tests.doubles.hosted import HostedDouble
from tests.doubles.ollama import OllamaDouble
from tests.model_house import ASKED, House, open_house
from tests.service import over_sockets

pytestmark = pytest.mark.usefixtures("own_logging", "own_home")

ADD_CLAUDE = (
    *("add", "claude", "--provider", "anthropic", "--served-as", "claude-sonnet"),
    *("--tier", "orchestration", "--prompt-price", "3", "--completion-price", "15"),
)


@dataclass(frozen=True)
class Desk:
    """The command beside a house, over real connections."""

    house: House
    address: str

    async def run(self, *arguments: str) -> Result:
        return await against(self.address, *arguments)

    async def chat(self, *arguments: str) -> Result:
        return await self.run("models", "chat", *arguments)


@pytest.fixture
async def desk(
    own_home: None,
    service_settings: Settings,
    shared_embedder: None,
    embedder: Any,
    double: OllamaDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Desk]:
    async with (
        open_house(service_settings, embedder, double, monkeypatch) as house,
        over_sockets(house.service) as client,
    ):
        yield Desk(house, str(client.base_url))


async def test_models_are_added_listed_and_removed(desk: Desk) -> None:
    added = await desk.chat(*ADD_CLAUDE)
    assert (added.exit_code, added.stderr) == (0, "")
    assert "claude is registered (models in the cloud are not allowed" in added.stdout
    assert "are allowed" in (await desk.chat("cloud", "on")).stdout
    assert "are allowed" in (await desk.chat("cloud")).stdout
    tuned = ("add", "legal", "--variant", "lora", "--baseline", "llama3.1:8b")
    more = ("--price-per-hour", "0.4", "--capability", "json", "--context-tokens", "8192")
    legal = printed(await desk.chat(*tuned, *more, "--json"))
    assert (legal["baseline"], legal["price_per_hour"]) == ("llama3.1:8b", "0.4")
    assert (legal["capabilities"], legal["context_tokens"]) == (["json"], 8192)

    listed = printed(await desk.chat("list", "--json"))
    assert [one["name"] for one in listed["models"]] == ["llama3.1:8b", "claude", "legal"]
    drawn = " ".join((await desk.chat("list")).stdout.split())
    for words in ("anthropic (cloud)", "3 / 15", "usable; lora of llama3.1:8b", "are allowed"):
        assert words in drawn

    assert (await desk.chat("remove", "claude")).stdout == "claude is removed.\n"
    assert printed(await desk.chat("remove", "legal", "--json"))["name"] == "legal"
    assert "are not allowed" in (await desk.chat("cloud", "off")).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "x", "--provider", "nobody"), "nobody"),
        (("add", "x", "--tier", "best"), "best"),
        (("add", "x", "--prompt-price", "much"), "is no price"),
        (("add", "x", "--completion-price", "-1"), "is no price"),
        (("add", "x", "--price-per-hour", "NaN"), "is no price"),
        (("add", "x", "--context-tokens", "1"), "context_tokens"),
        (("add", "x", "--capability", "magic"), "capabilities"),
        (("add", "x", "--variant", "lora"), "baseline"),
        (("add", "auto"), "meaning of its own"),
        (("add", "llama3.1:8b"), "already"),
        (("remove", "nothing"), "no model nothing"),
        (("remove", "llama3.1:8b"), "of the configuration"),
        (("cloud", "perhaps"), "perhaps"),
        (("add",), "NAME"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    desk: Desk, arguments: tuple[str, ...], said: str
) -> None:
    refused = await desk.chat(*arguments)
    assert (refused.exit_code, refused.stdout) == (2, ""), refused.output
    assert said in " ".join(refused.stderr.split())


async def test_a_question_by_tier(desk: Desk) -> None:
    question = ASKED["question"]
    await desk.chat(*ADD_CLAUDE)
    await desk.chat("cloud", "on")
    best = printed(await desk.run("ask", question, "--tier", "orchestration", "--json"))
    assert (best["mode"], best["model"]) == ("generated", "claude")
    assert best["routing"]["reason"] == "the request asks for the tier orchestration"
    usual = await desk.run("ask", question, "--tier", "interactive")
    assert usual.exit_code == 0, usual.stderr
    assert "Ada approves travel" in usual.stdout
    assert "llama3.1:8b" in usual.stdout
    named = printed(await desk.run("ask", question, "--model", "claude", "--json"))
    assert named["routing"]["reason"] == "the request names it"

    desk.house.hosted.fault = "status_500"
    other = "Within how many days are receipts sent?"
    stood_in = printed(await desk.run("ask", other, "--tier", "orchestration", "--json"))
    assert stood_in["model"] == "llama3.1:8b"
    assert [one["model"] for one in stood_in["routing"]["tried"]] == ["claude"]
    for wrong in (("--tier", "best"), ("--model", "gpt-9")):
        refused = await desk.run("ask", question, *wrong)
        assert refused.exit_code == 2
        assert wrong[1] in refused.stderr


# --- doctor ---------------------------------------------------------------------------------------

Checks = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Doctor:
    """`footnote doctor` with the settings of a house, beside its doubles."""

    desk: Desk
    monkeypatch: pytest.MonkeyPatch

    @property
    def hosted(self) -> HostedDouble:
        return self.desk.house.hosted

    def configure(self, **settings: object) -> None:
        for name, value in settings.items():
            written = value if isinstance(value, str) else json.dumps(value)
            self.monkeypatch.setenv(f"FOOTNOTE_{name.upper()}", written)

    async def examine(self, code: int = 0) -> Checks:
        result = await asyncio.to_thread(run, "doctor", "--json")
        assert result.exit_code == code, result.output
        assert self.hosted.key not in result.output
        found: Checks = {}
        for one in json.loads(result.stdout)["checks"]:
            found.setdefault(one["part"], []).append((one["verdict"], one["words"]))
        return found


@pytest.fixture
def doctor(desk: Desk, home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    opened = Doctor(desk, monkeypatch)
    opened.configure(
        home=str(home),
        port="0",
        database_url=database_url,
        ollama_urls=desk.house.ollama.url,
        providers={
            "anthropic": {"kind": "anthropic", "url": desk.house.hosted.url},
            "openai": {"kind": "openai", "url": f"{desk.house.hosted.url}/v1"},
        },
    )
    return opened


async def test_doctor_asks_every_provider_and_counts(doctor: Doctor) -> None:
    doctor.configure(models=[{"name": "gpt", "served_as": "gpt-5", "provider": "openai"}])
    found = await doctor.examine()
    openai, anthropic, counted = found["model providers"]
    assert counted == ("ok", "2 of 2 healthy")
    assert anthropic[1].startswith("anthropic: 2 models (claude-sonnet, gpt-5) in ")
    assert openai[1].startswith("openai: 2 models (")
    assert openai[1].endswith("ms; has gpt-5")
    assert found["language model"][0][0] == "ok"


async def test_doctor_sees_what_is_registered(doctor: Doctor) -> None:
    await doctor.desk.chat(*ADD_CLAUDE)
    await doctor.desk.chat("add", "legal", "--served-as", "acme/legal:2")
    await doctor.desk.chat("add", "gone", "--provider", "azure-eu")
    await doctor.desk.chat("add", "old", "--provider", "openai", "--served-as", "gpt-3")
    found = await doctor.examine(code=2)
    ((verdict, words),) = found["language model"]
    assert (verdict, "does not have acme/legal:2" in words) == ("problem", True)
    openai, anthropic, gone, counted = found["model providers"]
    assert (anthropic[0], anthropic[1].endswith("has claude-sonnet")) == ("ok", True)
    assert (openai[0], openai[1].endswith("without gpt-3")) == ("problem", True)
    assert gone == ("problem", "azure-eu is not configured, but registered are gone")
    assert counted == ("problem", "1 of 3 healthy")


async def test_doctor_names_what_is_wrong_with_a_provider(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor.hosted.key = "sk-changed"
    monkeypatch.delenv("FOOTNOTE_ANTHROPIC_API_KEY")
    found = await doctor.examine(code=2)
    openai, anthropic, counted = found["model providers"]
    assert anthropic == (
        "problem",
        "anthropic: no key: FOOTNOTE_ANTHROPIC_API_KEY is not set",
    )
    assert (openai[0], "refuses the key" in openai[1]) == ("problem", True)
    assert counted == ("problem", "0 of 2 healthy")


async def test_doctor_looks_at_the_servers_as_they_were_changed(doctor: Doctor) -> None:
    changes = {
        "instances": [
            {"url": doctor.desk.house.ollama.url, "slots": 3},
            {"url": "http://127.0.0.1:9"},
        ]
    }
    await doctor.desk.house.call("PATCH", "/api/admin/instances", json=changes)
    well, away, counted = (await doctor.examine(code=2))["language model"]
    assert (well[0], well[1].endswith("3 at a time")) == ("ok", True)
    assert (away[0], "http://127.0.0.1:9" in away[1]) == ("problem", True)
    assert counted == ("problem", "1 of 2 healthy")
    doctor.monkeypatch.delenv("FOOTNOTE_OLLAMA_URLS")
    await doctor.desk.chat("add", "legal")
    ((verdict, words),) = (await doctor.examine(code=2))["language model"]
    assert (verdict, words) == ("problem", "none, but registered are legal")
