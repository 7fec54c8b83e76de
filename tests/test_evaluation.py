import json
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.errors import InvalidInput, StartupError
from evaluation import cli
from evaluation import service as client
from evaluation.cli import app as command
from evaluation.datasets import Dataset, Document, load_dataset
from evaluation.metrics import best_passages, measure
from evaluation.report import outcome_record, outcome_table, write_record
from evaluation.run import Outcome, run
from evaluation.service import Service
from ingestion.parsing.documents import parse_document

DOCUMENTS = [
    Document("a/1", "Travel policy", "Trips are approved by the manager."),
    Document("b", "", "Expenses are paid back within two weeks."),
    Document("c", 'On "call": who & when', "The engineer on call answers at night.\n# not a title"),
]
JUDGEMENTS = {"q1": {"a/1": 2, "b": 1}, "q2": {"c": 1}}


def write_dataset(folder: Path, **files: str) -> Path:
    (folder / "qrels").mkdir()
    lines = [{"_id": one.id, "title": one.title, "text": one.text} for one in DOCUMENTS]
    given = {
        "corpus.jsonl": "\n".join(map(json.dumps, lines)),
        "queries.jsonl": '{"_id": "q1", "text": "trips"}\n\n{"_id": "q2", "text": "on call"}\n'
        '{"_id": "q3", "text": "never judged"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\ta/1\t2\nq1\tb\t1\nq2\tc\t1\nq9\tc\t1\n",
        **files,
    }
    for name, content in given.items():
        (folder / name).write_text(content)
    return folder


# --- datasets and measures ------------------------------------------------------------------------


def test_a_dataset_holds_the_judged_queries(tmp_path: Path) -> None:
    loaded = load_dataset(write_dataset(tmp_path))
    assert loaded.documents == DOCUMENTS
    assert loaded.queries == {"q1": "trips", "q2": "on call"}
    assert loaded.judgements == JUDGEMENTS
    assert loaded.name == tmp_path.name


@pytest.mark.parametrize(
    "files",
    [
        {"corpus.jsonl": ""},
        {"corpus.jsonl": "[]"},
        {"corpus.jsonl": '{"_id": "a"}'},
        {"queries.jsonl": "not json"},
        {"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\ta\n"},
        {"qrels/test.tsv": "query-id\tcorpus-id\tscore\n"},
    ],
)
def test_a_malformed_dataset_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        load_dataset(write_dataset(tmp_path, **files))
    assert "corpus.jsonl" in refused.value.hint


def test_a_folder_without_judgements_of_the_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"dev\.tsv"):
        load_dataset(write_dataset(tmp_path), "dev")


def test_a_document_scores_as_its_best_passage() -> None:
    assert best_passages([("a", -2.0), ("b", 1.0), ("a", -1.0)]) == {"a": -1.0, "b": 1.0}


def test_measures_are_means_over_all_judged_queries() -> None:
    perfect = {"q1": {"a/1": 2.0, "b": 1.0}, "q2": {"c": 1.0}}
    assert measure(JUDGEMENTS, perfect) == {"nDCG@10": 1.0, "R@100": 1.0, "RR": 1.0}
    half = measure(JUDGEMENTS, {"q1": {"b": 2.0, "a/1": 1.0}})
    assert half["R@100"] == 0.5
    assert half["RR"] == 0.5
    assert half["nDCG@10"] == pytest.approx(0.43, abs=0.01)


# --- through the service --------------------------------------------------------------------------


