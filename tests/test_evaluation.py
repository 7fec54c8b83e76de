import json
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.errors import InvalidInput, StartupError
from evaluation import service as client
from evaluation.cli import app as command
from evaluation.datasets import Dataset, Document, limited, load_dataset
from evaluation.records import outcome_record
from evaluation.run import Outcome, Plan, ask_all, open_dataset
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


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"corpus.jsonl": '{"_id": "a", "text": "b"}\n{"_id": "c"}'}, "line 2, .* text is missing"),
        ({"queries.jsonl": "\n\nnot json"}, "line 3"),
        ({"qrels/test.tsv": "q1\ta/1\t2\nq1\tb\tmuch\n"}, "line 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, files: dict[str, str], line: str
) -> None:
    with pytest.raises(InvalidInput, match=line):
        load_dataset(write_dataset(tmp_path, **files))


def test_judgements_may_have_the_columns_of_trec_and_no_header(tmp_path: Path) -> None:
    rows = "q1 0 a/1 2\nq1 0 b 1\nq2 0 c 1\nq2 0 b 0\n"
    loaded = load_dataset(write_dataset(tmp_path, **{"qrels/test.tsv": rows}))
    assert loaded.judgements == {"q1": {"a/1": 2, "b": 1}, "q2": {"c": 1, "b": 0}}


def test_a_query_to_which_nothing_is_relevant_is_left_out(tmp_path: Path) -> None:
    rows = "query-id\tcorpus-id\tscore\nq1\ta/1\t0\nq2\tc\t1\n"
    assert list(load_dataset(write_dataset(tmp_path, **{"qrels/test.tsv": rows})).queries) == ["q2"]


def test_the_only_judgements_need_no_name(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert load_dataset(folder).judgements == JUDGEMENTS


def test_a_folder_may_hold_one_dataset_in_a_folder_of_its_own(tmp_path: Path) -> None:
    inner = tmp_path / "collected" / "inner"
    inner.mkdir(parents=True)
    write_dataset(inner)
    assert load_dataset(tmp_path / "collected").name == "collected"
    (tmp_path / "collected" / "other").mkdir()
    (tmp_path / "collected" / "other" / "corpus.jsonl").touch()
    with pytest.raises(InvalidInput, match="holds inner, other"):
        load_dataset(tmp_path / "collected")


def test_paragraphs_of_squad_are_documents(tmp_path: Path) -> None:
    asked = [
        {"id": "x", "question": "When?", "answers": [{"text": "1200"}], "is_impossible": False},
        {"id": "y", "question": "By whom?", "answers": [], "is_impossible": True},
    ]
    article = {"title": "Old_Towns", "paragraphs": [{"context": "In 1200.", "qas": asked}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [article]}))
    for given in (path, tmp_path):
        loaded = load_dataset(given)
        assert loaded.documents == [Document("0", "Old Towns", "In 1200.")]
        assert loaded.judgements == {"x": {"0": 1}}
        assert loaded.answers == {"x": ("1200",)}


def test_drawn_questions_are_those_of_the_seed() -> None:
    queries = {str(number): f"question {number}" for number in range(50)}
    drawn = limited(queries, 10, 3)
    assert drawn == limited(dict(reversed(queries.items())), 10, 3)
    assert len(drawn) == 10
    assert drawn != limited(queries, 10, 4)
    assert limited(queries, None, 0) == limited(queries, 99, 0) == queries


# --- through the service --------------------------------------------------------------------------


