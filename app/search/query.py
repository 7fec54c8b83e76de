"""What a query asks for besides its words: phrases, words to leave out, beginnings of words. Pure.

    hotels "free cancellation" -hostel config*

Whoever writes a question writes quotes and dashes without meaning operators. So an operator is
what stands alone between spaces; in a long sentence quotes only quote, and dashes only at its end
leave something out.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from app.errors import InvalidInput
from app.terms import STOP_WORDS

MAX_PHRASES = 8
MAX_EXCLUDED = 32
MAX_PREFIXES = 8

SENTENCE_WORDS = 10
"""With so many words beside its operators a query is a long sentence. In judged sets the shortest
that quotes what it does not demand has eleven."""

QUESTION_STOP_WORDS = 2
"""With so many words of grammar a query is a question, even without its mark."""


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """`text` is what is embedded and read as words: the query without its operators.

    It keeps the words of phrases and the beginnings; passages must hold all `phrases`, and none
    of `excluded`, where several words are a phrase. Where no passage holds the phrases of a
    question (`is_question`), they are words like others.
    """

    text: str
    phrases: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    is_question: bool = False

    @property
    def is_plain(self) -> bool:
        return not (self.phrases or self.excluded or self.prefixes)


@lru_cache(maxsize=512)
def read_query(text: str) -> ParsedQuery:
    """The query that a user typed, understood; InvalidInput for more operators than are allowed.

    A cache of searches reads it, and so does the search behind it.
    """
    found = [_Operator(match) for match in _OPERATOR.finditer(text)]
    binding = _binding(text, [operator for operator in found if _WORD.search(operator.words)])
    if not binding:
        return ParsedQuery(text)
    parts: list[str] = []
    position = 0
    for operator in binding:
        parts += [text[position : operator.start], "" if operator.excludes else operator.words]
        position = operator.end
    parts.append(text[position:])
    return ParsedQuery(
        text=" ".join("".join(parts).split()),
        phrases=_distinct("phrases", MAX_PHRASES, (o.words for o in binding if o.is_demand)),
        excluded=_distinct(
            "excluded words", MAX_EXCLUDED, (o.words for o in binding if o.excludes)
        ),
        prefixes=_distinct("beginnings", MAX_PREFIXES, (o.words for o in binding if o.is_prefix)),
        is_question=_is_question(text),
    )


_ENDS = r"(?=[\s.,;:!?)\]]|$)"
_OPERATOR = re.compile(
    rf"""
    (?<![^\s(\[])
    (?:
      (?P<minus>-)?
      (?: "(?P<straight>[^"]+)" | “(?P<curly>[^“”]+)” | „(?P<low>[^„“”]+)[“”]
        | «(?P<angled>[^«»]+)» ){_ENDS}
      | -(?P<word>(?=[^\W\d_])[^\s"“”„«»=*]*[^\W_](?:\+\+|\#)?)\*?{_ENDS}
      | (?P<prefix>[^\W_][\w.\-]*[^\W_])\*{_ENDS}
    )
    """,
    re.VERBOSE,
)
_ASKS = re.compile(r"[?？؟](?=[\s\"“”»)\]]|$)")
_COMMAND_OPTION = re.compile(r"[a-z]{1,2}")
_WORD = re.compile(r"\w+")


class _Operator:
    """What looks like one. `words` are those between its signs."""

    def __init__(self, match: re.Match[str]) -> None:
        self.start, self.end = match.span()
        kind = str(match.lastgroup)
        self.words = " ".join(match[kind].split())
        self.is_prefix = kind == "prefix"
        self.is_word = kind == "word"
        self.excludes = self.is_word or match["minus"] is not None
        self.is_demand = not (self.is_prefix or self.excludes)


def _binding(text: str, found: list[_Operator]) -> list[_Operator]:
    """Those of the seeming operators that are meant."""
    rest = text
    for operator in reversed(found):
        rest = rest[: operator.start] + " " + rest[operator.end :]
    others = [word.casefold() for word in _WORD.findall(rest)]
    is_long = len(others) >= SENTENCE_WORDS
    ended = len(text.rstrip())
    meant: list[_Operator] = []
    for operator in reversed(found):
        is_last = operator.end == ended
        if operator.is_word and _is_option(operator.words, others):
            continue
        if operator.excludes:
            is_meant = is_last or not (is_long or _ASKS.search(text))
        else:
            is_meant = not is_long
        if is_meant:
            meant.insert(0, operator)
            if is_last:
                ended = len(text[: operator.start].rstrip())
    return meant


def _is_question(text: str) -> bool:
    grammar = [word for word in _WORD.findall(text.casefold()) if word in STOP_WORDS]
    return _ASKS.search(text) is not None or len(grammar) >= QUESTION_STOP_WORDS


def _is_option(word: str, others: list[str]) -> bool:
    """Whether `-word` rather belongs to a command: `rm -rf`, `java -jar app.jar`."""
    return _COMMAND_OPTION.fullmatch(word) is not None or word.casefold() in others


def _distinct(name: str, limit: int, words: Iterable[str]) -> tuple[str, ...]:
    distinct = tuple(dict.fromkeys(words))
    if len(distinct) > limit:
        raise InvalidInput(
            f"The query has {len(distinct)} {name}; {limit} are allowed.",
            hint='Leave some out: "exact phrase", -word and prefix* are meant for a few words each.',
        )
    return distinct
