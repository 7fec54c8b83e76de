"""How well a running service answers, and how well it declines.

Every set of questions is asked of its own documents, which hold the answers, and of each other
set's documents, which mostly do not. A service that knows its limits answers the former and
declines the latter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from rich.table import Table

from evaluation.datasets import Dataset, Document, load_dataset
from evaluation.run import Tell, each, ingest
from evaluation.service import Service

ASKED_AT_ONCE = 2
MAX_HISTORY_MESSAGES = 20


@dataclass(frozen=True, slots=True)
class Question:
    """`answers` are short texts of which an answer must hold one; `relevant` are documents' ids."""

    text: str
    history: tuple[tuple[str, str], ...] = ()
    answers: tuple[str, ...] = ()
    relevant: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Documents and the questions that they answer."""

    name: str
    documents: list[Document]
    questions: list[Question]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the questions of one set, asked of the documents of one set.

    The shares are of all questions for `declined`, and of those answered for the others.
    `cites_relevant` is None where the questions are foreign, `holds_answer` also where the set
    gives no short answers.
    """

    documents: str
    questions: str
    count: int
    declined: float
    grounded: float
    cites_relevant: float | None
    holds_answer: float | None
    median_ms: float


def load_questions(path: Path) -> QuestionSet:
    """The answerable questions of a dataset; raises InvalidInput that says what is wrong."""
    dataset = load_dataset(path)
    questions = [
        Question(
            text,
            history=dataset.history.get(query_id, ())[-MAX_HISTORY_MESSAGES:],
            answers=dataset.answers.get(query_id, ()),
            relevant=frozenset(
                document for document, grade in dataset.judgements[query_id].items() if grade > 0
            ),
        )
        for query_id, text in dataset.queries.items()
        if query_id not in dataset.unanswerable
    ]
    return QuestionSet(dataset.name, dataset.documents, questions)


async def measure_answers(
    service: Service, sets: Sequence[QuestionSet], questions_count: int, seed: int, tell: Tell
) -> list[Row]:
    """Ask every set's questions of every set's documents; the collections made are deleted."""
    random = Random(seed)
    sampled = [
        replace(
            one, questions=random.sample(one.questions, min(questions_count, len(one.questions)))
        )
        for one in sets
    ]
    rows: list[Row] = []
    for holding in sampled:
        async with service.temporary_collection(keep=False) as collection:
            dataset = Dataset(holding.name, holding.documents, {}, {})
            ids = await ingest(service, collection, dataset, tell)
            for asking in sampled:

                async def ask(question: Question, collection: str = collection) -> dict[str, Any]:
                    return await service.ask(collection, question.text, question.history)

                replies = await each(
                    asking.questions,
                    ask,
                    ASKED_AT_ONCE,
                    tell,
                    f"{asking.name} asked of {holding.name}",
                )
                is_own = asking is holding
                rows.append(_row(holding, asking, replies, ids if is_own else None))
    return rows


def _row(
    holding: QuestionSet,
    asking: QuestionSet,
    replies: Sequence[dict[str, Any]],
    ids: dict[str, str] | None,
) -> Row:
    """`ids` are the set's names of the service's documents when the questions are its own."""
    answered = [
        (question, reply)
        for question, reply in zip(asking.questions, replies, strict=True)
        if reply["mode"] != "declined"
    ]
    cites_relevant = holds_answer = None
    if ids is not None:
        cites_relevant = _share(
            any(ids[cited["document_id"]] in question.relevant for cited in reply["citations"])
            for question, reply in answered
        )
        if any(question.answers for question in asking.questions):
            holds_answer = _share(
                any(text.lower() in reply["answer"].lower() for text in question.answers)
                for question, reply in answered
            )
    return Row(
        documents=holding.name,
        questions=asking.name,
        count=len(replies),
        declined=1 - len(answered) / len(replies),
        grounded=_share(reply["grounded"] for _, reply in answered),
        cites_relevant=cites_relevant,
        holds_answer=holds_answer,
        median_ms=median(reply["took_ms"] for reply in replies),
    )


def _share(hits: Any) -> float:
    values = [bool(hit) for hit in hits]
    return sum(values) / len(values) if values else 0.0


def answers_table(rows: Sequence[Row]) -> Table:
    table = Table(
        "documents", "questions", "asked", "answered", "declined", "grounded", "cites a judged one",
        "holds the answer", "median ms",
    )  # fmt: skip
    for row in rows:
        own = row.documents == row.questions
        table.add_row(
            row.documents,
            f"{row.questions} (own)" if own else row.questions,
            str(row.count),
            f"{1 - row.declined:.1%}",
            f"{row.declined:.1%}",
            f"{row.grounded:.1%}" if row.declined < 1 else "",
            "" if row.cites_relevant is None else f"{row.cites_relevant:.1%}",
            "" if row.holds_answer is None else f"{row.holds_answer:.1%}",
            f"{row.median_ms:.0f}",
        )
    return table
