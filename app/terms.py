"""Text into index terms: what the keyword leg knows of a passage and of a question.

Both sides must call this with the same language, or nothing matches; whoever stores terms stores
`TERMS_VERSION` with them, because other rules make other terms.
"""

import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain
from string import ascii_lowercase
from typing import Any

import Stemmer

_snowball: Any = Stemmer  # carries no types

TERMS_VERSION = f"2-snowball-{_snowball.version()}"

SIMPLE = "simple"
"""The language of text whose words are taken as they are."""

MAX_TERM_CHARS = 64

_CACHED_TOKENS = 100_000

# Words of grammar, not of subject: they would be the longest postings and say the least. Left out
# in every language, because a query is read in all that a collection holds, and an English one
# would otherwise find French passages by their "the".
STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being
    below between both but by can could did do does doing down during each eg few for from further
    had has have having he her here hers herself him himself his how i ie if in into is it its
    itself just me more most my myself no nor not now of off on once only or other our ours ourselves out
    over own same she should so some such than that the their theirs them themselves then there
    these they this those through to too under until up very was we were what when where which
    while who whom why will with would you your yours yourself yourselves
    """.split()  # noqa: SIM905 - a paragraph reads better than 130 lines
)
_SINGLE_LETTERS = frozenset(ascii_lowercase)
_CONTRACTED_ENDINGS = frozenset(["s", "m", "re", "ve", "ll", "d"])

_ALGORITHMS = frozenset[str](_snowball.algorithms())

# Python's \w leaves combining marks out, and most scripts of India and South-East Asia need them.
MARKS = "".join(
    character
    for character in map(chr, range(0x0300, 0xFE30))
    if unicodedata.category(character) in ("Mn", "Mc")
)
_TOKEN = re.compile(
    # R&D, I/O
    r"(?<![\w&/])[^\W\d_]{1,2}[&/][^\W\d_]{1,2}(?![\w&/])"
    # § 14 and .NET keep their sign
    rf"|(?:§+\s?(?=\d)|(?<![\w.])\.(?=[^\W\d_]))?"
    rf"[\w{MARKS}]+(?:[.'’\-][\w{MARKS}]+)*(?:\+\+|\#)?"
)
_PART = re.compile(rf"(?:(?!_)[\w{MARKS}])+(?:['’](?:(?!_)[\w{MARKS}])+)*")
# Written without spaces, or (Hangul) with words of many endings: pairs of characters serve best.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{UNSPACED}]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z]{2})(?=[A-Z][a-z]{2})")
_GROUPED_DIGITS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# ERR_CONN_RESET; v2.3.1 and CVE-2024-1; os.path; e-mail
_IDENTIFIER = re.compile(
    r"[^\W_]_+[^\W_]|\d[.\-]|[.\-]\d|[^\W\d_]{2}\.[^\W\d_]{2}"
    r"|(?:^|-)[^\W\d_]-|-[^\W\d_](?:$|-)"
)
_SYMBOLIC = re.compile(r"[a-z](?:\+\+|#)|[^\W\d_]+[&/][^\W\d_]+")
_SIGN_GAP = re.compile(r"§+\s?")
_ABBREVIATION = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")  # U.S.A.
_VERSION = re.compile(r"v(\d+(?:\.\d+)+.*)")
_LETTER_AND_WORD = re.compile(r"[^\W\d_]-[^\W\d_]{2,}")  # e-mail


def extract_terms(text: str, language: str = "english") -> list[str]:
    """The terms of a text in its order, repeated as often as they occur.

    `language` is Snowball's name of it; unknown names, like `simple`, mean no stemming. English
    stop words and single letters are left out, but not acronyms such as IT and WHO. An identifier
    gives itself whole and its parts; a run of Chinese, Japanese, Korean or Thai gives its pairs of
    characters. Ways of writing the same word agree: case, width, accents, `U.S.A.` and `USA`,
    `e-mail` and `email`, `1,000` and `1000`, `v2.3.1` and `2.3.1`. No term is longer than
    `MAX_TERM_CHARS`.
    """
    return list(chain.from_iterable(map(_vocabulary(language).__getitem__, _tokens(text))))


def read_terms(text: str, languages: Sequence[str]) -> list[tuple[str, ...]]:
    """The terms of a text in its order, each as the languages read it: its distinct readings.

    The first language's comes first. Where languages make different numbers of terms of a word,
    each of them stands by itself.
    """
    vocabularies = [_vocabulary(language) for language in languages]
    terms: list[tuple[str, ...]] = []
    for token in _tokens(text):
        readings = [vocabulary[token] for vocabulary in vocabularies]
        if len(set(map(len, readings))) == 1:
            terms += [tuple(dict.fromkeys(same)) for same in zip(*readings, strict=True)]
        else:
            terms += [(term,) for term in dict.fromkeys(chain.from_iterable(readings))]
    return terms


def _tokens(text: str) -> list[str]:
    if text.isupper():
        text = text.casefold()  # in a text of capitals they say nothing
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "," in text:
        text = _GROUPED_DIGITS.sub("", text)
    return _TOKEN.findall(text)


def find_words(text: str) -> list[str]:
    """The words of a text as they are written, identifiers in their parts."""
    return _PART.findall(unicodedata.normalize("NFKC", text))


def fold(text: str) -> str:
    """A text in which ways of writing the same word agree: no case, no width, no accents.

    Accents are taken from Latin and Greek letters; in other scripts they make other letters.
    """
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFC", _ACCENTED.sub(r"\1", decomposed).translate(_STROKED))


_ACCENTED = re.compile("([a-z\u0370-\u03ff])[\u0300-\u036f]+")
_STROKED = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})


class _Vocabulary(dict[str, tuple[str, ...]]):
    """The terms of each token met so far. One per thread: stemmers are not safe across threads."""

    def __init__(self, language: str) -> None:
        super().__init__()
        self._is_english = language == "english"
        self._stem: Callable[[str], str] = (
            _snowball.Stemmer(language, 0).stemWord if language in _ALGORITHMS else str
        )

    def __missing__(self, token: str) -> tuple[str, ...]:
        terms = tuple(self._terms(token))
        if len(token) <= MAX_TERM_CHARS:
            if len(self) >= _CACHED_TOKENS:
                self.clear()
            self[token] = terms
        return terms

    def _terms(self, token: str) -> list[str]:
        folded = fold(token)
        if _SYMBOLIC.fullmatch(folded):
            return [folded]
        if _ABBREVIATION.fullmatch(token):
            return self._word(token.replace(".", ""))
        terms = [term for part in _PART.findall(token) for term in self._word(part)]
        if token[0] in "§.":
            terms.append(_SIGN_GAP.sub("§", folded)[:MAX_TERM_CHARS])
        elif _LETTER_AND_WORD.fullmatch(folded):
            terms += self._word(folded.replace("-", ""))
        elif _IDENTIFIER.search(token):
            whole = _VERSION.sub(r"\1", folded.strip("_+#"))
            terms.append(whole[:MAX_TERM_CHARS])
        return terms

    def _word(self, word: str) -> list[str]:
        if _UNSPACED.search(word):
            return self._unspaced(word)
        words = [word] if self._is_english else word.replace("’", "'").split("'")
        if len(humps := _HUMP.split(word)) > 1:
            words += humps
        return [term for word in words for term in self._stemmed(word)]

    def _unspaced(self, word: str) -> list[str]:
        terms: list[str] = []
        position = 0
        for run in _UNSPACED.finditer(word):
            if run.start() > position:
                terms += self._word(word[position : run.start()])
            characters = run.group()
            pairs = (characters[i : i + 2] for i in range(len(characters) - 1))
            terms += pairs if len(characters) > 1 else [characters]
            position = run.end()
        return terms + (self._word(word[position:]) if position < len(word) else [])

    def _stemmed(self, word: str) -> tuple[str, ...]:
        """The term of a word, none for a word that is none.

        Endings are known by their accents in some languages, and people leave accents out when
        they search: a word whose stem depends on them gives both stems.
        """
        word = word[:MAX_TERM_CHARS]
        is_acronym = len(word) > 1 and word.isupper()
        word = word.casefold().replace("’", "'")
        plain = fold(word)
        if self._is_english:
            plain = word = _without_ending(plain)
        if not word or word in _SINGLE_LETTERS or (word in STOP_WORDS and not is_acronym):
            return ()
        stem = self._stem(word)
        if word.isascii():
            return (stem[:MAX_TERM_CHARS],)
        stems = dict.fromkeys([fold(stem), fold(self._stem(plain))])
        return tuple(stem[:MAX_TERM_CHARS] for stem in stems)


def _without_ending(word: str) -> str:
    """`it's` as `it`; nothing is left of `don't`."""
    head, _, ending = word.partition("'")
    if ending in _CONTRACTED_ENDINGS:
        return head
    return "" if word.endswith("n't") else word


class _Vocabularies(threading.local):
    def __init__(self) -> None:
        self.by_language: dict[str, _Vocabulary] = {}


_vocabularies = _Vocabularies()


def _vocabulary(language: str) -> _Vocabulary:
    known = _vocabularies.by_language
    name = language if language in _ALGORITHMS else SIMPLE
    if name not in known:
        known[name] = _Vocabulary(name)
    return known[name]
