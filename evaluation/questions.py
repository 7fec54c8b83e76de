"""Questions about one's own documents: a CSV or JSONL file that says what should be found.

Every line has a question and what answers it: a document (by its URI, title or file name), words
that the passage must hold, or both. Lines with the same id, or without ids the same question, are
one question with several right answers.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.errors import InvalidInput

COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "_id", "qid", "query_id", "question_id", "no", "number"),
    "question": ("question", "query", "q", "prompt", "user_input", "text"),
    "document": (
        "document", "doc", "uri", "url", "source", "file", "filename", "file_name", "path", "title",
        "document_uri", "document_title", "expected_document", "expected_uri", "expected_title",
    ),
    "quote": (
        "quote", "passage", "evidence", "context", "reference", "expected_text", "expected_quote",
        "must_contain", "contains", "reference_contexts",
    ),
    "expected": ("expected", "expect", "answer_in", "relevant"),
    "grade": ("grade", "relevance", "rel", "score"),
    "keep": ("keep", "use", "accept", "accepted"),
}  # fmt: skip
"""The names that a column may have, the usual one first; case, spaces and hyphens do not matter."""

NO = frozenset({"no", "n", "false", "0", "drop", "reject", "rejected", "x", "-", "nein", "non"})
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
DELIMITERS = ",;\t"

_FORM = (
    "Give a header with `question` and at least one of `document` (URI, title or file name) and"
    " `quote` (words that the passage must hold); `id`, `grade` and `keep` may be added."
)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a hit must be: of a document, with words in it, or both.

    `either` is one or the other, whichever it turns out to be; `line` is where it was written.
    """

    line: int
    grade: int = 1
    document: str | None = None
    quote: str | None = None
    either: str | None = None

    def __str__(self) -> str:
        quote = f"“{self.quote}”" if self.quote else ""
        return " ".join(part for part in (self.document or self.either, quote) if part)


@dataclass(frozen=True, slots=True)
class GoldenQuestion:
    id: str
    text: str
    expected: tuple[Expectation, ...]


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """`rejected` lines were marked not to be kept."""

    path: Path
    questions: list[GoldenQuestion]
    rejected: int

    @property
    def name(self) -> str:
        return self.path.stem


def load_golden_set(path: Path) -> GoldenSet:
    """Read the questions; raises InvalidInput that names the line and what is wrong with it."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", hint=_FORM) from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path} is not UTF-8 (byte {error.start}).", hint="Save it as UTF-8 and try again."
        ) from None
    is_json = path.suffix.lower() in JSON_SUFFIXES
    rows = _json_rows(path, text) if is_json else _csv_rows(path, text)
    texts: dict[str, str] = {}
    expected: dict[str, list[Expectation]] = {}
    rejected = 0
    for line, row in rows:
        if str(row.get("keep", "")).strip().lower() in NO:
            rejected += 1
            continue
        question = " ".join(str(row.get("question") or "").split())
        if not question:
            raise _wrong(path, line, "there is no question in it")
        query_id = str(row.get("id") or "").strip() or question
        if texts.setdefault(query_id, question) != question:
            raise _wrong(path, line, f"id {query_id!r} already stands for another question")
        expected.setdefault(query_id, []).extend(_expectations(path, line, row))
    if not texts:
        said = f"; {rejected} are marked not to be kept" if rejected else ""
        raise InvalidInput(f"{path} holds no questions{said}.", hint=_FORM)
    questions = [
        GoldenQuestion(query_id, text, tuple(expected[query_id]))
        for query_id, text in texts.items()
    ]
    return GoldenSet(path, questions, rejected)


def _expectations(path: Path, line: int, row: Mapping[str, Any]) -> Iterator[Expectation]:
    """One for each document or quote of the row; a document with one quote is one."""
    try:
        grade = int(float(row.get("grade") or 1))
    except ValueError:
        raise _wrong(path, line, f"grade {row['grade']!r} is not a number") from None
    if grade < 0:
        raise _wrong(path, line, "a grade is 1 or more, or 0 for what is not relevant")
    documents, quotes = _texts(row.get("document")), _texts(row.get("quote"))
    either = _texts(row.get("expected"))
    if not (documents or quotes or either):
        raise _wrong(path, line, "it does not say what is expected")
    if len(documents) > 1 and quotes:
        raise _wrong(path, line, "of which of the documents is the quote? Write a line for each")
    if grade == 0:
        return
    document = documents[0] if documents and quotes else None
    yield from (Expectation(line, grade, document=document, quote=one) for one in quotes)
    if not quotes:
        yield from (Expectation(line, grade, document=one) for one in documents)
    yield from (Expectation(line, grade, either=one) for one in either)


def _texts(value: Any) -> list[str]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [text for one in values if one is not None and (text := str(one).strip())]


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the usual names of their columns; the delimiter is whichever the header has most."""
    header_line = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header_line.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for row in reader:
            begins, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = _usual_names(path, begins, row)
                continue
            if len(row) > len(names):
                raise _wrong(
                    path, begins, f"it has {len(row)} cells, and the header {len(names)}; a text"
                    " with the delimiter in it must be quoted",
                )  # fmt: skip
            yield begins, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise _wrong(path, line, str(error)) from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """An object a line, or one list of objects, which are then numbered instead of the lines."""
    if text.lstrip().startswith("["):
        values = enumerate(_parsed(path, 1, text), 1)
    else:
        lines = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
        values = ((number, _parsed(path, number, line)) for number, line in lines)
    for number, value in values:
        if not isinstance(value, dict):
            raise _wrong(path, number, "it is not an object")
        fields = cast("dict[str, Any]", value)
        yield number, dict(zip(_usual_names(path, number, fields), fields.values(), strict=True))


def _parsed(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _wrong(path, number, f"it is not JSON ({error})") from None


def _usual_names(path: Path, line: int, given: Iterable[str]) -> list[str]:
    """Each column's usual name, or its own in brackets where it means nothing here."""
    columns = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in given]
    chosen: dict[str, str] = {}
    for usual, names in COLUMNS.items():
        found = [name for name in names if name in columns]
        if found:
            chosen.setdefault(found[0], usual)
    if "question" not in chosen.values():
        raise _wrong(path, line, f"no column is named question ({', '.join(columns)})")
    return [chosen.get(column, f"[{column}]") for column in columns]


def _wrong(path: Path, line: int, why: str) -> InvalidInput:
    return InvalidInput(f"{path}, line {line}: {why}.", hint=_FORM)
