"""Judged collections of texts in the folder form of BEIR."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InvalidInput

Judgements = dict[str, dict[str, int]]
"""Of each query: the documents that were judged, and how relevant they are (0: not at all)."""

_FORM = "A dataset has corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and qrels/*.tsv."


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """`queries` are those that were judged, by id."""

    name: str
    documents: list[Document]
    queries: dict[str, str]
    judgements: Judgements


def load_dataset(folder: Path, split: str = "test") -> Dataset:
    """Read a dataset; raises InvalidInput that names what is missing or malformed."""
    path = folder / "corpus.jsonl"
    try:
        documents = [
            Document(str(line["_id"]), line.get("title") or "", line["text"])
            for line in _lines(path)
        ]
        path = folder / "queries.jsonl"
        queries = {str(line["_id"]): str(line["text"]) for line in _lines(path)}
        path = folder / "qrels" / f"{split}.tsv"
        judgements = _judgements(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", hint=_FORM) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is malformed: {error!r}.", hint=_FORM) from None
    judgements = {one: grades for one, grades in judgements.items() if one in queries}
    if not documents or not judgements:
        raise InvalidInput(f"{folder} holds no documents or no judged queries.", hint=_FORM)
    judged = {query_id: queries[query_id] for query_id in judgements}
    return Dataset(folder.resolve().name, documents, judged, judgements)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _judgements(path: Path) -> Judgements:
    """The columns are query-id, corpus-id and score, under a header."""
    judgements: Judgements = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        next(rows, None)
        for query_id, document_id, grade in rows:
            judgements.setdefault(query_id, {})[document_id] = int(float(grade))
    return judgements
