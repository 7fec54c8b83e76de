"""From one's own documents to questions, figures and weights: through the whole service."""

import csv
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.errors import InvalidInput
from evaluation.cli import app as command
from evaluation.generate import Passage, Row, generate, prompt, read_question, write_rows
from evaluation.questions import load_golden_set
from evaluation.run import Plan, ask_all, open_golden
from evaluation.service import Service
from evaluation.tune import tune
from tests.doubles.ollama import running_ollama
from tests.service import Service as Application
from tests.service import ingest, working

TOPICS = ("travel", "expenses", "security", "holidays", "laptops", "training")


def document(topic: str, number: int) -> str:
    """A page with headings of its own, a heading that all have, and a sentence that all have."""
    return "\n\n".join(
        [
            f"# The {topic} guide",
            f"Whoever asks about {topic} should read all of this guide before writing to anybody.",
            f"## How {topic} requests are approved",
            f"Every request for {topic} is approved by the manager of team {number} in two days.",
            "## See also",
            "This page was written by the people team and it may be copied freely.",
            f"## Problems with {topic} forms",
            f"When the form of {topic} shows error {topic.upper()}_ERR_{number}, call the helpdesk.",
        ]
    )


def silent(_step: str, _done: int, _total: int) -> None: ...


@pytest.fixture
async def holding(service: Application, service_settings: Any, embedder: Any) -> Application:
    """A service whose collection `guides` holds a page on every topic."""
    created = await service.client.post("/api/collections", json={"name": "guides"})
    assert created.status_code == 201
    async with working(service_settings, embedder):
        for number, topic in enumerate(TOPICS):
            await ingest(service, f"{topic}.md", document(topic, number), collection="guides")
    return service


async def test_from_documents_to_questions_figures_and_weights(
    holding: Application, tmp_path: Path
) -> None:
    service = Service(holding.client)
    few = await generate(service, "guides", 3, 7, silent)
    assert few == await generate(service, "guides", 3, 7, silent)
    assert few != await generate(service, "guides", 3, 8, silent)
    rows = await generate(service, "guides", 12, 7, silent)
    first = {row.document for row in rows[: len(TOPICS)]}
    assert len(first) == len(TOPICS)  # one of each document before the second of any
    assert {row.kind for row in rows} == {"heading", "phrase", "identifier"}
    questions = [row.question for row in rows]
    assert len(set(questions)) == len(questions)
    assert "See also" not in questions
    assert not any("copied freely" in row.quote for row in rows)
    for row in rows:
        assert row.quote in " ".join(document(*_source(row)).split())
        assert row.kind == "heading" or row.question not in row.quote or "_" in row.question

    path = tmp_path / "golden.csv"
    write_rows(rows, path)
    golden = load_golden_set(path)
    judged = await open_golden(service, golden, "guides", Plan())
    outcome = await ask_all(service, judged, Plan(timed=2), silent)
    assert len(outcome.questions) == len(rows)
    assert sum(outcome.scores["hybrid"]["R@100"]) == len(rows)
    assert (outcome.documents, outcome.failed) == (len(TOPICS), 0)
    assert outcome.setup["weights"] == {"vector": 1.0, "keyword": 1.0}
    assert len(outcome.times_ms["vector"]) == 2

    tuning = await tune(service, judged, 0, silent)
    halves = tuning.chosen_on, tuning.judged_on
    assert sum(half.questions for half in halves) == len(rows)
    assert tuning.chosen_on.gain.mean >= 0
    assert sum(tuning.chosen.values()) == pytest.approx(2.0)
    too_few = await open_golden(service, golden, "guides", Plan(limit=5))
    with pytest.raises(InvalidInput, match="5 questions"):
        await tune(service, too_few, 0, silent)
    with pytest.raises(InvalidInput, match="no collection nowhere"):
        await open_golden(service, golden, "nowhere", Plan())


def _source(row: Row) -> tuple[str, int]:
    topic = row.document.rpartition("/")[2].removesuffix(".md")
    return topic, TOPICS.index(topic)


# --- the file and the model -----------------------------------------------------------------------

