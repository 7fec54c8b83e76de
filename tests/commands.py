"""The command in this process, alone or beside a service of the test's own."""

import asyncio
import json
from typing import Any

from typer.testing import CliRunner, Result

from app.cli import cli


def run(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=input)


async def against(address: str, *arguments: str, input: str | None = None) -> Result:
    """Run the command beside the service, which needs this thread."""
    return await asyncio.to_thread(run, *arguments, "--url", address, input=input)


def printed(result: Result) -> Any:
    """What a command with --json said."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
