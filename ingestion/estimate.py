"""What ingesting would take, told from a sample: passages, time, and storage in the database.

The sample goes through the pipeline's own parser, chunker and model; nothing is written. What is
found of each sampled document is scaled by size, and the spread between the documents gives the
ranges: in nine of ten runs the truth should lie within them.
"""

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.collection_settings import DEFAULTS
from app.db.vectors import known_vectors
from app.embedding.base import Embedder, Vectors
from app.errors import DocumentRejected
from ingestion.pipeline import Tools, cut
from ingestion.sources.base import Content, Item, ItemGone, ItemUnreadable, Source
from ingestion.writing import Passages, Shelf

SEED = 20
SAMPLED_DOCUMENTS = 40
SAMPLING_SECONDS = 10.0
SAMPLED_PASSAGES = 256
RESAMPLES = 400

DOCUMENT_COST_BYTES = 4096
"""What a document costs besides its bytes, so that small ones are not taken for nothing."""

# Bytes in PostgreSQL, indexes included, measured after a run over 250 pages of a handbook: 2,834
# passages, 19.0 MB. The rows of chunks, vectors and documents come on top of what they hold.
CHUNK_ROW_BYTES = 430
VECTOR_ROW_BYTES = 500
DOCUMENT_ROW_BYTES = 4_000
POSTING_BYTES = 60
"""8 once they are merged and the table is vacuumed; a run leaves room behind it."""
TERM_BYTES = 7
ORIGINAL_SHARE = 1.2
"""Of an original's bytes: it is not compressed, and is kept in pieces."""
TEXT_SHARE = 0.55
"""Of a parsed text's bytes: it is compressed."""
STORAGE_SPREAD = 0.2
"""How far all these are off on other texts, and between one vacuum and the next."""

WRITING_SHARE = 0.25
"""What writing and building the indexes may add to the time, where nothing hides it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that a run would write, and the source that has it."""

    item: Item
    source: Source


Fail = Callable[[Candidate, str], None]
"""Takes a document that cannot be read, and the reason for people."""


