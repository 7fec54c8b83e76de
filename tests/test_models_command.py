"""`footnote models`, against a service that runs: switched, judged by questions, led back."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.config import Settings
from evaluation.metrics import Comparison
from evaluation.statistics import Estimate
from tests.doubles.known_models import Models
from tests.service import ingest, open_service, serving, working

QUESTIONS = "question,document\nwhere are the spoons,spoons.md\nwho has the forks,forks.md\n"


class Command:
    """`footnote models …` in a thread, because the service answers in this one."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, *arguments: str, code: int = 0) -> str:
        command = ["models", *arguments, "--url", self._url]
        result = await asyncio.to_thread(CliRunner().invoke, cli, command)
        assert result.exit_code == code, result.output
        return result.output

    async def switches(self) -> list[tuple[str, str, str]]:
        found: Any = json.loads(await self("status", "--json"))
        return [(one["serving"], one["model"], one["status"]) for one in found["switches"]]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    found = Models()
    found.install_for(monkeypatch)
    monkeypatch.setattr("app.jobs.POLL_SECONDS", 0.05)
    monkeypatch.setattr("app.commands.models.FOLLOW_SECONDS", 0.05)
    return found


@pytest.fixture
async def command(service_settings: Settings, models: Models) -> AsyncIterator[Command]:
    async with (
        open_service(service_settings) as service,
        serving(service) as (_, url),
        working(service_settings, models.default),
    ):
        await ingest(service, "spoons.md", "# Spoons\n\nThe spoons are in the drawer.")
        await ingest(service, "forks.md", "# Forks\n\nThe cook has the forks.")
        yield Command(url)


async def test_switched_and_back(command: Command) -> None:
    assert "default (configured)" in await command("list")
    assert "No collection has another model" in await command("status")
    told = await command("switch", "wide", "--collection", "default")
    assert "served by wide; default is kept" in told
    listed = json.loads(await command("list", "--json"))["models"]
    assert {one["name"]: one["collections"][0]["state"] for one in listed} == {
        "default": "retained",
        "wide": "serving",
    }
    assert "served by default; wide is kept" in await command("rollback", "--all")
    assert await command.switches() == [("default", "wide", "retained")]
    assert "done" in await command("drop-old", "--all")
    assert await command.switches() == []


async def test_judged_by_questions_first(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "golden.csv"
    questions.write_text(QUESTIONS, "utf-8")
    golden = ("switch", "wide", "-c", "default", "--golden", str(questions))
    monkeypatch.setattr("evaluation.metrics.compare_runs", _worse)
    told = await command(*golden, code=1)
    assert "nDCG@10 of 2 questions: 0.9000 → 0.8000" in told
    assert "nothing was switched" in told
    assert await command.switches() == [("default", "wide", "prepared")]
    assert "served by wide" in await command(*golden, "--force")
    assert await command.switches() == [("wide", "default", "retained")]


async def test_questions_that_find_as_much_let_it_through(command: Command, tmp_path: Path) -> None:
    questions = tmp_path / "golden.csv"
    questions.write_text(QUESTIONS, "utf-8")
    told = await command(
        "switch", "wide", "-c", "default", "--golden", str(questions), "--max-ndcg-drop", "1"
    )
    assert "served by wide" in told


async def test_wrong_use_is_told(command: Command) -> None:
    for wrong in (
        ("switch", "wide"),
        ("switch", "wide", "--all", "-c", "default"),
        ("switch", "unheard-of", "--all"),
        ("switch", "wide", "--all", "--golden", "questions.csv"),
        ("rollback", "--all"),
        ("drop-old", "-c", "nowhere"),
    ):
        assert "What to do:" in await command(*wrong, code=2)


def _worse(*_: Any, **__: Any) -> dict[str, Any]:
    before, after, gain = (Estimate(mean, mean, mean) for mean in (0.9, 0.8, -0.1))
    return {"nDCG@10": Comparison(before, after, gain)}
