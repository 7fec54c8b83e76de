"""The inverted index of the keyword leg: which chunks hold a term, how often, and how long they are.

A posting is one little-endian 64-bit number, `chunk id << 24 | occurrences << 12 | chunk length`,
so a row's payload decodes with a single `np.frombuffer`. A version's write adds one small row per
distinct term; `merge_postings` joins them in the background. Nothing here is approximate: a
removal takes out the postings themselves, in the transaction that removes the chunks.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import BigInteger, Integer, Text

from app.db.arrays import Texts
from app.db.snapshot import Snapshot
from app.failpoints import reach

MAX_OCCURRENCES = 0xFFF
MAX_LENGTH = 0xFFF

MERGED_ROW_BYTES = 64 * 1024
_OPEN_ROW_BYTES = MERGED_ROW_BYTES // 2
_TERMS_PER_MERGE = 500

_LOCK_CLASS = 0x706F7374
"""First half of the advisory lock's key; the second is the collection."""

PackedPostings = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ChunkTerms:
    """The terms of a chunk in text order, repeated as often as they occur.

    Those of its title and headings, `title_terms`, count twice: over the judged sets that gains
    most. A chunk's length is counted without that.
    """

    chunk_id: int
    terms: Sequence[str]
    title_terms: Sequence[str] = ()

    def packed(self) -> Iterator[tuple[str, int]]:
        """Each distinct term with its posting."""
        occurrences = Counter(self.terms)
        occurrences.update(term for term in self.title_terms if term in occurrences)
        for term, count in occurrences.items():
            yield term, pack_posting(self.chunk_id, count, len(self.terms))


