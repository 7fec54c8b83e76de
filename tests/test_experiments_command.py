"""`footnote experiments …`, beside a service."""

import asyncio
import json
import logging
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from typer.testing import CliRunner

from app.cli import cli
from app.experiments.outcomes import Outcome
from tests.service import Service, over_sockets


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command sets up logging for its whole process, which here is the tests'."""
    configure = structlog.configure
    monkeypatch.setattr(
        structlog,
        "configure",
        lambda **options: configure(**{**options, "cache_logger_on_first_use": False}),
    )
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOOTNOTE_HOME", str(tmp_path / "home"))


async def test_an_experiment_by_the_command(service: Service) -> None:
    async with over_sockets(service) as client:
        address = str(client.base_url)

        async def run(*arguments: str) -> Any:
            command = ["experiments", *arguments, "--url", address]
            return await asyncio.to_thread(CliRunner().invoke, cli, command)

        assert "no experiments" in (await run("list")).stdout
        refused = await run("begin", "short", "--model", "gpt-9")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "gpt-9" in refused.stderr
        for wrong in ("colour=1", "errors", "errors=much", "errors=2"):
            unclear = await run("begin", "short", "--prompt", "2", "--tolerate", wrong)
            assert unclear.exit_code == 2, wrong
            assert unclear.stderr
        begun = await run(
            "begin", "short", "--prompt", "2", "--tolerate", "cost=none", "--tolerate", "errors=0.1"
        )
        assert "running, 10 %" in begun.stdout
        assert "running, 25 %" in (await run("advance", "short")).stdout
        rollouts = service.resources.rollouts
        found = json.loads((await run("list", "--json")).stdout)["experiments"][0]
        assert (found["tolerance"]["cost"], found["tolerance"]["errors"]) == (None, 0.1)
        assert found["tolerance"]["declined"] == 0.1
        for place in (0, 1):
            for number in range(20):
                rollouts.note(
                    Outcome(
                        UUID(found["id"]),
                        place,
                        10,
                        ttft_ms=100.0 + number,
                        cost=Decimal("0.001"),
                    )
                )
        await rollouts.flush()
        shown = (await run("report", "short")).stdout
        assert "candidate less control" in shown
        assert "109.5" in shown
        assert (
            json.loads((await run("report", "short", "--json")).stdout)["arms"][1]["answers"] == 20
        )
        assert "rolled_back" in (await run("rollback", "short")).stdout
        assert (await run("report", "nothing")).exit_code == 2
