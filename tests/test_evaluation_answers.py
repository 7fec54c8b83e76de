"""Questions asked of their own documents and of others', and what is counted of the replies."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidInput
from evaluation.answers import answers_table, load_questions, measure_answers
from evaluation.datasets import Document

SQUAD = {
    "data": [
        {
            "title": "Old_Towns",
            "paragraphs": [
                {
                    "context": "The town was founded in 1200.",
                    "qas": [
                        {
                            "question": "When was it founded?",
                            "is_impossible": False,
                            "answers": [{"text": "1200"}, {"text": "1200"}],
                        },
                        {"question": "By whom?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
    ]
}


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    path = tmp_path / "towns.json"
    path.write_text(json.dumps(SQUAD))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pets"
    (path / "qrels").mkdir(parents=True)
    queries = [
        {
            "_id": "q1",
            "text": "And dogs?",
            "history": [
                {"speaker": "user", "text": "Cats?"},
                {"speaker": "agent", "text": "Purr."},
            ],
        },
        {"_id": "q2", "text": "Unanswerable?", "answerability": ["UNANSWERABLE"]},
        {"_id": "q3", "text": "Never judged?"},
    ]
    (path / "corpus.jsonl").write_text(json.dumps({"_id": "d1", "text": "Dogs bark."}))
    (path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\n")
    return path


class KnowsOnlyItsOwn:
    """Stands in for the client of a service that answers what its documents share a word with."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.asked: list[tuple[str, Sequence[tuple[str, str]]]] = []

    @asynccontextmanager
    async def temporary_collection(self, *, keep: bool) -> AsyncIterator[str]:
        self.documents.clear()
        yield "made-for-it"

    async def upload(self, collection: str, number: int, document: Document) -> str:
        self.documents[f"id-{number}"] = document
        return f"id-{number}"

    async def count(self, collection: str, status: str) -> int:
        return 0

    async def ask(
        self, collection: str, question: str, history: Sequence[tuple[str, str]] = ()
    ) -> dict[str, Any]:
        self.asked.append((question, history))
        words = set(question.lower().strip("?").split())
        for document_id, document in self.documents.items():
            if words & set(document.text.lower().strip(".").split()):
                return {
                    "mode": "extractive",
                    "grounded": True,
                    "answer": document.text,
                    "citations": [{"document_id": document_id}],
                    "took_ms": 5.0,
                }
        return {
            "mode": "declined",
            "grounded": False,
            "answer": "",
            "citations": [],
            "took_ms": 1.0,
        }


def test_only_answerable_questions_are_taken(squad: Path, folder: Path) -> None:
    towns, pets = load_questions(squad), load_questions(folder)
    assert (towns.name, [each.title for each in towns.documents]) == ("towns", ["Old Towns"])
    [founded] = towns.questions
    assert (founded.text, founded.answers) == ("When was it founded?", ("1200",))
    assert founded.relevant == {towns.documents[0].id}
    [dogs] = pets.questions
    assert dogs.history == (("user", "Cats?"), ("assistant", "Purr."))
    assert dogs.relevant == {"d1"}


@pytest.mark.parametrize("content", ["no json", '{"data": 3}', '{"data": [{}]}'])
def test_a_malformed_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=r"broken\.json"):
        load_questions(path)


async def test_own_questions_are_told_from_foreign_ones(squad: Path, folder: Path) -> None:
    service: Any = KnowsOnlyItsOwn()
    sets = [load_questions(squad), load_questions(folder)]
    rows = await measure_answers(service, sets, 10, 0, lambda *_: None)
    shares = {(row.documents, row.questions): row for row in rows}
    own, foreign = shares["towns", "towns"], shares["towns", "pets"]
    assert (own.declined, own.cites_relevant, own.holds_answer) == (0.0, 1.0, 1.0)
    assert (own.count, own.median_ms, own.grounded) == (1, 5.0, 1.0)
    assert (foreign.declined, foreign.cites_relevant, foreign.holds_answer) == (1.0, None, None)
    assert shares["pets", "pets"].holds_answer is None
    assert ("And dogs?", (("user", "Cats?"), ("assistant", "Purr."))) in service.asked
    assert answers_table(rows).row_count == 4
