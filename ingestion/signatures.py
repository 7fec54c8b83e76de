"""What a text looks like to others: its MinHash, by which nearly equal documents are found.

MinHash after Broder, "On the resemblance and containment of documents" (1997); bands after
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

SHINGLE_WORDS = 5
SHINGLE_CHARS = 8
"""For scripts that put no space between words."""

PERMUTATIONS_COUNT = 128
BANDS_COUNT = 16
"""Of 8 rows each: texts that share 85 % of their shingles meet in a band in 99.4 % of all cases,
those that share half in 6 %."""

_SHINGLES_AT_ONCE = 4096
_WORD = re.compile(r"\w+")
_LONG_WORD_CHARS = 15


@dataclass(frozen=True, slots=True)
class Signature:
    """`minhash` holds 128 little-endian uint32, `bands` one hash per 8 of them, as int32."""

    minhash: bytes
    bands: list[int]


def sign(text: str) -> Signature:
    """The signature of a text; case, punctuation and white space make no difference to it."""
    shingles = _shingles(text)
    minhash = _empty().copy()
    # In parts, because the work takes 128 numbers of memory per shingle.
    while part := list(islice(shingles, _SHINGLES_AT_ONCE)):
        minhash.update_batch(part)
    values = np.asarray(minhash.hashvalues, "<u4")
    bands = [
        zlib.crc32(band.tobytes(), number)
        for number, band in enumerate(values.reshape(BANDS_COUNT, -1))
    ]
    return Signature(values.tobytes(), np.array(bands, np.uint32).view(np.int32).tolist())


def _shingles(text: str) -> Iterator[bytes]:
    words = _WORD.findall(text.casefold())
    if words and sum(map(len, words)) > _LONG_WORD_CHARS * len(words):
        words, size = list("".join(words)), SHINGLE_CHARS
    else:
        size = SHINGLE_WORDS
    for start in range(max(1, len(words) - size + 1)):
        yield " ".join(words[start : start + size]).encode()


@cache
def _empty() -> Any:
    # It brings scipy with it, which a run that finds nothing new need not wait for.
    from datasketch import MinHash  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

    return MinHash(num_perm=PERMUTATIONS_COUNT, scheme="affine32")
