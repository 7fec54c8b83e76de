"""Whether a passage bears a sentence out, and which of its words do. Pure.

Likeness alone is not enough: a sentence with another number, another name or a `not` too many is
very much like its source. So likeness decides first, and those three may overrule it.

The thresholds were measured on reference answers (MT-RAG and product documentation) against the
passages they were written from, and against the best passages that they were not written from:
90 % of the sentences count as supported by the former, 6 % by the latter. Of sentences that were
given a `not`, 87 % are caught, and all of those whose number was changed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app.answering.sentences import readable, split_sentences
from app.answering.words import content_terms
from app.search.base import Hit

SUPPORT = 0.5
"""The least mean of coverage and similarity."""
LEXICAL_SUPPORT = 0.7
"""The least coverage when there is no similarity, because the embedding model is too busy."""
CERTAIN_COVERAGE = 0.9
"""A sentence nearly all of whose words stand together in the passage needs no similarity."""
MAX_WINDOW_SENTENCES = 3
LENGTH_PENALTY = 0.03
"""Each further sentence must hold that much more, so that quotes are no longer than needed."""
SHORTLIST = 2
NEGATION_REACH = 2

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        [
            "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve",
        ]
    )
}  # fmt: skip
_NAME = re.compile(
    r"(?<![.!?:]\s)(?<![.!?:]\s[\"“(])(?<!^)\b(?:[A-Z][\w’'-]*[a-z][\w-]*|[A-Z]{2,}\w*)\b"
)
_WORD_OR_STOP = re.compile(r"[\w'’]+|[,.;:!?()]")
_NEGATION = re.compile(
    r"(?:not|no|never|none|cannot|without|neither|nor|nobody|nothing|unable|\w+n['’]t)$",
    re.IGNORECASE,
)
_ENDS_NEGATION = re.compile(r"[,.;:!?()]$|(?:but|only|just)$", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """A text and what can be compared of it."""

    text: str

    @cached_property
    def terms(self) -> frozenset[str]:
        return frozenset(content_terms(self.text))

    @cached_property
    def numbers(self) -> frozenset[str]:
        words = re.findall(r"[a-z]+", self.text.lower())
        return _digits(self.text) | {_NUMBER_WORDS[word] for word in words if word in _NUMBER_WORDS}

    @cached_property
    def negation(self) -> tuple[frozenset[str], frozenset[str]]:
        """The terms right after a negation, and the terms elsewhere."""
        negated: set[str] = set()
        plain: set[str] = set()
        left = 0
        for word in _WORD_OR_STOP.findall(self.text):
            if _NEGATION.match(word):
                left = NEGATION_REACH
            elif _ENDS_NEGATION.match(word):
                left = 0
            elif terms := content_terms(word):
                (negated if left else plain).update(terms)
                left = max(0, left - 1)
        return frozenset(negated), frozenset(plain)


@dataclass(frozen=True)
class Window(Statement):
    """One to three sentences of a passage; `passage.text[start:end]` is what they quote."""

    start: int
    end: int
    sentences_count: int

    def coverage(self, claim: Statement) -> float:
        """Share of the claim's words that stand in the window."""
        return len(claim.terms & self.terms) / len(claim.terms) if claim.terms else 0.0


class Evidence:
    """A passage, taken apart once for all claims that cite it."""

    def __init__(self, hit: Hit) -> None:
        self.windows = list(_windows(hit.text))
        self.whole = Statement(" . ".join([hit.title, *hit.heading, hit.text]))

    def shortlist(self, claim: Statement) -> list[Window]:
        """The windows that share the most words with the claim, the best first."""

        def merit(window: Window) -> float:
            return window.coverage(claim) - LENGTH_PENALTY * (window.sentences_count - 1)

        return sorted(self.windows, key=merit, reverse=True)[:SHORTLIST]


@dataclass(frozen=True, slots=True)
class Match:
    """A window beside a claim; `similarity` is their cosine, None when it was not computed."""

    window: Window
    similarity: float | None

    def likeness(self, claim: Statement) -> float:
        coverage = self.window.coverage(claim)
        if self.similarity is None:
            return coverage
        return (coverage + self.similarity) / 2


def is_supported(
    claim: Statement, matches: Sequence[Match], sources: Sequence[Evidence], question: Statement
) -> bool:
    """Whether the best windows of the cited sources bear the claim out, taken together.

    A name may also come from the question.
    """
    if not matches:
        return False
    windows = Statement(" . ".join(match.window.text for match in matches))
    if not _is_alike(claim, windows, matches):
        return False
    numbers = frozenset[str]().union(*(source.whole.numbers for source in sources))
    terms = question.terms.union(*(source.whole.terms for source in sources))
    return (
        _digits(claim.text) <= numbers
        and all(terms.issuperset(content_terms(name)) for name in _NAME.findall(claim.text))
        and not contradict(claim, windows)
    )


def _is_alike(claim: Statement, windows: Statement, matches: Sequence[Match]) -> bool:
    coverage = len(claim.terms & windows.terms) / len(claim.terms) if claim.terms else 0.0
    similarities = [each.similarity for each in matches if each.similarity is not None]
    if not similarities:
        return coverage >= LEXICAL_SUPPORT
    return (coverage + max(similarities)) / 2 >= SUPPORT


def contradict(one: Statement, other: Statement) -> bool:
    """Whether a word is negated in one of them and only stated in the other."""
    one_negated, one_plain = one.negation
    other_negated, other_plain = other.negation
    return bool(
        (one_negated - one_plain) & (other_plain - other_negated)
        or (other_negated - other_plain) & (one_plain - one_negated)
    )


def _digits(text: str) -> frozenset[str]:
    """The numbers of a text, with `1,000` as 1000 and `3.50` as 3.5."""
    return frozenset(_normalised(number) for number in _NUMBER.findall(text))


def _normalised(number: str) -> str:
    number = re.sub(r",(?=\d{3}(?!\d))", "", number)
    if "." in number and number.count(".") == 1:
        number = number.rstrip("0").rstrip(".")
    return number.lstrip("0") or "0"


def _windows(text: str) -> list[Window]:
    sentences = [each for each in split_sentences(text) if each.kind != "heading"]
    reading = [readable(text[each.start : each.end], each.kind) for each in sentences]
    found: list[Window] = []
    for first, sentence in enumerate(sentences):
        for last in range(first, min(first + MAX_WINDOW_SENTENCES, len(sentences))):
            joined = " ".join(reading[first : last + 1])
            if joined:
                found.append(Window(joined, sentence.start, sentences[last].end, last - first + 1))
    return found
