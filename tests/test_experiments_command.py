"""`footnote experiments …`, beside a service."""

import json
from decimal import Decimal
from uuid import UUID

import pytest
from typer.testing import Result

from app.experiments.outcomes import Outcome
from tests.commands import against
from tests.service import Service

pytestmark = pytest.mark.usefixtures("own_logging", "own_home")


async def test_an_experiment_by_the_command(service: Service, address: str) -> None:
    async def run(*arguments: str) -> Result:
        return await against(address, "experiments", *arguments)

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
    assert json.loads((await run("report", "short", "--json")).stdout)["arms"][1]["answers"] == 20
    assert "rolled_back" in (await run("rollback", "short")).stdout
    assert (await run("report", "nothing")).exit_code == 2
