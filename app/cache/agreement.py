"""Whether two wordings ask the same: whether they differ in nothing but what tells nothing. Pure.

Nearness of vectors blurs just what matters: a question with another year, another name or a `not`
is very near to its like, and so is one that asks how girls see boys where the other asks how boys
see girls. So the words decide. What may differ is listed here (articles, auxiliaries, politeness,
endings, a few turns of phrase); all else has to be the same, in the same order. The lists are of
English: in another language the words themselves have to agree.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from app.terms import STOP_WORDS, extract_terms

Trait = Literal["numbers", "negation", "asked", "names", "words"]
"""What tells two questions apart, as far as it has a name: `asked` is the word that asks."""


def _words(text: str) -> list[str]:
    return text.split()


_GREETING = r"(?:(?:hi|hello|hey|please|kindly|so|ok|okay)\b[\s,!]*)*"
_ASKING = (
    r"(?:(?:can|could|would|will) (?:you|someone|somebody|anyone|anybody) (?:please |kindly )?"
    r"(?:tell me|explain(?: to me)?|let me know)"
    r"|i (?:want|would like|need|'d like) to know|i wonder|do you know|does anyone know"
    r"|(?:please )?(?:tell me|let me know))\b[\s,:]*"
)

_PHRASES = [
    # Politeness says nothing of what is asked.
    (rf"^{_GREETING}(?:{_ASKING})?", ""),
    (r",? (?:please|thanks|thank you)[ .!]{0,3}(?=\?|$)", ""),
    # Contractions.
    (r"\bwhat's\b|\bwhats\b", "what is"),
    (r"\b(who|how|where|when|that|it|there|he|she)'s\b", r"\1 is"),
    (r"\bcan't\b|\bcannot\b|\bcant\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"\b(do|does|did|is|are|was|were|has|have|had|could|would|should)(?:n't|nt)\b", r"\1 not"),
    (r"'m\b", " am"),
    (r"'re\b", " are"),
    (r"'ve\b", " have"),
    (r"'ll\b", " will"),
    (r"'s?(?=\s|$|[?.,!])", ""),
    # Turns of phrase that ask for the same.
    (
        r"\bwhat (?:is|are) (?:the |some |a )*(?:best )?ways? (?:to|of|for|in which|that)\b",
        "how to",
    ),
    (r"\bhow (?:(?:can|could|do|does|would) (?:i|you|we|one)|to)\b", "how"),
    (r"\b(what|which) are some(?: of)?\b", r"\1 are"),
    (r"\bwhich\b", "what"),
    (r"\b(?:of all time|ever)(?=\W*$)", ""),
    (r"\b(?:top|greatest)\b", "best"),
    (r"\s&\s", " and "),
    (r"\bper ?cent(?:age)?\b", "%"),
    # Where it helps the verb that follows; elsewhere it is the verb that is asked for.
    (r"\b(what|where|when|why|how) (?:do|does)\b", r"\1"),
    (r"^(?:do|does)\b", ""),
]
_REPLACED = [(re.compile(pattern), by) for pattern, by in _PHRASES]

_TELL_NOTHING = frozenset(_words("a an the is are am be of to please really actually there"))
_NEGATIONS = frozenset(
    _words("not no non never none neither nor nobody nothing nowhere without unless except hardly")
)
_ASKS = frozenset(_words("who whom whose what when where why how"))

_BELOW_TWENTY = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_NUMBERS: Mapping[str, int] = {
    **{word: value for value, word in enumerate(_BELOW_TWENTY)},
    **{word: 10 * tens for tens, word in enumerate(_TENS, start=2)},
}
_SCALES: Mapping[str, int] = {
    "hundred": 100,
    "thousand": 10**3,
    "k": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
}
_ORDINALS: Mapping[str, str] = dict(
    zip(
        _words("first second third fourth fifth sixth seventh eighth ninth tenth"),
        _words("1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th"),
        strict=True,
    )
)
_KEPT_WHOLE = STOP_WORDS.union(_NUMBERS, _SCALES, _ORDINALS)

_WORD = re.compile(r"(?:(?<!\S)-)?\w+(?:[.,:/_&'+]\w+)*(?:\+\+|\#)?|[^\w\s.,;:!?'\"“”‘’()\-–—]")
"""Signs such as % count as words. A minus before a word says that it is not wanted: part of it."""
_HYPHEN = re.compile(r"(?<=\w)[-–](?=\w)")
_NUMBER = re.compile(r"(?P<digits>\d+(?:[.,]\d+)*)(?P<ending>[a-z]*)")
_GROUPING = re.compile(r",(?=\d{3}(?!\d))")
_NAME = re.compile(r"\b[A-Z][\w&]*")
_SENTENCE_END = re.compile(r"(?:^|[.?!:])[\s\"“'‘(]*$")
_QUOTED = re.compile(r"[\"“”«»`]([^\"“”«»`]+)[\"“”«»`]")


@dataclass(frozen=True)
class Wording:
    """A question as it was asked, capitals and all, and what of it another one has to have, too."""

    text: str

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All that tells something, without endings and with numbers as digits; in its order."""
        text = " ".join(_HYPHEN.sub(" ", self.text.replace("’", "'").lower()).split())
        for pattern, by in _REPLACED:
            text = pattern.sub(by, text)
        told = [word for word in _WORD.findall(text) if word not in _TELL_NOTHING]
        return tuple(_in_digits([stem for word in told for stem in _stems(word)]))

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        return tuple(word for word in self.words if word[0].isdigit())

    @cached_property
    def negations(self) -> tuple[str, ...]:
        return tuple(word for word in self.words if word in _NEGATIONS or word[0] == "-")

    @cached_property
    def asked(self) -> tuple[str, ...]:
        return tuple(word for word in self.words if word in _ASKS)

    @cached_property
    def names(self) -> frozenset[str]:
        """What is written as a name or quoted, with its ending."""
        found = {word.lower() for quoted in _QUOTED.findall(self.text) for word in quoted.split()}
        for name in _NAME.finditer(self.text):
            word = name.group().removesuffix("’s").removesuffix("'s")
            begins = _SENTENCE_END.search(self.text[: name.start()])
            is_grammar = word.lower() in STOP_WORDS and (len(word) > 1 or word == "I")
            if not begins and not is_grammar:
                found.add(word.lower())
        return frozenset(found)

    @cached_property
    def acronyms(self) -> frozenset[str]:
        """Those that would be words of grammar if they were not in capitals: IT, WHO, US."""
        words = [] if self.text.isupper() else _NAME.findall(self.text)
        return frozenset(
            word
            for word in words
            if len(word) > 1 and word.isupper() and word.lower() in STOP_WORDS
        )

    @cached_property
    def as_written(self) -> frozenset[str]:
        return frozenset(re.findall(r"[\w&]+", self.text.lower())) | frozenset(
            self.text.lower().split()
        )