@dataclass(frozen=True, slots=True)
class Range:
    """A figure that is not known exactly."""

    low: int
    likely: int
    high: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """`documents` would be written, `sampled_documents` of them were looked into.

    Those that turned out to be unreadable are among both; they bring no passages.
    `chunks` is the number of passages, of which `embedded` would go through the model. `seconds`
    are of this machine as busy as it is now, `storage_bytes` are those in the database.
    """

    documents: int
    sampled_documents: int
    chunks: Range
    embedded: Range
    seconds: Range
    storage_bytes: Range


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What one document came to; `cost_bytes` is what stands for it in proportions."""

    cost_bytes: int
    seconds: float
    storage_bytes: float
    passages: Passages | None

    @property
    def chunks(self) -> int:
        return len(self.passages.chunks) if self.passages else 0


async def estimate(
    candidates: Collection[Candidate], tools: Tools, shelf: Shelf | None, fail: Fail
) -> Estimate | None:
    """None when nothing would be written, or nothing of the sample could be read in time.

    `shelf` is the collection, if it is there already: what it knows is not embedded again. `fail`
    hears of each document of the sample that a run could not read either. Raises
    EmbeddingUnavailable, and what transactions raise.
    """
    rng = random.Random(SEED)  # noqa: S311 - a sample, not a secret
    sampled = await _sample(_chosen(candidates, rng), tools, shelf, fail)
    if not sampled:
        return None
    passages = [each.passages for each in sampled if each.passages]
    new_share, seconds_per_passage = await _try_model(passages, tools, shelf, rng)
    sizes = [candidate.item.size_bytes for candidate in candidates]
    known_bytes = [size for size in sizes if size is not None]
    mean_bytes = sum(each.cost_bytes for each in sampled) / len(sampled)
    unknown_count = len(candidates) - len(known_bytes)
    total_bytes = (
        sum(known_bytes) + len(known_bytes) * DOCUMENT_COST_BYTES + unknown_count * mean_bytes
    )

    def scaled(measure: Callable[[_Sampled], float]) -> tuple[float, float, float]:
        if len(sampled) == len(candidates):
            exact = sum(map(measure, sampled))
            return exact, exact, exact
        return _scaled([(each.cost_bytes, measure(each)) for each in sampled], total_bytes, rng)

    chunks = scaled(lambda each: each.chunks)
    reading = scaled(lambda each: each.seconds)
    storage = scaled(lambda each: each.storage_bytes)
    embedding = [count * new_share * seconds_per_passage for count in chunks]
    return Estimate(
        documents=len(candidates),
        sampled_documents=len(sampled),
        chunks=_range(*chunks),
        embedded=_range(*(count * new_share for count in chunks)),
        seconds=_range(
            # At best one hides behind the other, at worst nothing hides writing either.
            max(reading[0], embedding[0]),
            reading[1] + embedding[1],
            (reading[2] + embedding[2]) * (1 + WRITING_SHARE),
        ),
        storage_bytes=_range(
            storage[0] * (1 - STORAGE_SPREAD), storage[1], storage[2] * (1 + STORAGE_SPREAD)
        ),
    )


# --- the sample -----------------------------------------------------------------------------------


def _chosen(candidates: Collection[Candidate], rng: random.Random) -> list[Candidate]:
    """Documents of every kind and size in their proportions, in random order."""

    def kind_and_size(candidate: Candidate) -> tuple[str, int, str]:
        item = candidate.item
        return PurePath(item.name).suffix.lower(), item.size_bytes or 0, item.uri

    ordered = sorted(candidates, key=kind_and_size)
    step = max(1.0, len(ordered) / SAMPLED_DOCUMENTS)
    start = rng.random() * step if step > 1 else 0.0
    count = min(len(ordered), SAMPLED_DOCUMENTS)
    chosen = [ordered[int(start + step * number)] for number in range(count)]
    rng.shuffle(chosen)
    return chosen


async def _sample(
    chosen: Sequence[Candidate], tools: Tools, shelf: Shelf | None, fail: Fail
) -> list[_Sampled]:
    """One document after the other, as the pipeline parses them, until the time is up."""
    if not chosen:
        return []
    chunking = tools.chunking(shelf.settings if shelf else DEFAULTS)
    # What starts with the first document is no part of what each costs.
    warm = await tools.parsers.parse(b"A first text.", "first.txt")
    embedder = await _embedder(tools, shelf)
    await tools.compute(cut, warm, embedder, chunking)
    sampled: list[_Sampled] = []
    began = time.monotonic()
    for candidate in chosen:
        if time.monotonic() - began > SAMPLING_SECONDS:
            break
        item = candidate.item
        try:
            content = await candidate.source.read(item, None, tools.settings.max_upload_bytes)
        except ItemUnreadable as error:
            fail(candidate, error.reason)
            continue
        except ItemGone:
            continue
        if content is None:
            continue
        started = time.monotonic()
        passages = None
        try:
            parsed = await tools.parsers.parse(content.content, content.name or item.name)
            passages = await tools.compute(cut, parsed, embedder, chunking)
        except DocumentRejected as error:
            fail(candidate, error.reason)
            text_bytes = 0
        else:
            text_bytes = len(parsed.text.encode())
        sampled.append(
            _Sampled(
                cost_bytes=len(content.content) + DOCUMENT_COST_BYTES,
                seconds=time.monotonic() - started,
                storage_bytes=_storage_bytes(content, text_bytes, passages, embedder),
                passages=passages,
            )
        )
    return sampled


async def _embedder(tools: Tools, shelf: Shelf | None) -> Embedder:
    """That of the collection, or of one that would be new."""
    return tools.embedder if shelf is None else (await tools.model(shelf.model_id)).embedder


def _storage_bytes(
    content: Content, text_bytes: int, passages: Passages | None, embedder: Embedder
) -> float:
    if passages is None:
        # A document that failed: its original stays where it is.
        return float(DOCUMENT_ROW_BYTES)
    original_bytes = len(content.content) * ORIGINAL_SHARE
    chunk_bytes = sum(
        CHUNK_ROW_BYTES + len(chunk.text.encode()) + len(chunk.context.encode())
        for chunk in passages.chunks
    )
    # A vector takes two bytes a dimension in its row, and as many again in the index.
    vector_bytes = len(passages.chunks) * (4 * embedder.dimensions + VECTOR_ROW_BYTES)
    distinct = [set(terms) for terms in passages.terms]
    postings_bytes = POSTING_BYTES * sum(map(len, distinct))
    terms_bytes = TERM_BYTES * len(set[str]().union(*distinct))
    own_bytes = DOCUMENT_ROW_BYTES + original_bytes + text_bytes * TEXT_SHARE + terms_bytes
    return own_bytes + chunk_bytes + vector_bytes + postings_bytes


async def _try_model(
    sampled: Sequence[Passages], tools: Tools, shelf: Shelf | None, rng: random.Random
) -> tuple[float, float]:
    """The share of passages that the model would see, and the seconds that it takes for one."""
    texts = {
        content_hash: text
        for passages in sampled
        for content_hash, text in zip(passages.hashes, passages.texts, strict=True)
    }
    if not texts:
        return 1.0, 0.0

    async def look_up(connection: AsyncConnection) -> dict[bytes, Vectors]:
        if shelf is None:
            return {}
        return await known_vectors(connection, shelf.tenant_id, shelf.model_id, sorted(texts))

    known = await tools.transaction(look_up)
    new = [text for content_hash, text in texts.items() if content_hash not in known]
    new_share = len(new) / sum(len(passages.hashes) for passages in sampled)
    tried = rng.sample(new, min(len(new), SAMPLED_PASSAGES))
    if not tried:
        return new_share, 0.0
    rounds = tools.rounds if shelf is None else (await tools.model(shelf.model_id)).rounds
    await rounds.embed(["A first text."])
    started = time.monotonic()
    await rounds.embed(tried)
    return new_share, (time.monotonic() - started) / len(tried)


# --- the figures ----------------------------------------------------------------------------------


def _scaled(
    sampled: Sequence[tuple[int, float]], total_bytes: float, rng: random.Random
) -> tuple[float, float, float]:
    """What all would come to in proportion to size: the 5th percentile, the likely, the 95th.

    The percentiles are of samples that are drawn from the sample.
    """

    def whole(drawn: Sequence[tuple[int, float]]) -> float:
        return total_bytes * sum(value for _, value in drawn) / sum(cost for cost, _ in drawn)

    likely = whole(sampled)
    drawn = sorted(whole(rng.choices(sampled, k=len(sampled))) for _ in range(RESAMPLES))
    low, high = drawn[RESAMPLES // 20], drawn[-RESAMPLES // 20]
    return min(low, likely), likely, max(high, likely)


def _range(low: float, likely: float, high: float) -> Range:
    return Range(int(low), round(likely), int(high) + 1 if high > int(high) else int(high))