@dataclass(frozen=True, slots=True)
class PostingList:
    """Where a term occurs, ascending by chunk."""

    packed: PackedPostings

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def chunk_ids(self) -> NDArray[np.int64]:
        return (self.packed >> np.uint64(24)).view(np.int64)

    @property
    def occurrences(self) -> NDArray[np.int64]:
        return ((self.packed >> np.uint64(12)) & np.uint64(MAX_OCCURRENCES)).view(np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return (self.packed & np.uint64(MAX_LENGTH)).view(np.int64)


def pack_posting(chunk_id: int, occurrences: int, length: int) -> int:
    return chunk_id << 24 | min(occurrences, MAX_OCCURRENCES) << 12 | min(length, MAX_LENGTH)


async def add_postings(
    connection: AsyncConnection, collection_id: int, chunks: Iterable[ChunkTerms]
) -> None:
    """Write the postings of new chunks: one row per distinct term.

    The chunks are those of one document version, and no other version has ids between theirs.
    """
    postings: dict[str, list[int]] = {}
    for chunk in sorted(chunks, key=lambda chunk: chunk.chunk_id):
        for term, posting in chunk.packed():
            postings.setdefault(term, []).append(posting)
    if postings:
        await _copy_rows(connection, collection_id, postings)


async def _copy_rows(
    connection: AsyncConnection, collection_id: int, postings: dict[str, list[int]]
) -> None:
    if not connection.in_transaction():
        await connection.begin()
    driver: Any = (await connection.get_raw_connection()).driver_connection
    rows = bytearray(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    for term in sorted(postings):
        name, packed = term.encode(), postings[term]
        rows += struct.pack(f">hiii{len(name)}s", 5, 4, collection_id, len(name), name)
        rows += struct.pack(">iqiqi", 8, packed[0] >> 24, 8, packed[-1] >> 24, 8 * len(packed))
        rows += struct.pack(f"<{len(packed)}Q", *packed)
    rows += b"\xff\xff"
    async with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        await copy.write(rows)


_COPY = (
    "COPY postings (collection_id, term, first_chunk_id, last_chunk_id, payload)"
    " FROM STDIN (FORMAT BINARY)"
)


async def remove_postings(
    connection: AsyncConnection,
    collection_id: int,
    terms: Sequence[str],
    first_chunk_id: int,
    last_chunk_id: int,
) -> int:
    """Take a version's postings out: `terms` are its distinct terms, the ids its chunks' range.

    How many they were.
    """
    scope = {
        "collection_id": collection_id,
        "terms": list(terms),
        "first": first_chunk_id,
        "last": last_chunk_id,
    }
    await connection.execute(_LOCK_SHARED, {"class": _LOCK_CLASS, "collection_id": collection_id})
    removed_count = int((await connection.execute(_DELETE_WHOLE, scope)).scalar_one())
    cuts: list[_Cut] = []
    emptied: list[tuple[str, int]] = []
    driver: Any = (await connection.get_raw_connection()).driver_connection
    async with driver.cursor(binary=True) as cursor:
        merged = await (await cursor.execute(_LOCK_MERGED, scope)).fetchall()
    for term, row_id, payload in merged:
        chunk_ids = (_decode(payload) >> np.uint64(24)).view(np.int64)
        places = np.flatnonzero((chunk_ids >= first_chunk_id) & (chunk_ids <= last_chunk_id))
        removed_count += len(places)
        if len(places) == len(chunk_ids):
            emptied.append((term, row_id))
        elif len(places):
            cuts.append(_Cut.of(term, row_id, chunk_ids, places))
    if emptied:
        terms, rows = map(list, zip(*emptied, strict=True))
        gone = {"collection_id": collection_id, "terms": terms, "rows": rows}
        await connection.execute(_DELETE_ROWS, gone)
    if cuts:
        await connection.execute(
            _CUT_ROWS,
            {
                "collection_id": collection_id,
                "terms": [cut.term for cut in cuts],
                "rows": [cut.row_id for cut in cuts],
                "firsts": [cut.first_chunk_id for cut in cuts],
                "lasts": [cut.last_chunk_id for cut in cuts],
                "ends": [cut.start for cut in cuts],
                "begins": [cut.end + 1 for cut in cuts],
            },
        )
    return removed_count


@dataclass(frozen=True, slots=True)
class _Cut:
    """Bytes `start` to `end` of a row's payload that go; the ids are the least and largest left."""

    term: str
    row_id: int
    first_chunk_id: int
    last_chunk_id: int
    start: int
    end: int

    @classmethod
    def of(
        cls, term: str, row_id: int, chunk_ids: NDArray[np.int64], places: NDArray[np.intp]
    ) -> Self:
        """The `places` of those that go, among the row's chunks."""
        start, end = int(places[0]), int(places[-1]) + 1
        if end - start != len(places):
            # A version's postings came in one row, and merging joins whole rows.
            raise ValueError(f"Postings of {term!r} stand between those of one version.")
        rest = np.delete(chunk_ids, slice(start, end))
        return cls(term, row_id, int(rest.min()), int(rest.max()), 8 * start, 8 * end)


async def remove_all_postings(connection: AsyncConnection, collection_id: int) -> int:
    """Empty a collection's index, for a collection that nobody writes to any more; its postings."""
    await connection.execute(_LOCK_SHARED, {"class": _LOCK_CLASS, "collection_id": collection_id})
    removed = await connection.execute(_DELETE_ALL, {"collection_id": collection_id})
    return int(removed.scalar_one())


# Removals share the lock, merging has it alone: a removal could not see a row that a concurrent
# merge is making of the rows that it came to remove.
_LOCK_SHARED = text("SELECT pg_advisory_xact_lock_shared(:class, :collection_id)")
_LOCK_ALONE = text("SELECT pg_try_advisory_xact_lock(:class, :collection_id)")

_DELETE_ALL = text(
    """
    WITH removed AS (
      DELETE FROM postings WHERE collection_id = :collection_id
      RETURNING octet_length(payload) / 8 AS postings_count)
    SELECT coalesce(sum(postings_count), 0) FROM removed
    """
)

_DELETE_WHOLE = text(
    """
    WITH removed AS (
      DELETE FROM postings
      WHERE collection_id = :collection_id AND term = ANY(:terms)
        AND first_chunk_id >= :first AND last_chunk_id <= :last
      RETURNING octet_length(payload) / 8 AS postings_count)
    SELECT coalesce(sum(postings_count), 0) FROM removed
    """
).bindparams(bindparam("terms", type_=ARRAY(Text)))

# In one order, so that two removals that share merged rows wait for each other in turn.
_LOCK_MERGED = """
    SELECT term, first_chunk_id, payload FROM postings
    WHERE collection_id = %(collection_id)s AND term = ANY(%(terms)s)
      AND first_chunk_id <= %(last)s AND last_chunk_id >= %(first)s
    ORDER BY term, first_chunk_id
    FOR UPDATE
"""

_DELETE_ROWS = text(
    """
    DELETE FROM postings AS p USING unnest(:terms, :rows) AS gone (term, first_chunk_id)
    WHERE p.collection_id = :collection_id
      AND p.term = gone.term AND p.first_chunk_id = gone.first_chunk_id
    """
).bindparams(
    bindparam("terms", type_=ARRAY(Text)),
    bindparam("rows", type_=ARRAY(BigInteger)),
)

# Cut by the server: what is left, up to 64 KiB of each term, need not be sent.
_CUT_ROWS = text(
    """
    UPDATE postings AS p
    SET first_chunk_id = cut.first, last_chunk_id = cut.last,
      payload = substr(p.payload, 1, cut.ends) || substr(p.payload, cut.begins)
    FROM unnest(:terms, :rows, :firsts, :lasts, :ends, :begins)
      AS cut (term, first_chunk_id, first, last, ends, begins)
    WHERE p.collection_id = :collection_id
      AND p.term = cut.term AND p.first_chunk_id = cut.first_chunk_id
    """
).bindparams(
    bindparam("terms", type_=ARRAY(Text)),
    bindparam("rows", type_=ARRAY(BigInteger)),
    bindparam("firsts", type_=ARRAY(BigInteger)),
    bindparam("lasts", type_=ARRAY(BigInteger)),
    bindparam("ends", type_=ARRAY(Integer)),
    bindparam("begins", type_=ARRAY(Integer)),
)


async def merge_postings(engine: AsyncEngine, collection_id: int) -> int:
    """Join each term's small rows into rows of up to `MERGED_ROW_BYTES`; returns rows written.

    Safe beside readers, writes and removals, and when run twice at once. Each transaction takes
    at most 500 terms; where a removal or another merge is at work it leaves the rest for the next
    time. A term is due when a quarter of its unfinished rows' bytes is new, or when it has many
    such rows, so that steady small writes do not rewrite long rows over and over.
    """
    written = 0
    after = ""
    while True:
        async with engine.begin() as connection:
            lock = {"class": _LOCK_CLASS, "collection_id": collection_id}
            if not (await connection.execute(_LOCK_ALONE, lock)).scalar_one():
                return written
            scope = {
                "collection_id": collection_id,
                "after": after,
                "terms_count": _TERMS_PER_MERGE,
                "open_bytes": _OPEN_ROW_BYTES,
                "merged_bytes": MERGED_ROW_BYTES,
            }
            rows, terms_count, last_term = (await connection.execute(_MERGE, scope)).one()
            reach("postings.before_merge_commit")
        reach("postings.merged")
        written += rows
        if terms_count < _TERMS_PER_MERGE:
            return written
        after = last_term


# The grouping reads all that is deleted before the first row is inserted, so a merged row may have
# the key of one of its parts.
_MERGE = text(
    """
    WITH due AS MATERIALIZED (
      SELECT term FROM postings
      WHERE collection_id = :collection_id AND term > :after
        AND octet_length(payload) < :open_bytes
      GROUP BY term
      HAVING count(*) >= 16 OR (
        count(*) > 1
        AND 4 * (sum(octet_length(payload)) - max(octet_length(payload)))
          >= sum(octet_length(payload))
      )
      ORDER BY term LIMIT :terms_count
    ),
    taken AS (
      DELETE FROM postings AS p USING due
      WHERE p.collection_id = :collection_id AND p.term = due.term
        AND octet_length(p.payload) < :open_bytes
      RETURNING p.term, p.first_chunk_id, p.last_chunk_id, p.payload
    ),
    placed AS (
      SELECT *, (sum(octet_length(payload)) OVER (PARTITION BY term ORDER BY first_chunk_id) - 8)
        / :merged_bytes AS place
      FROM taken
    ),
    merged AS (
      INSERT INTO postings (collection_id, term, first_chunk_id, last_chunk_id, payload)
      SELECT :collection_id, term, min(first_chunk_id), max(last_chunk_id),
        string_agg(payload, '' ORDER BY first_chunk_id)
      FROM placed GROUP BY term, place
      RETURNING 1
    )
    SELECT (SELECT count(*) FROM merged), count(*), max(term) FROM due
    """
).bindparams(bindparam("merged_bytes", type_=Integer))


async def read_postings(
    snapshot: Snapshot, collection_ids: NDArray[np.int64], terms: Sequence[str]
) -> dict[str, PostingList]:
    """The postings of those terms that occur, over all the collections together."""
    rows = await snapshot.fetch(_READ, {"collection_ids": collection_ids, "terms": Texts(terms)})
    payloads: dict[str, list[bytes]] = {}
    for term, _, payload in sorted(rows, key=itemgetter(0, 1)):
        payloads.setdefault(term, []).append(payload)
    return {term: PostingList(_ascending(_decode(b"".join(of)))) for term, of in payloads.items()}


# Joined by the server, the same bytes would take half as long again.
_READ = """
    SELECT term, first_chunk_id, payload FROM postings
    WHERE collection_id = ANY(%(collection_ids)s) AND term = ANY(%(terms)s)
"""


async def find_beginning(
    snapshot: Snapshot, collection_ids: NDArray[np.int64], beginning: str, limit: int
) -> list[str]:
    """The `limit` most frequent terms that begin so, most frequent first."""
    scope = {
        "collection_ids": collection_ids,
        "first": beginning,
        "last": beginning + chr(0x10FFFF),
        "limit": limit,
    }
    return [term for (term,) in await snapshot.fetch(_FIND_BEGINNING, scope)]


# A range rather than LIKE, whose pattern would have to be known when the statement is planned.
_FIND_BEGINNING = """
    SELECT term FROM postings
    WHERE collection_id = ANY(%(collection_ids)s) AND term >= %(first)s AND term < %(last)s
    GROUP BY term ORDER BY sum(octet_length(payload)) DESC, term LIMIT %(limit)s
"""


def united(lists: Sequence[PostingList]) -> PostingList:
    """The postings of several terms as if they were one term."""
    packed = np.sort(np.concatenate([listed.packed for listed in lists]))
    chunk_ids = packed >> np.uint64(24)
    firsts = np.flatnonzero(np.diff(chunk_ids, prepend=chunk_ids[:1] ^ np.uint64(1)))
    occurrences = np.add.reduceat((packed >> np.uint64(12)) & np.uint64(MAX_OCCURRENCES), firsts)
    first = packed[firsts]
    lengths = first & np.uint64(MAX_LENGTH)
    summed = np.minimum(occurrences, np.uint64(MAX_OCCURRENCES)) << np.uint64(12)
    return PostingList((first >> np.uint64(24) << np.uint64(24)) | summed | lengths)


def _decode(payload: bytes) -> PackedPostings:
    return np.frombuffer(payload, "<u8")


def _ascending(packed: PackedPostings) -> PackedPostings:
    # Rows follow each other, except where a slow writer committed after a later one was merged.
    return packed if bool(np.all(packed[1:] > packed[:-1])) else np.sort(packed)