def disagreement(one: Wording, other: Wording) -> Trait | None:
    """What tells two questions apart, the first trait that does; None where nothing does."""
    if one.numbers != other.numbers:
        return "numbers"
    if one.negations != other.negations:
        return "negation"
    if one.asked != other.asked:
        return "asked"
    same_names = one.names <= other.as_written and other.names <= one.as_written
    if not same_names or one.acronyms != other.acronyms:
        return "names"
    if one.words != other.words or not one.words:
        return "words"
    return None


def _stems(word: str) -> Sequence[str]:
    """The word without its ending, an identifier in its parts; words of grammar as they are."""
    if word[0] == "-" or word[0].isdigit() or word in _KEPT_WHOLE:
        return [word]
    return extract_terms(word) or [word]


def _in_digits(words: Sequence[str]) -> Iterator[str]:
    """The words with `two hundred` as 200, `1,000` and `1k` as 1000, `second` as 2nd."""
    value: int | None = None  # of the number that is being read
    for word in words:
        small, scale = _NUMBERS.get(word), _SCALES.get(word)
        if word == "one" and value is None:
            small = None  # more often somebody than a number
        if value is not None and scale is not None:
            value *= scale
        elif value is not None and small is not None and value % 10 == 0 < small < max(value, 10):
            value += small
        else:
            if value is not None:
                yield str(value)
            value = small
            if small is None:
                yield _ORDINALS.get(word) or _number(word) or word
    if value is not None:
        yield str(value)


def _number(word: str) -> str | None:
    """Digits in the one way to write them, with the unit that is part of the word; None else."""
    found = _NUMBER.fullmatch(word)
    if found is None:
        return None
    digits, ending = _GROUPING.sub("", found["digits"]), found["ending"]
    if ending in _SCALES and digits.isdigit():
        return str(int(digits) * _SCALES[ending])
    return digits.lstrip("0").rjust(1, "0") + ending