ROWS = [Row("heading-1", 'On "call", at night', "file:///a.md", "Line one,\ntwo.", "heading")]


@pytest.mark.parametrize("name", ["golden.csv", "golden.jsonl"])
def test_what_is_written_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    write_rows(ROWS, path)
    golden = load_golden_set(path)
    [question] = golden.questions
    assert question.text == ROWS[0].question
    [expected] = question.expected
    assert (expected.document, expected.quote) == (ROWS[0].document, ROWS[0].quote)
    path.write_text(path.read_text().replace("yes", "no"))
    with pytest.raises(InvalidInput, match="1 are marked not to be kept"):
        load_golden_set(path)


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("Who approves travel?", "Who approves travel?"),
        ('Here is one:\n\n"Who approves travel?"\n', "Who approves travel?"),
        ("Question: Who approves travel?", "Who approves travel?"),
        ("1. **Who approves travel?**", "Who approves travel?"),
        ("NONE.", None),
        ("", None),
        ("Why?", None),
        ("x" * 301, None),
    ],
)
def test_a_question_is_found_in_what_a_model_says(reply: str, question: str | None) -> None:
    assert read_question(reply) == question


def test_a_model_is_shown_where_the_passage_stands() -> None:
    passage = Passage("1", "file:///a", "Guide", ("Guide", "Trips"), "x" * 9000, "s")
    shown = prompt(passage)
    assert shown.startswith("Guide › Trips\n\nxxx")
    assert len(shown) < 5000


PASSAGE = {
    "document_id": "d", "uri": "file:///a.md", "title": "Guide", "heading": ["Trips abroad"],
    "text": "Trips abroad are approved by the manager of the team.", "chunk_id": 1, "start": 0,
}  # fmt: skip


@pytest.fixture
def one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that holds one document of one passage."""

    def reply(request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/api/collections":
                return httpx.Response(200, json={"collections": [{"name": "guides"}]})
            case "/api/documents":
                found = {"id": "d", "uri": "file:///a.md", "title": "Guide", "chunks": 1}
                return httpx.Response(200, json={"documents": [found], "next_cursor": None})
        assert json.loads(request.content)["filters"] == {"$document_id": "d"}
        return httpx.Response(200, json={"hits": [PASSAGE]})

    @asynccontextmanager
    async def opened(url: str, api_key: str | None) -> AsyncIterator[Service]:
        transport = httpx.MockTransport(reply)
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            yield Service(client)

    monkeypatch.setattr("evaluation.service.open_service", opened)


@pytest.fixture
def model_url() -> Iterator[str]:
    with running_ollama(answer="Who decides on journeys to other countries?") as double:
        yield double.url


@pytest.mark.usefixtures("one_document")
def test_a_file_that_may_have_been_reviewed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "golden.csv"
    arguments = ["generate", "guides", "--out", str(path), "--no-model"]
    invoke = CliRunner().invoke
    printed = invoke(command, arguments)
    assert printed.exit_code == 0, printed.output
    assert "1 questions (1 heading)" in printed.output
    with path.open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["question"], row["keep"]) == ("Trips abroad", "yes")
    refused = invoke(command, arguments)
    assert isinstance(refused.exception, InvalidInput)
    as_json = invoke(command, [*arguments, "--force", "--json"])
    assert json.loads(as_json.stdout)["questions"] == [row]
    assert isinstance(invoke(command, [*arguments, "--force", "--model"]).exception, InvalidInput)


@pytest.mark.usefixtures("one_document")
def test_a_model_of_ones_own_settings_writes_the_questions(
    tmp_path: Path, model_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOOTNOTE_OLLAMA_URLS", model_url)
    path = tmp_path / "golden.jsonl"
    printed = CliRunner().invoke(command, ["generate", "guides", "--out", str(path)])
    assert printed.exit_code == 0, printed.output
    row = json.loads(path.read_text())
    assert row["question"] == "Who decides on journeys to other countries?"
    assert (row["kind"], row["document"], row["quote"]) == (
        "model",
        "file:///a.md",
        PASSAGE["text"],
    )
