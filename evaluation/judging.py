"""From hits to what the judgements speak of: documents of a set, or what a question expects."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.errors import InvalidInput
from evaluation.datasets import Dataset, Judgements
from evaluation.metrics import first_of_each
from evaluation.questions import Expectation, GoldenSet

Hit = Mapping[str, Any]
"""A hit as the API gives it."""

SHOWN_PROBLEMS = 5


class Judge(Protocol):
    @property
    def judgements(self) -> Judgements: ...

    def units(self, query_id: str, hits: Sequence[Hit]) -> list[str]:
        """What hits in descending order come to: judged units, best first, each once."""
        ...

    def is_relevant(self, query_id: str, hit: Hit) -> bool: ...

    def expected(self, query_id: str) -> list[str]:
        """In words, what was to be found."""
        ...


class DatasetJudge:
    """A document stands where its best passage does; `names` are the set's, by the service's id."""

    def __init__(self, dataset: Dataset, names: Mapping[str, str]) -> None:
        self.judgements = dataset.judgements
        self._names = names
        self._titles = {one.id: one.title or one.text[:80] for one in dataset.documents}

    def units(self, query_id: str, hits: Sequence[Hit]) -> list[str]:
        return first_of_each(self._names[hit["document_id"]] for hit in hits)

    def is_relevant(self, query_id: str, hit: Hit) -> bool:
        return self.judgements[query_id].get(self._names[hit["document_id"]], 0) > 0

    def expected(self, query_id: str) -> list[str]:
        grades = self.judgements[query_id]
        best = sorted((one for one in grades if grades[one] > 0), key=lambda one: -grades[one])
        return [" ".join(self._titles.get(one, one).split()) for one in best]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An expectation, resolved: of one of these documents (None: of any), with these words."""

    unit: str
    documents: frozenset[str] | None
    words: str

    def is_met(self, hit: Hit) -> bool:
        if self.documents is not None and hit["document_id"] not in self.documents:
            return False
        return not self.words or holds(normalised(hit["text"]), self.words)


class GoldenJudge:
    """Each expectation is a unit, at the first hit that meets it.

    A question that quotes is judged by passages, one that names documents only by documents. A
    further hit that meets no more than what was met above it takes no place: it is no mistake.
    """

    def __init__(
        self, golden: GoldenSet, queries: Mapping[str, str], documents: Iterable[Hit]
    ) -> None:
        """`documents` are those of the collection; raises InvalidInput for one not among them."""
        names = _Names(documents)
        self._wanted: dict[str, list[_Wanted]] = {}
        self._by_passage: set[str] = set()
        self._expected: dict[str, list[str]] = {}
        self.judgements: Judgements = {}
        missing: list[Expectation] = []
        for question in golden.questions:
            if question.id not in queries or not question.expected:
                continue
            wanted = self._wanted[question.id] = list[_Wanted]()
            grades = self.judgements[question.id] = dict[str, int]()
            self._expected[question.id] = [str(one) for one in question.expected]
            for number, one in enumerate(question.expected, 1):
                resolved = _resolve(one, f"expected-{number}", names)
                if resolved is None:
                    missing.append(one)
                    continue
                wanted.append(resolved)
                grades[resolved.unit] = one.grade
                if resolved.words:
                    self._by_passage.add(question.id)
        if missing:
            raise _not_there(golden, missing)

    def units(self, query_id: str, hits: Sequence[Hit]) -> list[str]:
        wanted = self._wanted[query_id]
        by_passage = query_id in self._by_passage
        units: dict[str, None] = {}
        for hit in hits:
            met = [one.unit for one in wanted if one.is_met(hit)]
            own = f"{hit['uri']}#{hit['chunk_id']}" if by_passage else str(hit["uri"])
            units.update(dict.fromkeys(met or [own]))
        return list(units)

    def is_relevant(self, query_id: str, hit: Hit) -> bool:
        return any(one.is_met(hit) for one in self._wanted[query_id])

    def expected(self, query_id: str) -> list[str]:
        return self._expected[query_id]


def _resolve(expectation: Expectation, unit: str, names: "_Names") -> _Wanted | None:
    """None for a document that is not there."""
    quote = normalised(expectation.quote or "")
    name = expectation.document or expectation.either
    if name is None:
        return _Wanted(unit, None, quote)
    documents = names.find(name)
    if not documents and expectation.either is not None:
        return _Wanted(unit, None, normalised(name))
    return _Wanted(unit, documents, quote) if documents else None


class _Names:
    """Documents by URI, title, file name and stem, and by how a URI ends; whatever the case."""

    def __init__(self, documents: Iterable[Hit]) -> None:
        self._ids: dict[str, set[str]] = {}
        self._uris: dict[str, str] = {}
        for one in documents:
            uri = str(one["uri"]).lower()
            file_name = re.split(r"[/\\]", uri)[-1]
            self._uris[str(one["id"])] = uri
            stem = file_name.rpartition(".")[0]
            for name in {uri, str(one["title"]).strip().lower(), file_name, stem} - {""}:
                self._ids.setdefault(name, set()).add(str(one["id"]))

    def find(self, name: str) -> frozenset[str]:
        wanted = name.strip().lower()
        if found := self._ids.get(wanted):
            return frozenset(found)
        end = "/" + wanted.removeprefix("./").lstrip("/")
        return frozenset(one for one, uri in self._uris.items() if uri.endswith(end))


def _not_there(golden: GoldenSet, missing: Sequence[Expectation]) -> InvalidInput:
    named = "; ".join(f"line {one.line}: {one.document}" for one in missing[:SHOWN_PROBLEMS])
    more = len(missing) - SHOWN_PROBLEMS
    return InvalidInput(
        f"{golden.path}: the collection has no document of this URI, title or file name: {named}"
        + (f"; and {more} more." if more > 0 else "."),
        hint="See what it has with `footnote documents list`, or mark the lines keep=no.",
    )


_APART = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """The words alone, in lower case: how they are spaced, marked up and punctuated is no matter."""
    return _APART.sub(" ", text.lower()).strip()


def holds(passage: str, words: str) -> bool:
    """Does the passage hold the quoted words (both normalised), or at least half of them?

    Half counts where the text was cut in the midst of the quote: the passage then begins or ends
    with a part of it.
    """
    if f" {words} " in f" {passage} ":
        return True
    quote = words.split()
    least = (len(quote) + 1) // 2
    held = passage.split()
    if least < 2 or len(held) < least:
        return False
    if len(held) < len(quote) and f" {passage} " in f" {words} ":
        return True
    most = min(len(held), len(quote) - 1)
    return any(
        held[-size:] == quote[:size] or held[:size] == quote[-size:]
        for size in range(most, least - 1, -1)
    )
