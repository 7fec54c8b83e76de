"""Judged collections of texts: folders in the form of BEIR, files in the form of SQuAD."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

from app.errors import InvalidInput

Judgements = dict[str, dict[str, int]]
"""Of each query: the documents that were judged, and how relevant they are (0: not at all)."""

_FORM = (
    "A dataset is a folder with corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and"
    " qrels/*.tsv, or a JSON file in the form of SQuAD."
)


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """`queries` are those that were judged, by id; `answers` what a right answer holds, if given.

    `history` are the turns before a query, role and text, oldest first, where there are any.
    `unanswerable` are queries marked as such, although some document is relevant to them.
    """

    name: str
    documents: list[Document]
    queries: dict[str, str]
    judgements: Judgements
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    history: dict[str, tuple[tuple[str, str], ...]] = field(
        default_factory=dict[str, tuple[tuple[str, str], ...]]
    )
    unanswerable: frozenset[str] = frozenset()


def load_dataset(path: Path, split: str | None = None) -> Dataset:
    """Read a dataset, whichever form it has; raises InvalidInput that names what is wrong.

    `split` names the file in qrels/: without it, `test`, or the only one there is. A folder may
    also hold one such folder, or one such file, and nothing else of the kind. Queries
    for which nothing is relevant are left out: no ranking of them is better than another.
    """
    name, found = _locate(path)
    dataset = _load_squad(name, found) if found.is_file() else _load_folder(name, found, split)
    if not dataset.documents or not dataset.judgements:
        raise InvalidInput(f"{path} holds no documents or no judged queries.", hint=_FORM)
    return dataset


def limited(queries: Mapping[str, str], limit: int | None, seed: int) -> dict[str, str]:
    """At most `limit` of the queries, drawn by the seed, in their own order."""
    if limit is None or limit >= len(queries):
        return dict(queries)
    drawn = set(Random(seed).sample(sorted(queries), limit))
    return {query_id: text for query_id, text in queries.items() if query_id in drawn}


def _locate(path: Path) -> tuple[str, Path]:
    """The name of a dataset, and the folder or file that holds it."""
    if path.is_file():
        return path.stem, path
    name = path.resolve().name
    if not path.is_dir() or (path / "corpus.jsonl").exists():
        return name, path
    inside = [one for one in sorted(path.iterdir()) if (one / "corpus.jsonl").is_file()]
    inside = inside or sorted(path.glob("*.json"))
    if len(inside) != 1:
        held = ", ".join(one.name for one in inside) or "none"
        raise InvalidInput(
            f"{path} should hold one dataset, and holds {held}.", hint=f"{_FORM} Name one of them."
        )
    return name, inside[0]


# --- the form of BEIR ---------------------------------------------------------------------------


def _load_folder(name: str, folder: Path, split: str | None) -> Dataset:
    documents = [
        Document(str(line["_id"]), str(line.get("title") or ""), str(line["text"]))
        for line in _lines(folder / "corpus.jsonl", "_id", "text")
    ]
    lines = {
        str(line["_id"]): line
        for line in _lines(folder / "queries.jsonl", "_id", "text")
        if str(line["text"]).strip()
    }
    judgements = {
        query_id: grades
        for query_id, grades in _judgements(_judgements_file(folder, split)).items()
        if query_id in lines and any(grade > 0 for grade in grades.values())
    }
    judged = {query_id: lines[query_id] for query_id in judgements}
    return Dataset(
        name,
        documents,
        {query_id: str(line["text"]) for query_id, line in judged.items()},
        judgements,
        history={
            query_id: tuple(_turns(line["history"]))
            for query_id, line in judged.items()
            if line.get("history")
        },
        unanswerable=frozenset(
            query_id
            for query_id, line in judged.items()
            if "ANSWERABLE" not in line.get("answerability", ["ANSWERABLE"])
        ),
    )


def _lines(path: Path, *needed: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, each with the fields that are needed."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value: object = json.loads(line)
                except ValueError as error:
                    raise _malformed(path, number, str(error)) from None
                if not isinstance(value, dict):
                    raise _malformed(path, number, "it is not an object")
                fields = cast("dict[str, Any]", value)
                if lacking := [one for one in needed if fields.get(one) is None]:
                    raise _malformed(path, number, f"{', '.join(lacking)} is missing")
                yield fields
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _judgements_file(folder: Path, split: str | None) -> Path:
    path = folder / "qrels" / f"{split or 'test'}.tsv"
    others = sorted((folder / "qrels").glob("*.tsv"))
    return others[0] if split is None and not path.exists() and len(others) == 1 else path


def _judgements(path: Path) -> Judgements:
    """Query, document and grade by columns, with or without a header; also TREC's four columns."""
    judgements: Judgements = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                columns = row if len(row) > 1 else " ".join(row).split()
                if not columns or (number == 1 and not _is_grade(columns[-1])):
                    continue
                if len(columns) not in (3, 4) or not _is_grade(columns[-1]):
                    raise _malformed(path, number, "it is not query-id, corpus-id and score")
                graded = judgements.setdefault(columns[0], {})
                graded[columns[-2]] = int(float(columns[-1]))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    return judgements


def _is_grade(text: str) -> bool:
    return text.strip().removeprefix("-").replace(".", "", 1).isdecimal()


def _turns(history: Any) -> Iterator[tuple[str, str]]:
    for turn in history:
        if str(turn["text"]).strip():
            yield "user" if turn["speaker"] == "user" else "assistant", str(turn["text"])


# --- the form of SQuAD --------------------------------------------------------------------------


def _load_squad(name: str, path: Path) -> Dataset:
    """Paragraphs are the documents; of the questions, those that their paragraph answers."""
    documents: list[Document] = []
    queries: dict[str, str] = {}
    judgements: Judgements = {}
    answers: dict[str, tuple[str, ...]] = {}
    try:
        for article in json.loads(path.read_text("utf-8-sig"))["data"]:
            title = str(article["title"]).replace("_", " ")
            for paragraph in article["paragraphs"]:
                document = Document(str(len(documents)), title, str(paragraph["context"]))
                documents.append(document)
                for asked in paragraph["qas"]:
                    if asked.get("is_impossible", False) or not asked["answers"]:
                        continue
                    query_id = str(asked.get("id", len(queries)))
                    queries[query_id] = str(asked["question"])
                    judgements[query_id] = {document.id: 1}
                    texts = {str(answer["text"]) for answer in asked["answers"]}
                    answers[query_id] = tuple(sorted(texts))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} is malformed: {error!r}.", hint=_FORM) from None
    return Dataset(name, documents, queries, judgements, answers)


def _malformed(path: Path, number: int, why: str) -> InvalidInput:
    return InvalidInput(f"{path}, line {number}, is malformed: {why}.", hint=_FORM)


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> InvalidInput:
    why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    return InvalidInput(f"{path} cannot be read: {why}.", hint=_FORM)
