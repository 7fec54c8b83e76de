"""Fills a database with the postings of a made corpus and nothing else, sorted in memory."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import DEFAULT_TENANT_ID
from app.db.collections import count_change, ensure_collection
from app.db.documents import reserve_chunk_ids
from app.db.postings import MAX_LENGTH, MAX_OCCURRENCES, MERGED_ROW_BYTES
from app.db.vectors import register_model
from benchmarks.corpus import LANGUAGE, Corpus, MadeDocument, read_sources

ROW_POSTINGS = MERGED_ROW_BYTES // 8
DOCUMENTS_AT_ONCE = 5_000

Integers = NDArray[np.int64]


class Unembedded:
    """Reads no vectors: postings need none."""

    digest = "none"
    tokenizer: "Unembedded"

    def __init__(self) -> None:
        self.tokenizer = self

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[(0, 1)]] * len(texts)

    def embed(self, texts: Sequence[str], kind: str) -> NDArray[np.float32]:
        return np.ones((len(texts), 1), np.float32)


@dataclass(frozen=True)
class Index:
    """Postings sorted by term and chunk; the term at place n has `starts[n]:starts[n + 1]`."""

    terms: list[str]
    starts: Integers
    packed: NDArray[np.uint64]
    chunks_count: int
    terms_count: int

    @property
    def frequencies(self) -> Integers:
        return np.diff(self.starts)


def made_corpus(folders: Sequence[Path], cache: Path, passages: int) -> Corpus:
    return Corpus(read_sources(folders, Unembedded(), cache), passages)  # pyright: ignore[reportArgumentType]


def texts_of(corpus: Corpus) -> Iterator[str]:
    for document in corpus:
        for passage in document.passages:
            yield f"{document.title}\n{passage}"


def make_index(corpus: Corpus, first_chunk_id: int) -> Index:
    """The postings as the product packs them, of chunks that count from `first_chunk_id`."""
    numbers: dict[str, int] = {}
    keys: list[Integers] = []
    packed: list[NDArray[np.uint64]] = []
    chunk_id = first_chunk_id
    terms_count = 0
    documents = iter(corpus)
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        term_numbers, lengths = _numbered(batch, numbers)
        terms_count += int(lengths.sum())
        rows = np.repeat(np.arange(len(lengths)), lengths)
        pairs, occurrences = np.unique(term_numbers << 24 | rows, return_counts=True)
        places = pairs & 0xFFFFFF
        keys.append(pairs >> 24)
        packed.append(
            (
                (chunk_id + places) << 24
                | np.minimum(occurrences, MAX_OCCURRENCES) << 12
                | np.minimum(lengths[places], MAX_LENGTH)
            ).astype(np.uint64)
        )
        chunk_id += len(lengths)
    names = sorted(numbers, key=str.encode)
    rank = np.empty(len(names), np.int64)
    rank[[numbers[name] for name in names]] = np.arange(len(names))
    ranked = rank[np.concatenate(keys)]
    order = np.argsort(ranked, kind="stable")
    return Index(
        terms=names,
        starts=np.searchsorted(ranked[order], np.arange(len(names) + 1)),
        packed=np.concatenate(packed)[order],
        chunks_count=chunk_id - first_chunk_id,
        terms_count=terms_count,
    )


def _numbered(batch: list[MadeDocument], numbers: dict[str, int]) -> tuple[Integers, Integers]:
    passages = [terms for document in batch for terms in document.terms]
    found = [numbers.setdefault(term, len(numbers)) for terms in passages for term in terms]
    return np.array(found, np.int64), np.array([len(terms) for terms in passages], np.int64)


async def load_index(engine: AsyncEngine, corpus: Corpus, collection: str) -> tuple[int, Index]:
    """Write the postings into a new collection; its id and what was written."""
    async with engine.begin() as connection:
        model_id = await register_model(connection, name="none", digest="none", dimensions=1)
        stored = await ensure_collection(connection, DEFAULT_TENANT_ID, collection, model_id)
        index = make_index(corpus, await reserve_chunk_ids(connection, corpus.count))
        driver: Any = (await connection.get_raw_connection()).driver_connection
        async with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
            await copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for rows in _rows(stored.id, index):
                await copy.write(rows)
            await copy.write(b"\xff\xff")
        await count_change(
            connection,
            stored.id,
            documents=1,
            chunks=index.chunks_count,
            terms=index.terms_count,
            language=LANGUAGE,
        )
    return stored.id, index


_COPY = (
    "COPY postings (collection_id, term, first_chunk_id, last_chunk_id, payload)"
    " FROM STDIN (FORMAT BINARY)"
)


def _rows(collection_id: int, index: Index) -> Iterator[bytes]:
    for place, term in enumerate(index.terms):
        name = term.encode()
        for start in range(index.starts[place], index.starts[place + 1], ROW_POSTINGS):
            row = index.packed[start : min(start + ROW_POSTINGS, index.starts[place + 1])]
            payload = row.tobytes()
            yield (
                struct.pack(f">hiii{len(name)}s", 5, 4, collection_id, len(name), name)
                + struct.pack(">iqiq", 8, int(row[0]) >> 24, 8, int(row[-1]) >> 24)
                + struct.pack(">i", len(payload))
                + payload
            )
