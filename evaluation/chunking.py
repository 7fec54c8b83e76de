"""How much of the evidence, and how little else, do the best passages of a question hold?

The protocol is that of Smith and Troynikov, "Evaluating Chunking Strategies for Retrieval": the
passages of all corpora together are ranked by the cosine of their vectors, and what the first five
hold is compared with the spans that answer the question, token by token.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from app.embedding.base import Embedder, Vectors
from app.errors import InvalidInput
from evaluation.chunkers import Cut, Passage, TokenRuler, chonkie_recursive, fixed_windows, ours
from ingestion.types import Chunking

PASSAGES_FOUND = 5
COMPARED_TOKENS = 200
EMBEDDED_AT_ONCE = 512

_FORM = (
    "It has questions_df.csv (question, references, corpus_id) and corpora/NAME.md, where references"
    " is a JSON list of {content, start_index, end_index}."
)

Tell = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Question:
    """`evidence` are the spans of characters of the corpus that answer it."""

    text: str
    corpus: str
    evidence: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one question: shares of tokens between 0 and 1."""

    recall: float
    precision: float
    iou: float


@dataclass(frozen=True, slots=True)
class Mean:
    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one way to cut came to. `measures` are over all questions, `corpora` over each one's.

    `ahead` are the differences of our passages of the compared size and these, question by question.
    """

    method: str
    passages: int
    tokens_mean: float
    measures: dict[str, Mean]
    corpora: dict[str, dict[str, Mean]]
    ahead: dict[str, Mean]


# --- what is asked ------------------------------------------------------------------------------


def load_evidence(folder: Path, limit: int | None = None) -> tuple[dict[str, str], list[Question]]:
    """The corpora by name, and the questions, `limit` of each corpus at most.

    Raises InvalidInput that names what is missing or malformed.
    """
    path = folder / "questions_df.csv"
    questions: list[Question] = []
    asked: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                corpus = row["corpus_id"]
                asked[corpus] = asked.get(corpus, 0) + 1
                if limit is None or asked[corpus] <= limit:
                    spans = [
                        (int(one["start_index"]), int(one["end_index"]))
                        for one in json.loads(row["references"])
                    ]
                    questions.append(Question(row["question"], corpus, tuple(spans)))
        corpora: dict[str, str] = {}
        for name in asked:
            path = folder / "corpora" / f"{name}.md"
            corpora[name] = path.read_text("utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", hint=_FORM) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is malformed: {error!r}.", hint=_FORM) from None
    if not questions:
        raise InvalidInput(f"{folder} holds no questions.", hint=_FORM)
    return corpora, questions


# --- what is found ------------------------------------------------------------------------------


def score(evidence: Sequence[range], own: Sequence[range], others_count: int) -> Scores:
    """From the tokens of the evidence to those found: in its corpus, and the number elsewhere.

    A token that two found passages repeat is found once, but weighs twice as something retrieved.
    """
    wanted = {token for span in evidence for token in span}
    hit_count = len(wanted & {token for span in own for token in span})
    found_count = sum(map(len, own)) + others_count
    return Scores(
        recall=hit_count / len(wanted),
        precision=hit_count / found_count,
        iou=hit_count / (len(wanted) + found_count - hit_count),
    )


class Measurement:
    """Cuts, embeds and searches; vectors of texts that several methods share are made once."""

    def __init__(
        self, embedder: Embedder, corpora: Mapping[str, str], questions: Sequence[Question]
    ) -> None:
        self._embedder = embedder
        self._corpora = corpora
        self._questions = questions
        self._rulers = {
            name: TokenRuler(embedder.tokenizer, text) for name, text in corpora.items()
        }
        self._known: dict[str, NDArray[np.float32]] = {}
        self._queries = embedder.embed([one.text for one in questions], "query")

    def run(self, name: str, cut: Cut, tell: Tell) -> tuple[list[Scores], int, float]:
        """The scores of each question, the number of passages, and their mean size in tokens."""
        passages = [
            (corpus, passage)
            for corpus, text in self._corpora.items()
            for passage in cut(corpus, text)
        ]
        vectors = self._vectors([passage.embedded for _, passage in passages], name, tell)
        likeness = self._queries @ vectors.T
        order = np.argsort(-likeness, axis=1, kind="stable")[:, :PASSAGES_FOUND]
        best = cast("list[list[int]]", order.tolist())
        sizes = [len(self._tokens(*one)) for one in passages]
        scores = [
            self._score(question, [passages[index] for index in row])
            for question, row in zip(self._questions, best, strict=True)
        ]
        return scores, len(passages), fmean(sizes)

    def _tokens(self, corpus: str, passage: Passage) -> range:
        return self._rulers[corpus].tokens(passage.start, passage.end)

    def _score(self, question: Question, found: Sequence[tuple[str, Passage]]) -> Scores:
        ruler = self._rulers[question.corpus]
        evidence = [ruler.tokens(*span) for span in question.evidence]
        spans = [(corpus == question.corpus, self._tokens(corpus, one)) for corpus, one in found]
        own = [span for is_own, span in spans if is_own]
        return score(evidence, own, sum(len(span) for is_own, span in spans if not is_own))

    def _vectors(self, texts: Sequence[str], name: str, tell: Tell) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), EMBEDDED_AT_ONCE):
            tell(name, start, len(new))
            part = new[start : start + EMBEDDED_AT_ONCE]
            self._known.update(zip(part, self._embedder.embed(part, "document"), strict=True))
        tell(name, len(new), len(new))
        return np.stack([self._known[text] for text in texts])


# --- what it comes to ---------------------------------------------------------------------------


def compare(
    embedder: Embedder,
    default: Chunking,
    corpora: Mapping[str, str],
    questions: Sequence[Question],
    tell: Tell,
) -> list[Comparison]:
    """Ours at the compared size and as configured, then fixed windows and chonkie's recursion."""
    tokenizer = embedder.tokenizer
    compared = Chunking(COMPARED_TOKENS)
    methods: dict[str, Cut] = {f"Footnote, {COMPARED_TOKENS}": ours(tokenizer, compared)}
    if default != compared:
        methods[f"Footnote, {default.tokens} (configured)"] = ours(tokenizer, default)
    methods[f"fixed windows, {COMPARED_TOKENS}"] = fixed_windows(tokenizer, COMPARED_TOKENS)
    recursive = chonkie_recursive(embedder.name, COMPARED_TOKENS)
    methods[f"chonkie recursive, {COMPARED_TOKENS}"] = recursive
    measurement = Measurement(embedder, corpora, questions)
    comparisons: list[Comparison] = []
    first: list[Scores] = []
    for name, cut in methods.items():
        scores, count, tokens_mean = measurement.run(name, cut, tell)
        first = first or scores
        comparisons.append(
            Comparison(
                method=name,
                passages=count,
                tokens_mean=tokens_mean,
                measures=means(scores),
                corpora={
                    corpus: means(
                        [
                            one
                            for one, question in zip(scores, questions, strict=True)
                            if question.corpus == corpus
                        ]
                    )
                    for corpus in corpora
                },
                ahead=_differences(first, scores),
            )
        )
    return comparisons


