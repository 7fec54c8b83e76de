"""`footnote cache stats`, `clear` and `warm`, beside a service."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from app.commands.cache import read_bodies
from app.config import Settings
from app.errors import InvalidInput
from tests.service import Service, ingest, open_service, working
from tests.test_api_end_to_end import TRAVEL

ASKED = "Who approves trips abroad?"


pytestmark = pytest.mark.usefixtures("own_logging", "own_home")


@pytest.fixture
async def service(service_settings: Settings, shared_embedder: None, embedder: Any) -> Any:
    async with open_service(service_settings) as opened, working(service_settings, embedder):
        await ingest(opened, "travel.md", TRAVEL)
        yield opened


async def against(address: str, *arguments: str, given: str | None = None) -> Result:
    """Run the command beside the service, which needs this thread."""
    command = ["cache", *arguments, "--url", address]
    return await asyncio.to_thread(CliRunner().invoke, cli, command, given)


def printed(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


async def test_what_was_warmed_is_known_and_leaves_no_conversation(
    service: Service, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "questions.txt"
    file.write_text(f'{ASKED}\n\n{{"question": "What may a hotel cost?", "model": "extractive"}}\n')
    first = printed(await against(address, "warm", str(file), "--json"))
    assert first == {"asked": 2, "warmed": 2, "known": 0, "not_kept": 0, "failed": []}
    again = await against(address, "warm", "-", given=file.read_text())
    assert again.exit_code == 0
    assert "2 asked: 0 answered anew, 2 known, 0 not kept, 0 failed." in again.stdout
    reply = (await service.client.post("/api/chat", json={"question": ASKED})).json()
    assert reply["cache"]["answer"] == "hit"
    stats = printed(await against(address, "stats", "--json"))
    assert stats["layers"]["answer"]["hits"] == 3


async def test_numbers_are_shown_and_layers_emptied(service: Service, address: str) -> None:
    for _ in range(2):
        await service.client.post("/api/chat", json={"question": ASKED})
    shown = (await against(address, "stats")).stdout
    assert all(name in shown for name in ("embedding", "chunks", "answer", "50.0 %"))
    assert "Routing: 0 kinds known, 0 found out." in shown
    assert "Paraphrases" not in shown
    cleared = await against(address, "clear", "--layer", "answer")
    assert cleared.stdout.strip() == "Forgotten: 0 of embedding, 0 of chunks, 1 of answer."
    removed = printed(await against(address, "clear", "--json"))
    assert (removed["answer"], removed["chunks"]) == (0, 1)
    assert removed["embedding"] >= 1


async def test_a_question_that_fails_is_named_and_the_others_are_asked(
    address: str, tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"question": "{ASKED}", "model": "nobody"}}\n{ASKED}\n')
    result = await against(address, "warm", str(file))
    assert result.exit_code == 1
    assert f"failed: {ASKED}: There is no model 'nobody' here." in " ".join(result.stdout.split())
    assert "2 asked: 1 answered anew" in result.stdout


async def test_wrong_input_is_refused_in_words(address: str, tmp_path: Path) -> None:
    missing = await against(address, "warm", str(tmp_path / "nothing.txt"))
    assert missing.exit_code == 2
    assert "cannot be read" in " ".join(missing.stderr.split())
    layer = await against(address, "clear", "--layer", "some")
    assert layer.exit_code == 2
    assert "some" in layer.stderr
    nowhere = await asyncio.to_thread(
        CliRunner().invoke, cli, ["cache", "stats", "--url", "http://127.0.0.1:9"]
    )
    assert nowhere.exit_code == 2
    assert "127.0.0.1:9" in nowhere.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Who?\n{broken\n", "line 2: this is no JSON"),
        ('{"text": "Who?"}', "line 1: there is no `question`"),
        ('\n{"question": 5}', "line 2: there is no `question`"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=reason):
        read_bodies(file, "default")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_bodies(file, "default")


def test_lines_become_bodies(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text('Who?\n{"question": "When?", "collections": ["a", "b"], "stream": true}\n')
    assert read_bodies(file, "handbook") == [
        {"question": "Who?", "collection": "handbook", "stream": False},
        {"question": "When?", "collections": ["a", "b"], "stream": False},
    ]
