"""Mistyped words: made, to see what they cost, and mended from the terms of the index."""

from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from string import ascii_lowercase

SHORTEST = 4
"""Terms of fewer letters have too many neighbours for one of them to be meant."""


def with_typo(text: str, random: Random) -> str:
    """The text with one letter of one of its longer words dropped, doubled, swapped or replaced."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > SHORTEST and word.isalpha()]
    if not long:
        return text
    chosen = random.choice(long)
    word = words[chosen]
    at = random.randrange(1, len(word) - 1)
    words[chosen] = random.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + random.choice(ascii_lowercase) + word[at + 1 :],
        ]
    )
    return " ".join(words)


class Mender:
    """Finds the term of an index that an unknown one is a typing mistake away from.

    Terms that are one letter apart share a spelling with one letter less: all of those are kept
    (Garbe's symmetric deletes).
    """

    def __init__(self, passages_by_term: Mapping[str, int]) -> None:
        self._known = passages_by_term
        self._shortened: dict[str, list[str]] = {}
        for term in passages_by_term:
            if len(term) >= SHORTEST and term.isalpha():
                for short in _deletes(term):
                    self._shortened.setdefault(short, []).append(term)

    def mended(self, terms: Counter[str]) -> Counter[str]:
        """Unknown terms replaced by the nearest known one, the commonest if there are several."""
        mended: Counter[str] = Counter()
        for term, times in terms.items():
            mended[term if term in self._known else self._nearest(term) or term] += times
        return mended

    def _nearest(self, term: str) -> str | None:
        if len(term) < SHORTEST or not term.isalpha():
            return None
        found = {near for short in _deletes(term) for near in self._shortened.get(short, ())}
        near = [one for one in found if one[0] == term[0] and _is_one_apart(one, term)]
        return max(near, key=lambda one: (self._known[one], one), default=None)


def _deletes(term: str) -> Iterable[str]:
    yield term
    for at in range(len(term)):
        yield term[:at] + term[at + 1 :]


def _is_one_apart(one: str, other: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbours makes one the other."""
    if abs(len(one) - len(other)) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if at is None:
        return True
    return (
        one[at + 1 :] == other[at:]
        or one[at:] == other[at + 1 :]
        or one[at + 1 :] == other[at + 1 :]
        or (one[at : at + 2] == other[at : at + 2][::-1] and one[at + 2 :] == other[at + 2 :])
    )