def means(scores: Sequence[Scores]) -> dict[str, Mean]:
    rows = [asdict(one) for one in scores]
    return {name: _mean([row[name] for row in rows]) for name in rows[0]}


def _differences(ours: Sequence[Scores], theirs: Sequence[Scores]) -> dict[str, Mean]:
    pairs = [(asdict(mine), asdict(other)) for mine, other in zip(ours, theirs, strict=True)]
    return {
        name: _mean([mine[name] - other[name] for mine, other in pairs]) for name in pairs[0][0]
    }


def _mean(values: Sequence[float]) -> Mean:
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return Mean(fmean(values), error)


def comparison_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """All questions together, in per cent with the standard error; then each corpus by itself."""
    names = list(comparisons[0].measures)
    columns = ["IoU" if name == "iou" else name for name in names]
    whole = Table("passages", "number", "tokens", *columns, title=f"{PASSAGES_FOUND} passages, %")
    for one in comparisons:
        whole.add_row(
            one.method,
            str(one.passages),
            f"{one.tokens_mean:.0f}",
            *(_percent(one.measures[name]) for name in names),
        )
    corpora = Table("corpus", "passages", *columns)
    for corpus in comparisons[0].corpora:
        for one in comparisons:
            corpora.add_row(
                corpus, one.method, *(_percent(one.corpora[corpus][name]) for name in names)
            )
        corpora.add_section()
    return [whole, corpora]


def _percent(value: Mean) -> str:
    return f"{100 * value.mean:.1f} ± {100 * value.standard_error:.1f}"


def comparison_record(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """As JSON values, shares to four digits."""
    return [
        {
            "passages": one.method,
            "number": one.passages,
            "tokens_mean": round(one.tokens_mean, 1),
            "measures": _rounded(one.measures),
            "corpora": {corpus: _rounded(values) for corpus, values in one.corpora.items()},
            "ahead": _rounded(one.ahead),
        }
        for one in comparisons
    ]


def _rounded(measures: Mapping[str, Mean]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(number, 4) for key, number in asdict(value).items()}
        for name, value in measures.items()
    }
