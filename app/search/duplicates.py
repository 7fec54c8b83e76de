"""Telling a passage apart from its copies in other documents. Pure."""

import re
from collections.abc import Iterable
from dataclasses import replace

from app.search.base import Hit

SHINGLE_WORDS = 3
SIMILAR = 0.8
"""Share of common shingles. A word changed in a passage of 100 leaves 94 %, a paragraph of five
rewritten about 65 %, which somebody may be looking for."""

_WORD = re.compile(r"\w+")


def collapse(hits: Iterable[Hit], limit: int) -> list[Hit]:
    """The best `limit` hits that say different things, each with the copies that it stands for.

    Copies within one document stay: they are different places.
    """
    kept: list[Hit] = []
    shingles: list[frozenset[tuple[str, ...]]] = []
    copies: dict[int, list[Hit]] = {}
    for hit in hits:
        own = _shingles(hit.text)
        first = next(
            (
                place
                for place, other in enumerate(kept)
                if other.document_id != hit.document_id and _alike(own, shingles[place])
            ),
            None,
        )
        if first is not None:
            copies.setdefault(first, []).append(hit)
        elif len(kept) < limit:
            kept.append(hit)
            shingles.append(own)
    return [replace(hit, copies=tuple(copies.get(place, ()))) for place, hit in enumerate(kept)]


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(tuple(words[start : start + SHINGLE_WORDS]) for start in range(last))


def _alike(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> bool:
    smaller, larger = sorted((len(one), len(other)))
    # Most pairs are told apart by their sizes alone.
    if smaller < SIMILAR * larger:
        return False
    common = len(one & other)
    return common >= SIMILAR * (len(one) + len(other) - common)