class Ears:
    """A stand-in for the network: hears requests, gives the replies of a service that works."""

    def __init__(self) -> None:
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.deleted: list[str] = []
        self.busy = 0
        self.stuck = False
        self.failures: dict[str, int] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.busy:
            self.busy -= 1
            return httpx.Response(429, headers={"Retry-After": "0"})
        if (status := self.failures.get(request.url.path)) is not None:
            return httpx.Response(status, text="no such luck")
        match request.method, request.url.path.split("/")[2:]:
            case "GET", []:
                return httpx.Response(200, json={"version": "9.9"})
            case "POST", ["documents"]:
                head = f"Content-Type: {request.headers['Content-Type']}\n\n".encode()
                form = message_from_bytes(head + request.content, policy=policy.HTTP)
                [file] = [part for part in form.iter_parts() if part.get_filename()]
                filename = str(file.get_filename())
                self.uploads[f"id of {filename}"] = (filename, file.get_payload(decode=True))
                return httpx.Response(202, json={"document_id": f"id of {filename}"})
            case "GET", ["documents"]:
                waits = self.stuck and request.url.params["status"] == "queued"
                return httpx.Response(
                    200, json={"documents": [{}] if waits else [], "next_cursor": None}
                )
            case "GET", ["collections"]:
                name = self.name
                found = {"name": name, "documents": 2, "chunks": 5, "embedding_model": "m"}
                return httpx.Response(200, json={"collections": [{"name": "x"}, found]})
            case "POST", ["collections"]:
                self.name = json.loads(request.content)["name"]
                return httpx.Response(201, json={})
            case "DELETE", ["collections", name]:
                self.deleted.append(name)
                return httpx.Response(200, json={})
            case "POST", ["search"]:
                return httpx.Response(200, json={"hits": self.hits(json.loads(request.content))})
        return httpx.Response(404, text="?")

    def hits(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert body["collection"] == self.name
        assert body["limit"] == 200
        best = "id of 3.md" if body["query"] == "on call" else "id of 1.md"
        return [
            {"document_id": "id of 2.txt", "score": 0.5},
            {"document_id": best, "score": 0.1},
            {"document_id": best, "score": 0.9 if body["mode"] == "hybrid" else 0.2},
        ]


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
async def service(ears: Ears) -> AsyncIterator[Service]:
    transport = httpx.MockTransport(ears)
    async with httpx.AsyncClient(transport=transport, base_url="http://footnote") as opened:
        yield Service(opened)


DATASET = Dataset("tiny", DOCUMENTS, {"q1": "trips", "q2": "on call"}, JUDGEMENTS)


def silent(_step: str, _done: int, _total: int) -> None: ...


async def test_a_run_ingests_searches_measures_and_cleans_up(service: Service, ears: Ears) -> None:
    ears.busy = 3
    steps: list[tuple[str, int, int]] = []
    outcome = await run(service, DATASET, ["hybrid", "keyword"], lambda *step: steps.append(step))
    assert outcome.metrics["hybrid"] == {"nDCG@10": 1.0, "R@100": 1.0, "RR": 1.0}
    assert outcome.metrics["keyword"]["RR"] == 0.75
    assert (outcome.documents, outcome.failed, outcome.passages) == (3, 1, 5)
    assert (outcome.version, outcome.embedding_model) == ("9.9", "m")
    assert ears.deleted == [ears.name]
    assert steps[-1] == ("search, keyword", 2, 2)


async def test_what_is_uploaded_is_the_document_word_for_word(service: Service, ears: Ears) -> None:
    for number, document in enumerate(DOCUMENTS):
        filename, content = ears.uploads[await service.upload("c", number, document)]
        parsed = parse_document(content, filename)
        assert parsed.text.strip() == document.text
        assert parsed.title == (document.title or str(number))


async def test_a_collection_can_be_kept(service: Service, ears: Ears) -> None:
    await run(service, DATASET, ["vector"], silent, keep=True)
    assert ears.deleted == []


async def test_a_run_that_fails_says_why_and_cleans_up(service: Service, ears: Ears) -> None:
    ears.failures["/api/search"] = 500
    with pytest.raises(StartupError, match="500: no such luck"):
        await run(service, DATASET, ["vector"], silent)
    assert ears.deleted == [ears.name]


async def test_a_service_without_a_worker_is_not_waited_for_forever(
    service: Service, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.stuck = True
    monkeypatch.setattr("evaluation.run.POLL_SECONDS", 0)
    monkeypatch.setattr("evaluation.run.STALL_SECONDS", 0.05)
    with pytest.raises(StartupError, match="none was processed") as stalled:
        await run(service, DATASET, ["vector"], silent)
    assert "footnote worker" in stalled.value.hint


async def test_a_service_that_stays_busy_is_given_up(
    service: Service, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.busy = 1000
    monkeypatch.setattr(client, "ATTEMPTS", 3)
    with pytest.raises(StartupError, match="refused 3 times"):
        await service.version()


async def test_no_service_is_told_with_what_to_do() -> None:
    async with client.open_service("http://127.0.0.1:9", "fn_key") as service:
        with pytest.raises(StartupError) as refused:
            await service.version()
    assert "footnote serve" in refused.value.hint


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_and_writes_what_it_found(
    tmp_path: Path, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = httpx.AsyncClient

    def heard(**options: Any) -> httpx.AsyncClient:
        return opened(transport=httpx.MockTransport(ears), **options)

    monkeypatch.setattr(client.httpx, "AsyncClient", heard)
    folder = write_dataset(tmp_path)
    arguments = ["run", str(folder), "--mode", "hybrid", "--results", str(tmp_path / "out")]
    printed = CliRunner().invoke(command, arguments, env={"COLUMNS": "200"})
    assert printed.exit_code == 0, printed.output
    assert "1.0000" in printed.output
    as_json = CliRunner().invoke(command, [*arguments, "--json"])
    [outcome] = json.loads(as_json.stdout)["outcomes"]
    assert outcome["metrics"] == {"hybrid": {"nDCG@10": 1.0, "R@100": 1.0, "RR": 1.0}}
    assert json.loads((tmp_path / "out" / f"{folder.name}.json").read_text()) == outcome
    assert set(cli.Mode) == {"hybrid", "vector", "keyword"}


def test_a_report_has_a_row_for_each_mode(tmp_path: Path) -> None:
    outcome = Outcome(
        "tiny", 3, 1, 5, 2, "m", "9.9", {"hybrid": {"nDCG@10": 2 / 3, "R@100": 1, "RR": 1}}
    )
    table = outcome_table([outcome])
    assert table.row_count == 1
    assert outcome_record(outcome)["metrics"]["hybrid"]["nDCG@10"] == 0.6667
    assert write_record(outcome, tmp_path).name == "tiny.json"