class Ears:
    """A stand-in for the network: hears requests, gives the replies of a service that works."""

    def __init__(self) -> None:
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.deleted: list[str] = []
        self.searches: list[dict[str, Any]] = []
        self.name = "made-before"
        self.reranker: str | None = None
        self.rewriter: str | None = None
        self.late = 0
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
                return httpx.Response(200, json={"version": "9.9", "checks": {}})
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
                body = json.loads(request.content)
                self.searches.append(body)
                reply = {"hits": self.hits(body), "explanation": self.explanation(body)}
                return httpx.Response(200, json=reply)
        return httpx.Response(404, text="?")

    def explanation(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["rewrite"]:
            return {"rewrite": {"model": self.rewriter} if self.rewriter else "not done: no model"}
        if not body["rerank"]:
            return {"weights": {"vector": 1.0, "keyword": 1.0}}
        if self.reranker is None:
            return {"rerank": "not done: no reranker is configured"}
        if self.late:
            self.late -= 1
            return {"rerank": "not done: it would have taken more than 1 s"}
        return {"rerank": {"model": self.reranker}} if body.get("explain") else {}

    def hits(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert body["collection"] == self.name
        best = "id of 3.md" if body["query"] == "on call" else "id of 1.md"
        found = [best, best, "id of 2.txt"]
        # Only both legs together put the best before the other.
        ranked = found if body["mode"] == "hybrid" else list(reversed(found))
        return [
            {"document_id": one, "chunk_id": number, "title": one, "text": "…", "uri": one}
            for number, one in enumerate(ranked)
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


async def run(service: Service, plan: Plan, tell: Any = silent) -> Outcome:
    async with open_dataset(service, DATASET, plan, tell) as judged:
        return await ask_all(service, judged, plan, tell)


async def test_a_run_ingests_searches_measures_and_cleans_up(service: Service, ears: Ears) -> None:
    ears.busy = 3
    steps: list[tuple[str, int, int]] = []
    outcome = await run(service, Plan(timed=1), lambda *step: steps.append(step))
    record = outcome_record(outcome)
    assert record["metrics"]["hybrid"]["nDCG@10"] == 1.0
    assert record["metrics"]["keyword"]["RR"] == 0.75
    assert record["gains"]["hybrid - keyword"]["RR"]["mean"] == 0.25
    # No reranker ran, so there is no mode of it; both legs agree, and so does their fusion.
    assert set(record["metrics"]) == {"keyword", "vector", "hybrid", "rrf"}
    assert outcome.rankings["rrf"] == outcome.rankings["keyword"]
    assert (outcome.documents, outcome.failed, outcome.passages) == (3, 1, 5)
    assert (outcome.version, outcome.embedding_model) == ("9.9", "m")
    assert outcome.expected["q1"] == ["Travel policy", "Expenses are paid back within two weeks."]
    assert [one.relevant for one in outcome.found["q2"]] == [True, True, False]
    assert ears.deleted == [ears.name]
    assert steps[-1] == ("search", 2, 2)


async def test_time_is_taken_one_by_one_and_for_as_many_hits_as_people_ask_for(
    service: Service, ears: Ears
) -> None:
    outcome = await run(service, Plan(modes=("keyword", "hybrid"), timed=1))
    assert {mode: len(times) for mode, times in outcome.times_ms.items()} == {
        "keyword": 1,
        "hybrid": 1,
    }
    # What takes part is asked first; then a search to warm up and one that counts, in each mode.
    assert [body["limit"] for body in ears.searches] == [1, 10, 10, 10, 10, 200, 200, 200, 200]
    untimed = await run(service, Plan(modes=("keyword",), timed=0))
    assert untimed.times_ms == {}
    assert "latency_ms" in outcome_record(untimed)


async def test_only_some_questions_are_asked(service: Service) -> None:
    outcome = await run(service, Plan(modes=("keyword",), limit=1))
    assert len(outcome.questions) == len(outcome.judgements) == 1


async def test_a_reranker_is_a_mode_of_its_own_and_waited_for(service: Service, ears: Ears) -> None:
    ears.reranker, ears.late = "small-encoder", 3
    outcome = await run(service, Plan(timed=0))
    assert outcome.setup["reranker"] == "small-encoder"
    assert outcome.setup["questions not reranked"] == 0
    assert outcome.main_mode == "rerank"
    assert "rerank - hybrid" in outcome_record(outcome)["gains"]
    # Nobody else is reranked, whatever the collection chooses.
    assert {body["mode"] for body in ears.searches if body["rerank"]} == {"hybrid"}


async def test_questions_that_a_reranker_was_late_for_are_counted(
    service: Service, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.reranker = "slow-encoder"
    monkeypatch.setattr(client, "RETRIES", 2)
    setup = await service.setup(ears.name, "trips", ["rerank"])
    ears.late = 100
    hits, is_reranked = await service.searched_surely(ears.name, "trips", "rerank")
    assert (setup["reranker"], len(hits), is_reranked) == ("slow-encoder", 3, False)
    monkeypatch.setattr(client, "RERANKER_LOADS", 2)
    assert (await service.setup(ears.name, "trips", ["rerank"]))["reranker"] is None


async def test_rewriting_is_measured_when_it_is_asked_for(service: Service, ears: Ears) -> None:
    ears.rewriter = "some-model"
    outcome = await run(service, Plan(timed=0))
    assert "rewrite" not in outcome.scores
    outcome = await run(service, Plan(modes=("hybrid", "rewrite"), timed=0))
    assert outcome.setup["rewriter"] == "some-model"
    assert outcome.setup["questions not rewritten"] == 0
    assert "rewrite - hybrid" in outcome_record(outcome)["gains"]
    assert {body["mode"] for body in ears.searches if body["rewrite"]} == {"hybrid"}
    ears.rewriter = None
    with pytest.raises(InvalidInput, match="rewrites queries"):
        await run(service, Plan(modes=("hybrid", "rewrite")))


async def test_a_reranker_that_is_not_there_cannot_be_asked_for(service: Service) -> None:
    with pytest.raises(InvalidInput, match="no reranker"):
        await run(service, Plan(modes=("rerank",)))


async def test_what_is_uploaded_is_the_document_word_for_word(service: Service, ears: Ears) -> None:
    for number, document in enumerate(DOCUMENTS):
        filename, content = ears.uploads[await service.upload("c", number, document)]
        parsed = parse_document(content, filename)
        assert parsed.text.strip() == document.text
        assert parsed.title == (document.title or str(number))


async def test_a_collection_can_be_kept(service: Service, ears: Ears) -> None:
    await run(service, Plan(modes=("vector",), keep=True))
    assert ears.deleted == []


async def test_a_run_that_fails_says_why_and_cleans_up(service: Service, ears: Ears) -> None:
    ears.failures["/api/search"] = 500
    with pytest.raises(StartupError, match="500: no such luck"):
        await run(service, Plan(modes=("vector",)))
    assert ears.deleted == [ears.name]


async def test_a_service_without_a_worker_is_not_waited_for_forever(
    service: Service, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.stuck = True
    monkeypatch.setattr("evaluation.run.POLL_SECONDS", 0)
    monkeypatch.setattr("evaluation.run.STALL_SECONDS", 0.05)
    with pytest.raises(StartupError, match="none was processed") as stalled:
        await run(service, Plan(modes=("vector",)))
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


@pytest.fixture
def heard(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = httpx.AsyncClient

    def client_of(**options: Any) -> httpx.AsyncClient:
        return opened(transport=httpx.MockTransport(ears), **options)

    monkeypatch.setattr(client.httpx, "AsyncClient", client_of)


@pytest.mark.usefixtures("heard")
def test_the_command_prints_and_writes_what_it_found(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    arguments = ["run", str(folder), "--mode", "hybrid", "--results", str(tmp_path / "out")]
    printed = CliRunner().invoke(command, arguments)
    assert printed.exit_code == 0, printed.output
    assert "1.000" in printed.output
    as_json = CliRunner().invoke(command, [*arguments, "--json"])
    [outcome] = json.loads(as_json.stdout)["outcomes"]
    assert outcome["metrics"]["hybrid"]["nDCG@10"] == 1.0
    written = json.loads((tmp_path / "out" / f"{folder.name}.json").read_text())
    times = outcome.pop("latency_ms"), written.pop("latency_ms")
    assert all(one["hybrid"]["questions"] == 2 for one in times)
    assert outcome == written | {"since_baseline": {}}


@pytest.mark.usefixtures("heard")
def test_a_baseline_is_held_and_what_falls_below_ends_with_1(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    saved = tmp_path / "kept" / "baseline.json"
    base = ["run", str(folder), "--timed", "0"]
    invoke = CliRunner().invoke
    assert invoke(command, [*base, "--mode", "hybrid", "--save", str(saved)]).exit_code == 0
    again = [*base, "--mode", "hybrid", "--baseline", str(saved), "--max-drop", "0"]
    held = invoke(command, [*again, "--fail-below", "ndcg@10=0.9"])
    assert held.exit_code == 0, held.output
    assert "Since the baseline" in held.output
    failed = invoke(command, [*base, "--mode", "keyword", "--fail-below", "mrr=0.9"])
    assert failed.exit_code == 1
    assert "Failed: " in failed.output
    assert "keyword: RR is 0.7500, below 0.9" in failed.output


@pytest.mark.usefixtures("heard")
def test_results_of_many_sets_make_one_table(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    results = tmp_path / "results"
    invoke = CliRunner().invoke
    assert invoke(command, ["run", str(folder), "--results", str(results)]).exit_code == 0
    (results / "other.json").write_text('{"something": "else"}')
    lines = invoke(command, ["table", str(results)]).output.splitlines()
    assert lines[0] == "| | documents | questions | BM25 | vectors | RRF | hybrid | hybrid p50 |"
    assert lines[2].startswith(f"| {folder.name} | 2 | 2 | 0.745 <sub>")
    assert "| **1.000** <sub>1.000–1.000</sub> |" in lines[2]
    assert lines[3].startswith("| mean of the sets | | | 0.745 |")
    nothing = invoke(command, ["table", str(tmp_path / "nowhere")])
    assert isinstance(nothing.exception, InvalidInput)


@pytest.mark.usefixtures("heard")
def test_one_command_writes_page_records_and_trec_files(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    page = tmp_path / "out" / "page.html"
    trec = tmp_path / "trec"
    arguments = ["run", str(folder), "--report", str(page), "--trec", str(trec)]
    written = CliRunner().invoke(command, arguments)
    assert written.exit_code == 0, written.output
    assert "How well Footnote finds" in page.read_text("utf-8")
    name = folder.name
    assert {one.name for one in trec.iterdir()} == {
        f"{name}.qrels",
        *(f"{name}.{mode}.run" for mode in ("keyword", "vector", "hybrid", "rrf")),
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to measure"),
        (["--max-drop", "0.01", "SET"], "of nothing"),
        (["--fail-below", "0.4", "SET"], "MEASURE=VALUE"),
        (["--fail-below", "precision=0.4", "SET"], "not a measure"),
        (["--fail-below", "RR=40", "SET"], "from 0 to 1"),
        (["--baseline", "missing.json", "SET"], "cannot be read"),
        (["missing"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_asked(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    folder = str(write_dataset(tmp_path))
    given = [folder if one == "SET" else one for one in arguments]
    refused = CliRunner().invoke(command, ["run", *given])
    assert isinstance(refused.exception, InvalidInput), refused.output
    assert complaint in refused.exception.detail
